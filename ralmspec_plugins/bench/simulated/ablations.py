"""Ablations in virtual time: one setting at a time, in each of the paper's regimes."""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ralmspec_plugins.bench.cases import Arm
from ralmspec_plugins.bench.simulated.paper_table import Both
from ralmspec_plugins.bench.simulated.predicting import curve_through
from ralmspec_plugins.bench.simulated.regimes import REGIMES, Regime
from ralmspec_plugins.bench.simulated.running import World, run_arm
from ralmspec_plugins.bench.simulated.traces import Follows

STEPS = 32
OURS = Arm(name="continuous", prefetch=20)
LATENCIES_S = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
SIZES = (3_850, 100_000, 1_000_000, 5_000_000, 21_000_000)
POPULAR = 300  # requests that are drawn where popular questions come again
STEP_S = 0.025  # the small model that is measured here (docs/benchmarks.md)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One point of one line of an ablation's picture.

    Args:
        ablation: whose picture it is.
        line: whose line.
        x: the setting.
        arm: the way.
        regime: what work costs, and how many seconds a step is.
        steps: of each request.
        interval: of the traces, between two retrievals.
        order: which traces come, one after the other; each once if not given.
    """

    ablation: str
    line: str
    x: float | str
    arm: Arm
    regime: Regime
    steps: int = STEPS
    interval: int = 1
    order: tuple[int, ...] | None = None

    def run(self, both: Both, follows: Follows) -> dict[str, Any]:
        """Run it, with the article in the knowledge base and left out."""
        row: dict[str, Any] = {"ablation": self.ablation, "line": self.line, "x": self.x}
        for place, traces in (("in_knowledge_base", both.inside), ("left_out", both.left_out)):
            if self.arm.shared and place == "left_out":
                row[place] = None  # what is left out for one is there for another
                continue
            world = World(
                traces=traces,
                follows=follows,
                search_s=self.regime.curve,
                extend_s=float(self.interval),
                steps=self.steps,
                interval=self.interval,
            )
            ran = run_arm(world, self.arm, order=None if self.order is None else list(self.order))
            row[place] = {**ran.record(), "saved_s": ran.saved * self.regime.step_s}
        return row


def points(curves: Mapping[str, Any], traces: int) -> Iterator[Point]:
    """Give all points of all ablations.

    Args:
        curves: what batch_curves.json holds, for the number of passages.
        traces: how many there are, for what is drawn of them.
    """
    for regime in REGIMES:
        yield from _strides(regime)
        yield from _settings(regime)
        yield from _batching(regime)
    for regime in REGIMES[1:3]:
        yield from _caches(regime, traces)
    yield from _latencies()
    yield from _sizes(curves)


def _strides(regime: Regime) -> Iterator[Point]:
    for overlap in (False, True):
        line = f"{regime.name}, overlap" if overlap else regime.name
        for stride in (1, 2, 4, 8):
            name = f"fixed {stride}"
            arm = Arm(name=name, kind="fixed", stride=stride, overlap=overlap, prefetch=20)
            yield Point(ablation="stride", line=line, x=stride, arm=arm, regime=regime)
        arm = Arm(name="OS3", kind="os3", overlap=overlap, prefetch=20)
        yield Point(ablation="stride", line=line, x="OS3", arm=arm, regime=regime)


def _settings(regime: Regime) -> Iterator[Point]:
    """Vary prefetch, window, lanes and interval of our default."""
    for prefetch in (1, 2, 4, 8, 16, 20, 32, 64, 128, 256):
        arm = replace(OURS, prefetch=prefetch)
        yield Point(ablation="prefetch", line=regime.name, x=prefetch, arm=arm, regime=regime)
    for window in (1, 2, 4, 8, 16, 32, 64):
        arm = replace(OURS, window=window)
        yield Point(ablation="window", line=regime.name, x=window, arm=arm, regime=regime)
    for lanes in (1, 2, 4, 8, 16, 32):
        arm = replace(OURS, lanes=lanes)
        yield Point(ablation="lanes", line=regime.name, x=lanes, arm=arm, regime=regime)
    for interval in (1, 2, 4, 8, 16):
        yield Point(
            ablation="interval",
            line=regime.name,
            x=interval,
            arm=OURS,
            regime=regime,
            steps=STEPS // interval,
            interval=interval,
        )


def _batching(regime: Regime) -> Iterator[Point]:
    """Hold a batch against single searches: b(n) = n b(1)."""
    single = replace(regime, curve=lambda n: n * regime.curve(1))
    for arm in (
        Arm(name="base (fixed 3)", kind="fixed", prefetch=20),
        Arm(name="+PSA", kind="os3", overlap=True, prefetch=20),
        OURS,
    ):
        for x, costs in (("on", regime), ("off", single)):
            line = f"{regime.name}, {arm.name}"
            yield Point(ablation="batching", line=line, x=x, arm=arm, regime=costs)


def _caches(regime: Regime, traces: int) -> Iterator[Point]:
    """Vary a shared pool's size and eviction, over new and over popular questions."""
    dice = random.Random(0)  # noqa: S311 no secret
    weights = [1 / rank for rank in range(1, traces + 1)]
    drawn = tuple(dice.choices(range(traces), weights, k=POPULAR))
    for told, order in (("all new", tuple(range(traces))), ("popular ones again", drawn)):
        for eviction in ("lru", "lfu", "fifo"):
            for capacity in (100, 500, 1000, 2000):
                arm = replace(OURS, shared=True, capacity=capacity, eviction=eviction)
                yield Point(
                    ablation="cache",
                    line=f"{regime.name}, {told}, {eviction}",
                    x=capacity,
                    arm=arm,
                    regime=regime,
                    order=order,
                )


def _latencies() -> Iterator[Point]:
    """Vary what a search takes beside a step of 25 ms, local with one lane and remote with 32."""
    for latency_s in LATENCIES_S:
        one = latency_s / STEP_S
        local = Regime("local", _linear_cost(one * 0.975, one * 0.025), STEP_S, "")
        remote = Regime("remote", _linear_cost(one, 0.0), STEP_S, "")
        for line, regime, arm in (
            ("one lane, b(n) = (0.975 + 0.025 n) b(1)", local, replace(OURS, prefetch=256)),
            ("32 lanes, each search the same", remote, replace(OURS, prefetch=256, lanes=32)),
            (
                "32 lanes and a replica",
                remote,
                replace(OURS, prefetch=256, lanes=32, replica=True),
            ),
        ):
            yield Point(ablation="latency", line=line, x=latency_s, arm=arm, regime=regime)


def _sizes(curves: Mapping[str, Any]) -> Iterator[Point]:
    """Vary the passages: the real ones padded, so that ranks stay and a scan takes longer."""
    measured = curves["1000000x384"]["curves"]["numpy-flat, 2 threads"]["points"]
    million = curve_through({int(n): one["median_ms"] / 1000 for n, one in measured.items()})
    for size in SIZES:
        for model, step_s in (("step of 25 ms", STEP_S), ("step of 0.22 s", 0.22)):
            regime = Regime("", _scaled(million, size / 1_000_000 / step_s), step_s, "")
            for arm in (
                replace(OURS, name="continuous"),
                Arm(name="+PSA", kind="os3", overlap=True),
            ):
                line = f"{arm.name}, {model}"
                yield Point(ablation="passages", line=line, x=size, arm=arm, regime=regime)


def _linear_cost(fixed: float, each: float) -> Callable[[int], float]:
    return lambda n: fixed + each * n


def _scaled(curve: Callable[[int], float], factor: float) -> Callable[[int], float]:
    return lambda n: factor * curve(n)
