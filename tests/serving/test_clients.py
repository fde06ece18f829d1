"""The usual clients talk to the server, and get the engine's answers."""

import asyncio
from collections.abc import Iterator

import httpx
import openai
import pytest

from ralmspec_plugins import AsyncEngine, Hit, Hits, Passage, Query, Settings
from ralmspec_plugins.workloads import Interval
from tests.serving.parts import app_of, right, served

pytest.importorskip("langchain_openai")
pytest.importorskip("llama_index.llms.openai_like")

PROMPT = "whale fox swan whale parrot fox oak"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server that accepts the temperature which LlamaIndex' client always sends."""
    with served(app_of(ignore=["temperature"])) as address:
        yield address


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    """The connections of all clients, closed at the end."""
    with httpx.Client(trust_env=False, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def client(url: str, http: httpx.Client) -> openai.OpenAI:
    """OpenAI's client."""
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0, http_client=http)


def test_openais_client(client: openai.OpenAI) -> None:
    """A whole answer with its sources."""
    messages: list[object] = [{"role": "user", "content": PROMPT}]
    extra = {"x_ralmspec": {"sources": True}}
    reply = client.chat.completions.create(model="poems", messages=messages, extra_body=extra)
    found = reply.x_ralmspec["sources"]

    assert right(PROMPT).text == reply.choices[0].message.content
    assert [hit.passage.id for hit in right(PROMPT).sources] == [one["id"] for one in found]
    assert [model.id for model in client.models.list()] == ["poems"]


def test_openais_client_streams(client: openai.OpenAI) -> None:
    """The pieces are the answer."""
    messages: list[object] = [{"role": "user", "content": PROMPT}]
    chunks = list(
        client.chat.completions.create(
            model="poems",
            messages=messages,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    pieces = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]

    assert len([piece for piece in pieces if piece]) > 1
    assert right(PROMPT).text == "".join(pieces)
    assert chunks[-1].choices == []


async def test_openais_asynchronous_client(url: str) -> None:
    """Many at once."""
    prompts = [f"{PROMPT} {word}" for word in ("fox", "oak", "swan", "stone")] * 4
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as asked:
        replies = await asyncio.gather(
            *(
                asked.chat.completions.create(
                    model="poems", messages=[{"role": "user", "content": prompt}]
                )
                for prompt in prompts
            )
        )

    assert [right(prompt).text for prompt in prompts] == [
        reply.choices[0].message.content for reply in replies
    ]


def test_openais_client_raises_its_own_errors(client: openai.OpenAI) -> None:
    """Those of wrong requests, of unknown models, of the server, and in a stream."""
    asked = client.chat.completions
    with pytest.raises(openai.BadRequestError, match="top_p"):
        asked.create(model="poems", messages=[{"role": "user", "content": "a"}], top_p=0.5)
    with pytest.raises(openai.NotFoundError):
        asked.create(model="other", messages=[{"role": "user", "content": "a"}])
    with pytest.raises(openai.InternalServerError):
        asked.create(model="poems", messages=[{"role": "user", "content": "poison"}])
    messages: list[object] = [{"role": "user", "content": "fox poison"}]
    stream = asked.create(model="poems", messages=messages, stream=True)
    with pytest.raises(openai.APIError, match="inside of the server"):
        list(stream)


def test_langchains_client(url: str, http: httpx.Client) -> None:
    """Whole and in pieces."""
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(model="poems", base_url=url, api_key="none", max_retries=0, http_client=http)
    pieces = [piece.text for piece in chat.stream(PROMPT)]

    assert right(PROMPT).text == chat.invoke(PROMPT).text
    assert right(PROMPT).text == "".join(pieces)
    assert len([piece for piece in pieces if piece]) > 1


def test_llama_indexs_client(url: str, http: httpx.Client) -> None:
    """Whole and in pieces, as a chat and as a completion."""
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    llm = OpenAILike(
        model="poems",
        api_base=url,
        api_key="none",
        is_chat_model=True,
        max_retries=0,
        http_client=http,
    )
    messages = [ChatMessage(role="user", content=PROMPT)]
    pieces = [piece.delta or "" for piece in llm.stream_chat(messages)]

    assert right(PROMPT).text == llm.chat(messages).message.content
    assert right(PROMPT).text == llm.complete(PROMPT).text
    assert right(PROMPT).text == "".join(pieces)
    assert len([piece for piece in pieces if piece]) > 1


def test_usage_counts_what_is_part_of_the_answer(http: httpx.Client) -> None:
    """Tokens of dropped work are apart; whole, in a stream, and as LangChain reads it."""
    pytest.importorskip("transformers")
    from langchain_openai import ChatOpenAI

    from ralmspec_plugins import Engine, FixedStride
    from ralmspec_plugins.lm import HuggingFaceLM
    from ralmspec_plugins.testing.models import tiny_llama, tiny_tokenizer
    from ralmspec_plugins.types import Request
    from tests.serving.parts import retriever

    lm = HuggingFaceLM(tiny_llama(context=256), tiny_tokenizer())
    settings = Settings(schedule=FixedStride(stride=3), speculators=[_Wrong()])
    request = Request(prompt="whale", max_tokens=20)
    with Engine(Interval(lm), retriever(), Settings(speculate=False)) as plain:
        expected = plain.run(request)
    draft = expected.state
    with served(_one(AsyncEngine(Interval(lm), retriever(), settings))) as url:
        messages: list[object] = [{"role": "user", "content": "whale"}]
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, http_client=http)
        asked = client.chat.completions
        reply = asked.create(model="lm", messages=messages, max_tokens=20)
        *_, last, usage = asked.create(
            model="lm",
            messages=messages,
            max_tokens=20,
            stream=True,
            stream_options={"include_usage": True},
        )
        chat = ChatOpenAI(model="lm", base_url=url, api_key="none", max_tokens=20, http_client=http)
        found = chat.invoke("whale").usage_metadata

    assert len(draft.tokens) == 20
    assert expected.text == reply.choices[0].message.content
    assert reply.choices[0].finish_reason == last.choices[0].finish_reason == "length"
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (
        len(draft.origin.head_tokens) + len(draft.origin.prompt_tokens),
        20,
    )
    assert reply.x_ralmspec["dropped_tokens"] > 0
    assert usage.usage == reply.usage
    assert found is not None
    assert found["output_tokens"] == 20


