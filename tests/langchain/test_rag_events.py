"""Handlers hear of committed work what the same calls by hand tell them, and of nothing else."""

import asyncio
import threading
from contextvars import ContextVar
from typing import Any

import pytest
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.globals import set_debug
from langchain_core.tracers.context import collect_runs
from langchain_ralmspec import SpeculativeRetriever

from ralmspec_plugins import FixedStride
from tests.langchain.rag_loops import by_hand
from tests.langchain.rag_parts import (
    QUESTIONS,
    AsyncLog,
    HashChat,
    HashLLM,
    HashRetriever,
    Log,
    ThreadedLLM,
    canaries,
    documents,
    rag_of,
    told,
    vector_store,
)
from tests.selection import covering

LIAR = HashRetriever(documents=documents(), salt="lie")
MODELS = {"text": HashLLM, "chat": HashChat, "text in threads": ThreadedLLM}
# Three steps at a time behind guesses that are wrong: dropped branches in every request.
WRONG: dict[str, Any] = {"replica": LIAR, "pool": None, "schedule": FixedStride(stride=3)}
CONFIG: dict[str, Any] = {"tags": ["mine"], "metadata": {"user": "u1"}, "run_name": "the run"}


def retriever_of(kind: str) -> Any:
    if kind.startswith("a layer over "):
        inner = retriever_of(kind.removeprefix("a layer over "))
        return SpeculativeRetriever(retriever=inner.with_config(tags=["bound"]), tags=["layer"])
    if kind == "looked into":
        store = vector_store(documents())
        return store.as_retriever(search_kwargs={"k": 2}, tags=["own"], metadata={"m": 1})
    return HashRetriever(documents=documents(), tags=["own"], metadata={"m": 1})


def parts(model: str, kind: str, workload: str, **settings: Any) -> tuple[Any, Any, Any]:
    llm, retriever = MODELS[model](), retriever_of(kind)
    return llm, retriever, rag_of(llm, retriever, workload, **{**WRONG, **settings})


@pytest.mark.parametrize(
    ("model", "kind", "workload"),
    covering(
        MODELS, ["black box", "looked into"], ["sentences", "interval", "one_shot"], strength=2
    ),
)
async def test_invoked_it_tells_what_the_loop_by_hand_tells(
    model: str, kind: str, workload: str
) -> None:
    """Names, order, nesting, tags, metadata, inputs and outputs; wrong branches unheard."""
    llm, retriever, rag = parts(model, kind, workload)
    hand = by_hand(llm, retriever, workload)
    for question in QUESTIONS[:2]:
        logs = Log(), Log(), AsyncLog(), AsyncLog()
        hand.invoke(question, {**CONFIG, "callbacks": [logs[0]]})
        right = canaries(logs[0].events)
        rag.invoke(question, {**CONFIG, "callbacks": [logs[1]]})
        await hand.ainvoke(question, {**CONFIG, "callbacks": [logs[2]]})
        await rag.ainvoke(question, {**CONFIG, "callbacks": [logs[3]]})

        assert told(logs[0]) == told(logs[1])
        assert told(logs[2]) == told(logs[3])
        assert [right] * 4 == [canaries(log.events) for log in logs]
        assert [[]] * 4 == [log.left_open() for log in logs]
    if workload != "one_shot":
        assert canaries(llm.written) > right  # wrong branches were written
    rag.close()


@pytest.mark.parametrize("kind", ["black box", "looked into"])
async def test_a_retriever_in_front_of_another_is_told_as_that(kind: str) -> None:
    """By the loop by hand over it, by the loop over what it wraps, and by ours."""
    llm, layer, rag = parts("text", f"a layer over {kind}", "interval")
    logs = Log(), Log(), AsyncLog(), AsyncLog()
    hand = by_hand(llm, layer, "interval")
    hand.invoke(QUESTIONS[0], {**CONFIG, "callbacks": [logs[0]]})
    rag.invoke(QUESTIONS[0], {**CONFIG, "callbacks": [logs[1]]})
    await hand.ainvoke(QUESTIONS[0], {**CONFIG, "callbacks": [logs[2]]})
    await rag.ainvoke(QUESTIONS[0], {**CONFIG, "callbacks": [logs[3]]})
    names = {k["name"] for name, _, k in logs[1].events if name == "on_retriever_start"}

    assert {type(retriever_of(kind)).__name__} == names
    assert told(logs[0]) == told(logs[1])
    assert told(logs[2]) == told(logs[3])
    rag.close()


