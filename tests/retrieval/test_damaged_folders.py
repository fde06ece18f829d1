"""Whatever a saved folder holds, opening and searching it answers, or says what to do."""

import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from ralmspec_plugins.errors import RalmSpecError
from ralmspec_plugins.knn import Datastore, open_search
from ralmspec_plugins.retrieval import HashingEncoder, load, open_retriever, save
from ralmspec_plugins.types import Passage, Query

SAVED = Path(__file__).parent / "saved"
KNN = Path(__file__).parents[1] / "knn" / "saved" / "datastore"
NEEDS = {"faiss-hnsw": "faiss", "bm25s": "bm25s", "knn-hnsw": "faiss"}
FOLDERS = ("numpy-flat", "faiss-hnsw", "bm25s", "datastore", "knn-hnsw")
GONE = object()
NONSENSE: Sequence[Any] = (None, True, -1, 10**30, 1.5, float("nan"), "x", [1], {"a": 1}, GONE)
REMEDIES = (
    "again",
    "another folder",
    "give ",
    "Give ",
    "make one",
    "create one",
    "known are",
    "one of ",
)


@pytest.fixture(params=FOLDERS)
def whole(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A saved folder of each kind."""
    kind: str = request.param
    if kind in NEEDS:
        pytest.importorskip(NEEDS[kind])
    folder = tmp_path / kind
    if kind == "knn-hnsw":
        open_search("hnsw", Datastore.open(KNN), links=4, index=folder)
    else:
        shutil.copytree(KNN if kind == "datastore" else SAVED / kind, folder)
    return folder


def used(folder: Path, kind: str, verify: Any) -> None:
    """Open a folder, and search."""
    if kind in ("datastore", "knn-hnsw"):
        store = Datastore.open(folder if kind == "datastore" else KNN, verify)
        options = {"index": folder} if kind == "knn-hnsw" else {}
        search = open_search("exact" if not options else "hnsw", store, k=2, **options)
        search.search([Query("", np.ones(store.about.dimension, dtype=np.float32))])
    else:
        retriever = load(folder, verify=verify)
        retriever.search([retriever.encode("the keeper and the storm")])


def refused(folder: Path, kind: str, verify: Any = "digests") -> bool:
    """Use a folder; only an error of ours, with a remedy, may come out."""
    message = ""
    try:
        used(folder, kind, verify)
    except RalmSpecError as error:
        message = str(error)
    assert not message or any(word in message for word in REMEDIES), message
    return bool(message)


def damages(content: bytes, dice: random.Random) -> Iterator[bytes]:
    """Cut a file, and flip bits near its beginning, where headers and records are."""
    yield from (b"", content[:1], content[: len(content) // 2], content[:-1])
    for _ in range(8):
        changed = bytearray(content)
        changed[dice.randrange(min(len(content), 400))] ^= 1 << dice.randrange(8)
        yield bytes(changed)


@pytest.mark.parametrize("verify", ["digests", "sizes"])
def test_files_that_are_cut_changed_or_gone(whole: Path, verify: str) -> None:
    """With digests each is refused; without, none comes out as another library's error."""
    dice = random.Random(0)
    for file in sorted(whole.iterdir()):
        content = file.read_bytes()
        # FAISS cannot read a changed index safely, so only its length is tried unread.
        own = file.suffix == ".faiss" and (verify == "sizes" or whole.name == "knn-hnsw")
        for changed in damages(content, dice):
            if own and len(changed) == len(content):
                continue
            file.write_bytes(changed)
            named = file.suffix == ".json" and file.name != "vocabulary.json"
            seen = refused(whole, whole.name, verify)
            checked = verify == "digests" and whole.name in ("numpy-flat", "faiss-hnsw", "bm25s")

            assert seen or named or not checked, file.name
        file.unlink()
        assert refused(whole, whole.name, verify)
        file.mkdir()
        assert refused(whole, whole.name, verify)
        file.rmdir()
        file.write_bytes(content)
    used(whole, whole.name, verify)


def places(record: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Give the path of each value in a record."""
    for name, value in record.items():
        yield (*before, name)
        if isinstance(value, dict):
            yield from places(value, (*before, name))


def test_records_that_hold_nonsense(whole: Path) -> None:
    """Each value in turn gone, of another type, or out of range."""
    record = next(f for f in whole.iterdir() if f.name in ("kb.json", "about.json", "index.json"))
    text = record.read_text()
    some = 0
    for place in places(json.loads(text)):
        for value in NONSENSE:
            changed = json.loads(text)
            inner = changed
            for name in place[:-1]:
                inner = inner[name]
            inner[place[-1]] = value
            if value is GONE:
                del inner[place[-1]]
            record.write_text(json.dumps(changed))
            some += refused(whole, whole.name)
    assert some > 50


def test_links_that_are_set_back_and_forth_mix_nothing(tmp_path: Path) -> None:
    """A link that leads to another kept folder while its files are opened is followed once."""
    words = ("fox", "whale", "heron")
    for turn, name in enumerate(("one", "two")):
        order = words[turn:] + words[:turn]
        passages = [Passage(f"p{at}", word) for at, word in enumerate(order)]
        save(open_retriever("numpy-flat", passages, HashingEncoder(64)), tmp_path / name)
    link = tmp_path / "kb"
    link.symlink_to(tmp_path / "one")
    done: list[bool] = []

    def flip() -> None:
        for turn in range(10**6):
            if done:
                return
            other = tmp_path / f"link-{turn}"
            other.symlink_to(tmp_path / ("one", "two")[turn % 2])
            other.rename(link)

    flipping = Thread(target=flip)
    flipping.start()
    try:
        for _ in range(40):
            loaded = load(link, HashingEncoder(64))
            found = [loaded.search([loaded.encode(word)])[0][0].passage.text for word in words]

            assert list(words) == found
    finally:
        done.append(True)
        flipping.join()


def raced(*works: Callable[[], object]) -> list[BaseException]:
    """Run some work side by side; give what it raises."""
    errors: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_two_savers_of_one_place_leave_one_of_both(tmp_path: Path) -> None:
    """At a free place and at a taken one; whoever comes last is there, and nothing else is."""
    made = [
        open_retriever("numpy-flat", [Passage("a", text)], HashingEncoder(8))
        for text in ("red fox", "blue whale")
    ]
    for turn in range(30):
        kb = tmp_path / f"kb-{turn // 2}"
        errors = raced(*(lambda one=one, kb=kb: save(one, kb) for one in made))

        assert [] == errors
        assert load(kb).signature in {one.signature for one in made}
    assert all(not entry.name.startswith(".") for entry in tmp_path.iterdir())
