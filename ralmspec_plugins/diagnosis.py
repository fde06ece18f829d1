"""Measure a retriever and a model, and work out what speculation can gain at best."""

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, median
from typing import Any, Protocol

from ralmspec_plugins.errors import RalmSpecError
from ralmspec_plugins.protocols import (
    LanguageModel,
    PassageTable,
    Progress,
    Retriever,
    WideRetriever,
)
from ralmspec_plugins.retrieval import KnowledgeBase
from ralmspec_plugins.types import Answer, Hits, Passage, Query, Request

SIZES = (1, 2, 4, 8, 16)
_REPEATS = 7
_PATIENCE_S = 2.0  # for one batch size: a slow retriever is measured less often, but once
_STEPS = 6
LITTLE = 1.05  # below this no gain could be told from the noise of a machine
SWITCH_INTERVAL_S = 0.0005  # docs/decisions/0009: 0.1 ms was no better
_PAIRS = 5  # if nothing is gained, all of five are above 1 once in 32 times
_SWITCH_PATIENCE_S = 20.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """The times of one request: plainly, and at best with speculation."""

    steps: int  # N
    step_s: float  # a: forming the query and writing one segment
    search_s: float  # b(1)

    @property
    def plain_s(self) -> float:
        """N a + N b(1)."""
        return self.steps * (self.step_s + self.search_s)

    @property
    def best_s(self) -> float:
        """N a + b(1): all guesses right, the first search waited for."""
        return self.steps * self.step_s + self.search_s

    @property
    def best_guessed_s(self) -> float:
        """(N - 1) a + max(a, b(1)): the first retrieval guessed too, by a replica."""
        return (self.steps - 1) * self.step_s + max(self.step_s, self.search_s)

    @property
    def speed_up(self) -> float:
        """The most that a pool's guesses can gain.

        >>> Bounds(steps=32, step_s=0.01, search_s=0.4).speed_up
        18.2222...
        """
        return self.plain_s / self.best_s if self.best_s else 1.0

    @property
    def speed_up_guessed(self) -> float:
        """The most that a replica's guesses can gain."""
        return self.plain_s / self.best_guessed_s if self.best_guessed_s else 1.0


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds to write one interval; `None` where it could not be measured."""

    same_s: float | None  # the passages of the step before
    changed_s: float | None  # other passages, not read before


def clocked(work: Callable[[], object]) -> float:
    """Time one call."""
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def batch_curve(
    retriever: Retriever, queries: Sequence[Query], width: int | None
) -> dict[int, float]:
    """Measure the seconds b(n) of a verification of n queries, as an engine would search.

    Args:
        retriever: what is measured.
        queries: real ones; used round and round.
        width: how many hits an engine would ask for where that is possible.
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
    """Take the median of some calls; the first warms caches up and counts only if it was slow."""
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
        passages: what steps may be given; each is new to the model once.
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
    """Give the mean seconds of a step in plain runs: its question and its writing."""
    kinds = ("ask", "encode", "extend")
    steps = sum(answer.stats.segments for answer in answers)
    spans = [span for answer in answers for span in answer.stats.timeline if span.kind in kinds]
    return fmean([span.ended_s - span.started_s for span in spans]) * len(spans) / max(1, steps)


def batch_worth(curve: dict[int, float], size: int) -> float:
    """Say how many times faster a batch is than its queries one after another.

    >>> batch_worth({1: 2.0, 16: 4.0}, 16)
    8.0
    """
    return size * curve[1] / curve[size] if curve[size] else 1.0


