"""Chat completions: the engine's answers in OpenAI's form, and refusals of all else."""

import asyncio
import json
from typing import Any

import pytest

from ralmspec_plugins import Engine
from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.serving import Limits, create_app, dialogue
from tests.serving.parts import (
    CHAT,
    AsyncPoem,
    Poem,
    app_of,
    body,
    client_of,
    poems,
    read_stream,
    retriever,
    right,
)

PROMPT = "whale fox swan whale parrot fox oak"


@pytest.fixture(params=["asynchronous", "threads"])
def engine(request: pytest.FixtureRequest) -> Any:
    """Both engines."""
    return poems() if request.param == "asynchronous" else Engine(Poem(), retriever())


async def test_an_answer_is_the_engines(engine: Any) -> None:
    """Text and sources of a reply are those of the plain loop; no source comes unasked."""
    expected = right(PROMPT)
    async with client_of(create_app({"poems": engine})) as client:
        reply = (await client.post(CHAT, json=body(PROMPT))).json()
        asked = body(PROMPT, x_ralmspec={"sources": True})
        with_sources = (await client.post(CHAT, json=asked)).json()

    [choice] = reply["choices"]
    assert expected.text
    assert expected.sources
    assert expected.text == choice["message"]["content"]
    assert (reply["object"], choice["finish_reason"]) == ("chat.completion", "stop")
    assert "sources" not in reply["x_ralmspec"]
    assert [(hit.passage.id, hit.passage.text, hit.score) for hit in expected.sources] == [
        (one["id"], one["text"], one["score"]) for one in with_sources["x_ralmspec"]["sources"]
    ]


async def test_a_stream_is_valid(engine: Any) -> None:
    """First the role, then text, then the reason, then the usage if asked for, then [DONE]."""
    asked = body(PROMPT, stream=True, stream_options={"include_usage": True})
    async with client_of(create_app({"poems": engine})) as client:
        response = await client.post(CHAT, json=asked)
    stream = read_stream(response.text)

    assert response.headers["content-type"].startswith("text/event-stream")
    assert stream.done
    assert right(PROMPT).text == stream.text
    first, *_, last, usage = stream.chunks
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert last["choices"][0]["finish_reason"] == "stop"
    assert usage["choices"] == []
    assert "usage" in usage
    assert {chunk["object"] for chunk in stream.chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in stream.chunks}) == 1
    assert len(stream.chunks) > 4  # the text came in pieces


async def test_a_stream_without_usage_has_none() -> None:
    """And sources are in its last chunk, on request."""
    async with client_of(app_of()) as client:
        asked = body(PROMPT, stream=True, x_ralmspec={"sources": True})
        stream = read_stream((await client.post(CHAT, json=asked)).text)

    assert stream.done
    assert not any("usage" in chunk for chunk in stream.chunks)
    assert all("x_ralmspec" not in chunk for chunk in stream.chunks[:-1])
    assert len(stream.chunks[-1]["x_ralmspec"]["sources"]) == len(right(PROMPT).sources)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"temperature": 0.5}, "temperature"),
        ({"user": "eve"}, "user"),
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"n": 1.0}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"functions": []}, "functions"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"max_tokens": 4, "max_completion_tokens": 5}, "max_completion_tokens"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"seed": 2**70}, "seed"),
        ({"x_ralmspec": {"stats": True}}, "x_ralmspec.stats"),
        ({"stream_options": {"usage": True}}, "stream_options.usage"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "a"}] * 1001}, "messages"),
        ({"messages": [{"role": "user", "content": "  "}]}, "question"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, "messages.0.name"),
        ({"messages": [{"role": "system", "content": "a"}]}, "one message"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0"),
    ],
)
async def test_what_has_no_effect_is_refused(fields: dict[str, Any], named: str) -> None:
    """By name, in OpenAI's envelope, before anything is generated."""
    workload = AsyncPoem()
    async with client_of(app_of(workload)) as client:
        response = await client.post(CHAT, json={**body(), **fields})

    error = response.json()["error"]
    assert response.status_code == 400
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert named in error["message"]
    assert workload.written == []


@pytest.mark.parametrize(
    ("sent", "kind", "said"),
    [
        (b"{}", "application/x-www-form-urlencoded", "Content-Type: application/json"),
        (b"[]", "application/json", "must be a JSON object"),
        (b"", "application/json", "must be a JSON object"),
        (b'{"model": ', "application/json", "the body is not valid JSON"),
    ],
)
async def test_a_body_that_is_no_object_is_refused(sent: bytes, kind: str, said: str) -> None:
    """With what it has to be: curl's `-d` alone sends a form."""
    async with client_of(app_of(AsyncPoem())) as client:
        response = await client.post(CHAT, content=sent, headers={"Content-Type": kind})

    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "the body")
    assert said in error["message"]


async def test_a_field_is_ignored_where_the_operator_says_so() -> None:
    """And no other."""
    async with client_of(app_of(ignore=["temperature"])) as client:
        ignored = await client.post(CHAT, json=body(temperature=0.5))
        refused = await client.post(CHAT, json=body(temperature=0.5, top_p=0.5))

    assert ignored.json()["choices"][0]["message"]["content"] == right("whale fox").text
    assert refused.status_code == 400
    assert "top_p" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("pipelines", "settings", "named"),
    [
        ({}, {}, "at least one pipeline"),
        ({"": None}, {}, "name"),
        ({"x": object()}, {}, "Engine"),
        ({"x": Poem}, {}, "Engine"),
        ({"x": "poems"}, {"ignore": ["seed"]}, "seed"),
    ],
)
def test_what_cannot_be_served_is_refused(
    pipelines: dict[str, Any], settings: dict[str, Any], named: str
) -> None:
    """At once, with what to do."""
    given = {name: poems() if one == "poems" else one for name, one in pipelines.items()}
    with pytest.raises(ConfigError, match=named):
        create_app(given, **settings)