@pytest.mark.parametrize("stream", [False, True])
async def test_stops_seeds_and_limits_are_the_engines(stream: bool) -> None:
    """Each answer is `Engine.run`'s with the same settings, whatever they are."""
    pytest.importorskip("transformers")
    from ralmspec_plugins import Engine
    from ralmspec_plugins.lm import HuggingFaceLM, Sampling
    from ralmspec_plugins.testing.models import tiny_llama, tiny_tokenizer
    from ralmspec_plugins.types import Request
    from tests.serving.parts import CHAT, body, client_of, read_stream, retriever

    lm = HuggingFaceLM(tiny_llama(context=256), tiny_tokenizer(), sampling=Sampling())
    prompt = "wh\xe4le \U0001f433 \u4e2d"
    with Engine(Interval(lm), retriever(), Settings(speculate=False)) as plain:
        whole = plain.run(Request(prompt=prompt, max_tokens=20)).text
        asked = [
            {"max_tokens": 20},
            {"max_tokens": 20, "stop": [whole[-3:], whole[8:10], "never"]},
            {"max_tokens": 20, "stop": whole[5]},
            {"max_tokens": 20, "seed": 2**63 - 1},
            {"max_completion_tokens": 3, "seed": -(2**63)},
        ]
        expected = [
            plain.run(
                Request(
                    prompt=prompt,
                    max_tokens=int(fields.get("max_tokens", 3)),
                    seed=int(fields.get("seed", 0)),
                    stop=tuple([stop] if isinstance(stop := fields.get("stop", []), str) else stop),
                )
            ).text
            for fields in asked
        ]
    engine = AsyncEngine(Interval(lm), retriever(), Settings())
    async with client_of(_one(engine)) as client:
        replies = [
            await client.post(CHAT, json=body(prompt, "lm", stream=stream, **fields))
            for fields in asked
        ]

    assert len(set(expected)) == len(expected)
    assert all(len(text) < len(whole) for text in expected[1:3])
    assert expected == [
        read_stream(reply.text).text if stream else reply.json()["choices"][0]["message"]["content"]
        for reply in replies
    ]


def _one(engine: AsyncEngine) -> object:
    from ralmspec_plugins.serving import create_app

    return create_app({"lm": engine})


class _Wrong:
    """Guesses a passage that no search of these tests finds."""

    def guess(self, query: Query) -> Hits:
        return (Hit(Passage("p9", "a wrong guess")),)

    def learn(self, query: Query, hits: Hits) -> None:
        """Learn nothing."""
