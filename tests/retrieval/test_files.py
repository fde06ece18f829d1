"""Passages read from the disk one by one are those that were saved."""

import gc
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ralmspec_plugins.errors import IndexFileError
from ralmspec_plugins.retrieval import NumpyFlat, load, open_retriever, save
from ralmspec_plugins.retrieval.registry import read
from ralmspec_plugins.retrieval.storage import files
from ralmspec_plugins.retrieval.storage.corpus import batched, fingerprint, places_of
from ralmspec_plugins.retrieval.storage.files import PassageFile
from ralmspec_plugins.testing.contracts import invented_passages
from ralmspec_plugins.types import Passage

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
passage_lists = st.lists(
    st.builds(
        Passage,
        st.text(st.characters()),
        st.text(st.characters()),
        st.text(max_size=3),
        st.dictionaries(st.text(), json_values, max_size=2),
    ),
    min_size=1,
    max_size=20,
    unique_by=lambda passage: passage.id,
)


def saved(passages: Sequence[Passage], folder: Path) -> PassageFile:
    """Save passages and open them again."""
    save(open_retriever("numpy-flat", passages, lambda _: [1.0]), folder)
    opened = read(folder).passages
    assert isinstance(opened, PassageFile)
    return opened


@settings(max_examples=50, deadline=None)
@given(passages=passage_lists)
def test_what_comes_back_is_what_was_saved(passages: list[Passage]) -> None:
    """Any text, lone surrogates and line ends included; by row, by slice and in order."""
    with TemporaryDirectory() as place:
        opened = saved(passages, Path(place) / "kb")
        count = len(passages)

        assert passages == list(opened) == opened[:]
        assert passages == [opened[row] for row in range(count)]
        assert passages == [opened[row] for row in range(-count, 0)]
        assert passages[::-2] == opened[::-2]
        assert count == len(opened)
        assert places_of(passages).tolist() == opened.places.tolist()
        assert fingerprint(passages) == fingerprint(opened)


def test_rows_beyond_the_end_are_refused(tmp_path: Path) -> None:
    """As in a list."""
    opened = saved(invented_passages(3), tmp_path / "kb")
    for row in (3, -4):
        with pytest.raises(IndexError, match=f"none in row {row}"):
            opened[row]


def test_opening_reads_no_passage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a knowledge base parses no line of it, and a search only its hits' lines."""
    save(open_retriever("numpy-flat", invented_passages(300), k=3), tmp_path / "kb")
    parsed = []
    loads = files.json.loads
    monkeypatch.setattr(files.json, "loads", lambda line: parsed.append(line) or loads(line))
    loaded = load(tmp_path / "kb")
    before = [line for line in parsed if b'"id"' in line]
    loaded.search([loaded.encode("kora")])
    lines = [line for line in parsed if b'"id"' in line]
    loaded.search([loaded.encode("kora")])

    assert not before
    assert len(lines) == 3
    assert lines == [line for line in parsed if b'"id"' in line]


def test_threads_read_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many threads over few kept passages, each gets what it asks for."""
    monkeypatch.setattr(files, "_KEPT", 7)
    passages = invented_passages(200)
    opened = saved(passages, tmp_path / "kb")

    def wrong(start: int) -> int:
        rows = [(start * 37 + step * 11) % 200 for step in range(2000)]
        return sum(opened[row] != passages[row] for row in rows)

    with ThreadPoolExecutor(8) as threads:
        assert [0] * 8 == list(threads.map(wrong, range(8)))


def test_a_removed_folder_stays_readable(tmp_path: Path) -> None:
    """Whoever has loaded it goes on searching what it has loaded, and can save it again."""
    passages = invented_passages(30)
    save(open_retriever("numpy-flat", passages, k=30), tmp_path / "kb")
    loaded = load(tmp_path / "kb")
    shutil.rmtree(tmp_path / "kb")
    hits = loaded.search([loaded.encode("kora")])[0]
    save(loaded, tmp_path / "again")

    assert sorted(p.id for p in passages) == sorted(hit.passage.id for hit in hits)
    assert passages == list(read(tmp_path / "again").passages)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files by /proc")
def test_nothing_stays_open(tmp_path: Path) -> None:
    """A passage file that nobody holds is closed, kept passages or not."""
    opened = saved(invented_passages(30), tmp_path / "kb")
    mapped = f"{tmp_path}/kb/passages.jsonl"
    assert opened[3]
    assert mapped in Path("/proc/self/maps").read_text()
    files = len(list(Path("/proc/self/fd").iterdir()))
    gc.disable()
    try:
        del opened
        assert mapped not in Path("/proc/self/maps").read_text()
        assert len(list(Path("/proc/self/fd").iterdir())) <= files
    finally:
        gc.enable()


def test_a_saved_knowledge_base_saves_alike(tmp_path: Path) -> None:
    """Saved from memory or from its own files, every file is the same to the byte."""
    made = open_retriever("numpy-flat", invented_passages(50), k=2)
    save(made, tmp_path / "a")
    loaded = load(tmp_path / "a")
    assert isinstance(loaded, NumpyFlat)
    save(loaded, tmp_path / "b")

    assert made.signature == loaded.signature
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_an_empty_passages_file_is_refused(tmp_path: Path) -> None:
    """The system cannot map it, and there is nothing in it."""
    saved(invented_passages(3), tmp_path / "kb")
    (tmp_path / "kb" / "passages.jsonl").write_bytes(b"")
    with pytest.raises(IndexFileError, match="is empty"):
        PassageFile.open(tmp_path / "kb", 3)


def test_a_stream_is_cut_into_batches() -> None:
    """Each of one size but the last, and nothing is taken before it is needed."""
    stream = iter(invented_passages(10))
    batches = batched(stream, 4)

    assert 4 == len(next(batches))
    assert 6 == len(list(stream))
    assert [] == list(batches)
