"""OpenAI's own clients, wrapped, over a server on loopback: same texts, round trips counted."""

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI, OpenAI
from langchain_ralmspec.llm import HostLM
from langchain_ralmspec.prompts import Prompting

from ralmspec_plugins.demo import DEMO_SEED, MODEL, make_world
from ralmspec_plugins.engine.aio import AsyncEngine
from ralmspec_plugins.engine.threads import Engine
from ralmspec_plugins.errors import Cancelled, ModelError
from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.plain import plain
from ralmspec_plugins.protocols import Progress, scored_model
from ralmspec_plugins.testing import WordRetriever
from ralmspec_plugins.types import Request, TokenLogprob
from ralmspec_plugins.workloads import Interval, OneShot
from ralmspec_plugins.workloads.sentences import Sentences
from tests.langchain import openai_server
from tests.langchain.by_hand import ARTICLE, prompted, searching
from tests.langchain.openai_server import Served, serving, written_by

PARTS = Prompting(prompt=ARTICLE)
CONTINUED = {"extra_body": {"continue_final_message": True, "add_generation_prompt": False}}
WORLD = make_world(DEMO_SEED, 100)
RETRIEVER = WordRetriever([passage.text for passage in WORLD.passages()], k=1)
QUESTIONS = [question.prompt for question in WORLD.questions(3, 1)]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(HuggingFaceLM.from_pretrained(MODEL)) as served:
        yield served


@pytest.fixture(params=["text", "chat"])
def llm(request: pytest.FixtureRequest, served: Served) -> Any:
    kind = OpenAI if request.param == "text" else ChatOpenAI
    return kind(base_url=served.url, api_key="none", model="demo", temperature=0, max_retries=0)


def wrapped(llm: Any, **settings: Any) -> HostLM:
    if isinstance(llm, ChatOpenAI):
        settings.setdefault("continuation", CONTINUED)
    return HostLM(llm, PARTS, **settings)


def by_hand(llm: Any, question: str, interval: int, max_tokens: int) -> tuple[str, int]:
    """Search, write a few tokens, start over; with the client's own methods alone."""
    text, calls = "", 0
    while calls * interval < max_tokens:
        query = " ".join((question + " " + text).split()[-32:]) if text else question
        prompt = prompted(searching(RETRIEVER)(query), question, ARTICLE)
        calls += 1
        if isinstance(llm, ChatOpenAI):
            messages = [("user", prompt), *([("assistant", text)] if text else [])]
            message = llm.invoke(messages, max_tokens=interval, **(CONTINUED if text else {}))
            piece, why = str(message.text), message.response_metadata["finish_reason"]
        else:
            generation = llm.generate([prompt + text], max_tokens=interval).generations[0][0]
            piece, why = generation.text, generation.generation_info["finish_reason"]
        text += piece
        if why == "stop" or not piece:
            break
    return text, calls


def test_tokens_are_those_of_the_loop_by_hand(llm: Any, served: Served) -> None:
    """The same text in as many round trips; also where guesses run ahead, and streamed."""
    workload = Interval(wrapped(llm))
    for question in QUESTIONS:
        request = Request(prompt=question, max_tokens=24)
        expected, calls = by_hand(llm, question, 4, 24)
        before = served.count
        answer = plain(workload, RETRIEVER, request)

        assert expected == answer.text
        assert calls == served.count - before == answer.state.calls
        with Engine(workload, RETRIEVER) as engine:
            assert expected == engine.run(request).text
            assert expected == "".join(engine.stream(request))


async def test_awaited_calls_answer_the_same(llm: Any) -> None:
    """Over the client's asynchronous methods."""
    for workload in (Interval(wrapped(llm)), Sentences(wrapped(llm), max_sentences=2)):
        request = Request(prompt=QUESTIONS[0], max_tokens=16)
        expected = plain(workload, RETRIEVER, request)
        async with AsyncEngine(workload, RETRIEVER) as engine:
            answer = await engine.run(request)
            pieces = [piece async for piece in engine.stream(request)]

        assert expected == answer
        assert expected.text == "".join(pieces)


def test_sentences_take_one_call_each(llm: Any, served: Served) -> None:
    """A call for a sentence, bounded, cut behind its end, with what follows asked for anew."""
    workload = Sentences(wrapped(llm), tokens=40, max_sentences=3)
    before = served.count
    answer = plain(workload, RETRIEVER, Request(prompt=QUESTIONS[0], max_tokens=999))
    outputs = served.requests[before:]

    assert served.count - before == 3
    assert [40, 40, 40] == [
        one.get("max_tokens") or one.get("max_completion_tokens") for one in outputs
    ]
    assert answer.text.count(".") == 3
    assert answer.text.endswith(".")


def test_sentences_through_a_stop_string(llm: Any, served: Served) -> None:
    """The server stops at the mark, which is put back; no bound is sent."""
    workload = Sentences(wrapped(llm, sentence_stop="."), max_sentences=2)
    before = served.count
    answer = plain(workload, RETRIEVER, Request(prompt=QUESTIONS[0], max_tokens=999))

    assert [["."], ["."]] == [one["stop"] for one in served.requests[before:]]
    assert answer.text.count(".") == 2
    assert answer.text.endswith(".")


