"""The check of prose, `tools/english.py`: the words that it lists, and that none is left."""

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def english(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tool as a module."""
    if not (ROOT / "tools").is_dir():
        pytest.skip("the tools are not here")
    monkeypatch.setattr(sys, "path", [str(ROOT / "tools"), *sys.path])
    import english  # type: ignore[import-not-found]

    return english


@pytest.mark.slow  # `make check` runs the tool itself
def test_no_word_is_left(english: Any) -> None:
    """Docstrings, comments, messages and docs have none of the words."""
    found = [str(finding) for finding in english.all_findings()]

    assert len(english.checked_files()) > 100
    assert found == []


@pytest.mark.parametrize(
    ("path", "source", "word"),
    [
        ("a.py", 'def f():\n    """Give the hits."""\n', "Give"),
        ("a.py", 'def f():\n    """Return a lock that nobody holds."""\n', "nobody"),
        ("a.py", "k = 4  # lest it goes wrong\n", "lest"),
        ("a.py", 'raise ValueError("the search goes on")\n', "goes on"),
        ("a.md", "It answers sooner.\n", "sooner"),
        ("a.md", "See DESIGN for more.\n", "DESIGN"),
    ],
)
def test_a_word_is_found(english: Any, path: str, source: str, word: str) -> None:
    """In a docstring, its first word, a comment, a message and a page."""
    found = [finding.word for finding in english.findings(path, source)]

    assert found == [word]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("a.py", 'def f():\n    """Return `nobody`, see `beside`."""\n'),
        ("a.py", 'nobody = {"beside": 1}\n'),
        ("a.md", "```\nnobody\n```\n"),
        ("a.md", "<!-- table -->\n| thrown away |\n<!-- /table -->\n"),
        ("a.md", "The design of the next step.\n"),
    ],
)
def test_code_is_not_checked(english: Any, path: str, source: str) -> None:
    """Nor are tables that a script writes."""
    assert list(english.findings(path, source)) == []
