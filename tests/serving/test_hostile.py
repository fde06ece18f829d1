"""What attackers and clumsy clients send: nothing of it holds up, mixes or ends the others."""

import asyncio
import hashlib
import json
import logging
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.serving import ApiKeys, Limits, PerTenant, create_app, dialogue, json_body
from ralmspec_plugins.serving.json_body import check_json
from ralmspec_plugins.serving.keys import Caller
from ralmspec_plugins.serving.openai_api import ApiError
from tests.serving.parts import (
    ADMIN_KEY,
    CHAT,
    USER_KEY,
    AsyncPoem,
    app_of,
    bearer,
    body,
    client_of,
    keys,
    poems,
    read_stream,
    right,
    served,
)
from tests.serving.test_connections import connect, leave, until

PROMPT = "whale fox swan"
MANY = {
    "lists": b'{"model": "poems", "x": [' + b"[]," * 300_000 + b"[]]}",
    "numbers": b'{"model": "poems", "x": [' + b"1," * 500_000 + b"1]}",
    "fields": json.dumps({f"k{number}": 1 for number in range(70_000)}).encode(),
    "parts": json.dumps(
        {"messages": [{"role": "x", "content": [{"type": "y"}] * 1000}] * 55}
    ).encode(),
    "depth": b"[" * 1_000_000,
    "after an open string": b'"\\' + b'"[' * 300_000,
}


@pytest.mark.parametrize("name", MANY)
async def test_a_body_of_many_values_is_not_parsed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parsing it, and naming each mistake in it, would take the event loop up to two seconds."""
    parsed: list[Any] = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda *a, **named: parsed.append(a) or loads(*a, **named))
    async with client_of(app_of(), headers={"Content-Type": "application/json"}) as client:
        response = await client.post(CHAT, content=MANY[name])
        assert not parsed
        assert response.status_code == 400
        assert "more than 8192 values" in response.json()["error"]["message"]
        reply = await client.post(CHAT, json=body(PROMPT))

    assert parsed
    assert right(PROMPT).text == reply.json()["choices"][0]["message"]["content"]


async def test_long_texts_and_long_conversations_are_not_many_values() -> None:
    """Whatever a text consists of; and a thousand messages of a hundred letters each."""
    text = '[{"a": 1}, "\\'
    long = {**body(PROMPT), "messages": [{"role": "user", "content": f"whale {text * 40_000}"}]}
    parts = [{"type": "text", "text": "x" * 100}]
    told = [{"role": "user", "content": parts}] * 999 + [{"role": "user", "content": "fox"}]
    async with client_of(app_of(question_of=lambda messages: messages[-1].text[:5])) as client:
        of_text = await client.post(CHAT, json=long)
        of_many = await client.post(CHAT, json={**body(), "messages": told})
    async with client_of(app_of(question_of=dialogue)) as client:
        all_told = await client.post(CHAT, json={**body(), "messages": told[:20]})

    assert len(json.dumps(long)) > 600_000
    assert of_text.json()["choices"][0]["message"]["content"].startswith("blue whale ")
    assert of_many.json()["choices"][0]["message"]["content"].startswith("red fox ")
    assert all_told.status_code == 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


def _tokens(value: Any) -> int:
    """Count strings, brackets, commas and colons of a value."""
    if isinstance(value, dict):
        inner = sum(2 + _tokens(one) for one in value.values())  # each with a key and a colon
        return 1 + inner + max(0, len(value) - 1)
    if isinstance(value, list):
        return 1 + sum(map(_tokens, value)) + max(0, len(value) - 1)
    return int(isinstance(value, str))


@settings(max_examples=150, deadline=None, database=None)
@given(JSON, st.booleans(), st.integers(0, 60))
def test_values_are_counted_as_they_are(value: Any, ascii_only: bool, cut: int) -> None:
    """Texts of any signs count as one; what is cut off, or no JSON, is counted and not refused."""
    content = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    found = sum(1 for _ in json_body._TOKEN.finditer(content))

    assert _tokens(value) == found
    json_body._check_size(content[:cut])
    json_body._check_size(content[cut:].replace(b"\0", b""))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-32-be"])
async def test_other_encodings_are_refused(encoding: str) -> None:
    """Their strings do not end where those of UTF-8 do: U+2241 has a quotation mark's byte."""
    hidden = '{"\u2241": [' + "[]," * 100_000 + "[]]}"
    with pytest.raises(ApiError, match="UTF-8") as refused:
        check_json(hidden.encode(encoding))
    assert refused.value.status == 400


