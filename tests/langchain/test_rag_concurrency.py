"""One instance for many: threads, tasks, event loops, tenants, and forked processes."""

import asyncio
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import langchain_ralmspec
import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.documents import Document
from langchain_core.globals import set_debug, set_llm_cache, set_verbose
from langchain_core.runnables import ConfigurableField

from ralmspec_plugins import FixedStride, QueryCache, SharedPassageCache
from ralmspec_plugins.errors import ConfigError
from tests.calls_at_once import CallsAtOnce
from tests.langchain.rag_loops import by_hand
from tests.langchain.rag_parts import (
    QUESTIONS,
    HashChat,
    HashLLM,
    HashRetriever,
    Log,
    canaries,
    documents,
    rag_of,
    vector_store,
)
from tests.langchain.test_rag_equality import values

MANY = [f"{question} {turn}" for turn in range(2) for question in QUESTIONS[:16]]
LIAR = HashRetriever(documents=documents(), salt="lie")


def retriever_of(kind: str) -> Any:
    if kind == "looked into":
        return vector_store(documents()).as_retriever(search_kwargs={"k": 2})
    return HashRetriever(documents=documents())


@pytest.mark.parametrize("kind", ["black box", "looked into"])
@pytest.mark.parametrize("workload", ["sentences", "interval"])
async def test_many_at_once_get_what_each_gets_alone(kind: str, workload: str) -> None:
    """32 threads, 32 tasks, one batch, over one pool and memo: the answers of the loop by hand."""
    llm, retriever = HashLLM(), retriever_of(kind)
    rag = rag_of(llm, retriever, workload, memo=QueryCache(), pool=SharedPassageCache(capacity=8))
    hand = by_hand(llm, retriever, workload)
    expected = [values(hand.invoke(one), empty=True) for one in MANY]
    assert sum(bool(answer) for *_, answer in expected) > len(MANY) / 2
    logs = [Log() for _ in MANY]
    with ThreadPoolExecutor(32) as threads:
        got = list(threads.map(lambda one, log: rag.invoke(one, {"callbacks": [log]}), MANY, logs))

    assert expected == [values(one, empty=True) for one in got]
    assert expected == [values(one, empty=True) for one in rag.batch(MANY)]
    awaited = await asyncio.gather(*(rag.ainvoke(one) for one in MANY))
    assert expected == [values(one, empty=True) for one in awaited]
    assert [[]] * len(MANY) == [log.left_open() for log in logs]
    # Each one's handlers hear of his own answer only.
    by_question = [canaries(by_hand(llm, retriever, workload).invoke(one)) for one in MANY[:4]]
    for mine, log in zip(by_question, logs[:4], strict=True):
        assert mine <= canaries(log.events)
        assert not (canaries(log.events) & set.union(*by_question) - mine)
    await asyncio.to_thread(rag.close)


def test_searches_of_a_batch_are_merged() -> None:
    """Over a store that is looked into, many questions reach it in far fewer searches."""
    rag = rag_of(HashLLM(), retriever_of("looked into"), pool=None)
    rag.batch(MANY)
    verifier = rag.runtime.verifiers[0].stats

    assert verifier.queries > len(MANY)
    assert max(verifier.batch_sizes) > 1
    rag.close()


