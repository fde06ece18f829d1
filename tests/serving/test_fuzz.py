"""A fuzz of the HTTP surface by its own schema: no request makes the server fail."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from tests.serving.parts import app_of

schemathesis = pytest.importorskip("schemathesis")

APP = app_of()
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", APP)
OPERATIONS = [operation.ok() for operation in SCHEMA.get_all_operations()]
QUICK = settings(
    max_examples=25,
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
    kinds = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]

    def check(case: Any) -> None:
        response = case.call(headers={"Host": "localhost"})
        assert response.status_code < 500, response.text
        assert str(response.status_code) in operation.definition.raw["responses"]
        if response.status_code >= 400:
            told = json.loads(response.content)["error"]
            assert told.keys() == {"message", "type", "param", "code"}

    for kind in kinds:
        try:
            strategy = operation.as_strategy(generation_mode=kind)
        except Exception as error:
            pytest.skip(str(error))
        QUICK(given(case=strategy)(check))()
