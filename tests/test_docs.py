"""What README and docs show works as it is written."""

import re
from pathlib import Path

import pytest

from benchmarks.write_tables import filled

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "benchmarks" / "results").glob("*.md")),
]
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#]+)")
TIME = re.compile(r"\b\d+(\.\d+)?(?= m?s\b)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_examples_of_a_page_run(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The Python blocks run one after the other, in one namespace, and print what stands below."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for block, shown in BLOCK.findall(page.read_text(encoding="utf-8")):
        capsys.readouterr()
        exec(compile(block, page.name, "exec"), names)
        printed = capsys.readouterr().out
        if shown:
            assert _timeless(shown) == _timeless(printed)

    assert names["__name__"] == "__main__"


def _timeless(text: str) -> str:
    """Replace times, which differ from run to run, and line breaks of long lines."""
    return " ".join(TIME.sub("#", text).split())


def test_what_the_readme_prints_stands_beside_it() -> None:
    """Every example that prints has its output below; the first has at most fifteen lines."""
    blocks = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))

    assert len(blocks) > 3
    assert [bool(shown) for _, shown in blocks] == ["print(" in block for block, _ in blocks]
    assert len([line for line in blocks[0][0].splitlines() if line]) <= 15
    assert "identical: True" in blocks[0][1]


def test_the_readme_s_table_is_that_of_the_results() -> None:
    """As `benchmarks/write_tables.py` writes it."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")

    assert "<!-- first page -->" in page
    assert page == filled(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    """Every relative link names a file of the repository."""
    links = LINK.findall(page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]

    assert [] == missing


def test_the_readme_is_not_empty() -> None:
    """There is something to run."""
    assert BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
