"""Measurements of a retriever and a model, and the upper bound of what speculation gains."""

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, median
from typing import Any, Protocol, Self

from ralmspec_plugins.errors import InputError, RalmSpecError
from ralmspec_plugins.protocols import (
    LanguageModel,
    PassageTable,
    Progress,
    Retriever,
    WideRetriever,
)
from ralmspec_plugins.retrieval import KnowledgeBase
from ralmspec_plugins.types import Answer, Hits, Passage, Query, Request, Stats

SIZES = (1, 2, 4, 8, 16)
_REPEATS = 7
_PATIENCE_S = 2.0  # for one batch size: a slow retriever is measured less often, but once
_STEPS = 6
LITTLE = 1.05  # below this a gain cannot be distinguished from measurement noise
SWITCH_INTERVAL_S = 0.0005  # docs/decisions/0009: 0.1 ms was no better
_PAIRS = 5  # if nothing is gained, all of five are above 1 once in 32 times
_SWITCH_PATIENCE_S = 20.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """The times of one request: of the plain loop, and the lower bound with speculation."""

    steps: int  # N
    step_s: float  # a: forming the query and writing one segment
    search_s: float  # b(1)

    @classmethod
    def of(cls, stats: Stats) -> Self:
        """Return the bounds of a request that was answered by the plain loop, also behind a host.

        Raises:
            InputError: Nothing was searched, something was speculative, or no times were measured,
                as by `plain()`.
        """
        work = [span for span in stats.timeline if span.kind != "search"]
        if not stats.searches or not stats.segments or any(span.ahead for span in work):
            raise InputError(
                "these statistics are not those of a plain request with a search; "
                "answer it with speculate=False, and without a memo"
            )
        if not work:
            raise InputError(
                "these statistics have no times, as those of plain() have none; "
                "answer the request by an engine with speculate=False"
            )
        step_s = sum(span.ended_s - span.started_s for span in work) / stats.segments
        return cls(stats.segments, step_s, stats.search_s / stats.searches)

    @property
    def plain_s(self) -> float:
        """N a + N b(1)."""
        return self.steps * (self.step_s + self.search_s)

    @property
    def best_s(self) -> float:
        """N a + b(1): all guesses are right, and only the first search is waited for."""
        return self.steps * self.step_s + self.search_s

    @property
    def best_guessed_s(self) -> float:
        """(N - 1) a + max(a, b(1)): a replica guesses the first retrieval, too."""
        return (self.steps - 1) * self.step_s + max(self.step_s, self.search_s)

    @property
    def speed_up(self) -> float:
        """The upper bound of the speedup with a passage cache.

        >>> Bounds(steps=32, step_s=0.01, search_s=0.4).speed_up
        18.2222...
        """
        return self.plain_s / self.best_s if self.best_s else 1.0

    @property
    def speed_up_guessed(self) -> float:
        """The upper bound of the speedup with a replica."""
        return self.plain_s / self.best_guessed_s if self.best_guessed_s else 1.0


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds to write one interval; `None` where it could not be measured."""

    same_s: float | None  # with the passages of the step before
    changed_s: float | None  # with other passages, new to the model


def clocked(work: Callable[[], object]) -> float:
    """Return the seconds that one call takes."""
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def batch_curve(
    retriever: Retriever, queries: Sequence[Query], width: int | None
) -> dict[int, float]:
    """Measure the seconds b(n) of a verification of n queries, as an engine would search.

    Args:
        retriever: what is measured.
        queries: real ones; they are repeated where a batch is larger.
        width: the number of hits that an engine requests from a `WideRetriever`.
    """
    curve = {}
    for size in SIZES:
        batch = [queries[place % len(queries)] for place in range(size)]
        curve[size] = _typical(partial(_search, retriever, batch, width))
    return curve


def _search(retriever: Retriever, queries: Sequence[Query], width: int | None) -> None:
    if width is not None and isinstance(retriever, WideRetriever):
        retriever.search_wide(queries, width)
    else:
        retriever.search(queries)


def _typical(work: Callable[[], object]) -> float:
    """Return the median seconds of a call; a first call warms up, and counts only if slow."""
    first_s = clocked(work)
    if first_s > _PATIENCE_S / 2:
        return first_s
    times: list[float] = []
    left_s = _PATIENCE_S
    while len(times) < _REPEATS and (not times or left_s > times[-1]):
        times.append(clocked(work))
        left_s -= times[-1]
    return median(times)


def step_times(
    lm: LanguageModel[Any], request: Request, passages: Sequence[Sequence[Passage]], interval: int
) -> StepTimes:
    """Measure one interval with the passages of the step before, and with new ones.

    Args:
        lm: the model, with empty caches.
        request: whose prompt is continued.
        passages: sets of passages for single steps; the model reads each once.
        interval: tokens in a step.
    """
    same: list[float] = []
    changed: list[float] = []
    draft, before = lm.begin(request), passages[0]
    draft = lm.write(draft, before, interval, Progress())
    for now in passages[1 : 1 + _STEPS]:
        for given, times in ((before, same), (now, changed)):
            if lm.finished(draft):
                break
            began_s = time.perf_counter()
            draft = lm.write(draft, given, interval, Progress())
            times.append(time.perf_counter() - began_s)
        before = now
    lm.release(draft)
    return StepTimes(median(same) if same else None, median(changed) if changed else None)


def typical_step(answers: Sequence[Answer]) -> float:
    """Return the mean seconds of a step in plain runs: forming its query, and generation."""
    kinds = ("ask", "encode", "extend")
    steps = sum(answer.stats.segments for answer in answers)
    spans = [span for answer in answers for span in answer.stats.timeline if span.kind in kinds]
    return fmean([span.ended_s - span.started_s for span in spans]) * len(spans) / max(1, steps)


def batch_worth(curve: dict[int, float], size: int) -> float:
    """Return the speedup of a batch over its queries searched one after another.

    >>> batch_worth({1: 2.0, 16: 4.0}, 16)
    8.0
    """
    return size * curve[1] / curve[size] if curve[size] else 1.0


def switch_gains(run: Callable[[float | None], float]) -> tuple[float, ...]:
    """Measure the speedup of a request from a shorter thread switch interval.

    Runs are made in pairs, one with Python's own interval and one with `SWITCH_INTERVAL_S`,
    in alternating order; after `_SWITCH_PATIENCE_S` no further pair is started.

    Args:
        run: runs the request speculatively with a `Settings.switch_interval_s`; returns seconds.

    Returns:
        The ratio of each pair.
    """
    gains: list[float] = []
    until_s = time.perf_counter() + _SWITCH_PATIENCE_S
    while len(gains) < _PAIRS and (len(gains) < 2 or time.perf_counter() < until_s):
        intervals = (None, SWITCH_INTERVAL_S) if len(gains) % 2 else (SWITCH_INTERVAL_S, None)
        took_s = {interval_s: run(interval_s) for interval_s in intervals}
        gains.append(took_s[None] / took_s[SWITCH_INTERVAL_S])
    return tuple(gains)


def verdict(bounds: Bounds, curve: dict[int, float], gains: Sequence[float] = ()) -> str:
    """Return in words whether speculation can pay off, and with which settings.

    Args:
        bounds: of one request.
        curve: seconds b(n) of a search by the number of its queries.
        gains: the result of `switch_gains`, if it was measured.
    """
    share = bounds.search_s / (bounds.search_s + bounds.step_s)
    if bounds.speed_up_guessed < LITTLE:
        return (
            f"Speculation cannot pay off here: searching takes {share:.0%} of the time, and "
            "nothing else can be saved. Use the plain loop."
        )
    gain = f"a request can become up to {bounds.speed_up:.1f} times as fast"
    words = [f"Speculation can pay off: searching takes {share:.0%} of the time, and {gain}."]
    if bounds.speed_up < LITTLE:
        gain = f"up to {bounds.speed_up_guessed:.1f} times as fast"
        words = [f"Speculation pays off only with a replica that guesses the first search: {gain}."]
    worth = batch_worth(curve, SIZES[-1])
    in_flight = round(bounds.search_s / bounds.step_s) + 1 if bounds.step_s else SIZES[-1]
    if worth >= 2:
        words.append(f"A batch of {SIZES[-1]} is {worth:.1f} times as fast as single searches.")
    else:
        words.append("A batch takes about as long as its queries one by one.")
    if in_flight > 2:
        words.append(
            f"If the store can answer several searches in parallel, about {in_flight} lanes "
            f"hide its whole latency (--lanes {in_flight})."
        )
    if gains and median(gains) >= LITTLE and min(gains) >= 1:
        words.append(
            f"A shorter thread switch interval made a request {median(gains):.2f} times as fast: "
            f"--switch-interval {1000 * SWITCH_INTERVAL_S:g}ms, "
            f"Settings(switch_interval_s={SWITCH_INTERVAL_S:g})."
        )
    return " ".join(words)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All measurements of one request."""

    curve: dict[int, float]
    steps: StepTimes
    bounds: Bounds
    plain_s: tuple[float, ...]  # two real runs
    agrees: bool  # whether those two gave the same answer
    switch_gains: tuple[float, ...]  # not measured where speculation cannot pay


