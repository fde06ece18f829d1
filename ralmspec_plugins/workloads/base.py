"""Makes a workload's states of what its model reports while it writes."""

from collections.abc import Callable
from typing import Any

from ralmspec_plugins.protocols import Progress


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
