"""A LlamaIndex model as the core's `LanguageModel`: each segment is one call of the host's own."""

from collections.abc import Awaitable, Callable, Hashable, Sequence

from llama_index.core.llms import LLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor

from llama_index_ralmspec import models
from llama_index_ralmspec.planning import Plan
from llama_index_ralmspec.postprocessing import Postprocessing
from llama_index_ralmspec.prompting import Prompting
from llama_index_ralmspec.quiet_call import in_a_loop_of_its_own, quiet_call
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.hosts import text_draft
from ralmspec_plugins.hosts.text_calls import Bound, Continuation, Step
from ralmspec_plugins.hosts.text_draft import TextDraft
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.records import Hits, Request, passages_of

Write = Callable[[TextDraft, Hits, int, Progress], Awaitable[TextDraft]]


class HostLM:
    """Continues a text by calls of a LlamaIndex model, with nodes in its prompt.

    What is right is the loop that a user would write by hand with the same objects:
    prompt and text so far go in, at most n tokens come out and are appended. A model
    that completes texts continues its prompt, with `complete(..., formatted=True)`; so
    does a chat model that shows its messages as one text (`messages_to_prompt`); any
    other chat model continues its own last message.

    `write` and `write_sentence` have twins that are awaited, `awrite` and
    `awrite_sentence`, only where the model itself is asynchronous. One whose
    asynchronous methods are its synchronous ones is better off in the engine's
    threads: there it holds up nobody else.
    """

    reads_hits = True
    awrite: Write
    awrite_sentence: Write

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
        if sentence_stop == "":
            raise ConfigError("sentence_stop must be a text such as '.', got an empty one")
        if whole and sentence_stop is not None:
            raise ConfigError("whole and sentence_stop cannot be used together")
        self.llm = llm
        self.prompting = Prompting() if prompting is None else prompting
        self.processing = Postprocessing(postprocessors)
        self.whole = whole
        self.sentence_stop = sentence_stop
        self._known = models.abilities(
            llm, bound=bound, continuation=continuation, side_by_side=side_by_side
        )
        step: Step = "tokens" if sentence_stop is None else "stop"
        models.check(self._known, "whole" if whole else step)
        self.side_by_side = self._known.side_by_side and (
            side_by_side is not None or self.processing.local
        )
        if self._known.native_async:
            self.awrite = self._awrite
            self.awrite_sentence = self._awrite_sentence

    @property
    def reads_scores(self) -> bool:
        """Whether anything that is called may look at the nodes' scores."""
        return self.prompting.format_nodes is not None or self.processing.reads_scores

    def begin(self, request: Request) -> TextDraft:
        """Begin with no text."""
        return TextDraft(request)

    def write(self, draft: TextDraft, hits: Hits, tokens: int, progress: Progress) -> TextDraft:
        """Continue a draft by one call that is bounded to this many tokens.

        Raises:
            Cancelled: `progress` was cancelled, before the call or while it streamed.
            Exception: what the host raises.
        """
        return self._run(draft, hits, self._plan(draft, tokens, "tokens"), progress)

    def write_sentence(
        self, draft: TextDraft, hits: Hits, tokens: int, progress: Progress
    ) -> TextDraft:
        """Continue a draft by the first sentence of what one bounded call gives.

        Raises:
            Cancelled: `progress` was cancelled, before the call or while it streamed.
            Exception: what the host raises.
        """
        return self._run(draft, hits, self._plan(draft, tokens, "sentence"), progress)

    async def _awrite(
        self, draft: TextDraft, hits: Hits, tokens: int, progress: Progress
    ) -> TextDraft:
        return await self._arun(draft, hits, self._plan(draft, tokens, "tokens"), progress)

    async def _awrite_sentence(
        self, draft: TextDraft, hits: Hits, tokens: int, progress: Progress
    ) -> TextDraft:
        return await self._arun(draft, hits, self._plan(draft, tokens, "sentence"), progress)

    def finished(self, draft: TextDraft) -> bool:
        """Say whether the draft has ended."""
        return draft.finished

    def tail(self, draft: TextDraft, tokens: int) -> str:
        """Give the last words of question and text; the question alone while there is no text."""
        return text_draft.tail(draft, tokens)

    def text(self, draft: TextDraft) -> str:
        """Give what was written, cut before a stop string."""
        return draft.text

    def settled(self, draft: TextDraft) -> str:
        """Give the part of `text` that no later call can change."""
        return draft.settled

    def text_key(self, draft: TextDraft) -> Hashable:
        """Hold question and text, and whether that is all."""
        return draft.origin.prompt, draft.text, draft.finished

    def write_key(self, draft: TextDraft, hits: Hits, tokens: int) -> Hashable:
        """Hold the draft and the nodes, with their scores if anybody looks at them."""
        scores = tuple(hit.score for hit in hits) if self.reads_scores else None
        return draft, tuple(passages_of(hits)), scores, tokens

    def same_passages(self, one: Hits, other: Hits) -> bool:
        """Say whether the model is shown the same of both."""
        if self.prompting.format_nodes is not None and one != other:
            return False
        return self.processing.same(one, other)

    def release(self, draft: TextDraft) -> None:
        """Nothing is kept."""

    def _plan(self, draft: TextDraft, tokens: int, step: Step) -> Plan:
        """Plan one call.

        Raises:
            ConfigError: the steps are not those of `sentence_stop`.
        """
        stop = self.sentence_stop
        if stop is not None and step == "tokens":
            raise ConfigError(
                "with sentence_stop a step is a sentence: use workload='sentences', "
                "not one that counts tokens"
            )
        step = "whole" if self.whole else step if stop is None else "stop"
        bound = draft.allowed(tokens)
        return Plan(step, bound, stop, self.llm, self._known, self.prompting)

    def _run(self, draft: TextDraft, hits: Hits, plan: Plan, progress: Progress) -> TextDraft:
        if draft.finished:
            return draft
        quiet = quiet_call(draft.origin)
        if quiet.asynchronous:
            return in_a_loop_of_its_own(self._arun(draft, hits, plan, progress))
        progress.check()
        with quiet.alone():
            nodes = quiet.nodes(hits, self.processing)
            call = plan.host_call(draft, nodes, quiet)
            if plan.streams(progress):
                written = call.stream(progress, plan.showing(draft, progress))
            else:
                written = call.invoke()
        return plan.take(draft, written)

    async def _arun(
        self, draft: TextDraft, hits: Hits, plan: Plan, progress: Progress
    ) -> TextDraft:
        if draft.finished:
            return draft
        quiet = quiet_call(draft.origin)
        progress.check()
        with quiet.alone():
            nodes = await quiet.anodes(hits, self.processing)
            call = plan.host_call(draft, nodes, quiet, awaited=True)
            if plan.streams(progress):
                written = await call.astream(progress, plan.showing(draft, progress))
            else:
                written = await call.ainvoke()
        return plan.take(draft, written)
