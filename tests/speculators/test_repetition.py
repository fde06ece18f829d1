"""Repetition: what is guessed while a query is being encoded, from the step before."""

import asyncio
import threading
from collections.abc import Hashable, Sequence
from typing import Any

import pytest

from ralmspec_plugins import (
    AsyncEngine,
    Continuous,
    Engine,
    Hit,
    Latencies,
    Passage,
    Settings,
    Simulation,
)
from ralmspec_plugins.plain import plain
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.scheduling import encoder_time
from ralmspec_plugins.scheduling.encoder_time import EncoderTime
from ralmspec_plugins.speculators import PassageCache, Repetition, SharedPassageCache
from ralmspec_plugins.testing import WordRetriever
from ralmspec_plugins.types import Answer, Hits, Query
from ralmspec_plugins.workloads import TextState, TextWorkload

FOX, WHALE = ((Hit(Passage(name, name), None),) for name in ("fox", "whale"))


def test_it_guesses_what_the_step_before_was_given() -> None:
    """Nothing at the first step, nor where the step before found nothing."""
    one = Repetition()
    one.learn(Query("whale"), WHALE)

    assert one.guess(Query("fox")) is None
    assert one.guess_after(Query("fox"), WHALE) == WHALE
    assert one.guess_after(Query("fox"), ()) is None


def test_it_makes_no_guess_where_it_is_told_so() -> None:
    """It is asked at each step."""
    told = [True, False]
    one = Repetition(unless=lambda: told.pop(0))

    assert [one.guess_after(Query("fox"), WHALE) for _ in "ab"] == [None, WHALE]


class Topics:
    """Finds one passage for all queries with the same first word; its encoder is far away."""

    inline_encode = False
    encode_lanes = 8
    k = 1
    signature: Hashable = "topics"

    def __init__(self) -> None:
        self.encoded: list[str] = []
        self.wait = threading.Event()

    def encode(self, text: str) -> Query:
        self.encoded.append(text)
        return Query(text, (text.split()[0],))

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        assert all(query.encoding for query in queries)
        return [(Hit(Passage(query.text.split()[0], ""), 1.0),) for query in queries]

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        return self.search(queries)

    def table(self, capacity: int) -> Any:
        return WordRetriever(["fox"], 1).table(capacity)


class Chapters(TextWorkload[TextState]):
    """Asks four times about each of several topics, and writes which it was given."""

    def __init__(self, *, reads_scores: bool = False) -> None:
        self.reads_scores = reads_scores
        self.given: list[Hits] = []

    def query(self, state: TextState) -> str | None:
        step = len(state.text.splitlines())
        words = state.request.prompt.split()
        return f"{words[step // 4]} {step}" if step < 4 * len(words) else None

    def extend(self, state: TextState, hits: Hits, progress: Progress) -> TextState:
        self.given.append(hits)
        return state.append(f"{hits[0].passage.id} {hits[0].score}\n")


PROMPT = "fox whale cat"
LATENCIES = Latencies(extend_s=0.025, search_s=lambda _: 0.05, encode_s=0.15, stop_s=0.005)


def simulated(workload: Chapters, **chosen: Any) -> Any:
    settings = Settings(schedule=Continuous(lanes=8), **chosen)
    return Simulation(workload, Topics(), LATENCIES, settings).run(PROMPT)


def test_by_default_it_guesses_while_a_query_is_being_encoded() -> None:
    """12 steps of 0.225 s; where the topic stays, encoding and search are hidden."""
    expected = plain(Chapters(), Topics(), PROMPT)
    answer = simulated(Chapters())
    without = simulated(Chapters(), speculators=[PassageCache(Topics())])

    assert answer == without == expected
    assert simulated(Chapters(), speculate=False).stats.wall_s == pytest.approx(12 * 0.225)
    assert answer.stats.accepted >= 5
    # Each topic's first passage is waited for; its other segments are written beside that.
    assert answer.stats.wall_s <= 3 * (0.2 + 4 * 0.025) + 12 * 0.05
    assert without.stats.wall_s >= 12 * 0.15


