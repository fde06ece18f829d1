"""The loop, case by case, in virtual time: what is searched, dropped, taken back, and when."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

import ralmspec_plugins
from ralmspec_plugins import (
    Continuous,
    FixedStride,
    Hit,
    Hits,
    Latencies,
    OptimalStride,
    Passage,
    Query,
    QueryCache,
    Request,
    Settings,
    Simulation,
)
from ralmspec_plugins.errors import ConfigError, DeadlineExceeded
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Outcome, Span, Stats

STEPS = 8


class Counting:
    """Writes one letter a step, from the passage that it is given; asks for the step's number."""

    inline_query = True
    reads_scores = False

    def __init__(self, heeds: bool = True) -> None:
        self._heeds = heeds

    def start(self, request: Request) -> str:
        return ""

    def query(self, state: str) -> str | None:
        return f"{len(state)}" if len(state) < STEPS else None

    def extend(self, state: str, hits: Hits, progress: Progress) -> str:
        if hits[0].passage.text == "!":
            raise MemoryError("this passage is too long")
        return state + (hits[0].passage.text if self._heeds else "x")

    def text(self, state: str) -> str:
        return state

    def settled(self, state: str) -> str:
        return state

    def query_key(self, state: str) -> str:
        return state

    def extend_key(self, state: str, hits: Hits) -> tuple[str, Hits]:
        return state, hits

    def release(self, state: str) -> None:
        """Nothing is kept."""


class Numbered:
    """Finds passage n, whose text is the n-th letter, for the question n."""

    inline_encode = True
    signature = "numbered"

    def __init__(self, failing: str = "") -> None:
        self._failing = failing
        self.searched: list[str] = []

    def encode(self, text: str) -> Query:
        return Query(text)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        self.searched += [query.text for query in queries]
        if any(query.text == self._failing for query in queries):
            raise ConnectionError("the store is down")
        return [(hit(int(query.text)),) for query in queries]


def hit(number: int) -> Hit:
    return Hit(Passage(f"p{number}", "abcdefgh"[number]), float(number))


class Guesser:
    """Guesses right, but for the given questions."""

    inline = True

    def __init__(self, wrong: dict[int, Hit] | None = None) -> None:
        self._wrong = wrong or {}

    def guess(self, query: Query) -> Hits:
        number = int(query.text)
        return (self._wrong.get(number, hit(number)),)

    def learn(self, query: Query, hits: Hits) -> None:
        """It knows."""


def simulate(
    guesser: Guesser,
    settings: Settings,
    *,
    search_s: float = 4.0,
    workload: Counting | None = None,
    retriever: Numbered | None = None,
) -> tuple[str, Stats]:
    """Answer in virtual time, a step taking 1 second."""
    latencies = Latencies(extend_s=1.0, search_s=lambda _: search_s)
    settings = replace(settings, speculators=(guesser,))
    parts = workload or Counting(), retriever or Numbered()
    answer = Simulation(*parts, latencies, settings).run("")
    return answer.text, answer.stats


def test_the_first_guess_hides_the_first_search() -> None:
    """With right guesses and free lanes: 7 steps, then the last step's search of 4 seconds."""
    text, stats = simulate(Guesser(), Settings(schedule=Continuous(lanes=STEPS)))

    assert text == "abcdefgh"
    assert stats.wall_s == STEPS - 1 + 4.0
    assert stats.guesses == stats.accepted == STEPS
    assert stats.wasted_segments == 0


def test_one_lane_batches_what_was_written_meanwhile() -> None:
    """The first query goes out alone at 0; at 4 the next three are there; at 8 the last four."""
    _, stats = simulate(Guesser(), Settings(schedule=Continuous()))

    assert stats.batch_sizes == (1, 3, 4)
    assert stats.wall_s == 12.0


def test_a_fixed_stride_takes_the_papers_time() -> None:
    """Rounds of 3: [2 steps, search] then [1 verified + 2 steps, search] until 8 are written.

    0-2 two steps, search to 6; 6-9 three steps, search to 13; 13-16 the last three; 16-20
    the search of the two that were guessed.
    """
    _, stats = simulate(Guesser(), Settings(schedule=FixedStride(stride=3)))

    assert stats.batch_sizes == (3, 3, 2)
    assert stats.wall_s == 20.0


def test_a_wrong_guess_is_written_again() -> None:
    """What was written from the wrong passage on is dropped, and counted as wasted."""
    guesser = Guesser({3: hit(0)})
    text, stats = simulate(guesser, Settings(schedule=Continuous(lanes=STEPS)))

    assert text == "abcdefgh"
    assert stats.guesses - stats.accepted == 1
    assert stats.wasted_segments > 0
    assert stats.reused == 0


def test_dropped_steps_are_taken_back_when_the_text_is_the_same() -> None:
    """A wrong passage that did not change the text costs its own segment and the one under way."""
    guesser = Guesser({3: hit(0)})
    _, stats = simulate(
        guesser, Settings(schedule=Continuous(lanes=STEPS)), workload=Counting(False)
    )

    assert stats.reused > 0
    assert stats.wasted_segments == 2


