"""Traces: the questions that real articles ask while they are written, ranked beforehand."""

import json
import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.cases import Arm
from ralmspec_plugins.engine.simulation import Latencies, Simulation
from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.protocols import Progress, Speculator
from ralmspec_plugins.speculators.passage_cache import PassageCache
from ralmspec_plugins.types import Answer, Hit, Hits, Passage, Query, Request

WIDEST = 256  # the paper's widest prefetch


class Follows(StrEnum):
    """What follows a segment that was written on a wrong guess, and dropped."""

    RECONVERGING = "reconverging"  # the text came out the same: dropped segments are taken back
    REWRITING = "rewriting"  # it is written again, but what it asks was asked before
    CACHED = "cached"  # as rewriting; a segment that began with a prefill of its own is taken back
    STRAYING = "straying"  # it asked what is not asked again: nothing of it is of use


class Traces:
    """An exact, poolable retriever over one knowledge base, which knows its questions.

    The question of step s of trace t has the text "t.s". Scores are inner products.
    """

    inline_encode = True

    def __init__(
        self,
        passages: Sequence[Passage],
        documents: NDArray[np.float32],  # [passages, dim]
        questions: NDArray[np.float32],  # [traces, steps, dim]
        *,
        k: int = 1,
        hidden: Sequence[Sequence[int]] | None = None,
        widest: int = WIDEST,
    ) -> None:
        """Rank all questions.

        Args:
            passages: the knowledge base.
            documents: their vectors.
            questions: the vectors of what each trace asks, step by step.
            k: passages for each question.
            hidden: for each trace the rows that are not there for it, such as its own article's.
            widest: hits that are known for each question.

        Raises:
            ConfigError: `k` is below 1 or above `widest`.
            InputError: passages and vectors do not fit each other.
        """
        if not 1 <= k <= widest:
            raise ConfigError(f"k must be between 1 and widest ({widest}), got {k}")
        if len(passages) != len(documents) or documents.shape[-1] != questions.shape[-1]:
            raise InputError(
                f"{len(passages)} passages, documents {documents.shape} and questions "
                f"{questions.shape} do not fit each other"
            )
        self.k = k
        self.size = len(passages)
        self.count, self.steps = questions.shape[:2]
        self.signature: Hashable = ("traces", id(self), k)
        self.scores = np.empty((self.count, self.steps, self.size), dtype=np.float32)
        self._ranked: list[list[Hits]] = []
        for trace, asked in enumerate(questions):
            self.scores[trace] = asked @ documents.T
            if hidden is not None:
                self.scores[trace][:, list(hidden[trace])] = -np.inf
            self._ranked.append(_ranked(passages, self.scores[trace], widest))

    def ranked(self, trace: int, step: int) -> Hits:
        """Give the best hits of a question, as many as are known."""
        return self._ranked[trace][step]

    def truth(self, trace: int, step: int) -> Hits:
        """Give what a search finds."""
        return self._ranked[trace][step][: self.k]

    def encode(self, text: str) -> Query:
        """Take a question as it is."""
        return Query(text, encoding=_place(text), key=text)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """Find the best k passages of each question."""
        return self.search_wide(queries, self.k)

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        """Find the best `width` passages of each question."""
        found = []
        for query in queries:
            trace, step = _place(query.text)
            found.append(self._ranked[trace][step][:width])
        return found

    def table(self, capacity: int) -> "TraceTable":
        """Make a table that ranks a pool by the same scores."""
        return TraceTable(self, capacity)


class TraceTable:
    """Ranks a pool by the scores of its traces."""

    def __init__(self, traces: Traces, capacity: int) -> None:
        """Start empty."""
        self._traces = traces
        self._rows = np.zeros(capacity, dtype=np.int64)

    def put(self, slot: int, hit: Hit) -> None:
        """Remember a passage's row."""
        self._rows[slot] = hit.features

    def rank(self, query: Query, slots: Sequence[int], k: int) -> list[tuple[int, float]]:
        """Give the best k of these slots, ties by the passages' order in the knowledge base."""
        trace, step = _place(query.text)
        chosen = np.asarray(slots)
        rows = self._rows[chosen]
        scores = self._traces.scores[trace, step, rows]
        best = np.lexsort((rows, -scores))[:k]
        return [(int(chosen[place]), float(scores[place])) for place in best]


@dataclass(frozen=True, slots=True)
class Written:
    """How far an article is written, and what that stands on."""

    trace: int
    steps: int = 0
    strayed: Hashable = None  # the wrong passages that led here
    front: tuple[str, ...] = ()  # the passages that the model's cache stands on
    prefilled_at: int = 0  # the step at which it was last prefilled


