"""A build that is stopped anywhere goes on where it was, and ends with the same bytes."""

import errno
import hashlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ralmspec_plugins.errors import ConfigError, IndexFileError, InputError
from ralmspec_plugins.retrieval import (
    HashingEncoder,
    build_index,
    load,
    open_retriever,
    save,
)
from ralmspec_plugins.retrieval.storage import corpus, journal
from ralmspec_plugins.retrieval.storage import format as folders
from ralmspec_plugins.retrieval.storage.journal import JOURNAL, folder_of
from ralmspec_plugins.testing.contracts import invented_passages, invented_queries
from ralmspec_plugins.types import Passage
from tests.interruptions import stopping

PASSAGES = invented_passages(50)
SETTINGS = {"batch_size": 8, "k": 3}
BATCHES = 7


class Encoder(HashingEncoder):
    """Counts what it is asked for, and can be told to fail."""

    def __init__(self, dimension: int = 16, *, fail_at: int | None = None) -> None:
        super().__init__(dimension)
        self.batches = 0
        self.fail_at = fail_at

    def many(self, texts: Sequence[str]) -> Any:
        if len(texts) > 1 or self.fail_at == 0:  # a single one is a comparison
            if self.batches == self.fail_at:
                raise RuntimeError("out of memory")
            self.batches += 1
        return np.stack([self(text) for text in texts])


def slow(*values: int) -> list[Any]:
    """Have these numbers among the slow tests."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def bytes_of(folder: Path) -> dict[str, str]:
    """Digest each file of a folder."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What an uninterrupted build writes."""
    folder = tmp_path_factory.mktemp("expected") / "kb"
    build_index(iter(PASSAGES), folder, Encoder(), **SETTINGS)
    assert ["kb"] == names(folder.parent)
    return bytes_of(folder)


@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
@pytest.mark.parametrize("name", ["numpy-flat", "faiss-flat", "torch-flat", "faiss-hnsw"])
def test_it_writes_what_is_saved_from_memory(
    tmp_path: Path, request: pytest.FixtureRequest, name: str, metric: str
) -> None:
    """Every file is the same to the byte as when built in memory and saved."""
    library: Any = pytest.importorskip(name.partition("-")[0])
    if name == "faiss-hnsw":  # threads race for a graph's links
        request.addfinalizer(partial(library.omp_set_num_threads, library.omp_get_max_threads()))
        library.omp_set_num_threads(1)
    made = open_retriever(name, PASSAGES, Encoder(), k=2, metric=metric)
    save(made, tmp_path / "memory")
    built = build_index(
        iter(PASSAGES), tmp_path / "disk", Encoder(), backend=name, k=2, metric=metric
    )
    queries = [made.encode(text) for text in invented_queries(5)]

    assert bytes_of(tmp_path / "memory") == bytes_of(tmp_path / "disk")
    assert made.signature == built.signature == load(tmp_path / "disk").signature
    assert made.search(queries) == built.search(queries)
    assert ["disk", "memory"] == names(tmp_path)


@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "file", "nearly 1"])
def test_vectors_may_be_given(tmp_path: Path, kind: str, metric: str) -> None:
    """Of any floating type, in memory or on the disk, also with lengths that are nearly 1."""
    vectors = np.random.default_rng(0).standard_normal((50, 16))
    some = vectors[:: 1 if kind == "nearly 1" else 2]
    some /= np.linalg.norm(some, axis=1, keepdims=True) / (1 + 3e-6)
    vectors = vectors.astype(kind if kind.startswith("float") else "float32")
    np.save(tmp_path / "v.npy", vectors)
    given = tmp_path / "v.npy" if kind == "file" else vectors
    made = open_retriever(
        "numpy-flat", PASSAGES, Encoder(), vectors=vectors.astype(np.float32), metric=metric
    )
    save(made, tmp_path / "memory")
    built = build_index(
        PASSAGES, tmp_path / "disk", Encoder(), vectors=given, metric=metric, batch_size=7
    )

    assert bytes_of(tmp_path / "memory") == bytes_of(tmp_path / "disk")
    assert made.signature == built.signature


