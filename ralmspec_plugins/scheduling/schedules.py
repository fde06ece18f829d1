"""How far to run ahead, and when to search: fixed stride, OS3, continuous.

A schedule is a frozen setting; `begin()` makes the policy that decides for one
request. Decisions are taken from a `SchedulerState` of the loop and from what was measured:
how long a step takes to write, what a batch of n queries costs, and how often
guesses were right.
"""

from dataclasses import dataclass
from typing import Protocol

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.scheduling.continuous import ContinuousPolicy
from ralmspec_plugins.scheduling.cost_model import MIN_ACCEPTANCE_RATE, Costs
from ralmspec_plugins.scheduling.os3 import GAMMA_LIMIT, MAX_STRIDE, FixedStridePolicy, OS3Policy
from ralmspec_plugins.scheduling.policy import Policy


class Schedule(Protocol):
    """A setting that makes policies."""

    def begin(self, costs: Costs) -> Policy:
        """Make the policy for one request; the costs outlive it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedStride:
    """Verify every `stride` guesses in one batch: the paper's base.

    With `overlap`, the next step is written while the batch is out, on the last
    query's guess (the paper computes this gain; here it is run).
    """

    stride: int = 3  # RaLMSpec's section 5
    overlap: bool = False

    def __post_init__(self) -> None:
        """Refuse a stride that never verifies."""
        if self.stride < 1:
            raise ConfigError(f"stride must be at least 1, got {self.stride}")

    def begin(self, costs: Costs) -> Policy:
        """Make the policy for one request."""
        return FixedStridePolicy(costs, overlap=self.overlap, stride=self.stride)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimalStride:
    """Choose the stride of each round from what was measured: the paper's OS3."""

    overlap: bool = True
    window: int = 5  # rounds that the guess rate is estimated over
    gamma_limit: float = GAMMA_LIMIT
    max_stride: int = MAX_STRIDE

    def __post_init__(self) -> None:
        """Refuse settings without a meaning."""
        if self.window < 1:
            raise ConfigError(f"window must be at least 1, got {self.window}")
        if not 0.0 <= self.gamma_limit < 1.0:
            raise ConfigError(f"gamma_limit must be in [0, 1), got {self.gamma_limit}")
        if self.max_stride < 1:
            raise ConfigError(f"max_stride must be at least 1, got {self.max_stride}")

    def begin(self, costs: Costs) -> Policy:
        """Make the policy for one request."""
        return OS3Policy(
            costs,
            overlap=self.overlap,
            window=self.window,
            gamma_limit=self.gamma_limit,
            max_stride=self.max_stride,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuous:
    """Search whenever a lane is free, and write on meanwhile: the default.

    With one lane the batch size sets itself: it is what was written during the
    last search. With several, each query starts when it is born.

    A wrong guess costs a segment that is thrown away. Where the model would only have
    waited that costs no time; where its calls are paid for, raise `min_acceptance_rate`.
    """

    window: int = 64  # the most unverified steps at once
    lanes: int = 1  # searches that may be out at a time
    min_acceptance_rate: float = (
        MIN_ACCEPTANCE_RATE  # share of right guesses below which nothing is written ahead
    )

    def __post_init__(self) -> None:
        """Refuse settings that could never search or write."""
        if not 0.0 <= self.min_acceptance_rate <= 1.0:
            raise ConfigError(
                f"min_acceptance_rate must be between 0 and 1, got {self.min_acceptance_rate}"
            )
        if self.window < 1:
            raise ConfigError(f"window must be at least 1, got {self.window}")
        if self.lanes < 1:
            raise ConfigError(f"lanes must be at least 1, got {self.lanes}")

    def begin(self, costs: Costs) -> Policy:
        """Make the policy for one request."""
        return ContinuousPolicy(
            costs,
            window=self.window,
            lanes=self.lanes,
            min_acceptance_rate=self.min_acceptance_rate,
        )
