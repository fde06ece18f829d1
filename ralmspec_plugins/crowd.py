"""Many requests at once in virtual time: their searches merged, their segments at a few servers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ralmspec_plugins.config import Settings
from ralmspec_plugins.crowd_time import CrowdTime, Member
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.job import as_request
from ralmspec_plugins.latencies import Latencies
from ralmspec_plugins.protocols import Retriever, Workload
from ralmspec_plugins.records import Answer, Request
from ralmspec_plugins.setups import Setup


@dataclass(frozen=True, slots=True)
class Attended:
    """What a crowd of requests came to; all times are simulated."""

    answers: tuple[Answer, ...]  # in the order of the requests; their times begin as they arrive
    ended_s: tuple[float, ...]  # when each was answered, on the crowd's clock
    batch_sizes: tuple[int, ...]  # queries in each merged search, in order

    @property
    def wall_s(self) -> float:
        """When the last request was answered."""
        return max(self.ended_s, default=0.0)

    @property
    def latencies_s(self) -> list[float]:
        """How long each request took from its arrival."""
        return [answer.stats.wall_s for answer in self.answers]

    @property
    def mean_batch(self) -> float:
        """Queries in a merged search, on average."""
        return sum(self.batch_sizes) / max(1, len(self.batch_sizes))


class Crowd:
    """Answers many requests at once in virtual time: real results, given durations.

    Each request has a loop of its own, as on an engine; all have one clock. Searches
    are merged as a `Verifier` with these `lanes` merges them: what comes while all are
    busy goes out together when one is free. Segments are written by `writers` servers,
    first come first served, or by one server for each request. Deterministic. What
    requests have in common, such as a pool, is in the settings.
    """

    def __init__(
        self,
        workload: Workload[Any],
        retriever: Retriever,
        latencies: Latencies,
        settings: Settings | None = None,
        *,
        lanes: int = 1,
        max_batch: int = 64,
        writers: int | None = None,
    ) -> None:
        """Put a workload in front of a retriever, both real, with these latencies.

        Raises:
            ConfigError: nothing could ever be searched or written, or `latencies` has a
                contention: whose work slows whose is not known of many machines.
        """
        for name, value in (("lanes", lanes), ("max_batch", max_batch), ("writers", writers)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if latencies.contention or latencies.slows_searches:
            raise ConfigError("a crowd has no contention; give curves measured under load instead")
        self._setup = Setup(workload, retriever, settings, clock=lambda: 0.0)
        self._latencies = latencies
        self._lanes = lanes
        self._max_batch = max_batch
        self._writers = writers

    def run(
        self, requests: Sequence[Request | str], arrivals_s: Sequence[float] | None = None
    ) -> Attended:
        """Answer requests that arrive at these times, all at 0 unless told.

        Raises:
            ConfigError: there is not one time of arrival for each request.
            Exception: What the plain loop would have raised for one of them.
        """
        arrivals = [0.0] * len(requests) if arrivals_s is None else list(arrivals_s)
        if len(arrivals) != len(requests):
            raise ConfigError(f"{len(requests)} requests came at {len(arrivals)} times")
        members = [
            Member(self._setup, as_request(request), at_s)
            for request, at_s in zip(requests, arrivals, strict=True)
        ]
        time = CrowdTime(self._latencies, self._lanes, self._max_batch, self._writers)
        time.attend(members)
        return Attended(
            tuple(member.answer for member in members if member.answer is not None),
            tuple(member.ended_s for member in members),
            tuple(time.batch_sizes),
        )
