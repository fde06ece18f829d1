"""The queue in front of a model: who goes first, in virtual time and in threads."""

import asyncio
import multiprocessing
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ralmspec_plugins import AsyncEngine, Continuous, Engine, ModelQueue, Settings, plain
from ralmspec_plugins.errors import Cancelled, ConfigError, DeadlineExceeded
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Answer, Hits, Query, Request
from tests.drivers import Outcome, plainly
from tests.test_loop import STEPS, Counting, Guesser, Numbered, hit
from tests.virtual_time import VirtualClock, VirtualLoop
from tests.worlds import Oracle, World, WorldError, WorldRetriever, WorldWorkload, random_world


def in_virtual_time(work: Callable[[], Any]) -> Any:
    """Run a coroutine on a loop of its own, whose timers take no real time."""
    loop = VirtualLoop(VirtualClock(), 0.0)
    try:
        return loop.run_until_complete(work())
    finally:
        loop.close()


@dataclass
class Calls:
    """The calls of a model, in the order in which they were begun."""

    begun: list[str] = field(default_factory=list)
    running: int = 0
    most: int = 0

    async def call(self, name: str, seconds: float) -> None:
        self.begun.append(name)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.running -= 1


def test_confirmed_calls_overtake_speculative_ones() -> None:
    """One is being made; of those that wait, the confirmed go first, each kind in its order."""
    queue, calls = ModelQueue(1), Calls()

    async def one(name: str, *, speculative: bool) -> None:
        async with queue.aturn(Progress(), speculative=speculative):
            await calls.call(name, 1.0)

    async def all_calls() -> None:
        names = ("s1", "s2", "c1", "s3", "c2")
        await asyncio.gather(*(one(name, speculative=name[0] == "s") for name in names))

    in_virtual_time(all_calls)

    assert calls.begun == ["s1", "c1", "c2", "s2", "s3"]
    assert (calls.most, queue.running, queue.waiting) == (1, 0, 0)


def test_a_call_that_is_verified_while_it_waits_goes_before_those_that_are_not() -> None:
    """In the order of arrival among the confirmed ones."""
    queue, calls = ModelQueue(1), Calls()
    late = Progress()

    async def one(name: str, progress: Progress) -> None:
        async with queue.aturn(progress, speculative=True):
            await calls.call(name, 1.0)

    async def verified() -> None:
        await asyncio.sleep(0.5)
        late.confirmed = True

    async def all_calls() -> None:
        calls_of = [one(name, Progress()) for name in ("s1", "s2", "s3")]
        await asyncio.gather(*calls_of, one("late", late), verified())

    in_virtual_time(all_calls)

    assert calls.begun == ["s1", "late", "s2", "s3"]


def test_a_call_that_is_no_longer_needed_leaves() -> None:
    """Told by its progress or by the cancellation of its task; others are not delayed."""
    queue, calls = ModelQueue(1), Calls()
    stopped = Progress()

    async def one(name: str, progress: Progress) -> str:
        try:
            async with queue.aturn(progress):
                await calls.call(name, 1.0)
        except Cancelled:
            return "told"
        return "made"

    async def all_calls() -> list[Any]:
        tasks = [
            asyncio.ensure_future(one(name, progress))
            for name, progress in (
                ("first", Progress()),
                ("stopped", stopped),
                ("cancelled", Progress()),
                ("last", Progress()),
            )
        ]
        await asyncio.sleep(0.5)
        stopped.cancel()
        tasks[2].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    outcomes = in_virtual_time(all_calls)

    assert calls.begun == ["first", "last"]
    assert outcomes[:2] == ["made", "told"]
    assert isinstance(outcomes[2], asyncio.CancelledError)
    assert (queue.running, queue.waiting) == (0, 0)


def test_threads_wait_for_each_other_and_leave_when_told() -> None:
    """The same queue as for tasks."""
    queue, order = ModelQueue(1), []
    may_end, stopped = threading.Event(), Progress()

    def one(name: str, progress: Progress, *, speculative: bool) -> None:
        try:
            with queue.turn(progress, speculative=speculative):
                order.append(name)
                may_end.wait()
        except Cancelled:
            order.append(f"{name} told")

    threads = []
    for number, (name, progress, speculative) in enumerate(
        (
            ("a", Progress(), True),
            ("b", Progress(), True),
            ("c", stopped, True),
            ("d", Progress(), False),
        )
    ):
        thread = threading.Thread(
            target=one, args=(name, progress), kwargs={"speculative": speculative}
        )
        thread.start()
        threads.append(thread)
        while queue.running + queue.waiting <= number:
            pass
    stopped.cancel()
    threads[2].join()
    may_end.set()
    for thread in threads:
        thread.join()

    assert order == ["a", "c told", "d", "b"]


