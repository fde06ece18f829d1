"""`ralmspec demo`: both corpora, all acts, and what happens if two runs ever differed."""

import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ralmspec_plugins.cli import build
from ralmspec_plugins.cli.demo import Act
from ralmspec_plugins.demo.corpora import Corpus, world_corpus
from ralmspec_plugins.demo.python_docs import library_passages
from ralmspec_plugins.demo.world import DEMO_SEED, make_world
from ralmspec_plugins.retrieval import open_retriever
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
def test_a_pipe_gets_plain_lines(
    tmp_path: Path, run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line a question as progress, one table, one headline, and the picture's path last."""
    monkeypatch.delenv("COLUMNS", raising=False)
    drawing = tmp_path / "t.html"
    options = ("--model", model, "--latency", "2ms", "--timeline", drawing)
    shown = run("demo", *options).stdout
    told = shown.splitlines()

    assert "(all costs are real)" in shown
    assert shown.count("added: 2.00 ms per round trip, simulated remote store") == 2
    assert 3 == sum(line.startswith("  Tell of Gild. plain ") for line in told)
    assert "Facts right, each read from a passage: 2 of 6" in shown
    assert 1 == shown.count("Identical: True")
    assert told[-2].startswith("Store 2 ms away, 8 at once (simulated wait): plain ")
    assert f"What happened when: {drawing}" == told[-1]
    assert drawing.is_file()
    assert "\x1b" not in shown
    assert not set("╭│┃") & set(shown)
    rows = [line for line in told if line.startswith(("  local  ", "  2 ms away"))]
    assert [True] * 3 == [len(line) <= 80 and " to " in line for line in rows]


@pytest.mark.usefixtures("small")
def test_runs_that_did_the_same_work_are_about_the_same(
    tmp_path: Path, run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing was guessed, a difference of the times is noise, however large."""
    genuine = build.answered

    def slowly(engine: Any, *given: Any) -> Any:
        answer = genuine(engine, *given)
        wall_s = 3.0 if answer.stats.queries % 2 else 1.0
        return replace(answer, stats=replace(answer.stats, guesses=0, wall_s=wall_s))

    monkeypatch.setattr(build, "answered", slowly)
    options = ("--model", model, "--latency", "0", "--timeline", tmp_path / "t.html")
    shown = run("demo", *options).stdout

    assert "about the same: " in shown
    assert "times as fast: about the same" in shown


def test_both_texts_stream_on_a_terminal(small: None, tmp_path: Path, model: Path) -> None:
    """Two panels while they are written, which leave no trace; then a line for the question."""
    drawn = io.StringIO()
    console = Console(file=drawn, force_terminal=True, width=100)
    weights = build.Weights(str(model), 1, template="{prompt}")
    act = Act("local", 0.0, 1)
    act.play(SMALL, weights, open_retriever("numpy-flat", SMALL.passages), console)
    shown = drawn.getvalue()

    assert "╭" in shown
    assert "\x1b[2K" in shown  # lines are erased
    assert shown.rsplit("\x1b[2K", 1)[1].startswith("  Tell of Gild. plain ")
    assert "╭" not in shown.rsplit("\x1b[2K", 1)[1]


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
