"""A LlamaIndex model as the core's `LanguageModel`: each segment is one call of the host's own."""

from collections.abc import Hashable, Sequence

from llama_index.core.llms import LLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor

from llama_index_ralmspec import models
from llama_index_ralmspec.models import Abilities
from llama_index_ralmspec.planning import Plan
from llama_index_ralmspec.postprocessing import Postprocessing, valued
from llama_index_ralmspec.prompting import Prompting
from llama_index_ralmspec.quiet_call import quiet_call
from ralmspec_plugins.adapters.text_model import (
    Bound,
    Continuation,
    Step,
    TextLM,
    first_step,
    stops,
)
from ralmspec_plugins.adapters.text_state import TextDraft
from ralmspec_plugins.types import Hits


class HostLM(TextLM[Hits]):
    """Continues a text by calls of a LlamaIndex model, with nodes in its prompt.

    What is right is the loop that a user would write by hand with the same objects:
    prompt and text so far go in, at most n tokens come out and are appended. A model
    that completes texts continues its prompt, with `complete(..., formatted=True)`; so
    does a chat model that shows its messages as one text (`messages_to_prompt`); any
    other chat model continues its own last message.
    """

    reads_hits = True

    def __init__(
        self,
        llm: LLM,
        prompting: Prompting | None = None,
        *,
        postprocessors: Sequence[BaseNodePostprocessor] = (),
        whole: bool = False,
        sentence_stop: str | None = None,
        bound: Bound | None = None,
        continuation: Continuation | None = None,
        side_by_side: bool | None = None,
    ) -> None:
        """Wrap a model.

        Args:
            llm: the model.
            prompting: how nodes and question become a prompt.
            postprocessors: of the nodes, before they are shown; they are given the
                request's own question.
            whole: write the whole answer in one call, with no bound.
            sentence_stop: for models that cannot be told how far to write, but where to
                stop: the mark that ends a sentence, such as ".".
            bound: how the model is told to write at most n tokens: the argument's name,
                or a function from n to the arguments of the call. By default by its class.
            continuation: that a chat model continues a trailing assistant message: "assistant",
                or the arguments that make it. By default by its class.
            side_by_side: whether several calls may run at a time. By default by its class.

        Raises:
            ConfigError: the model cannot write step by step; or not in the ways asked for.
        """
        step = first_step(whole=whole, sentence_stop=sentence_stop)
        known = models.abilities(
            llm, bound=bound, continuation=continuation, side_by_side=side_by_side
        )
        models.check(known, step)
        prompting = Prompting() if prompting is None else prompting
        writer = _Writer(llm, known, prompting, Postprocessing(postprocessors))
        super().__init__(
            writer,
            whole=whole,
            sentence_stop=sentence_stop,
            side_by_side=known.side_by_side
            and (side_by_side is not None or not writer.processing.unknown),
        )
        self._own = writer

    @property
    def reads_scores(self) -> bool:
        """Whether anything that is called may look at the nodes' scores."""
        return self._own.reads_scores


class _Writer:
    """A model, the prompt that it is given, and what is done to the nodes before."""

    def __init__(
        self, llm: LLM, known: Abilities, prompting: Prompting, processing: Postprocessing
    ) -> None:
        self._llm = llm
        self._known = known
        self._prompting = prompting
        self.processing = processing

    @property
    def awaits(self) -> bool:
        return self._known.native_async or bool(self.processing.postprocessors)

    @property
    def reads_scores(self) -> bool:
        return self._prompting.format_nodes is not None or self.processing.reads_scores

    def call(self, draft: TextDraft, step: Step, bound: int, sentence_stop: str | None) -> Plan:
        """Plan one call."""
        parts = (self._llm, self._known, self._prompting, self.processing)
        stop = stops(draft, step, sentence_stop)
        return Plan(*parts, draft.text, step, bound, stop, quiet_call(draft.origin))

    def write_key(self, draft: TextDraft, given: Hits, tokens: int) -> Hashable:
        """Hold the draft and the nodes, with their scores if anybody looks at them."""
        return draft, valued(given, scores=self.reads_scores), tokens

    def same(self, one: Hits, other: Hits) -> bool:
        if self._prompting.format_nodes is not None and one != other:
            return False
        return self.processing.same(one, other)
