"""Parts of one's own: what they may leave out, what is refused, and what they gain."""

import asyncio
import logging
from collections import UserList
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from ralmspec_plugins import (
    NO_RETRIEVAL,
    Answer,
    AsyncEngine,
    Continuous,
    Engine,
    FixedStride,
    Formed,
    Hit,
    Hits,
    Latencies,
    Passage,
    PassageCache,
    Query,
    QueryCache,
    Replica,
    Request,
    Settings,
    SharedPassageCache,
    Simulation,
    Verifier,
    plain,
)
from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.scheduling.cost_model import Costs
from ralmspec_plugins.testing import EchoWorkload, WordRetriever
from ralmspec_plugins.workloads import TextState, TextWorkload

TOPICS = ["red fox", "blue whale", "green frog", "grey owl"]
PROMPT = " ".join(f"{TOPICS[n % 4].split()[n % 2]}" for n in range(32))


class Mine(TextWorkload[TextState]):
    """Two methods: the n-th word of the prompt is looked up for the n-th line."""

    def query(self, state: TextState) -> str | None:
        words, lines = state.request.prompt.split(), state.text.count("\n")
        return f"{words[lines]} {lines}" if lines < len(words) else None

    def extend(self, state: TextState, hits: Hits) -> TextState:
        return state.append(f"{hits[0].passage.text if hits else 'nothing'}\n")


class Streamed(Mine):
    append_only = True


class OnlySearch:
    """One method: the passage that shares a word with the query."""

    def __init__(self) -> None:
        self.searched = 0

    def search(self, queries: Sequence[Query]) -> Any:
        self.searched += len(queries)
        return [self.found(query) for query in queries]

    def found(self, query: Query) -> Any:
        words = set(query.text.split())
        return [Hit(Passage(f"p{n}", t)) for n, t in enumerate(TOPICS) if words & set(t.split())]


class ThreeMethods(OnlySearch):
    """Its queries are vectors: one dimension for each topic."""

    k = 1
    signature = "mine"

    def encode(self, text: str) -> Query:
        words = set(text.split())
        return Query(text, [float(len(words & set(topic.split()))) for topic in TOPICS])


def in_threads(workload: Any, retriever: Any, settings: Settings | None = None) -> Answer:
    with Engine(workload, retriever, settings) as engine:
        return engine.run(PROMPT)


def in_a_batch(workload: Any, retriever: Any, settings: Settings | None = None) -> Answer:
    with Engine(workload, retriever, settings) as engine:
        return engine.batch([PROMPT] * 3)[1]


def in_a_stream(workload: Any, retriever: Any, settings: Settings | None = None) -> Answer:
    with Engine(workload, retriever, settings) as engine:
        stream = engine.stream(PROMPT)
        pieces = list(stream)
        assert "".join(pieces) == stream.answer.text
        assert (len(pieces) > 1) is workload.append_only
        return stream.answer


def in_tasks(workload: Any, retriever: Any, settings: Settings | None = None) -> Answer:
    async def main() -> Answer:
        async with AsyncEngine(workload, retriever, settings) as engine:
            return await engine.run(PROMPT)

    return asyncio.run(main())


def in_virtual_time(workload: Any, retriever: Any, settings: Settings | None = None) -> Answer:
    return Simulation(workload, retriever, Latencies(), settings).run(PROMPT)


@pytest.mark.parametrize("run", [in_threads, in_a_batch, in_a_stream, in_tasks, in_virtual_time])
@pytest.mark.parametrize("workload", [Mine(), Streamed()])
@pytest.mark.parametrize("retriever", [OnlySearch, ThreeMethods])
def test_two_methods_and_one_are_enough(
    run: Callable[..., Answer], workload: Any, retriever: Callable[[], Any]
) -> None:
    """On every engine, with the plain answer, and with guesses."""
    expected = plain(workload, retriever(), PROMPT)
    answer = run(workload, retriever(), Settings(schedule=FixedStride(stride=2)))

    assert expected == answer
    assert 32 == len(answer.text.splitlines())
    assert expected.retrieved == answer.retrieved
    if run is not in_a_batch:
        assert answer.stats.accepted > 0


@pytest.mark.parametrize("retriever", [OnlySearch, ThreeMethods])
def test_a_store_50_ms_away_gains_three_times(retriever: Callable[[], Any]) -> None:
    """In virtual time: steps of 5 ms, round trips of 50 ms, passages that come again."""
    latencies = Latencies(extend_s=0.005, search_s=lambda n: 0.05 + 0.0005 * n)
    wall_s = {}
    for speculate in (False, True):
        simulation = Simulation(Mine(), retriever(), latencies, Settings(speculate=speculate))
        wall_s[speculate] = simulation.run(PROMPT).stats.wall_s

    assert wall_s[False] > 3 * wall_s[True]


