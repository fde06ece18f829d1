"""Saved knowledge bases on a Ray cluster: what is refused, and that the answers are the same."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from ralmspec_plugins.errors import ConfigError
from tests.cli.conftest import Run, lines

pytest.importorskip("ray")
pytest.importorskip("fastapi")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, "kb"),
        ({"kb": "towns", "modle": "tiny"}, "modle"),
        ({"kb": "towns", "ignore": ["seed"]}, "seed"),
        ({"kb": "towns", "running": 0}, "running"),
        ({"kb": "towns", "keys": "nowhere.toml"}, "nowhere.toml"),
    ],
)
def test_a_wrong_config_file_says_why(arguments: dict[str, Any], named: str) -> None:
    """Before a replica is started."""
    from ralmspec_plugins.cli.cluster import application

    with pytest.raises((ConfigError, OSError), match=named):
        application(arguments)


def test_what_is_made_travels(kb: Path) -> None:
    """The application can be sent to replicas, which open the knowledge base."""
    from ray import cloudpickle

    from ralmspec_plugins.cli.cluster import application

    made = application({"kb": str(kb), "k": 2, "engines": {"num_replicas": 2}})
    sent = cloudpickle.loads(cloudpickle.dumps(made))

    assert type(sent).__name__ == "Application"


def test_any_free_port_is_refused(run: Run, kb: Path, model: Path) -> None:
    """Every machine's proxy has the same."""
    result = run("serve", "--kb", kb, "--model", model, "--ray", "--port", 0)

    assert result.exit_code == 1
    assert "--port 0" in result.stderr


@pytest.mark.slow
def test_answers_on_a_cluster_are_those_of_one_process(run: Run, kb: Path, model: Path) -> None:
    """And SIGTERM ends the server and its cluster."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ralmspec_plugins", "serve", "--kb", str(kb), "--ray"]
    options = ["--model", str(model), "--threads", "1", "--port", str(port), "--name", "kb"]
    quick = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120", "RAY_worker_niceness": "0"}
    with subprocess.Popen(
        [*command, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **quick, "RAY_USAGE_STATS_ENABLED": "0"},
    ) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        messages = [{"role": "user", "content": "The keeper of Esk"}]
        reply = httpx.post(
            f"{url}/chat/completions",
            json={"model": "kb", "messages": messages},
            timeout=300,
            trust_env=False,
        ).json()
        process.send_signal(signal.SIGTERM)
        code = process.wait(300)
    [expected] = lines(
        run("ask", "The keeper of Esk", "--kb", kb, "--model", model, "--threads", 1)
    )

    assert expected["answer"]
    assert expected["answer"] == reply["choices"][0]["message"]["content"]
    assert reply["usage"]["completion_tokens"] == 128
    assert code == 0
