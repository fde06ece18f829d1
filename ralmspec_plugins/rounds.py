"""The policies of the paper's schedules: so many guesses, one batch that verifies them, repeat."""

from collections import deque

from ralmspec_plugins.costs import Costs, Searched
from ralmspec_plugins.policies import View
from ralmspec_plugins.stride import estimate_gamma, optimal_stride

# The cap on the guess rate makes OS3's estimate pessimistic, and the rate of verified
# steps is flat around its best: of strides that differ by less than this the longest is
# taken (docs/decisions/0003).
STRIDE_SLACK = 0.01


class Rounds:
    """Speculate `stride` steps, verify them in one batch, repeat.

    A round is one step with verified hits and stride - 1 on guesses; the last
    query's guess is not written on before the batch is out (PAPERS 1.12).
    """

    def __init__(self, costs: Costs, *, overlap: bool, stride: int) -> None:
        self._costs = costs
        self._overlap = overlap
        self._stride = stride

    def worth_guessing(self) -> bool:
        """Guess always: a fixed stride is a reproduction."""
        return True

    def may_write(self, view: View) -> bool:
        """Write until the batch is full; during a search one step more, if they may overlap."""
        if view.searching:
            return self._overlap and view.ahead < view.in_flight
        return view.pending < self._stride

    def batches(self, view: View) -> list[int]:
        """Send a full batch, or what there is when nothing can be written."""
        if view.searching or not view.pending:
            return []
        return [view.pending] if view.stalled or view.pending >= self._stride else []

    def wrote(self, seconds: float, beside_s: float = 0.0) -> None:
        """Nothing is adapted to it."""

    def searched(self, search: Searched) -> None:
        """Take it into the curve."""
        self._costs.searched(search)

    def stopped(self, seconds: float) -> None:
        """Nothing is adapted to it."""

    def guessed(self, seconds: float) -> None:
        """Nothing is adapted to it."""

    def judged(self, right: bool) -> None:
        """Nothing is adapted to it."""


class OptimalRounds(Rounds):
    """Rounds whose stride is chosen anew when one has been verified."""

    def __init__(
        self,
        costs: Costs,
        *,
        overlap: bool,
        window: int,
        gamma_limit: float,
        max_stride: int,
    ) -> None:
        super().__init__(costs, overlap=overlap, stride=1)
        self._gamma_limit = gamma_limit
        self._max_stride = max_stride
        self._rounds: deque[list[bool]] = deque(maxlen=window)
        self._over = False

    def may_write(self, view: View) -> bool:
        """Write until the batch is full, where that saves more than wrong guesses cost."""
        self._renew(view)
        if view.searching and not self._costs.worth_writing_beside(view.ahead):
            return False
        return super().may_write(view) and self._costs.worth_writing()

    def worth_guessing(self) -> bool:
        """Guess where hiding a search would be noticed."""
        return self._costs.worth_guessing()

    def wrote(self, seconds: float, beside_s: float = 0.0) -> None:
        """Take in what a step costs."""
        self._costs.wrote(seconds, beside_s)

    def searched(self, search: Searched) -> None:
        """Take it into the curve; the round is over."""
        super().searched(search)
        self._over = True

    def batches(self, view: View) -> list[int]:
        """Send as any rounds do; what is judged from then on belongs to this round."""
        self._renew(view)  # a guess that is made in a worker comes too late to be asked about
        sizes = super().batches(view)
        if sizes:
            self._rounds.append([])
        return sizes

    def stopped(self, seconds: float) -> None:
        """Take in what a wrong guess costs."""
        self._costs.stopped(seconds)

    def guessed(self, seconds: float) -> None:
        """Take in what guessing costs."""
        self._costs.guessed(seconds)

    def judged(self, right: bool) -> None:
        """Note a guess of the round that was verified last."""
        self._costs.judged(right)
        if self._rounds:
            self._rounds[-1].append(right)

    def _renew(self, view: View) -> None:
        """Choose the stride at the first decision after a round."""
        if self._over and not view.searching:
            self._over = False
            self._stride = self._choose()

    def _choose(self) -> int:
        rounds = [guesses for guesses in self._rounds if guesses]
        if self._costs.step_s is None or not rounds:
            return self._stride
        gamma = estimate_gamma(
            [sum(guesses) for guesses in rounds],
            [len(guesses) for guesses in rounds],
            self._gamma_limit,
        )
        return optimal_stride(
            self._costs.step_s,
            self._costs.curve,
            gamma,
            overlap=self._overlap,
            speed=self._costs.contention.speed,
            limit=self._max_stride,
            slack=STRIDE_SLACK,
        )
