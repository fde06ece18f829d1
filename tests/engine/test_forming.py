"""Queries that a model writes, steps without retrieval, and encodings of their own."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

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
    Query,
    QueryCache,
    Request,
    Settings,
    Simulation,
    plain,
)
from ralmspec_plugins.effects import Commit, Confirmed, Settled
from ralmspec_plugins.engine.context import RequestContext
from ralmspec_plugins.engine.session import Session
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.scheduling.schedules import Schedule
from ralmspec_plugins.testing import EchoWorkload, WordRetriever
from ralmspec_plugins.workloads import TextState, TextWorkload

STEPS = 6


class Store:
    """Finds the passage of a letter; encodes it first, in a worker."""

    signature = "letters"
    k = 1
    inline_encode = False

    def __init__(self) -> None:
        self.encoded: list[str] = []
        self.searched: list[str] = []
        self.most = self._out = 0
        self._lock = threading.Lock()

    def encode(self, text: str) -> Query:
        with self._lock:
            self.encoded.append(text)
            self._out += 1
            self.most = max(self.most, self._out)
        time.sleep(0.002)
        with self._lock:
            self._out -= 1
        return Query(text, ("of", text))

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        self.searched += [query.text for query in queries]
        assert all(query.encoding == ("of", query.text) for query in queries)
        return [(hit(query.text),) for query in queries]


def hit(text: str) -> Hit:
    return Hit(Passage(text, text))


class ByText:
    """Guesses right by the text, but for the given queries."""

    inline = by_text = True

    def __init__(self, *wrong: str) -> None:
        self._wrong = wrong
        self.asked: list[str] = []

    def guess(self, query: Query) -> Hits:
        self.asked.append(query.text)
        return (hit("!" if query.text in self._wrong else query.text),)

    def learn(self, query: Query, hits: Hits) -> None:
        """It knows."""


class Letters(TextWorkload[TextState]):
    """Asks for the number of letters, and writes what it finds."""

    append_only = True

    def query(self, state: TextState) -> Any:
        return f"{len(state.text)}" if len(state.text) < STEPS else None

    def extend(self, state: TextState, hits: Hits) -> TextState:
        return state.append(hits[0].passage.text if hits else "-")


class Sparing(Letters):
    """Needs no retrieval at every other step."""

    def query(self, state: TextState) -> Any:
        asked = super().query(state)
        return NO_RETRIEVAL if asked is not None and len(state.text) % 2 else asked


def in_threads(workload: Any, store: Any, settings: Settings) -> Answer:
    with Engine(workload, store, settings) as engine:
        return engine.run("")


def in_tasks(workload: Any, store: Any, settings: Settings) -> Answer:
    async def main() -> Answer:
        async with AsyncEngine(workload, store, settings) as engine:
            return await engine.run("")

    return asyncio.run(main())


def in_virtual_time(workload: Any, store: Any, settings: Settings) -> Answer:
    return Simulation(workload, store, Latencies(), settings).run("")


engines = pytest.mark.parametrize("run", [in_threads, in_tasks, in_virtual_time])
Run = Callable[[Any, Any, Settings], Answer]


@engines
@pytest.mark.parametrize("speculate", [True, False])
def test_a_step_without_retrieval_uses_nothing(run: Run, *, speculate: bool) -> None:
    """No search, no encoding, no guess, no entry in the record; it counts as a segment."""
    store, guesser = Store(), ByText()
    settings = Settings(speculators=[guesser], speculate=speculate)
    answer = run(Sparing(), store, settings)

    assert "0-2-4-" == answer.text == plain(Sparing(), Store(), "").text
    assert ["0", "2", "4"] == sorted(store.searched) == sorted(store.encoded)
    assert ["0", "2", "4"] == [step.query.text for step in answer.retrieved]
    assert set(guesser.asked) == (set("024") if speculate else set())
    assert (6, 3, 3) == (
        answer.stats.segments,
        answer.stats.without_retrieval,
        answer.stats.queries,
    )


def test_a_step_without_retrieval_is_committed_and_never_confirmed() -> None:
    """Each segment is told once, and text only of those before it."""
    with Engine(Sparing(), Store()) as engine:
        told = [e for e in engine.events("") if isinstance(e, Confirmed | Commit | Settled)]
    kinds = [type(event) for event in told]

    assert [Confirmed, Commit, Settled, Commit, Settled] * 3 == kinds
    commits = [event for event in told if isinstance(event, Commit)]
    assert [True, False] * 3 == [event.retrieved is not None for event in commits]
    assert [(hit("0"),), ()] == [event.hits for event in commits[:2]]


class Writing(Letters):
    """A model writes the queries, token by token; from a wrong text on it never ends."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.stopped = threading.Event()

    def query(self, state: TextState, progress: Progress) -> Any:
        while "!" in state.text:
            self.began.set()
            try:
                progress.check()
            except Exception:
                self.stopped.set()
                raise
            time.sleep(0.001)
        return super().query(state)


