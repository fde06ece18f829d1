"""What workloads have in common: defaults for all but the question and the next segment."""

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

    Its states are `TextState`s, or those of your own `start`, which then need a `text`.

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
    reads_scores: bool = False  # whether `extend` looks at the scores of its hits
    append_only: bool = False  # whether `extend` never changes text: it is then streamed by steps

    def start(self, request: Request) -> StateT:
        """Begin with an empty text."""
        begun: Any = TextState(request)
        state: StateT = begun
        return state

    def text(self, state: StateT) -> str:
        """Give the state's `text`."""
        written: Any = state
        text: str = written.text
        return text

    def settled(self, state: StateT) -> str:
        """Give all of the text if it is only appended to; else nothing before the end."""
        return self.text(state) if self.append_only else ""

    def query_key(self, state: StateT) -> Hashable | None:
        """Hold the whole state, where that is a `TextState`."""
        return state if isinstance(state, TextState) else None

    def extend_key(self, state: StateT, hits: Hits) -> Hashable | None:
        """Hold the whole state and the hits, where the state is a `TextState`."""
        return (state, hits) if isinstance(state, TextState) else None

    def release(self, state: StateT) -> None:
        """Free nothing."""


class DraftWorkload(TextWorkload[StateT], Generic[StateT, DraftT]):
    """Base of workloads whose text is a language model's draft.

    A subclass has `query`, `query_key`, and says where the draft stands in its state, what the
    state is after a segment, and how long a segment is.
    """

    inline_query = True

    def __init__(self, lm: LanguageModel[DraftT], method: str = "write") -> None:
        """Write with a model.

        Args:
            lm: the model.
            method: its method that writes a segment; `a` and this where it is awaited.
        """
        self.lm = lm
        self.side_by_side: bool = getattr(lm, "side_by_side", False)
        self.reads_scores = getattr(lm, "reads_scores", False)
        self._method = method
        # Only there where the model can: engines look for them.
        if hasattr(lm, f"a{method}"):
            self.aextend = self._aextend
        if hasattr(lm, "same_passages"):
            self.agree = self._agree

    def draft(self, state: StateT) -> DraftT:
        """Give the draft of a state."""
        raise NotImplementedError

    def after(self, state: StateT, draft: DraftT) -> StateT:
        """Give the state after a segment, or with what there is of it."""
        raise NotImplementedError

    def tokens_of(self, state: StateT) -> int:
        """Give the maximum number of tokens of the next segment."""
        raise NotImplementedError

    def begun(self, state: StateT, hits: Hits) -> StateT:
        """Return the state in which the segment with these hits begins; the same by default."""
        return state

    def in_front(self, begun: StateT, hits: Hits) -> Any:
        """Return what the model reads of the passages; those of the hits by default."""
        return read_by(self.lm, hits)

    def shown(self, begun: StateT, draft: DraftT) -> StateT:
        """Return the state with an unfinished segment; as after a finished one by default."""
        return self.after(begun, draft)

    def extend(self, state: StateT, hits: Hits, progress: Progress) -> StateT:
        """Write the next segment with these passages in front."""
        begun = self.begun(state, hits)
        write: Any = getattr(self.lm, self._method)
        return self.after(begun, write(*self._given(begun, hits, progress)))

    async def _aextend(self, state: StateT, hits: Hits, progress: Progress) -> StateT:
        """Do the same without holding up the event loop."""
        begun = self.begun(state, hits)
        write: Any = getattr(self.lm, f"a{self._method}")
        return self.after(begun, await write(*self._given(begun, hits, progress)))

    def _given(self, begun: StateT, hits: Hits, progress: Progress) -> tuple[Any, ...]:
        passages = self.in_front(begun, hits)
        reports = Reports(progress, partial(self.shown, begun))
        return self.draft(begun), passages, self.tokens_of(begun), reports

    def _agree(self, state: StateT, guess: Hits, hits: Hits) -> bool:
        """Say whether the model sees the same in both."""
        lm: Any = self.lm
        return bool(lm.same_passages(read_by(self.lm, guess), read_by(self.lm, hits)))

    def text(self, state: StateT) -> str:
        """Give what was written, without the prompt."""
        return self.lm.text(self.draft(state))

    def settled(self, state: StateT) -> str:
        """Give the part of the text that no later token can change."""
        return self.lm.settled(self.draft(state))

    def extend_key(self, state: StateT, hits: Hits) -> Hashable | None:
        """Hold what the model's next tokens depend on, to the last bit, and the state's rest."""
        passages = read_by(self.lm, hits)
        written = self.lm.write_key(self.draft(state), passages, self.tokens_of(state))
        return self.query_key(state), written

    def release(self, state: StateT) -> None:
        """Free the model's caches for this request."""
        self.lm.release(self.draft(state))


class Reports(Progress):
    """Passes a model's drafts on as states, and everything else to the outer progress."""

    def __init__(self, outer: Progress, state_of: Callable[[Any], Any]) -> None:
        """Report to `outer` what `state_of` makes of a draft."""
        super().__init__()
        self._outer = outer
        self._state_of = state_of

    @property
    def cancelled(self) -> bool:
        """Whether the segment is no longer needed."""
        return self._outer.cancelled

    @property
    def wanted(self) -> bool:
        """Whether the outer progress goes anywhere."""
        return self._outer.wanted

    def cancel(self) -> None:
        """Ask the writer to stop at its next check."""
        self._outer.cancel()

    def check(self) -> None:
        """Raise `Cancelled` when the segment is no longer needed."""
        self._outer.check()

    def report(self, state: Any) -> None:
        """Hand on the unfinished draft, as a state."""
        self._outer.report(self._state_of(state))

    def count(self, **counts: int) -> None:
        """Take in what writing took."""
        self._outer.count(**counts)


class SilentProgress(Reports):
    """Passes on everything but reports: of text that may be written again."""

    def __init__(self, outer: Progress) -> None:
        """Stop and count with `outer`."""
        super().__init__(outer, lambda draft: draft)

    @property
    def wanted(self) -> bool:
        """Whether reports go anywhere: no."""
        return False

    def report(self, state: Any) -> None:
        """Hand on nothing."""
