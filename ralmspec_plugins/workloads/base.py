"""Base classes of workloads, with defaults for all but the query and the next segment."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

from ralmspec_plugins.protocols import LanguageModel, Progress
from ralmspec_plugins.types import Hits, Request, read_by

StateT = TypeVar("StateT")
DraftT = TypeVar("DraftT")


@dataclass(frozen=True, slots=True)
class TextState:
    """A request, and the text of its answer so far."""

    request: Request
    text: str = ""

    def append(self, text: str) -> "TextState":
        """Return the state with more text."""
        return replace(self, text=self.text + text)


class TextWorkload(Generic[StateT]):
    r"""Base of workloads: a subclass has `query` and `extend`; all else has a default.

    Its states are `TextState`s, or the results of your own `start`; these need a `text`.

    >>> from ralmspec_plugins import plain
    >>> from ralmspec_plugins.testing import WordRetriever
    >>> class Lines(TextWorkload[TextState]):
    ...     def query(self, state):
    ...         words = state.request.prompt.split()
    ...         lines = state.text.count("\n")
    ...         return words[lines] if lines < len(words) else None
    ...     def extend(self, state, hits):
    ...         return state.append(f"{hits[0].passage.text}\n")
    >>> plain(Lines(), WordRetriever(["red fox", "blue whale"]), "whale red").text
    'blue whale\nred fox\n'
    """

    inline_query: bool = False  # whether `query` is pure and takes microseconds
    reads_scores: bool = False  # whether `extend` reads the scores of its hits
    append_only: bool = False  # whether `extend` only appends; the text is then streamed by steps

    def start(self, request: Request) -> StateT:
        """Return the state of an empty text."""
        begun: Any = TextState(request)
        state: StateT = begun
        return state

    def text(self, state: StateT) -> str:
        """Return the state's `text`."""
        written: Any = state
        text: str = written.text
        return text

    def settled(self, state: StateT) -> str:
        """Return the whole text if it is only appended to, otherwise nothing before the end."""
        return self.text(state) if self.append_only else ""

    def query_key(self, state: StateT) -> Hashable | None:
        """Return the whole state if it is a `TextState`, otherwise `None`.

        States of a derived class have no key here: their equality may not cover all that they hold.
        """
        return state if type(state) is TextState else None

    def extend_key(self, state: StateT, hits: Hits) -> Hashable | None:
        """Return the whole state and the hits if the state is a `TextState`, otherwise `None`."""
        return (state, hits) if type(state) is TextState else None

    def release(self, state: StateT) -> None:
        """Do nothing: there is nothing to release."""