class TraceWorkload:
    """Asks the questions of a trace, whose number is the prompt; what is written is the article."""

    inline_query = True
    reads_scores = False

    def __init__(
        self, traces: Traces, follows: Follows, *, steps: int | None = None, interval: int = 1
    ) -> None:
        """Write `steps` segments, each as long as `interval` of the trace's.

        Raises:
            ConfigError: the traces have not that many questions.
        """
        most = (traces.steps - 1) // interval + 1 if interval >= 1 else 0
        self.steps = most if steps is None else steps
        if not 1 <= self.steps <= most:
            raise ConfigError(
                f"the traces have {traces.steps} questions: no {steps} steps, interval {interval}"
            )
        self.interval = interval
        self._traces = traces
        self._follows = follows

    def start(self, request: Request) -> Written:
        """Begin the trace that the prompt names."""
        return Written(int(request.prompt))

    def query(self, state: Written) -> Query | None:
        """Ask the trace's next question."""
        if state.steps >= self.steps:
            return None
        text = f"{state.trace}.{state.steps * self.interval}"
        return Query(text, key=(text, state.strayed))

    def extend(self, state: Written, hits: Hits, progress: Progress) -> Written:
        """Write on; it does not matter with what, unless the text strays."""
        ids = tuple(hit.passage.id for hit in hits)
        at = state.steps if ids != state.front else state.prefilled_at
        strayed = state.strayed
        if self._follows is Follows.STRAYING and ids != self._right(state):
            strayed = (state.steps, ids, strayed)
        return Written(state.trace, state.steps + 1, strayed, ids, at)

    def _right(self, state: Written) -> tuple[str, ...]:
        truth = self._traces.truth(state.trace, state.steps * self.interval)
        return tuple(hit.passage.id for hit in truth)

    def text(self, state: Written) -> str:
        """Give as many letters as there are segments."""
        return "x" * state.steps

    def settled(self, state: Written) -> str:
        """All that is written stays."""
        return self.text(state)

    def query_key(self, state: Written) -> Hashable:
        """A question depends on the text."""
        return state.trace, state.steps, state.strayed

    def extend_key(self, state: Written, hits: Hits) -> Hashable | None:
        """Hold what a segment depends on, as far as dropped ones are to be taken back."""
        if self._follows is Follows.RECONVERGING:
            return self.query_key(state)
        if self._follows is not Follows.CACHED:
            return None
        ids = tuple(hit.passage.id for hit in hits)
        return state.steps, ids, state.prefilled_at if ids == state.front else None

    def release(self, state: Written) -> None:
        """Nothing is kept."""


def load_traces(
    folder: Path, *, left_out: bool = False, k: int = 1, articles: int | None = None
) -> Traces:
    """Load traces and passages of real articles.

    Args:
        folder: holds trace_vectors.npz (docs, q), trace_queries.json and wikipedia_passages.jsonl.
        left_out: whether the passages of a trace's own article are hidden from it.
        k: passages for each question.
        articles: how many traces are taken; all of them if not given.

    Raises:
        InputError: a file is missing.
    """
    for name in ("trace_vectors.npz", "trace_queries.json", "wikipedia_passages.jsonl"):
        if not (folder / name).exists():
            raise InputError(f"{folder} has no {name}; give the folder that the traces are in")
    with np.load(folder / "trace_vectors.npz", allow_pickle=False) as vectors:
        documents = vectors["docs"].astype(np.float32)
        questions = vectors["q"].astype(np.float32)[:articles]
    told = json.loads((folder / "trace_queries.json").read_text())[:articles]
    lines = (folder / "wikipedia_passages.jsonl").read_text().splitlines()
    passages = [Passage(row["id"], "", row["title"]) for row in map(json.loads, lines)]
    of_article: dict[str, list[int]] = {}
    for row, passage in enumerate(passages):
        of_article.setdefault(passage.title, []).append(row)
    hidden = [of_article.get(trace["article"], []) for trace in told] if left_out else None
    return Traces(passages, documents, questions, k=k, hidden=hidden)


def _place(text: str) -> tuple[int, int]:
    trace, step = text.split(".")
    return int(trace), int(step)


def _ranked(passages: Sequence[Passage], scores: NDArray[np.float32], widest: int) -> list[Hits]:
    best = np.argsort(-scores, axis=1, kind="stable")[:, :widest]  # [steps, widest]
    return [
        tuple(
            Hit(passages[row], float(ours[row]), features=row)
            for row in rows.tolist()
            if ours[row] != -np.inf
        )
        for ours, rows in zip(scores, best, strict=True)
    ]


# A replica in traces: an index of its own that guesses any question, and is sometimes wrong.


RIGHT = 0.97  # of an HNSW index with usual settings (docs/benchmarks.md, approximate roles)


