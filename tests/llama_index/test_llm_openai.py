"""LlamaIndex's OpenAI clients, wrapped, over a server on loopback: same texts, calls counted."""

import gc
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import openai
import pytest
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import QueryBundle, TextNode
from llama_index.llms.openai import OpenAI
from llama_index.llms.openai_like import OpenAILike
from llama_index_ralmspec.documents import nodes_of, passage_of
from llama_index_ralmspec.host_calls import HostContext
from llama_index_ralmspec.llm import HostLM
from llama_index_ralmspec.prompts import Prompting
from llama_index_ralmspec.synthesis import SynthesizerLM

from ralmspec_plugins.adapters.text_state import Usage
from ralmspec_plugins.demo import DEMO_SEED, MODEL, make_world
from ralmspec_plugins.engine.aio import AsyncEngine
from ralmspec_plugins.engine.threads import Engine
from ralmspec_plugins.errors import Cancelled, ModelError
from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.plain import plain
from ralmspec_plugins.protocols import Progress, scored_model
from ralmspec_plugins.testing import WordRetriever
from ralmspec_plugins.types import Hits, Query, Request, TokenLogprob
from ralmspec_plugins.workloads import Interval, OneShot
from ralmspec_plugins.workloads.sentences import Sentences
from tests.langchain import openai_server
from tests.langchain.openai_server import Served, serving, written_by
from tests.llama_index.by_hand import PROMPT, called, last_words, searching
from tests.selection import covering

PARTS = Prompting(text_qa_template=PROMPT)
CONTINUED = {"extra_body": {"continue_final_message": True, "add_generation_prompt": False}}
WORLD = make_world(DEMO_SEED, 100)
RETRIEVER = WordRetriever([passage.text for passage in WORLD.passages()], k=1)
RETRIEVER.passages[:] = [
    passage_of(TextNode(id_=one.id, text=one.text)) for one in WORLD.passages()
]
QUESTIONS = [question.prompt for question in WORLD.questions(2, 1)]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(HuggingFaceLM.from_pretrained(MODEL)) as served:
        yield served


def made(served: Served, *, chat: bool, **settings: Any) -> OpenAILike:
    common = {"api_base": served.url, "api_key": "none", "model": "demo", "temperature": 0}
    return OpenAILike(**{**common, "max_retries": 0, "is_chat_model": chat, **settings})


@pytest.fixture(params=["text", "chat"])
def llm(request: pytest.FixtureRequest, served: Served) -> Any:
    return made(served, chat=request.param == "chat")


def wrapped(llm: Any, **settings: Any) -> Any:
    if llm.metadata.is_chat_model:
        settings.setdefault("continuation", CONTINUED)
    return HostLM(llm, PARTS, **settings)


def asked(prompt: str, *, asynchronous: bool = False, **settings: Any) -> Request:
    context = HostContext(QueryBundle(prompt), asynchronous=asynchronous)
    return Request(prompt=prompt, context=context, **settings)


def hits_for(question: str) -> Hits:
    return RETRIEVER.search([Query(question)])[0]


def by_hand(llm: Any, question: str, interval: int, max_tokens: int) -> tuple[str, int]:
    """Search, write a few tokens, start over; with the client's own methods alone."""
    text, calls = "", 0
    while calls * interval < max_tokens:
        nodes = searching(RETRIEVER)(last_words(question, text, 32))
        more = CONTINUED if text and llm.metadata.is_chat_model else {}
        piece, ended = called(llm, nodes, question, text, max_tokens=interval, **more)
        calls += 1
        text += piece
        if ended or not piece:
            break
    return text, calls


def test_tokens_are_those_of_the_loop_by_hand(llm: Any, served: Served) -> None:
    """The same text in as many round trips; also where guesses run ahead, and streamed."""
    workload: Any = Interval(wrapped(llm))
    for question in QUESTIONS:
        request = asked(question, max_tokens=16)
        expected, calls = by_hand(llm, question, 4, 16)
        before = served.count
        answer = plain(workload, RETRIEVER, request)

        assert expected == answer.text
        assert calls == served.count - before == answer.state.calls
        with Engine(workload, RETRIEVER) as engine:
            assert expected == engine.run(request).text
            assert expected == "".join(engine.stream(request))


def test_the_same_requests_are_sent(llm: Any, served: Served) -> None:
    """Byte for byte what the loop by hand sends: the bound, the messages, and nothing else."""
    before = served.count
    by_hand(llm, QUESTIONS[0], 4, 12)
    middle = served.count
    plain(Interval(wrapped(llm)), RETRIEVER, asked(QUESTIONS[0], max_tokens=12))

    assert served.requests[before:middle] == served.requests[middle:]
    assert [4] * 3 == [one["max_tokens"] for one in served.requests[middle:]]


