"""What fails in a dropped branch never happened; what fails in the answer is the host's error."""

import asyncio
import threading
from collections.abc import Iterator
from functools import reduce
from itertools import islice
from operator import add
from typing import Any

import pytest

from ralmspec_plugins import FixedStride
from ralmspec_plugins.errors import Cancelled, DeadlineExceeded
from tests.langchain.fake_models import turns
from tests.langchain.rag_loops import by_hand
from tests.langchain.rag_parts import (
    QUESTIONS,
    AsyncLog,
    HashChat,
    HashLLM,
    HashRetriever,
    HostError,
    Log,
    ThreadedLLM,
    canaries,
    documents,
    rag_of,
    told,
    vector_store,
)
from tests.langchain.test_rag_equality import values
from tests.selection import covering

LIAR = HashRetriever(documents=documents(), salt="lie")
MODELS = {"text": HashLLM, "chat": HashChat, "text in threads": ThreadedLLM}
QUESTION = QUESTIONS[0]


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


def parts(model: str = "text", **settings: Any) -> tuple[Any, HashRetriever, Any]:
    llm, retriever = MODELS[model](), HashRetriever(documents=documents())
    settings = {"replica": LIAR, "pool": None, **settings}
    return llm, retriever, rag_of(llm, retriever, "interval", **settings)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


async def fourfold(hand: Any, rag: Any, question: str) -> list[tuple[str, Log]]:
    """Fail by hand and with the runnable, invoked and awaited; give errors and logs in pairs."""
    ways = []
    for runnable in (hand, rag):
        log, alog = Log(), AsyncLog()
        with pytest.raises(HostError) as error:
            runnable.invoke(question, {"callbacks": [log]})
        with pytest.raises(HostError) as aerror:
            await runnable.ainvoke(question, {"callbacks": [alog]})
        ways += [(str(error.value), log), (str(aerror.value), alog)]
    return ways


def equal_and_closed(ways: list[tuple[str, Log]]) -> None:
    (said, log), (asaid, alog), (our_said, our_log), (our_asaid, our_alog) = ways
    assert (said, asaid) == (our_said, our_asaid)
    assert told(log) == told(our_log)
    assert told(alog) == told(our_alog)
    assert [[]] * 4 == [one.left_open() for _, one in ways]
    assert ["on_chain_error"] * 4 == [one.names[-1] for _, one in ways]


@pytest.mark.parametrize("model", MODELS)
async def test_a_store_that_goes_down_in_the_middle_fails_as_by_hand(model: str) -> None:
    """The third search fails: same error, same events, each search's own once."""
    llm, retriever, rag = parts(model)

    def down(query: str) -> None:
        if len(query.split()) == len(QUESTION.split()) + 8:
            raise HostError(f"no answer to {query}")

    async def adown(query: str) -> None:
        down(query)

    retriever.hook, retriever.ahook = down, adown
    ways = await fourfold(by_hand(llm, retriever, "interval"), rag, QUESTION)

    equal_and_closed(ways)
    assert 1 == ways[2][1].names.count("on_retriever_error")
    rag.close()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("failing", [0, 2])
async def test_a_model_that_fails_in_the_answer_fails_as_by_hand(model: str, failing: int) -> None:
    """A right call fails whenever it is made: the host's error, told once."""
    llm, retriever, rag = parts(model)
    hand = by_hand(llm, retriever, "interval")
    hand.invoke(QUESTION)
    right = list(llm.prompts)

    def fails(prompt: str) -> None:
        if prompt == right[failing]:
            raise HostError("the model is down")

    llm.hook = fails
    ways = await fourfold(hand, rag, QUESTION)

    equal_and_closed(ways)
    assert 1 == ways[2][1].names.count("on_llm_error")
    rag.close()


