"""What a policy sees of the loop, and what it decides."""

from dataclasses import dataclass
from typing import Protocol

from ralmspec_plugins.scheduling.cost_model import Searched


@dataclass(frozen=True, slots=True)
class SchedulerState:
    """What a policy may know of the loop at the moment of a decision."""

    pending: int  # steps whose query waits to go out; equal queries go out once
    searching: int  # searches that are out
    in_flight: int  # queries in them
    ahead: int  # steps written, or being written, on guesses that no search confirmed yet
    stalled: bool  # nothing can be written until a search answers


class Policy(Protocol):
    """Decides for one request; told of everything that was measured."""

    def worth_guessing(self) -> bool:
        """Say whether the speculators should be asked at all."""
        ...

    def may_write(self, view: SchedulerState) -> bool:
        """Say whether the next step may be written on its guess."""
        ...

    def batches(self, view: SchedulerState) -> list[int]:
        """Give the sizes of the searches to start now, over the pending queries in order."""
        ...

    def wrote(self, seconds: float, beside_s: float = 0.0) -> None:
        """Take in how long a step took, and how long a search ran meanwhile."""
        ...

    def searched(self, search: Searched) -> None:
        """Take in how long a search took, and what went on meanwhile."""
        ...

    def stopped(self, seconds: float) -> None:
        """Take in how long a segment took to stop after it was told to."""
        ...

    def guessed(self, seconds: float) -> None:
        """Take in how long a guess inside the loop took."""
        ...

    def record_outcome(self, accepted: bool) -> None:
        """Take in whether a guess was right, in the order of the steps."""
        ...
