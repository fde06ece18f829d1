"""`ralmspec index`: every kind of input, every kind of bad input, and nothing ever half-written."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from ralmspec_plugins.cli.app import app
from ralmspec_plugins.retrieval import builder, load
from ralmspec_plugins.retrieval.encoders import encode_batch
from tests.cli.conftest import Run, lines, names


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "The lighthouse is old. The keeper is young."),
        ("a.md", "# Lighthouses\n\nThe lighthouse is old."),
        ("a.jsonl", '{"text": "The lighthouse is old.", "id": 7, "title": "Light"}'),
        ("a.markdown", "# Lighthouses\n\nThe lighthouse is old."),
        ("a.rst", "Lighthouses\n===========\n\nThe lighthouse is old."),
        ("a.html", "<title>Light</title><p>The <b>lighthouse</b> is old.</p>"),
        ("a.HTM", "<p>The lighthouse is old."),
        ("a.jsonl", '{"contents": "The lighthouse is old."}'),
        ("a.jsonl", '{"page_content": "The lighthouse is old.", "metadata": {"a": 1}}'),
    ],
)
@pytest.mark.parametrize("in_folder", [False, True])
def test_text_becomes_a_knowledge_base(
    tmp_path: Path, run: Run, name: str, content: str, in_folder: bool
) -> None:
    """A file or a folder of each known kind can be searched afterwards."""
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / name
    file.write_text(content, encoding="utf-8")
    result = run("index", file.parent if in_folder else file, tmp_path / "kb")
    found = load(tmp_path / "kb")

    assert result.exit_code == 0, result.output
    assert [hit.passage.id for hit in found.search([found.encode("lighthouse")])[0]]
    assert lines(result)[0] | {"passages": 1} == lines(result)[0]


@pytest.mark.parametrize("name", ["numpy-flat", "numpy_flat", "bm25s", "faiss_flat"])
def test_backends_are_called_with_either_dash(
    tmp_path: Path, text_file: Path, run: Run, name: str
) -> None:
    """Each installed backend builds, and finds what the text says."""
    for needs in ("bm25s", "faiss"):
        if name.startswith(needs):
            pytest.importorskip(needs)
    result = run("index", text_file, tmp_path / "kb", "--backend", name, "--k", 2)
    store = load(tmp_path / "kb")
    hits = store.search([store.encode("the lighthouse of Culder")])[0]

    assert result.exit_code == 0, result.output
    assert store.k == len(hits) == 2
    assert hits[0].passage.title == "Culder"


def test_vectors_may_be_given(tmp_path: Path, text_file: Path, run: Run) -> None:
    """Row by row, also in half precision."""
    vectors = tmp_path / "vectors.npy"
    np.save(vectors, np.eye(40, 512, dtype=np.float16))
    options = ("--backend", "numpy-flat", "--vectors", vectors)

    assert run("index", text_file, tmp_path / "kb", *options).exit_code == 0
    assert load(tmp_path / "kb").size == 40


def _vectors(kind: str) -> Any:
    vectors = np.ones((40, 512), dtype=np.float32)
    if kind == "nan":
        vectors[7, 3] = np.nan
    return {"rows": vectors[:39], "dimension": vectors[:, :100], "nan": vectors}[kind]


@pytest.mark.parametrize(
    ("kind", "words"),
    [("rows", "40 passages"), ("dimension", "100 dimensions"), ("nan", "NaN")],
)
def test_bad_vectors_are_refused(
    tmp_path: Path, text_file: Path, run: Run, kind: str, words: str
) -> None:
    """A wrong number, a wrong dimension or NaN: a clear error, and nothing is saved."""
    np.save(tmp_path / "v.npy", _vectors(kind))
    options = ("--backend", "numpy-flat", "--vectors", tmp_path / "v.npy")
    result = run("index", text_file, tmp_path / "kb", *options)

    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert words in result.stderr
    assert names(tmp_path) == ["v.npy"]


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ("", (), "no text"),
        ('{"text": 1}', (), 'line 1 has a "text" that is not a text'),
        (
            '{"text": "a"}\n{"te',
            (),
            "line 2 is not JSON (Unterminated string starting at: character 2)",
        ),
        ('{"body": "a"}', (), 'line 1 needs an object with "text" or "contents" or "page_content"'),
        ('{"text": "a"}', ("--text-field", "body"), 'line 1 needs an object with "body"'),
        ('{"text": "a", "id": 1}\n{"text": "b", "id": 1}', (), "more than once"),
        ('{"text": "a lighthouse"}', ("--backend", "google"), "known are numpy-flat"),
        ('{"text": "a lighthouse"}', ("--vectors", "v.npy", "--backend", "bm25s"), "dense"),
        ('{"text": "a"}', ("--vectors", "no.npy", "--backend", "numpy-flat"), "no file no.npy"),
    ],
)
def test_bad_input_is_explained(
    tmp_path: Path, run: Run, content: str, options: tuple[str, ...], words: str
) -> None:
    """Exit code 1, one paragraph on stderr, nothing on stdout, nothing written."""
    file = tmp_path / "in.jsonl"
    file.write_text(content, encoding="utf-8")
    result = run("index", file, tmp_path / "kb", *options)

    assert result.exit_code == 1
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not result.stdout
    assert names(tmp_path) == ["in.jsonl"]


def test_another_field_may_have_the_text(tmp_path: Path, run: Run) -> None:
    """The rest, a field called text too, is metadata."""
    (tmp_path / "in.jsonl").write_text('{"body": "a lighthouse", "text": "no"}', encoding="utf-8")
    result = run("index", tmp_path / "in.jsonl", tmp_path / "kb", "--text-field", "body")
    [hit] = (store := load(tmp_path / "kb")).search([store.encode("lighthouse")])[0]

    assert result.exit_code == 0, result.output
    assert ("a lighthouse", {"text": "no"}) == (hit.passage.text, dict(hit.passage.metadata))


@pytest.mark.parametrize(
    ("given", "backend", "ids"),
    [
        (b'\n {"text": "a lighthouse", "id": "l"}\n', "bm25s", ["l"]),
        (b'{"text": "a lighthouse", "id": "l"}\n', "numpy-flat", ["l"]),
        ("\ufeffA lighthouse { }".encode(), "numpy-flat", ["stdin.txt#0001"]),
    ],
)
def test_stdin_is_a_source(tmp_path: Path, given: bytes, backend: str, ids: list[str]) -> None:
    """`-`, also for backends that read it twice; JSON lines are recognised."""
    arguments = ["index", "-", str(tmp_path / "kb"), "--backend", backend]
    result = CliRunner().invoke(app, arguments, input=given)
    store = load(tmp_path / "kb")

    assert result.exit_code == 0, result.output
    assert ids == [hit.passage.id for hit in store.search([store.encode("lighthouse")])[0]]


def test_what_is_left_out_is_counted(tmp_path: Path, run: Run) -> None:
    """By ending; hidden files and those that are read are not."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("a.txt", "b.pdf", "deep/c.PDF", "deep/d.png", "Makefile", ".hidden.pdf"):
        (tmp_path / "in" / name).write_text("text", encoding="utf-8")
    result = run("index", tmp_path / "in", tmp_path / "kb")

    assert {"": 1, ".pdf": 2, ".png": 1} == lines(result)[0]["skipped"]
    assert "left out by their endings: 4 files (1 without one, 2 .pdf, 1 .png)" in result.stderr
    assert {} == lines(run("index", tmp_path / "in" / "a.txt", tmp_path / "kb2"))[0]["skipped"]


