"""Says by `Simulation` what each way of a case would take, to be held against what it took."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, Final

from ralmspec_plugins.bench.cases import PLAIN_NAME, Case
from ralmspec_plugins.bench.rows import Row
from ralmspec_plugins.bench.simulated.predicting import (
    Prediction,
    Setting,
    curve_through,
    median_error,
    predict,
)
from ralmspec_plugins.bench.stores import Shelves
from ralmspec_plugins.records import Answer

_OVERHEAD_S: Final = 50e-6  # of the engine on threads, for each piece of work (benchmarks/overhead)


def foretellable(case: Case) -> bool:
    """Whether writing and searching take nothing from each other, and one request runs alone."""
    return case.store.place != "here" and case.concurrency == 1 and case.workload == "interval"


def foretold(
    case: Case,
    shelves: Shelves,
    retriever: Any,
    first: Mapping[str, Answer],
    rows: Iterable[Row],
) -> dict[str, float]:
    """Predict the seconds of each way's first request, with nothing learned before it.

    What a search of n queries takes is what it took in this round; all else is taken from the
    plain run of the same request.

    Args:
        case: what is measured.
        shelves: the passages.
        retriever: what is searched, really, at no virtual time but the curve's.
        first: the answers to the first request, by the way.
        rows: of this round.
    """
    curve = curve_through(_typical(size for row in rows for size in row["searches"]))
    plain = first[PLAIN_NAME]
    told = {}
    for arm in case.arms:
        speculators = (
            shelves.speculators(retriever, arm.capacity, arm.eviction) if arm.replica else ()
        )
        setting = Setting(
            search_s=curve,
            guess_s=_usual(first[arm.name], "guess"),
            overhead_s=_OVERHEAD_S,
            stop_s=_usual(plain, "extend") / (2 * case.interval),  # half a token's pass
        )
        told[arm.name] = predict(plain, retriever, arm.settings(speculators), setting).wall_s
    return told


def errors(result: Mapping[str, Any]) -> tuple[float, int] | None:
    """Give the median error of all predictions in results, and their number; `None` for none."""
    pairs = [
        Prediction(row["predicted_s"], row["wall_s"])
        for record in result["cases"]
        for row in record["rows"]
        if "predicted_s" in row
    ]
    return (median_error(pairs), len(pairs)) if pairs else None


def _typical(searches: Iterable[Sequence[float]]) -> dict[int, float]:
    by_size: dict[int, list[float]] = defaultdict(list)
    for size, seconds in searches:
        by_size[int(size)].append(seconds)
    return {size: median(found) for size, found in by_size.items()}


def _usual(answer: Answer, kind: str) -> float:
    spans = [span for span in answer.stats.timeline if span.kind == kind]
    return median([span.ended_s - span.started_s for span in spans] or [0.0])