@pytest.mark.parametrize(
    ("model", "workload"), covering(MODELS, ["sentences", "interval", "one_shot"])
)
async def test_streamed_it_tells_what_the_loop_by_hand_tells(model: str, workload: str) -> None:
    """The same with the model streaming: every token of a committed call, none of another."""
    llm, retriever, rag = parts(model, "black box", workload)
    hand = by_hand(llm, retriever, workload, streams=True)
    for question in QUESTIONS[:3]:
        logs = Log(), Log(), AsyncLog(), AsyncLog()
        hand.invoke(question, {**CONFIG, "callbacks": [logs[0]]})
        list(rag.stream(question, {**CONFIG, "callbacks": [logs[1]]}))
        await hand.ainvoke(question, {**CONFIG, "callbacks": [logs[2]]})
        async for _ in rag.astream(question, {**CONFIG, "callbacks": [logs[3]]}):
            pass

        assert told(logs[0]) == told(logs[1])
        assert told(logs[2]) == told(logs[3])
        assert "on_llm_new_token" in logs[1].names
        assert [[]] * 4 == [log.left_open() for log in logs]
    rag.close()


def test_custom_events_tell_of_guesses_verdicts_and_rollbacks() -> None:
    """One of each kind at least, with numbers that agree with the report."""
    _, _, rag = parts("text", "black box", "interval")
    log = Log()
    report = rag.invoke(QUESTIONS[0], {"callbacks": [log]})["ralmspec"]
    customs = log.customs()
    verdicts = [data["right"] for name, data in customs if name == "ralmspec.verify"]

    kinds = ("guess", "verify", "rollback", "report")

    assert {f"ralmspec.{kind}" for kind in kinds} == {name for name, _ in customs}
    assert report["stats"]["guesses"] == len(verdicts)
    assert report["stats"]["accepted"] == sum(verdicts)
    rag.close()


@pytest.mark.parametrize("model", MODELS)
async def test_event_streams_show_nothing_that_was_rolled_back(model: str) -> None:
    """`astream_events` and `astream_log`: of all that was written, only what stayed is seen."""
    llm, retriever, rag = parts(model, "black box", "interval")
    hand = by_hand(llm, retriever, "interval", streams=True)
    for question in QUESTIONS[:3]:
        expected = [shown(event) async for event in hand.astream_events(question, version="v2")]
        events = [event async for event in rag.astream_events(question, version="v2")]
        with pytest.warns(DeprecationWarning, match="astream_log"):
            log = [patch async for patch in rag.astream_log(question)]
        right = canaries(expected)

        assert [one for one in expected if one] == [one for one in map(shown, events) if one]
        assert right == canaries(events)
        assert right == canaries(log)
    assert canaries(llm.written) > right
    rag.close()


def shown(event: Any) -> Any:
    """Show what an event says, but for ids and for the runs around."""
    if event["event"].startswith(("on_chain", "on_custom")):
        return None
    data = event["data"]
    chunk = data.get("chunk")
    text = getattr(chunk, "content", None) or getattr(chunk, "text", None)
    return event["event"], event["name"], event["tags"], text, str(data.get("input"))


async def test_handlers_of_the_model_itself_hear_only_what_is_committed() -> None:
    """Given to its constructor, bound to it, listening to it: told once, of the right calls."""
    for wrap in (
        lambda llm, log: llm.model_copy(update={"callbacks": [log]}),
        lambda llm, log: llm.with_config(callbacks=[log]),
    ):
        bare, log, other = HashLLM(), Log(), Log()
        retriever = retriever_of("black box")
        rag = rag_of(wrap(bare, log), retriever, "interval", **WRONG)
        rag.invoke(QUESTIONS[1])
        by_hand(wrap(HashLLM(), other), retriever, "interval").invoke(QUESTIONS[1])

        assert other.names == log.names
        assert canaries(other.events) == canaries(log.events)
        assert canaries(bare.written) > canaries(log.events)
        rag.close()


