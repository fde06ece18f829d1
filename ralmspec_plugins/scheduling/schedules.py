"""Schedules: fixed stride, OS3, and continuous.

A schedule is a frozen setting; `begin()` returns the policy of one
request. A policy decides by the `SchedulerState` of the loop and by measurements:
the seconds of a step, the seconds of a batch of n queries, and the acceptance rate.
"""

from dataclasses import dataclass
from typing import Protocol

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.scheduling.continuous import ContinuousPolicy
from ralmspec_plugins.scheduling.cost_model import MIN_ACCEPTANCE_RATE, Costs
from ralmspec_plugins.scheduling.os3 import GAMMA_LIMIT, MAX_STRIDE, FixedStridePolicy, OS3Policy
from ralmspec_plugins.scheduling.policy import Policy


class Schedule(Protocol):
    """A setting that creates policies."""

    def begin(self, costs: Costs) -> Policy:
        """Return the policy of one request; the costs are shared by all requests."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedStride:
    """Verifies every `stride` guesses in one batch, as the paper does by default.

    With `overlap`, the next step is generated with the last query's guess while the batch is
    in flight: the paper's asynchronous verification (where its gain is computed; here it runs).

    Attributes:
        stride: guesses in a verification; the default is that of RaLMSpec's section 5.
        overlap: whether a step is generated during the verification.
    """

    stride: int = 3
    overlap: bool = False

    def __post_init__(self) -> None:
        """Check the stride."""
        if self.stride < 1:
            raise ConfigError(f"stride must be at least 1, got {self.stride}")

    def begin(self, costs: Costs) -> Policy:
        """Return the policy of one request."""
        return FixedStridePolicy(costs, overlap=self.overlap, stride=self.stride)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimalStride:
    """Chooses the stride of each round by measurements: the paper's OS3.

    Attributes:
        overlap: whether a step is generated during the verification.
        window: rounds in the estimate of the acceptance rate.
        gamma_limit: the upper bound of the estimate.
        max_stride: the maximum number of guesses in a verification.
    """

    overlap: bool = True
    window: int = 5
    gamma_limit: float = GAMMA_LIMIT
    max_stride: int = MAX_STRIDE

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.window < 1:
            raise ConfigError(f"window must be at least 1, got {self.window}")
        if not 0.0 <= self.gamma_limit < 1.0:
            raise ConfigError(f"gamma_limit must be in [0, 1), got {self.gamma_limit}")
        if self.max_stride < 1:
            raise ConfigError(f"max_stride must be at least 1, got {self.max_stride}")

    def begin(self, costs: Costs) -> Policy:
        """Return the policy of one request."""
        return OS3Policy(
            costs,
            overlap=self.overlap,
            window=self.window,
            gamma_limit=self.gamma_limit,
            max_stride=self.max_stride,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuous:
    """Searches whenever a lane is free, and generates in parallel: the default.

    With one lane the batch size adapts: a batch has the queries formed during the
    last search. With several, each query is searched as soon as it is formed.

    A wrong guess costs a discarded segment. That costs no time where the model would
    otherwise wait; where its calls are billed, raise `min_acceptance_rate`.

    Attributes:
        window: the maximum number of unverified steps.
        lanes: the maximum number of searches in parallel.
        min_acceptance_rate: the acceptance rate below which no segment is speculative, 0.1 by
            default.
    """

    window: int = 64
    lanes: int = 1
    min_acceptance_rate: float = MIN_ACCEPTANCE_RATE

    def __post_init__(self) -> None:
        """Check the settings."""
        if not 0.0 <= self.min_acceptance_rate <= 1.0:
            raise ConfigError(
                f"min_acceptance_rate must be between 0 and 1, got {self.min_acceptance_rate}"
            )
        if self.window < 1:
            raise ConfigError(f"window must be at least 1, got {self.window}")
        if self.lanes < 1:
            raise ConfigError(f"lanes must be at least 1, got {self.lanes}")

    def begin(self, costs: Costs) -> Policy:
        """Return the policy of one request."""
        return ContinuousPolicy(
            costs,
            window=self.window,
            lanes=self.lanes,
            min_acceptance_rate=self.min_acceptance_rate,
        )