@pytest.mark.parametrize("how", ["filter", "k by model copies"])
def test_tenants_never_see_each_other(how: str) -> None:
    """Two tenants by `search_kwargs`, at once, over one pool: no word of the other's anywhere."""
    ours, theirs = documents(8, mark="ours"), documents(8, mark="theirs")
    for number, document in enumerate([*ours, *theirs]):
        document.metadata["tenant"] = "ours" if number < 8 else "theirs"
    retriever = (
        vector_store([*ours, *theirs])
        .as_retriever()
        .configurable_fields(search_kwargs=ConfigurableField(id="search_kwargs"))
    )
    llm = HashLLM()
    rag = rag_of(llm, retriever, memo=QueryCache(), pool=SharedPassageCache())
    hand = by_hand(llm, retriever, "sentences")

    def of(document: Document, tenant: str) -> bool:
        return bool(document.metadata["tenant"] == tenant)

    filters: dict[str, Any] = {
        tenant: (lambda document, tenant=tenant: of(document, tenant))
        for tenant in ("ours", "theirs")
    }
    asked = [(question, tenant) for question in QUESTIONS[:12] for tenant in filters]
    logs = [Log() for _ in asked]

    def ask(at: int) -> Any:
        question, tenant = asked[at]
        search = {"k": 3, "filter": filters[tenant]}
        if how == "filter":
            config: Any = {"configurable": {"search_kwargs": search}, "callbacks": [logs[at]]}
            return rag.invoke(question, config)
        own = retriever.with_config(configurable={"search_kwargs": search})
        return rag.model_copy(update={"retriever": own}).invoke(question, {"callbacks": [logs[at]]})

    llm.prompts.clear()
    with ThreadPoolExecutor(8) as threads:
        got = list(threads.map(ask, range(len(asked))))
    for (question, tenant), reply, log in zip(asked, got, logs, strict=True):
        other = "theirs" if tenant == "ours" else "ours"
        search = {"k": 3, "filter": filters[tenant]}
        expected = hand.invoke(question, {"configurable": {"search_kwargs": search}})
        assert values(expected) == values(reply)
        assert f"{other} " not in repr(reply)
        assert f"{other}-" not in repr(log.events)
    mixed = [one for one in llm.prompts if "ours " in one.replace("theirs", "") and "theirs" in one]
    assert [] == mixed  # not even in a dropped guess
    rag.close()


async def test_several_event_loops_share_one_instance() -> None:
    """Loops in four threads, and the caller's own: answers as by hand, nothing hangs."""
    llm, retriever = HashLLM(), retriever_of("looked into")
    rag = rag_of(llm, retriever)
    expected = [values(by_hand(llm, retriever, "sentences").invoke(one)) for one in MANY[:8]]

    async def ask_all() -> list[Any]:
        return list(await asyncio.gather(*(rag.ainvoke(one) for one in MANY[:8])))

    def in_own_loop(_: int) -> list[Any]:
        return [values(one) for one in asyncio.run(ask_all())]

    with ThreadPoolExecutor(4) as threads:
        loop = asyncio.get_running_loop()
        others = [loop.run_in_executor(threads, in_own_loop, number) for number in range(4)]
        own = [values(one) for one in await ask_all()]
        assert [expected] * 5 == [own, *await asyncio.gather(*others)]
    await asyncio.to_thread(rag.close)


async def test_the_event_loop_is_not_held_up() -> None:
    """While a store without asynchronous methods sleeps, and a model in a thread, others go on."""
    gate = threading.Event()
    retriever = HashRetriever(documents=documents())
    object.__setattr__(retriever, "ahook", None)

    class Sync(HashRetriever):
        _aget_relevant_documents = HashRetriever.__mro__[1]._aget_relevant_documents

    slow = Sync(documents=documents(), hook=lambda _: gate.wait(10) and None)
    rag = rag_of(HashLLM(), slow)
    task = asyncio.ensure_future(rag.ainvoke(QUESTIONS[0]))
    for _ in range(50):
        await asyncio.sleep(0.001)
    assert not task.done()
    gate.set()
    expected = by_hand(HashLLM(), retriever, "sentences").invoke(QUESTIONS[0])

    assert values(expected) == values(await task)
    await asyncio.to_thread(rag.close)