async def test_parts_of_a_message_are_joined() -> None:
    """Clients may send a text in parts."""
    parts = [{"type": "text", "text": "whale "}, {"type": "text", "text": "fox"}]
    messages = [{"role": "user", "content": parts}]
    async with client_of(app_of()) as client:
        reply = (await client.post(CHAT, json={**body(), "messages": messages})).json()

    assert right("whale fox").text == reply["choices"][0]["message"]["content"]


async def test_a_conversation_is_a_question_where_the_operator_says_so() -> None:
    """All messages then reach the pipeline."""
    messages = [{"role": "user", "content": "whale"}, {"role": "assistant", "content": "fox"}]
    async with client_of(app_of(question_of=dialogue)) as client:
        reply = (await client.post(CHAT, json={**body(), "messages": messages})).json()

    expected = right("user: whale\nassistant: fox").text
    assert expected.count("\n") == 4
    assert expected == reply["choices"][0]["message"]["content"]


async def test_a_question_that_the_function_refuses_is_the_clients_error() -> None:
    """An `InputError` of `question_of` is told."""

    def refuse(messages: Any) -> str:
        raise InputError("ask about foxes")

    async with client_of(app_of(question_of=refuse)) as client:
        response = await client.post(CHAT, json=body())

    assert (response.status_code, response.json()["error"]["message"]) == (400, "ask about foxes")


async def test_models_are_listed() -> None:
    """Each pipeline is a model."""
    async with client_of(create_app({"a": poems(), "b/c": poems()})) as client:
        listed = (await client.get("/v1/models")).json()
        one = (await client.get("/v1/models/b/c")).json()
        none = await client.get("/v1/models/d")

    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["a", "b/c"]
    assert listed["data"][1] == one
    assert none.status_code == 404
    assert none.json()["error"]["code"] == "model_not_found"


async def test_an_unknown_model_is_not_found() -> None:
    """With the way to find those that there are."""
    async with client_of(app_of()) as client:
        response = await client.post(CHAT, json=body(model="gpt-4"))

    assert response.status_code == 404
    assert "/v1/models" in response.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_poisoned_request_harms_itself_alone(
    stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Its client gets an error that tells nothing of the inside; the others get their answers."""
    async with client_of(app_of()) as client:
        prompts = [PROMPT, "poison fox", "fox whale", "swan poison", "oak"]
        asked = [client.post(CHAT, json=body(one, stream=stream)) for one in prompts]
        responses = await asyncio.gather(*asked)

    for prompt, response in zip(prompts, responses, strict=True):
        if "poison" not in prompt:
            assert right(prompt).text in _text_of(response, stream)
            continue
        *_, event = response.text.strip().split("\n\n")
        error = json.loads(event.removeprefix("data: "))["error"]
        assert error["type"] == "server_error"
        assert "secret" not in response.text
        assert response.headers["x-request-id"] in error["message"]
        assert response.headers["x-request-id"] in caplog.text


def _text_of(response: Any, stream: bool) -> str:
    if stream:
        return read_stream(response.text).text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


async def test_an_error_in_the_middle_of_a_stream_is_its_last_event() -> None:
    """Settled text came first; [DONE] does not come."""
    async with client_of(app_of(Poem())) as client:
        response = await client.post(CHAT, json=body("fox poison", stream=True))
    stream_text, _, last = response.text.strip().rpartition("\n\n")
    stream = read_stream(stream_text + "\n\n")

    assert response.status_code == 200
    assert right("fox").text == stream.text
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "internal_error"


async def test_an_error_before_any_text_is_the_status_of_a_stream() -> None:
    """So clients retry or raise as they do for others."""
    async with client_of(app_of()) as client:
        response = await client.post(CHAT, json=body("poison", stream=True))

    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"


async def test_an_answer_that_takes_too_long_ends() -> None:
    """With 504, and its work is stopped."""
    workload = AsyncPoem(lambda _: asyncio.Event().wait())
    async with client_of(app_of(workload, limits=Limits(deadline_s=0.05))) as client:
        response = await client.post(CHAT, json=body())

    assert response.status_code == 504
    assert response.json()["error"]["code"] == "deadline_exceeded"
    assert workload.stopped
    assert workload.written == []


async def test_a_part_that_ends_the_interpreter_ends_its_request() -> None:
    """`SystemExit` and a cancellation of its own are this request's errors."""

    async def leave(passage: str) -> None:
        if "fox" in passage:
            raise SystemExit(3)
        if "whale" in passage:
            raise asyncio.CancelledError

    async with client_of(app_of(AsyncPoem(leave))) as client:
        left = await client.post(CHAT, json=body("fox"))
        cancelled = await client.post(CHAT, json=body("whale"))
        fine = await client.post(CHAT, json=body("oak"))

    assert left.status_code == 500
    assert cancelled.status_code == 500
    assert right("oak").text == fine.json()["choices"][0]["message"]["content"]


async def test_text_that_is_no_unicode_reaches_the_client() -> None:
    """A model may write half of a pair of surrogates."""

    class Half(Poem):
        def extend(self, state: Any, hits: Any, progress: Any) -> Any:
            return state.append("\ud83d\n")

    async with client_of(app_of(Half())) as client:
        reply = (await client.post(CHAT, json=body("x"))).json()

    assert reply["choices"][0]["message"]["content"] == "\ud83d\n"
