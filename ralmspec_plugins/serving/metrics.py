"""The metrics of a server, for Prometheus."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from ralmspec_plugins.serving.limits import Admission
from ralmspec_plugins.serving.pipelines import Done, Pipeline
from ralmspec_plugins.types import VerifierStats

Outcome: TypeAlias = Literal["answered", "refused", "overloaded", "cancelled", "failed"]
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_LAG_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1)
_TICK_S: Final = 0.01


class Metrics:
    """Counts of one server, in a registry of its own. No label names a tenant or a caller."""

    def __init__(self, pipelines: Mapping[str, Pipeline], admission: Admission) -> None:
        """Count requests of these models."""
        registry = self._registry = CollectorRegistry()
        of_model = ["model"]
        self._requests = Counter(
            "ralmspec_requests", "Requests, by outcome.", [*of_model, "outcome"], registry=registry
        )
        self._seconds = Histogram(
            "ralmspec_request_seconds",
            "Time of answered requests, from their arrival to the end of their answer.",
            of_model,
            registry=registry,
            buckets=_SECONDS,
        )
        self._first_text = Histogram(
            "ralmspec_first_text_seconds",
            "Time from a request's arrival to its first text.",
            of_model,
            registry=registry,
            buckets=_SECONDS,
        )
        self._tokens = Counter(
            "ralmspec_tokens",
            "Tokens: prompt, completion (part of an answer), dropped.",
            [*of_model, "kind"],
            registry=registry,
        )
        self._work = Counter(
            "ralmspec_work",
            "Searches, queries, guesses, accepted guesses, segments and wasted segments.",
            [*of_model, "kind"],
            registry=registry,
        )
        self._lag = Histogram(
            "ralmspec_event_loop_lag_seconds",
            "How much later than asked for the event loop ran a timer.",
            registry=registry,
            buckets=_LAG_SECONDS,
        )
        self._gauge("ralmspec_running", "Requests under way.", lambda: admission.running)
        self._gauge("ralmspec_waiting", "Requests that wait.", lambda: admission.waiting)
        registry.register(_MergedSearches(pipelines))

    def _gauge(self, name: str, told: str, value: Callable[[], int]) -> None:
        Gauge(name, told, registry=self._registry).set_function(value)

    def ended(self, model: str, outcome: Outcome, seconds: float) -> None:
        """Count a request that has ended."""
        self._requests.labels(model, outcome).inc()
        if outcome == "answered":
            self._seconds.labels(model).observe(seconds)

    def first_text(self, model: str, seconds: float) -> None:
        """Count the time to a first text."""
        self._first_text.labels(model).observe(seconds)

    def answered(self, model: str, done: Done) -> None:
        """Count what an answer took."""
        if (usage := done.usage) is not None:
            self._tokens.labels(model, "prompt").inc(usage.prompt_tokens)
            self._tokens.labels(model, "completion").inc(usage.completion_tokens)
            self._tokens.labels(model, "dropped").inc(usage.dropped_tokens or 0)
        if (stats := done.stats) is not None:
            names = ("searches", "queries", "guesses", "accepted", "segments", "wasted_segments")
            for name in names:
                self._work.labels(model, name).inc(getattr(stats, name))

    async def watch_loop(self) -> None:
        """Measure the lag of the running event loop until this is cancelled."""
        while True:
            due_s = time.perf_counter() + _TICK_S
            await asyncio.sleep(_TICK_S)
            self._lag.observe(max(0.0, time.perf_counter() - due_s))

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        text: bytes = generate_latest(self._registry)
        return text


class _MergedSearches(Collector):
    """The counts of the pipelines' verifiers."""

    def __init__(self, pipelines: Mapping[str, Pipeline]) -> None:
        self._pipelines = pipelines

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "ralmspec_verifier",
            "Searches asked for (calls), merged searches of the retriever, and their queries.",
            labels=["model", "kind"],
        )
        for model, pipeline in self._pipelines.items():
            verifier: Any = getattr(pipeline, "verifier", None)
            if verifier is None:
                continue
            stats: VerifierStats = verifier.stats
            for kind in ("calls", "searches", "queries", "repeated", "refused"):
                family.add_metric([model, kind], getattr(stats, kind))
        yield family
