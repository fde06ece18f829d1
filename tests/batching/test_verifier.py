"""One retriever for many callers: batches are merged, and nobody notices the others."""

import asyncio
import contextvars
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from ralmspec_plugins import Verifier, VerifierStats
from ralmspec_plugins.errors import ConfigError, InputError, Overloaded
from ralmspec_plugins.protocols import PoolableRetriever, WideRetriever
from ralmspec_plugins.retrieval import open_retriever
from ralmspec_plugins.testing import WordRetriever
from ralmspec_plugins.testing.contracts import RetrieverContract
from ralmspec_plugins.types import Hits, Passage, Query
from tests.batching.gated import TEXTS, AsyncGated, Gated, StoreError, aeventually, eventually


class TestVerifierContract(RetrieverContract):
    """A verifier is a retriever like the one behind it."""

    def make(self, passages: Sequence[Passage], k: int) -> Any:
        return Verifier(open_retriever("numpy-flat", passages, k=k), max_batch=5)


def alone(text: str, k: int = 1) -> Hits:
    """Search a text without anybody else."""
    return WordRetriever(TEXTS, k).search([Query(text)])[0]


class Callers:
    """Threads that search through a verifier."""

    def __init__(self, verifier: Verifier) -> None:
        self.verifier = verifier
        self.threads = ThreadPoolExecutor(64)

    def ask(self, *texts: str) -> "Future[list[Hits]]":
        """Let one more caller ask, and wait until he stands in the line or is being served."""
        before = self.verifier.stats.calls
        future = self.threads.submit(self.verifier.search, [Query(text) for text in texts])
        eventually(lambda: self.verifier.stats.calls == before + 1)
        return future


def test_what_comes_during_a_search_goes_into_the_next_one() -> None:
    """Five callers who come while the first is served share one search."""
    store = Gated()
    with Verifier(store) as verifier:
        callers = Callers(verifier)
        answers = [callers.ask(f"word{number}") for number in range(6)]
        store.admit()
        found = [answer.result() for answer in answers]

    assert [[alone(f"word{number}")] for number in range(6)] == found
    assert [("word0",), tuple(f"word{number}" for number in range(1, 6))] == store.searched
    stats = verifier.stats
    assert (6, 2, 6, {1: 1, 5: 1}) == (
        stats.calls,
        stats.searches,
        stats.queries,
        stats.batch_sizes,
    )
    assert stats.mean_batch == 3.0
    assert 0 < stats.waited_median_s <= stats.waited_p95_s
    assert (0, 0) == (stats.waiting, stats.running)


def test_no_more_searches_run_than_there_are_lanes() -> None:
    """With three lanes three searches are out, and what comes then waits."""
    store = Gated()
    with Verifier(store, lanes=3, max_batch=2) as verifier:
        callers = Callers(verifier)
        answers = [callers.ask(f"word{number}") for number in range(8)]
        eventually(lambda: store.at_once == 3)
        assert (5, 3) == (verifier.stats.waiting, verifier.stats.running)
        store.admit()
        for number, answer in enumerate(answers):
            assert [alone(f"word{number}")] == answer.result()

    assert store.most_at_once == 3
    assert max(map(len, store.searched)) == 2


def test_a_failed_query_fails_nobody_else() -> None:
    """Who shared a search with a bad query gets his hits; who asked it gets its error."""
    store = Gated()
    with Verifier(store) as verifier:
        callers = Callers(verifier)
        texts = ("word0", "word1", "bad query", "word2")
        answers = [callers.ask(text) for text in texts]
        store.admit()
        with pytest.raises(StoreError, match="bad query"):
            answers[2].result()
        for at in (0, 1, 3):
            assert [alone(texts[at])] == answers[at].result()
    assert [3, 2, 1, 1, 1] == [len(batch) for batch in store.searched[1:]]
    assert store.most_at_once == 1
    assert verifier.stats.repeated == 5  # three in two halves, and one of these once more