def test_what_was_searched_for_a_dropped_step_is_remembered() -> None:
    """Questions that come up again after a rewrite are not searched again."""
    retriever = Numbered()
    simulate(Guesser({1: hit(0)}), Settings(schedule=Continuous(lanes=8)), retriever=retriever)

    assert sorted(retriever.searched) == sorted(set(retriever.searched))


def test_an_error_on_a_wrong_guess_never_happened() -> None:
    """A wrong passage that breaks the writing is a wrong guess like any other."""
    guesser = Guesser({4: Hit(Passage("p9", "!"), 0.0)})
    text, stats = simulate(guesser, Settings(schedule=Continuous(lanes=8)))

    assert text == "abcdefgh"
    assert stats.retries == 0
    assert [span.outcome for span in stats.timeline].count(Outcome.FAILED) == 1


def test_a_failed_search_is_tried_once_more_alone() -> None:
    """An error while other work runs may be its fault: alone, it counts."""
    retriever = Numbered(failing="2")
    with pytest.raises(ConnectionError, match="the store is down"):
        simulate(Guesser(), Settings(schedule=Continuous(lanes=8)), retriever=retriever)

    assert retriever.searched.count("2") == 2


def test_an_error_of_the_plain_loops_own_is_raised_at_once() -> None:
    """The first search runs alone when there is no guess: its error needs no second try."""
    retriever = Numbered(failing="0")
    latencies = Latencies()
    with pytest.raises(ConnectionError):
        Simulation(Counting(), retriever, latencies, Settings(speculators=())).run("")

    assert retriever.searched == ["0"]


def test_a_shared_memo_answers_without_a_search() -> None:
    """The second request asks the same questions: all of them are remembered."""
    memo, retriever = QueryCache(), Numbered()
    settings = Settings(memo=memo)
    simulate(Guesser(), settings, retriever=retriever)
    searched = len(retriever.searched)
    text, stats = simulate(Guesser(), settings, retriever=retriever)

    assert text == "abcdefgh"
    assert stats.searches == 0
    assert stats.remembered == STEPS
    assert searched == len(retriever.searched)


def test_plainly_nothing_runs_ahead() -> None:
    """Without speculation each search waits for the step before it, and back."""
    _, stats = simulate(Guesser(), Settings(speculate=False))

    assert stats.wall_s == STEPS * (1.0 + 4.0)
    assert stats.batch_sizes == (1,) * STEPS
    assert not any(span.ahead for span in stats.timeline)


def test_overlap_is_measured_from_the_spans() -> None:
    """Writing 0-3 and 4-5, searching 1-4: both go on from 1 to 3."""
    spans = (Span("extend", 0, 3), Span("search", 1, 4), Span("extend", 4, 5))
    stats = Stats(timeline=spans)

    assert (stats.write_s, stats.search_s, stats.overlap_s) == (4.0, 3.0, 2.0)


class Asking(Counting):
    """Asks the same question at every step."""

    def query(self, state: str) -> str | None:
        return "0" if len(state) < STEPS else None


def test_equal_questions_fill_a_round_too() -> None:
    """A round counts steps, not different queries: the same question ends it as well."""
    settings = Settings(schedule=FixedStride(stride=3))
    text, stats = simulate(Guesser(), settings, workload=Asking())

    assert text == "a" * STEPS
    assert stats.searches == stats.queries == 1
    assert stats.wall_s == 2 + 4.0 + STEPS - 2


class Unkeyed(Counting):
    """Asks with encodings, all under one text."""

    def query(self, state: str) -> Query | None:  # type: ignore[override]
        return Query("", encoding=len(state)) if len(state) < STEPS else None


class ByEncoding(Numbered):
    """Searches by the encoding."""

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        return [(hit(query.encoding),) for query in queries]


def test_queries_of_one_text_are_not_taken_for_each_other() -> None:
    """A query that brings an encoding and no key equals no other query."""
    parts = Unkeyed(), ByEncoding()
    answer = Simulation(*parts, Latencies(), Settings(speculators=())).run("")

    assert answer.text == "abcdefgh"


def test_a_deadline_holds_in_virtual_time() -> None:
    """A simulated request past its deadline ends as a real one would."""
    simulation = Simulation(Counting(), Numbered(), Latencies(), Settings(speculators=()))
    with pytest.raises(DeadlineExceeded):
        simulation.run(Request(prompt="", deadline_s=3.0))


class Narrow(Numbered):
    """Refuses to be searched wide."""

    k = 1

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        raise ValueError("at most one, please")


def test_a_wide_search_that_fails_is_not_the_users_failure() -> None:
    """Where the plain search works, its result counts, and the wide one is given up."""
    retriever = Narrow()
    answer = Simulation(Counting(), retriever, Latencies(), Settings(speculators=())).run("")

    assert answer.text == "abcdefgh"
    assert answer.stats.retries == 0


