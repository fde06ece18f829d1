"""A knowledge base is saved whole or not at all, and damage is found and named."""

import errno
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ralmspec_plugins.errors import ConfigError, IndexFileError, InputError
from ralmspec_plugins.retrieval import HashingEncoder, artifacts, dense, load, open_retriever, save
from ralmspec_plugins.retrieval.artifacts import IndexArtifacts
from ralmspec_plugins.retrieval.registry import read
from ralmspec_plugins.retrieval.storage import files
from ralmspec_plugins.testing.contracts import invented_passages, invented_queries
from ralmspec_plugins.types import Passage, Query

PASSAGES = invented_passages(30)
TEXTS = invented_queries(4)


@pytest.fixture
def kb(tmp_path: Path) -> Path:
    """A saved knowledge base."""
    save(open_retriever("numpy-flat", PASSAGES, HashingEncoder(16), k=3), tmp_path / "kb")
    return tmp_path / "kb"


def answers(path: Path) -> list[Any]:
    retriever = load(path)
    return retriever.search([retriever.encode(text) for text in TEXTS])


def left_behind(kb: Path) -> list[str]:
    return sorted(entry.name for entry in kb.parent.iterdir() if entry != kb)


def failing_writes(monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException) -> None:
    """Let the n-th write to any file raise."""
    write = artifacts._Recorder.write
    count = iter(range(10_000))

    def failing(self: Any, data: Any) -> int:
        if next(count) == at:
            raise error
        return write(self, data)

    monkeypatch.setattr(artifacts._Recorder, "write", failing)


