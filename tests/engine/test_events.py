"""The events of a request: what real engines tell while they answer."""

import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import pytest

from ralmspec_plugins import AsyncEngine, Engine, Settings
from ralmspec_plugins.effects import Commit, Confirmed, Event, Failed, Settled
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing import EchoWorkload, WordRetriever
from ralmspec_plugins.types import Hit, Hits, Passage, Query, Request
from tests.drivers import Outcome, plainly, records
from tests.worlds import WorldError, random_world


def outcome(events: Iterable[Event]) -> Outcome:
    """Give what the events tell, as an outcome."""
    text, confirmed, failed = "", [], None
    for event in events:
        if isinstance(event, Settled):
            text = event.text
        elif isinstance(event, Confirmed):
            confirmed.append(event.retrieved)
        elif isinstance(event, Failed):
            failed = event
    if failed is not None:
        return Outcome.failed(failed.error, confirmed, failed.query)
    return Outcome(text, None, records(tuple(confirmed)))


def without_state(expected: Outcome) -> Outcome:
    expected.state = None
    return expected


@pytest.mark.parametrize("reports", [True, False])
@pytest.mark.parametrize("speculate", [True, False])
def test_events_tell_the_plain_loops_story(*, reports: bool, speculate: bool) -> None:
    """Confirmed searches, text and error, and whose error it was, are the plain loop's."""
    for seed in range(60):
        world = random_world(seed)
        seen: list[Event] = []
        with Engine(world.workload, world.retriever, Settings(speculate=speculate)) as engine:
            try:
                for event in engine.events(world.request, reports=reports):
                    seen.append(event)  # noqa: PERF402 what came before an error counts
            except WorldError:
                pass

        assert without_state(plainly(world)) == outcome(seen), f"seed {seed}"


async def test_asynchronous_events_tell_the_same() -> None:
    """On asyncio too."""
    for seed in range(60):
        world = random_world(seed)
        seen: list[Event] = []
        async with AsyncEngine(world.workload, world.retriever) as engine:
            try:
                async for event in engine.events(world.request):
                    seen.append(event)
            except WorldError:
                pass

        assert without_state(plainly(world)) == outcome(seen), f"seed {seed}"


def test_a_step_is_confirmed_before_its_text_settles_and_before_it_is_committed() -> None:
    """So whoever shows sources before text, or closes a trace, never has to wait or go back."""
    with Engine(EchoWorkload(), WordRetriever(["red fox", "blue whale"])) as engine:
        kinds = [type(event) for event in engine.events("whale red")]

    assert [kind for kind in kinds if kind in (Confirmed, Commit, Settled)] == [
        *(Confirmed, Commit, Settled),
        *(Confirmed, Commit, Settled),
    ]


def test_engines_may_share_threads() -> None:
    """Closing one of them leaves the threads to the others."""
    with ThreadPoolExecutor(8) as threads:
        first = Engine(EchoWorkload(), WordRetriever(["red fox"]), threads=threads)
        second = Engine(EchoWorkload(), WordRetriever(["red flag"]), threads=threads)
        texts = [first.run("red").text, second.run("red").text]
        second.close()

        assert [*texts, first.run("red").text] == ["red fox", "red flag", "red fox"]


class Slow:
    """A workload whose segments cannot be stopped: a call of a server."""

    inline_query, reads_scores, side_by_side = True, False, True

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong
        self.let_go = threading.Event()
        self.began = threading.Event()
        self.beside = 0  # calls out at once, at most
        self._out = 0
        self._lock = threading.Lock()
        self.fails = False

    def start(self, request: Request) -> str:
        return ""

    def query(self, state: str) -> str | None:
        return None if state else "q"

    def extend(self, state: str, hits: Hits, progress: Progress) -> str:
        with self._lock:
            self._out += 1
            self.beside = max(self.beside, self._out)
        try:
            if hits[0].passage.id == self.wrong:
                self.began.set()
                assert self.let_go.wait(20)
            elif self.fails and self._out > 1:
                raise ConnectionError("too many calls at once")
            return hits[0].passage.id
        finally:
            with self._lock:
                self._out -= 1

    def text(self, state: str) -> str:
        return state

    def settled(self, state: str) -> str:
        return state

    def query_key(self, state: str) -> str:
        return state

    def extend_key(self, state: str, hits: Hits) -> None:
        return None

    def release(self, state: str) -> None:
        pass