@pytest.mark.parametrize("failing", range(BATCHES))
def test_a_failed_batch_costs_itself_alone(
    tmp_path: Path, expected: dict[str, str], failing: int
) -> None:
    """What was encoded before is not encoded again."""
    kb = tmp_path / "kb"
    with pytest.raises(RuntimeError, match="out of memory"):
        build_index(PASSAGES, kb, Encoder(fail_at=failing), **SETTINGS)
    kept = names(tmp_path)
    again = Encoder()
    told: list[tuple[str, int]] = []
    build_index(iter(PASSAGES), kb, again, progress=lambda *stage: told.append(stage), **SETTINGS)

    assert ([".kb.building"] if failing else []) == kept
    assert BATCHES - failing == again.batches
    assert expected == bytes_of(kb)
    assert ["kb"] == names(tmp_path)
    ends = [*range(8, 50, 8), 50]
    assert told == [
        *(("checking", end) for end in ends[:failing]),
        *(("encoding", end) for end in ends[failing:]),
        ("indexing", 0),
        ("indexing", 50),
    ]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr
)
def test_stopped_at_any_write_it_goes_on(
    tmp_path: Path, expected: dict[str, str], error: BaseException
) -> None:
    """A full disk or Ctrl-C, wherever it comes: the old index answers, and the next run ends."""
    kb = tmp_path / "kb"
    save(open_retriever("numpy-flat", PASSAGES[:5], HashingEncoder(16)), kb)
    old = bytes_of(kb)
    for at in itertools.count():
        encoder = Encoder()
        with pytest.MonkeyPatch.context() as patch:
            reached = stopping(patch, at, error)
            stopped = False
            try:
                build_index(iter(PASSAGES), kb, encoder, **SETTINGS)
            except type(error):
                stopped = True
                assert load(kb).size in (5, 50)
        if not reached():
            break
        again = Encoder()
        build_index(iter(PASSAGES), kb, again, **SETTINGS)

        assert expected == bytes_of(kb)
        assert ["kb"] == names(tmp_path)
        assert BATCHES + 1 >= encoder.batches + again.batches or not stopped
        save(open_retriever("numpy-flat", PASSAGES[:5], HashingEncoder(16)), kb)
        assert old == bytes_of(kb)
    assert at > 3 * BATCHES


BUILDER = """
import sys, time
sys.path.insert(0, sys.argv[2])
from tests.retrieval.test_builder import PASSAGES, SETTINGS, Encoder
from ralmspec_plugins.retrieval import build_index

class Slow(Encoder):
    def many(self, texts):
        time.sleep(0.004)
        return super().many(texts)

print("ready", flush=True)
build_index(PASSAGES, sys.argv[1], Slow(), **SETTINGS)
"""
ROOT = Path(__file__).parents[2]