def test_guesses_that_are_never_right_are_given_up() -> None:
    """A retriever whose passages never come again is soon searched as by the plain loop."""

    class Fresh(OnlySearch):
        def found(self, query: Query) -> Any:
            return [Hit(Passage(query.text, query.text))]

    latencies = Latencies(extend_s=1.0, search_s=lambda _: 1.0, stop_s=1.0)
    simulation = Simulation(Mine(), Fresh(), latencies)
    answers = [simulation.run(PROMPT) for _ in range(3)]

    assert answers[-1].stats.wasted_segments == 0
    assert answers[-1].stats.unguessed == "speculative segments would not have paid off"
    assert answers[-1].text == plain(Mine(), Fresh(), PROMPT).text


def test_retrievers_without_signatures_share_nothing() -> None:
    """Each is its own signature; the same one is itself."""
    one, other = OnlySearch(), OnlySearch()
    pool: Any = PassageCache(one)  # type: ignore[arg-type]
    with Engine(Mine(), one, Settings(speculators=[pool])) as engine:  # type: ignore[arg-type]
        engine.run("red")
    with pytest.raises(ConfigError, match="make one for each"):
        Engine(Mine(), other, Settings(speculators=[pool]))  # type: ignore[arg-type]
    with Verifier(one) as verifier:  # type: ignore[arg-type]
        assert verifier.signature == pool.signature
        assert verifier.search([verifier.encode("red")]) == [tuple(one.found(Query("red")))]


@pytest.mark.parametrize("shape", [list, tuple, UserList])
def test_a_search_may_return_any_sequence(shape: Callable[[Any], Any]) -> None:
    """Of results, and each of hits; they are copied, so later changes do not matter."""

    class Store(OnlySearch):
        def search(self, queries: Sequence[Query]) -> Any:
            self.kept = shape([shape(self.found(query)) for query in queries])
            return self.kept

    store = Store()
    expected = plain(Mine(), OnlySearch(), PROMPT)  # type: ignore[arg-type]
    assert expected == plain(Mine(), store, PROMPT)  # type: ignore[arg-type]
    assert expected == in_threads(Mine(), store)


def test_hits_are_not_those_that_the_retriever_keeps() -> None:
    """A list that the store changes afterwards changes neither record nor memo nor guesses."""

    class Reusing(WordRetriever):
        """Gives out the same list each time."""

        def __init__(self) -> None:
            super().__init__(TOPICS)
            self.out: list[Hit] = []

        def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
            found = []
            for hits in super().search_wide(queries, width):
                self.out[:] = hits
                found.append(self.out if len(queries) == 1 else hits)
            return found

    expected = plain(EchoWorkload(), WordRetriever(TOPICS), PROMPT)
    for settings in (Settings(), Settings(speculate=False)):
        with Engine(EchoWorkload(), Reusing(), settings) as engine:
            answer = engine.run(PROMPT)
        assert expected == answer
        assert all(isinstance(step.hits, tuple) for step in answer.retrieved)
    assert all(isinstance(one.hits, tuple) for one in plain(Mine(), Reusing(), "red").retrieved)


def test_a_guess_of_a_list_can_be_right() -> None:
    """Lists and tuples of equal hits are the same guess."""

    class Lists:
        inline = True

        def guess(self, query: Query) -> Hits:
            return list(OnlySearch().found(query))

        def learn(self, query: Query, hits: Hits) -> None:
            """It knows."""

    settings = Settings(speculators=[Lists()])
    answer = Simulation(Mine(), OnlySearch(), Latencies(), settings).run("red blue")  # type: ignore[arg-type]

    assert answer.stats.accepted == answer.stats.guesses > 0


@pytest.mark.parametrize("nonsense", [None, [None], "zz", 5, iter(())])
def test_a_result_that_is_none_is_refused_alike(nonsense: Any) -> None:
    """The same clear error from the plain loop and the engines."""

    class Store(OnlySearch):
        def found(self, query: Query) -> Any:
            return nonsense

    class Whole(OnlySearch):
        def search(self, queries: Sequence[Query]) -> Any:
            return nonsense

    for store in (Store(), Whole()):
        if nonsense == "zz" and isinstance(store, Whole):
            continue
        for run in (in_threads, in_tasks, in_virtual_time):
            if nonsense is not None and not isinstance(nonsense, list | str | int):
                continue  # an iterator that is empty is an empty result
            with pytest.raises(InputError):
                run(Mine(), store)
            with pytest.raises(InputError):
                plain(Mine(), store, PROMPT)  # type: ignore[arg-type]


