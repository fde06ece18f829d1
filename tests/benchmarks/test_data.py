"""The recipe of the benchmarks' data: from files as the public sources have them, and offline."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks import data
from benchmarks.harness.inputs import Library, folder_library
from benchmarks.knn.inputs import prompts
from benchmarks.simulated.traces import load_traces
from ralmspec_plugins.retrieval import HashingEncoder
from ralmspec_plugins.types import Passage

WORDS = " ".join(f"word{number}" for number in range(200))
LINES = ["\n", " = First = \n", "\n", f" {WORDS} . \n", " = = Part = = \n", " One @-@ two . \n"]
LINES += [" = Second ( film ) = \n", f" {WORDS} \n", " = Short = \n", " Few words . \n"]


def test_articles_are_cut_at_their_headings() -> None:
    """Those of parts are left out, and the words stand as they are usually written."""
    first, second, short = data.wikitext_articles(LINES)

    assert ("First", f"{WORDS}. One-two.") == (first.title, first.text)
    assert ("Second (film)", WORDS) == (second.title, second.text)
    assert ("Short", "Few words.") == (short.title, short.text)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand in for the hub, with small files of the same form."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    client = pytest.importorskip("huggingface_hub")
    asked: list[str] = []

    def download(name: str, file: str, *, repo_type: str) -> str:
        asked.append(f"{repo_type} {name} {file}")
        questions = {"question": ["who", "where"], "answer": [["he", "she"], ["here"]]}
        texts = {"text": LINES if "validation" in file else [" = Third = \n", f" {WORDS} \n"]}
        path = tmp_path / "file.parquet"
        parquet.write_table(pyarrow.table(questions if "nq_open" in name else texts), path)
        return str(path)

    monkeypatch.setattr(client, "hf_hub_download", download)
    return asked


def run(*arguments: object) -> Any:
    app = data.typer.Typer()
    app.command()(data.main)
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_the_public_sources_become_what_benchmarks_read(hub: list[str], tmp_path: Path) -> None:
    """Articles that are long enough, all passages, questions, and traces with their vectors."""
    folder = tmp_path / "data"
    result = run(folder, "--encoder", "hashing")
    library = folder_library(folder)
    traces = json.loads((folder / "trace_queries.json").read_text())
    with np.load(folder / "trace_vectors.npz") as arrays:
        docs, q = arrays["docs"], arrays["q"]

    assert result.exit_code == 0, result.output
    assert [f"dataset {data.WIKITEXT[0]} {data.WIKITEXT[1].format('validation')}"] == hub[:1]
    assert f"dataset {' '.join(data.QUESTIONS)}" == hub[-1]
    assert ["First", "Second (film)", "Third"] == sorted(one["article"] for one in traces)
    assert [33] * 3 == [len(one["queries"]) for one in traces]
    assert " ".join(WORDS.split()[3:27]) == traces[-1]["queries"][1]
    assert [f"{WORDS}. One-two."] == [
        " ".join(one.text for one in library.passages if one.title == "First")
    ]
    assert {"First", "Second (film)", "Third", "Short"} == {one.title for one in library.passages}
    assert ("float16", (len(library.passages), 512)) == (str(docs.dtype), docs.shape)
    assert (3, 33, 512) == q.shape
    assert np.allclose(HashingEncoder()(traces[0]["queries"][0]), q[0, 0], atol=1e-3)
    assert load_traces(folder, left_out=True, k=1).size
    assert 2 == len(prompts([], folder, 0, 2))


def test_offline_the_documentation_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is downloaded, and the folder says where its texts are from."""
    passages = [Passage(f"mod.f{at}", f"Does {at}.\n{WORDS}", "f") for at in range(3)]
    monkeypatch.setattr(data, "python_library", lambda: Library("docs", passages, []))
    monkeypatch.setattr(data, "downloaded", lambda: pytest.fail("it asked for the network"))
    result = run(tmp_path / "data", "--offline")
    lines = (tmp_path / "data" / "nq_questions.jsonl").read_text().splitlines()

    assert result.exit_code == 0, result.output
    assert "Python's own documentation" in (tmp_path / "data" / "README.md").read_text()
    assert 1 == len(folder_library(tmp_path / "data").articles)
    assert {"Does 0.", "Does 1.", "Does 2."} == {json.loads(one)["answers"][0] for one in lines}
    assert not (tmp_path / "data" / "trace_vectors.npz").exists()


def test_without_the_hub_the_fallback_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one sentence, and nothing is written."""
    client = pytest.importorskip("huggingface_hub")
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(client, "hf_hub_download", lambda *_, **__: Path("/nowhere/at").read_text())
    result = run(tmp_path / "data")

    assert result.exit_code == 1
    assert "--offline makes texts from Python's documentation" in result.stderr
    assert not (tmp_path / "data").exists()


def test_texts_that_are_too_short_are_refused(tmp_path: Path) -> None:
    """For no trace could be made of them."""
    with pytest.raises(data.InputError, match="no article has 120 words"):
        data.write(data.Texts("s", [data.Article("a", "few words")], []), tmp_path / "data")