@pytest.mark.parametrize("at", range(8))
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr
)
def test_a_failed_save_leaves_the_old_index(
    kb: Path, monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException
) -> None:
    """A full disk or Ctrl-C at any write: the old folder answers as before, and nothing is left."""
    expected = answers(kb)
    failing_writes(monkeypatch, at, error)
    with pytest.raises(type(error)):
        save(open_retriever("numpy-flat", PASSAGES[:5]), kb)

    assert expected == answers(kb)
    assert [] == left_behind(kb)


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_failed_rename_leaves_the_old_index(
    kb: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Where two renames are needed: stopped before or between them, the old folder is put back."""
    expected = answers(kb)
    rename = Path.rename
    count = iter(range(10))

    def interrupted(self: Path, target: Path) -> Path:
        if next(count) == failing:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(files, "exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(open_retriever("numpy-flat", PASSAGES[:5]), kb)

    assert expected == answers(kb)
    assert [] == left_behind(kb)


def test_a_first_save_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there was no knowledge base, there is none."""
    failing_writes(monkeypatch, 2, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="No space"):
        save(open_retriever("numpy-flat", PASSAGES), tmp_path / "kb")

    assert [] == list(tmp_path.iterdir())


def test_a_loaded_index_can_be_saved_over_itself(kb: Path) -> None:
    """The memory-mapped vectors stay readable while their file is replaced."""
    expected = answers(kb)
    loaded = load(kb)
    save(loaded, kb)

    assert expected == answers(kb)
    assert expected == loaded.search([loaded.encode(text) for text in TEXTS])


def test_what_is_not_a_knowledge_base_is_not_overwritten(tmp_path: Path) -> None:
    """A folder with other files, or a file, is in the way."""
    retriever = open_retriever("numpy-flat", PASSAGES)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("text")
    for name in ("mine", "file"):
        with pytest.raises(IndexFileError, match="not a knowledge base"):
            save(retriever, tmp_path / name)
    (tmp_path / "empty").mkdir()
    save(retriever, tmp_path / "empty")

    assert (tmp_path / "mine" / "thesis.txt").exists()
    assert (tmp_path / "empty" / "kb.json").exists()


def test_passages_come_back_whole(tmp_path: Path) -> None:
    """Titles, metadata and any script survive, line ends included."""
    passages = [
        Passage("a", "line one\nline two\u2028three\r", "Tïtle", {"page": 3, "tags": ["x"]}),
        Passage("b", "雪\x85 😀"),
    ]
    save(open_retriever("numpy-flat", passages, HashingEncoder(4)), tmp_path / "kb")
    loaded = load(tmp_path / "kb", k=2)

    assert {p.id: p for p in passages} == {
        hit.passage.id: hit.passage for hit in loaded.search([loaded.encode("x")])[0]
    }


def test_metadata_that_is_no_json_is_refused(tmp_path: Path) -> None:
    """Nothing is pickled instead."""
    with pytest.raises(InputError, match="metadata of passage 'a'"):
        open_retriever("numpy-flat", [Passage("a", "x", "", {"what": object()})])


def edit_manifest(kb: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((kb / "kb.json").read_text())
    change(manifest)
    (kb / "kb.json").write_text(json.dumps(manifest))


def rewrite(kb: Path, name: str, content: bytes) -> None:
    """Put another content in a file, and its true checksum in the manifest."""
    (kb / name).write_bytes(content)
    with artifacts._Recorder(kb / name) as file:
        file.write(content)
    edit_manifest(kb, lambda manifest: manifest["files"].__setitem__(name, file.entry))


@pytest.mark.parametrize(
    "name", ["vectors.npy", "passages.jsonl", "passages.offsets.npy", "passages.places.npy"]
)
def test_damaged_files_are_found(kb: Path, name: str) -> None:
    """Truncated, changed in one byte, or missing: the error names the file and what to do."""
    whole = (kb / name).read_bytes()
    for content, reason in ((whole[:-7], "bytes were written"), (b"#" + whole[1:], "SHA-256")):
        (kb / name).write_bytes(content)
        with pytest.raises(IndexFileError, match=reason) as caught:
            load(kb)
        assert name in str(caught.value)
    (kb / name).unlink()
    with pytest.raises(IndexFileError, match=f"{name} is missing"):
        load(kb)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.update(format="other"), "not written by"),
        (lambda m: m.update(version=99), "version 99"),
        (lambda m: m.update(backend="annoy"), "unknown backend 'annoy'"),
        (lambda m: m.pop("settings"), "settings"),
        (lambda m: m["settings"].pop("metric"), "'metric'"),
        (lambda m: m["settings"].update(dimension=7), "kb.json says"),
        (lambda m: m["files"].pop("vectors.npy"), r"lacks vectors\.npy"),
        (lambda m: m["files"].pop("passages.jsonl"), "passages.jsonl"),
        (lambda m: m["files"].pop("passages.places.npy"), r"passages\.places\.npy"),
        (lambda m: m.update(version=1), "version 1, but this release reads version 2"),
        (lambda m: m["files"].update({"../x": {}}), "invalid file"),
        (lambda m: m.update(passages=31), "30 passages"),
    ],
)
def test_a_wrong_manifest_is_found(
    kb: Path, change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    """Foreign, of another version, incomplete or contradictory: each is told apart."""
    edit_manifest(kb, change)
    with pytest.raises(IndexFileError, match=reason):
        load(kb)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"kb"', b"\xff\xfe", b"[" * 10**5])
def test_a_manifest_that_is_no_manifest_is_found(kb: Path, content: bytes) -> None:
    """Whatever stands in kb.json, the error is ours."""
    (kb / "kb.json").write_bytes(content)
    with pytest.raises(IndexFileError, match=r"kb\.json"):
        load(kb)


def test_a_folder_without_index_is_named(tmp_path: Path) -> None:
    """Nothing there, or nothing of ours."""
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(IndexFileError, match=r"no kb\.json"):
            load(folder)


@pytest.mark.parametrize(
    "content",
    [
        *(b"{}", b'{"id": 1', b"[]", b"", b"\xff", b'"text"', b"[" * 10**5),
        *(b'{"id": 5, "text": "x"}', b'{"id": "p", "text": {"a": 1}}', b'{"id": "p"}'),
        *(b'{"id": "p", "text": "x", "title": 1}', b'{"id": "p", "text": "x", "metadata": [1]}'),
        b'{"id": "p", "text": "x", "metadata": {"a": ' + b"[" * 10**5 + b"]" * 10**5 + b"}}",
    ],
    ids=lambda content: content[:40],
)
def test_lines_that_are_no_passages_are_numbered(kb: Path, content: bytes) -> None:
    """A passages file with a true checksum and wrong content is found when its line is read."""
    lines = (kb / "passages.jsonl").read_bytes().splitlines()
    lines[6] = content.ljust(len(lines[6]))
    rewrite(kb, "passages.jsonl", b"\n".join(lines) + b"\n")
    offsets = np.cumsum([0, *(len(line) + 1 for line in lines)])
    np.save(kb / "passages.offsets.npy", offsets)
    rewrite(kb, "passages.offsets.npy", (kb / "passages.offsets.npy").read_bytes())
    loaded = load(kb, k=30)
    with pytest.raises(IndexFileError, match="line 7"):
        loaded.search([loaded.encode("kora")])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("passages.offsets.npy", lambda array: array + 1),
        ("passages.offsets.npy", lambda array: array[:-1]),
        ("passages.offsets.npy", lambda array: array[[0, 2, 1, *range(3, len(array))]]),
        ("passages.offsets.npy", lambda array: array.astype(np.int32)),
        ("passages.places.npy", lambda array: array * 0),
        ("passages.places.npy", lambda array: array - 1),
        ("passages.places.npy", lambda array: array + 1),
        ("passages.places.npy", lambda array: array.astype(np.float64)),
    ],
)
def test_offsets_and_places_must_fit(kb: Path, name: str, change: Callable[[Any], Any]) -> None:
    """With a true checksum too: what does not cut the file into its lines is refused."""
    np.save(kb / name, change(np.load(kb / name)))
    rewrite(kb, name, (kb / name).read_bytes())
    with pytest.raises(IndexFileError, match="does not fit"):
        load(kb)


