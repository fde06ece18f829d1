"""`ralmspec knn build`: text and a model in, a datastore out, from every kind of file."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.testing import CliRunner, Result

from ralmspec_plugins.cli import output
from ralmspec_plugins.cli.app import app
from ralmspec_plugins.demo import make_world
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.knn import Datastore
from ralmspec_plugins.knn.datastore import KEY_KINDS, KeyKind
from ralmspec_plugins.lm.prompts import encode
from ralmspec_plugins.retrieval.ingest import stream_texts
from ralmspec_plugins.retrieval.storage import format as folders
from ralmspec_plugins.testing.models import tiny_llama, tiny_tokenizer


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["knn", "build", *map(str, arguments)])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights, as `save_pretrained` leaves it."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    tiny_llama(context=64).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five documents in four files of every kind, and what is no text."""
    told = tmp_path / "in"
    (told / "b").mkdir(parents=True)
    (told / ".git").mkdir()
    (told / "a.txt").write_text("  A ship\n\npassed. ", encoding="utf-8-sig")
    (told / "b" / "c.md").write_text("# The island\n", encoding="utf-8")
    (told / "b" / "d.jsonl").write_text('{"text": "one"}\n\n{"text": "two", "title": "x"}\n')
    (told / "e.TXT").write_text("last")
    (told / "f.png").write_bytes(b"\x89")
    (told / ".git" / "g.txt").write_text("hidden")
    return told


def test_texts_come_as_they_stand(folder: Path) -> None:
    """In the order of the names; the order of the arguments comes first."""
    expected = ["  A ship\n\npassed. ", "# The island\n", "one", "two", "last"]

    assert expected == list(stream_texts([folder]))
    assert ["last", *expected] == list(stream_texts([folder / "e.TXT", folder]))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b'{"text": "one"}\n{"text": 2}\n', 'line 2 has a "text" that is not a text'),
        ("a.jsonl", b'{"text": "one"}\n\n{"te', "line 3 is not JSON"),
        ("a.txt", b"\xff\xfe", "is not UTF-8 text"),
        ("a.jsonl", b'{"text": "\xff"}', "is not UTF-8 text"),
        ("a.pdf", b"x", r"is not a .txt, .* \.jsonl file"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    """File and line are named, before a model is asked."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        list(stream_texts([tmp_path / name]))
    result = run("--text", tmp_path / name, "--out", tmp_path / "store", "--model", "demo")

    assert name in str(caught.value)
    assert 1 == result.exit_code
    assert name in result.stderr
    assert [name] == [file.name for file in tmp_path.iterdir()]


def test_a_folder_becomes_a_datastore(tmp_path: Path, folder: Path, model: Path) -> None:
    """Every token of every document, with the settings that were given."""
    out = tmp_path / "store"
    result = run(
        *("--text", folder, "--model", model, "--out", out, "--context", 16, "--stride", 4),
        *("--batch-size", 2, "--eos", "--key", "output", "--threads", 1),
    )
    store = Datastore.open(out, "digests")
    tokenizer = tiny_tokenizer()
    expected = [
        token
        for text in stream_texts([folder])
        for token in (*encode(tokenizer, text, literal=True), tokenizer.eos_token_id)
    ]
    about = store.about

    assert 0 == result.exit_code, result.output
    assert expected == store.values.tolist()
    assert (5, "output", 16, 4) == (about.documents, about.key_kind, about.context, about.stride)
    assert (True, True, "in", str(model)) == (about.bos, about.eos, about.source, about.model_name)
    record = json.loads(result.stdout)
    told = {"datastore": str(out), "entries": len(store), "documents": 5, "dimension": 32}
    assert record | told == record
    assert record["bytes"] == sum(file.stat().st_size for file in out.iterdir())


def test_the_demo_model_serves_where_none_is_given(tmp_path: Path) -> None:
    """`--no-bos` leaves the first token without an entry."""
    (tmp_path / "a.txt").write_text("Hear of Osk. Osk is remembered as the painted cat.")
    sizes = []
    for name, options in (("plain", ()), ("with", ("--bos",)), ("without", ("--no-bos",))):
        result = run("--text", tmp_path / "a.txt", "--out", tmp_path / name, *options)
        assert 0 == result.exit_code, result.output
        sizes.append(len(Datastore.open(tmp_path / name)))

    assert [sizes[2] + 1, sizes[2] + 1] == sizes[:2]


def test_stopped_it_says_how_to_go_on(
    tmp_path: Path, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C at the end of the work: what is encoded is kept, and the same command goes on."""
    arguments = ("--text", folder, "--model", model, "--out", tmp_path / "store")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folders, "atomic_replace", stop)
        stopped = run(*arguments)
    again = run(*arguments)
    entries = json.loads(again.stdout)["entries"]

    assert 130 == stopped.exit_code
    assert f"{entries} of {entries} entries are encoded, and kept" in stopped.stderr
    assert 0 == again.exit_code, again.output


