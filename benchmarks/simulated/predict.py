"""Predicts a measured request: its plain run, run again with guesses in virtual time."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import numpy as np

from benchmarks.harness.cases import PLAIN_NAME, Case
from benchmarks.harness.inputs import Shelves
from benchmarks.harness.results import Row
from benchmarks.simulated.traces import Follows
from ralmspec_plugins.config import Settings
from ralmspec_plugins.effects import Extend, FormQuery
from ralmspec_plugins.engine.simulation import Latencies, Simulation
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.protocols import Progress, Retriever
from ralmspec_plugins.types import Answer, Hits, Query, Request, Stats


@dataclass(frozen=True, slots=True)
class StepTime:
    """What one step was measured to take, alone.

    `same_s` and `changed_s`: writing it behind the passages of the step before, and behind
    others, for which a model has to read passages, prompt and text anew.
    """

    ask_s: float
    same_s: float
    changed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a plain run cannot tell: measured apart, or left at what has no effect."""

    search_s: Callable[[int], float]  # b(n)
    guess_s: float = 0.0  # of a speculator that is no look-up, such as a replica
    contention: float = 0.0  # how much longer writing takes beside a search
    search_contention: float | None = None
    overhead_s: float = 0.0  # of the engine, for each piece of work
    stop_s: float = 0.0
    follows: Follows = Follows.CACHED  # what came of text that was dropped


@dataclass(frozen=True, slots=True)
class Prediction:
    """How long something was said to take, and how long it took."""

    predicted_s: float
    measured_s: float

    @property
    def error(self) -> float:
        """How far off the prediction was, as a share of what was measured."""
        return abs(self.predicted_s - self.measured_s) / self.measured_s


def median_error(predictions: Sequence[Prediction]) -> float:
    """Give the middle one of the errors."""
    return median(prediction.error for prediction in predictions)


def curve_through(points: Mapping[int, float]) -> Callable[[int], float]:
    """Lay a curve b(n) through measured sizes: straight between them, and on beyond the last.

    >>> b = curve_through({1: 0.5, 4: 0.8})
    >>> [round(b(n), 2) for n in (1, 2, 4, 8)]
    [0.5, 0.6, 0.8, 1.2]

    Raises:
        InputError: nothing was measured.
    """
    if not points:
        raise InputError("a curve needs at least one measured size")
    sizes = sorted(points)
    seconds = [points[size] for size in sizes]
    spread = sizes[-1] - sizes[0]
    slope = max(0.0, (seconds[-1] - seconds[0]) / spread) if spread else 0.0

    def b(queries: int) -> float:
        beyond = max(0, queries - sizes[-1])
        return float(np.interp(queries, sizes, seconds)) + slope * beyond

    return b


def step_times(answer: Answer) -> list[StepTime]:
    """Take the times of a plain request's steps from its timeline.

    A step was written either behind the same passages as the one before or behind others;
    what the other would have taken is taken from the steps where it was so. Where there are
    none, both take the same.

    Raises:
        InputError: the timeline is not that of a plain run.
    """
    extends = [span for span in answer.stats.timeline if span.kind == "extend"]
    asks = [span for span in answer.stats.timeline if span.kind == "ask"]
    steps = len(answer.retrieved)
    if len(extends) != steps or len(asks) not in (0, steps, steps + 1):
        raise InputError(
            f"a plain run of {steps} steps writes as many segments and asks as often or inside "
            f"its loop, but its timeline has {len(extends)} and {len(asks)}; give it one of an "
            "engine with Settings(speculate=False)"
        )
    took = [span.ended_s - span.started_s for span in extends]
    found = [_ids(step.hits) for step in answer.retrieved]
    changed = [at == 0 or found[at] != found[at - 1] for at in range(steps)]
    usual = {
        kind: median(ours) if (ours := _chosen(took, changed, kind)) else None
        for kind in (True, False)
    }
    asked = _asked(answer.stats)
    times = []
    for at in range(steps):
        other = usual[not changed[at]]
        both = {changed[at]: took[at], not changed[at]: took[at] if other is None else other}
        times.append(StepTime(asked[at], both[False], both[True]))
    return times


def _asked(stats: Stats) -> list[float]:
    """Give what asking took in front of each segment, encoding included, and behind the last."""
    asked = [0.0]
    for span in sorted(stats.timeline, key=lambda span: span.started_s):
        if span.kind in ("ask", "encode"):
            asked[-1] += span.ended_s - span.started_s
        elif span.kind == "extend":
            asked.append(0.0)
    return asked