@pytest.mark.parametrize("wrapped", ["callbacks", "listeners"])
async def test_handlers_of_the_retriever_hear_only_what_is_committed(wrapped: str) -> None:
    """Bound to it, or listening to it: told of each committed search, as by hand."""

    def with_notes(notes: list[Any]) -> Any:
        retriever = retriever_of("black box")
        if wrapped == "listeners":
            return retriever.with_listeners(
                on_start=lambda run: notes.append(("start", canaries(run.inputs))),
                on_end=lambda run: notes.append(("end", len(run.outputs["documents"]))),
            )
        log = Log()
        log.note = lambda name, args, _: notes.append((name, args[1:]))  # type: ignore[method-assign]
        return retriever.with_config(callbacks=[log])

    expected: list[Any] = []
    by_hand(HashLLM(), with_notes(expected), "interval").invoke(QUESTIONS[1])
    notes: list[Any] = []
    rag = rag_of(HashLLM(), with_notes(notes), "interval", **WRONG)
    rag.invoke(QUESTIONS[1])

    assert expected
    assert expected == notes
    notes.clear()
    await rag.ainvoke(QUESTIONS[1])
    assert expected == notes
    rag.close()


def test_listeners_of_the_model_hear_only_what_is_committed() -> None:
    """`llm.with_listeners(...)` hears as many starts and ends as by hand, of the same calls."""
    retriever = retriever_of("black box")

    def heard(speculative: bool) -> list[Any]:
        notes: list[Any] = []
        llm = HashLLM().with_listeners(
            on_start=lambda run: notes.append(("start", canaries(run.inputs))),
            on_end=lambda run: notes.append(("end", canaries(run.outputs))),
        )
        if speculative:
            rag = rag_of(llm, retriever, "interval", **WRONG)
            rag.invoke(QUESTIONS[1])
            rag.close()
        else:
            by_hand(llm, retriever, "interval").invoke(QUESTIONS[1])
        assert len(notes) > 4
        return notes

    assert heard(speculative=False) == heard(speculative=True)


async def test_usage_counters_count_the_committed_calls() -> None:
    """`get_usage_metadata_callback()` counts as by hand: dropped calls are not in it."""
    llm, retriever, rag = parts("chat", "black box", "interval")
    hand = by_hand(llm, retriever, "interval")
    with get_usage_metadata_callback() as expected:
        hand.invoke(QUESTIONS[0])
    with get_usage_metadata_callback() as counted:
        rag.invoke(QUESTIONS[0])
    with get_usage_metadata_callback() as awaited:
        await rag.ainvoke(QUESTIONS[0])
    with get_usage_metadata_callback() as streamed:
        list(rag.stream(QUESTIONS[0]))

    assert expected.usage_metadata
    assert expected.usage_metadata == counted.usage_metadata
    assert expected.usage_metadata == awaited.usage_metadata
    assert expected.usage_metadata == streamed.usage_metadata
    rag.close()


class Following(Log):
    """A handler that follows tokens, as event streams do."""

    def tap_output_aiter(self, run_id: Any, output: Any) -> Any:
        return output

    def tap_output_iter(self, run_id: Any, output: Any) -> Any:
        return output


@pytest.mark.parametrize("how", ["streamed", "followed", "by itself"])
def test_the_first_token_comes_before_the_model_has_finished(how: str) -> None:
    """The model is held up before its second word until a handler has seen the first."""
    seen, in_time = threading.Event(), []
    log = Following() if how == "followed" else Log()
    note = log.note

    def noted(name: str, args: Any, kwargs: Any) -> None:
        note(name, args, kwargs)
        if name == "on_llm_new_token":
            seen.set()

    log.note = noted  # type: ignore[method-assign]

    def held_up(number: int) -> None:
        if number == 1:
            in_time.append(seen.wait(3))

    llm = HashChat(between=held_up, **({"streaming": True} if how == "by itself" else {}))
    rag = rag_of(llm, retriever_of("black box"), "one_shot")
    if how == "streamed":
        list(rag.stream(QUESTIONS[0], {"callbacks": [log]}))
    else:
        rag.invoke(QUESTIONS[0], {"callbacks": [log]})

    assert in_time == [True]
    rag.close()


