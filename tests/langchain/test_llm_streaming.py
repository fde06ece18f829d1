"""Streamed and awaited calls write what plain calls write, and stop where nobody needs them."""

import asyncio
from typing import Any

import pytest
from langchain_core.callbacks import (
    BaseCallbackHandler,
    CallbackManager,
    get_usage_metadata_callback,
)
from langchain_core.language_models import FakeListChatModel, FakeListLLM
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_ralmspec.configs import HostContext
from langchain_ralmspec.llm import HostLM
from langchain_ralmspec.prompts import Prompting

from ralmspec_plugins.adapters.text_state import TextDraft
from ralmspec_plugins.engine.aio import AsyncEngine
from ralmspec_plugins.errors import Cancelled
from ralmspec_plugins.plain import plain
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing import WordRetriever
from ralmspec_plugins.types import Request
from ralmspec_plugins.workloads import Interval, OneShot
from ralmspec_plugins.workloads.sentences import Sentences
from tests.langchain.by_hand import PROMPT, QUESTIONS, TEXTS
from tests.langchain.fake_models import HostDownError, ThreadedWordLLM, WordChat, WordLLM

PARTS = Prompting(prompt=PROMPT)
RETRIEVER = WordRetriever(TEXTS, k=2)
PASSAGES = RETRIEVER.passages[:2]
STOP = ("storm", ". The")


def wrapped(llm: Runnable[Any, Any], **settings: Any) -> HostLM:
    if isinstance(llm, WordChat):
        settings.setdefault("continuation", "assistant")
    return HostLM(llm, PARTS, **settings)


def requests() -> list[Request]:
    return [Request(prompt=question, max_tokens=24, stop=STOP) for question in QUESTIONS]


@pytest.mark.parametrize("kind", [WordLLM, WordChat])
@pytest.mark.parametrize("step", ["tokens", "sentence", "whole"])
def test_a_stream_adds_up_to_the_call(kind: Any, step: str) -> None:
    """Each report is a prefix of the next and of the end, which is the plain call's."""
    for request in requests():
        lm = wrapped(kind(), whole=step == "whole")
        write = lm.write_sentence if step == "sentence" else lm.write
        expected = write(lm.begin(request), PASSAGES, 12, Progress())
        settled: list[str] = []
        progress = Progress(lambda draft: settled.append(lm.settled(draft)))  # noqa: B023
        streamed = write(lm.begin(request), PASSAGES, 12, progress)

        assert expected == streamed
        for shorter, longer in zip(settled, [*settled[1:], streamed.text], strict=True):
            assert longer.startswith(shorter)


@pytest.mark.parametrize("kind", [WordLLM, WordChat])
@pytest.mark.parametrize("step", ["tokens", "sentence", "whole"])
async def test_awaited_calls_write_the_same(kind: Any, step: str) -> None:
    """`awrite` and its stream give what `write` gives."""
    for request in requests():
        lm = wrapped(kind(), whole=step == "whole")
        write, awrite = lm.write, lm.awrite
        if step == "sentence":
            write, awrite = lm.write_sentence, lm.awrite_sentence
        expected = write(lm.begin(request), PASSAGES, 12, Progress())

        assert expected == await awrite(lm.begin(request), PASSAGES, 12, Progress())
        progress = Progress(lambda _: None)
        assert expected == await awrite(lm.begin(request), PASSAGES, 12, progress)


@pytest.mark.parametrize("kind", [WordLLM, WordChat, ThreadedWordLLM])
@pytest.mark.parametrize("steps", ["tokens", "sentences", "one shot"])
async def test_the_async_engine_answers_as_the_plain_loop(kind: Any, steps: str) -> None:
    """Whether awaited or in threads, run or streamed."""
    lm = wrapped(kind(), whole=steps == "one shot")
    made = {"tokens": Interval, "sentences": Sentences, "one shot": OneShot}
    workload: Any = made[steps](lm)
    expected = [plain(workload, RETRIEVER, request).text for request in requests()]
    async with AsyncEngine(workload, RETRIEVER) as engine:
        for text, request in zip(expected, requests(), strict=True):
            pieces = [piece async for piece in engine.stream(request)]

            assert text == (await engine.run(request)).text
            assert text == "".join(pieces)


def test_only_asynchronous_models_are_awaited() -> None:
    """A model whose asynchronous call sits in a thread keeps its place in the engine's threads."""
    assert hasattr(wrapped(WordLLM()), "awrite")
    assert hasattr(wrapped(WordChat()), "awrite_sentence")
    assert hasattr(HostLM(FakeListLLM(responses=["a"]), PARTS, whole=True), "awrite")
    assert not hasattr(wrapped(ThreadedWordLLM()), "awrite")
    assert not hasattr(HostLM(FakeListChatModel(responses=["a"]), PARTS, whole=True), "awrite")
    assert not hasattr(Sentences(wrapped(ThreadedWordLLM())), "aextend")