def test_nonsense_for_a_question_of_a_wrong_guess_never_happened() -> None:
    """Only a question that the plain loop asks can fail it."""

    class Store(OnlySearch):
        def found(self, query: Query) -> Any:
            return "zz" if query.text.endswith("!") else super().found(query)

    class Jumping(Mine):
        def query(self, state: TextState) -> str | None:
            if state.text.startswith(TOPICS[3]):
                return "wrong !" if state.text.count("\n") < 4 else None
            return super().query(state)

    class Wrong:
        inline = True

        def guess(self, query: Query) -> Hits:
            return (Hit(Passage("p3", TOPICS[3])),)

        def learn(self, query: Query, hits: Hits) -> None:
            """It does not."""

    settings = Settings(schedule=FixedStride(stride=3, overlap=True), speculators=[Wrong()])
    expected = plain(Jumping(), Store(), "red blue red")  # type: ignore[arg-type]
    answer = Simulation(Jumping(), Store(), Latencies(), settings).run("red blue red")  # type: ignore[arg-type]

    assert expected == answer
    assert answer.stats.queries > 3


class Reading(TextWorkload[TextState]):
    """Writes all that it reads of its hits."""

    reads_scores = True

    def query(self, state: TextState) -> str | None:
        number = state.text.count("\n")
        return f"question {number}" if number < 4 else None

    def extend(self, state: TextState, hits: Hits) -> TextState:
        read = [(hit.score, hit.passage.text, dict(hit.passage.metadata)) for hit in hits]
        return state.append(f"{read!r}\n")


@dataclass(frozen=True)
class Origin:
    """Where a passage is from."""

    page: int


class Always(OnlySearch):
    """Finds the same, whatever is asked; as a speculator, it guesses that."""

    inline = True

    def __init__(self, score: Any, metadata: Any) -> None:
        super().__init__()
        self.hit = Hit(Passage("p", "text", metadata=metadata), score)

    def found(self, query: Query) -> Any:
        return (self.hit,)

    guess = found

    def learn(self, query: Query, hits: Hits) -> None:
        """It does not."""


@pytest.mark.parametrize(
    ("truth", "guess"),
    [
        ((-0.0, {}), (0.0, {})),
        ((1.0, {}), (True, {})),
        ((1.0, {}), (1, {})),
        ((1.0, {}), (np.float32(1), {})),
        ((np.float32(-0.0), {}), (np.float32(0.0), {})),
        ((1.0, {"a": 1, "b": 2}), (1.0, {"b": 2, "a": 1})),
        ((1.0, {"a": 1}), (1.0, {"a": True})),
        ((1.0, {"a": [1, {"b": (0.0,)}]}), (1.0, {"a": [1, {"b": (-0.0,)}]})),
        ((1.0, {"a": Decimal("1.0")}), (1.0, {"a": Decimal("1")})),
        ((1.0, {"a": {8, 0}}), (1.0, {"a": {0, 8}})),  # they collide: the first one stands first
        ((1.0, {"a": Origin(1)}), (1.0, {"a": Origin(True)})),
        ((1.0, {"a": np.array([0.0])}), (1.0, {"a": np.array([-0.0])})),
        ((1.0, {"a": np.array([1.0])}), (1.0, {"a": np.array([1])})),
        ((1.0, {"a": np.array([1], object)}), (1.0, {"a": np.array([True], object)})),
        (
            (1.0, {"a": datetime(2026, 1, 1, 12, tzinfo=UTC)}),
            (1.0, {"a": datetime(2026, 1, 1, 13, tzinfo=timezone(timedelta(hours=1)))}),
        ),
    ],
)
@pytest.mark.parametrize("run", [in_threads, in_tasks, in_virtual_time])
def test_a_guess_that_is_equal_and_read_differently_is_wrong(
    run: Callable[..., Answer], truth: Any, guess: Any
) -> None:
    """Text and record are those of what was found, also where the dropped steps come again."""
    settings = Settings(schedule=FixedStride(stride=3, overlap=True), speculators=[Always(*guess)])
    store = Always(*truth)
    expected = plain(Reading(), store, PROMPT)  # type: ignore[arg-type]
    answer = run(Reading(), store, settings)

    assert Always(*truth).hit == Always(*guess).hit
    assert expected.text == answer.text
    assert repr(expected.retrieved) == repr(answer.retrieved)
    assert answer.stats.guesses > 0 == answer.stats.accepted
    settings = Settings(schedule=FixedStride(stride=3), speculators=[Always(*truth)])
    assert run(Reading(), store, settings).stats.accepted > 0