@pytest.mark.parametrize(
    "twice",
    [
        b'{"model": "other", "model": "poems", "messages": [{"role": "user", "content": "fox"}]}',
        b'{"model": "poems", "messages": [{"role": "user", "content": "fox", "content": "oak"}]}',
        b'{"model": "poems", "m\\u006fdel": "poems", "messages": []}',
    ],
)
async def test_a_name_that_is_given_twice_is_refused(twice: bytes) -> None:
    """A proxy that allows some models may have read the other one."""
    async with client_of(app_of(), headers={"Content-Type": "application/json"}) as client:
        response = await client.post(CHAT, content=twice)

    assert response.status_code == 400
    assert "same name twice" in response.json()["error"]["message"]


async def test_bytes_of_another_encoding_are_told_so() -> None:
    """Latin-1 is what clumsy clients send."""
    content = json.dumps(body("whal\xe9"), ensure_ascii=False).encode("latin-1")
    async with client_of(app_of(), headers={"Content-Type": "application/json"}) as client:
        response = await client.post(CHAT, content=content)

    assert response.status_code == 400
    assert response.json()["error"]["message"] == "the body must be JSON in UTF-8"


@pytest.mark.parametrize("path", [f"{CHAT}/", "/v1/models//", "/healthz/"])
async def test_no_path_leads_to_another_host(path: str) -> None:
    """A redirection would repeat the host that the request names."""
    async with client_of(app_of(), headers={"Host": "evil.example"}) as client:
        responses = [await client.get(path), await client.post(path, json=body())]

    assert {one.status_code for one in responses} <= {404, 405}
    assert not any("location" in one.headers for one in responses)


async def test_requests_of_one_connection_are_answered_in_order() -> None:
    """Though the second one came before the first was answered."""
    with served(app_of()) as url:
        at = urlsplit(url)
        reader, writer = await asyncio.open_connection(at.hostname, at.port)
        for prompt, end in ((PROMPT, "keep-alive"), ("oak", "close")):
            content = json.dumps(body(prompt)).encode()
            head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            length = f"Connection: {end}\r\nContent-Length: {len(content)}\r\n\r\n"
            writer.write(f"{head}{length}".encode() + content)
        replies = (await reader.read()).split(b"HTTP/1.1 200 OK\r\n")
        await leave(writer)

    texts = [
        json.loads(one.partition(b"\r\n\r\n")[2])["choices"][0]["message"]["content"]
        for one in replies[1:]
    ]
    assert texts == [right(PROMPT).text, right("oak").text]


@pytest.mark.parametrize("place", ["top", "messages", "x_ralmspec"])
async def test_many_unknown_fields_are_one_mistake(place: str) -> None:
    """They are not named one by one."""
    extra: dict[str, Any] = {f"field{number}": 0 for number in range(2000)}
    asked = body(x_ralmspec={"sources": True})
    target = {"top": asked, "messages": asked["messages"][0], "x_ralmspec": asked["x_ralmspec"]}
    target[place].update(extra)
    async with client_of(app_of()) as client:
        response = await client.post(CHAT, json=asked)

    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert "there are" in message
    assert "Value error" not in message
    assert len(response.text) < 500


