"""A query that nobody waits for any more: its work ends, and what was told has its end."""

import asyncio
import gc
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index_ralmspec import SpeculativeQueryEngine

from ralmspec_plugins import FixedStride
from tests.llama_index.engine_parts import EMPTY, Heard, Legacy, hearing, legacy, seen
from tests.llama_index.rag_parts import (
    MODELS,
    QUESTION,
    QUESTIONS,
    AsyncHashLLM,
    HashRetriever,
    made_nodes,
    pair,
)
from tests.llama_index.worlds import WordEmbedding
from tests.selection import covering

LYING = {"replica": HashRetriever(made_nodes(), salt="lie"), "pool": None}
WORKLOADS = ["interval", "one_shot"]
STRIDE = FixedStride(stride=2)  # guesses whatever comes of them


@pytest.fixture(autouse=True)
async def nothing_leaks() -> Any:
    """No thread of ours and no task is left when a test is over."""
    before = _threads()
    yield
    await asyncio.sleep(0)
    assert {asyncio.current_task()} == asyncio.all_tasks()
    assert _threads() <= before


def _threads() -> set[threading.Thread]:
    return {one for one in threading.enumerate() if "ralmspec" in one.name}


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


class Watched:
    """Our engine with all parts of it, the host's answer, and what is heard of ours."""

    def __init__(self, model: str, workload: str, *, streaming: bool = False) -> None:
        manager, self.legacy = legacy()
        self.llm = MODELS[model](callback_manager=manager)
        self.retriever = HashRetriever(made_nodes())
        self.retriever.callback_manager = manager
        hand, _ = pair(self.llm, self.retriever, workload)
        self.expected = seen(hand.query(QUESTION))
        right = len(self.retriever.asked) - 1
        self.prompt = self.llm.prompts[min(2, right)]  # the third step's, or the only one
        self.query = self.retriever.asked[min(2, right)]
        _, self.ours = pair(
            self.llm,
            self.retriever,
            workload,
            manager=manager,
            streaming=streaming,
            schedule=STRIDE,
            **LYING,
        )
        self.legacy.heard = []

    def unhook(self) -> SpeculativeQueryEngine:
        """Let everything go on."""
        self.llm.hook = self.llm.ahook = self.llm.between = None
        self.retriever.hook = self.retriever.ahook = None
        return self.ours


def left_open(heard: Heard, handler: Legacy) -> list[Any]:
    """List the spans, the callback events and the calls of the model that have no end."""
    spans: Counter[str] = Counter()
    for what in heard.all:
        if what[0] != "event":
            spans[what[1]] += 1 if what[0] == "enter" else -1
    events = Counter({one[1]: 0 for one in handler.heard})
    for one in handler.heard:
        events[one[1]] += {"start": 1, "trace": 1}.get(one[0], -1)
    return [name for counted in (spans, events) for name, left in counted.items() if left]


async def nothing_open(heard: Heard, handler: Legacy) -> None:
    """Wait until all that was begun has an end: a guess in a thread comes to its own."""
    for _ in range(500):
        if not left_open(heard, handler):
            break
        await asyncio.sleep(0.01)
    assert [] == left_open(heard, handler)


async def nobody_else() -> None:
    """Wait until all other tasks are through."""
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        _, pending = await asyncio.wait(others, timeout=5)
        assert not pending


async def ended(call: Any) -> None:
    """Wait until a task's cancel is through."""
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(call, 10)


@pytest.mark.parametrize(
    ("model", "where", "workload"),
    covering(MODELS, ["retriever", "model"], WORKLOADS, strength=2),
)
async def test_a_query_that_is_cancelled_half_way_leaves_nothing(
    model: str, where: str, workload: str, gate: threading.Event
) -> None:
    """While the right search, or the right call, hangs: all ends, and the engine works again."""
    watched = Watched(model, workload)
    hanging, loop = asyncio.Event(), asyncio.get_running_loop()
    right = (watched.query, watched.prompt)

    async def ahangs(text: str) -> None:
        if text in right:
            hanging.set()
            await asyncio.sleep(20)

    def hangs(text: str) -> None:
        if text in right:
            loop.call_soon_threadsafe(hanging.set)
            gate.wait(20)

    if where == "retriever":
        watched.retriever.ahook = ahangs
    elif model == "text":
        watched.llm.hook = hangs
    else:
        watched.llm.ahook = ahangs
    with hearing() as heard:
        task = asyncio.ensure_future(watched.ours.aquery(QUESTION))
        await asyncio.wait_for(hanging.wait(), 5)
        for _ in range(3):
            await asyncio.sleep(0)
        task.cancel()
        gate.set()
        await ended(task)

        await nothing_open(heard, watched.legacy)
        assert {asyncio.current_task()} == asyncio.all_tasks()
    again = await watched.unhook().aquery(QUESTION)
    assert watched.expected == seen(again)
    await asyncio.to_thread(watched.ours.close)


