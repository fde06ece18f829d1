"""Any host's model as the core's `LanguageModel`: each segment is one call of the host's own."""

from collections.abc import Awaitable, Callable, Hashable
from contextlib import AbstractContextManager
from typing import Generic, Protocol, TypeAlias, TypeVar

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.hosts import text_draft
from ralmspec_plugins.hosts.text_calls import Step, taken
from ralmspec_plugins.hosts.text_draft import Streamed, TextDraft, Written
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Request

GivenT = TypeVar("GivenT")  # what is written with: passages, or hits for one that reads them
GivenInT = TypeVar("GivenInT", contravariant=True)
Show: TypeAlias = Callable[[Written], None]
Awaited: TypeAlias = Callable[[TextDraft, GivenT, int, Progress], Awaitable[TextDraft]]


class Call(Protocol[GivenInT]):
    """One call of a host's model, planned for one segment of a draft."""

    def alone(self) -> AbstractContextManager[None]:
        """Have nobody hear of what runs inside but whatever records it.

        What it raises is noted, for the case that it counts: then its events do too.
        """
        ...

    def write(self, given: GivenInT, progress: Progress, show: Show) -> Written:
        """Make the call and wait for it.

        Where `progress.wanted` and the model can be listened to, `show` is called with
        what came so far, again with each piece, and `progress.check()` before it.
        """
        ...

    async def awrite(self, given: GivenInT, progress: Progress, show: Show) -> Written:
        """Make the call and await it."""
        ...


class Writer(Protocol[GivenInT]):
    """A host's model, and how passages and text become what it is given.

    `awaits`: its calls are awaited without holding up an event loop.
    """

    @property
    def awaits(self) -> bool:
        """Whether its calls are awaited without holding up an event loop."""
        ...

    def call(
        self, draft: TextDraft, step: Step, bound: int, sentence_stop: str | None
    ) -> Call[GivenInT]:
        """Plan one call.

        Args:
            draft: what it continues.
            step: how far it is to write: by tokens, by a sentence, up to the stop, at once.
            bound: the most tokens.
            sentence_stop: the stop string that ends a sentence.
        """
        ...

    def write_key(self, draft: TextDraft, given: GivenInT, tokens: int) -> Hashable:
        """Hold all that a call depends on."""
        ...

    def same(self, one: GivenInT, other: GivenInT) -> bool:
        """Say whether the model is shown the same of both."""
        ...


class TextLM(Generic[GivenT]):
    """Continues a text by calls of a host's model.

    `write` and `write_sentence` have twins that are awaited, `awrite` and
    `awrite_sentence`, only where the model itself is asynchronous. One that is not is
    better off in the engine's threads: there a cancelled call keeps its place until it
    has really ended, and it holds up nobody else.
    """

    awrite: Awaited[GivenT]
    awrite_sentence: Awaited[GivenT]

    def __init__(
        self,
        writer: Writer[GivenT],
        *,
        whole: bool = False,
        sentence_stop: str | None = None,
        side_by_side: bool = False,
    ) -> None:
        """Write by this model.

        Args:
            writer: the host's model.
            whole: the whole answer in one call, the host's own, with no bound.
            sentence_stop: for models that cannot be told how far to write, but where to
                stop: the mark that ends a sentence, such as ".".
            side_by_side: whether several calls may run at a time.

        Raises:
            ConfigError: the steps make no sense.
        """
        first_step(whole=whole, sentence_stop=sentence_stop)
        self._writer = writer
        self.whole = whole
        self.sentence_stop = sentence_stop
        self.side_by_side = side_by_side
        if writer.awaits:
            self.awrite = self._awrite
            self.awrite_sentence = self._awrite_sentence

    def begin(self, request: Request) -> TextDraft:
        """Begin with no text."""
        return TextDraft(request)

    def write(self, draft: TextDraft, given: GivenT, tokens: int, progress: Progress) -> TextDraft:
        """Continue a draft by one call that is bounded to this many tokens.

        Raises:
            Cancelled: `progress` was cancelled, before the call or while it streamed.
            Exception: what the host raises.
        """
        return self._run(draft, given, tokens, self._step("tokens"), progress)

    def write_sentence(
        self, draft: TextDraft, given: GivenT, tokens: int, progress: Progress
    ) -> TextDraft:
        """Continue a draft by the first sentence of what one bounded call gives.

        Raises:
            Cancelled: `progress` was cancelled, before the call or while it streamed.
            Exception: what the host raises.
        """
        return self._run(draft, given, tokens, self._step("sentence"), progress)

    async def _awrite(
        self, draft: TextDraft, given: GivenT, tokens: int, progress: Progress
    ) -> TextDraft:
        return await self._arun(draft, given, tokens, self._step("tokens"), progress)

    async def _awrite_sentence(
        self, draft: TextDraft, given: GivenT, tokens: int, progress: Progress
    ) -> TextDraft:
        return await self._arun(draft, given, tokens, self._step("sentence"), progress)

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

    def write_key(self, draft: TextDraft, given: GivenT, tokens: int) -> Hashable:
        """Hold all that a call depends on."""
        return self._writer.write_key(draft, given, tokens)

    def same_passages(self, one: GivenT, other: GivenT) -> bool:
        """Say whether the model is shown the same of both."""
        return self._writer.same(one, other)

    def release(self, draft: TextDraft) -> None:
        """Nothing is kept."""

    def _step(self, step: Step) -> Step:
        """Say what a call writes.

        Raises:
            ConfigError: the steps are not those of `sentence_stop`.
        """
        if self.whole:
            return "whole"
        if self.sentence_stop is None:
            return step
        if step == "tokens":
            raise ConfigError(
                "with sentence_stop a step is a sentence: use workload='sentences', "
                "not one that counts tokens"
            )
        return "stop"

    def _run(
        self, draft: TextDraft, given: GivenT, tokens: int, step: Step, progress: Progress
    ) -> TextDraft:
        if draft.finished:
            return draft
        bound = draft.allowed(tokens)
        call = self._writer.call(draft, step, bound, self.sentence_stop)
        progress.check()
        with call.alone():
            written = call.write(given, progress, _showing(draft, step, progress))
        return taken(draft, written, step, bound, self.sentence_stop)

    async def _arun(
        self, draft: TextDraft, given: GivenT, tokens: int, step: Step, progress: Progress
    ) -> TextDraft:
        if draft.finished:
            return draft
        bound = draft.allowed(tokens)
        call = self._writer.call(draft, step, bound, self.sentence_stop)
        progress.check()
        with call.alone():
            written = await call.awrite(given, progress, _showing(draft, step, progress))
        return taken(draft, written, step, bound, self.sentence_stop)


def first_step(*, whole: bool, sentence_stop: str | None) -> Step:
    """Say in which steps a model is to write, for what it must be able to do.

    Raises:
        ConfigError: they make no sense.
    """
    if sentence_stop == "":
        raise ConfigError("sentence_stop must be a text such as '.', got an empty one")
    if whole and sentence_stop is not None:
        raise ConfigError("whole and sentence_stop cannot be used together")
    if whole:
        return "whole"
    return "tokens" if sentence_stop is None else "stop"


def _showing(draft: TextDraft, step: Step, progress: Progress) -> Show:
    """Give what reports a draft with what has come so far, to those who want to know."""
    streamed = Streamed(draft, sentence=step == "sentence")

    def show(written: Written) -> None:
        if progress.wanted:
            progress.report(streamed.shown(written))

    return show
