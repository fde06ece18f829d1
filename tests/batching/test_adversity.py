"""What must not hang or leak: threads that cannot start, loops that stop, nested searches."""

import asyncio
import gc
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from ralmspec_plugins import Verifier
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.testing import WordRetriever
from ralmspec_plugins.types import Hits, Query
from tests.batching.gated import TEXTS, AsyncGated, Gated, aeventually, eventually


def alone(text: str) -> Hits:
    """Search a text without anybody else."""
    return WordRetriever(TEXTS).search([Query(text)])[0]


def soon(search: Callable[[], Any]) -> Any:
    """Do something that might hang, in a thread that need not be waited for."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(search()), daemon=True)
    thread.start()
    thread.join(10)
    assert found, "it hangs"
    return found[0]


def test_a_thread_that_cannot_be_started_costs_no_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the machine has no thread left, callers search in their own; later ones in lanes."""

    def exhausted(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    store = WordRetriever(TEXTS)
    verifier = Verifier(store)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", exhausted)
        assert [alone("word1")] == verifier.search([Query("word1")])
    assert (1, 0) == (verifier.stats.repeated, verifier.stats.running)

    assert [alone("word2")] == soon(lambda: verifier.search([Query("word2")]))
    assert 1 == verifier.stats.searches
    assert [("word1",), ("word2",)] == store.searched  # the one that could not start never does


def test_a_program_can_end_while_threads_search() -> None:
    """When the main thread is through, no pool takes work any more: each searches for himself."""
    program = textwrap.dedent(
        """
        import threading, time
        from ralmspec_plugins import Verifier
        from ralmspec_plugins.types import Query
        from tests.batching.gated import Gated, eventually

        store = Gated()
        verifier = Verifier(store)
        def search(text):
            [hits] = verifier.search([Query(text)])
            print(f"{len(hits)} ", end="", flush=True)  # one write, so that none are mixed
        for number in range(3):
            threading.Thread(target=search, args=(f"word{number}",)).start()
        eventually(lambda: verifier.stats.calls == 3)
        threading.Timer(0.2, store.admit).start()
        """
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )

    assert (["1"] * 3, "") == (ran.stdout.split(), ran.stderr)


def test_a_signature_must_be_hashable() -> None:
    """A tenant that cannot be told apart is refused before it can stand in anybody's way."""
    bad = WordRetriever(TEXTS)
    bad.signature = ["words"]  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="signature must be hashable"):
        Verifier(bad)
    with pytest.raises(ConfigError, match="signature must be hashable"):
        Verifier(WordRetriever(TEXTS)).beside(bad)


def test_patience_may_be_endless() -> None:
    """Infinity is a number too."""
    with Verifier(WordRetriever(TEXTS), patience_s=float("inf")) as verifier:
        assert [alone("word1")] == verifier.search([Query("word1")])


def test_a_retriever_may_ask_its_own_verifier() -> None:
    """What a search asks itself runs in its lane, and waits for no other."""

    class Composed(WordRetriever):
        def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
            if queries[0].text == "outer":
                return verifier.search([Query("word1")])
            return super().search_wide(queries, width)

    verifier = Verifier(Composed(TEXTS))

    assert [alone("word1")] == soon(lambda: verifier.search([Query("outer")]))


