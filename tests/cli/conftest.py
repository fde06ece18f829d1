"""A tiny model and a small knowledge base on disk, made once, and a way to run commands."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from ralmspec_plugins.cli import output
from ralmspec_plugins.cli.app import app
from ralmspec_plugins.retrieval import HashingEncoder, open_retriever, read_passages, save

pytest.importorskip("transformers")

TOWNS = ("Arvel", "Brenth", "Culder", "Dorvin", "Esk", "Farrow", "Gild", "Hathe", "Istry", "Jorn")
THINGS = ("a lighthouse", "an old storm", "the island", "seven ships", "a keeper", "the sky")

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """Run a command in this process."""

    def command(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return command


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands believe that a person reads stdout."""
    monkeypatch.setattr(output, "on_terminal", lambda: True)


def names(folder: Path) -> list[str]:
    """List what lies in a folder."""
    return sorted(file.name for file in folder.iterdir())


def lines(result: Result) -> list[dict[str, Any]]:
    """Read stdout as one object a line, with nothing else between."""
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty passages as JSON lines."""
    path = tmp_path_factory.mktemp("text") / "towns.jsonl"
    told = [
        {
            "id": f"{town}-{number}",
            "title": town,
            "text": f"In {town} they tell of {THINGS[number]} and {THINGS[-number - 1]}.",
        }
        for town in TOWNS
        for number in range(4)
    ]
    path.write_text("\n".join(map(json.dumps, told)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def kb(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a dense knowledge base."""
    path = tmp_path_factory.mktemp("kb") / "towns"
    save(open_retriever("numpy-flat", read_passages(text_file), HashingEncoder(64)), path)
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights, as `save_pretrained` leaves it."""
    from ralmspec_plugins.testing.models import tiny_llama, tiny_tokenizer

    path = tmp_path_factory.mktemp("model") / "tiny"
    tiny_llama(context=256).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path