def test_a_call_inside_a_call_does_not_wait_for_itself() -> None:
    """Neither in a thread nor in a task."""
    queue = ModelQueue(1)
    with queue.turn(Progress()), queue.turn(Progress()):
        assert queue.running == 1

    async def nested() -> int:
        async with queue.aturn(Progress()), queue.aturn(Progress()):
            return queue.running

    assert in_virtual_time(nested) == 1
    assert queue.running == 0


@pytest.mark.parametrize("most", [0, -1, 1.0, True, None, "2"])
def test_a_limit_without_a_meaning_is_refused(most: Any) -> None:
    """At once."""
    with pytest.raises(ConfigError, match="max_concurrent_calls must be a whole number"):
        ModelQueue(most)
    with pytest.raises(ConfigError, match=r"model_queue must be a ModelQueue\(\.\.\.\)"):
        Settings(model_queue=most or 1)  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_begins_anew() -> None:
    """The calls that were being made are those of the parent."""
    queue = ModelQueue(1)
    with queue.turn(Progress()):
        child = multiprocessing.get_context("fork").Process(target=_in_child, args=(queue,))
        child.start()
        child.join(20)
        assert child.exitcode == 0


def _in_child(queue: ModelQueue) -> None:
    def call() -> None:
        with queue.turn(Progress()):
            pass

    thread = threading.Thread(target=call, daemon=True)  # in a context without the parent's turn
    thread.start()
    thread.join(10)
    os._exit(thread.is_alive())


# Engines


class Slow(Counting):
    """Writes in a second of virtual time, and notes for whom."""

    def __init__(self, calls: Calls) -> None:
        super().__init__()
        self.calls = calls

    def start(self, request: Request) -> str:
        return ""

    async def aextend(self, state: str, hits: Hits, progress: Progress) -> str:
        await self.calls.call(self.name_of(hits), 1.0)
        return self.extend(state, hits, progress)

    def name_of(self, hits: Hits) -> str:
        return "confirmed" if hits[0].passage.id.startswith("p") else "speculative"


class Far(Numbered):
    """Takes its time."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    async def asearch(self, queries: Sequence[Query]) -> list[Hits]:
        await asyncio.sleep(self._seconds)
        return self.search(queries)


def test_one_request_s_confirmed_segment_overtakes_others_speculative_ones() -> None:
    """Three requests guess wrong and wait for the model; the one that guesses nothing is served.

    Its search takes half a second. One speculative segment is being written then, and two wait:
    its segment is the next one.
    """
    queue, order = ModelQueue(1), Calls()

    class Named(Slow):
        def __init__(self, name: str) -> None:
            super().__init__(order)
            self._name = name

        def name_of(self, hits: Hits) -> str:
            return self._name

    async def all_requests() -> list[Answer]:
        async with (
            AsyncEngine(
                Named("ahead"),
                Far(10.0),
                Settings(
                    speculators=[Guesser({n: hit(7 - n) for n in range(STEPS)})], model_queue=queue
                ),
            ) as ahead,
            AsyncEngine(
                Named("sure"), Far(0.5), Settings(speculators=[], model_queue=queue)
            ) as sure,
        ):
            return list(await asyncio.gather(*(ahead.run("") for _ in range(3)), sure.run("")))

    answers = in_virtual_time(all_requests)

    assert ["ahead", "sure"] == order.begun[:2]
    assert order.begun[:8].count("sure") >= 3
    assert {"abcdefgh"} == {answer.text for answer in answers}
    assert order.most == 1


def test_a_request_that_waits_ends_at_its_deadline() -> None:
    """It does not wait for a turn that it no longer needs, and takes no place."""
    queue = ModelQueue(1)
    settings = Settings(speculators=[], model_queue=queue)
    blocked = threading.Event()

    with Engine(Counting(), Numbered(), settings) as engine, queue.turn(Progress()):
        with pytest.raises(DeadlineExceeded):
            # In a thread, whose context is not that of the turn here.
            _in_a_thread(lambda: engine.run(Request(prompt="", deadline_s=0.05)))
        blocked.set()
        assert (queue.running, queue.waiting) == (1, 0)
    assert queue.running == 0


def _in_a_thread(work: Callable[[], Any]) -> Any:
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(work())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def test_a_batch_has_the_queue_of_its_engine() -> None:
    """Many requests in threads; no more calls at once than it allows, and the plain answers."""

    class Watched(Counting):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()
            self.running = self.most = 0

        def extend(self, state: str, hits: Hits, progress: Progress) -> str:
            with self.lock:
                self.running += 1
                self.most = max(self.most, self.running)
            try:
                threading.Event().wait(0.001)
                return super().extend(state, hits, progress)
            finally:
                with self.lock:
                    self.running -= 1

    workload = Watched()
    wrong = Guesser({n: hit(0) for n in range(0, STEPS, 2)})
    chosen = Settings(schedule=Continuous(lanes=4), speculators=[wrong], model_queue=ModelQueue(2))
    with Engine(workload, Numbered(), chosen) as engine:
        answers = engine.batch([""] * 12, max_concurrency=12)
        answers += [engine.run("")]

    assert [plain(Counting(), Numbered(), "").text] * 13 == [answer.text for answer in answers]
    assert workload.most == 2


# Random worlds, several at once


class WatchedQueue(ModelQueue):
    """Asserts at each grant that no confirmed call waits while a speculative one is taken."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self.seen: Counter[str] = Counter()
        self.needs: dict[int, Any] = {}

    def _admit(self) -> None:
        before, overtaken = list(self._turns), [one for one in self._turns if one.urgent]
        super()._admit()
        granted = [one for one in before if one.granted]
        self.seen["granted"] += len(granted)
        self.seen["waited"] += bool(self._turns)
        for one in granted:
            if not one.urgent:
                assert all(other.granted for other in overtaken)
            elif any(not other.granted for other in before[: before.index(one)]):
                self.seen["overtook"] += 1
            if one.speculative and one.progress.confirmed:
                self.seen["promoted"] += 1
        assert self.running <= self.max_concurrent_calls
        assert not self._turns or self.running == self.max_concurrent_calls


