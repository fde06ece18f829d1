"""A garbage collection may interrupt any thread, and end there what is not referenced any more.

A stream of an answer is closed by it: its segment is told to stop, and waited for. A coroutine
whose event loop has ended is closed, too. Here both happen at each line of the code that counts
them.
"""

import asyncio
import contextvars
import sys
import threading
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from itertools import count
from types import FrameType, ModuleType
from typing import Any, Final, TypeAlias

import pytest

from ralmspec_plugins import ModelQueue
from ralmspec_plugins.adapters import agent_limits
from ralmspec_plugins.adapters.agent_limits import AgentCounters
from ralmspec_plugins.errors import Cancelled
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.scheduling import load, model_queue, processor
from ralmspec_plugins.scheduling.load import ModelLoad
from ralmspec_plugins.scheduling.processor import ProcessorLoad

WAIT_S: Final = 10.0  # until a thread counts as stuck

Call: TypeAlias = Callable[[Progress], AbstractContextManager[None]]
Ends: TypeAlias = Callable[[], None]


def interrupted(work: Callable[[], object], module: ModuleType, end: Ends, line: int) -> bool:
    """Do work in a thread that is interrupted at one of the module's lines, as they come.

    Returns:
        Whether the work has so many lines.
    """
    left, raised = line, list[BaseException]()

    def at_line(_frame: FrameType, event: str, _value: object) -> Any:
        nonlocal left
        left -= event == "line"
        if event == "line" and left == 0:
            end()
        return at_line

    def at_call(frame: FrameType, _event: str, _value: object) -> Any:
        return at_line if frame.f_code.co_filename == module.__file__ else None

    def traced() -> None:
        sys.settrace(at_call)
        try:
            work()
        except BaseException as error:
            raised.append(error)
        finally:
            sys.settrace(None)

    thread = threading.Thread(target=traced, daemon=True)
    thread.start()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert raised == []
    return left <= 0


def at_each_line(work: Callable[[], object], module: ModuleType, begin: Callable[[], Ends]) -> None:
    """Do work as often as it has lines; each time end at another line what is begun before."""
    for line in count(1):
        end = begin()
        if not interrupted(work, module, end, line):
            end()
            assert line > 2
            return


@dataclass
class Elsewhere:
    """A call in a thread of its own, which ends when it is told to."""

    call: Call
    progress: Progress = field(default_factory=Progress)
    told: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        with suppress(Cancelled), self.call(self.progress):
            self.begun.set()
            self.told.wait()

    def end(self) -> None:
        """Stop the call, and wait for the end of its thread, as the end of a stream does."""
        self.progress.cancel()
        self.told.set()
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()


def begun(call: Call) -> Ends:
    """Begin a call in another thread; return what ends it, and waits for that."""
    elsewhere = Elsewhere(call)
    assert elsewhere.begun.wait(WAIT_S)
    return elsewhere.end


def left_behind(call: Callable[[], Coroutine[Any, Any, None]]) -> Ends:
    """Begin a call on an event loop that ends before it; return what collects its coroutine."""
    loop = asyncio.new_event_loop()
    task: Any = loop.create_task(call(), context=contextvars.Context())
    task._log_destroy_pending = False
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    return lambda: task.get_coro().close()


def calls_in(queue: ModelQueue) -> Callable[[], Coroutine[Any, Any, None]]:
    """Return a coroutine function whose turn does not end."""

    async def acall() -> None:
        async with queue.aturn(Progress()):
            await asyncio.Event().wait()

    return acall


async def forever(call: AbstractContextManager[None]) -> None:
    with call:
        await asyncio.Event().wait()


def once(call: Call) -> Callable[[], None]:
    def work() -> None:
        with call(Progress()):
            pass

    return work


def test_segments_end_wherever_they_are_collected() -> None:
    """The number of those in progress is right afterwards."""
    model = ModelLoad()

    def call(_: Progress) -> AbstractContextManager[None]:
        return model.segment(lambda: 0.0)

    at_each_line(once(call), load, lambda: begun(call))
    at_each_line(once(call), load, lambda: left_behind(lambda: forever(call(Progress()))))

    assert model.running == 0


def test_calls_of_agents_end_wherever_they_are_collected() -> None:
    """And none of them delays a call of another run."""
    of_agents = ProcessorLoad(lambda: 0.0)

    def call(_: Progress) -> AbstractContextManager[None]:
        of_agents.is_spare()
        return of_agents.call()

    at_each_line(once(call), processor, lambda: begun(call))
    at_each_line(once(call), processor, lambda: left_behind(lambda: forever(of_agents.call())))

    assert of_agents.running == 0
    assert of_agents.is_spare()


def test_turns_end_wherever_they_are_collected() -> None:
    """The queue is empty in the end."""
    queue = ModelQueue(2)

    def call(progress: Progress) -> AbstractContextManager[None]:
        return queue.turn(progress)

    at_each_line(once(call), model_queue, lambda: begun(call))
    at_each_line(once(call), model_queue, lambda: left_behind(calls_in(queue)))

    assert (queue.running, queue.waiting) == (0, 0)


def test_turns_that_wait_end_wherever_they_are_collected() -> None:
    """They are told to stop while another call has the only turn."""
    queue = ModelQueue(1)

    def call(progress: Progress) -> AbstractContextManager[None]:
        return queue.turn(progress)

    def work() -> None:
        gone = Progress()
        gone.cancel()
        with pytest.raises(Cancelled), queue.turn(gone):
            pass

    end = begun(call)
    at_each_line(work, model_queue, lambda: Elsewhere(call).end)
    at_each_line(work, model_queue, lambda: left_behind(calls_in(queue)))
    assert (queue.running, queue.waiting) == (1, 0)
    end()

    assert (queue.running, queue.waiting) == (0, 0)


def test_the_counts_of_agents_are_added_wherever_a_call_is_collected() -> None:
    """Also while they are read."""
    counters, ended = AgentCounters(), list[int]()

    def begin() -> Ends:
        ended.append(1)
        return lambda: counters.add(dropped=1)

    def work() -> None:
        counters.add(model_calls=1)
        assert counters.stats.model_calls
        assert counters.began_ahead(1.0)

    at_each_line(work, agent_limits, begin)

    assert counters.stats.dropped == len(ended) == counters.stats.model_calls


@pytest.mark.parametrize("in_order", [True, False])
def test_a_turn_is_given_back_by_a_coroutine_whose_loop_has_ended(in_order: bool) -> None:
    """Though it is closed in another context than it ran in, with or without its turn."""
    queue = ModelQueue(1)
    ends = [left_behind(calls_in(queue)) for _ in range(2)]
    assert (queue.running, queue.waiting) == (1, 1)
    for end in ends if in_order else reversed(ends):
        end()

    assert (queue.running, queue.waiting) == (0, 0)
    with queue.turn(Progress()):
        assert queue.running == 1