@pytest.mark.parametrize(
    ("asynchronous", "kind"),
    covering([True, False], [Interval, partial(Sentences, max_sentences=2)]),
)
async def test_awaited_calls_answer_the_same(llm: Any, asynchronous: bool, kind: Any) -> None:
    """Over the client's asynchronous methods."""
    workload: Any = kind(wrapped(llm))
    expected = plain(workload, RETRIEVER, asked(QUESTIONS[0], max_tokens=16))
    request = asked(QUESTIONS[0], max_tokens=16, asynchronous=asynchronous)
    async with AsyncEngine(workload, RETRIEVER) as engine:
        answer = await engine.run(request)
        pieces = [piece async for piece in engine.stream(request)]

    assert expected.text == answer.text == "".join(pieces)
    assert llm._aclient is not None  # its copies have not made one each
    await llm._aclient.close()


def test_sentences_take_one_call_each(llm: Any, served: Served) -> None:
    """A call for a sentence, bounded, cut behind its end, with what follows asked for anew."""
    workload: Any = Sentences(wrapped(llm), tokens=40, max_sentences=3)
    before = served.count
    plain(workload, RETRIEVER, asked(QUESTIONS[0], max_tokens=999))
    calls = served.requests[before:]
    ends = [one.get("prompt") or one["messages"][-1]["content"] for one in calls[1:]]

    assert [40, 40, 40] == [one["max_tokens"] for one in calls]
    assert [".", "."] == [end[-1] for end in ends]


def test_sentences_through_a_stop_string(llm: Any, served: Served) -> None:
    """The server stops at the mark, which is put back; no bound is sent."""
    workload: Any = Sentences(wrapped(llm, sentence_stop="."), max_sentences=2)
    before = served.count
    answer = plain(workload, RETRIEVER, asked(QUESTIONS[0], max_tokens=999))

    assert [["."], ["."]] == [one["stop"] for one in served.requests[before:]]
    assert not [one for one in served.requests[before:] if "max_tokens" in one]
    assert answer.text.count(".") == 2


@pytest.mark.parametrize("chat", [False, True])
def test_settings_of_the_client_do_not_overrule_the_bound(served: Served, chat: bool) -> None:
    """Its own `max_tokens` and arguments would: they are put aside for the call, and kept."""
    llm = made(
        served,
        chat=chat,
        max_tokens=50,
        additional_kwargs={"max_tokens": 60, "stop": ["zebra"], "extra_body": {"top_k": 3}},
    )
    lm = wrapped(llm)
    draft = lm.begin(asked(QUESTIONS[0], max_tokens=8, stop=("zephyr",)))
    for _ in range(2):
        draft = lm.write(draft, hits_for(QUESTIONS[0]), 4, Progress())
    first, second = served.requests[-2:]

    assert [(4, ["zephyr"], 3)] * 2 == [
        (one["max_tokens"], one["stop"], one["top_k"]) for one in (first, second)
    ]
    assert "continue_final_message" not in first
    assert second.get("continue_final_message", False) is chat
    assert llm.max_tokens == 50
    assert llm.additional_kwargs["max_tokens"] == 60
    assert llm.additional_kwargs["extra_body"] == {"top_k": 3}


def test_one_connection_serves_all_calls(served: Served) -> None:
    """A call through a copy of the client is made over the client's own connection."""
    llm = made(served, chat=False)
    lm = wrapped(llm)
    draft = lm.begin(asked(QUESTIONS[0], max_tokens=8))
    lm.write(draft, hits_for(QUESTIONS[0]), 4, Progress())
    client = llm._client

    assert client is not None
    lm.write(draft, hits_for(QUESTIONS[0]), 4, Progress())
    assert client is llm._client
    assert llm._aclient is None


def test_a_message_that_the_prompt_begins_is_continued(served: Served) -> None:
    """From the first call on, and with what was written appended to it."""
    from llama_index.core.prompts import ChatPromptTemplate

    messages = [
        ChatMessage(role=MessageRole.USER, content="{context_str} {query_str}"),
        ChatMessage(role=MessageRole.ASSISTANT, content="Well,"),
    ]
    parts = Prompting(text_qa_template=ChatPromptTemplate(message_templates=messages))
    lm = HostLM(made(served, chat=True), parts, continuation=CONTINUED)  # type: ignore[arg-type]
    draft = lm.begin(asked(QUESTIONS[0], max_tokens=8))
    for _ in range(2):
        draft = lm.write(draft, hits_for(QUESTIONS[0]), 4, Progress())
    first, second = served.requests[-2:]

    assert first["messages"][-1] == {"role": "assistant", "content": "Well,"}
    assert first["continue_final_message"]
    assert len(second["messages"]) == 2
    assert second["messages"][-1]["content"].startswith("Well,")
    assert len(second["messages"][-1]["content"]) > len("Well,")