class Paced(WorldWorkload):
    """Writes in some virtual time that a seed decides."""

    def __init__(self, world: World, seed: int) -> None:
        super().__init__(world)
        self._dice = random.Random(f"pace {seed}")

    async def aquery(self, state: Any) -> Any:
        await asyncio.sleep(self._dice.choice((0.0, 0.5)))
        return self.query(state)

    async def aextend(self, state: Any, hits: Hits, progress: Progress) -> Any:
        await asyncio.sleep(self._dice.choice((0.5, 1.0, 1.0, 3.0)))
        return self.extend(state, hits, progress)


class PacedRetriever(WorldRetriever):
    """Searches in some virtual time."""

    def __init__(self, world: World, seed: int) -> None:
        super().__init__(world)
        self._dice = random.Random(f"search {seed}")

    async def asearch(self, queries: Sequence[Query]) -> list[Hits]:
        await asyncio.sleep(self._dice.choice((0.5, 2.0, 5.0)))
        return self.search(queries)


async def together(worlds: Sequence[World], queue: ModelQueue, seed: int) -> list[Outcome]:
    """Answer a request of each world at once; all engines share the queue."""

    async def answered(number: int, world: World) -> Outcome:
        dice = random.Random(f"{seed} {number}")
        oracle = Oracle(world, dice.choice((0.2, 0.5, 0.8)), inline=True)
        chosen = Settings(
            schedule=Continuous(lanes=dice.choice((1, 4))),
            speculators=[oracle],
            speculate=dice.random() < 0.8,
            model_queue=queue,
        )
        parts = Paced(world, seed + number), PacedRetriever(world, seed + number)
        async with AsyncEngine(*parts, chosen) as engine:
            try:
                return Outcome.of(await engine.run(world.request))
            except WorldError as error:
                return Outcome.failed(error)

    return list(await asyncio.gather(*(answered(at, one) for at, one in enumerate(worlds))))


def test_requests_that_share_a_queue_answer_as_the_plain_loop(
    record_property: Callable[[str, object], None],
) -> None:
    """Whoever waits for whom; confirmed calls first, and as many at once as there may be."""
    seen: Counter[str] = Counter()

    @settings(
        max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(seed=st.integers(0, 2**63))
    def equal(seed: int) -> None:
        dice = random.Random(seed)
        worlds = [random_world(dice.randrange(2**40)) for _ in range(dice.choice((2, 4, 6)))]
        worlds = [one for one in worlds if not one.carries] or [random_world(1)]
        queue = WatchedQueue(dice.choice((1, 1, 2)))
        expected = [plainly(world).without_events() for world in worlds]
        actual = in_virtual_time(lambda: together(worlds, queue, seed))

        assert expected == [one.without_events() for one in actual]
        assert (queue.running, queue.waiting) == (0, 0)
        seen.update(queue.seen)

    equal()
    record_property("queue", dict(seen))
    assert seen["waited"] > 0.1 * seen["granted"]  # how often depends on the machine
    assert seen["overtook"] > 20
    assert seen["promoted"] > 20