def test_other_texts_need_a_restart(
    tmp_path: Path, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the option, and with it the command ends."""
    arguments = ("--text", folder, "--model", model, "--out", tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setattr(folders, "atomic_replace", lambda *_: 1 / 0)
        run(*arguments)
    (folder / "a.txt").write_text("Another ship.")
    refused = run(*arguments)
    restarted = run(*arguments, "--restart")

    assert 1 == refused.exit_code
    assert "--restart on the command line" in refused.stderr
    assert 0 == restarted.exit_code, restarted.output


def test_wrong_command_lines_are_refused(tmp_path: Path, folder: Path) -> None:
    """Missing and unknown options are the caller's (2), what is not there is an error (1)."""
    codes = {
        ("--out", tmp_path / "store"): 2,
        ("--text", folder): 2,
        ("--text", folder, "--out", tmp_path / "store", "--key", "query"): 2,
        ("--text", tmp_path / "none", "--out", tmp_path / "store"): 1,
        ("--text", folder, "--out", tmp_path / "store", "--model", tmp_path / "none"): 1,
    }

    assert codes == {arguments: run(*arguments).exit_code for arguments in codes}
    assert set(get_args(KeyKind)) == set(KEY_KINDS)


def test_a_person_sees_what_was_built(
    tmp_path: Path, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line with the numbers."""
    monkeypatch.setattr(output, "on_terminal", lambda: True)
    result = run("--text", folder, "--model", model, "--out", tmp_path / "store")

    assert "entries of 5 documents, 32 numbers each" in " ".join(result.stdout.split())


def test_the_demo_s_model_is_never_silent(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses texts of another world, and says what it is where it may run."""
    used: list[str] = []
    monkeypatch.setattr(
        "ralmspec_plugins.cli.build.use_threads", lambda _, name: used.append(name) or 1 / 0
    )
    world = make_world(5, 16)
    [question] = world.questions(1, 0)
    (tmp_path / "world.txt").write_text(question.prompt + world.article(question))
    out = ("--out", tmp_path / "out")
    refused = run("--text", folder, *out)
    own = run("--text", tmp_path / "world.txt", *out)
    forced = run("--text", folder, "--model", "demo", *out)

    assert 1 == refused.exit_code
    assert "give --model PATH" in refused.stderr
    assert ["demo", "demo"] == used
    assert ["it is tiny" in one.stderr for one in (own, forced)] == [True, True]


def test_texts_come_from_stdin_and_from_another_field(model: Path, tmp_path: Path) -> None:
    """Both as from a file; what is left out of a folder is counted."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"body": "A ship passed the island."}')
    (tmp_path / "in" / "b.pdf").write_text("x")
    command = ["knn", "build", "--text", "-", "--model", str(model), "--out", str(tmp_path / "s")]
    spoken = CliRunner().invoke(app, command, input="A ship passed the island.")
    options = ("--text-field", "body", "--model", model, "--out", tmp_path / "f")
    read = run("--text", tmp_path / "in", *options)
    entries = [json.loads(one.stdout)["entries"] for one in (spoken, read)]

    assert [0, 0] == [spoken.exit_code, read.exit_code]
    assert entries[0] == entries[1] > 0
    assert {".pdf": 1} == json.loads(read.stdout)["skipped"]
    assert {} == json.loads(spoken.stdout)["skipped"]