def test_an_error_of_his_own_is_not_repeated() -> None:
    """A call that was searched alone and failed has failed: the store is asked once."""
    store = Gated()
    store.admit()
    with Verifier(store) as verifier, pytest.raises(StoreError, match="bad"):
        verifier.search([Query("word1"), Query("bad")])

    assert [("word1", "bad")] == store.searched
    assert verifier.stats.repeated == 0


def test_what_is_no_exception_comes_out_too() -> None:
    """A part that raises KeyboardInterrupt or SystemExit ends its own caller's work only."""

    class Ending(Gated):
        def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
            found = super().search_wide(queries, width)
            if any(query.text == "end" for query in queries):
                raise SystemExit(3)
            return found

    store = Ending()
    with Verifier(store) as verifier:
        callers = Callers(verifier)
        first, ending, last = callers.ask("word0"), callers.ask("end"), callers.ask("word1")
        store.admit()
        assert [alone("word0")] == first.result()
        assert [alone("word1")] == last.result()
        with pytest.raises(SystemExit):
            ending.result()


def test_a_retriever_with_too_few_results_is_found_out() -> None:
    """Results that cannot be told apart are given to nobody."""

    class Short(Gated):
        def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
            return super().search_wide(queries, width)[:-1]

    store = Short()
    store.admit()
    with Verifier(store) as verifier, pytest.raises(InputError, match="1 results for 2 queries"):
        verifier.search([Query("word1"), Query("word2")])


def test_only_one_signature_is_in_a_search() -> None:
    """Retrievers beside each other share the lanes, and never a batch."""
    ours, theirs = Gated(TEXTS[:20]), Gated(TEXTS[20:])
    with Verifier(ours) as verifier:
        other = verifier.beside(theirs)
        callers = Callers(verifier), Callers(other)
        answers = [callers[number % 2].ask(f"word{number}") for number in range(10)]
        ours.admit()
        theirs.admit()
        for answer in answers:
            answer.result()

    assert {f"word{number}" for number in range(0, 10, 2)} == set(sum(ours.searched, ()))
    assert {f"word{number}" for number in range(1, 10, 2)} == set(sum(theirs.searched, ()))
    assert 10 == verifier.stats.calls == other.stats.calls


def test_two_retrievers_of_one_signature_are_merged() -> None:
    """A signature promises equal answers, so it does not matter who is asked."""
    first, second = Gated(), Gated()
    assert first.signature == second.signature
    with Verifier(first) as verifier:
        callers, others = Callers(verifier), Callers(verifier.beside(second))
        answers = [callers.ask("word0"), others.ask("word1"), callers.ask("word2")]
        first.admit()
        second.admit()
        found = [answer.result() for answer in answers]

    assert [[alone(f"word{number}")] for number in range(3)] == found
    assert [("word1", "word2")] == second.searched


def test_widths_are_not_mixed() -> None:
    """A wide search and a plain one are two searches."""
    store = Gated(k=2)
    with Verifier(store) as verifier, ThreadPoolExecutor(3) as threads:
        assert isinstance(verifier, WideRetriever)
        first = threads.submit(verifier.search, [Query("text")])
        eventually(lambda: verifier.stats.running == 1)
        wide = threads.submit(verifier.search_wide, [Query("text")], 7)
        plain = threads.submit(verifier.search, [Query("text")])
        eventually(lambda: verifier.stats.calls == 3)
        store.admit()

        assert [2, 7, 2] == [len(one.result()[0]) for one in (first, wide, plain)]
    assert verifier.stats.searches == 3


class BlackBox:
    """Nothing but the least that a retriever must have."""

    signature = "black box"

    def encode(self, text: str) -> Query:
        return Query(text)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        return [() for _ in queries]