@pytest.mark.parametrize("backend", ["bm25s", "numpy-flat"])
def test_other_passages_are_replaced_with_force_only(
    tmp_path: Path, text_file: Path, run: Run, backend: str
) -> None:
    """The same ones are replaced without; a damaged knowledge base can be built again."""
    target = tmp_path / "kb"
    (tmp_path / "other.txt").write_text("Another text.", encoding="utf-8")
    first = run("index", text_file, target, "--backend", backend)
    again = run("index", text_file, target, "--backend", backend, "--k", 2)
    before = {file.name: file.read_bytes() for file in target.iterdir()}
    other = run("index", tmp_path / "other.txt", target, "--backend", backend)
    kept = {file.name: file.read_bytes() for file in target.iterdir()}
    cut = run("index", text_file, target, "--backend", backend, "--words", 5)
    forced = run("index", tmp_path / "other.txt", target, "--backend", backend, "--force")
    (target / "passages.jsonl").write_bytes(b"")
    mended = run("index", text_file, target, "--backend", backend)

    assert [0, 0, 1, 1, 0, 0] == [
        one.exit_code for one in (first, again, other, cut, forced, mended)
    ]
    assert "40 passages, and these are others; give --force" in other.stderr
    assert before == kept
    assert load(target).size == 40


def test_missing_input_is_explained(tmp_path: Path, run: Run) -> None:
    """A path that is not there is named."""
    result = run("index", tmp_path / "nowhere", tmp_path / "kb")

    assert result.exit_code == 1
    assert "nowhere does not exist" in result.stderr