class AsyncWriting(Letters):
    """The same, awaited."""

    def __init__(self) -> None:
        self.began = self.stopped = threading.Event()

    async def aquery(self, state: TextState, progress: Progress) -> Any:
        if "!" in state.text:
            self.began.set()
            await asyncio.Event().wait()
        return super().query(state)


class Late(Store):
    """Answers when the wrong guess has been written, and its query is being formed."""

    workload: Any = None

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        if any(query.text == "2" for query in queries):
            assert self.workload.began.wait(20)
        return super().search(queries)


@pytest.mark.parametrize("run", [in_threads, in_tasks])
@pytest.mark.parametrize("workload", [Writing, AsyncWriting])
def test_a_dropped_query_is_cancelled(run: Run, workload: Callable[[], Any]) -> None:
    """Its model is free at the next token: a query that would be formed forever ends."""
    if run is in_threads and workload is AsyncWriting:
        return
    made, store = workload(), Late()
    store.workload = made
    settings = Settings(speculators=[ByText("2")], schedule=Continuous(lanes=8))
    answer = run(made, store, settings)

    assert "012345" == answer.text
    assert made.stopped.is_set()
    assert any(span.kind == "ask" and span.outcome == "cancelled" for span in answer.stats.timeline)


def test_what_a_query_reports_is_streamed() -> None:
    """Text that a model writes before it asks is shown before the passages are there."""

    class Thinking(TextWorkload[TextState]):
        append_only = True

        def query(self, state: TextState, progress: Progress) -> Any:
            if state.text:
                return None
            progress.report(state.append("I wonder"))
            return Formed("x", "I wonder, ")

        def extend(self, state: TextState, hits: Hits, carried: str) -> TextState:
            return state.append(carried + hits[0].passage.text)

    for engine in (Engine, AsyncEngine):
        pieces: list[str] = []

        async def read(engine: Any = engine, pieces: list[str] = pieces) -> None:
            async with engine(Thinking(), Store()) as made:
                async for piece in made.stream(""):
                    pieces.append(piece)

        if engine is AsyncEngine:
            asyncio.run(read())
        else:
            with Engine(Thinking(), Store()) as made:
                pieces.extend(made.stream(""))
        assert ["I wonder", ", x"] == pieces


def test_what_is_carried_must_have_somewhere_to_go() -> None:
    """A clear error, from the plain loop and the engines."""

    class Careless(Letters):
        def query(self, state: TextState) -> Any:
            return Formed("x", "a look-ahead")

    with pytest.raises(InputError, match="no parameter 'carried'"):
        plain(Careless(), Store(), "")
    with pytest.raises(InputError, match="no parameter 'carried'"):
        in_threads(Careless(), Store(), Settings())


@pytest.mark.parametrize("lanes", [1, 2, 4])
@pytest.mark.parametrize("run", [in_threads, in_tasks])
def test_encodings_have_lanes_of_their_own(run: Run, lanes: int) -> None:
    """A local encoder is never asked twice at a time; a hosted one as often as it says."""
    store = Store()
    store.encode_lanes = lanes  # type: ignore[attr-defined]
    answer = run(Letters(), store, Settings(speculators=[ByText()], schedule=Continuous(lanes=8)))

    assert "012345" == answer.text
    assert 1 <= store.most <= lanes


def test_a_segment_is_written_while_its_query_is_encoded() -> None:
    """Where a speculator guesses by the text: 6 steps of 1 s beside encodings of 10 s.

    It must precede those that read encodings only where none of them is called inside the loop.
    """
    latencies = Latencies(encode_s=10.0, search_s=lambda _: 1.0)
    store, other = Store(), Store()
    for one in (store, other):
        one.encode_lanes = 6  # type: ignore[attr-defined]

    class ByEncoding(ByText):
        by_text = False

        def __init__(self, *, inline: bool = True) -> None:
            super().__init__()
            self.inline = inline

        def guess(self, query: Query) -> Hits:
            assert query.encoding is not None
            return super().guess(query)

    def wall_s(*speculators: Any) -> float:
        settings = Settings(speculators=speculators, schedule=Continuous(lanes=6))
        simulation = Simulation(Letters(), store, latencies, settings)
        simulation.run("")  # the first request of an engine waits for the outcome of a guess
        return simulation.run("").stats.wall_s

    hidden_s, serial_s = 5 + 10.0 + 1.0, 5 * 11 + 10.0 + 1.0
    assert wall_s(ByText()) == wall_s(ByEncoding(), ByText()) == hidden_s
    assert wall_s(ByText(), ByEncoding(inline=False)) == hidden_s
    assert wall_s(ByEncoding()) == serial_s
    assert wall_s(ByEncoding(inline=False), ByText()) == serial_s


