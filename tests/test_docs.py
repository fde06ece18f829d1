"""What README and docs show works as it is written."""

import dataclasses
import importlib.util
import inspect
import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
from opentelemetry import trace

from benchmarks.write_tables import filled
from ralmspec_plugins import (
    Answer,
    Continuous,
    FixedStride,
    Formed,
    Hit,
    Latencies,
    OptimalStride,
    Passage,
    Query,
    Request,
    Retrieved,
    Settings,
    Stats,
    VerifierStats,
)  # fmt: skip
from ralmspec_plugins.effects import Event
from ralmspec_plugins.types import Span

# Whose fields `help()` must document.
CLASSES = [Continuous, FixedStride, OptimalStride, Settings, Request, Answer, Stats, VerifierStats,
           Span, Passage, Query, Formed, Hit, Retrieved, Latencies, *get_args(Event)]  # fmt: skip

ROOT = Path(__file__).resolve().parents[1]
WRITTEN = ("api/", "cli_options.md", "notebooks/", "results/")  # by `make docs`, not committed
PAGES = [
    ROOT / "README.md",
    *(
        page
        for page in sorted((ROOT / "docs").rglob("*.md"))
        if not page.relative_to(ROOT / "docs").as_posix().startswith(WRITTEN)
    ),
    *sorted((ROOT / "benchmarks" / "results").glob("*.md")),
]
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", re.MULTILINE | re.DOTALL)
TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```", re.MULTILINE | re.DOTALL)
API = re.compile(r"\]\(#(api-[\w-]+)\)")
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#]+)")
TIME = re.compile(r"\b\d+(\.\d+)?(?= m?s\b)")


@pytest.fixture
def no_tracer_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set a page's tracer provider for its test alone: a process can set one only once."""

    def set_for_test(provider: Any) -> None:
        monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)

    monkeypatch.setattr(trace, "set_tracer_provider", set_for_test)


@pytest.mark.usefixtures("no_tracer_is_left")
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


def test_every_page_is_part_of_the_site() -> None:
    """Each page below docs/ stands in a table of contents, once."""
    folder = ROOT / "docs"
    listed = [
        (page.parent / f"{name}.md").relative_to(folder).as_posix()
        for page in PAGES
        if folder in page.parents
        for block in TOCTREE.findall(page.read_text(encoding="utf-8"))
        for name in block.split("\n")
        if name and not name.startswith((":", *WRITTEN, "cli_options"))
    ]
    pages = {page.relative_to(folder).as_posix() for page in PAGES if folder in page.parents}

    assert len(listed) == len(set(listed))
    assert set(listed) == pages - {"index.md"}


def test_the_links_to_the_api_name_a_page_of_it() -> None:
    """Pages of the API are written by `make docs`; a link is `#api-` and the package."""
    text = (ROOT / "docs" / "_extensions" / "api_pages.py").read_text(encoding="utf-8")
    modules = re.findall(r'^    "([\w.]+)": "', text, re.MULTILINE)
    labels = {f"api-{one.removeprefix('ralmspec_plugins.').replace('.', '-')}" for one in modules}
    links = {link for page in PAGES for link in API.findall(page.read_text(encoding="utf-8"))}

    assert links
    assert links <= labels


def test_the_table_of_settings_is_the_code() -> None:
    """docs/settings.md has each field of `Settings`, in order, and each one's default."""
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    table = page.split("## An engine")[1].split("## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", table, re.MULTILINE)
    named = dict(rows)

    assert list(named) == [field.name for field in dataclasses.fields(Settings)]
    for field in dataclasses.fields(Settings):
        default = getattr(Settings(), field.name)
        if default is None:  # in words
            assert "`" not in named[field.name]
        else:
            shown = "Continuous()" if field.name == "schedule" else repr(default)
            assert named[field.name] == f"`{shown}`"


def test_the_table_of_schedules_is_the_code() -> None:
    """docs/schedules.md has each field of each schedule, in order, with its default."""
    page = (ROOT / "docs" / "schedules.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?:`\w+`)? ?\| `(\w+)` \| `(.+?)` \|", page, re.MULTILINE)
    expected = [
        (field.name, repr(getattr(schedule, field.name)))
        for schedule in (Continuous(), OptimalStride(), FixedStride())
        for field in dataclasses.fields(schedule)
    ]

    assert expected == rows


def test_the_table_of_extras_is_the_package_s() -> None:
    """docs/install.md has each extra of pyproject.toml; `all` has the others but those it names."""
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`[^|]+) \|", page.partition("## ")[0], re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    [everything] = extras["all"]
    [left_out] = re.findall(r"^\| `all` \| all but (.+?) \|", page, re.MULTILINE)

    assert sorted(extras) == sorted(re.findall(r"`([\w-]+)`", " ".join(cells)))
    assert set(extras) - {"all", *re.findall(r"`([\w-]+)`", left_out)} == set(
        everything.partition("[")[2].rstrip("]").split(",")
    )


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_help_documents_each_field(kind: type) -> None:
    """In the section `Attributes` of the class's docstring, in order."""
    text = inspect.getdoc(kind) or ""
    section = text.partition("\nAttributes:\n")[2]
    documented = re.findall(r"^    (\w+): \S", section, re.MULTILINE)

    assert documented
    assert documented == [field.name for field in dataclasses.fields(kind)]


def test_the_picture_of_the_start_page_is_what_the_code_draws() -> None:
    """`python tools/draw_timeline.py` has been run; time is virtual, so it is the same anywhere."""
    spec = importlib.util.spec_from_file_location("drawing", ROOT / "tools" / "draw_timeline.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    assert module.PICTURE.read_text(encoding="utf-8") == module.drawing() + "\n"


def test_the_readme_is_not_empty() -> None:
    """There is something to run."""
    assert BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
