"""A LangChain model as the core's `LanguageModel`: each segment is one call of the host's own."""

from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig

from langchain_ralmspec import models
from langchain_ralmspec.call_configs import HostContext
from langchain_ralmspec.models import Abilities
from langchain_ralmspec.planning import Plan, planned
from langchain_ralmspec.prompting import Prompting
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.hosts import text_draft
from ralmspec_plugins.hosts.text_calls import Bound, Continuation, Step
from ralmspec_plugins.hosts.text_draft import TextDraft
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.records import Passage, Request

Write = Callable[[TextDraft, Sequence[Passage], int, Progress], Awaitable[TextDraft]]


class HostLM:
    """Continues a text by calls of a LangChain model, with documents in its prompt.

    What is right is the loop that a user would write by hand with the same objects:
    prompt and text so far go in, at most n tokens come out and are appended. A
    string model continues its text, a chat model its own last message.

    `write` and `write_sentence` have twins that are awaited, `awrite` and
    `awrite_sentence`, only where the model itself is asynchronous. One whose
    asynchronous method sits in a thread is better off in the engine's threads: there
    a cancelled call keeps its place until it has really ended.
    """

    awrite: Write
    awrite_sentence: Write

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
        if sentence_stop == "":
            raise ConfigError("sentence_stop must be a text such as '.', got an empty one")
        if whole and sentence_stop is not None:
            raise ConfigError("whole and sentence_stop cannot be used together")
        self.llm = llm
        self.prompting = Prompting() if prompting is None else prompting
        self.whole = whole
        self.sentence_stop = sentence_stop
        self._stated = (bound, continuation, side_by_side)
        self._inner, self._known = self._look(None)
        step: Step = "tokens" if sentence_stop is None else "stop"
        models.check(self._known, "whole" if whole else step)
        self.side_by_side = self._known.side_by_side
        if self._known.native_async:
            self.awrite = self._awrite
            self.awrite_sentence = self._awrite_sentence

    def begin(self, request: Request) -> TextDraft:
        """Begin with no text."""
        return TextDraft(request)

    def write(
        self, draft: TextDraft, passages: Sequence[Passage], tokens: int, progress: Progress
    ) -> TextDraft:
        """Continue a draft by one call that is bounded to this many tokens.

        Raises:
            Cancelled: `progress` was cancelled, before the call or while it streamed.
            Exception: what the host raises.
        """
        return self._run(draft, passages, self._plan(draft, tokens, "tokens"), progress)

    def write_sentence(
        self, draft: TextDraft, passages: Sequence[Passage], tokens: int, progress: Progress
    ) -> TextDraft:
        """Continue a draft by the first sentence of what one bounded call gives.

        Raises:
            Cancelled: `progress` was cancelled, before the call or while it streamed.
            Exception: what the host raises.
        """
        return self._run(draft, passages, self._plan(draft, tokens, "sentence"), progress)

    async def _awrite(
        self, draft: TextDraft, passages: Sequence[Passage], tokens: int, progress: Progress
    ) -> TextDraft:
        return await self._arun(draft, passages, self._plan(draft, tokens, "tokens"), progress)

    async def _awrite_sentence(
        self, draft: TextDraft, passages: Sequence[Passage], tokens: int, progress: Progress
    ) -> TextDraft:
        return await self._arun(draft, passages, self._plan(draft, tokens, "sentence"), progress)

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

    def write_key(self, draft: TextDraft, passages: Sequence[Passage], tokens: int) -> Hashable:
        """Hold the draft and what the model would see of the passages."""
        try:
            return draft, self.prompting.context(passages), tokens
        except Exception:  # noqa: BLE001 raised again where it counts, by the call itself
            return object()

    def same_passages(self, one: Sequence[Passage], other: Sequence[Passage]) -> bool:
        """Say whether the model sees the same in both."""
        return self.prompting.same_passages(one, other)

    def release(self, draft: TextDraft) -> None:
        """Nothing is kept."""

    def _look(self, config: RunnableConfig | None) -> tuple[models.Unwrapped, Abilities]:
        bound, continuation, side_by_side = self._stated
        inner = models.unwrapped(self.llm, config)
        known = models.abilities(
            inner, bound=bound, continuation=continuation, side_by_side=side_by_side
        )
        return inner, known

    def _plan(self, draft: TextDraft, tokens: int, step: Step) -> Plan:
        """Plan one call.

        Raises:
            ConfigError: this call's config chooses a model that cannot write in such steps,
                or the steps are not those of `sentence_stop`.
        """
        stop = self.sentence_stop
        if stop is not None and step == "tokens":
            raise ConfigError(
                "with sentence_stop a step is a sentence: use workload='sentences', "
                "not one that counts tokens"
            )
        step = "whole" if self.whole else step if stop is None else "stop"
        context: HostContext | None = draft.origin.context
        config, recording = (None, None) if context is None else context.call()
        inner, known = self._inner, self._known
        if inner.dynamic:
            inner, known = self._look(config)
            models.check(known, step)
        bound, arguments = planned(draft, tokens, step, stop, inner, known)
        told = (context, config, recording)
        return Plan(step, bound, stop or "", inner, known, arguments, *told)

    def _run(
        self, draft: TextDraft, passages: Sequence[Passage], plan: Plan, progress: Progress
    ) -> TextDraft:
        if draft.finished:
            return draft
        progress.check()
        with plan.alone():
            request = draft.origin
            value = self.prompting.value(request, self.prompting.context(passages))
            call = plan.call(self.llm, draft, value)
            if plan.streams(progress):
                written = call.stream(progress, plan.showing(draft, progress))
            else:
                written = call.invoke()
        return plan.take(draft, written)

    async def _arun(
        self, draft: TextDraft, passages: Sequence[Passage], plan: Plan, progress: Progress
    ) -> TextDraft:
        if draft.finished:
            return draft
        progress.check()
        with plan.alone():
            request = draft.origin
            value = await self.prompting.avalue(request, self.prompting.context(passages))
            call = plan.call(self.llm, draft, value)
            if plan.streams(progress):
                written = await call.astream(progress, plan.showing(draft, progress))
            else:
                written = await call.ainvoke()
        return plan.take(draft, written)