def test_it_offers_what_the_retriever_offers_and_nothing_else() -> None:
    """Whether it can be searched wider or pooled depends on what is behind it."""
    rich, poor = Verifier(WordRetriever(TEXTS)), Verifier(BlackBox())

    assert isinstance(rich, WideRetriever)
    assert isinstance(rich, PoolableRetriever)
    assert rich.inline_encode
    assert hasattr(rich, "asearch_wide")
    assert not isinstance(poor, WideRetriever)
    assert not isinstance(poor, PoolableRetriever)
    assert not hasattr(poor, "asearch_wide")
    assert not hasattr(poor, "k")
    assert not hasattr(Verifier(AsyncGated()), "asearch_wide")
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = rich.no_such_thing


def test_callers_wait_for_room_and_all_are_served() -> None:
    """With room for four queries forty are searched, and never more than four wait."""
    waiting = []

    class Watching(Gated):
        def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
            waiting.append(verifier.stats.waiting)
            return super().search_wide(queries, width)

    watching = Watching()
    watching.admit()
    texts = [f"word{number}" for number in range(40)]
    verifier = Verifier(watching, max_waiting=4, max_batch=2)
    with verifier, ThreadPoolExecutor(40) as threads:
        found = list(threads.map(lambda text: verifier.search([Query(text)]), texts))

    assert [[alone(text)] for text in texts] == found
    assert max(waiting) <= 4


def test_patience_has_an_end() -> None:
    """Who finds no room for longer than allowed is told so, and those inside are served."""
    store = Gated()
    with Verifier(store, max_waiting=2, patience_s=0.01) as verifier:
        callers = Callers(verifier)
        served = [callers.ask("word0"), callers.ask("word1", "word2")]
        with pytest.raises(Overloaded, match=r"2 queries are waiting.*no room for 1 more"):
            callers.ask("word3").result()
        store.admit()

        assert [[alone("word0")], [alone("word1"), alone("word2")]] == [
            one.result() for one in served
        ]
    assert (1, 0) == (verifier.stats.refused, verifier.stats.given_up)


def test_a_search_runs_in_its_first_callers_context() -> None:
    """Context variables (a trace, a user) reach the retriever."""
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")
    seen = []

    class Traced(Gated):
        def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
            seen.append(user.get())
            return super().search_wide(queries, width)

    store = Traced()
    store.admit()
    with Verifier(store) as verifier:
        user.set("ada")
        verifier.search([Query("word1")])

    assert ["ada"] == seen


def test_a_closed_verifier_lets_those_who_wait_go_on_alone() -> None:
    """Closing loses nobody's search, and takes no new one."""
    store = Gated()
    verifier = Verifier(store)
    callers = Callers(verifier)
    answers = [callers.ask(f"word{number}") for number in range(3)]
    closing = threading.Thread(target=verifier.close)
    closing.start()
    eventually(lambda: len(store.searched) == 3)  # two of them alone
    store.admit()
    closing.join()

    assert [[alone(f"word{number}")] for number in range(3)] == [one.result() for one in answers]
    with pytest.raises(RuntimeError, match="closed"):
        verifier.search([Query("word1")])


@pytest.mark.parametrize(
    "settings",
    [
        {"lanes": 0},
        {"lanes": True},
        {"max_batch": 0},
        {"max_waiting": 0},
        {"max_batch": 1.5},
        {"patience_s": -1},
        {"patience_s": float("nan")},
        {"patience_s": "5"},
    ],
)
def test_settings_that_let_nothing_through_are_refused(settings: dict[str, Any]) -> None:
    """A number must leave something to do."""
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Verifier(WordRetriever(TEXTS), **settings)


def test_a_new_verifier_has_nothing_to_tell() -> None:
    """Statistics start at nothing, and a search for nothing is none."""
    verifier = Verifier(WordRetriever(TEXTS))

    assert [] == verifier.search([])
    assert VerifierStats() == verifier.stats
    assert verifier.stats.mean_batch is None


def over_threads() -> Gated:
    return Gated()