def predict(answer: Answer, retriever: Retriever, settings: Settings, setting: Setting) -> Stats:
    """Say what a request would take with guesses, from the answer of an engine's plain run.

    The loop, the pool and what is found are real, so `retriever` is searched, at no virtual
    time but the curve's. Start times of the model are left out: both runs have them.

    Raises:
        InputError: the answer is not that of a plain run.
    """
    times = step_times(answer)
    queries = [step.query for step in answer.retrieved]
    workload = Replay(queries, times, setting.follows, _asked(answer.stats)[-1])
    latencies = Latencies(
        extend_s=workload.extend_s,
        ask_s=workload.ask_s,
        search_s=setting.search_s,
        guess_s=setting.guess_s,
        contention=setting.contention,
        search_contention=setting.search_contention,
        overhead_s=setting.overhead_s,
        stop_s=setting.stop_s,
    )
    return Simulation(workload, retriever, latencies, settings).run("").stats


@dataclass(frozen=True, slots=True)
class Replayed:
    """How far a request was replayed, and what the model's cache would stand on."""

    steps: int = 0
    front: tuple[str, ...] | None = None
    prefilled_at: int = 0
    strayed: Hashable = None


class Replay:
    """Asks what a plain run asked, and takes as long; the text is not written again."""

    reads_scores = False

    def __init__(
        self,
        queries: Sequence[Query],
        times: Sequence[StepTime],
        follows: Follows,
        last_ask_s: float = 0.0,
    ) -> None:
        """Replay these queries, one a step; finding that they are all takes `last_ask_s`."""
        self._last_ask_s = last_ask_s
        self.inline_query = not any(time.ask_s for time in times)
        self._queries = list(queries)
        self._times = list(times)
        self._follows = follows

    def ask_s(self, need: FormQuery) -> float:
        """Give what asking took."""
        state: Replayed = need.state
        over = state.steps >= len(self._times)
        return self._last_ask_s if over else self._times[state.steps].ask_s

    def extend_s(self, need: Extend) -> float:
        """Give what writing took behind the same passages, or behind others."""
        state: Replayed = need.state
        time = self._times[state.steps]
        return time.same_s if state.front == _ids(need.hits) else time.changed_s

    def start(self, request: Request) -> Replayed:
        """Begin."""
        return Replayed()

    def query(self, state: Replayed) -> Query | None:
        """Ask the next question, as it was encoded then."""
        if state.steps >= len(self._queries):
            return None
        query = self._queries[state.steps]
        key = query.key if state.strayed is None else (query.key, state.strayed)
        return Query(query.text, query.encoding, key=("replayed", key))

    def extend(self, state: Replayed, hits: Hits, progress: Progress) -> Replayed:
        """Go on by a step."""
        ids = _ids(hits)
        at = state.prefilled_at if ids == state.front else state.steps
        strayed = state.strayed
        if self._follows is Follows.STRAYING:
            strayed = (ids, strayed)  # every text is another one
        return Replayed(state.steps + 1, ids, at, strayed)

    def text(self, state: Replayed) -> str:
        """Give a letter for each step."""
        return "x" * state.steps

    def settled(self, state: Replayed) -> str:
        """All of it stays."""
        return self.text(state)

    def query_key(self, state: Replayed) -> Hashable:
        """A question depends on the text."""
        return state.steps, state.strayed

    def extend_key(self, state: Replayed, hits: Hits) -> Hashable | None:
        """Hold what a segment depends on, as far as dropped ones were taken back."""
        if self._follows is Follows.RECONVERGING:
            return self.query_key(state)
        if self._follows is not Follows.CACHED:
            return None
        ids = _ids(hits)
        return state.steps, ids, state.prefilled_at if ids == state.front else None

    def release(self, state: Replayed) -> None:
        """Nothing is kept."""


def _ids(hits: Hits) -> tuple[str, ...]:
    return tuple(hit.passage.id for hit in hits)


def _chosen(values: Sequence[Any], kinds: Sequence[bool], kind: bool) -> list[Any]:
    return [value for value, is_kind in zip(values, kinds, strict=True) if is_kind is kind]


# Says by `Simulation` what each way of a case would take, to be held against what it took.


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
        speculators = shelves.speculators(arm, retriever)
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