FORKED = """
import os, sys, threading
from tests.langchain.rag_parts import HashLLM, QUESTIONS, documents, rag_of, vector_store
from tests.langchain.rag_loops import by_hand
from tests.langchain.test_rag_equality import values
llm, retriever = HashLLM(), vector_store(documents()).as_retriever()
rag = rag_of(llm, retriever)
expected = [values(by_hand(llm, retriever, "sentences").invoke(q)) for q in QUESTIONS[:4]]
assert expected[:2] == [values(rag.invoke(q)) for q in QUESTIONS[:2]]
child = os.fork()
if not child:
    try:
        assert expected == [values(rag.invoke(q)) for q in QUESTIONS[:4]]
        assert expected == [values(one) for one in rag.batch(QUESTIONS[:4])]
        rag.close()
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(1)
    os._exit(0)
assert expected == [values(rag.invoke(q)) for q in QUESTIONS[:4]]
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_answers_too() -> None:
    """An instance that was used before the fork works in the child, and goes on in the parent."""
    root = Path(__file__).parents[2]
    integrations = Path(langchain_ralmspec.__file__).parents[1]
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root}:{integrations}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (0, "", "") == (ran.returncode, ran.stdout, ran.stderr)


def test_the_hosts_cache_of_model_calls_changes_no_answer() -> None:
    """`set_llm_cache`: the same answers, from a full cache without any call."""
    retriever = retriever_of("black box")
    for llm in (HashLLM(), HashChat()):
        hand = by_hand(llm, retriever, "interval")
        expected = [values(hand.invoke(one)) for one in QUESTIONS[:4]]
        rag = rag_of(
            llm, retriever, "interval", replica=LIAR, pool=None, schedule=FixedStride(stride=3)
        )
        set_llm_cache(InMemoryCache())
        try:
            assert expected == [values(rag.invoke(one)) for one in QUESTIONS[:4]]
            assert expected == [values(hand.invoke(one)) for one in QUESTIONS[:4]]
            llm.prompts.clear()
            plainly = rag.model_copy(update={"speculate": False})
            assert expected == [values(plainly.invoke(one)) for one in QUESTIONS[:4]]
            assert [] == llm.prompts
        finally:
            set_llm_cache(None)
            rag.close()


@pytest.mark.parametrize("switch", [set_debug, set_verbose])
def test_the_hosts_own_printing_shows_nothing_rolled_back(
    switch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """`set_debug` and `set_verbose` print what the loop by hand prints, and no dropped word."""
    llm, retriever = HashLLM(), retriever_of("black box")
    hand = by_hand(llm, retriever, "interval")
    right = canaries(hand.invoke(QUESTIONS[0]))
    rag = rag_of(
        llm, retriever, "interval", replica=LIAR, pool=None, schedule=FixedStride(stride=3)
    )
    switch(True)
    try:
        hand.invoke(QUESTIONS[0])
        expected = capsys.readouterr().out
        rag.invoke(QUESTIONS[0])
        printed = capsys.readouterr().out
    finally:
        switch(False)

    assert canaries(llm.written) > right
    assert canaries(expected) >= canaries(printed)
    assert bool(canaries(expected)) == bool(canaries(printed))
    rag.close()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_no_more_calls_at_once_than_the_model_takes(asynchronous: bool) -> None:
    """Of all requests together; the others wait, and the answers are the same."""
    calls: CallsAtOnce

    def count(prompt: str) -> None:
        calls.call(prompt)

    async def acount(prompt: str) -> None:
        await calls.acall(prompt)

    hooks: dict[str, Any] = {"ahook": acount} if asynchronous else {"hook": count}
    parts = HashLLM(**hooks), HashRetriever(documents=documents())
    guessing: dict[str, Any] = {"guess_through": True, "schedule": FixedStride(stride=2)}
    most, answers = {}, {}
    for limit in (None, 2):
        rag = rag_of(*parts, "interval", **guessing, max_concurrent_calls=limit)
        calls = CallsAtOnce()
        questions = list(QUESTIONS[:8])
        replies = asyncio.run(rag.abatch(questions)) if asynchronous else rag.batch(questions)
        answers[limit] = [reply["answer"] for reply in replies]
        most[limit] = calls.most
        rag.close()

    assert most[None] > 2 == most[2]
    assert answers[None] == answers[2]
    assert all(answers[2])


def test_a_limit_on_calls_is_checked_at_once() -> None:
    """With its name."""
    with pytest.raises(ConfigError, match="max_concurrent_calls must be a whole number"):
        rag_of(HashLLM(), HashRetriever(documents=[]), max_concurrent_calls=0)