def on_the_loop() -> AsyncGated:
    return AsyncGated()


both = pytest.mark.parametrize("make", [over_threads, on_the_loop])


async def asked(verifier: Verifier, text: str) -> "asyncio.Task[list[Hits]]":
    """Let one more task ask, and wait until it stands in the line or is being served."""
    before = verifier.stats.calls
    task = asyncio.create_task(verifier.asearch([Query(text)]))
    await aeventually(lambda: verifier.stats.calls == before + 1)
    return task


@both
def test_tasks_are_merged_too(make: Callable[[], Any]) -> None:
    """What tasks ask during a search goes into the next one, and the loop is never held up."""

    async def main() -> None:
        store = make()
        verifier = Verifier(store)
        tasks = [await asked(verifier, f"word{number}") for number in range(5)]
        await aeventually(lambda: verifier.stats.running == 1)
        store.admit()

        assert [[alone(f"word{number}")] for number in range(5)] == await asyncio.gather(*tasks)
        assert [1, 4] == [len(batch) for batch in store.searched]

    asyncio.run(main())


@both
def test_a_failed_query_fails_no_other_task(make: Callable[[], Any]) -> None:
    """The same for tasks: errors are each one's own."""

    async def main() -> None:
        store = make()
        verifier = Verifier(store)
        texts = ("word0", "word1", "bad query", "word2")
        tasks = [await asked(verifier, text) for text in texts]
        store.admit()
        found = await asyncio.gather(*tasks, return_exceptions=True)

        assert isinstance(found.pop(2), StoreError)
        assert [[alone(text)] for text in ("word0", "word1", "word2")] == found

    asyncio.run(main())


@both
def test_a_cancelled_task_leaves_the_line(make: Callable[[], Any]) -> None:
    """What nobody waits for any more is never searched, and the others get theirs."""

    async def main() -> None:
        store = make()
        verifier = Verifier(store)
        tasks = [await asked(verifier, f"word{number}") for number in range(4)]
        tasks[2].cancel()
        await asyncio.wait([tasks[2]])
        store.admit()
        del tasks[2]

        assert [[alone(f"word{number}")] for number in (0, 1, 3)] == await asyncio.gather(*tasks)
        assert [("word0",), ("word1", "word3")] == store.searched
        assert verifier.stats.given_up == 1

    asyncio.run(main())


@both
def test_cancelling_one_does_not_end_a_shared_search(make: Callable[[], Any]) -> None:
    """A search belongs to nobody: it goes on for those who still wait."""

    async def main() -> None:
        store = make()
        verifier = Verifier(store)
        tasks = [await asked(verifier, f"word{number}") for number in range(3)]
        store.admit(1)
        await aeventually(lambda: len(store.searched) == 2)
        tasks[1].cancel()
        await asyncio.wait([tasks[1]])
        store.admit()

        assert [alone("word0")] == await tasks[0]
        assert [alone("word2")] == await tasks[2]
        assert [("word0",), ("word1", "word2")] == store.searched

    asyncio.run(main())


def test_a_shared_search_is_cancelled_with_its_last_caller_and_not_before() -> None:
    """Two tasks share a search that can be cancelled: it stops when both have gone."""

    async def main() -> None:
        store = AsyncGated()
        verifier = Verifier(store)
        first = await asked(verifier, "word0")
        pair = [await asked(verifier, "word1"), await asked(verifier, "word2")]
        await aeventually(lambda: len(store.searched) == 1)
        first.cancel()
        await aeventually(lambda: store.cancelled == 1)
        await aeventually(lambda: len(store.searched) == 2)
        pair[0].cancel()
        await asyncio.wait([pair[0]])
        await asyncio.sleep(0.01)
        assert store.cancelled == 1
        pair[1].cancel()
        await aeventually(lambda: store.cancelled == 2)
        await aeventually(lambda: verifier.stats.running == 0)
        store.admit()

        assert [alone("word3")] == await (await asked(verifier, "word3"))

    asyncio.run(main())