class RequestRunner(Protocol):
    """Runs the request with empty caches."""

    def __call__(self, switch_interval_s: float | None, *, plain: bool) -> Answer:
        """Return the answer."""


def diagnosed(
    run: RequestRunner,
    store: Retriever,
    lm: LanguageModel[Any],
    request: Request,
    *,
    width: Callable[[int], int],
    interval: int,
) -> Diagnosis:
    """Measure a store and a model with two plain runs, their queries and their texts.

    Args:
        run: runs the request, plainly or speculatively.
        store: what is searched.
        lm: the model, with empty caches.
        request: a typical one.
        width: the number of hits that a verification of this k requests from a `WideRetriever`.
        interval: tokens in a step.
    """
    answers = [run(None, plain=True) for _ in range(2)]
    queries = [step.query for step in answers[0].retrieved]
    wide = width(store.k) if isinstance(store, WideRetriever) else None
    curve = batch_curve(store, queries, wide)
    bounds = Bounds(answers[0].stats.segments, typical_step(answers), curve[1])
    gains: tuple[float, ...] = ()
    if bounds.speed_up >= LITTLE:
        gains = switch_gains(lambda interval_s: run(interval_s, plain=False).stats.wall_s)
    return Diagnosis(
        curve,
        step_times(lm, request, _different(store, answers[0]), interval),
        bounds,
        tuple(answer.stats.wall_s for answer in answers),
        answers[0] == answers[1],
        gains,
    )


