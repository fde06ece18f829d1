"""The policy of `Continuous`: it keeps the lanes and the model busy."""

from ralmspec_plugins.scheduling.cost_model import MIN_ACCEPTANCE_RATE, Costs, Searched
from ralmspec_plugins.scheduling.os3 import best_part, optimal_stride, worth_gathering
from ralmspec_plugins.scheduling.policy import SchedulerState
from ralmspec_plugins.scheduling.replacing import GuessReplacement

# The first query of a batch waits for its last one. So a batch must verify this many times the
# steps per second of single queries.
WORTH_BATCHING = 1.15


class ContinuousPolicy:
    """Keep the lanes and the model busy."""

    def __init__(
        self,
        costs: Costs,
        *,
        window: int,
        lanes: int,
        min_acceptance_rate: float = MIN_ACCEPTANCE_RATE,
    ) -> None:
        self.replacement = GuessReplacement(costs, min_acceptance_rate)
        self._costs = costs
        self._least_right = min_acceptance_rate
        self._window = window
        self._lanes = lanes
        self._wait_for = 1  # queries before a search starts
        self._enough = 1  # queries for which a lane is used
        self._planned = False  # both of them, by the present costs
        self._gathering = False
        self._trial_from: int | None = None  # pending queries at the start of a trial

    def has_room(self) -> bool:
        """Return whether the model has room next to other requests, and these are no crowd."""
        return not self._costs.is_swamped and self._costs.load.has_room()

    def worth_guessing(self, *, early: bool = False) -> bool:
        """Return whether hiding a search would save a noticeable share of a step.

        Args:
            early: whether the encoding of the query is hidden, too.
        """
        return self._costs.worth_guessing(early=early)

    def worth_prefetching(self) -> bool:
        """Return whether guesses are made, and are right often enough to be used; or as a trial."""
        return self._costs.worth_prefetching(self._least_right)

    def may_write(self, view: SchedulerState) -> bool:
        """Return whether speculation saves more than wrong guesses cost.

        The window has room, and so has the model, next to other requests.
        """
        if not self.has_room():
            return False
        beside = self._costs.worth_writing_beside(view.ahead)
        if not beside and (view.searching or self._is_due(view)):
            return False
        window = 1 if self._costs.is_careful(early=view.early) else self._window
        if view.ahead >= window:
            return False
        return self._costs.worth_writing(self._least_right, early=view.early)

    def batches(self, view: SchedulerState) -> list[int]:
        """Return the batch of each free lane: one query, or a share of them if there are more."""
        free = self._lanes - view.searching
        if free <= 0 or not view.pending:
            return []
        if not view.stalled and not self._is_due(view):
            return []
        self._trial_from = None
        self._gathering = False
        if view.pending <= free:
            return [1] * view.pending
        share = self._worthwhile(-(-view.pending // free))
        sizes = [share] * free
        return [size for size in _within(sizes, view.pending) if size]

    def wrote(
        self, seconds: float, beside_s: float | None = 0.0, before_s: float | None = 0.0
    ) -> None:
        """Record the seconds of a step; if steps became much slower or faster, plan again."""
        usual_s = self._costs.step_s
        self._costs.wrote(seconds, beside_s, before_s)
        step_s = self._costs.step_s or 0.0
        if usual_s is not None and not usual_s / 2 <= step_s <= 2 * usual_s:
            self._planned = False

    def searched(self, search: Searched) -> None:
        """Add a search to the batch curve; what the next one waits for is planned again."""
        self._costs.searched(search)
        self._planned = False

    def worth_encoding_ahead(self, stop_s: float) -> bool:
        """Return whether a query that depends on a guess may be encoded in the last free lane."""
        return self._costs.worth_encoding_ahead(stop_s)

    def encoded(self, seconds: float, lanes: int) -> None:
        """Record the seconds of an encoding, which an early guess hides."""
        self._costs.encoded(seconds, lanes)

    def stopped(self, seconds: float) -> None:
        """Record the cost of a wrong guess."""
        self._costs.stopped(seconds)

    def guessed(self, seconds: float) -> None:
        """Record the cost of a guess."""
        self._costs.guessed(seconds)

    def record_outcome(self, accepted: bool) -> None:
        """Record the outcome of a guess."""
        self._costs.record_outcome(accepted)

    def _plan(self) -> None:
        """Update what the next search waits for, if costs have changed."""
        if not self._planned:
            self._planned = True
            self._wait_for = self._worth_waiting_for()
            self._enough = self._worth_gathering()

    def _is_due(self, view: SchedulerState) -> bool:
        """Return whether there are enough queries for a search in parallel with the next step."""
        if not view.pending:
            return False
        self._plan()
        return view.pending >= max(self._wait_for, self._trial(view), self._gathered(view))

    def _trial(self, view: SchedulerState) -> int:
        """Delay a search by one whole step, to measure a step without a parallel search."""
        if not self._costs.contention.unknown or view.searching:
            return 1
        if self._trial_from is None:
            self._trial_from = view.pending
        return self._trial_from + 2  # the first step may have started in parallel with a search

    def _worth_waiting_for(self) -> int:
        """Return how many queries a search waits for while the model continues to generate.

        A search that does not slow the model down starts with the first query. One that slows
        it down by its whole duration may as well run while generation pauses: then the number
        of steps that a round of generation and search verifies is decisive, as in the paper's
        synchronous rounds. Between these cases it is interpolated, squared, since waiting too
        long costs more than searching too early (docs/decisions/0004).
        """
        costs = self._costs
        taken = ((1 - costs.contention.speed) / (1 - costs.contention.LEAST)) ** 2
        if not taken or costs.step_s is None:
            return 1
        stride = optimal_stride(costs.step_s, costs.curve, costs.guess_rate, limit=self._window)
        return 1 + round(taken * (stride - 1))

    def _worth_gathering(self) -> int:
        """Return how many queries a lane should have, so that one query does not occupy it."""
        costs = self._costs
        if costs.step_s is None or not costs.curve.points:
            return 1
        enough = worth_gathering(costs.step_s, costs.curve, costs.guess_rate, lanes=self._lanes)
        return min(enough, self._window)

    def _gathered(self, view: SchedulerState) -> int:
        """Return how many queries a search needs now: with half of them it can start.

        So the queries formed during the last search are searched immediately; only at the start
        and after a wrong guess, with hardly any query, are more collected.
        """
        self._gathering |= 2 * view.pending < self._enough
        return self._enough if self._gathering else 1

    def _worthwhile(self, most: int) -> int:
        """Return the batch size with the most verified steps per second, as in OS3."""
        return best_part(most, self._costs.curve, self._costs.guess_rate, worth=WORTH_BATCHING)


def _within(sizes: list[int], total: int) -> list[int]:
    """Return a list of sizes, cut where their sum reaches a total.

    >>> _within([3, 3, 3], 7)
    [3, 3, 1]
    """
    cut = []
    for size in sizes:
        cut.append(min(size, total))
        total -= cut[-1]
    return cut
