"""The bugs that `tools/plant_bugs.py` plants: each applies to the present code, and is listed."""

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bugs(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    """All of them."""
    if not (ROOT / "tools").is_dir():
        pytest.skip("the tools are not here")
    monkeypatch.setattr(sys, "path", [str(ROOT / "tools"), *sys.path])
    from planted_bugs import BUGS  # type: ignore[import-not-found]

    found: tuple[Any, ...] = BUGS
    return found


def test_each_has_what_it_replaces(bugs: tuple[Any, ...]) -> None:
    """A bug whose code has changed is found now, not when somebody plants them all."""
    stale = [bug.name for bug in bugs if bug.right not in (ROOT / bug.file).read_text()]

    assert bugs
    assert stale == []


def test_each_has_a_name_of_its_own(bugs: tuple[Any, ...]) -> None:
    """They are listed, and picked, by it."""
    names = [bug.name for bug in bugs]

    assert len(names) == len(set(names))


def test_each_is_listed(bugs: tuple[Any, ...]) -> None:
    """The page tells what the tests were seen to notice."""
    page = (ROOT / "docs" / "planted_bugs.md").read_text()

    assert [bug.name for bug in bugs if f"\n- {bug.name}\n" not in page] == []