@pytest.mark.parametrize(
    "field",
    [
        *("stream", "n", "x_ralmspec", "stream_options", "max_tokens", "stop", "seed"),
        *("temperature", "tools", "response_format"),
    ],
)
async def test_null_is_as_if_a_field_were_not_there(field: str) -> None:
    """As in OpenAI's API; many clients send all their fields, of messages too."""
    asked = body(PROMPT, **{field: None})
    asked["messages"][0]["name"] = None
    async with client_of(app_of()) as client:
        reply = await client.post(CHAT, json=asked)

    assert reply.status_code == 200, reply.text
    assert right(PROMPT).text == reply.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (body("whale \ud83d fox"), "the question"),
        (body("whale", stop=["fox", "\udc00"]), "stop"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_half_a_character_is_the_clients_mistake(
    asked: dict[str, Any], named: str, stream: bool
) -> None:
    """No tokenizer, store or model server would take it, and each would fail in its own way."""
    workload = AsyncPoem()
    async with client_of(app_of(workload)) as client:
        headers = {"Content-Type": "application/json"}
        content = json.dumps({**asked, "stream": stream}).encode()
        response = await client.post(CHAT, content=content, headers=headers)

    assert response.status_code == 400
    assert f"{named} has half a character" in response.json()["error"]["message"]
    assert workload.written == []


@pytest.mark.parametrize(
    ("length", "status"),
    [("9" * 5000, 413), ("9" * 21, 413), ("\xb2", 400), ("-1", 400), ("", 400), ("1e3", 400)],
)
async def test_any_content_length_is_answered(length: str, status: int) -> None:
    """Servers other than uvicorn may let it through."""
    sent: list[Any] = []
    headers = [(b"host", b"localhost"), (b"content-length", length.encode("latin-1"))]
    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": headers}

    async def send(message: Any) -> None:
        sent.append(message)

    await app_of()({**scope, "query_string": b"", "http_version": "1.1"}, _nothing, send)

    assert sent[0]["status"] == status
    assert json.loads(sent[1]["body"])["error"]["type"] == "invalid_request_error"


async def _nothing() -> Any:
    raise AssertionError("the body was read")


@pytest.mark.parametrize(
    "key", ["schlüssel-0123456789", "key with spaces 0123", "tab\t0123456789abcd"]
)
def test_a_key_that_no_header_can_have_is_refused(key: str, tmp_path: Any) -> None:
    """Where the file is read, and not with a 401 that nobody understands."""
    path = tmp_path / "keys.toml"
    path.write_text(f'[[keys]]\nname = "a"\nkey = {json.dumps(key, ensure_ascii=False)}\n')
    with pytest.raises(ConfigError, match="ASCII") as refused:
        ApiKeys.read(path)

    assert key not in str(refused.value)


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", "a\u2028b", "\ud800"])
def test_a_model_has_a_printable_name(name: str) -> None:
    """It is part of headers, logs and metrics; on a cluster a line break ends it."""
    with pytest.raises(ConfigError, match="printable"):
        create_app({name: poems()})


async def test_a_key_with_a_tenants_name_takes_none_of_its_places() -> None:
    """Places are counted for tenants and for keys apart."""
    entered, going = asyncio.Event(), asyncio.Event()

    async def wait(_: str) -> None:
        entered.set()
        await going.wait()

    sha = hashlib.sha256
    callers = ApiKeys(
        [
            (sha(USER_KEY.encode()).hexdigest(), Caller("user", ("ann",))),
            (sha(ADMIN_KEY.encode()).hexdigest(), Caller("ann", ())),
        ]
    )
    served_by = {"shared": poems(AsyncPoem(wait)), "own": PerTenant(lambda _: poems(), ["ann"])}
    app = create_app(served_by, keys=callers, limits=Limits(per_tenant=1))
    async with client_of(app) as client:
        asked = body("fox", "shared")
        first = asyncio.create_task(client.post(CHAT, json=asked, headers=bearer(ADMIN_KEY)))
        await entered.wait()
        second = await client.post(CHAT, json=body("fox", "own"), headers=bearer(USER_KEY))
        third = await client.post(CHAT, json=asked, headers=bearer(ADMIN_KEY))
        going.set()

    assert (await first).status_code == 200
    assert (second.status_code, third.status_code) == (200, 429)


async def test_tenants_of_one_key_file_with_like_names_and_keys_do_not_meet() -> None:
    """Names and keys that begin alike are others; a tenant's name in any other form is none."""
    texts = {"ann": "whale of ann", "ann2": "whale of ann2", "an": "whale of an"}
    secrets = {name: f"{USER_KEY}{name}" for name in texts}
    callers = ApiKeys(
        [
            (hashlib.sha256(secret.encode()).hexdigest(), Caller(name, (name,)))
            for name, secret in secrets.items()
        ]
    )
    from ralmspec_plugins.testing import WordRetriever

    model = PerTenant(lambda tenant: poems(store=WordRetriever([texts[tenant]])), texts)
    async with client_of(create_app({"poems": model}, keys=callers)) as client:
        for name, secret in secrets.items():
            own = await client.post(CHAT, json=body("whale"), headers=bearer(secret))
            text = own.json()["choices"][0]["message"]["content"]
            assert text.startswith(f"{texts[name]} ")
            others = [one for one in texts if one != name]
            for given in [
                *others,
                f"{others[0]},{name}",
                f"{name}\u00a0",
                f"{name}/",
                name.upper(),
            ]:
                headers = {**bearer(secret), "X-RalmSpec-Tenant": given.encode("latin-1")}
                spoofed = await client.post(CHAT, json=body("whale"), headers=headers)
                assert spoofed.status_code == 403, given
        for cut in (secrets["an"][:-1], f"{secrets['ann2']}2", USER_KEY):
            assert (await client.get("/v1/models", headers=bearer(cut))).status_code == 401


async def test_a_client_may_leave_after_any_byte() -> None:
    """Of head and body of a request, and of head and chunks of a stream: nothing is left behind."""
    app = app_of(limits=Limits(running=4, waiting=100))
    with served(app) as url:
        at = urlsplit(url)
        reader, writer = await connect(url, body(PROMPT, stream=True))
        whole = b""
        while not whole.endswith(b"0\r\n\r\n"):
            whole += await reader.read(1 << 16)
        await leave(writer)
        for offset in range(0, len(whole), 41):
            reader, writer = await connect(url, body(PROMPT, stream=True))
            await reader.readexactly(offset)
            await leave(writer)
        content = json.dumps(body(PROMPT)).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {at.netloc}\r\nContent-Type: application/json\r\n"
        sent = f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
        for offset in range(0, len(sent), 9):
            _, writer = await asyncio.open_connection(at.hostname, at.port)
            writer.write(sent[:offset])
            await writer.drain()
            await leave(writer)
        await until(lambda: (app.state.admission.running, app.state.admission.waiting) == (0, 0))
        async with httpx.AsyncClient(timeout=60) as client:
            reply = await client.post(f"{url}/chat/completions", json=body(PROMPT, stream=True))

    assert len(whole) > 1000
    assert right(PROMPT).text == read_stream(reply.text).text


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "PATCH", "BREW"])
async def test_other_methods_are_refused_and_need_a_key_too(method: str) -> None:
    """On every path, over a real connection."""
    paths = (CHAT, "/v1/models", "/v1/models/poems", "/metrics", "/healthz", "/nowhere")
    with served(app_of(keys=keys())) as url:
        async with httpx.AsyncClient(timeout=60, base_url=url.removesuffix("/v1")) as client:
            for path in paths:
                without = await client.request(method, path)
                known = await client.request(method, path, headers=bearer(USER_KEY))
                assert without.status_code == (405 if path == "/healthz" else 401)
                assert known.status_code == (404 if path == "/nowhere" else 405)
                assert bool(known.content) == (method != "HEAD")
                assert method != "TRACE" or USER_KEY not in known.text