@pytest.mark.parametrize("how", ["streamed", "events", "by itself"])
async def test_the_first_token_comes_before_the_model_has_finished_async(how: str) -> None:
    """The same on an event loop."""
    seen, in_time = asyncio.Event(), []

    class Seeing(AsyncLog):
        def note(self, name: str, args: Any, kwargs: Any) -> None:
            if name == "on_llm_new_token":
                seen.set()

    async def held_up(number: int) -> None:
        if number == 1:
            await asyncio.wait_for(seen.wait(), 3)
            in_time.append(True)

    llm = HashChat(abetween=held_up, **({"streaming": True} if how == "by itself" else {}))
    rag = rag_of(llm, retriever_of("black box"), "one_shot")
    if how == "streamed":
        async for piece in rag.astream(QUESTIONS[0]):
            seen.set() if piece.get("answer") else None
    elif how == "events":
        async for event in rag.astream_events(QUESTIONS[0], version="v2"):
            seen.set() if event["event"] == "on_chat_model_stream" else None
    else:
        await rag.ainvoke(QUESTIONS[0], {"callbacks": [Seeing()]})

    assert in_time == [True]
    rag.close()


@pytest.mark.parametrize("kind", ["black box", "looked into"])
async def test_handlers_that_stand_in_the_context_hear_one_run(kind: str) -> None:
    """`collect_runs()`: one tree, with the calls that the loop by hand makes, and no other."""
    llm, retriever, rag = parts("chat", kind, "interval")
    hand = by_hand(llm, retriever, "interval")

    def tree(run: Any) -> Any:
        return run.run_type, canaries(run.inputs), [tree(child) for child in run.child_runs]

    for question in QUESTIONS[:2]:
        with collect_runs() as by:
            hand.invoke(question)
        with collect_runs() as invoked:
            rag.invoke(question)
        with collect_runs() as awaited:
            await rag.ainvoke(question)
        with collect_runs() as streamed:
            list(rag.stream(question))

        expected = [tree(run) for run in by.traced_runs]
        assert 1 == len(expected)
        for got in (invoked, awaited, streamed):
            assert expected == [tree(run) for run in got.traced_runs]
    rag.close()


@pytest.mark.parametrize("kind", ["black box", "looked into"])
def test_debugging_prints_committed_work_only(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`set_debug(True)`: as many runs are printed as by hand, and no word of a dropped call."""
    llm, retriever, rag = parts("chat", kind, "interval")
    set_debug(True)
    try:
        by_hand(llm, retriever, "interval").invoke(QUESTIONS[0])
        expected = capsys.readouterr().out
        rag.invoke(QUESTIONS[0])
        printed = capsys.readouterr().out
    finally:
        set_debug(False)
    rag.close()

    assert expected.count("[llm/start]") == printed.count("[llm/start]") > 1
    assert expected.count("[llm/end]") == printed.count("[llm/end]")
    assert canaries(expected) == canaries(printed)
    assert canaries(llm.written) > canaries(printed)


def test_a_handler_that_a_part_reads_itself_stays_where_it_is() -> None:
    """Of the handlers in the context only those go that the host adds to every run."""
    reported: ContextVar[Any] = ContextVar("reported", default=None)
    log = Log()

    class Reporting(HashRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> Any:
            reported.get().note("asked", (query,), {})
            return super()._get_relevant_documents(query, run_manager=run_manager)

    retriever = Reporting(documents=documents())
    rag = rag_of(HashChat(), retriever, "one_shot")
    token = reported.set(log)
    try:
        with get_usage_metadata_callback() as usage:
            rag.invoke(QUESTIONS[0])
    finally:
        reported.reset(token)
    rag.close()

    assert ["asked"] == log.names
    assert usage.usage_metadata