def test_one_shot_is_the_clients_own_call(llm: Any, served: Served) -> None:
    """Byte for byte the request that the client makes of the prompt, and its message as it came."""
    workload = OneShot(wrapped(llm, whole=True))
    before = served.count
    answer = plain(workload, RETRIEVER, Request(prompt=QUESTIONS[0], max_tokens=1))
    output = llm.invoke(prompted(searching(RETRIEVER)(QUESTIONS[0]), QUESTIONS[0], ARTICLE))

    assert served.requests[before] == served.requests[before + 1]
    assert (output if isinstance(output, str) else output.text) == answer.text
    if isinstance(llm, ChatOpenAI):
        usage = answer.state.draft.usage
        assert output.usage_metadata["total_tokens"] == usage.total_tokens > 0


def test_usage_counts_every_call(served: Served) -> None:
    """The draft's sum is the server's."""
    llm = ChatOpenAI(base_url=served.url, api_key="none", model="demo", temperature=0)
    answer = plain(Interval(wrapped(llm)), RETRIEVER, Request(prompt=QUESTIONS[0], max_tokens=12))

    assert answer.state.usage.output_tokens == 12
    assert answer.state.calls == 3


def test_a_stop_string_that_two_segments_make_is_found(llm: Any) -> None:
    """Neither call has it whole, and the server cannot see it: the draft does."""
    question = Request(prompt=QUESTIONS[0], max_tokens=24)
    lm = wrapped(llm)
    whole = plain(Interval(lm), RETRIEVER, question)
    first = lm.write(
        lm.begin(question), [hit.passage for hit in whole.retrieved[0].hits], 4, Progress()
    )
    seam = len(first.text)
    mark = whole.text[seam - 3 : seam + 3]
    stopped = Request(prompt=QUESTIONS[0], max_tokens=24, stop=(mark,))

    assert whole.text[: whole.text.index(mark)] == plain(Interval(lm), RETRIEVER, stopped).text


def test_cancelling_hangs_up(served: Served) -> None:
    """A stream that nobody needs is closed: the client's connection with it."""
    llm = OpenAI(base_url=served.url, api_key="none", model="demo", temperature=0)
    lm = wrapped(llm, whole=True)
    seen: list[Any] = []

    def report(draft: Any) -> None:
        seen.append(draft)
        progress.cancel()

    progress = Progress(report)
    with pytest.raises(Cancelled):
        lm.write(lm.begin(Request(prompt=QUESTIONS[0])), [], 1, progress)
    assert len(seen) == 1


def test_the_servers_refusal_is_the_clients_error(served: Served) -> None:
    """What the client raises comes out as it is."""
    llm = ChatOpenAI(base_url=served.url, api_key="none", model="demo", max_retries=0)
    lm = HostLM(llm.bind(extra_body=CONTINUED["extra_body"]), PARTS, continuation=CONTINUED)

    with pytest.raises(openai.BadRequestError, match="not the assistant"):
        lm.write(lm.begin(Request(prompt="Who?")), [], 4, Progress())


def check_logprobs(lm: Any, draft: Any, served: Served, calls: int) -> None:
    """Compare with what the served model itself has for the calls, each cut where it was cut."""
    found, expected = lm.logprobs(draft), list[TokenLogprob]()
    for asked in served.requests[-calls:]:
        for one in written_by(served.lm, asked).logprobs:
            left = draft.text[sum(len(other.text) for other in expected) :]
            if one.text and not left.startswith(one.text):
                break  # a sentence was cut here
            expected.append(one)

    assert draft.text == "".join(one.text for one in found)
    assert expected == list(found)
    assert found


@pytest.mark.parametrize("listened", [False, True], ids=["invoke", "stream"])
@pytest.mark.parametrize("method", ["write", "write_sentence"])
def test_log_probabilities_are_the_servers(
    llm: Any, served: Served, method: str, listened: bool
) -> None:
    """Asked for and read, streamed or not; the tokens spell the text, cut or whole."""
    lm: Any = scored_model(wrapped(llm), (0.8, 0.4))
    draft = lm.begin(Request(prompt=QUESTIONS[0], max_tokens=60))
    calls = 2 if method == "write" else 1
    for _ in range(calls):
        progress = Progress((lambda _: None) if listened else None)
        draft = getattr(lm, method)(draft, RETRIEVER.passages[:1], 20, progress)

    check_logprobs(lm, draft, served, calls)


async def test_awaited_log_probabilities_are_the_servers(llm: Any, served: Served) -> None:
    """Over the client's asynchronous methods."""
    async with httpx.AsyncClient() as client:
        settings: Any = {"http_async_client": client, "base_url": served.url, "api_key": "none"}
        lm: Any = scored_model(wrapped(type(llm)(model="demo", temperature=0, **settings)))
        for report in (None, lambda _: None):
            draft = lm.begin(Request(prompt=QUESTIONS[0], max_tokens=60))
            draft = await lm.awrite(draft, RETRIEVER.passages[:1], 20, Progress(report))
            check_logprobs(lm, draft, served, 1)


def test_a_server_without_log_probabilities_is_refused(
    llm: Any, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for and not given: an error that says so, not a text without."""
    monkeypatch.setattr(openai_server, "_logprobs", lambda *_, **__: None)
    lm: Any = scored_model(wrapped(llm))
    with pytest.raises(ModelError, match=r"gave none that spell its text.*direct=True"):
        lm.write(
            lm.begin(Request(prompt=QUESTIONS[0], max_tokens=60)),
            RETRIEVER.passages[:1],
            8,
            Progress(),
        )
