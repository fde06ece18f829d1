"""A LangChain model as the core's `LanguageModel`: each segment is one call of the host's own."""

from collections.abc import Hashable, Sequence
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig

from langchain_ralmspec import models
from langchain_ralmspec.call_configs import HostContext
from langchain_ralmspec.models import Abilities
from langchain_ralmspec.planning import Plan, arguments_for
from langchain_ralmspec.prompting import Prompting
from ralmspec_plugins.adapters.text_model import Bound, Continuation, Step, TextLM, first_step
from ralmspec_plugins.adapters.text_state import TextDraft
from ralmspec_plugins.types import Passage


class HostLM(TextLM[Sequence[Passage]]):
    """Continues a text by calls of a LangChain model, with documents in its prompt.

    What is right is the loop that a user would write by hand with the same objects:
    prompt and text so far go in, at most n tokens come out and are appended. A
    string model continues its text, a chat model its own last message.
    """

    def __init__(
        self,
        llm: Runnable[Any, Any],
        prompting: Prompting | None = None,
        *,
        whole: bool = False,
        sentence_stop: str | None = None,
        bound: Bound | None = None,
        continuation: Continuation | None = None,
        side_by_side: bool | None = None,
    ) -> None:
        """Wrap a model, or a model in `.bind(...)`, `.with_config(...)` and their kind.

        Args:
            llm: the model. With `whole`, any runnable that takes a prompt.
            prompting: how documents and inputs become a prompt.
            whole: write the whole answer in one call, the host's own, with no bound.
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
        prompting = Prompting() if prompting is None else prompting
        writer = _Writer(llm, prompting, bound, continuation, side_by_side)
        models.check(writer.known, step)
        super().__init__(
            writer,
            whole=whole,
            sentence_stop=sentence_stop,
            side_by_side=writer.known.side_by_side,
        )


class _Writer:
    """A model, or a model in its wrappings, and the prompt that it is given."""

    def __init__(
        self,
        llm: Runnable[Any, Any],
        prompting: Prompting,
        bound: Bound | None,
        continuation: Continuation | None,
        side_by_side: bool | None,
    ) -> None:
        self._llm = llm
        self._prompting = prompting
        self._stated = (bound, continuation, side_by_side)
        self._inner, self.known = self._look(None)

    @property
    def awaits(self) -> bool:
        return self.known.native_async

    def call(self, draft: TextDraft, step: Step, bound: int, sentence_stop: str | None) -> Plan:
        """Plan one call.

        Raises:
            ConfigError: its config chooses a model that cannot write in such steps.
        """
        context: HostContext | None = draft.origin.context
        config, recording = (None, None) if context is None else context.call()
        inner, known = self._inner, self.known
        if inner.dynamic:
            inner, known = self._look(config)
            models.check(known, step)
        arguments = arguments_for(draft, step, bound, sentence_stop, inner, known)
        parts = (self._llm, inner, known, self._prompting)
        return Plan(*parts, draft, step, arguments, context, config, recording)

    def write_key(self, draft: TextDraft, given: Sequence[Passage], tokens: int) -> Hashable:
        """Hold the draft and what the model would see of the passages."""
        try:
            return draft, self._prompting.context(given), tokens
        except Exception:  # noqa: BLE001 raised again where it counts, by the call itself
            return object()

    def same(self, one: Sequence[Passage], other: Sequence[Passage]) -> bool:
        return self._prompting.same_passages(one, other)

    def _look(self, config: RunnableConfig | None) -> tuple[models.Unwrapped, Abilities]:
        bound, continuation, side_by_side = self._stated
        inner = models.unwrapped(self._llm, config)
        known = models.abilities(
            inner, bound=bound, continuation=continuation, side_by_side=side_by_side
        )
        return inner, known