def test_what_cannot_be_compared_differs() -> None:
    """Arrays in metadata have no truth value; the guess is then wrong, the answer right."""
    array = np.array([1.0, 2.0])

    class Marked(Numbered):
        def search(self, queries: Sequence[Query]) -> list[Hits]:
            return [
                (Hit(Passage(h.passage.id, h.passage.text, metadata={"v": array.copy()}), 0.0),)
                for (h,) in super().search(queries)
            ]

    class Marking(Guesser):
        def guess(self, query: Query) -> Hits:
            (h,) = super().guess(query)
            return (Hit(Passage(h.passage.id, h.passage.text, metadata={"v": array}), 0.0),)

    text, stats = simulate(Marking(), Settings(), retriever=Marked())

    assert text == "abcdefgh"
    assert stats.accepted == 0


class Crowded(Counting):
    """Has memory for few states: those before the last release count."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self._kept: set[str] = set()

    def extend(self, state: str, hits: Hits, progress: Progress) -> str:
        self._kept.add(state)
        if len(self._kept) > self._room:
            raise MemoryError("no room for another state")
        return super().extend(state, hits, progress)

    def release(self, state: str) -> None:
        self._kept.clear()


def test_memory_taken_by_running_ahead_is_freed_before_an_error_counts() -> None:
    """The plain loop has room; so, after a release, has the speculative one."""
    guesser = Guesser({number: hit(0) for number in range(1, STEPS)})
    workload = Crowded(room=STEPS)
    text, stats = simulate(guesser, Settings(schedule=Continuous(lanes=8)), workload=workload)

    assert text == "abcdefgh"
    assert stats.segments == STEPS


def test_searching_and_writing_slow_each_other_down_in_virtual_time() -> None:
    """One search of 4 seconds and 7 steps of 1 second share a machine: 11 seconds of work.

    The first guess is right, so writing begins at once, beside the search: 4 seconds
    of each take 8; then 3 more steps take 3.
    """
    latencies = Latencies(extend_s=1.0, search_s=lambda _: 4.0, contention=1.0)
    guesser = Guesser()
    settings = Settings(schedule=Continuous(lanes=1, window=64), speculators=(guesser,))
    stats = Simulation(Counting(), Numbered(), latencies, settings).run("").stats
    first = next(span for span in stats.timeline if span.kind == "search")
    second, third = [span for span in stats.timeline if span.kind == "extend"][:2]

    assert (0.0, 8.0) == (first.started_s, first.ended_s)
    assert (2.0, 4.0) == (second.ended_s, third.ended_s)


def test_contention_that_was_measured_is_allowed_for() -> None:
    """On a full machine, waiting for batches beats searching early, over several requests."""
    walls = {}
    for measured in (True, False):
        latencies = Latencies(extend_s=1.0, search_s=lambda n: 4.0 + 0.2 * n, contention=1.0)
        simulation = Simulation(
            Counting(), Numbered(), latencies, Settings(speculators=(Guesser(),))
        )
        if not measured:
            simulation._session.costs.contention.ENOUGH = 10**6
        walls[measured] = sum(simulation.run("").stats.wall_s for _ in range(20))

    assert walls[True] < 0.9 * walls[False]


@pytest.mark.parametrize("inline", [True, False])
def test_an_optimal_stride_is_found_wherever_guesses_are_made(inline: bool) -> None:
    """Inside the loop or in a worker: all guesses are right, so many go out together."""
    guesser = Guesser()
    guesser.inline = inline
    settings = Settings(schedule=OptimalStride(overlap=False), speculators=(guesser,))
    text, stats = simulate(guesser, settings, search_s=40.0)

    assert text == "abcdefgh"
    assert max(stats.batch_sizes) > 2


@pytest.mark.parametrize("contention", [-1.0, float("nan")])
def test_a_contention_without_a_meaning_is_refused(contention: float) -> None:
    """Work cannot be sped up by other work."""
    with pytest.raises(ConfigError, match="contention"):
        Latencies(contention=contention)


def test_the_public_names_are_these() -> None:
    """What `__all__` names is public; a change here is a change for users."""
    assert len(ralmspec_plugins.__all__) == len(set(ralmspec_plugins.__all__))
    assert set(ralmspec_plugins.__all__) == {
        *("Answer", "AnswerStream", "AsyncAnswerStream", "AsyncEngine"),
        *("AsyncEventStream", "Continuous", "Engine", "EventStream"),
        *(
            "FixedStride",
            "Formed",
            "Hit",
            "Hits",
            "NO_RETRIEVAL",
            "Latencies",
            "ModelQueue",
            "QueryCache",
            "OptimalStride",
            "Passage",
        ),
        *(
            "PassageCache",
            "Query",
            "QueryCache",
            "Repetition",
            "Replica",
            "Request",
            "Retrieved",
            "Settings",
            "Simulation",
        ),
        *("SharedPassageCache", "Stats", "Verifier", "VerifierStats", "WasteShare", "plain"),
        *("Interval", "Retriever", "Workload", "open_retriever"),
    }
    assert set(ralmspec_plugins.__all__) <= set(dir(ralmspec_plugins))