@pytest.mark.parametrize("model", MODELS)
async def test_a_model_that_fails_behind_a_wrong_guess_is_not_heard_of(model: str) -> None:
    """Every call that is not one of the right ones fails: the answer is there, and no error."""
    llm, retriever, rag = parts(model, schedule=FixedStride(stride=3))
    hand = by_hand(llm, retriever, "interval")
    for question in QUESTIONS[:4]:
        llm.hook = None
        llm.prompts.clear()
        expected = values(hand.invoke(question))
        right, failed = set(llm.prompts), []

        def fails(prompt: str, right: set[str] = right, failed: list[str] = failed) -> None:
            if prompt not in right:
                failed.append(prompt)
                raise HostError("wrong branch")

        llm.hook = fails
        logs = Log(), AsyncLog()
        assert expected == values(rag.invoke(question, {"callbacks": [logs[0]]}))
        assert expected == values(await rag.ainvoke(question, {"callbacks": [logs[1]]}))
        assert failed
        assert [[], []] == [log.left_open() for log in logs]
        assert not any("error" in name for log in logs for name in log.names)
        assert not any("wrong branch" in repr(log.events) for log in logs)
    rag.close()


@pytest.mark.parametrize("model", ["text", "chat"])
async def test_a_model_that_fails_while_it_streams_fails_as_by_hand(model: str) -> None:
    """The last right call breaks off behind its second word, always: what was shown stays true."""
    llm, retriever, rag = parts(model)
    expected = by_hand(llm, retriever, "interval").invoke(QUESTION)["answer"]
    last = llm.prompts[-1]

    def breaks(number: int) -> None:
        if number == 2 and llm.prompts[-1] == last:
            raise HostError("the line is cut")

    async def abreaks(number: int) -> None:
        breaks(number)

    llm.between, llm.abetween = breaks, abreaks
    log, alog, pieces, apieces = Log(), AsyncLog(), [], []

    def read() -> None:
        for piece in rag.stream(QUESTION, {"callbacks": [log]}):
            pieces.append(piece.get("answer", ""))

    async def aread() -> None:
        async for piece in rag.astream(QUESTION, {"callbacks": [alog]}):
            apieces.append(piece.get("answer", ""))

    with pytest.raises(HostError, match="the line is cut"):
        read()
    with pytest.raises(HostError, match="the line is cut"):
        await aread()

    assert expected.startswith("".join(pieces))
    assert expected.startswith("".join(apieces))
    assert [[], []] == [log.left_open(), alog.left_open()]
    assert canaries(log.events) <= canaries(expected)
    rag.close()


def test_a_model_that_fails_while_it_is_heard_is_told_once() -> None:
    """Heard live, the third call breaks off: one start and one error of it, no token twice."""
    llm, retriever, rag = parts("chat")
    hand = by_hand(llm, retriever, "interval", streams=True)
    hand.invoke(QUESTION)
    third = llm.prompts[2]

    def breaks(number: int) -> None:
        if number == 2 and llm.prompts[-1] == third:
            raise HostError("the line is cut")

    llm.between = breaks
    logs = Log(), Log()
    with pytest.raises(HostError):
        hand.invoke(QUESTION, {"callbacks": [logs[0]]})
    with pytest.raises(HostError):
        list(rag.stream(QUESTION, {"callbacks": [logs[1]]}))
    rag.close()

    assert told(logs[0]) == told(logs[1])


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_a_call_that_is_made_once_more_goes_on_with_the_run_that_was_told(kind: str) -> None:
    """The third call breaks off once while it is heard: handlers see one run, no token twice."""
    llm, retriever, rag = parts(kind)
    hand = by_hand(llm, retriever, "interval", streams=True)
    log = Log()
    hand.invoke(QUESTION, {"callbacks": [log]})
    third, broken = llm.prompts[2], list[int]()

    def breaks(number: int) -> None:
        if number == 2 and llm.prompts[-1] == third and not broken:
            broken.append(number)
            raise HostError("the line is cut")

    llm.between = breaks
    ours = Log()
    list(rag.stream(QUESTION, {"callbacks": [ours]}))
    rag.close()

    assert broken
    assert told(log) == told(ours)
    assert ours.left_open() == log.left_open()


class Rechunked(HashChat):
    """Gives each call's words in other pieces than the call before: one by one, then by two."""

    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        size = 1 + len(self.prompts) % 2
        for chunks in batched(super()._stream(*args, **kwargs), size):
            yield reduce(add, chunks)