class DraftWorkload(TextWorkload[StateT], Generic[StateT, DraftT]):
    """Base of workloads whose text is a language model's draft.

    A subclass has `query` and `query_key`, and defines which part of its state is the draft, what
    the state is after a segment, and how long a segment is.
    """

    inline_query = True

    def __init__(self, lm: LanguageModel[DraftT], method: str = "write") -> None:
        """Create a workload of a model.

        Args:
            lm: the model.
            method: its method that writes a segment; its coroutine has the prefix `a`.
        """
        self.lm = lm
        self.side_by_side: bool = getattr(lm, "side_by_side", False)
        self.reads_scores = getattr(lm, "reads_scores", False)
        self._method = method
        # Engines look for these methods, so they are defined only if the model supports them.
        if hasattr(lm, f"a{method}"):
            self.aextend = self._aextend
        if hasattr(lm, "same_passages"):
            self.agree = self._agree

    def draft(self, state: StateT) -> DraftT:
        """Return the draft of a state."""
        raise NotImplementedError

    def after(self, state: StateT, draft: DraftT) -> StateT:
        """Return the state after a segment, which may be unfinished."""
        raise NotImplementedError

    def tokens_of(self, state: StateT) -> int:
        """Return the maximum number of tokens of the next segment."""
        raise NotImplementedError

    def begun(self, state: StateT, hits: Hits) -> StateT:
        """Return the state in which the segment with these hits begins; the same by default."""
        return state

    def in_front(self, begun: StateT, hits: Hits) -> Any:
        """Return the passages as the model reads them; those of the hits by default."""
        return read_by(self.lm, hits)

    def shown(self, begun: StateT, draft: DraftT) -> StateT:
        """Return the state with an unfinished segment; by default as after a finished one."""
        return self.after(begun, draft)

    def extend(self, state: StateT, hits: Hits, progress: Progress) -> StateT:
        """Write the next segment with these passages in the prompt."""
        begun = self.begun(state, hits)
        write: Any = getattr(self.lm, self._method)
        return self.after(begun, write(*self._given(begun, hits, progress)))

    async def _aextend(self, state: StateT, hits: Hits, progress: Progress) -> StateT:
        """Write the next segment without blocking the event loop."""
        begun = self.begun(state, hits)
        write: Any = getattr(self.lm, f"a{self._method}")
        return self.after(begun, await write(*self._given(begun, hits, progress)))

    def _given(self, begun: StateT, hits: Hits, progress: Progress) -> tuple[Any, ...]:
        passages = self.in_front(begun, hits)
        reports = Reports(progress, partial(self.shown, begun))
        return self.draft(begun), passages, self.tokens_of(begun), reports

    def _agree(self, state: StateT, guess: Hits, hits: Hits) -> bool:
        """Return whether the model reads the same passages in both."""
        lm: Any = self.lm
        return bool(lm.same_passages(read_by(self.lm, guess), read_by(self.lm, hits)))

    def text(self, state: StateT) -> str:
        """Return the text without the prompt."""
        return self.lm.text(self.draft(state))

    def settled(self, state: StateT) -> str:
        """Return the part of the text that no later token can change."""
        return self.lm.settled(self.draft(state))

    def extend_key(self, state: StateT, hits: Hits) -> Hashable | None:
        """Return a key of all that the next tokens depend on exactly, and the state's rest."""
        passages = read_by(self.lm, hits)
        written = self.lm.write_key(self.draft(state), passages, self.tokens_of(state))
        return self.query_key(state), written

    def release(self, state: StateT) -> None:
        """Release the model's caches for this request."""
        self.lm.release(self.draft(state))


class Reports(Progress):
    """Forwards a model's drafts to another progress as states, and all else unchanged."""

    def __init__(self, outer: Progress, state_of: Callable[[Any], Any]) -> None:
        """Create a progress that reports `state_of(draft)` to `outer`."""
        super().__init__()
        self._outer = outer
        self._state_of = state_of

    @property
    def cancelled(self) -> bool:
        """Whether the segment is no longer needed."""
        return self._outer.cancelled

    @property
    def wanted(self) -> bool:
        """Whether reports to the outer progress are used."""
        return self._outer.wanted

    def cancel(self) -> None:
        """Request that the writer stops at its next check."""
        self._outer.cancel()

    def check(self) -> None:
        """Raise `Cancelled` when the segment is no longer needed."""
        self._outer.check()

    def report(self, state: Any) -> None:
        """Report the state of an unfinished draft."""
        self._outer.report(self._state_of(state))

    def count(self, **counts: int) -> None:
        """Add to the counts of the outer progress."""
        self._outer.count(**counts)

    def charge(self, tokens: int) -> None:
        """Add to the cost of the outer progress."""
        self._outer.charge(tokens)


class SilentProgress(Reports):
    """Forwards everything but reports, for text that may be written again."""

    def __init__(self, outer: Progress) -> None:
        """Create a progress that is cancelled and counts with `outer`."""
        super().__init__(outer, lambda draft: draft)

    @property
    def wanted(self) -> bool:
        """Whether reports are used: no."""
        return False

    def report(self, state: Any) -> None:
        """Do nothing."""
