"""A fuzz of the HTTP surface by its own schema: no request makes the server fail."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serving.parts import CHAT, app_of, body, client_of

schemathesis = pytest.importorskip("schemathesis")

APP = app_of()
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", APP)
OPERATIONS = [operation.ok() for operation in SCHEMA.get_all_operations()]
QUICK = settings(
    max_examples=15,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def test_all_paths_are_in_the_schema() -> None:
    """What is fuzzed is all that there is."""
    assert {operation.label for operation in OPERATIONS} == {
        "POST /v1/chat/completions",
        "POST /v1/ralmspec/invalidate",
        "GET /v1/models",
        "GET /v1/models/{name}",
        "GET /healthz",
        "GET /metrics",
    }


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_no_request_of_the_schema_or_beside_it_fails(operation: Any) -> None:
    """Valid ones and invalid ones get documented statuses, and errors in OpenAI's envelope."""
    kinds = [schemathesis.GenerationMode.POSITIVE]
    if operation.method == "post":  # without a body nothing is invalid
        kinds.append(schemathesis.GenerationMode.NEGATIVE)
    tried = 0

    def check(case: Any) -> None:
        nonlocal tried
        tried += 1
        response = case.call(headers={"Host": "localhost"})
        assert response.status_code < 500, response.text
        assert str(response.status_code) in operation.definition.raw["responses"]
        if response.status_code >= 400:
            told = json.loads(response.content)["error"]
            assert told.keys() == {"message", "type", "param", "code"}

    for kind in kinds:
        QUICK(given(case=operation.as_strategy(generation_mode=kind))(check))()

    assert tried


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
CASES = [
    b"",
    b"null",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"seed": ' + b"9" * 10_000 + b"}",
    b'{"model": "poems", "model": 3}',
    b"\xff\xfe",
    b'{"model": "\\ud800", "messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"model": NaN}',
    json.dumps({**body("whale"), "\ud800": 1}).encode(),
]


async def _statuses(bodies: list[bytes], kind: str = "application/json") -> list[httpx.Response]:
    async with client_of(APP, headers={"Content-Type": kind}) as client:
        return [await client.post(CHAT, content=one) for one in bodies]


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "multipart/form-data", "x"])
async def test_a_body_that_is_no_request_is_refused(kind: str) -> None:
    """Whatever its bytes are, and whatever it says that they are."""
    for response in await _statuses(CASES, kind):
        assert response.status_code in (400, 404), response.text
        assert response.json()["error"]["type"] == "invalid_request_error"


@settings(max_examples=20, deadline=None, database=None, derandomize=True)
@given(
    st.lists(st.binary(max_size=40), min_size=1),
    st.dictionaries(st.sampled_from(["model", "messages", "stream", "stop", "n", "seed"]), JSON),
)
def test_no_bytes_and_no_values_make_the_server_fail(raw: list[bytes], changed: Any) -> None:
    """A field may have any value of JSON."""
    bodies = [*raw, json.dumps({**body("whale"), **changed}).encode()]
    responses = asyncio.run(_statuses(bodies))

    assert len(responses) == len(bodies)
    assert all(response.status_code < 500 for response in responses)
