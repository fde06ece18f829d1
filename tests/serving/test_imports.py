"""What is imported when, and what is said where an extra is missing."""

import subprocess
import sys

import pytest

HEAVY = {"fastapi", "starlette", "uvicorn", "prometheus_client", "ray"}


def printed(code: str) -> str:
    """Run code in an interpreter of its own."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_pipelines_need_no_server() -> None:
    """Neither the package nor the hosts import one, nor does the command line before `serve`."""
    code = "import sys, ralmspec_plugins.serving, ralmspec_plugins.cli.app; print(*sys.modules)"
    modules = {name.partition(".")[0] for name in printed(code).split()}

    assert "ralmspec_plugins" in modules
    assert modules & HEAVY == set()


@pytest.mark.parametrize(
    ("missing", "code", "extra"),
    [
        ("fastapi", "from ralmspec_plugins.serving import create_app", "serving"),
        ("prometheus_client", "from ralmspec_plugins.serving import create_app", "serving"),
        ("ray", "import ralmspec_plugins.serving.ray", "ray"),
    ],
)
def test_a_missing_extra_is_named(missing: str, code: str, extra: str) -> None:
    """With the command that installs it."""
    block = f"import sys; sys.modules[{missing!r}] = None"
    caught = f"try:\n    {code}\nexcept ImportError as error:\n    print(error)"

    assert f"pip install 'ralmspec-plugins[{extra}]'" in printed(f"{block}\n{caught}")