def test_tasks_lose_patience_too() -> None:
    """A task that finds no room is refused without holding up the loop."""

    async def main() -> None:
        store = Gated()
        verifier = Verifier(store, max_waiting=1, patience_s=0.01)
        served = [await asked(verifier, "word0"), await asked(verifier, "word1")]
        with pytest.raises(Overloaded, match="no room"):
            await (await asked(verifier, "word2"))
        store.admit()

        assert [[alone("word0")], [alone("word1")]] == await asyncio.gather(*served)

    asyncio.run(main())


def test_threads_and_tasks_share_a_search() -> None:
    """Over a retriever that blocks, it does not matter how one waits."""
    store = Gated()

    async def main() -> list[list[Hits]]:
        verifier = Verifier(store)
        first = await asked(verifier, "word0")
        threads = [
            asyncio.create_task(asyncio.to_thread(verifier.search, [Query(f"word{number}")]))
            for number in (1, 2)
        ]
        await aeventually(lambda: verifier.stats.calls == 3)
        last = await asked(verifier, "word3")
        store.admit()
        return list(await asyncio.gather(first, *threads, last))

    assert [[alone(f"word{number}")] for number in range(4)] == asyncio.run(main())
    assert [1, 3] == [len(batch) for batch in store.searched]


def test_a_loop_that_was_closed_keeps_nobody_waiting() -> None:
    """A verifier outlives event loops, also one that was thrown away in the middle of a search."""
    verifier = Verifier(store := AsyncGated())
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # it complains about what was thrown away
    task = loop.create_task(verifier.asearch([Query("word0")]))
    loop.run_until_complete(aeventually(lambda: len(store.searched) == 1))
    assert verifier.stats.running == 1
    loop.close()
    del task
    store._gate = asyncio.Semaphore(1)

    async def main() -> list[Hits]:
        return await verifier.asearch([Query("word1")])

    assert [alone("word1")] == asyncio.run(main())


def test_the_signature_is_the_retrievers_at_any_moment() -> None:
    """What a re-indexed store finds is not remembered under its old name."""
    store = WordRetriever(TEXTS)
    verifier = Verifier(store)
    before = verifier.signature
    store.signature = "indexed anew"

    assert before != verifier.signature == "indexed anew"


def test_a_tenants_flood_does_not_refuse_another_tenant() -> None:
    """The line has room for each signature, whatever others bring."""
    flooding, quiet = Gated(TEXTS[:20]), Gated(TEXTS[20:])
    with Verifier(flooding, max_waiting=2, patience_s=30) as verifier:
        callers = Callers(verifier)
        flood = [callers.ask("word1", "word2") for _ in range(10)]
        other = Callers(verifier.beside(quiet)).ask("word30")
        quiet.admit()
        flooding.admit(2)  # the search that is running, and the one that was waiting before
        assert [WordRetriever(TEXTS[20:]).search([Query("word30")])[0]] == other.result()
        assert not flood[-1].done()
        flooding.admit()
        for one in flood:
            one.result()

    assert verifier.stats.refused == 0


FORK = """
import os, sys
from ralmspec_plugins import Engine, Verifier
from ralmspec_plugins.testing import EchoWorkload, WordRetriever

verifier = Verifier(WordRetriever(["red fox"]))
engine = Engine(EchoWorkload(), verifier)
engine.run("red")
child = os.fork()
if not child:
    for use in (lambda: engine.run("red"), lambda: verifier.search([verifier.encode("red")])):
        try:
            use()
        except ValueError as error:
            assert "before the process forked" in str(error), error
        else:
            os._exit(1)
    os._exit(7)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_is_told_to_make_its_own() -> None:
    """Threads do not survive a fork: an error at once is better than waiting for ever."""
    done = subprocess.run([sys.executable, "-c", FORK], timeout=60, check=False)

    assert done.returncode == 7
