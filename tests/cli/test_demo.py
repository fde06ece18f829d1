"""`ralmspec demo`: both corpora, all acts, and what happens if two runs ever differed."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ralmspec_plugins.cli import build
from ralmspec_plugins.demo.corpora import Corpus, world_corpus
from ralmspec_plugins.demo.python_docs import library_passages
from ralmspec_plugins.demo.world import DEMO_SEED, make_world
from ralmspec_plugins.types import Passage
from tests.cli.conftest import Run, lines

SMALL = Corpus(
    "Four towns.",
    [Passage(town, f"In {town} they tell of {town}.", town) for town in ("Arvel", "Esk", "Gild")],
    ["Tell of Esk.\n", "Tell of Gild.\n"],
    12,
    lambda *_: (1, 3),
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace both corpora by a small one: the real world has 5,000 passages."""
    module = sys.modules["ralmspec_plugins.cli.demo"]
    monkeypatch.setattr(module, "world_corpus", lambda _: SMALL)
    monkeypatch.setattr(module, "docs_corpus", lambda _: replace(SMALL, facts=None))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("corpus", [(), ("--docs",)])
def test_all_acts_are_recorded(
    tmp_path: Path, run: Run, model: Path, corpus: tuple[str, ...]
) -> None:
    """With `--json` one object says everything; the timeline is there."""
    drawing = tmp_path / "t.html"
    options = ("--model", model, "--latency", "2ms", "--timeline", drawing, "--json", *corpus)
    result = run("demo", *options)
    [record] = lines(result)

    assert result.exit_code == 0, result.output
    assert record["equal"] is True
    assert [0.0, 0.002, 0.002] == [act["added_latency_s"] for act in record["acts"]]
    assert [None if corpus else 6] * 3 == [act["facts_asked"] for act in record["acts"]]
    assert "simulated remote store" in result.stderr
    assert "simulated remote store" in drawing.read_text(encoding="utf-8")


@pytest.mark.usefixtures("small")
def test_a_person_sees_both_runs_write(
    tmp_path: Path, run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The texts, the table, and which costs are real and which are added; into a pipe too."""
    monkeypatch.setenv("COLUMNS", "160")
    options = ("--model", model, "--latency", "2ms", "--timeline", tmp_path / "t.html")
    shown = run("demo", *options).stdout

    assert "all costs are real" in shown
    assert "added: 2.00 ms per round trip, simulated remote store" in shown
    assert "Tell of Gild." in shown
    assert "facts right" in shown
    assert "2 of 6" in shown
    assert "All answers are equal" in shown
    assert "\x1b" not in shown
    assert all(line[0] not in "╭│" or line[-1] in "╮│" for line in shown.splitlines() if line)


@pytest.mark.usefixtures("small")
def test_no_latency_leaves_the_remote_acts_out(tmp_path: Path, run: Run, model: Path) -> None:
    """Then nothing is added anywhere."""
    result = run(
        *("demo", "--json", "--model", model, "--latency", "0"),
        *("--timeline", tmp_path / "t.html"),
    )

    assert [0.0] == [act["added_latency_s"] for act in lines(result)[0]["acts"]]
    assert "added" not in result.stderr


@pytest.mark.usefixtures("small")
def test_a_difference_ends_the_demo(
    tmp_path: Path, run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1 and a message: a demo that shows unequal answers shows nothing."""
    genuine, count = build.answered, iter(range(99))
    monkeypatch.setattr(
        build, "answered", lambda *given: replace(genuine(*given), text=f"{next(count)}")
    )
    result = run("demo", "--model", model, "--timeline", tmp_path / "t.html")

    assert result.exit_code == 1
    assert "the two runs' texts differ" in result.stderr
    assert not (tmp_path / "t.html").exists()


def test_the_timeline_s_place_is_checked_first(run: Run, model: Path) -> None:
    """Before a model is loaded."""
    result = run("demo", "--model", model, "--timeline", "no/such/folder/t.html")

    assert result.exit_code == 1
    assert "no folder" in result.stderr


def test_the_world_s_questions_are_marked() -> None:
    """The true article has all facts right, an empty text none."""
    corpus = world_corpus(2)
    assert corpus.facts is not None
    world = make_world(DEMO_SEED)
    name = corpus.prompts[1].strip().removeprefix("Tell the story of ").rstrip(".")
    article = world.article(world.question(name))
    right, asked = corpus.facts(1, article)

    assert right == asked > 5
    assert corpus.facts(1, "") == (0, asked)
    assert len(corpus.passages) == 5000


def test_documentation_is_read_without_importing(tmp_path: Path) -> None:
    """Public docstrings with their signatures; broken files and private names are passed over."""
    (tmp_path / "json").mkdir()
    (tmp_path / "test").mkdir()
    (tmp_path / "json" / "__init__.py").write_text(
        '"""Read JSON."""\nraise SystemExit\n'
        'def dumps(obj, *, indent=None):\n    """Write."""\n'
        'def _hidden():\n    """No."""\n'
        'class Decoder:\n    """Decode."""\n    def decode(self):\n        """Do it."""\n',
        encoding="utf-8",
    )
    (tmp_path / "broken.py").write_text("def (", encoding="utf-8")
    (tmp_path / "_private.py").write_text('"""No."""', encoding="utf-8")
    (tmp_path / "test" / "support.py").write_text('"""No."""', encoding="utf-8")
    found = {passage.id: (passage.title, passage.text) for passage in library_passages(tmp_path)}

    assert found == {
        "json": ("json", "Read JSON."),
        "json.dumps": ("json.dumps(obj, *, indent=None)", "Write."),
        "json.Decoder": ("json.Decoder", "Decode."),
        "json.Decoder.decode": ("json.Decoder.decode(self)", "Do it."),
    }