class OneWord:
    """Finds "right" once the wrong segment has begun."""

    signature, k = "one", 1

    def __init__(self, began: threading.Event) -> None:
        self.began = began

    def encode(self, text: str) -> Query:
        return Query(text)

    def search(self, queries: list[Query]) -> list[Hits]:
        assert self.began.wait(20)
        return [(Hit(Passage("right", "right")),) for _ in queries]


class Wrong:
    """Guesses wrongly."""

    inline = True

    def guess(self, query: Query) -> Hits:
        return (Hit(Passage("wrong", "wrong")),)

    def learn(self, query: Query, hits: Hits) -> None:
        pass


def test_a_segment_of_a_server_is_left_to_itself() -> None:
    """The right segment does not wait for the wrong one, which ends later and changes nothing."""
    workload = Slow("wrong")
    with Engine(workload, OneWord(workload.began), Settings(speculators=[Wrong()])) as engine:
        answer = engine.run("?")
        still_out = not workload.let_go.is_set()
        workload.let_go.set()

    assert (answer.text, still_out, workload.beside) == ("right", True, 2)
    assert answer.stats.wasted_segments == 1


def test_a_failure_beside_a_left_segment_is_tried_again_alone() -> None:
    """What fails only because another call was out is repeated when that has ended."""
    workload = Slow("wrong")
    workload.fails = True
    threading.Timer(0.2, workload.let_go.set).start()
    with Engine(workload, OneWord(workload.began), Settings(speculators=[Wrong()])) as engine:
        answer = engine.run("?")

    assert (answer.text, answer.stats.retries) == ("right", 1)


def test_closing_a_stream_does_not_wait_for_a_left_segment() -> None:
    """Whoever closes it is not held up by a call that cannot be stopped."""
    workload = Slow("right")
    with Engine(workload, OneWord(threading.Event()), Settings(speculate=False)) as engine:
        engine._session.retriever.began.set()  # type: ignore[attr-defined]
        stream = engine.events("?")
        assert isinstance(next(stream), Confirmed)
        assert workload.began.wait(20)
        began_s = time.monotonic()
        stream.close()
        waited_s = time.monotonic() - began_s
        workload.let_go.set()

    assert waited_s < 5.0, "the grace of a segment that is waited for"


class Moody(Slow):
    """Shows the beginning of a text, breaks off, and says something else when asked again."""

    def __init__(self, again: str) -> None:
        super().__init__("nobody")
        self.again = again
        self.calls = 0
        self.shown = threading.Event()

    def extend(self, state: str, hits: Hits, progress: Progress) -> str:
        self.calls += 1
        self.began.set()
        if self.calls > 1:
            return self.again
        for _ in range(200):  # until the search has answered, and so its text is shown
            progress.report("alpha beta")
            if self.shown.wait(0.02):
                raise ConnectionError("the line is cut")
        raise AssertionError("nothing was shown")


class Right(Wrong):
    """Guesses rightly."""

    def guess(self, query: Query) -> Hits:
        return (Hit(Passage("right", "right")),)


@pytest.mark.parametrize(
    ("again", "pieces"),
    [
        ("alpha beta gamma", ["alpha beta", "alpha beta gamma"]),
        ("something else", ["alpha beta", "ConnectionError"]),
        ("alpha", ["alpha beta", "ConnectionError"]),
    ],
)
def test_what_was_settled_is_never_taken_back(again: str, pieces: list[str]) -> None:
    """A segment that broke off is written once more, unless that says something else."""
    workload = Moody(again)
    seen: list[str] = []
    with Engine(workload, OneWord(workload.began), Settings(speculators=[Right()])) as engine:
        try:
            for event in engine.events("?"):
                if isinstance(event, Settled):
                    seen.append(event.text)
                    workload.shown.set()
        except ConnectionError:
            seen.append("ConnectionError")

    assert seen == pieces
    assert workload.calls == 2
