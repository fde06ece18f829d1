"""What is recorded of a call ends: with its telling, with its dropping, with its request."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import CompletionResponse
from llama_index.core.callbacks import CallbackManager, CBEventType
from llama_index.core.callbacks.base import global_stack_trace
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.span import active_span_id
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index_instrumentation import root_manager
from llama_index_instrumentation.dispatcher import Dispatcher
from llama_index_ralmspec import SpeculativeQueryEngine
from llama_index_ralmspec.host_calls import HostContext
from llama_index_ralmspec.recording import Recording, recorded, searched
from llama_index_ralmspec.replay import Replay, unawaited

from ralmspec_plugins import FixedStride
from tests.llama_index.engine_parts import QUESTIONS, AsyncWordLLM, WordLLM, an_index, hearing

_dispatcher = get_dispatcher(__name__)


class Said(BaseEvent):
    """Something that is told."""

    what: str


def say(what: str) -> None:
    _dispatcher.event(Said(what=what))


def said(heard: Any) -> list[str]:
    return [event.what for event in heard.events if isinstance(event, Said)]


@contextmanager
def a_call(recording: Recording) -> Iterator[contextvars.Context]:
    """Make a call that is recorded, and give what a thread begun in it would run in."""
    with recorded(recording):
        yield contextvars.copy_context()


def test_what_goes_on_behind_a_call_is_told_with_it_and_then_at_once() -> None:
    """Kept back until the call is told; from then on heard when it happens, and not stored."""
    recording = Recording()
    with hearing() as heard:
        with a_call(recording) as background:
            say("inside")
        background.run(say, "behind")
        assert said(heard) == []
        unawaited(Replay(recording).end())
        assert said(heard) == ["inside", "behind"]
        background.run(say, "later")

    assert ["inside", "behind", "later"] == said(heard)
    assert len(recording) == 2


def test_what_goes_on_behind_a_dropped_call_is_never_heard_of_nor_stored() -> None:
    """The request's end decides of every call that has not been told by then."""
    context = HostContext(QueryBundle("?"))
    recording = context.recording()
    with hearing() as heard:
        with a_call(recording) as background:
            say("inside")
        background.run(say, "behind")
        context.ended()
        background.run(say, "later")
        with a_call(context.recording()):
            say("a call that begins when its request is over")

    assert said(heard) == []
    assert len(recording) == 0


def test_what_goes_on_behind_a_call_that_broke_off_ends_with_the_request() -> None:
    """It was told in part, and then made once more: what it says is not heard, and not stored."""
    context = HostContext(QueryBundle("?"))
    broken, again = context.recording(), context.recording()
    with hearing() as heard:
        with a_call(broken) as background:
            say("once")
        first = Replay(broken)
        unawaited(first.hand_on(whole=False))
        with a_call(again):
            say("once")
            say("to its end")
        background.run(say, "broken")
        unawaited(Replay(again, after=first).end())
        context.ended()
        background.run(say, "later")

    assert ["once", "to its end"] == said(heard)
    assert len(broken) == 0


def test_what_goes_on_behind_a_search_is_told_at_once() -> None:
    """Requests share what was found, and its recording does not grow when the search is over."""
    recording = Recording()
    with hearing() as heard:
        with searched(recording):
            background = contextvars.copy_context()
            say("inside")
        background.run(say, "behind")

    assert said(heard) == ["behind"]
    assert len(recording) == 1


def test_what_is_told_late_stands_in_a_span_that_was_told() -> None:
    """Directly in a call: in the span where that is told. In a span of a search: around it."""
    recording = Recording(base="worker")
    span = _dispatcher.span(lambda: contextvars.copy_context())
    with hearing() as heard:
        with recorded(recording):
            background = contextvars.copy_context()
            background.run(active_span_id.set, "worker")
        token = active_span_id.set("request")
        unawaited(Replay(recording).end())
        background.run(say, "late")
        found = Recording(base="around")
        with searched(found):
            inside = span()
        inside.run(say, "later")
        active_span_id.reset(token)

    assert ["request", "around"] == [one.span_id for one in heard.events]


