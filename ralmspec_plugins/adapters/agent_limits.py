"""Limits of an agent's calls ahead, and the counts of their results."""

import threading
from dataclasses import asdict, dataclass

from ralmspec_plugins.errors import ConfigError


@dataclass(frozen=True, slots=True)
class AgentStats:
    """Counts of the speculative calls of an agent's runs, and of their outcomes."""

    model_calls: int = 0  # calls by the host, including those replaced by speculative calls
    calls_ahead: int = 0  # speculative model calls
    committed: int = 0  # of these, those that replaced a call by the host
    sampled: int = 0  # of the committed ones, those of models with a temperature other than 0
    dropped: int = 0  # of these, those for which the host made another request, or none
    failed: int = 0  # speculative model calls that raised; the host makes these again
    guesses: int = 0  # observations guessed
    right: int = 0  # of these, those that the tool returned
    tools_ahead: int = 0  # speculative calls of read-only tools, from speculative model calls
    tools_committed: int = 0  # of these, those that replaced a call by the host
    tools_dropped: int = 0
    dropped_tokens: int = 0  # of dropped calls, if the model reported them
    busy: int = 0  # of the host's model calls, those made while other runs used the processor

    @property
    def acceptance_rate(self) -> float | None:
        """Share of right guesses among those whose tool has returned."""
        return self.right / self.guesses if self.guesses else None


class AgentCounters:
    """Sums the counts of all runs of an agent. Thread-safe."""

    def __init__(self) -> None:
        """Start at zero."""
        self._lock = threading.RLock()  # a garbage collection may end calls under the lock
        self._counts = asdict(AgentStats())

    def add(self, **changes: int) -> None:
        """Add to some of the counts."""
        with self._lock:
            for name, more in changes.items():
                self._counts[name] += more

    def began_ahead(self, max_wasted_share: float | None) -> bool:
        """Count a speculative call; return `False`, and count none, if it might exceed a share.

        The share is that of dropped calls among all calls of the model: in the worst case this
        one, and all others that are still undecided, are dropped.
        """
        with self._lock:
            now = self._counts
            undecided = now["calls_ahead"] - now["committed"] + 1  # or dropped
            calls = now["model_calls"] + undecided
            if max_wasted_share is not None and undecided > max_wasted_share * calls:
                return False
            now["calls_ahead"] += 1
            return True

    @property
    def stats(self) -> AgentStats:
        """The counts so far."""
        with self._lock:
            return AgentStats(**self._counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLimits:
    """How far an agent's run may speculate, and how much wrong guesses may cost.

    Args:
        depth: the maximum number of model calls ahead of the host. With more than one, tools
            marked read-only are called speculatively, too.
        max_wasted_calls: the dropped model calls, including those still running, after which
            a run continues without speculation. `None`: no limit.
        max_wasted_tokens: the same for the tokens of dropped calls, as reported by the model.
        max_wasted_share: the share of dropped calls among all calls of the model, in all runs of
            an agent, that is not exceeded. `None`: no limit.
        handover_s: how long speculative work is kept while the host calls neither a tool nor
            the model. It is then dropped, so that a run cancelled between two steps leaves none.
    """

    depth: int = 1
    max_wasted_calls: int | None = 8
    max_wasted_tokens: int | None = None
    max_wasted_share: float | None = None
    handover_s: float = 0.08

    def __post_init__(self) -> None:
        """Check the settings."""
        if isinstance(self.depth, bool) or not isinstance(self.depth, int) or self.depth < 0:
            raise ConfigError(f"depth must be at least 0 (0: no speculation), got {self.depth!r}")
        for name in ("max_wasted_calls", "max_wasted_tokens"):
            most = getattr(self, name)
            if most is not None and (type(most) is not int or most < 0):
                raise ConfigError(f"{name} must be at least 0 or None, got {most!r}")
        share = self.max_wasted_share
        if share is not None and not (type(share) in (int, float) and 0 <= share <= 1):
            raise ConfigError(f"max_wasted_share must be from 0 to 1 or None, got {share!r}")
        if type(self.handover_s) not in (int, float) or not self.handover_s > 0:
            raise ConfigError(f"handover_s must be above 0, got {self.handover_s!r}")
