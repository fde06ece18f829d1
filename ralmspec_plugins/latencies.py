"""How long each kind of work takes in virtual time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.needs import Ask, Extend, Guess, Search, Work

WorkT = TypeVar("WorkT", Ask, Extend, Guess)


@dataclass(frozen=True, slots=True, kw_only=True)
class Latencies:
    """How long each kind of work takes, in seconds of virtual time.

    Where one piece of work takes longer than another of its kind (a segment on another
    passage begins with a prefill), a function gives the seconds: it is shown the work,
    and so the state that it starts from.
    """

    extend_s: float | Callable[[Extend], float] = 1.0
    search_s: Callable[[int], float] = lambda _: 1.0  # b(n), by the size of the batch
    ask_s: float | Callable[[Ask], float] = 0.0
    guess_s: float | Callable[[Guess], float] = 0.0
    overhead_s: float = 0.0  # what the engine itself takes to hand out a piece of work
    stop_s: float = 0.0  # until a segment that is told to stop has stopped, at most
    contention: float = 0.0  # 0: searching and writing take nothing from each other; 1: each
    # takes twice as long while the other goes on, as on one machine that either of them fills
    search_contention: float | None = None  # of the searches, where it differs from the writing's

    def __post_init__(self) -> None:
        """Refuse times without a meaning."""
        given = {
            "contention": self.contention,
            "search_contention": self.slows_searches,
            "overhead_s": self.overhead_s,
            "stop_s": self.stop_s,
        }
        for name, value in given.items():
            if not value >= 0:
                raise ConfigError(f"{name} must be at least 0, got {value}")

    @property
    def slows_searches(self) -> float:
        """How much longer a search takes while something is written."""
        return self.contention if self.search_contention is None else self.search_contention

    def of(self, need: Work) -> float:
        """Give the duration of one piece of work that has the machine to itself."""
        if isinstance(need, Search):
            return self.overhead_s + self.search_s(len(need.queries))
        if isinstance(need, Extend):
            return self.overhead_s + _seconds(self.extend_s, need)
        if isinstance(need, Ask):
            return self.overhead_s + _seconds(self.ask_s, need)
        if isinstance(need, Guess):
            return self.overhead_s + _seconds(self.guess_s, need)
        return 0.0


def _seconds(given: float | Callable[[WorkT], float], need: WorkT) -> float:
    return given(need) if callable(given) else given