def switch_gains(run: Callable[[float | None], float]) -> tuple[float, ...]:
    """Measure how many times faster a request is where Python's threads switch more often.

    Runs come in pairs, one with Python's own interval and one with `SWITCH_INTERVAL_S`, each
    of them first in every other pair; after `_SWITCH_PATIENCE_S` no further pair begins.

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
    """Say in plain words whether speculation can pay, and with which settings.

    Args:
        bounds: of one request.
        curve: seconds b(n) of a search by the number of its queries.
        gains: what `switch_gains` measured, if it was.
    """
    share = bounds.search_s / (bounds.search_s + bounds.step_s)
    if bounds.speed_up_guessed < LITTLE:
        return (
            f"Speculation cannot pay here: searching takes {share:.0%} of the time, and nothing "
            "else can be saved. Run plainly."
        )
    gain = f"a request can become up to {bounds.speed_up:.1f} times as fast"
    words = [f"Speculation can pay: searching takes {share:.0%} of the time, and {gain}."]
    if bounds.speed_up < LITTLE:
        gain = f"up to {bounds.speed_up_guessed:.1f} times as fast"
        words = [f"Speculation pays only with a replica that guesses the first search: {gain}."]
    worth = batch_worth(curve, SIZES[-1])
    in_flight = round(bounds.search_s / bounds.step_s) + 1 if bounds.step_s else SIZES[-1]
    if worth >= 2:
        words.append(f"A batch of {SIZES[-1]} is {worth:.1f} times cheaper than single searches.")
    else:
        words.append("A batch costs about what its queries cost one by one.")
    if in_flight > 2:
        words.append(
            f"If the store can answer several searches side by side, about {in_flight} lanes "
            f"hide its whole latency (--lanes {in_flight})."
        )
    if gains and median(gains) >= LITTLE and min(gains) >= 1:
        words.append(
            f"Shorter turns of Python's threads made a request {median(gains):.2f} times as fast: "
            f"--switch-interval {1000 * SWITCH_INTERVAL_S:g}ms, "
            f"Settings(switch_interval_s={SWITCH_INTERVAL_S:g})."
        )
    return " ".join(words)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that was measured of one request."""

    curve: dict[int, float]
    steps: StepTimes
    bounds: Bounds
    plain_s: tuple[float, ...]  # two real runs
    agrees: bool  # whether those two gave the same answer
    switch_gains: tuple[float, ...]  # not measured where speculation cannot pay


class RequestRunner(Protocol):
    """Runs the request with empty caches."""

    def __call__(self, switch_interval_s: float | None, *, plain: bool) -> Answer:
        """Answer it."""


def diagnosed(
    run: RequestRunner,
    store: Retriever,
    lm: LanguageModel[Any],
    request: Request,
    *,
    width: Callable[[int], int],
    interval: int,
) -> Diagnosis:
    """Measure a store and a model by two plain runs and what those searched and wrote.

    Args:
        run: runs the request, plainly or speculatively.
        store: what is searched.
        lm: the model, with empty caches.
        request: a typical one.
        width: the hits that a verification of this k asks for, where the store can be searched
            wider.
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
    """Collect what single steps may be given, no two alike."""
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


# Holds two answers of one request together: they must be equal, and it is said where they part.


class UnequalError(RalmSpecError):
    """Two runs of one request gave different answers, which must never happen."""


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
    """Show where two texts part."""
    pairs = enumerate(zip(first.text, second.text, strict=False))
    shorter = min(len(first.text), len(second.text))
    at = next((place for place, (one, other) in pairs if one != other), shorter)
    shown = [repr(answer.text[max(0, at - 20) : at + 20]) for answer in (first, second)]
    return f"from character {at} on: {shown[0]} and {shown[1]}"


# A knowledge base as if it were far away: each round trip waits before it is answered.


class RemoteStore:
    """Adds a fixed wait to each round trip; several may wait side by side, as on a network.

    The answers are the inner store's own, and so is the signature. Whoever uses
    this says on screen that the wait is added.
    """

    def __init__(self, inner: KnowledgeBase, latency_s: float) -> None:
        """Put a store this far away."""
        self._inner = inner
        self.latency_s = latency_s
        self.k = inner.k
        self.size = inner.size
        self.pure = inner.pure
        self.signature: Hashable = inner.signature

    def encode(self, text: str) -> Query:
        """Encode one query, here: only searches travel."""
        return self._inner.encode(text)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """Wait one round trip, and search."""
        time.sleep(self.latency_s)
        return self._inner.search(queries)

    def table(self, capacity: int) -> PassageTable:
        """Make an empty table for a pool, which is here."""
        return self._inner.table(capacity)


class WideRemoteStore(RemoteStore):
    """The same for a store that can be searched wider than its k."""

    def __init__(self, inner: KnowledgeBase, wide: WideRetriever, latency_s: float) -> None:
        """Put a store this far away; `wide` is the same store again."""
        super().__init__(inner, latency_s)
        self._wide = wide

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        """Wait one round trip, and search."""
        time.sleep(self.latency_s)
        return self._wide.search_wide(queries, width)


def far_away(inner: KnowledgeBase, latency_s: float) -> RemoteStore:
    """Put a store this many seconds away."""
    if isinstance(inner, WideRetriever):
        return WideRemoteStore(inner, inner, latency_s)
    return RemoteStore(inner, latency_s)
