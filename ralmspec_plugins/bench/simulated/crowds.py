"""Thousands of requests at once through one merging verifier, in virtual time."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median, quantiles
from typing import Any

from ralmspec_plugins.bench.cases import Arm
from ralmspec_plugins.bench.simulated.predicting import curve_through
from ralmspec_plugins.bench.simulated.traces import Follows, Traces, TraceWorkload
from ralmspec_plugins.crowd import Attended, Crowd
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.latencies import Latencies

COUNTS = (1, 10, 100, 1000, 5000)
MILLIONS = 21  # passages of the paper's knowledge base (PAPERS 1.10)
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
    step_s: float = 0.22  # LLaMA-2-7B, 4 tokens (PAPERS 1.11)
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
        basis="assumed: 20 ms + 0.1 ms a query (PAPERS 1.11: tens of ms)",
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
) -> Attended:
    """Answer `count` requests, which come during the time that one takes plainly.

    Each has a pool of its own, unless the arm shares it; every answer is held to the plain
    loop's.
    """
    workload = TraceWorkload(traces, Follows.REWRITING, steps=steps)
    latencies = Latencies(extend_s=service.step_s, search_s=service.curve)
    crowd = Crowd(
        workload,
        traces,
        latencies,
        arm.settings(),
        lanes=service.lanes,
        max_batch=service.max_batch,
        writers=service.writers,
    )
    dice = random.Random(seed)  # noqa: S311 no secret
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


def _row(service: Service, arm: Arm, attended: Attended) -> dict[str, Any]:
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
        "guess_rate": _rate(
            sum(one.guesses_right for one in stats), sum(one.guesses for one in stats)
        ),
    }


def _rate(right: int, guesses: int) -> float | None:
    return right / guesses if guesses else None
