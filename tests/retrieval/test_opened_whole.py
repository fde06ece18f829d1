"""A folder that is replaced while it is opened is the old one or the new one, never a mixture."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ralmspec_plugins.errors import IndexFileError, InputError
from ralmspec_plugins.knn import Datastore
from ralmspec_plugins.retrieval import HashingEncoder, load, open_retriever, save
from ralmspec_plugins.retrieval.storage.files import atomic_replace
from ralmspec_plugins.types import Passage

KNN = Path(__file__).parents[1] / "knn" / "saved" / "datastore"
WORDS = ("fox", "whale", "heron", "otter")
_on_open: list[Callable[[str], None]] = []  # an audit hook cannot be taken away again


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _on_open and isinstance(arguments[0], str | Path):
        _on_open[-1](str(arguments[0]))


sys.addaudithook(_hook)


def saved(folder: Path, turn: int) -> Path:
    """Save a base in which each word's passage says where it is in this order."""
    words = WORDS[turn:] + WORDS[:turn]
    passages = [Passage(id=f"p{at}", text=word) for at, word in enumerate(words)]
    save(open_retriever("numpy-flat", passages, HashingEncoder(64), k=1), folder)
    return folder


@pytest.fixture
def swapping(tmp_path: Path) -> Iterator[Callable[[Path, Path, int], None]]:
    """Have a folder replaced when a file in it is opened for the n-th time."""

    def arm(target: Path, other: Path, which: int) -> None:
        seen = 0

        def swap(path: str) -> None:
            nonlocal seen
            if str(target) not in path:
                return
            seen += 1
            if seen == which:
                fresh = tmp_path / "fresh"
                shutil.copytree(other, fresh)
                atomic_replace(target, fresh)

        _on_open.append(swap)

    yield arm
    _on_open.clear()


@pytest.mark.parametrize("verify", ["digests", "sizes"])
@pytest.mark.parametrize("which", range(1, 14))
def test_a_knowledge_base_is_the_old_or_the_new_one(
    tmp_path: Path, swapping: Callable[[Path, Path, int], None], which: int, verify: Any
) -> None:
    """Its vectors, passages and order are of one base, wherever the exchange comes."""
    target, other = saved(tmp_path / "kb", 0), saved(tmp_path / "other", 1)
    swapping(target, other, which)
    loaded = load(target, HashingEncoder(64), verify=verify)
    found = [loaded.search([loaded.encode(word)])[0][0].passage.text for word in WORDS]

    assert list(WORDS) == found


@pytest.mark.parametrize("verify", ["digests", "sizes"])
@pytest.mark.parametrize("which", range(1, 9))
def test_a_datastore_is_the_old_or_the_new_one(
    tmp_path: Path, swapping: Callable[[Path, Path, int], None], which: int, verify: Any
) -> None:
    """Keys, values and signature belong together."""
    target, other = tmp_path / "store", tmp_path / "other"
    shutil.copytree(KNN, target)
    shutil.copytree(KNN, other)
    values = np.load(other / "values.npy")
    values[:] = values[::-1].copy()
    np.save(other / "values.npy", values)
    about = json.loads((other / "about.json").read_text())
    import hashlib

    content = (other / "values.npy").read_bytes()
    about["files"]["values.npy"] = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (other / "about.json").write_text(json.dumps(about))
    ones = {
        store.signature: store.values.tolist() for store in map(Datastore.open, (target, other))
    }
    swapping(target, other, which)
    opened = Datastore.open(target, verify=verify)

    assert len(ones) == 2
    assert ones[opened.signature] == opened.values.tolist()


def test_a_folder_that_never_stays_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says what to do."""
    target = saved(tmp_path / "kb", 0)
    numbers = iter(range(10**6))
    monkeypatch.setattr(
        "ralmspec_plugins.retrieval.storage.format._identity", lambda _: (0, 0, next(numbers))
    )

    with pytest.raises(IndexFileError, match="open it again"):
        load(target, HashingEncoder(64))


@pytest.mark.parametrize("kind", ["sentence-transformers", "huggingface"])
def test_a_file_never_causes_a_download(tmp_path: Path, kind: str) -> None:
    """A model that a base names is loaded from a folder of this machine, or not at all."""
    target = saved(tmp_path / "kb", 0)
    record = json.loads((target / "kb.json").read_text())
    record["settings"]["encoder_settings"] = {"kind": kind, "path": "attacker/model"}
    (target / "kb.json").write_text(json.dumps(record))

    with pytest.raises(InputError, match="never downloaded"):
        load(target)