def forget_events(heard: Heard) -> None:
    """Let go of what was told: the end of a query is told with its response."""
    heard.all[:] = [one for one in heard.all if one[0] != "event"]


def read_some(stream: Iterator[str], pieces: int) -> str:
    """Read so many pieces, or what there is."""
    return "".join(piece for _, piece in zip(range(pieces), stream, strict=False))


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("pieces", [0, 2])
@pytest.mark.parametrize("how", ["closed", "forgotten"])
def test_a_stream_that_is_left_half_way_leaves_nothing(
    how: str, pieces: int, workload: str
) -> None:
    """Closed, or with nobody who holds it: all ends at once, whatever was read of it."""
    watched = Watched("text", workload, streaming=True)
    with watched.ours, hearing() as heard:
        response: Any = watched.ours.query(QUESTION)
        shown = read_some(response.response_gen, pieces)
        if how == "closed":
            response.response_gen.close()
        forget_events(heard)
        del response
        gc.collect()

        assert watched.expected[1].startswith(shown)
        asyncio.run(nothing_open(heard, watched.legacy))
        assert watched.expected[1] == "".join(watched.ours.query(QUESTION).response_gen)


@pytest.mark.parametrize(
    ("model", "how", "pieces", "workload"),
    covering(
        ["text", "awaited"], ["closed", "forgotten", "cancelled"], [0, 2], WORKLOADS, strength=2
    ),
)
async def test_an_awaited_stream_that_is_left_half_way_leaves_nothing(
    model: str, how: str, pieces: int, workload: str
) -> None:
    """Closed, with nobody who holds it, or read by a task that is cancelled."""
    watched = Watched(model, workload, streaming=True)
    with hearing() as heard:
        response: Any = await watched.ours.aquery(QUESTION)
        stream = response.response_gen
        reading, shown = asyncio.Event(), ""

        async def aread(stream: Any) -> None:
            nonlocal shown
            async for piece in stream:
                shown += piece
                if shown.count(" ") >= pieces:
                    reading.set()
                    await asyncio.sleep(20)

        if how == "cancelled":
            task = asyncio.ensure_future(aread(stream))
            await asyncio.wait_for(reading.wait(), 5)
            task.cancel()
            await ended(task)
            await stream.aclose()
        else:
            for _ in range(pieces):
                shown += await anext(stream, "")
        if how == "closed":
            await stream.aclose()
        forget_events(heard)
        del stream, response
        gc.collect()
        await asyncio.sleep(0)  # for the event loop to hear of it
        await nobody_else()

        assert watched.expected[1].startswith(shown)
        await nothing_open(heard, watched.legacy)
    again: Any = await watched.ours.aquery(QUESTION)
    pieces_again = [piece async for piece in again.async_response_gen()]
    assert watched.expected[1] == "".join(pieces_again)
    await asyncio.to_thread(watched.ours.close)


@pytest.mark.parametrize("workload", WORKLOADS)
async def test_one_that_is_cancelled_does_not_touch_the_others(workload: str) -> None:
    """Of many that wait for one merged search, one goes away: the others get their answers."""
    index = VectorStoreIndex(made_nodes(), embed_model=WordEmbedding())
    hand, ours = pair(AsyncHashLLM(), index.as_retriever(), workload, schedule=STRIDE)
    expected = [seen(hand.query(question), empty=True) for question in QUESTIONS[:8]]
    assert sum(bool(one[2]) and one[1] not in EMPTY for one in expected) >= 6
    for turns in (0, 1, 5, 20):
        tasks = [asyncio.ensure_future(ours.aquery(question)) for question in QUESTIONS[:8]]
        for _ in range(turns):
            await asyncio.sleep(0)
        tasks[3].cancel()
        got = await asyncio.gather(*tasks, return_exceptions=True)

        assert isinstance(got.pop(3), asyncio.CancelledError)
        assert expected[:3] + expected[4:] == [seen(one, empty=True) for one in got]
    await asyncio.to_thread(ours.close)


class Interrupted(BaseException):
    """Stands for Ctrl-C."""


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("where", ["retriever", "model", "reader"])
def test_what_is_no_error_ends_everything(where: str, workload: str) -> None:
    """Ctrl-C in a part of the host's, or in what reads the stream: nothing goes on behind it."""
    watched = Watched("text", workload, streaming=where == "reader")

    def interrupts(text: str) -> None:
        if text in (watched.prompt, watched.query):
            raise Interrupted

    if where == "model":
        watched.llm.hook = interrupts
    elif where == "retriever":
        watched.retriever.hook = interrupts

    def read() -> None:
        for _ in watched.ours.query(QUESTION).response_gen:
            raise Interrupted

    with watched.ours, hearing() as heard:
        with pytest.raises(Interrupted):
            read()
        forget_events(heard)
        gc.collect()

        asyncio.run(nothing_open(heard, watched.legacy))
        watched.ours._response_synthesizer._streaming = False
        assert watched.expected == seen(watched.unhook().query(QUESTION))
