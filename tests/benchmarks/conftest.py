"""What the tests of benchmarks share: Python's own documentation, read once."""

import sysconfig
from pathlib import Path

import pytest

from ralmspec_plugins.demo.python_docs import library_passages
from ralmspec_plugins.types import Passage

STDLIB = Path(sysconfig.get_path("stdlib"))


@pytest.fixture(scope="session")
def passages_of_python() -> list[Passage]:
    """The whole standard library's passages, which take seconds."""
    return list(library_passages(STDLIB))


@pytest.fixture
def docs_read_once(passages_of_python: list[Passage], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the benchmarks read the standard library's documentation from memory."""
    known = {STDLIB: passages_of_python}
    for reader in ("knn", "harness"):
        monkeypatch.setattr(f"benchmarks.{reader}.inputs.library_passages", known.__getitem__)