class Worker:
    """Tells what it is given, in a task or a thread that begins with the first."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.context: contextvars.Context | None = None
        self.queue: asyncio.Queue[str] = asyncio.Queue()

    def put(self, what: str) -> None:
        if self.context is None:
            self.context = contextvars.copy_context()
        thread = threading.Thread(target=self.context.run, args=(say, what))
        thread.start()
        thread.join()

    async def aput(self, what: str) -> None:
        if self.task is None:
            self.task = asyncio.create_task(self.work())
        self.queue.put_nowait(what)
        await self.queue.join()

    async def work(self) -> None:
        while True:
            say(await self.queue.get())
            self.queue.task_done()

    async def close(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])


class Working(BaseNodePostprocessor):
    """Has a worker tell of what it does."""

    worker: Any

    def _postprocess_nodes(self, nodes: Any, query_bundle: Any = None) -> Any:
        self.worker.put("work")
        return nodes

    async def _apostprocess_nodes(self, nodes: Any, query_bundle: Any = None) -> Any:
        await self.worker.aput("work")
        return nodes


class WorkingRetriever(BaseRetriever):
    """The same, of a retriever."""

    def __init__(self, inner: BaseRetriever, worker: Worker) -> None:
        self.inner, self.worker = inner, worker
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        self.worker.put("work")
        return self.inner.retrieve(query_bundle)

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        await self.worker.aput("work")
        return await self.inner.aretrieve(query_bundle)


def working(where: str, worker: Worker, llm: Any) -> RetrieverQueryEngine:
    retriever: Any = an_index().as_retriever(similarity_top_k=2)
    if where == "retriever":
        return RetrieverQueryEngine.from_args(WorkingRetriever(retriever, worker), llm=llm)
    processors: Any = [Working(worker=worker)]
    return RetrieverQueryEngine.from_args(retriever, llm=llm, node_postprocessors=processors)


@pytest.mark.parametrize("where", ["retriever", "postprocessor"])
def test_a_worker_that_a_call_begins_is_heard_as_at_the_host(where: str) -> None:
    """Its work for the first answer, for later ones, and in between. Nothing is guessed here."""
    told = []
    for ours in (False, True):
        worker = Worker()
        engine = working(where, worker, WordLLM())
        engine = SpeculativeQueryEngine.wrap(engine, pool=None) if ours else engine
        with hearing() as heard:
            for question in QUESTIONS[:3]:
                engine.query(question)
            worker.put("later")
        told.append(said(heard))

    assert ["work"] * 3 + ["later"] == told[0] == told[1]


@pytest.mark.parametrize("where", ["retriever", "postprocessor"])
async def test_a_task_that_a_call_begins_is_heard_as_at_the_host(where: str) -> None:
    """The same on an event loop."""
    told = []
    for ours in (False, True):
        worker = Worker()
        engine = working(where, worker, AsyncWordLLM())
        engine = SpeculativeQueryEngine.wrap(engine, pool=None) if ours else engine
        with hearing() as heard:
            for question in QUESTIONS[:3]:
                await engine.aquery(question)
            await worker.aput("later")
        await worker.close()
        told.append(said(heard))

    assert ["work"] * 3 + ["later"] == told[0] == told[1]


class Own(CallbackManager):
    """A callback manager that notes what it is told, and calls the host's."""

    def __init__(self) -> None:
        self.noted: list[str] = []
        super().__init__([])

    def on_event_start(self, event_type: CBEventType, *args: Any, **kwargs: Any) -> str:
        self.noted.append(f"start {event_type.value}")
        return super().on_event_start(event_type, *args, **kwargs)

    def on_event_end(self, event_type: CBEventType, *args: Any, **kwargs: Any) -> None:
        self.noted.append(f"end {event_type.value}")
        super().on_event_end(event_type, *args, **kwargs)


