"""Ablations in virtual time: one setting at a time, in each of the paper's regimes."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median, quantiles
from typing import Any

from benchmarks.harness.cases import Arm
from benchmarks.published import (
    ARMS,
    DEMANDS,
    REGIMES,
    Demand,
    Regime,
    published_for,
)
from benchmarks.simulated.crowd import LoadResult, LoadSimulation
from benchmarks.simulated.predict import curve_through
from benchmarks.simulated.traces import Follows, Ran, Traces, TraceWorkload, World, run_arm
from ralmspec_plugins.engine.simulation import Latencies
from ralmspec_plugins.errors import InputError

# RaLMSpec's Table 1 in virtual time, with ours beside it, and what is demanded of ours.


STEPS = 32  # 128 tokens by 4
HELD_TO = Follows.REWRITING  # what the design's table assumes, and the demands are made for


@dataclass(frozen=True, slots=True)
class Both:
    """Traces whose article is in the knowledge base, and the same ones without it."""

    inside: Traces
    left_out: Traces


def paper_cells(
    both: Both,
    *,
    arms: Sequence[Arm] = ARMS,
    regimes: Sequence[Regime] = REGIMES,
    follows: Sequence[Follows] = (Follows.RECONVERGING, Follows.REWRITING, Follows.STRAYING),
    steps: int = STEPS,
    told: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Run every cell of the table; `told` hears of each as it is done."""
    cells = []
    for regime in regimes:
        for arm in arms:
            for mode in follows:
                cells.append(_cell(both, regime, arm, mode, steps))
                told(_cell_line(cells[-1]))
    return cells


def _cell(both: Both, regime: Regime, arm: Arm, mode: Follows, steps: int) -> dict[str, Any]:
    def ran(traces: Traces) -> Ran:
        world = World(traces=traces, follows=mode, search_s=regime.curve, steps=steps)
        return run_arm(world, arm)

    def seconds(found: Ran) -> dict[str, Any]:
        return {**found.record(), "saved_s": found.saved * regime.step_s}

    return {
        "regime": regime.name,
        "column": arm.name,
        "mode": mode.value,
        "published": published_for(regime.name, arm.name, regime.model),
        "in_knowledge_base": seconds(ran(both.inside)),
        "left_out": None if arm.shared else seconds(ran(both.left_out)),
    }


def _cell_line(cell: dict[str, Any]) -> str:
    places = [cell[place] for place in ("in_knowledge_base", "left_out") if cell[place]]
    shown = " / ".join(f"{place['speed_up']:.2f}" for place in places)
    published = "" if cell["published"] is None else f"published {cell['published']:.2f}"
    return f"{cell['regime']:21} {cell['column']:18} {cell['mode']:13} {shown:14} {published}"


def verdicts(
    cells: Sequence[dict[str, Any]], demands: Sequence[Demand] = DEMANDS
) -> list[dict[str, Any]]:
    """Hold the cells to the demands, in every mode and with the article in and left out.

    Those that count (`held`) are the ones in the mode that the demands were made for.
    """
    found = {
        (cell["regime"], cell["column"], cell["mode"], place): cell[place]["speed_up"]
        for cell in cells
        for place in ("in_knowledge_base", "left_out")
        if cell[place] is not None
    }
    said = []
    for demand in demands:
        for (regime, arm, mode, place), speed_up in found.items():
            if (regime, arm) != (demand.regime, demand.arm):
                continue
            others = [found[regime, other, mode, place] for other in demand.over]
            reached = speed_up / max(others, default=1.0)
            said.append(
                {
                    "regime": regime,
                    "column": arm,
                    "over": "the best of " + ", ".join(demand.over) if demand.over else "plain",
                    "mode": mode,
                    "place": place,
                    "least": demand.least,
                    "reached": reached,
                    "met": reached >= demand.least,
                    "held": mode == HELD_TO,
                }
            )
    return said


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
    dice = random.Random(0)
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


# Thousands of requests at once through one merging verifier, in virtual time.


COUNTS = (1, 10, 100, 1000, 5000)
MILLIONS = 21  # passages of the paper's knowledge base
MEASURED = "1000000x384"  # of batch_curves.json: a million rows
SCAN = "numpy-flat, 2 threads"