class FailingError(Exception):
    """A state that is an exception."""

    def __init__(self, lines: int = 0) -> None:
        super().__init__(lines)
        self.lines = lines


class Exceptional(TextWorkload[FailingError]):
    """Keeps its state in an exception."""

    def start(self, request: Request) -> FailingError:
        return FailingError()

    def query(self, state: FailingError) -> str | None:
        return "red" if state.lines < 3 else None

    def extend(self, state: FailingError, hits: Hits) -> FailingError:
        return FailingError(state.lines + 1)

    def text(self, state: FailingError) -> str:
        return "x" * state.lines

    def settled(self, state: FailingError) -> str:
        return ""


class Awaited(Exceptional):
    """The same, awaited."""

    async def aextend(self, state: FailingError, hits: Hits) -> FailingError:
        return self.extend(state, hits)


@pytest.mark.parametrize("run", [in_threads, in_tasks, in_virtual_time])
@pytest.mark.parametrize("workload", [Exceptional(), Awaited()])
def test_a_state_that_is_an_exception_is_a_state(run: Callable[..., Answer], workload: Any) -> None:
    """It was returned, not raised."""
    expected = plain(workload, OnlySearch(), PROMPT)  # type: ignore[arg-type]

    assert expected.text == run(workload, OnlySearch()).text == "xxx"


class Bare:
    """Not derived from anything."""

    def query(self, state: Any) -> None:
        return None

    def extend(self, state: Any, hits: Hits, progress: Progress) -> Any:
        return state


class Incomplete(TextWorkload[TextState]):
    def query(self, state: TextState) -> None:
        return None


@pytest.mark.parametrize(
    ("workload", "retriever", "missing"),
    [
        (Bare(), OnlySearch(), "start, text, settled.*TextWorkload"),
        (Incomplete(), OnlySearch(), "Incomplete has no extend;"),
        (Mine(), object(), "object has no search"),
        (Mine(), Any, "encode_lanes"),
    ],
)
def test_what_is_missing_is_refused_when_an_engine_is_made(
    workload: Any, retriever: Any, missing: str
) -> None:
    """And by the plain loop."""
    if retriever is Any:
        retriever = OnlySearch()
        retriever.encode_lanes = 0
    for make in (Engine, AsyncEngine, lambda *parts: plain(*parts, "x")):
        with pytest.raises(ConfigError, match=missing):
            make(workload, retriever)


class Impure(OnlySearch):
    pure = False


class NoIdea:
    inline = True

    def guess(self, query: Query) -> None:
        return None

    def learn(self, query: Query, hits: Hits) -> None:
        """It does not."""


