"""Speculators learn while the model generates, and before they guess."""

import asyncio
import threading
import time
from typing import Any

import pytest

from ralmspec_plugins import AsyncEngine, Engine, FixedStride, Settings
from ralmspec_plugins.effects import Confirmed, SearchResult, Work
from ralmspec_plugins.engine.context import RequestContext
from ralmspec_plugins.engine.session import Session
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.scheduling.cost_model import Costs
from ralmspec_plugins.scheduling.load import CROWD
from ralmspec_plugins.testing import EchoWorkload, WordRetriever
from ralmspec_plugins.types import Hits, Query, as_request

TEXTS = ["red fox", "blue whale"]
TEXT = "\n".join(TEXTS)
FOR_S = 20.0


class Pupil:
    """Learns when the first segment has begun, and guesses what it was taught last."""

    inline = True

    def __init__(self, begun: threading.Event | None = None) -> None:
        self.begun = begun
        self.in_time: list[bool] = []
        self.taught: list[str] = []
        self.last: Hits | None = None
        self.known_at_guesses: list[int] = []

    def guess(self, _query: Query) -> Hits | None:
        self.known_at_guesses.append(len(self.taught))
        return self.last

    def learn(self, query: Query, hits: Hits) -> None:
        if self.begun is not None:
            self.in_time.append(self.begun.wait(FOR_S))
        self.taught.append(query.text)
        self.last = hits[:1]


class Telling(EchoWorkload):
    """Says when it writes."""

    def __init__(self, begun: threading.Event) -> None:
        super().__init__()
        self.begun = begun

    def extend(self, state: Any, hits: Hits, progress: Progress) -> Any:
        self.begun.set()
        return super().extend(state, hits, progress)


@pytest.fixture
def guesses_are_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have guesses pay off although this thread may wait for a processor during one."""
    monkeypatch.setattr(Costs, "QUICK_GUESS_S", 60.0)


@pytest.mark.usefixtures("guesses_are_quick")
def test_speculators_learn_while_the_segment_is_written() -> None:
    """What the first search found; the text does not wait for them."""
    begun = threading.Event()
    pupil = Pupil(begun)
    with Engine(Telling(begun), WordRetriever(TEXTS), Settings(speculators=[pupil])) as engine:
        text = "".join(engine.stream("fox whale"))

    assert text == TEXT
    assert pupil.taught == ["fox", "whale"]
    assert pupil.in_time == [True, True]


@pytest.mark.usefixtures("guesses_are_quick")
async def test_speculators_learn_while_the_segment_is_written_on_asyncio() -> None:
    """The same in tasks."""
    begun = threading.Event()
    pupil = Pupil(begun)
    settings = Settings(speculators=[pupil])
    async with AsyncEngine(Telling(begun), WordRetriever(TEXTS), settings) as engine:
        text = (await engine.run("fox whale")).text

    assert text == TEXT
    assert pupil.taught == ["fox", "whale"]
    assert pupil.in_time == [True, True]


def test_a_guess_knows_all_that_was_found() -> None:
    """Also where no engine has called for it: whoever guesses has learned before."""
    pupil = Pupil()
    settings = Settings(speculators=[pupil], schedule=FixedStride(stride=1))
    retriever = WordRetriever(["red fox in the snow", "blue whale"])
    context = RequestContext(
        Session(EchoWorkload(), retriever, settings), as_request("fox red snow the")
    )
    done: list[Any] = []
    needs = next(context.flow)
    while context.finish is None:
        for need in needs:
            if isinstance(need, Work):
                context.carry_out(need, lambda: 0.0, done.append)
            else:
                context.note(need)
        if context.finish is None:
            needs = context.flow.send(done.pop(0))
    answer = context.answer(0.0)

    assert answer.text.count("red fox in the snow") == 4
    assert answer.stats.accepted == answer.stats.guesses == 3
    assert pupil.known_at_guesses == [0, 1, 2, 3]
    assert pupil.taught == ["fox", "red", "snow"]  # the last result came before no guess
    context.learn()
    assert pupil.taught == ["fox", "red", "snow", "the"]


class Stubborn(BaseException):
    """What is no `Exception`."""


class Fails(Pupil):
    """Raises what is no `Exception` when it is taught."""

    def learn(self, query: Query, hits: Hits) -> None:
        raise Stubborn(query.text)


class Slowly(EchoWorkload):
    """Takes longer than the time after which speculators learn."""

    def extend(self, state: Any, hits: Hits, progress: Progress) -> Any:
        time.sleep(0.05)
        return super().extend(state, hits, progress)


@pytest.mark.parametrize("kind", [Engine, AsyncEngine])
def test_what_learning_raises_reaches_the_request(kind: type[Any]) -> None:
    """On asyncio, too, where no timer of its own runs after the request."""
    settings = Settings(speculators=[Fails()])

    async def awaited() -> str:
        async with AsyncEngine(Slowly(), WordRetriever(TEXTS), settings) as engine:
            return (await engine.run("fox whale")).text

    def run() -> str:
        if kind is AsyncEngine:
            return asyncio.run(awaited())
        with Engine(Slowly(), WordRetriever(TEXTS), settings) as engine:
            return "".join(engine.stream("fox whale"))

    with pytest.raises(Stubborn, match="fox"):
        run()


async def test_nothing_is_learned_after_a_stream_was_closed() -> None:
    """No timer is left on the loop."""
    pupil = Pupil()
    settings = Settings(speculators=[pupil])
    async with AsyncEngine(Slowly(), WordRetriever(TEXTS), settings) as engine:
        stream = engine.events("fox whale")
        async for event in stream:
            if isinstance(event, Confirmed):
                break
        await stream.aclose()
        taught = list(pupil.taught)
    await asyncio.sleep(0.02)

    assert pupil.taught == taught


class Other:
    """A request in progress."""


def behind() -> tuple[Session, RequestContext]:
    """A request with results that its speculators have not learned."""
    retriever = WordRetriever(TEXTS)
    session = Session(EchoWorkload(), retriever, Settings(speculators=(Pupil(),)))
    context = RequestContext(session, as_request("fox whale"))
    query = Query("fox")
    hits = retriever.search([query])[0]
    context.guesses.learn(query, SearchResult(hits, hits))
    assert context.may_learn
    return session, context


def test_while_the_model_is_busy_with_other_requests_they_learn_before_they_guess_only() -> None:
    """The request's own segment is what they learn beside."""
    session, context = behind()
    load = session.costs.load
    for parallel, seconds in 3 * ((1, 0.1), (8, 0.8)):
        load.observe(parallel, seconds)
    with load.segment(lambda: 0.0):
        assert context.may_learn
        with load.segment(lambda: 0.0):
            assert not context.may_learn
    assert context.may_learn
    context.close()


def test_in_a_crowd_they_learn_before_they_guess_only() -> None:
    """While many requests are in progress there is always something else to be done."""
    session, context = behind()
    others = [Other() for _ in range(CROWD + 1)]

    for other in others:
        session.costs.store.begin(other)
    assert not context.may_learn
    session.costs.store.end(others.pop())
    assert context.may_learn
    context.close()