CROWD_ARMS = (
    Arm(name="plain", kind="plain"),
    Arm(name="continuous, P(20)", prefetch=20),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A store and model servers behind which a crowd waits; `basis` says where b(n) is from."""

    name: str
    curve: Callable[[int], float]  # seconds of a merged search
    basis: str
    lanes: int = 1
    max_batch: int = 64
    step_s: float = 0.22  # LLaMA-2-7B, 4 tokens
    writers: int | None = None  # segments that are written at a time; one a request if not given


def services(curves: Mapping[str, Any]) -> list[Service]:
    """Give the stores that are simulated; `curves` is what batch_curves.json holds.

    Raises:
        InputError: the curve that the scan is scaled from is not in it.
    """
    try:
        points = curves[MEASURED]["curves"][SCAN]["points"]
    except KeyError as error:
        raise InputError(
            f"there is no curve of {SCAN!r} at {MEASURED} to scale from; measure it with "
            "benchmarks/batch_curves.py"
        ) from error
    million = curve_through({int(n): one["median_ms"] / 1000 for n, one in points.items()})
    gpu = Service(
        name="exact scan on a GPU, 21 million passages",
        curve=lambda n: 0.020 + 0.0001 * n,
        basis="assumed: 20 ms + 0.1 ms a query (the paper's results: tens of ms)",
    )
    return [
        Service(
            name="exact scan, 21 million passages",
            curve=lambda n: MILLIONS * million(n),
            basis=f"b(n) of {SCAN}, 1,000,000 x 384, measured here, times {MILLIONS}",
        ),
        *map(_remote, (0.010, 0.050, 0.200)),
        gpu,
        replace(gpu, name=f"{gpu.name}, 256 model servers", writers=256),
    ]


def _remote(latency_s: float) -> Service:
    """Give a store that takes this long for a search, and does many at once."""
    told = f"{1000 * latency_s:.0f} ms"
    return Service(
        name=f"remote store, {told}",
        curve=lambda n: latency_s + 0.0002 * n,
        basis=f"assumed: {told} + 0.2 ms a query, 32 searches at a time",
        lanes=32,
    )


def attend(
    traces: Traces, service: Service, arm: Arm, count: int, *, steps: int = 32, seed: int = 0
) -> LoadResult:
    """Answer `count` requests, which come during the time that one takes plainly.

    Each has a pool of its own, unless the arm shares it; every answer is held to the plain
    loop's.
    """
    workload = TraceWorkload(traces, Follows.REWRITING, steps=steps)
    latencies = Latencies(extend_s=service.step_s, search_s=service.curve)
    crowd = LoadSimulation(
        workload,
        traces,
        latencies,
        arm.settings(),
        lanes=service.lanes,
        max_batch=service.max_batch,
        writers=service.writers,
    )
    dice = random.Random(seed)
    spread_s = steps * (service.step_s + service.curve(1))
    arrivals = [0.0, *sorted(dice.uniform(0, spread_s) for _ in range(count - 1))]
    asked = [number % traces.count for number in range(count)]
    attended = crowd.run([str(number) for number in asked], arrivals)
    for number, answer in zip(asked, attended.answers, strict=True):
        assert [step.hits for step in answer.retrieved] == [
            traces.truth(number, step) for step in range(steps)
        ]
    return attended


def crowd_rows(
    traces: Traces,
    chosen: Sequence[Service],
    *,
    counts: Sequence[int] = COUNTS,
    arms: Sequence[Arm] = CROWD_ARMS,
    told: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Run every store, crowd and way; `told` hears of each as it is done."""
    rows = []
    for service in chosen:
        for count in counts:
            for arm in arms:
                rows.append(_row(service, arm, attend(traces, service, arm, count)))
                told(
                    f"{service.name:50} {count:5} {arm.name:20} "
                    f"{rows[-1]['per_second']:8.3f} a second, {rows[-1]['median_s']:9.2f} s"
                )
    return rows


def _row(service: Service, arm: Arm, attended: LoadResult) -> dict[str, Any]:
    waits = attended.latencies_s
    stats = [answer.stats for answer in attended.answers]
    return {
        "service": service.name,
        "basis": service.basis,
        "requests": len(waits),
        "arm": arm.name,
        "per_second": len(waits) / attended.wall_s,
        "median_s": median(waits),
        "p95_s": quantiles(waits, n=20, method="inclusive")[-1] if len(waits) > 1 else waits[0],
        "searches": len(attended.batch_sizes),
        "mean_batch": attended.mean_batch,
        "queries": sum(attended.batch_sizes),
        "wasted_segments": sum(one.wasted_segments for one in stats) / len(stats),
        "guess_rate": _rate(sum(one.accepted for one in stats), sum(one.guesses for one in stats)),
    }


def _rate(right: int, guesses: int) -> float | None:
    return right / guesses if guesses else None