class NoisyReplica:
    """Guesses any retrieval, the first too; what it misses is the last of the hits."""

    inline = True

    def __init__(self, traces: Traces, seed: int, right: float = RIGHT) -> None:
        """Be right as often as told, by dice of its own."""
        self._traces = traces
        self._dice = random.Random(seed)
        self._right = right
        self.signature: Hashable = traces.signature

    def guess(self, query: Query) -> Hits:
        """Give the true hits, or all of them but one and the next."""
        k = self._traces.k
        [hits] = self._traces.search_wide([query], k + 1)
        return hits[:k] if self._dice.random() < self._right else (*hits[: k - 1], *hits[k:])

    def learn(self, query: Query, hits: Hits) -> None:
        """It knows all there is."""


# Runs all traces in one setting, in virtual time, and holds every answer to the plain loop's.


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What traces are run in: what follows a wrong guess, and what writing and searching cost."""

    traces: Traces
    follows: Follows
    search_s: Callable[[int], float]
    extend_s: float = 1.0
    steps: int | None = None  # of each trace; as many as it has, if not given
    interval: int = 1

    @property
    def workload(self) -> TraceWorkload:
        """The workload of its traces."""
        return TraceWorkload(self.traces, self.follows, steps=self.steps, interval=self.interval)

    @property
    def latencies(self) -> Latencies:
        """What work takes."""
        return Latencies(extend_s=self.extend_s, search_s=self.search_s)

    @property
    def plain_s(self) -> float:
        """What the plain loop takes for one trace."""
        return self.workload.steps * (self.extend_s + self.search_s(1))

    def bound_s(self, *, first_guessed: bool) -> float:
        """Give the least that a trace can take: its last search cannot end earlier."""
        steps, one = self.workload.steps, self.search_s(1)
        if first_guessed:
            return (steps - 1) * self.extend_s + max(self.extend_s, one)
        return steps * self.extend_s + one


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What all traces came to in one setting; simulated, and each a mean over the requests."""

    requests: int
    speed_up: float  # the ratio of summed times
    slowest: float  # the least of the single requests' ratios
    middle: float  # their median
    saved: float  # time saved by a request, in the unit of the latencies
    bound: float  # the speed-up that nothing can exceed
    guess_rate: float | None
    round_trips: float
    mean_batch: float
    wasted_segments: float
    guesses: float

    def record(self) -> dict[str, Any]:
        """Give it as JSON takes it."""
        return asdict(self)


def run_arm(world: World, arm: Arm, *, order: list[int] | None = None) -> Ran:
    """Run traces in one way.

    Each request is alone and begins with nothing measured; with a shared pool they come one
    after the other to one engine.

    Args:
        world: the traces, and what they cost.
        arm: the way.
        order: which traces, one after the other; each of them once if not given.
    """
    workload, truths = world.workload, _truths(world)
    simulation: Simulation | None = None
    answers = []
    for number in range(world.traces.count) if order is None else order:
        if simulation is None or not arm.shared:
            simulation = _simulation(world, arm, workload, number)
        answer = simulation.run(str(number))
        assert answer.text == "x" * workload.steps
        assert [step.hits for step in answer.retrieved] == truths[number]
        answers.append(answer)
    return _summed(world, arm, answers)


def _simulation(world: World, arm: Arm, workload: TraceWorkload, seed: int) -> Simulation:
    own: tuple[Speculator, ...] = ()
    if arm.replica:
        pool = PassageCache(world.traces, capacity=arm.capacity, eviction=arm.eviction)
        own = (pool, NoisyReplica(world.traces, seed))
    return Simulation(workload, world.traces, world.latencies, arm.settings(own))


def _truths(world: World) -> list[list[Any]]:
    """Give what the plain loop finds, for each trace and step."""
    steps = range(0, world.workload.steps * world.interval, world.interval)
    return [
        [world.traces.truth(number, step) for step in steps] for number in range(world.traces.count)
    ]


def _summed(world: World, arm: Arm, answers: list[Answer]) -> Ran:
    stats = [answer.stats for answer in answers]
    count, plain_s = len(stats), world.plain_s
    total_s = sum(one.wall_s for one in stats)
    guesses = sum(one.guesses for one in stats)
    searches = sum(one.searches for one in stats)
    bound_s = world.bound_s(first_guessed=arm.replica or arm.shared)
    return Ran(
        requests=count,
        speed_up=count * plain_s / total_s,
        slowest=min(plain_s / one.wall_s for one in stats),
        middle=median(plain_s / one.wall_s for one in stats),
        saved=plain_s - total_s / count,
        bound=plain_s / bound_s,
        guess_rate=sum(one.accepted for one in stats) / guesses if guesses else None,
        round_trips=searches / count,
        mean_batch=sum(one.queries for one in stats) / searches,
        wasted_segments=sum(one.wasted_segments for one in stats) / count,
        guesses=guesses / count,
    )