def test_pickled_arrays_are_never_opened(kb: Path) -> None:
    """An object array is refused: reading it would run its code."""
    np.save(kb / "vectors.npy", np.array([{}]), allow_pickle=True)
    rewrite(kb, "vectors.npy", (kb / "vectors.npy").read_bytes())
    with pytest.raises(IndexFileError, match="not a plain numpy array"):
        load(kb)


@pytest.mark.parametrize("length", [None, "3", -1.0, float("nan"), 1e30])
def test_a_longest_vector_that_cannot_be_is_refused(kb: Path, length: Any) -> None:
    """It bounds a search's error, so it is not taken from anywhere unchecked."""
    edit_manifest(kb, lambda manifest: manifest["settings"].update(largest_norm=length))
    with pytest.raises(IndexFileError, match="longest vector"):
        load(kb)


@pytest.mark.parametrize("squares", [np.zeros(29, dtype=np.float32), np.zeros(30)])
def test_squares_must_fit(tmp_path: Path, squares: Any) -> None:
    """Saved for L2, one for each passage."""
    save(open_retriever("numpy-flat", PASSAGES, metric="l2"), tmp_path / "kb")
    np.save(tmp_path / "kb" / "squares.npy", squares)
    rewrite(tmp_path / "kb", "squares.npy", (tmp_path / "kb" / "squares.npy").read_bytes())
    with pytest.raises(IndexFileError, match="30 passages"):
        load(tmp_path / "kb")


def test_the_encoder_must_be_the_one_that_encoded(kb: Path) -> None:
    """Another encoder than the saved one is refused."""
    with pytest.raises(IndexFileError, match="hashing-16"):
        load(kb, HashingEncoder(8))
    loaded = load(kb, HashingEncoder(16), k=2)

    assert 2 == len(loaded.search([loaded.encode("kora")])[0])


def test_without_saved_encoder_settings_one_can_be_given(tmp_path: Path) -> None:
    """A knowledge base from a plain function loads without it, and takes it again."""

    def embed(text: str) -> list[float]:
        return [float(len(text)), 1.0]

    made = open_retriever("numpy-flat", PASSAGES, embed)
    save(made, tmp_path / "kb")
    bare = load(tmp_path / "kb")
    given = load(tmp_path / "kb", embed)

    with pytest.raises(InputError, match="no encoder"):
        bare.encode("text")
    assert made.signature == given.signature
    assert made.search([Query("q", np.ones(2))]) == bare.search([Query("q", np.ones(2))])


@pytest.mark.parametrize("name", ["faiss-hnsw", "bm25s"])
def test_damage_inside_a_backends_own_file_is_found(tmp_path: Path, name: str) -> None:
    """Content that the backend cannot use is an IndexFileError too."""
    pytest.importorskip("faiss" if name == "faiss-hnsw" else name)
    save(open_retriever(name, PASSAGES), tmp_path / "kb")
    file = "index.faiss" if name == "faiss-hnsw" else "vocabulary.json"
    rewrite(tmp_path / "kb", file, b'{"kora": 99999}' if name == "bm25s" else b"not an index")
    with pytest.raises(IndexFileError, match="build"):
        load(tmp_path / "kb")


