import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ralmspec_plugins.errors import ConfigError, IndexFileError, InputError, ModelError
from ralmspec_plugins.knn import Datastore, DatastoreInfo
from ralmspec_plugins.knn.build import build_datastore
from ralmspec_plugins.knn.datastore import npy_header

_TEXTS = ("The keeper counted the ships.", "A storm passed the island.")


@pytest.fixture(scope="module")
def saved(
    tmp_path_factory: pytest.TempPathFactory,
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "store"
    build_datastore(_TEXTS, folder, llama, tokenizer)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """A datastore that a test may damage."""
    shutil.copytree(saved, tmp_path / "store")
    return tmp_path / "store"


def test_what_is_saved_is_what_memory_holds(saved: Path) -> None:
    """The same arrays, facts and signature, from the disk and from memory."""
    opened = Datastore.open(saved, "digests")
    made = Datastore.of(opened.keys, opened.values, opened.document_ends, opened.about)

    assert made.signature == opened.signature == Datastore.open(saved).signature
    assert len(opened) == opened.about.entries == len(opened.keys) == len(opened.values)
    assert (np.float16, np.int32) == (opened.keys.dtype, opened.values.dtype)
    assert 2 == opened.about.documents == len(opened.document_ends)


def test_the_signature_names_the_content() -> None:
    """Another key, value or document end is another signature; the same ones are the same."""
    keys, values, ends = np.eye(4), [1, 2, 3, 4], [2, 4]
    same = [Datastore.of(keys, values, ends).signature for _ in range(2)]
    others = [
        Datastore.of(keys[::-1], values, ends).signature,
        Datastore.of(keys, [1, 2, 4, 3], ends).signature,
        Datastore.of(keys, values, [3, 4]).signature,
    ]

    assert same[0] == same[1]
    assert 4 == len({*same, *others})


def test_it_is_immutable_and_leaves_what_was_given() -> None:
    """Neither arrays of ours can be written to, nor is the caller's own array locked."""
    keys = np.eye(3, dtype=np.float16)
    store = Datastore.of(keys, [1, 2, 3])
    keys[0, 0] = 1

    for array in (store.keys, store.values, store.document_ends):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def _following(ends: list[int], ids: list[int], n: int) -> list[int]:
    """Say it entry by entry: an entry's document, and what is left of it."""
    found = set()
    for entry in ids:
        end = min(end for end in ends if end > entry)
        found |= {other for other in range(entry + 1, entry + n + 1) if other < end}
    return sorted(found)


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    picks=st.lists(st.integers(0, 10**6), max_size=12),
    n=st.integers(0, 12),
)
def test_following_never_leaves_the_document(lengths: list[int], picks: list[int], n: int) -> None:
    """The next n entries of each in order, each once, cut where its document ends."""
    ends = np.cumsum(lengths)
    size = int(ends[-1])
    store = Datastore.of(np.zeros((size, 1)), np.zeros(size), ends)
    ids = [pick % size for pick in picks]
    expected = _following(ends.tolist(), ids, n)
    actual = store.following(np.array(ids, dtype=np.int64), n)

    assert expected == actual.tolist()
    assert np.int64 == actual.dtype


def test_following_refuses_what_it_does_not_hold() -> None:
    """An id of another store, or a negative n, is an error and no guess."""
    store = Datastore.of(np.eye(3), [1, 2, 3])
    for wrong in (-1, 3):
        with pytest.raises(InputError, match=f"between 0 and 2, got {min(wrong, 1)} to"):
            store.following(np.array([1, wrong]), 2)
    with pytest.raises(ConfigError, match="at least 0, got -1"):
        store.following(np.array([1]), -1)


_WRONG: dict[str, tuple[Any, Any, Any, str]] = {
    "no entries": (np.zeros((0, 2)), [], None, "at least one"),
    "one dimension": ([1.0], [1], None, r"keys of shape \(1,\)"),
    "too few values": (np.eye(3), [1, 2], None, "shape"),
    "negative value": (np.eye(2), [1, -1], None, "below 2, got -1 to 1"),
    "infinity": ([[1.0], [70_000.0]], [1, 2], None, "entry 1 is not finite in float16"),
    "nan": ([[float("nan")]], [1], None, "entry 0 is not finite"),
    "ends short": (np.eye(3), [1, 2, 3], [2], "document_ends must ascend"),
    "ends descend": (np.eye(3), [1, 2, 3], [2, 1, 3], "document_ends must ascend"),
    "empty document": (np.eye(3), [1, 2, 3], [0, 3], "document_ends must ascend"),
    "no documents": (np.eye(3), [1, 2, 3], [], "documents must be"),
}


@pytest.mark.parametrize("name", _WRONG)
def test_arrays_that_are_no_datastore_are_refused(name: str) -> None:
    """The message says which array, what was got, and what is needed."""
    keys, values, ends, reason = _WRONG[name]
    with pytest.raises(InputError, match=reason):
        Datastore.of(keys, values, ends)