def test_a_foreign_folder_is_left_alone(tmp_path: Path, text_file: Path, run: Run) -> None:
    """Whatever is in the way and not ours stays, and is refused before any work."""
    (tmp_path / "kb").mkdir()
    (tmp_path / "kb" / "diary.txt").write_text("dear diary", encoding="utf-8")
    result = run("index", text_file, tmp_path / "kb")

    assert result.exit_code == 1
    assert "is not a knowledge base" in result.stderr
    assert (tmp_path / "kb" / "diary.txt").read_text(encoding="utf-8") == "dear diary"


def test_output_inside_input_is_refused(tmp_path: Path, run: Run) -> None:
    """It would be read as text the next time."""
    (tmp_path / "a.txt").write_text("text", encoding="utf-8")
    result = run("index", tmp_path, tmp_path / "kb")

    assert result.exit_code == 1
    assert "choose a folder next to it" in result.stderr


def test_a_full_disk_loses_nothing(
    tmp_path: Path, text_file: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old knowledge base stays byte for byte, and no part of the new one is left."""
    target = tmp_path / "kb"
    assert run("index", text_file, target, "--backend", "numpy-flat").exit_code == 0
    before = {file.name: file.read_bytes() for file in target.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = run("index", text_file, target, "--backend", "numpy-flat", "--k", 3)

    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    assert "unchanged" in result.stderr
    assert before == {file.name: file.read_bytes() for file in target.iterdir()}
    assert names(tmp_path) == ["kb"]


def _stopping(monkeypatch: pytest.MonkeyPatch, error: BaseException, batches: int) -> None:
    """Let the encoder fail after so many batches."""
    monkeypatch.setattr(builder.build_index, "__kwdefaults__", {**DEFAULTS, "batch_size": 8})
    encode = builder.encode_batch
    count = iter(range(1000))

    def failing(encoder: Any, passages: Any) -> Any:
        if next(count) == batches:
            raise error
        return encode(encoder, passages)

    monkeypatch.setattr(builder, "encode_batch", failing)


DEFAULTS = dict(builder.build_index.__kwdefaults__ or {})


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (OSError(errno.ENOSPC, "No space left on device"), 1)],
)
def test_a_stopped_build_goes_on(
    tmp_path: Path,
    text_file: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
) -> None:
    """The message says what is kept; the same command ends with the same files, --restart anew."""
    command = ("index", text_file, tmp_path / "kb", "--backend", "numpy-flat")
    with monkeypatch.context() as patch:
        _stopping(patch, error, 3)
        stopped = run(*command)
        patch.setattr(builder, "encode_batch", encode_batch)
        again = run(*command)
    assert run(*command[:2], tmp_path / "whole", *command[3:]).exit_code == 0

    assert code == stopped.exit_code
    assert "24 of 40 passages are encoded, and kept: the same command continues" in stopped.stderr
    assert not stopped.stdout
    assert again.exit_code == 0, again.output
    assert ["kb", "whole"] == names(tmp_path)
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "kb" / file.name).read_bytes()


def test_another_input_is_refused_until_restarted(
    tmp_path: Path, text_file: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unfinished build is not mixed with other passages; --restart forgets it."""
    command = ("index", text_file, tmp_path / "kb", "--backend", "numpy-flat")
    with monkeypatch.context() as patch:
        _stopping(patch, KeyboardInterrupt(), 3)
        assert run(*command).exit_code == 130
        patch.setattr(builder, "encode_batch", encode_batch)
        mixed = run(*command, "--words", 5)
        restarted = run(*command, "--words", 5, "--restart")

    assert 1 == mixed.exit_code
    assert "are not those that were encoded before" in mixed.stderr
    assert "--restart" in mixed.stderr
    assert 1 == len(mixed.stderr.splitlines())
    assert restarted.exit_code == 0, restarted.output
    assert ["kb"] == names(tmp_path)


@pytest.mark.usefixtures("terminal")
def test_a_person_reads_a_sentence(tmp_path: Path, text_file: Path, run: Run) -> None:
    """On a terminal there is no JSON, unless it is asked for."""
    spoken = run("index", text_file, tmp_path / "kb")
    asked = run("index", text_file, tmp_path / "kb", "--json")

    assert "40 passages" in spoken.stdout
    assert json.loads(asked.stdout)["passages"] == 40