def run(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine that might hang."""
    return soon(lambda: asyncio.run(main()))


class Free(WordRetriever):
    """Searches on the event loop and never waits."""

    async def asearch(self, queries: Sequence[Query]) -> list[Hits]:
        return self.search(queries)


def test_an_asynchronous_retriever_may_ask_its_own_verifier() -> None:
    """The same on an event loop."""

    class Composed(Free):
        async def asearch(self, queries: Sequence[Query]) -> list[Hits]:
            if queries[0].text == "outer":
                return await verifier.asearch([Query("word1")])
            return self.search(queries)

    verifier = Verifier(Composed(TEXTS))

    assert [alone("word1")] == run(lambda: verifier.asearch([Query("outer")]))


def test_a_retriever_may_be_asynchronous_only() -> None:
    """What has no `search` is awaited."""

    class Only:
        signature = "only"

        async def asearch(self, queries: Sequence[Query]) -> list[Hits]:
            return WordRetriever(TEXTS).search(queries)

    verifier = Verifier(Only())  # type: ignore[arg-type]

    assert [alone("word1")] == run(lambda: verifier.asearch([Query("word1")]))


def test_a_search_that_blocks_its_event_loop_does_not_wait_for_it() -> None:
    """Held up by the caller, the loop cannot end the search that has the lane, nor begin one."""

    async def main() -> list[Hits]:
        store = AsyncGated()
        verifier = Verifier(store)
        tasks = [asyncio.create_task(verifier.asearch([Query(f"word{at}")])) for at in range(2)]
        await aeventually(lambda: len(store.searched) == 1)
        found = verifier.search([Query("word2")])
        store.admit()
        await asyncio.gather(*tasks)
        return found

    assert [alone("word2")] == run(main)


def test_a_stopped_loop_keeps_no_lane() -> None:
    """Others go on while it stands still, and its own callers when it runs again."""
    store = AsyncGated()
    verifier = Verifier(store)
    loop = asyncio.new_event_loop()
    tasks = [loop.create_task(verifier.asearch([Query(f"word{at}")])) for at in range(2)]
    loop.run_until_complete(aeventually(lambda: len(store.searched) == 1))

    assert [alone("word2")] == soon(lambda: verifier.search([Query("word2")]))
    store.admit()
    found = loop.run_until_complete(asyncio.wait_for(asyncio.gather(*tasks), 10))
    loop.close()
    assert [[alone("word0")], [alone("word1")]] == found
    assert 0 == verifier.stats.running


def test_callers_may_be_collected_under_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The garbage collection ends coroutines of a lost loop wherever it happens to come."""
    store = AsyncGated()
    verifier = Verifier(store, max_batch=1)
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # it complains about what was thrown away
    tasks = [loop.create_task(verifier.asearch([Query(f"word{at}")])) for at in range(3)]
    loop.run_until_complete(aeventually(lambda: len(store.searched) == 1))
    loop.close()
    del tasks
    store._gate = asyncio.Semaphore(0)
    line = verifier._lanes._queue
    take = line.next_batch

    def take_and_collect(most: int) -> Any:
        gc.collect()
        return take(most)

    monkeypatch.setattr(line, "next_batch", take_and_collect)

    assert [alone("word9")] == soon(lambda: verifier.search([Query("word9")]))


def test_a_task_factory_of_old_loses_no_search() -> None:
    """One that knows no `context` cannot make the search's task, so its caller does it himself."""

    async def main() -> list[Hits]:
        loop: Any = asyncio.get_running_loop()
        loop.set_task_factory(lambda loop, work: asyncio.Task(work, loop=loop))
        return await Verifier(Free(TEXTS)).asearch([Query("word1")])

    assert [alone("word1")] == run(main)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_eager_tasks_leave_nothing_behind() -> None:
    """A search that ends before its task is known is over all the same."""
    verifier = Verifier(Free(TEXTS))

    async def main() -> None:
        factory: Any = getattr(asyncio, "eager_task_factory")  # noqa: B009 unknown to 3.11
        asyncio.get_running_loop().set_task_factory(factory)
        for number in range(3):
            assert [alone(f"word{number}")] == await verifier.asearch([Query(f"word{number}")])

    for _ in range(2):
        run(main)
        assert 0 == verifier.stats.running


def test_a_cancelled_search_cleans_up_in_peace() -> None:
    """Another caller that goes away does not cancel it a second time."""
    cleaned: list[str] = []

    class Cleaning(WordRetriever):
        async def asearch(self, queries: Sequence[Query]) -> list[Hits]:
            try:
                await asyncio.sleep(100)
            finally:
                await asyncio.sleep(0.05)
                cleaned.append(queries[0].text)
            return []

    async def main() -> bool:
        verifier = Verifier(Cleaning(TEXTS), lanes=2)
        tasks = [asyncio.create_task(verifier.asearch([Query(text)])) for text in ("a", "b")]
        for task in tasks:
            await aeventually(lambda: verifier.stats.searches == 2)
            await asyncio.sleep(0.01)
            task.cancel()
        await aeventually(lambda: verifier.stats.running == 0)
        return True

    assert run(main)
    assert ["a", "b"] == cleaned


def test_what_nobody_wants_is_not_begun() -> None:
    """A caller that goes between being taken from the line and the search's first step."""

    async def main() -> list[tuple[str, ...]]:
        store = AsyncGated()
        verifier = Verifier(store)
        tasks = [asyncio.create_task(verifier.asearch([Query(f"word{at}")])) for at in range(2)]
        await aeventually(lambda: len(store.searched) == 1)
        store.admit(1)  # the first search's task comes next,
        tasks[1].cancel()  # then this, and only then the second search
        await asyncio.wait(tasks)
        await asyncio.sleep(0.01)
        assert 0 == verifier.stats.running
        return store.searched

    assert [("word0",)] == run(main)


def test_lazy_results_fail_where_they_are_waited_for() -> None:
    """A cursor that breaks while it is read is an error of the search."""

    class Cursor(list[Hits]):
        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Any:
            raise ValueError("cursor lost")

    class Lazy(Gated):
        def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
            return Cursor()

    verifier = Verifier(Lazy())

    def search() -> str:
        with pytest.raises(ValueError, match="cursor lost"):
            verifier.search([Query("word1")])
        return "raised"

    assert "raised" == soon(search)
    eventually(lambda: verifier.stats.running == 0)