async def test_what_clients_name_becomes_no_label_and_no_line_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither models that there are not, nor paths, nor ids and headers of their own."""
    evil = "req-1\\nERROR forged"
    headers = {"X-Request-ID": evil, "User-Agent": evil, "X-Forwarded-For": evil}
    with caplog.at_level(logging.DEBUG, logger="ralmspec_plugins"):
        async with client_of(app_of(), headers=headers) as client:
            before = (await client.get("/metrics")).text.count("\n")
            for number in range(30):
                await client.post(CHAT, json=body(model=f"forged{number}\nforged"))
                await client.get(f"/v1/models/forged{number}%0Aforged")
                failed = await client.post(CHAT, json=body("poison"))
                assert failed.status_code == 500
            text = (await client.get("/metrics")).text

    assert failed.headers["x-request-id"] != evil
    assert "forged" not in caplog.text
    assert "forged" not in text
    assert "failed" in caplog.text
    assert text.count("\n") < before + 100  # of one model


SERVER = """
import asyncio, sys
from ralmspec_plugins.serving import Limits, create_app
from ralmspec_plugins.serving.server import address, listen, run
from tests.serving.parts import AsyncPoem, poems

async def wait(passage):
    print("writing", flush=True)
    await asyncio.sleep(0.2 if passage != "grey stone" else 3600)