class WithFiles:
    """A retriever with files that only it can read."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.content = {"big.npy": bytes(range(256)) * 9000, "own/empty": b"", "own/x.bin": b"xyz"}
        for name, content in self.content.items():
            (folder / Path(name).name).write_bytes(content)
        self.sources = {name: folder / Path(name).name for name in self.content}

    def parts(self) -> IndexArtifacts:
        return IndexArtifacts("own", {}, PASSAGES, files=self.sources)


def test_a_backends_own_files_are_copied_and_given_as_paths(tmp_path: Path) -> None:
    """They come back as files of the folder, unread, and can be saved from there again."""
    made = WithFiles(tmp_path / "made")
    save(made, tmp_path / "kb")
    read_back = read(tmp_path / "kb")
    made.sources = {name: read_back.file(name) for name in made.content}
    save(made, tmp_path / "kb")
    twice = read(tmp_path / "kb")

    assert not read_back.arrays
    assert made.content == {name: path.read_bytes() for name, path in twice.files.items()}
    assert {tmp_path / "kb" / name for name in made.content} == set(twice.files.values())
    with pytest.raises(IndexFileError, match="lacks other"):
        read_back.file("other")


@pytest.mark.parametrize("name", ["big.npy", "own/x.bin"])
def test_damaged_own_files_are_found(tmp_path: Path, name: str) -> None:
    """Changed, cut short or missing: found before a backend opens them."""
    save(WithFiles(tmp_path / "made"), tmp_path / "kb")
    file = tmp_path / "kb" / name
    whole = file.read_bytes()
    for content, reason in ((whole[:-1], "bytes were written"), (b"#" + whole[1:], "SHA-256")):
        file.write_bytes(content)
        with pytest.raises(IndexFileError, match=reason):
            read(tmp_path / "kb")
    file.unlink()
    with pytest.raises(IndexFileError, match=f"{name} is missing"):
        read(tmp_path / "kb")


def test_own_files_can_be_written_piece_by_piece(tmp_path: Path) -> None:
    """A backend that can write its file to a function needs no copy of it; errors come through."""

    class Writing:
        pieces: Sequence[Any] = (b"one ", memoryview(b"two"), b"")

        def parts(self) -> IndexArtifacts:
            def write_to(write: Callable[[bytes], Any]) -> None:
                for piece in self.pieces:
                    write(piece)

            return IndexArtifacts("own", {}, PASSAGES, written={"own/x.bin": write_to})

    save(Writing(), tmp_path / "kb")

    assert b"one two" == read(tmp_path / "kb").file("own/x.bin").read_bytes()
    broken = Writing()
    broken.pieces = (b"half", None)
    with pytest.raises(TypeError):
        save(broken, tmp_path / "kb")
    assert b"one two" == read(tmp_path / "kb").file("own/x.bin").read_bytes()
    assert ["kb"] == [entry.name for entry in tmp_path.iterdir()]


def test_an_own_file_that_is_gone_is_named_when_saving(tmp_path: Path) -> None:
    """Nothing is saved without it, and nothing is left behind."""
    made = WithFiles(tmp_path / "made")
    made.sources["own/x.bin"].unlink()
    with pytest.raises(IndexFileError, match=r"own/x\.bin cannot be saved"):
        save(made, tmp_path / "kb")

    assert ["made"] == [entry.name for entry in tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["/etc/passwd", "own/../../x", "own//x", "own\\x", ".", ""])
def test_names_that_lead_out_of_the_folder_are_refused(kb: Path, name: str) -> None:
    """A manifest cannot make the reader open anything outside."""
    edit_manifest(kb, lambda manifest: manifest["files"].update({name: {"kind": "own"}}))
    with pytest.raises(IndexFileError, match="invalid file"):
        load(kb)


def test_a_folder_that_appears_while_saving_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What somebody else puts at the target during the writing stays; nothing of ours is left."""
    write = artifacts.write

    def write_and_be_overtaken(parts: IndexArtifacts, folder: Path, there: dict[str, Path]) -> None:
        write(parts, folder, there)
        (tmp_path / "kb").mkdir()
        (tmp_path / "kb" / "thesis.txt").write_text("years of work")

    monkeypatch.setattr(artifacts, "write", write_and_be_overtaken)
    with pytest.raises(IndexFileError, match="not a knowledge base"):
        save(open_retriever("numpy-flat", PASSAGES), tmp_path / "kb")

    assert ["kb"] == [entry.name for entry in tmp_path.iterdir()]
    assert ["thesis.txt"] == [entry.name for entry in (tmp_path / "kb").iterdir()]


def test_sizes_alone_can_be_compared(kb: Path) -> None:
    """`verify="sizes"` reads no file, so it misses a changed byte, and finds a cut file."""
    expected = answers(kb)
    whole = (kb / "vectors.npy").read_bytes()
    quick = load(kb, verify="sizes")
    (kb / "vectors.npy").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    load(kb, verify="sizes")
    with pytest.raises(IndexFileError, match="SHA-256"):
        load(kb)
    (kb / "vectors.npy").write_bytes(whole[:-1])
    with pytest.raises(IndexFileError, match="bytes were written"):
        load(kb, verify="sizes")
    (kb / "vectors.npy").write_bytes(whole)

    assert expected == quick.search([quick.encode(text) for text in TEXTS])
    with pytest.raises(ConfigError, match="digests, sizes"):
        load(kb, verify="none")  # type: ignore[arg-type]


@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
def test_loading_reads_no_vector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str
) -> None:
    """Lengths and fingerprint were worked out when it was built."""
    made = open_retriever("numpy-flat", PASSAGES, HashingEncoder(16), k=3, metric=metric)
    save(made, tmp_path / "kb")
    queries = [made.encode(text) for text in TEXTS]
    for name in ("squared_norms", "fingerprint"):
        monkeypatch.setattr(dense, name, lambda *_: pytest.fail("read everything again"))
    loaded = load(tmp_path / "kb")

    assert made.signature == loaded.signature
    assert made.search(queries) == loaded.search(queries)