def cancelling_after(pieces: int) -> tuple[Progress, list[TextDraft]]:
    """Make a progress that is cancelled when this many pieces have come."""
    seen: list[TextDraft] = []

    def report(draft: TextDraft) -> None:
        seen.append(draft)
        if len(seen) == pieces:
            progress.cancel()

    progress = Progress(report)
    return progress, seen


def test_cancelling_stops_a_stream() -> None:
    """The host's stream is closed at the next piece; nothing more is read from it."""
    llm = WordLLM(max_tokens=24)
    lm = wrapped(llm, whole=True)
    progress, seen = cancelling_after(2)

    with pytest.raises(Cancelled):
        lm.write(lm.begin(Request(prompt="What?")), PASSAGES, 1, progress)
    assert len(seen) == 2
    assert len(llm.left_early) == 1


async def test_cancelling_stops_an_awaited_stream() -> None:
    """So is an asynchronous one, whether by progress or by its task."""
    llm = WordLLM(max_tokens=24)
    lm = wrapped(llm, whole=True)
    progress, seen = cancelling_after(2)
    with pytest.raises(Cancelled):
        await lm.awrite(lm.begin(Request(prompt="What?")), PASSAGES, 1, progress)
    assert len(seen) == 2
    assert len(llm.left_early) == 1

    begun = asyncio.Event()
    progress = Progress(lambda _: begun.set())
    task = asyncio.create_task(
        lm.awrite(lm.begin(Request(prompt="What?")), PASSAGES, 1, progress)  # type: ignore[arg-type]
    )
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(llm.left_early) == 2


class Listener(BaseCallbackHandler):
    """Notes what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_llm_start(self, *args: Any, **kwargs: Any) -> None:
        self.heard.append("start")

    def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
        self.heard.append("end")

    def on_llm_error(self, *args: Any, **kwargs: Any) -> None:
        self.heard.append("error")

    def on_chain_start(self, *args: Any, **kwargs: Any) -> None:
        self.heard.append("chain")


def test_what_a_call_tells_is_kept_with_the_draft() -> None:
    """The caller's handlers hear nothing; the model's run stands in the draft that it wrote."""
    listener = Listener()
    config = RunnableConfig(callbacks=CallbackManager(handlers=[], inheritable_handlers=[listener]))
    for progress in (Progress(), Progress(lambda _: None)):
        context = HostContext(config, {"input": "What?"})
        lm = wrapped(WordLLM())
        request = Request(prompt="What?", context=context)
        first = lm.write(lm.begin(request), PASSAGES, 2, progress)
        second = lm.write(first, PASSAGES, 2, progress)

        for draft in (first, second):
            run = draft.recording.run
            assert run.method == "on_llm_start"
            assert run.response.generations[0][0].text in draft.text != ""
            assert bool(run.tokens) == progress.wanted
        assert first.recording is not second.recording
        assert context.calls == []
    assert listener.heard == []


def test_handlers_that_stand_in_the_context_hear_nothing_either() -> None:
    """A usage counter counts what is committed: that is told later."""
    context = HostContext(RunnableConfig(callbacks=CallbackManager(handlers=[])), {"input": "Who?"})
    lm = wrapped(WordChat())
    with get_usage_metadata_callback() as counter:
        lm.write(lm.begin(Request(prompt="Who?", context=context)), PASSAGES, 2, Progress())
        assert counter.usage_metadata == {}

        lm.write(lm.begin(Request(prompt="Who?")), PASSAGES, 2, Progress())
        assert "words" in counter.usage_metadata


def test_a_failed_call_is_kept() -> None:
    """If the error counts, what happened before it can be told."""
    context = HostContext(RunnableConfig(callbacks=CallbackManager(handlers=[])), {"input": "Who?"})
    lm = wrapped(WordLLM(fails_on="Who?"))
    with pytest.raises(HostDownError) as raised:
        lm.write(lm.begin(Request(prompt="Who?", context=context)), PASSAGES, 2, Progress())
    [call] = context.calls

    assert call.raised is raised.value
    assert call.run is not None
    assert (call.run.method, call.run.error) == ("on_llm_start", raised.value)


def test_handlers_around_the_call_hear_it_without_a_context() -> None:
    """A bare model in somebody's chain is part of that chain's run."""
    listener = Listener()
    lm = wrapped(WordLLM())
    bare = HostLM(WordLLM(callbacks=[listener]), PARTS)
    for one in (lm, bare):
        one.write(one.begin(Request(prompt="What?")), PASSAGES, 2, Progress())

    assert listener.heard == ["start", "end"]