limits = Limits(running=1, waiting=2, header_timeout_s=0.3)
app = create_app({"poems": poems(AsyncPoem(wait))}, limits=limits)
listening = listen("127.0.0.1", 0)
print(address(listening), flush=True)
run(app, listening, limits=limits, drain_s=float(sys.argv[1]))
"""


def accepts(url: str) -> bool:
    """Return whether a server accepts a connection."""
    at = urlsplit(url)
    try:
        socket.create_connection((at.hostname or "", at.port or 0)).close()
    except OSError:
        return False
    return True


async def test_a_server_that_stops_answers_those_who_wait() -> None:
    """Those in the queue as well; nobody else is admitted, and it ends by itself with 0."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, "60"], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:

            async def ask(prompt: str) -> httpx.Response:
                return await client.post(f"{url}/chat/completions", json=body(prompt))

            async def waiting() -> bool:
                found = await client.get(url.replace("/v1", "/metrics"))
                return "ralmspec_waiting 2.0" in found.text

            prompts = [PROMPT, "fox", "oak"]
            asked = [asyncio.create_task(ask(prompt)) for prompt in prompts]
            while not await waiting():
                await asyncio.sleep(0.01)
            assert (await ask("swan")).status_code == 429
            process.send_signal(signal.SIGTERM)
            await until(lambda: not accepts(url))
            replies = [(await one).json() for one in asked]
        process.communicate(timeout=60)

    assert process.returncode == 0
    assert [right(prompt).text for prompt in prompts] == [
        reply["choices"][0]["message"]["content"] for reply in replies
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_server_that_stops_waits_no_longer_than_it_may(stream: bool) -> None:
    """The client of an answer that does not end is told so, after the time for it."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        reader, writer = await connect(url, body("fox stone", stream=stream))
        while process.stdout.readline() != "writing\n":
            pass
        process.send_signal(signal.SIGTERM)
        with suppress(ConnectionError):
            sent = await reader.read()
        _, told = process.communicate(timeout=60)
        await leave(writer)

    assert process.returncode == 0
    assert "Traceback" not in told
    assert b"the server is shutting down" in sent
    assert sent.startswith(b"HTTP/1.1 503 " if not stream else b"HTTP/1.1 200 ")


async def test_headers_that_do_not_come_hold_no_connection() -> None:
    """Neither a byte now and then nor silence; slow answers and idle connections are others."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, "60"], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        at = urlsplit(url)
        silent, of_silent = await asyncio.open_connection(at.hostname, at.port)
        slow, of_slow = await asyncio.open_connection(at.hostname, at.port)
        of_slow.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
        async with asyncio.timeout(60):
            with suppress(ConnectionError):
                while not slow.at_eof():
                    of_slow.write(b"X-A: b\r\n")
                    await of_slow.drain()
                    await asyncio.sleep(0.02)
                    with suppress(TimeoutError):
                        assert await asyncio.wait_for(slow.read(1), 0.01) == b""
            assert await silent.read() == b""
        for writer in (of_silent, of_slow):
            await leave(writer)
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
            first = await client.post(f"{url}/chat/completions", json=body(PROMPT))
            await asyncio.sleep(0.5)
            second = await client.post(f"{url}/chat/completions", json=body("oak"))
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)

    assert [right(PROMPT).text, right("oak").text] == [
        reply.json()["choices"][0]["message"]["content"] for reply in (first, second)
    ]