def test_usage_and_ends_are_the_servers(llm: Any) -> None:
    """What the draft counts is what the server has counted; a bound is no end."""
    lm = wrapped(llm)
    draft = lm.begin(asked(QUESTIONS[0], max_tokens=12))
    for _ in range(2):
        draft = lm.write(draft, hits_for(QUESTIONS[0]), 4, Progress())

    assert draft.usage.output_tokens == 8
    assert draft.usage != Usage()
    assert not draft.finished


def test_a_stop_string_that_two_segments_make_is_found(llm: Any) -> None:
    """Neither call has it whole, and the server cannot see it: the draft does."""
    whole = plain(Interval(wrapped(llm)), RETRIEVER, asked(QUESTIONS[0], max_tokens=24)).text
    words = whole.split(" ")
    mark = " ".join(words[2:6])
    answer = plain(
        Interval(wrapped(llm)), RETRIEVER, asked(QUESTIONS[0], max_tokens=24, stop=(mark,))
    )

    assert whole.partition(mark)[0] == answer.text


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_synthesizers_answer_is_the_clients(
    llm: Any, served: Served, asynchronous: bool
) -> None:
    """The same requests, the same text, and streamed the same text again."""
    question = QUESTIONS[1]
    synthesizer = get_response_synthesizer(llm=llm)
    before = served.count
    nodes = nodes_of(hits_for(question))
    if asynchronous:
        expected = await synthesizer.asynthesize(query=question, nodes=nodes)
    else:
        expected = synthesizer.synthesize(query=question, nodes=nodes)
    middle = served.count
    lm: Any = SynthesizerLM(synthesizer)
    context = HostContext(QueryBundle(question), asynchronous)
    request = Request(prompt=question, context=context)
    workload: Any = OneShot(lm)
    if asynchronous:
        async with AsyncEngine(workload, RETRIEVER) as engine:
            answer = await engine.run(request)
    else:
        answer = plain(workload, RETRIEVER, request)

    if asynchronous:
        await llm._aclient.close()
    assert lm.side_by_side
    assert str(expected) == answer.text
    assert served.requests[before:middle] == served.requests[middle : 2 * middle - before]


def test_a_cancelled_stream_hangs_up(served: Served) -> None:
    """The server notices that nobody reads any more."""
    lm = wrapped(made(served, chat=False))
    progress = Progress()
    progress.connect(lambda _: progress.cancel())
    before = served.hung_up
    with pytest.raises(Cancelled):
        lm.write(lm.begin(asked(QUESTIONS[0], max_tokens=64)), hits_for("a"), 64, progress)

    gc.collect()  # LlamaIndex leaves the client's stream to the garbage collector
    for _ in range(200):
        if served.hung_up > before:
            break
        time.sleep(0.01)
    assert served.hung_up == before + 1


def test_the_clients_error_is_raised_as_it_is(served: Served) -> None:
    """A server that refuses to continue says so, and so does the model."""
    lm = wrapped(
        made(served, chat=True), continuation={"extra_body": {"continue_final_message": 1}}
    )
    draft = lm.write(lm.begin(asked(QUESTIONS[0], max_tokens=8)), hits_for("a"), 4, Progress())
    with pytest.raises(openai.BadRequestError, match="begin another"):
        lm.write(draft, hits_for("a"), 4, Progress())


def test_openais_own_models_are_known() -> None:
    """By their names, they chat or complete; that they cannot continue is said in time."""
    text = OpenAI(model="gpt-3.5-turbo-instruct", api_key="none")
    assert HostLM(text, PARTS).side_by_side
    chat = OpenAI(model="gpt-4o-mini", api_key="none")
    with pytest.raises(Exception, match="continue an assistant message"):
        HostLM(chat, PARTS)


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
    draft = lm.begin(asked(QUESTIONS[0], max_tokens=60))
    calls = 2 if method == "write" else 1
    for _ in range(calls):
        progress = Progress((lambda _: None) if listened else None)
        draft = getattr(lm, method)(draft, hits_for(QUESTIONS[0]), 20, progress)

    check_logprobs(lm, draft, served, calls)


async def test_awaited_log_probabilities_are_the_servers(llm: Any, served: Served) -> None:
    """Over the client's asynchronous methods."""
    lm: Any = scored_model(wrapped(llm))
    for report in (None, lambda _: None):
        draft = lm.begin(asked(QUESTIONS[0], max_tokens=60, asynchronous=True))
        draft = await lm.awrite(draft, hits_for(QUESTIONS[0]), 20, Progress(report))
        check_logprobs(lm, draft, served, 1)
    await llm._aclient.close()


def test_a_server_without_log_probabilities_is_refused(
    llm: Any, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for and not given: an error that says so, not a text without."""
    monkeypatch.setattr(openai_server, "_logprobs", lambda *_, **__: None)
    lm: Any = scored_model(wrapped(llm))
    with pytest.raises(ModelError, match=r"gave none that spell its text.*direct=True"):
        lm.write(
            lm.begin(asked(QUESTIONS[0], max_tokens=60)), hits_for(QUESTIONS[0]), 8, Progress()
        )