def batched(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while some := list(islice(items, size)):
        yield some


@pytest.mark.parametrize("breaking", range(1, 4))
def test_a_call_that_is_made_once_more_comes_in_other_pieces(breaking: int) -> None:
    """The third call breaks off behind some words; then the rest is told, and nothing twice."""
    llm, retriever = Rechunked(), HashRetriever(documents=documents())
    rag = rag_of(llm, retriever, "interval", replica=LIAR, pool=None)
    hand = by_hand(llm, retriever, "interval")
    answer = hand.invoke(QUESTION)["answer"]
    third, broken = llm.prompts[2], list[int]()

    def breaks(number: int) -> None:
        if number == breaking and llm.prompts[-1] == third and not broken:
            broken.append(number)
            raise HostError("the line is cut")

    llm.between = breaks
    log = Log()
    list(rag.stream(QUESTION, {"callbacks": [log]}))
    rag.close()
    tokens = [args[0] if args else about["token"] for name, args, about in log.events
              if name == "on_llm_new_token"]  # fmt: skip
    ids = [
        {about["chunk"].message.id for name, _, about in log.events
         if name == "on_llm_new_token" and about["run_id"] == run}
        for run in {about["run_id"] for _, _, about in log.events}
    ]  # fmt: skip

    assert broken
    assert answer == "".join(tokens)
    assert all(len(found) <= 1 for found in ids)
    assert [] == log.left_open()


@pytest.mark.parametrize("invoked", [True, False])
async def test_a_request_that_is_given_up_has_told_of_its_call(invoked: bool) -> None:
    """The call behind the documents that are confirmed, and none that was made on a guess."""
    llm, retriever, rag = parts("chat", schedule=FixedStride(stride=3))
    by_hand(llm, retriever, "interval").invoke(QUESTION)
    second, hanging = llm.prompts[1], asyncio.Event()

    async def hangs(prompt: str) -> None:
        if prompt == second:
            hanging.set()
            await asyncio.sleep(20)

    llm.ahook = hangs
    log = AsyncLog()

    async def stream() -> None:
        async for _ in rag.astream(QUESTION, {"callbacks": [log]}):
            pass

    config: Any = {"callbacks": [log]}
    task = asyncio.ensure_future(rag.ainvoke(QUESTION, config) if invoked else stream())
    await asyncio.wait_for(hanging.wait(), 5)
    for _ in range(50):
        await asyncio.sleep(0.002)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    starts = [args[1][0] for name, args, _ in log.events if name == "on_chat_model_start"]

    assert [turns(one) for one in starts] == [llm.prompts[0], second]
    assert ["on_llm_end", "on_llm_error"] == [
        name for name in log.names if name in ("on_llm_end", "on_llm_error")
    ]
    assert [] == log.left_open()
    await asyncio.to_thread(rag.close)


class RemoteChat(HashChat):
    """A model behind an API: nobody waits for a call of it that is given up."""

    __module__ = "langchain_openai.for_tests"


def test_what_a_call_says_after_its_end_is_not_told(gate: threading.Event) -> None:
    """A stream is closed while the model hangs: its run is ended then, and not once more later."""
    left = threading.Event()

    def hangs(number: int) -> None:
        if number == 2:
            gate.wait(20)

    class Leaving(RemoteChat):
        def _stream(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
            try:
                yield from super()._stream(*args, **kwargs)
            finally:
                left.set()

    log = Log()
    retriever = HashRetriever(documents=documents())
    rag = rag_of(Leaving(between=hangs), retriever, "one_shot")
    stream = rag.stream(QUESTION, {"callbacks": [log]})
    while not next(stream).get("answer"):
        pass
    stream.close()
    told_then = list(log.names)

    assert [] == log.left_open()
    gate.set()
    assert left.wait(5)
    rag.close()
    assert told_then == log.names


async def test_what_failed_only_while_it_ran_ahead_is_made_good() -> None:
    """A right call fails once, made ahead: no error is told, the answer is whole."""
    llm, retriever, rag = parts("text", replica=HashRetriever(documents=documents()))
    expected = values(by_hand(llm, retriever, "interval").invoke(QUESTION))
    once = {llm.prompts[2]}

    def fails(prompt: str) -> None:
        if prompt in once:
            once.discard(prompt)
            raise HostError("too many calls at a time")

    llm.hook = fails
    log = Log()
    reply = rag.invoke(QUESTION, {"callbacks": [log]})

    assert expected == values(reply)
    if reply["ralmspec"]["stats"]["retries"]:
        assert not any("error" in name for name in log.names)
    assert [] == log.left_open()
    rag.close()


@pytest.mark.parametrize("where", ["retriever", "model"])
async def test_a_deadline_ends_everything(where: str, gate: threading.Event) -> None:
    """Whatever hangs, the caller gets `DeadlineExceeded`; no run is left open."""
    llm, retriever, rag = parts("text in threads")

    def hangs(_: str) -> None:
        threading.Timer(0.3, gate.set).start()  # a local model is waited for, 5 s at most
        gate.wait(20)

    async def ahangs(_: str) -> None:
        await asyncio.sleep(20)

    if where == "model":
        llm.hook = hangs
    else:
        retriever.hook, retriever.ahook = hangs, ahangs
    log, alog = Log(), AsyncLog()
    with pytest.raises(DeadlineExceeded):
        rag.invoke(QUESTION, {"callbacks": [log]}, deadline_s=0.1)
    gate.clear()
    with pytest.raises(DeadlineExceeded):
        await rag.ainvoke(QUESTION, {"callbacks": [alog]}, deadline_s=0.1)

    assert [[], []] == [log.left_open(), alog.left_open()]
    gate.set()
    rag.close()


@pytest.mark.parametrize(
    ("model", "where", "streamed"),
    covering(MODELS, ["retriever", "model"], [False, True], strength=2),
)
async def test_cancelled_half_way_it_leaves_nothing(
    model: str, where: str, streamed: bool, gate: threading.Event
) -> None:
    """A task that is cancelled while the third step hangs: all runs end, and it works again."""
    llm, retriever, rag = parts(model)
    expected = values(by_hand(llm, retriever, "interval").invoke(QUESTION))
    third, query = llm.prompts[2], retriever.asked[2]
    hanging = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def ahangs(text: str) -> None:
        if text in (third, query):
            hanging.set()
            await asyncio.sleep(20)

    def hangs(text: str) -> None:
        if text == third:
            loop.call_soon_threadsafe(hanging.set)
            gate.wait(20)

    if where == "retriever":
        retriever.ahook = ahangs
    elif model == "text in threads":
        llm.hook = hangs
    else:
        llm.ahook = ahangs
    log = AsyncLog()

    async def stream() -> None:
        async for _ in rag.astream(QUESTION, {"callbacks": [log]}):
            pass

    work = stream() if streamed else rag.ainvoke(QUESTION, {"callbacks": [log]})
    task = asyncio.ensure_future(work)
    await asyncio.wait_for(hanging.wait(), 5)
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert [] == log.left_open()
    assert {asyncio.current_task()} == asyncio.all_tasks()
    llm.hook = llm.ahook = retriever.ahook = None
    assert expected == values(await rag.ainvoke(QUESTION))
    await asyncio.to_thread(rag.close)


@pytest.mark.parametrize(("model", "after"), covering(MODELS, [1, 2, 3, 4]))
async def test_a_stream_that_is_closed_half_way_leaves_nothing(model: str, after: int) -> None:
    """Closed after some pieces, sync and async: runs ended, tasks gone, and at once."""
    _, _, rag = parts(model)
    log, alog = Log(), AsyncLog()
    stream = rag.stream(QUESTION, {"callbacks": [log]})
    for _ in range(after):
        next(stream)
    stream.close()
    assert [] == log.left_open()
    astream = rag.astream(QUESTION, {"callbacks": [alog]})
    for _ in range(after):
        await anext(astream)
    await astream.aclose()

    assert [] == alog.left_open()
    assert {asyncio.current_task()} == asyncio.all_tasks()
    rag.close()


@pytest.mark.parametrize("at", ["on_retriever_start", "on_llm_start", "on_llm_new_token"])
async def test_cancelled_while_a_handler_is_told_it_is_told_all(at: str) -> None:
    """A handler takes its time over an event, and the task is cancelled: the run has its end."""
    _, _, rag = parts("text")
    reached = asyncio.Event()

    class Slow(AsyncLog):
        def __getattribute__(self, name: str) -> Any:
            told = super().__getattribute__(name)
            if name != at:
                return told

            async def slowly(*args: Any, **kwargs: Any) -> None:
                reached.set()
                await asyncio.sleep(0.01)
                await told(*args, **kwargs)

            return slowly

    log = Slow()

    async def read() -> None:
        async for _ in rag.astream(QUESTION, {"callbacks": [log]}):
            pass

    task = asyncio.ensure_future(read())
    await asyncio.wait_for(reached.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert at in log.names
    assert [] == log.left_open()
    await asyncio.to_thread(rag.close)


async def test_one_that_is_cancelled_does_not_touch_the_others() -> None:
    """Of many that wait for one merged search, one goes away: the others get their answers."""
    llm, retriever = HashLLM(), vector_store(documents()).as_retriever()
    rag = rag_of(llm, retriever)
    hand = by_hand(llm, retriever, "sentences")
    expected = [values(hand.invoke(q), empty=True) for q in QUESTIONS[:8]]
    assert sum(bool(answer) for *_, answer in expected) > 4
    tasks = [asyncio.ensure_future(rag.ainvoke(question)) for question in QUESTIONS[:8]]
    await asyncio.sleep(0.005)
    tasks[3].cancel()
    got = await asyncio.gather(*tasks, return_exceptions=True)

    assert isinstance(got[3], asyncio.CancelledError | dict)
    assert [one for n, one in enumerate(expected) if n != 3] == [
        values(one, empty=True) for n, one in enumerate(got) if n != 3 and isinstance(one, dict)
    ]
    await asyncio.to_thread(rag.close)


async def test_a_handler_that_raises_ends_the_request_as_the_hosts_does() -> None:
    """`raise_error`: its error surfaces; without, it is passed over."""

    class Raising(Log):
        raise_error = True

        def on_retriever_end(self, *args: Any, **kwargs: Any) -> None:
            raise HostError("a handler's")

    llm, retriever, rag = parts()
    log = Log()
    with pytest.raises(HostError, match="a handler's"):
        by_hand(llm, retriever, "interval").invoke(QUESTION, {"callbacks": [Raising()]})
    with pytest.raises(HostError, match="a handler's"):
        rag.invoke(QUESTION, {"callbacks": [log, Raising()]})
    with pytest.raises(HostError, match="a handler's"):
        await rag.ainvoke(QUESTION, {"callbacks": [Raising()]})

    assert "on_chain_error" == log.names[-1]
    rag.close()


def test_ctrl_c_in_the_model_ends_everything() -> None:
    """No `Exception`: it surfaces as it is, and no run of the answer is left open."""
    llm, retriever, rag = parts()
    by_hand(llm, retriever, "interval").invoke(QUESTION)
    third, log = llm.prompts[2], Log()

    def interrupted(prompt: str) -> None:
        if prompt == third:
            raise KeyboardInterrupt

    llm.hook = interrupted
    with pytest.raises((KeyboardInterrupt, Cancelled)):
        rag.invoke(QUESTION, {"callbacks": [log]})

    assert [] == log.left_open()
    rag.close()


class StopsAtTheThird(Log):
    """Raises at the third token that it hears of."""

    raise_error = True

    def __init__(self) -> None:
        super().__init__()
        self.tokens = 0

    def on_llm_new_token(self, token: str, **kwargs: Any) -> None:
        self.tokens += 1
        if self.tokens == 3:
            raise RuntimeError("enough")


async def test_a_handler_that_raises_in_the_middle_of_a_call_ends_the_request() -> None:
    """It is no failure of the model's, to be tried again: its error surfaces, as at the host."""
    for model in ("text", "chat"):
        _, _, rag = parts(model)
        with pytest.raises(RuntimeError, match="enough"):
            list(rag.stream(QUESTION, {"callbacks": [StopsAtTheThird()]}))
        with pytest.raises(RuntimeError, match="enough"):
            [one async for one in rag.astream(QUESTION, {"callbacks": [StopsAtTheThird()]})]
        rag.close()
