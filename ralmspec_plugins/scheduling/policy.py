"""The state that a policy reads, and the decisions that it makes."""

from dataclasses import dataclass
from typing import Protocol

from ralmspec_plugins.scheduling.cost_model import Searched
from ralmspec_plugins.scheduling.replacing import GuessReplacement


@dataclass(frozen=True, slots=True)
class SchedulerState:
    """The state of the loop at a decision."""

    pending: int  # steps whose query is not searched yet; equal queries are searched once
    searching: int  # searches in flight
    in_flight: int  # queries in them
    ahead: int  # steps whose segment depends on an unverified guess
    stalled: bool  # nothing can be generated until a search returns
    early: bool = False  # the guess in question was made before its query is encoded


class Policy(Protocol):
    """Decides for one request, and receives all measurements."""

    @property
    def replacement(self) -> GuessReplacement | None:
        """Decides when a second guess replaces the first; `None`: a guess stays until verified."""
        ...

    def has_room(self) -> bool:
        """Return whether the model has room for a segment on a guess, next to other requests."""
        ...

    def worth_guessing(self, *, early: bool = False) -> bool:
        """Return whether to call the speculators; `early`: before the query is encoded."""
        ...

    def worth_prefetching(self) -> bool:
        """Return whether the next search asks for more hits than it needs, for the caches."""
        ...

    def may_write(self, view: SchedulerState) -> bool:
        """Return whether the next step may use its guess."""
        ...

    def batches(self, view: SchedulerState) -> list[int]:
        """Return the sizes of the searches to start now, over the pending queries in order."""
        ...

    def wrote(
        self, seconds: float, beside_s: float | None = 0.0, before_s: float | None = 0.0
    ) -> None:
        """Record the seconds of a segment, its overlap with searches, and the seconds before it.

        The overlap is `None` where segments are not comparable, since a model writes queries too;
        the seconds before it are, where they are not known yet.
        """
        ...

    def searched(self, search: Searched) -> None:
        """Record the seconds of a search, and its overlap with generation."""
        ...

    def worth_encoding_ahead(self, stop_s: float) -> bool:
        """Return whether a query that depends on a guess may be encoded in the last free lane.

        Args:
            stop_s: the maximum time until an encoding that is not needed has stopped.
        """
        ...

    def encoded(self, seconds: float, lanes: int) -> None:
        """Record the seconds of an encoding, and how many may be made at a time."""
        ...

    def stopped(self, seconds: float) -> None:
        """Record the seconds from the cancellation of a segment to its end."""
        ...

    def guessed(self, seconds: float) -> None:
        """Record the seconds of a guess inside the loop."""
        ...

    def record_outcome(self, accepted: bool) -> None:
        """Record whether a guess was right, in the order of the steps."""
        ...
