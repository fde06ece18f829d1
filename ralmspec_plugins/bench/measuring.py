"""Runs a case: all its ways in turn, request by request, with equal answers asserted."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any, Final, TypeAlias

from ralmspec_plugins.bench.bounds import Bounds
from ralmspec_plugins.bench.cases import PLAIN_NAME, Arm, Case
from ralmspec_plugins.bench.equality import check_equal
from ralmspec_plugins.bench.models import LoadedModel
from ralmspec_plugins.bench.stores import Shelves
from ralmspec_plugins.demo.world import DEMO_SEED, make_world
from ralmspec_plugins.engine import Engine
from ralmspec_plugins.records import Answer, Request
from ralmspec_plugins.stats import Outcome, Span
from ralmspec_plugins.workloads import Interval

_QUESTIONS_SEED: Final = 3
Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Measured:
    """A case with one row for each run, in the order in which they were made."""

    case: Case
    rows: list[Row]

    def record(self) -> dict[str, Any]:
        """Give it as JSON takes it."""
        return {"case": self.case.record(), "rows": self.rows}


def measure(
    case: Case,
    model: LoadedModel,
    shelves: Shelves,
    watch: Callable[[Row], None] | None = None,
) -> Measured:
    """Measure a case: plain, A, B, plain, A, B, and so on, for each request and repetition.

    One round, which is not counted, warms up what is set up once. With each repetition
    everything that is learned (pools, costs) begins anew; model caches begin anew with each
    run, so that no way reads passages that another one has read.

    Args:
        case: what is measured.
        model: the one of the case.
        shelves: the passages.
        watch: is shown each row.

    Raises:
        UnequalError: an answer is not the plain loop's.
    """
    requests = requests_of(case, shelves)
    rows: list[Row] = []
    with shelves.opened(case.store) as retriever, _at_rest():
        _round(_Ways(case, model, shelves, retriever), requests[:1], [])
        for repetition in range(case.repetitions):
            found: list[Row] = []
            _round(_Ways(case, model, shelves, retriever), requests, found)
            for row in found:
                rows.append({"repetition": repetition, **row})
                if watch is not None:
                    watch(rows[-1])
    return Measured(case, rows)


def requests_of(case: Case, shelves: Shelves) -> list[Request]:
    """Make the requests of a case.

    Raises:
        InputError: the articles are too short.
    """
    tokens = case.steps * case.interval
    if case.text == "free":
        asked = make_world(DEMO_SEED).questions(case.requests, _QUESTIONS_SEED)
        return [Request(prompt=one.prompt, max_tokens=tokens) for one in asked]
    scripts = shelves.library.scripts(case.requests, tokens)
    return [Request(prompt=one.prompt, max_tokens=tokens, context=one.text) for one in scripts]


@contextmanager
def _at_rest() -> Iterator[None]:
    """Keep what there is already out of garbage collections, which then take no time."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _Ways:
    """The engines of one repetition, each with a model's caches of its own."""

    def __init__(self, case: Case, model: LoadedModel, shelves: Shelves, retriever: Any) -> None:
        self._case = case
        self._model = model
        self._shelves = shelves
        self._retriever = retriever

    def run(self, engine: Engine, workload: Interval[Any], request: Request) -> Answer:
        """Answer one request with caches that hold nothing."""
        workload.lm = self._model.writer(trace=self._case.text == "trace")
        gc.collect()  # not in the middle of the run
        return engine.run(request)

    def opened(self, stack: ExitStack) -> Iterator[tuple[str, Callable[[Request], Answer]]]:
        """Open an engine for each way, the plain one first."""
        for arm in (Arm(name=PLAIN_NAME, kind="plain"), *self._case.arms):
            speculators = (
                self._shelves.speculators(self._retriever, arm.capacity, arm.eviction)
                if arm.replica
                else ()
            )
            workload: Interval[Any] = Interval(
                self._model.writer(trace=self._case.text == "trace"),
                interval=self._case.interval,
                query_tokens=self._case.query_tokens,
            )
            engine = stack.enter_context(
                Engine(workload, self._retriever, arm.settings(speculators))
            )
            yield arm.name, partial(self.run, engine, workload)


def _round(ways: _Ways, requests: Sequence[Request], rows: list[Row]) -> None:
    """Run all requests in all ways, and note what came of each run."""
    with ExitStack() as stack:
        runs = list(ways.opened(stack))
        for number, request in enumerate(requests):
            plain: Answer | None = None
            for name, run in runs:
                answer = run(request)
                plain = plain or answer
                check_equal(f"{name}: {request.prompt}", plain, answer)
                rows.append({"request": number, "arm": name, **_row(answer, plain)})


def _row(answer: Answer, plain: Answer) -> Row:
    """Give the numbers of a run, and its bounds, which the plain run beside it says."""
    stats, bounds = answer.stats, bounds_of(plain)
    wasted = [span for span in stats.timeline if span.outcome is not Outcome.KEPT]
    return {
        "wall_s": stats.wall_s,
        "plain_s": plain.stats.wall_s,
        "bound_s": bounds.best_s,
        "bound_guessed_s": bounds.best_guessed_s,
        "step_s": bounds.step_s,
        "search_s": bounds.search_s,
        "steps": stats.segments,
        "round_trips": stats.searches,
        "queries": stats.queries,
        "batch_sizes": list(stats.batch_sizes),
        "guesses": stats.guesses,
        "guesses_right": stats.guesses_right,
        "wasted_segments": stats.wasted_segments,
        "writing_s": stats.write_s,
        "wasted_s": sum(span.ended_s - span.started_s for span in wasted if span.kind == "extend"),
        "searching_s": stats.search_s,
        "both_s": stats.overlap_s,
        "spans": _spans(answer, whole=answer is plain),
    }


def _spans(answer: Answer, *, whole: bool) -> dict[str, list[Any]]:
    """List the seconds of searches by their size; of a plain run, of all its work in order.

    From these a simulation can predict what a way would take.
    """
    spans = [span for span in answer.stats.timeline if span.outcome is Outcome.KEPT]
    searches = [[one.queries, _rounded(one)] for one in spans if one.kind == "search"]
    kinds = ("ask", "extend") if whole else ()
    own = {kind: [_rounded(one) for one in spans if one.kind == kind] for kind in kinds}
    return {"search": searches, **own}


def bounds_of(plain: Answer) -> Bounds:
    """Read the bounds of DESIGN 5 off a plain run: no verification can end earlier."""
    spans = plain.stats.timeline
    steps = max(1, plain.stats.segments)
    searches = [_seconds(span) for span in spans if span.kind == "search"]
    writing = sum(_seconds(span) for span in spans if span.kind in ("ask", "extend"))
    return Bounds(steps=steps, step_s=writing / steps, search_s=fmean(searches or [0.0]))


def _rounded(span: Span) -> float:
    return round(_seconds(span), 6)


def _seconds(span: Span) -> float:
    return span.ended_s - span.started_s