def _different(store: Retriever, answer: Answer) -> list[list[Passage]]:
    """Return distinct sets of passages for single steps."""
    found: dict[tuple[str, ...], list[Passage]] = {}
    for step in answer.retrieved:
        groups: Sequence[Hits] = [step.hits]
        if isinstance(store, WideRetriever):
            wide = store.search_wide([step.query], 8 * store.k)[0]
            groups = [wide[at : at + store.k] for at in range(0, len(wide), store.k)]
        for group in groups:
            found.setdefault(tuple(hit.passage.id for hit in group), [hit.passage for hit in group])
        if len(found) > 8:
            break
    return list(found.values())


# Compares two answers to one request, which must be equal.


class UnequalError(RalmSpecError):
    """Two runs of one request gave different answers."""


def check_equal(question: str, first: Answer, second: Answer) -> None:
    """Compare texts, queries, and sources with their scores.

    Raises:
        UnequalError: they differ.
    """
    if first == second:
        return
    if first.text != second.text:
        raise UnequalError(f"{question!r}: the two runs' texts differ, {_parting(first, second)}")
    raise UnequalError(f"{question!r}: the two runs' texts are equal, but their sources are not")


def _parting(first: Answer, second: Answer) -> str:
    """Describe the first difference of two texts."""
    pairs = enumerate(zip(first.text, second.text, strict=False))
    shorter = min(len(first.text), len(second.text))
    at = next((place for place, (one, other) in pairs if one != other), shorter)
    shown = [repr(answer.text[max(0, at - 20) : at + 20]) for answer in (first, second)]
    return f"from character {at} on: {shown[0]} and {shown[1]}"


# A knowledge base with the latency of a remote store added to each round trip.


class RemoteStore:
    """Adds a fixed latency to each round trip; round trips run in parallel, as on a network.

    The answers and the signature are those of the inner store. A program that uses
    this must show its user that the latency is added.
    """

    def __init__(self, inner: KnowledgeBase, latency_s: float) -> None:
        """Wrap a store."""
        self._inner = inner
        self.latency_s = latency_s
        self.k = inner.k
        self.size = inner.size
        self.pure = inner.pure
        self.signature: Hashable = inner.signature

    def encode(self, text: str) -> Query:
        """Encode one query, locally: only searches are remote."""
        return self._inner.encode(text)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """Wait one round trip, and search."""
        time.sleep(self.latency_s)
        return self._inner.search(queries)

    def table(self, capacity: int) -> PassageTable:
        """Return an empty table for a local passage cache."""
        return self._inner.table(capacity)


class WideRemoteStore(RemoteStore):
    """A remote store that can be searched wider than its k."""

    def __init__(self, inner: KnowledgeBase, wide: WideRetriever, latency_s: float) -> None:
        """Wrap a store; `wide` is the same store as `inner`."""
        super().__init__(inner, latency_s)
        self._wide = wide

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        """Wait one round trip, and search."""
        time.sleep(self.latency_s)
        return self._wide.search_wide(queries, width)


def far_away(inner: KnowledgeBase, latency_s: float) -> RemoteStore:
    """Return the store with this latency added."""
    if isinstance(inner, WideRetriever):
        return WideRemoteStore(inner, inner, latency_s)
    return RemoteStore(inner, latency_s)