@pytest.mark.parametrize(
    ("retriever", "settings", "why"),
    [
        (OnlySearch, Settings(), None),
        (OnlySearch, Settings(speculate=False), "speculation is switched off"),
        (OnlySearch, Settings(speculators=()), "no speculators were given"),
        (OnlySearch, Settings(speculators=[NoIdea()]), "no speculator had a guess"),
        (Impure, Settings(), "the retriever is not pure"),
    ],
)
def test_the_statistics_say_why_nothing_is_guessed(
    retriever: Any, settings: Settings, why: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """And one line of the log for each engine."""
    caplog.set_level(logging.INFO, "ralmspec_plugins")
    simulation = Simulation(Mine(), retriever(), Latencies(), settings)
    answers = [simulation.run(PROMPT), simulation.run(PROMPT)]

    assert [why, why] == [answer.stats.unguessed for answer in answers]
    assert len(caplog.records) == (why is not None)


def test_the_statistics_name_the_reason_of_the_latest_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step has an empty cache; by the second one the search is known to be too quick."""
    monkeypatch.setattr(Costs, "WORTH_GUESSING", 0.05)  # as it is without tests/conftest.py
    latencies = Latencies(extend_s=1.0, search_s=lambda _: 0.001)
    answer = Simulation(Mine(), OnlySearch(), latencies).run(PROMPT)

    assert 32 == answer.stats.queries
    assert answer.stats.unguessed == "guessing would not have paid off"


@pytest.mark.parametrize("speculate", [True, False])
def test_nothing_is_missed_where_nothing_is_searched(speculate: bool) -> None:
    """Without a search there was nothing to guess, whatever the settings say."""

    class Never(Mine):
        def query(self, state: TextState) -> Any:
            return None if state.text else NO_RETRIEVAL

    answer = in_threads(Never(), OnlySearch(), Settings(speculate=speculate))

    assert answer.text == "nothing\n"
    assert answer.stats.unguessed is None


def test_any_number_of_speculators_is_asked_in_order_and_all_learn() -> None:
    """The first that answers is used."""

    class Noting:
        inline = True

        def __init__(self, answers: bool) -> None:
            self.answers = answers
            self.asked: list[str] = []
            self.learnt: list[str] = []

        def guess(self, query: Query) -> Hits | None:
            self.asked.append(query.text)
            return tuple(OnlySearch().found(query)) if self.answers else None

        def learn(self, query: Query, hits: Hits) -> None:
            self.learnt.append(query.text)

    three = [Noting(False), Noting(True), Noting(True)]
    answer = Simulation(
        Mine(),
        OnlySearch(),
        Latencies(),
        Settings(speculators=three),  # type: ignore[arg-type]
    ).run("red blue")

    assert answer.stats.accepted == 2
    assert three[0].asked == three[1].asked == ["red 0", "blue 1"]
    assert three[2].asked == []
    assert [["red 0", "blue 1"]] * 3 == [sorted(one.learnt, key=lambda t: t[-1]) for one in three]


class Nameless:
    """A retriever without a signature, and with a pool's table and wide searches."""

    def __init__(self, own: WordRetriever) -> None:
        self._own = own
        self.search, self.search_wide, self.table = own.search, own.search_wide, own.table

    @property
    def k(self) -> int:
        return self._own.k


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("wrap", [Nameless, Verifier])
def test_k_is_read_when_a_request_runs(wrap: Callable[[Any], Any], at_once: int) -> None:
    """What stands before a retriever reads it anew, as its search does: it may be set meanwhile."""
    own = WordRetriever([f"red fox {n}" for n in range(5)], k=3)
    wrapped = wrap(own)
    with Engine(EchoWorkload(), wrapped) as engine:
        before = engine.batch([PROMPT] * at_once)[-1]
        own.k = 2
        answer = engine.batch([PROMPT] * at_once)[-1]
    if isinstance(wrapped, Verifier):
        wrapped.close()

    expected = plain(EchoWorkload(), own, PROMPT)
    assert (answer.text, answer.retrieved) == (expected.text, expected.retrieved)
    assert [len(one.retrieved[0].hits) for one in (before, answer)] == [3, 2]


class CarriesOn(EchoWorkload):
    """Hands something on with each query, which only its awaited writing takes."""

    async def aextend(self, state: Any, hits: Hits, progress: Progress, carried: Any) -> Any:
        return EchoWorkload.extend(self, state, hits, progress)


def test_writing_twice_must_take_the_same() -> None:
    for make in (Engine, AsyncEngine, lambda *parts: plain(*parts, "x")):
        with pytest.raises(ConfigError, match=r"only one of extend\(\) and aextend\(\)"):
            make(CarriesOn(), WordRetriever(TOPICS))


class OnlyAwaited:
    """Encodes on an event loop alone."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def aencode(self, text: str) -> Query:
        return Query(f"encoded {text}")

    def search(self, queries: Sequence[Query]) -> list[list[Hit]]:
        self.asked += [query.text for query in queries]
        return [[Hit(Passage("p", query.text))] for query in queries]


def test_what_can_only_be_awaited_is_not_left_out() -> None:
    """A text is never searched as it is where the retriever would have encoded it."""
    retriever = OnlyAwaited()
    for run in (in_threads, lambda *parts: plain(*parts, PROMPT)):
        with pytest.raises(NotImplementedError, match="only be awaited; use AsyncEngine"):
            run(EchoWorkload(), retriever)
    assert not retriever.asked

    in_tasks(EchoWorkload(), retriever)
    assert retriever.asked
    assert all(text.startswith("encoded ") for text in retriever.asked)


# What mypy would refuse: parts that leave out what they may, and mistakes.
plainly: Any = plain
EngineOf: Any = Engine
ReplicaOf: Any = Replica
PassageCacheOf: Any = PassageCache


class Hidden(TextState):
    """A derived state whose equality is inherited, and does not cover its own attribute."""

    __slots__ = ("topic",)

    def __init__(self, request: Request, text: str, topic: int) -> None:
        super().__init__(request, text)
        object.__setattr__(self, "topic", topic)


class Wandering(TextWorkload[Hidden]):
    """What is asked next depends on the length of what was found, which the text does not show."""

    def start(self, request: Request) -> Hidden:
        return Hidden(request, "", 0)

    def query(self, state: Hidden) -> str | None:
        topic: int = state.topic  # type: ignore[attr-defined]
        return TOPICS[topic % 4] if len(state.text) < 12 else None

    def extend(self, state: Hidden, hits: Hits) -> Hidden:
        topic: int = state.topic  # type: ignore[attr-defined]
        return Hidden(state.request, f"{state.text}.", topic + 1 + len(hits[0].passage.text) % 3)


class AlwaysWrong(NoIdea):
    def guess(self, query: Query) -> Any:
        return [Hit(Passage("p", "a wrong one"))]


WRONG = Settings(schedule=FixedStride(stride=2), speculators=[AlwaysWrong()])


@pytest.mark.parametrize("run", [in_threads, in_tasks, in_virtual_time])
def test_a_derived_state_is_not_its_base(run: Callable[..., Answer]) -> None:
    """No query of a dropped step is reused for a state that only looks equal."""
    expected = plainly(Wandering(), OnlySearch(), PROMPT)
    answer = run(Wandering(), OnlySearch(), WRONG)

    assert expected == answer
    assert answer.stats.guesses > answer.stats.accepted
    assert len({one.query.text for one in expected.retrieved}) > 1


class OneByName(Mine):
    def extend(self, state: TextState, hits: Hits, *, progress: Progress) -> TextState:  # type: ignore[override]
        progress.check()
        return super().extend(state, hits)


class OneOfItsOwn(Mine):
    """Its third parameter is its own, and has a default."""

    def extend(self, state: TextState, hits: Hits, end: str = "!") -> TextState:
        return super().extend(state, hits).append(end)


class CarriedFirst(Mine):
    def query(self, state: TextState) -> Any:
        query = super().query(state)
        return None if query is None else Formed(query, "carried")

    def extend(self, state: TextState, hits: Hits, carried: str, progress: Progress) -> TextState:  # type: ignore[override]
        progress.check()
        return super().extend(state, hits).append(carried)


class OtherName(Mine):
    def extend(self, state: TextState, hits: Hits, p: Progress, /) -> TextState:  # type: ignore[override]
        p.check()
        return super().extend(state, hits)


@pytest.mark.parametrize(
    ("workload", "after"),
    [(OneByName, ""), (OneOfItsOwn, "!"), (CarriedFirst, "carried"), (OtherName, "")],
)
@pytest.mark.parametrize("run", [in_threads, in_tasks])
def test_optional_parameters_may_stand_in_any_order(
    run: Callable[..., Answer], workload: Any, after: str
) -> None:
    expected = plainly(workload(), OnlySearch(), PROMPT)

    assert expected == run(workload(), OnlySearch())
    assert after in expected.text
    assert "Progress" not in expected.text


class Vectors(Mine):
    """Asks with vectors of its own, which bring no key."""

    def query(self, state: TextState) -> Any:
        text = super().query(state)
        return None if text is None else Query(text, encoding=[1.0, 2.0])


@pytest.mark.parametrize("run", [in_threads, in_a_batch, in_tasks, in_virtual_time])
def test_a_query_without_a_key_has_an_equal_record(run: Callable[..., Answer]) -> None:
    expected = plainly(Vectors(), OnlySearch(), PROMPT)

    assert expected == run(Vectors(), OnlySearch())
    assert expected.retrieved[0].query == Query("red 0", encoding=[1.0, 2.0])


class Unsettled(Mine):
    def __init__(self, settled: Any) -> None:
        self._settled = settled

    def settled(self, state: TextState) -> Any:
        if isinstance(self._settled, Exception):
            raise self._settled
        return self._settled


@pytest.mark.parametrize("settled", [ValueError("no"), StopIteration(), None, 3])
@pytest.mark.parametrize("run", [in_threads, in_a_batch, in_tasks, in_virtual_time])
def test_what_the_plain_loop_does_not_call_does_not_fail(
    run: Callable[..., Answer], settled: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A text that cannot be shown early is shown at the end; the log says why."""
    expected = plainly(Unsettled(settled), OnlySearch(), PROMPT)

    assert expected == run(Unsettled(settled), OnlySearch())
    assert "settled() failed" in caplog.text
    with EngineOf(Unsettled(settled), OnlySearch()) as engine:
        assert [expected.text] == list(engine.stream(PROMPT))


class Forgetful(Streamed):
    """Forgets to return the state."""

    def extend(self, state: TextState, hits: Hits) -> Any:
        return None


class Textless(Mine):
    def text(self, state: TextState) -> Any:
        return None


@pytest.mark.parametrize(
    ("workload", "error", "message"),
    [
        (Forgetful(), AttributeError, "'NoneType' object has no attribute 'request'"),
        (Textless(), InputError, r"text\(\) must return a text, got None"),
    ],
)
@pytest.mark.parametrize("run", [plainly, in_threads, in_a_batch, in_tasks, in_virtual_time])
def test_a_wrong_type_is_the_plain_loops_error(
    run: Callable[..., Answer], workload: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(workload, OnlySearch(), *([PROMPT] if run is plainly else []))


class TwoMethods:
    """A speculator without anything that may be left out."""

    def __init__(self) -> None:
        self.last: Hits | None = None

    def guess(self, query: Query) -> Any:
        return OnlySearch().found(query)

    def learn(self, query: Query, hits: Hits) -> None:
        self.last = hits


@pytest.mark.parametrize("run", [in_threads, in_tasks, in_virtual_time])
@pytest.mark.parametrize("many", [list, iter])
def test_guess_and_learn_are_enough(run: Callable[..., Answer], many: Callable[..., Any]) -> None:
    """Also given by an iterator."""
    speculator = TwoMethods()
    settings = Settings(speculators=many([speculator]), schedule=FixedStride(stride=2))
    expected = plainly(Mine(), OnlySearch(), PROMPT)
    answer = run(Mine(), OnlySearch(), settings)

    assert expected == answer
    assert answer.stats.accepted == answer.stats.guesses > 0
    assert speculator.last


class Unreadable(TwoMethods):
    """A speculator one of whose optional attributes cannot be read."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name == self._name:
            raise ValueError(name)
        raise AttributeError(name)


@pytest.mark.parametrize("run", [in_threads, in_tasks, in_virtual_time])
@pytest.mark.parametrize("name", ["inline", "by_text", "generation", "signature"])
@pytest.mark.parametrize("shape", [list, lambda given: lambda: given], ids=["given", "made"])
def test_an_attribute_that_raises_fails_no_request(
    run: Callable[..., Answer], name: str, shape: Callable[..., Any]
) -> None:
    """It still guesses; where the generation is unknown it learns nothing."""
    speculator = Unreadable(name)
    settings = Settings(speculators=shape([speculator]), schedule=FixedStride(stride=2))
    expected = plainly(Mine(), ThreeMethods(), PROMPT)
    answer = run(Mine(), ThreeMethods(), settings)

    assert expected == answer
    assert answer.stats.accepted == answer.stats.guesses > 0
    assert (speculator.last is None) == (name == "generation")


@pytest.mark.parametrize("run", [in_threads, in_tasks])
def test_a_function_may_yield_its_speculators(run: Callable[..., Answer]) -> None:
    settings = Settings(
        speculators=lambda: (one for one in [TwoMethods()]),  # type: ignore[arg-type, return-value]
        schedule=FixedStride(stride=2),
    )

    assert run(Mine(), OnlySearch(), settings).stats.accepted > 0


@pytest.mark.parametrize("shape", [list, tuple, iter])
def test_a_replica_needs_a_search_alone(shape: Callable[[Any], Any]) -> None:
    """In front of a retriever that has nothing else either."""
    retriever, cheap = OnlySearch(), OnlySearch()
    cheap.search = lambda queries: shape([cheap.found(query) for query in queries])  # type: ignore[method-assign]
    settings = Settings(
        speculators=[ReplicaOf(cheap, of=retriever)], schedule=FixedStride(stride=2)
    )
    answer = in_threads(Mine(), retriever, settings)

    assert plainly(Mine(), retriever, PROMPT) == answer
    assert answer.stats.accepted > 0


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Settings(speculators=TwoMethods()),  # type: ignore[arg-type]
        lambda: Settings(speculators=[TwoMethods]),  # type: ignore[list-item]
        lambda: Settings(speculators=[SharedPassageCache()]),  # type: ignore[list-item]
        lambda: Settings(pool=PassageCacheOf(OnlySearch())),
        lambda: Settings(memo={}),  # type: ignore[arg-type]
        lambda: Settings(may_guess=True),  # type: ignore[arg-type]
        lambda: Settings(schedule=Continuous),  # type: ignore[arg-type]
        lambda: Settings(capacity="3"),  # type: ignore[arg-type]
        lambda: Settings(speculate="no"),  # type: ignore[arg-type]
        lambda: EngineOf(Mine(), OnlySearch(), {"speculate": False}),
        lambda: EngineOf(Mine, OnlySearch()),
        lambda: EngineOf(Mine(), OnlySearch),
        lambda: EngineOf(Mine(), Unhashable(), Settings(memo=QueryCache())),
        lambda: EngineOf(Mine(), NoHits()),
    ],
)
def test_a_mistake_is_refused_when_it_is_made(wrong: Callable[[], Any]) -> None:
    """Not by the first request."""
    with pytest.raises(ConfigError, match=r"got|is a class"):
        wrong()


def test_an_unknown_setting_is_refused_with_a_similar_one() -> None:
    with pytest.raises(TypeError, match="unknown argument 'schedul'; did you mean 'schedule'"):
        Settings(schedul=Continuous())  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"unknown argument 'lanes'; known are .*schedule"):
        Settings(lanes=2)  # type: ignore[call-arg]


def test_an_unknown_eviction_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="unknown eviction 'never'"):
        Settings(eviction="never")


class Unhashable(ThreeMethods):
    signature: Any = ("mine", [])


class NoHits(ThreeMethods):
    k = 0


def test_a_whole_number_of_numpy_is_a_k() -> None:
    retriever = ThreeMethods()
    retriever.k = np.int64(1)  # type: ignore[assignment]
    answer = in_threads(Mine(), retriever)

    assert plainly(Mine(), retriever, PROMPT) == answer


@pytest.mark.parametrize("request_", [None, 3, {"prompt": "red"}])
def test_what_is_no_request_is_refused_alike(request_: Any) -> None:
    with pytest.raises(InputError, match="must be a text or a Request, got"):
        plainly(Mine(), OnlySearch(), request_)
    with EngineOf(Mine(), OnlySearch()) as engine:
        with pytest.raises(InputError, match="must be a text or a Request, got"):
            engine.run(request_)
        with pytest.raises(InputError, match="must be a text or a Request, got"):
            engine.batch([request_])


@pytest.mark.parametrize("one", ["red blue", Request(prompt="red blue")])
def test_one_request_is_no_batch(one: Any) -> None:
    """A text is a sequence of texts, too: none of its letters is answered."""
    with (
        EngineOf(Mine(), OnlySearch()) as engine,
        pytest.raises(InputError, match="a batch must be a sequence of requests, got"),
    ):
        engine.batch(one)


class QueriesAwaited(TextWorkload[TextState]):
    """What can only be awaited, and is run in threads."""

    async def aquery(self, state: TextState) -> str | None:
        return Mine().query(state)

    async def aextend(self, state: TextState, hits: Hits) -> TextState:
        return Mine().extend(state, hits)


class SearchAwaited:
    signature, k = "awaited", 1

    def encode(self, text: str) -> Query:
        return Query(text)

    async def asearch(self, queries: Sequence[Query]) -> list[list[Hit]]:
        return [OnlySearch().found(query) for query in queries]


@pytest.mark.parametrize(
    "run", [in_threads, in_virtual_time, lambda *parts: plainly(*parts, PROMPT)]
)
@pytest.mark.parametrize(
    ("workload", "retriever"), [(QueriesAwaited, OnlySearch), (Mine, SearchAwaited)]
)
def test_what_can_only_be_awaited_says_so(run: Any, workload: Any, retriever: Any) -> None:
    with pytest.raises(NotImplementedError, match="can only be awaited; use AsyncEngine"):
        run(workload(), retriever())

    assert in_tasks(workload(), retriever()) == plainly(Mine(), OnlySearch(), PROMPT)


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (Hit(Passage("p", "red fox")), r"for each query, got Hit\(.* for one"),
        (["red fox"], r"each a Hit\(passage, score\), got 'red fox' in one"),
        ([Hit(Passage("p", "red fox")), None], "got None in one"),
    ],
)
def test_what_is_no_result_is_named(result: Any, said: str) -> None:
    class Wrong(OnlySearch):
        def found(self, query: Query) -> Any:
            return result

    for run in (in_threads, lambda *parts: plainly(*parts, PROMPT)):
        with pytest.raises(InputError, match=said):
            run(Mine(), Wrong())


def test_errors_of_lazy_hits_are_the_retrievers_own() -> None:
    """Not mistaken for a wrong type."""

    class Lazy(OnlySearch):
        def found(self, query: Query) -> Any:
            yield Hit(Passage("p", "red fox"))
            raise TypeError("its own")

    for run in (in_threads, lambda *parts: plainly(*parts, PROMPT)):
        with pytest.raises(TypeError, match="its own"):
            run(Mine(), Lazy())