def start_builder(kb: Path) -> subprocess.Popen[bytes]:
    """Start building in another process."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(kb), str(ROOT)],
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
@pytest.mark.parametrize("seed", [0, 1, *slow(2, 3)])
def test_killed_at_random_it_goes_on(tmp_path: Path, expected: dict[str, str], seed: int) -> None:
    """SIGKILL again and again: the target is always whole, and the end is the same."""
    dice = random.Random(seed)
    kb = tmp_path / "kb"
    save(open_retriever("numpy-flat", PASSAGES[:5], HashingEncoder(16)), kb)
    for _ in range(3):
        process = start_builder(kb)
        time.sleep(dice.uniform(0, 0.12))
        process.kill()
        process.communicate()

        assert load(kb).size in (5, 50)
    build_index(PASSAGES, kb, Encoder(), **SETTINGS)

    assert expected == bytes_of(kb)
    assert ["kb"] == names(tmp_path)


def unfinished(folder: Path, batches: int = 4, **changes: Any) -> Path:
    """Leave a build after so many batches."""
    kb = folder / "kb"
    with pytest.raises(RuntimeError, match="out of memory"):
        build_index(PASSAGES, kb, Encoder(fail_at=batches), **{**SETTINGS, **changes})
    return kb


CHANGES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "encoder": (PASSAGES, {"encoder": Encoder(8)}, "encoder was 'hashing-16' and is 'hashing-8'"),
    "metric": (PASSAGES, {"metric": "l2"}, "metric was 'ip' and is 'l2'"),
    "batch size": (PASSAGES, {"batch_size": 9}, "batch_size was 8 and is 9"),
    "vectors": (PASSAGES, {"vectors": np.ones((50, 16))}, "vectors was 'encoded' and is 'given'"),
    "a word": (
        [*PASSAGES[:9], Passage(PASSAGES[9].id, "another"), *PASSAGES[10:]],
        {},
        "passages 8 to 15 are not those",
    ),
    "metadata": (
        [Passage(PASSAGES[0].id, PASSAGES[0].text, "", {"a": 1}), *PASSAGES[1:]],
        {},
        "passages 0 to 7 are not those",
    ),
    "order": (PASSAGES[::-1], {}, "passages 0 to 7 are not those"),
    "fewer": (PASSAGES[:16], {}, "only 16 of the 32 passages"),
    "cut in a batch": (PASSAGES[:20], {}, "passages 16 to 23 are not those"),
    "none": ([], {}, "is empty"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_nothing_is_mixed(tmp_path: Path, expected: dict[str, str], name: str) -> None:
    """Other passages or settings are refused by name, and nothing of the first build is lost."""
    passages, changes, reason = CHANGES[name]
    kb = unfinished(tmp_path)
    before = bytes_of(folder_of(kb))
    options = {**SETTINGS, "encoder": Encoder(), **changes}
    with pytest.raises(ValueError, match=reason) as caught:
        build_index(passages, kb, **options)

    assert isinstance(caught.value, ConfigError | IndexFileError | InputError)
    assert name == "none" or "restart=True (--restart" in str(caught.value)
    assert before == bytes_of(folder_of(kb))
    again = Encoder()
    build_index(PASSAGES, kb, again, **SETTINGS)
    assert expected == bytes_of(kb)
    assert BATCHES - 4 == again.batches


def test_more_passages_than_before_are_refused(tmp_path: Path) -> None:
    """A build that had met the end of its input is not gone on with behind it."""
    kb = tmp_path / "kb"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders, "atomic_replace", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build_index(PASSAGES[:48], kb, Encoder(), **SETTINGS)
    with pytest.raises(IndexFileError, match="more than the 48 passages"):
        build_index(PASSAGES, kb, Encoder(), **SETTINGS)


def test_a_restart_forgets(tmp_path: Path) -> None:
    """With restart=True another input or encoder is taken, and everything is encoded."""
    kb = unfinished(tmp_path)
    encoder = Encoder(8)
    built = build_index(PASSAGES[:20], kb, encoder, restart=True, **SETTINGS)

    assert (20, 3) == (built.size, encoder.batches)
    assert ["kb"] == names(tmp_path)


def test_backend_and_k_may_change(tmp_path: Path) -> None:
    """They concern the end alone: what was encoded for the one serves the other."""
    kb = unfinished(tmp_path)
    encoder = Encoder()
    built = build_index(PASSAGES, kb, encoder, batch_size=8, k=9, threads=None)

    assert 9 == built.k
    assert BATCHES - 4 == encoder.batches


def test_an_encoder_that_only_has_the_same_name_is_refused(tmp_path: Path) -> None:
    """The first passage is encoded again, and must come out as before."""

    class Other(Encoder):
        def __call__(self, text: str) -> Any:
            return -super().__call__(text)

    kb = unfinished(tmp_path)
    with pytest.raises(IndexFileError, match="another vector than before"):
        build_index(PASSAGES, kb, Other(), **SETTINGS)


def test_a_function_without_a_name_can_go_on(tmp_path: Path) -> None:
    """Its address in memory is no part of what is compared."""

    def made(fail: bool) -> Any:
        def embed(text: str) -> list[float]:
            if fail and text == PASSAGES[20].text:
                raise RuntimeError("stopped")
            return [float(len(text)), 1.0]

        return embed

    with pytest.raises(RuntimeError, match="stopped"):
        build_index(PASSAGES, tmp_path / "kb", made(True), **SETTINGS)
    built = build_index(PASSAGES, tmp_path / "kb", made(False), **SETTINGS)

    assert 50 == built.size


def test_given_vectors_are_compared_too(tmp_path: Path) -> None:
    """A build from vectors that was killed goes on with the same vectors only."""
    kb = tmp_path / "kb"
    vectors = np.random.default_rng(0).standard_normal((50, 4))

    def stopped() -> Iterator[Passage]:
        yield from PASSAGES[:32]
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        build_index(stopped(), kb, vectors=vectors, **SETTINGS)
    vectors[17] += 1
    with pytest.raises(IndexFileError, match="vectors of passages 16 to 23"):
        build_index(PASSAGES, kb, vectors=vectors, **SETTINGS)
    vectors[17] -= 1
    assert 50 == build_index(PASSAGES, kb, vectors=vectors, **SETTINGS).size


@pytest.mark.parametrize("tail", [b'00000000 {"pass', b"\0" * 40, b"\0\0\n", b"00000000 {}\n"])
def test_a_torn_entry_does_not_count(tmp_path: Path, expected: dict[str, str], tail: bytes) -> None:
    """What a crash left of the last line is cut off, with what was written for it."""
    kb = unfinished(tmp_path)
    for name, content in (
        (JOURNAL, tail),
        ("passages.jsonl", b'{"id": '),
        ("vectors.npy", b"12345"),
    ):
        with (folder_of(kb) / name).open("ab") as file:
            file.write(content)
    again = Encoder()
    build_index(PASSAGES, kb, again, **SETTINGS)

    assert expected == bytes_of(kb)
    assert BATCHES - 4 == again.batches


def test_a_torn_beginning_is_a_beginning(tmp_path: Path, expected: dict[str, str]) -> None:
    """A journal without its first line has recorded nothing."""
    kb = unfinished(tmp_path)
    (folder_of(kb) / JOURNAL).write_bytes(b'5d0f2e11 {"version": 1, "sett')
    build_index(PASSAGES, kb, Encoder(), **SETTINGS)

    assert expected == bytes_of(kb)


def test_settings_of_a_build_without_any_batch_bind_nobody(tmp_path: Path) -> None:
    """Killed before the first batch, it may be begun with another encoder."""
    kb = unfinished(tmp_path)
    journal = folder_of(kb) / JOURNAL
    journal.write_bytes(journal.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(RuntimeError, match="out of memory"):
        build_index(PASSAGES, kb, Encoder(8, fail_at=0), **SETTINGS)

    assert [] == names(tmp_path)


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("passages.jsonl", lambda file: flip(file, 99), "is not what was written"),
        ("vectors.npy", lambda file: flip(file, 1000), "is not what was written"),
        ("passages.jsonl", lambda file: os.truncate(file, 99), "99 are there"),
        ("vectors.npy", lambda file: os.truncate(file, 999), "999 are there"),
        ("vectors.npy", lambda file: file.unlink(), "0 are there"),
        (JOURNAL, lambda file: flip(file, 0), "line 1, is damaged"),
        (JOURNAL, lambda file: flip(file, len(file.read_bytes()) // 2), "is damaged"),
    ],
)
def test_damage_is_found(
    tmp_path: Path, name: str, damage: Callable[[Path], None], reason: str
) -> None:
    """What was recorded must still be there, to the byte; otherwise it says how to start anew."""
    kb = unfinished(tmp_path)
    damage(folder_of(kb) / name)
    with pytest.raises(IndexFileError, match=reason) as caught:
        build_index(PASSAGES, kb, Encoder(), **SETTINGS)

    assert "restart=True" in str(caught.value)
    assert 50 == build_index(PASSAGES, kb, Encoder(), restart=True, **SETTINGS).size


def test_a_second_builder_is_refused(tmp_path: Path, expected: dict[str, str]) -> None:
    """While one builds, another one of the same target gets an error, and disturbs nothing."""
    kb = tmp_path / "kb"
    refused = []

    def passages() -> Iterator[Passage]:
        for number, passage in enumerate(PASSAGES):
            if number in (0, 30):
                for restart in (False, True):
                    with pytest.raises(IndexFileError, match="being built by another") as caught:
                        build_index(PASSAGES, kb, Encoder(), restart=restart, **SETTINGS)
                    refused.append(str(caught.value))
            yield passage

    build_index(passages(), kb, Encoder(), **SETTINGS)

    assert 4 == len(refused)
    assert expected == bytes_of(kb)


@pytest.mark.parametrize("times", [1, 3])
def test_a_folder_that_goes_while_it_is_made_is_made_again(
    tmp_path: Path, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """Its holder has just finished: `mkdir(exist_ok=True)` then finds it, and does not find it."""
    kb = tmp_path / "kb"
    gone = [folder_of(kb)] * times
    make = Path.mkdir

    def mkdir(self: Path, *args: Any, **kwargs: Any) -> None:
        if self in gone:
            gone.remove(self)
            raise FileExistsError(self)
        make(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    build_index(PASSAGES, kb, Encoder(), **SETTINGS)

    assert gone == []
    assert expected == bytes_of(kb)


def test_a_file_in_the_place_of_the_folder_is_said(tmp_path: Path) -> None:
    """It is not waited for."""
    folder_of(tmp_path / "kb").write_text("mine")
    with pytest.raises(FileExistsError):
        build_index(PASSAGES, tmp_path / "kb", Encoder(), **SETTINGS)


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    """The system lets go of the lock of a process that was killed."""
    kb = tmp_path / "kb"
    process = start_builder(kb)
    try:
        while not (folder_of(kb) / JOURNAL).exists():
            assert process.poll() is None
        with pytest.raises(IndexFileError, match="being built by another process"):
            build_index(PASSAGES, kb, Encoder(), **SETTINGS)
    finally:
        process.kill()
        process.communicate()

    assert 50 == build_index(PASSAGES, kb, Encoder(), **SETTINGS).size


def test_the_targets_own_files_are_not_touched_by_a_late_resume(
    tmp_path: Path, expected: dict[str, str]
) -> None:
    """Killed between the renaming and the cleaning up, both share files: none is rewritten."""
    kb = tmp_path / "kb"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "remove", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build_index(PASSAGES, kb, Encoder(), **SETTINGS)
    links = {file.name: file.stat().st_nlink for file in kb.iterdir()}
    held = {file: file.open("rb") for file in kb.iterdir()}
    before = {file: os.fstat(opened.fileno()).st_mtime_ns for file, opened in held.items()}
    build_index(PASSAGES, kb, Encoder(), **SETTINGS)

    assert 2 == links["vectors.npy"] == links["passages.jsonl"]
    assert expected == bytes_of(kb)
    for file, opened in held.items():
        with opened:
            assert before[file] == os.fstat(opened.fileno()).st_mtime_ns
            assert expected[file.name] == hashlib.sha256(opened.read()).hexdigest()


@pytest.mark.parametrize(
    ("settings", "error", "reason"),
    [
        ({"backend": "annoy"}, ConfigError, "known are"),
        ({"backend": "bm25s"}, ConfigError, "takes no vectors"),
        ({"metric": "dot"}, ConfigError, "ip, cosine, l2"),
        ({"k": 0}, ConfigError, "k must be"),
        ({"batch_size": 0}, ConfigError, "batch_size must be"),
        ({"threads": 0}, ConfigError, "threads must be"),
        ({"nonsense": 1}, TypeError, "nonsense"),
        ({"vectors": np.ones(3)}, InputError, "shape"),
        ({"vectors": np.ones((3, 2), dtype=np.int64)}, InputError, "int64"),
        ({"vectors": "nowhere.npy"}, InputError, "there is no file"),
        ({"vectors": np.ones((50, 9))}, InputError, "9 dimensions"),
    ],
)
def test_wrong_settings_are_refused_before_the_work(
    tmp_path: Path, settings: dict[str, Any], error: type[Exception], reason: str
) -> None:
    """No passage is read, and nothing is written."""

    def passages() -> Iterator[Passage]:
        raise AssertionError("read too early")
        yield

    with pytest.raises(error, match=reason):
        build_index(passages(), tmp_path / "kb", Encoder(), **settings)

    assert [] == names(tmp_path)


def vectors_with(row: int, value: float) -> Any:
    vectors = np.ones((50, 16))
    vectors[row] = value
    return vectors


@pytest.mark.parametrize(
    ("passages", "settings", "reason"),
    [
        ([], {}, "is empty"),
        ([*PASSAGES[:9], PASSAGES[3]], {}, r"rows 3 and 9"),
        ([*PASSAGES[:3], PASSAGES[1]], {}, r"rows 1 and 3"),
        (PASSAGES, {"vectors": np.ones((49, 16))}, "50 passages"),
        (PASSAGES, {"vectors": np.ones((51, 16))}, "50 passages need"),
        (PASSAGES, {"vectors": vectors_with(33, np.nan)}, "row 33"),
        (PASSAGES, {"vectors": vectors_with(33, 1e300)}, "row 33"),
    ],
)
def test_unusable_input_leaves_nothing(
    tmp_path: Path, passages: Any, settings: dict[str, Any], reason: str
) -> None:
    """Where no encoder has worked for it, nothing is kept; ids that occur twice are named."""
    encoder = Encoder(fail_at=99)
    if any(passages.count(passage) > 1 for passage in passages[:5]):
        settings = {**settings, "vectors": np.ones((len(passages), 16))}
    with pytest.raises(InputError, match=reason):
        build_index(iter(passages), tmp_path / "kb", encoder, batch_size=8, **settings)

    assert [] == names(tmp_path)


def test_ids_that_share_a_hash_are_no_doubles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: dict[str, str]
) -> None:
    """They are looked up, and found to be different."""
    monkeypatch.setattr(corpus, "hash", lambda name: len(name) // 2, raising=False)
    build_index(PASSAGES, tmp_path / "kb", Encoder(), **SETTINGS)

    assert expected == bytes_of(tmp_path / "kb")


@pytest.mark.parametrize("shape", ["shorter", "longer", "fewer"])
def test_an_encoder_that_changes_its_mind_is_refused(tmp_path: Path, shape: str) -> None:
    """All vectors have one length, and there is one for each text."""

    class Fickle(Encoder):
        def many(self, texts: Sequence[str]) -> Any:
            rows = super().many(texts)
            if self.batches < 3:
                return rows
            return {"shorter": rows[:, 1:], "longer": np.hstack([rows, rows]), "fewer": rows[1:]}[
                shape
            ]

    for build in (
        lambda: build_index(PASSAGES, tmp_path / "kb", Fickle(), **SETTINGS),
        lambda: open_retriever("numpy-flat", invented_passages(900), Fickle()),
    ):
        with pytest.raises(InputError, match=r"gave an array of shape"):
            build()


def test_a_stream_is_taken_batch_by_batch(tmp_path: Path) -> None:
    """No more passages are taken than are about to be encoded."""
    taken = itertools.count(1)
    encoder = Encoder()
    ahead = []

    def passages() -> Iterator[Passage]:
        for passage in PASSAGES:
            ahead.append(next(taken) - 8 * encoder.batches)
            yield passage

    build_index(passages(), tmp_path / "kb", encoder, **SETTINGS)

    assert max(ahead) <= 8 + 1


def test_what_is_no_knowledge_base_stays(tmp_path: Path) -> None:
    """In the way from the beginning, or put there meanwhile: it is refused, and work is kept."""
    kb = tmp_path / "kb"

    def passages() -> Iterator[Passage]:
        yield from PASSAGES
        kb.mkdir()
        (kb / "thesis.txt").write_text("years of work")

    with pytest.raises(IndexFileError, match="not a knowledge base"):
        build_index(passages(), kb, Encoder(), **SETTINGS)
    with pytest.raises(IndexFileError, match="not a knowledge base"):
        build_index(PASSAGES, kb, Encoder(), **SETTINGS)

    assert ["thesis.txt"] == names(kb)
    shutil.rmtree(kb)
    again = Encoder()
    build_index(PASSAGES, kb, again, **SETTINGS)
    assert 0 == again.batches


def test_what_killed_attempts_left_is_cleared_away(
    tmp_path: Path, expected: dict[str, str]
) -> None:
    """A half-written copy, parts of a sort, and a folder that was being removed."""
    kb = unfinished(tmp_path)
    for folder in (folder_of(kb) / "fresh", tmp_path / ".kb.done-xyz" / "building"):
        folder.mkdir(parents=True)
        (folder / "kb.json").write_text("{")
    (folder_of(kb) / "sorted-ids-00000").write_text("[")
    build_index(PASSAGES, kb, Encoder(), **SETTINGS)

    assert expected == bytes_of(kb)
    assert ["kb"] == names(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names open files by /proc")
def test_a_batch_is_on_the_disk_before_the_journal_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And everything that a folder's kb.json names before that folder gets its name."""
    order: list[str] = []
    fsync, replace = os.fsync, folders.atomic_replace

    def seen(descriptor: int) -> None:
        fsync(descriptor)
        order.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    def replaced(target: Path, fresh: Path) -> None:
        order.append("replaced")
        replace(target, fresh)

    monkeypatch.setattr(os, "fsync", seen)
    monkeypatch.setattr(folders, "atomic_replace", replaced)
    build_index(PASSAGES[:16], tmp_path / "kb", Encoder(), **SETTINGS)
    batch = ["passages.jsonl", "vectors.npy", JOURNAL]
    end = ["passages.offsets.npy", "passages.places.npy"]

    building = folder_of(tmp_path / "kb").name
    assert order[:5] == [JOURNAL, *batch[:2], building, JOURNAL]
    assert order[5 : order.index("replaced")] == [*batch, JOURNAL, "vectors.npy", *end, "kb.json"]
    assert order[order.index("replaced") + 1 :] == ["fresh", tmp_path.name]


def test_a_link_to_another_disk_stays_one(tmp_path: Path, expected: dict[str, str]) -> None:
    """What it leads to is replaced, by both ways of saving, beside the folder that it leads to."""
    (tmp_path / "big").mkdir()
    (tmp_path / "home").mkdir()
    link = tmp_path / "home" / "kb"
    link.symlink_to(tmp_path / "big" / "kb")
    for _ in range(2):
        save(open_retriever("numpy-flat", PASSAGES[:5]), link)
        assert 5 == load(link).size
        build_index(PASSAGES, link, Encoder(), **SETTINGS)

        assert link.is_symlink()
        assert expected == bytes_of(tmp_path / "big" / "kb")
        assert ["kb"] == names(tmp_path / "home") == names(tmp_path / "big")
