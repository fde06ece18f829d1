"""The examples run as they stand, over a tiny model that is made here, and say what is true."""

import doctest
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("transformers")
pytest.importorskip("bm25s")

SCRIPT = Path(__file__).parents[1] / "examples" / "real_model.py"
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The script as a module; its records find themselves by its name."""
    module = type(sys)("real_model")
    monkeypatch.setitem(sys.modules, "real_model", module)
    vars(module).update(runpy.run_path(str(SCRIPT), run_name="real_model"))
    return SimpleNamespace(**vars(module))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a chat template, as an instruct model has one."""
    from ralmspec_plugins.testing.models import tiny_llama, tiny_tokenizer

    path = tmp_path_factory.mktemp("model") / "tiny-instruct"
    tiny_llama(context=512).save_pretrained(path)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three passages, and three questions, one without an answer."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    told = [{"id": f"p{at}", "text": f"In {town} there is a lighthouse.", "title": town}
            for at, town in enumerate(("Arvel", "Esk", "Gild"))]  # fmt: skip
    asked = [
        {"question": f"What is in {town}?", "answers": ["lighthouse"]} for town in ("Esk", "Gild")
    ]
    asked.append({"question": "Why?", "answers": []})
    for name, rows in (("passages", told), ("questions", asked)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def run(example: SimpleNamespace, *arguments: object) -> Any:
    app = typer.Typer()
    app.command()(example.main)
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_both_modes_are_compared(
    example: SimpleNamespace, model: Path, corpus: Path, tmp_path: Path
) -> None:
    """Texts, quality and times of each; the texts are equal and not empty."""
    out = tmp_path / "out.json"
    options = ("--max-tokens", 12, "--latency", "1ms", "--threads", 1, "--out", out)
    result = run(example, "--model", model, "--corpus", corpus, *options)
    record = json.loads(out.read_text())

    assert result.exit_code == 0, result.output
    assert (2, 3, True) == (record["questions"], record["passages"], record["identical"])
    assert record["plain"]["texts"] == record["speculative"]["texts"]
    assert all(record["plain"]["texts"])
    assert record["plain"]["quality"] == record["speculative"]["quality"]
    assert {"exact", "f1", "contained"} == set(record["plain"]["quality"])
    assert record["search_s"] >= 0.001
    assert "2 questions" in result.stdout
    assert "Identical: True" in result.stdout
    assert "simulated remote store" in result.stderr


def test_unequal_answers_end_it(
    example: SimpleNamespace, model: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the place where they differ, and no table."""
    from dataclasses import replace

    from ralmspec_plugins import Engine

    genuine, count = Engine.run, iter(range(99))
    monkeypatch.setattr(
        Engine, "run", lambda *given: replace(genuine(*given), text=f"{next(count)}")
    )
    options = ("--max-tokens", 4, "--threads", 1)
    result = run(example, "--model", model, "--corpus", corpus, *options)

    assert (1, "") == (result.exit_code, result.stdout)
    assert "differ" in result.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Denver Broncos", (1.0, 1.0, 1.0)),
        ("It was Denver", (0.0, 0.4, 0.0)),  # 1 of 3, and 1 of 2 words: 2 / 5
        ("", (0.0, 0.0, 0.0)),
        ("the broncos of denver broncos!", (0.0, 2 * 2 / 6, 1.0)),
    ],
)
def test_answers_are_scored_as_in_squad(
    example: SimpleNamespace, text: str, expected: tuple[float, ...]
) -> None:
    """The best of several right answers counts."""
    found = example.scores(text, ["nothing at all", "Denver Broncos"])

    assert pytest.approx(expected) == tuple(found.values())


def test_squad_is_read_from_its_file(
    example: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each context is one passage; questions are from all over the file."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    client = pytest.importorskip("huggingface_hub")
    rows = [
        {
            "title": "T",
            "context": f"Context {at // 2}.",
            "question": f"Question {at}?",
            "answers": {"text": ["Context"], "answer_start": [0]},
        }
        for at in range(10)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "squad.parquet")
    asked: list[object] = []

    def download(*given: str, **more: str) -> str:
        asked.append((given, more))
        return str(tmp_path / "squad.parquet")

    monkeypatch.setattr(client, "hf_hub_download", download)
    found = example.squad(5)

    assert [(example.SQUAD, {"repo_type": "dataset"})] == asked
    assert [f"Context {at}." for at in range(5)] == [one.text for one in found.passages]
    assert [f"Question {at}?" for at in (0, 2, 4, 6, 8)] == [one.prompt for one in found.tasks]
    assert found.tasks[0].score("The context.")["exact"] == 1.0


def test_without_the_hub_it_is_said_at_once(
    example: SimpleNamespace, corpus: Path, tmp_path: Path
) -> None:
    """For the corpus and for the model, with what to do."""
    no_corpus = run(example, "--questions", 2)
    no_model = run(example, "--corpus", corpus)
    no_file = run(example, "--corpus", tmp_path / "nowhere")

    assert [1, 1, 1] == [one.exit_code for one in (no_corpus, no_model, no_file)]
    assert "--corpus takes a folder, or world" in no_corpus.stderr
    assert example.MODEL in no_model.stderr
    assert "cannot be reached" in no_model.stderr
    assert "questions.jsonl" in no_file.stderr


def test_the_world_is_scored_by_its_facts(example: SimpleNamespace) -> None:
    """The true article has all of them, an empty text none."""
    from ralmspec_plugins.demo import make_world

    [task] = example.world(1).tasks
    made = make_world(seed=7)
    [question] = made.questions(1, seed=1)

    assert {"facts right": 1.0} == task.score(made.article(question))
    assert {"facts right": 0.0} == task.score("")


def test_the_docstrings_are_true(example: SimpleNamespace) -> None:
    """What they show is what the functions return."""
    ran = doctest.testmod(sys.modules["real_model"])

    assert (0, 2) == (ran.failed, ran.attempted)
