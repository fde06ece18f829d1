"""The policy of `Continuous`: keep the lanes and the model busy."""

from ralmspec_plugins.scheduling.cost_model import MIN_ACCEPTANCE_RATE, Costs, Searched
from ralmspec_plugins.scheduling.os3 import best_part, optimal_stride, worth_gathering
from ralmspec_plugins.scheduling.policy import SchedulerState

# A batch's first query waits for its last one. So a batch must verify this many times the
# steps a second that single queries do.
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
        self._costs = costs
        self._least_right = min_acceptance_rate
        self._window = window
        self._lanes = lanes
        self._wait_for = self._worth_waiting_for()  # queries, before a search
        self._enough = self._worth_gathering()  # queries that a lane is worth taking for
        self._gathering = False
        self._trial_from: int | None = None  # queries that were pending when a trial began

    def worth_guessing(self) -> bool:
        """Guess where hiding a search would be noticed."""
        return self._costs.worth_guessing()

    def may_write(self, view: SchedulerState) -> bool:
        """Write on within the window, as long as it saves more than wrong guesses cost."""
        beside = self._costs.worth_writing_beside(view.ahead)
        if not beside and (view.searching or self._is_due(view)):
            return False
        return view.ahead < self._window and self._costs.worth_writing(self._least_right)

    def batches(self, view: SchedulerState) -> list[int]:
        """Give each free lane a query, or a share of them when there are more."""
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

    def wrote(self, seconds: float, beside_s: float = 0.0) -> None:
        """Take in what a step costs."""
        self._costs.wrote(seconds, beside_s)

    def searched(self, search: Searched) -> None:
        """Take it into the curve, and look anew at what the next one should wait for."""
        self._costs.searched(search)
        self._wait_for = self._worth_waiting_for()
        self._enough = self._worth_gathering()

    def stopped(self, seconds: float) -> None:
        """Take in what a wrong guess costs."""
        self._costs.stopped(seconds)

    def guessed(self, seconds: float) -> None:
        """Take in what guessing costs."""
        self._costs.guessed(seconds)

    def record_outcome(self, accepted: bool) -> None:
        """Note a guess."""
        self._costs.record_outcome(accepted)

    def _is_due(self, view: SchedulerState) -> bool:
        """Say whether there is enough for a search to go out now; a step would run beside it."""
        if not view.pending:
            return False
        return view.pending >= max(self._wait_for, self._trial(view), self._gathered(view))

    def _trial(self, view: SchedulerState) -> int:
        """Hold a search back for one whole step, where nobody knows how long one takes alone."""
        if not self._costs.contention.unknown or view.searching:
            return 1
        if self._trial_from is None:
            self._trial_from = view.pending
        return self._trial_from + 2  # the first of them may have begun beside a search

    def _worth_waiting_for(self) -> int:
        """Choose how many queries a search should wait for while the model goes on writing.

        A search that takes nothing from the model starts with the first one. One that takes
        as much as it needs itself might as well come when writing pauses: then what counts is
        how many steps a round of writing and searching verifies, as in the paper's synchronous
        rounds. In between lies what is in between; squared, since waiting too long costs more
        than searching too early (docs/decisions/0004).
        """
        costs = self._costs
        taken = ((1 - costs.contention.speed) / (1 - costs.contention.LEAST)) ** 2
        if not taken or costs.step_s is None:
            return 1
        stride = optimal_stride(costs.step_s, costs.curve, costs.guess_rate, limit=self._window)
        return 1 + round(taken * (stride - 1))

    def _worth_gathering(self) -> int:
        """Choose how many queries a lane should have, lest it is taken by the first alone."""
        costs = self._costs
        if costs.step_s is None or not costs.curve.points:
            return 1
        enough = worth_gathering(costs.step_s, costs.curve, costs.guess_rate, lanes=self._lanes)
        return min(enough, self._window)

    def _gathered(self, view: SchedulerState) -> int:
        """Say how many queries a search needs now: one that is begun with half of them can start.

        So what was written during the last search is searched at once; only at the start and
        after a wrong guess, when there is next to nothing, more is gathered.
        """
        self._gathering |= 2 * view.pending < self._enough
        return self._enough if self._gathering else 1

    def _worthwhile(self, most: int) -> int:
        """Choose the batch that verifies the most steps a second, as OS3 counts them."""
        return best_part(most, self._costs.curve, self._costs.guess_rate, worth=WORTH_BATCHING)


def _within(sizes: list[int], total: int) -> list[int]:
    """Cut a list of sizes where their sum passes a total.

    >>> _within([3, 3, 3], 7)
    [3, 3, 1]
    """
    cut = []
    for size in sizes:
        cut.append(min(size, total))
        total -= cut[-1]
    return cut