def test_the_largest_number_fits() -> None:
    """65504 is a key, and so is the smallest; what rounds beyond is not."""
    assert 65504 == float(Datastore.of([[65504.0]], [1]).keys[0, 0])
    with pytest.raises(InputError, match="largest number is 65504"):
        Datastore.of([[65520.0]], [1])


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2])


def _changed(folder: Path, **changes: Any) -> None:
    record = json.loads((folder / "about.json").read_bytes())
    record.update(changes)
    (folder / "about.json").write_text(json.dumps(record))


def _told(folder: Path, **changes: Any) -> None:
    record = json.loads((folder / "about.json").read_bytes())
    _changed(folder, about={**record["about"], **changes})


def _replaced(file: Path, array: Any) -> None:
    """Put another array of as many bytes in a file's place."""
    data = npy_header(array.dtype.str, array.shape) + array.tobytes()
    assert len(data) == file.stat().st_size
    file.write_bytes(data)


_DAMAGES: dict[str, tuple[Any, str]] = {
    "short keys": (lambda folder: _cut(folder / "keys.npy"), "keys.npy is damaged"),
    "missing values": (lambda folder: (folder / "values.npy").unlink(), "values.npy is missing"),
    "no about": (lambda folder: (folder / "about.json").unlink(), "is no datastore"),
    "torn about": (lambda folder: _cut(folder / "about.json"), "about.json is damaged"),
    "version": (lambda folder: _changed(folder, version=2), "version 2, .* reads version 1"),
    "format": (lambda folder: _changed(folder, format="x"), "was not written by ralmspec"),
    "no files": (lambda folder: _changed(folder, files={}), "about.json is damaged"),
    "dimension": (lambda folder: _told(folder, dimension=31), "keys must be float16"),
    "entries": (lambda folder: _told(folder, entries=10), r"shape \(10, 32\)"),
    "vocabulary": (lambda folder: _told(folder, vocabulary=3), "tokens below 3"),
    "unknown fact": (lambda folder: _told(folder, colour="red"), "about.json is damaged"),
    "kind": (lambda folder: _told(folder, key_kind="x"), "about.json is damaged"),
    "ends": (
        lambda folder: _replaced(folder / "document_ends.npy", np.array([5, 3])),
        "document_ends must ascend",
    ),
}


@pytest.mark.parametrize("name", _DAMAGES)
def test_damage_is_refused_on_opening(copied: Path, name: str) -> None:
    """Whatever is short, missing, of another version or inconsistent is named."""
    damage, reason = _DAMAGES[name]
    damage(copied)

    with pytest.raises(IndexFileError, match=reason):
        Datastore.open(copied)


def test_a_changed_byte_is_found_by_digests(copied: Path) -> None:
    """Keys are read only then: opening is quick by default."""
    content = bytearray((copied / "keys.npy").read_bytes())
    content[-1] ^= 1
    (copied / "keys.npy").write_bytes(content)
    Datastore.open(copied)

    with pytest.raises(IndexFileError, match="SHA-256 differs"):
        Datastore.open(copied, "digests")
    with pytest.raises(ConfigError, match="digests, sizes, got 'all'"):
        Datastore.open(copied, "all")  # type: ignore[arg-type]


_INFO = DatastoreInfo(
    dimension=8,
    vocabulary=100,
    entries=5,
    documents=1,
    tokenizer="t1",
    model="m1",
    model_name="small",
)
_FITS: dict[str, Any] = {
    "dimension": 8,
    "vocabulary": 100,
    "key_kind": "ffn_input",
    "tokenizer": "t1",
    "model": "m1",
}


def test_what_fits_is_taken() -> None:
    """Also where a fingerprint is not known, here or there."""
    store = Datastore.of(np.zeros((5, 8)), [1, 2, 3, 4, 5], [5], _INFO)
    store.about.check_fits(**_FITS)
    store.about.check_fits(**{**_FITS, "model": ""})
    unknown = Datastore.of(np.zeros((5, 8)), [1, 2, 3, 4, 99])

    unknown.about.check_fits(**_FITS)
    assert "" == unknown.about.tokenizer == unknown.about.model


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dimension": 16}, "dimension of the model's keys is 16 and must be 8"),
        ({"vocabulary": 99}, "vocabulary is 99 and must be 100"),
        ({"key_kind": "output"}, "kind of keys is 'output' and must be 'ffn_input'"),
        ({"tokenizer": "t2"}, "tokenizer's fingerprint is t2 and must be t1"),
        ({"model": "m2"}, "model's fingerprint is m2 and must be m1"),
        ({"dimension": 16, "model": "m2"}, "is 16 and must be 8; the model's fingerprint"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], reason: str) -> None:
    """Field, what was got, what is needed, and which model would do."""
    with pytest.raises(ModelError, match=reason) as caught:
        _INFO.check_fits(**{**_FITS, **changes})

    assert "built with (small)" in str(caught.value)