def test_a_shared_pool_has_it_too() -> None:
    """A pool of all requests guesses by the encoding."""
    answer = simulated(Chapters(), pool=SharedPassageCache())

    assert answer == plain(Chapters(), Topics(), PROMPT)
    assert answer.stats.accepted >= 5


class Inline(Topics):
    """Encodes inside the loop."""

    inline_encode = True


@pytest.mark.parametrize(
    ("workload", "retriever"),
    [(Chapters(reads_scores=True), Topics()), (Chapters(), Inline())],
    ids=["scores are read", "nothing is hidden"],
)
def test_it_is_left_out_where_it_could_not_help(workload: Chapters, retriever: Topics) -> None:
    """A score belongs to its query; and without an encoding to wait for the cache is better."""
    with Engine(workload, retriever) as engine:
        [speculator] = engine._session._own_speculators()

    assert isinstance(speculator, PassageCache)


class Awaited(Topics):
    """Has an asynchronous encoder."""

    async def aencode(self, text: str) -> Query:
        return self.encode(text)


async def _on_asyncio(retriever: Topics) -> tuple[Answer, AsyncEngine]:
    async with AsyncEngine(Chapters(), retriever) as engine:
        return await engine.run(PROMPT), engine


@pytest.mark.parametrize("awaited", [True, False])
@pytest.mark.parametrize("computes", [True, False])
def test_it_makes_no_guess_while_this_process_encodes(
    computes: bool, awaited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an encoder computes here delays what is written meanwhile; what is awaited does not."""
    monkeypatch.setattr(encoder_time, "SAMPLED_S", 0.0)
    monkeypatch.setattr(EncoderTime, "computes_here", property(lambda _: computes))
    guesses: list[Hits | None] = []
    guess = Repetition.guess_after

    def watched(self: Repetition, query: Query, previous: Hits) -> Hits | None:
        guesses.append(guess(self, query, previous))
        return guesses[-1]

    monkeypatch.setattr(Repetition, "guess_after", watched)
    if awaited:
        answer, engine = asyncio.run(_on_asyncio(Awaited()))
        assert engine._session.costs.encoder._by_process
    else:
        with Engine(Chapters(), Topics()) as threads:
            answer = threads.run(PROMPT)
        assert threads._session.costs.encoder._by_thread

    assert answer == plain(Chapters(), Topics(), PROMPT)
    assert guesses
    assert any(guesses) is not computes


def test_requests_share_nothing_by_it() -> None:
    """One object for all requests: each is given its own passages only, also on wrong guesses."""
    workloads = {prompt: Chapters() for prompt in ("fox whale", "cat dog")}
    shared = Repetition()
    for prompt, workload in workloads.items():
        settings = Settings(speculators=[shared])
        with Engine(workload, Topics(), settings) as engine:
            answers = [
                engine.run(prompt), *engine.batch([prompt] * 4),
            ]  # fmt: skip
        assert len(answers[0].text.splitlines()) == 8
        assert answers == [plain(Chapters(), Topics(), prompt)] * 5

    for prompt, workload in workloads.items():
        seen = {hit.passage.id for hits in workload.given for hit in hits}
        assert seen == set(prompt.split())


def test_a_slow_speculator_is_told_the_step_before_too() -> None:
    """`guess_after` in a worker receives the hits that a guess of the step before has given."""
    told: list[Hits] = []

    class Slow(Repetition):
        inline = False

        def guess_after(self, query: Query, previous: Hits) -> Hits | None:
            told.append(previous)
            return super().guess_after(query, previous)

    answer = simulated(Chapters(), speculators=[Slow()])

    assert answer == plain(Chapters(), Topics(), PROMPT)
    assert {hits[0].passage.id for hits in told} == {"fox", "whale", "cat"}
    assert {hits[0].score for hits in told} == {None}
