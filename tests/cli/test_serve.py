"""`ralmspec serve`: what docs/serving.md shows works as it is printed, and the server ends well."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.cli.conftest import Run, lines

for needed in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(needed)

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
PRINTED = "http://127.0.0.1:8000/v1"
QUICK = ("--threads", "1", "--port", "0")


@contextmanager
def started(kb: Path, model: Path, *options: str) -> Iterator[tuple["subprocess.Popen[str]", Any]]:
    """Run the command in a process of its own; give it and what it printed."""
    command = [sys.executable, "-m", "ralmspec_plugins", "serve", "--kb", str(kb)]
    process = subprocess.Popen(
        [*command, "--model", str(model), *QUICK, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first, process.communicate()[1]
        yield process, json.loads(first)
    finally:
        process.kill()
        process.communicate()


def block(kind: str) -> str:
    """Give the page's example in this language that calls the server."""
    found = re.findall(rf"^```{kind}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    text: str = next(one for one in found if PRINTED in one)
    return text


@pytest.fixture(scope="module")
def server(kb: Path, model: Path) -> Iterator[str]:
    """A server whose model has the name that the page prints."""
    with started(kb, model, "--name", "kb") as (_, told):
        assert told["model"] == "kb"
        yield told["url"]


def asked(run: Run, kb: Path, model: Path) -> Any:
    """Ask the same without a server."""
    result = run("ask", "The keeper of Esk", "--kb", kb, "--model", model, "--threads", 1)
    [record] = lines(result)
    return record


def test_the_examples_of_the_page_work(server: str, run: Run, kb: Path, model: Path) -> None:
    """With curl and with OpenAI's client; the answers are those of `ralmspec ask`."""
    expected = asked(run, kb, model)
    curl = block("sh").replace(PRINTED, server).replace("curl ", "curl -sS ", 1)
    by_curl = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, check=True)
    code = block("py").replace(PRINTED, server)
    by_client = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert expected["answer"]
    assert expected["answer"] == json.loads(by_curl.stdout)["choices"][0]["message"]["content"]
    ids = [source["id"] for source in expected["sources"]]
    assert f"{expected['answer']}\n {ids}\n" == by_client.stdout


def test_stopping_loses_no_answer(kb: Path, model: Path) -> None:
    """After SIGTERM a stream goes on to its end, nothing new is accepted, and the code is 0."""
    with started(kb, model, "--latency", "20ms") as (process, told):
        url = told["url"]
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        messages: list[Any] = [{"role": "user", "content": "The keeper of Esk"}]
        with (
            client,
            client.chat.completions.create(
                model=told["model"], messages=messages, max_tokens=100, stream=True
            ) as stream,
        ):
            first = next(stream)
            process.send_signal(signal.SIGTERM)
            rest = list(stream)
        out, err = process.communicate(timeout=120)
        with pytest.raises(httpx.ConnectError):
            httpx.get(url.replace("/v1", "/healthz"), trust_env=False)

    assert first.choices[0].delta.role == "assistant"
    assert rest[-1].choices[0].finish_reason == "length"
    assert (process.returncode, out) == (0, "")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--host", "0.0.0.0"), "--keys"),
        (("--keys", "nowhere.toml"), "nowhere.toml"),
        (("--port", "70000"), "65535"),
        (("--ignore", "seed"), "seed"),
        (("--theta", "0.5"), "flare"),
    ],
)
def test_a_server_that_should_not_start_says_why(
    run: Run, kb: Path, model: Path, options: tuple[str, ...], named: str
) -> None:
    """Before a request could come."""
    result = run("serve", "--kb", kb, "--model", model, *options)

    assert result.exit_code == 1
    assert named in result.stderr


def test_a_port_that_is_taken_is_named(run: Run, kb: Path, model: Path, server: str) -> None:
    """As the system says it."""
    port = server.rpartition(":")[2].removesuffix("/v1")
    result = run("serve", "--kb", kb, "--model", model, "--port", port)

    assert result.exit_code == 1
    assert "in use" in result.stderr