def test_a_callback_manager_of_a_users_class_hears_the_committed_calls_alone() -> None:
    """Its own methods run for what the host tells it, not for guesses; of new classes too."""
    llm = WordLLM()
    host = RetrieverQueryEngine.from_args(an_index().as_retriever(similarity_top_k=3), llm=llm)
    settings = {"schedule": FixedStride(stride=2), "prefetch": 3}  # some guesses are wrong
    with SpeculativeQueryEngine.wrap(host, **settings) as ours:
        ours.query("Before the class is there?")

        class New(Own):
            """Begins to be when queries were answered already."""

            def on_event_start(self, event_type: CBEventType, *args: Any, **kwargs: Any) -> str:
                self.noted.append("new")
                return super().on_event_start(event_type, *args, **kwargs)

        llm.callback_manager = manager = New()
        for question in QUESTIONS:
            host.query(question)
        expected, manager.noted = manager.noted, []
        made = len(llm.prompts)
        for question in QUESTIONS:
            ours.query(question)

    assert len(llm.prompts) - made > len(QUESTIONS)
    assert expected == manager.noted


def test_a_dispatcher_of_a_users_class_tells_once() -> None:
    """What it overrides runs when a call is told, and what it calls is not recorded again."""

    class Loud(Dispatcher):
        def event(self, event: BaseEvent, **kwargs: Any) -> None:
            super().event(Said(what=event.what.upper()), **kwargs)  # type: ignore[attr-defined]

    loud = Loud("loud", parent_name="root", manager=root_manager)
    recording = Recording()
    with hearing() as heard:
        with recorded(recording):
            loud.event(Said(what="once"))
        assert len(recording) == 1
        unawaited(Replay(recording).end())

    assert said(heard) == ["ONCE"]


def test_the_end_of_a_callback_that_began_in_a_recorded_call_leaves_the_stack_alone() -> None:
    """Two ends behind the call, whose starts were kept back: nothing else is taken off."""
    manager = CallbackManager([])
    recording = Recording()

    def ends(ids: list[str]) -> list[str]:
        for event_id in ids:
            manager.on_event_end(CBEventType.QUERY, event_id=event_id)
        return list(global_stack_trace.get())

    with a_call(recording) as background:
        begun = [background.run(manager.on_event_start, CBEventType.QUERY) for _ in range(2)]
    before = list(global_stack_trace.get())
    unawaited(Replay(recording).end())

    assert before == background.run(ends, begun[::-1])


class Hears(BaseEventHandler):
    """Hears, and says in which way."""

    heard: list[tuple[str, str]]

    def handle(self, event: BaseEvent, **_: Any) -> None:
        if isinstance(event, Said):
            self.heard.append(("handle", event.what))

    async def ahandle(self, event: BaseEvent, **_: Any) -> None:
        await asyncio.sleep(0)
        if isinstance(event, Said):
            self.heard.append(("ahandle", event.what))


class TellingLLM(AsyncWordLLM):
    """Tells by `aevent`, and before and behind that by `event`."""

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        asyncio.run(self._tell())
        return super().complete(prompt, formatted, **kwargs)

    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        await self._tell()
        return await super().acomplete(prompt, formatted, **kwargs)

    async def _tell(self) -> None:
        say("before")
        await _dispatcher.aevent(Said(what="waits"))
        say("behind")


@contextmanager
def hearing_both() -> Iterator[list[tuple[str, str]]]:
    handler, root = Hears(heard=[]), get_dispatcher()
    root.add_event_handler(handler)
    try:
        yield handler.heard
    finally:
        root.event_handlers.remove(handler)


def telling_pair() -> tuple[Any, Any]:
    retriever = an_index().as_retriever(similarity_top_k=3)
    host = RetrieverQueryEngine.from_args(retriever, llm=TellingLLM())
    return host, SpeculativeQueryEngine.wrap(host)


async def test_asynchronous_events_are_kept_back_and_told_in_order() -> None:
    """Handlers' `ahandle` hears them, once for each committed call, before what came later."""
    told = []
    for engine in telling_pair():
        with hearing_both() as heard:
            for question in QUESTIONS:
                await engine.aquery(question)
        told.append(list(heard))

    assert [("handle", "before"), ("ahandle", "waits"), ("handle", "behind")] * 5 == told[0]
    assert told[0] == told[1]


def test_asynchronous_events_of_a_query_without_a_loop_are_told_by_handle() -> None:
    """There is no loop on which the request's own context could wait for a handler."""
    _, ours = telling_pair()
    with ours, hearing_both() as heard:
        ours.query(QUESTIONS[0])

    assert [("handle", one) for one in ("before", "waits", "behind")] == heard