def test_a_text_that_is_remembered_is_not_encoded() -> None:
    """Across requests with a memo, and within one for an equal text."""
    store, memo = Store(), QueryCache()
    settings = Settings(memo=memo)
    first = in_threads(Letters(), store, settings)
    before = len(store.encoded)
    second = in_threads(Letters(), store, settings)

    assert first == second
    assert STEPS == before == len(store.encoded)
    assert STEPS == second.stats.remembered

    class Same(Letters):
        def query(self, state: TextState) -> Any:
            return None if len(state.text) == STEPS else "x"

    in_threads(Same(), store, Settings())
    assert ["x"] == store.encoded[STEPS:]


@pytest.mark.parametrize("wrong", ["text", Query("x", key=[])])  # type: ignore[arg-type]
@pytest.mark.parametrize("inline", [True, False])
def test_an_encoding_that_is_no_query_is_refused(wrong: Any, *, inline: bool) -> None:
    """By the plain loop and the engines alike."""

    class Odd(Store):
        inline_encode = inline

        def encode(self, text: str) -> Any:
            return wrong

    with pytest.raises(InputError):
        plain(Letters(), Odd(), "")
    for run in (in_threads, in_tasks, in_virtual_time):
        with pytest.raises(InputError):
            run(Letters(), Odd(), Settings())


def test_a_key_that_is_not_equal_to_itself_ends() -> None:
    """NaN: each query is searched, and given its hits."""

    class Nan(EchoWorkload):
        def query(self, state: Any) -> Any:
            words, _ = state
            return Query(words[0], key=float("nan")) if words else None

    retriever = WordRetriever(["red fox", "blue whale"])
    for speculate in (True, False):
        answer = in_threads_of(Nan(), retriever, speculate=speculate)
        assert "blue whale\nred fox" == answer.text


def in_threads_of(workload: Any, retriever: Any, *, speculate: bool) -> Answer:
    with Engine(workload, retriever, Settings(speculate=speculate)) as engine:
        return engine.run("whale red")


def test_a_state_that_comes_after_the_end_is_released() -> None:
    """A request given up while its first state was being made leaves nothing behind."""

    class Releasing(EchoWorkload):
        released = 0

        def release(self, state: Any) -> None:
            self.released += 1

    workload = Releasing()
    session = Session(workload, WordRetriever(["red fox"]), Settings())
    context = RequestContext(session, Request(prompt="red"))
    context.close()
    context.begun(workload.start(Request(prompt="red")))

    assert 1 == workload.released


class Hanging(Store):
    """Encodes "blue", which only a wrong guess leads to, until a search was made."""

    encode_lanes = 2

    def __init__(self) -> None:
        super().__init__()
        self.searching = threading.Event()
        self.gave_up = False

    def encode(self, text: str) -> Query:
        if text == "blue":
            self.gave_up |= not self.searching.wait(20)
        return super().encode(text)

    async def aencode(self, text: str) -> Query:
        if text == "blue":  # cancelled when the guess proves wrong
            await asyncio.sleep(20)
            self.gave_up = True
        return super().encode(text)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        self.searching.set()
        return super().search(queries)


class Misled(Letters):
    """Asks for "red", then for "green", or for "blue" after a wrong guess."""

    def query(self, state: TextState) -> Any:
        if len(state.text) > STEPS:
            return None
        return ("blue" if state.text.endswith("!") else "green") if state.text else "red"


@pytest.mark.parametrize("schedule", [FixedStride(stride=4), Continuous()], ids=repr)
@pytest.mark.parametrize("run", [in_threads, in_tasks])
def test_a_confirmed_query_does_not_wait_for_what_a_guess_leads_to(
    run: Run, schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plain loop never encodes "blue", however long that takes."""
    monkeypatch.setattr("ralmspec_plugins.engine.base.PATIENCE_S", 0.02)
    store = Hanging()
    settings = Settings(speculators=[ByText("red", "green")], schedule=schedule)
    answer = run(Misled(), store, settings)

    assert answer == plain(Misled(), Store(), "")
    assert "redgreen" == answer.text
    assert not store.gave_up
