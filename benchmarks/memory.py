"""Measure the peak memory of building and searching a large index, in memory and on the disk.

    python benchmarks/memory.py --passages 1000000 --dimension 384 --folder /tmp/memory

Each way runs in a process of its own, whose memory is read from /proc every
few milliseconds by this one: anonymous memory (`RssAnon`: what the process
holds, and the system cannot drop) and the peak of everything resident
(`VmHWM`: mapped pages of files too). Random vectors that are normalised for
cosine, passages of about 100 words. All ways must find the same hits with the
same scores. The `limited` ways run under RLIMIT_DATA, so that the system
refuses them more private memory than they may have, which is less than the vectors.
"""

import argparse
import hashlib
import json
import random
import resource
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.results import surroundings
from ralmspec_plugins.retrieval import build_index, load, open_retriever
from ralmspec_plugins.types import Passage

RESULTS = Path(__file__).parent / "results" / "memory.json"
MIB = 1 << 20
LIMIT = 768 * MIB
QUERIES = 32
MAPPED_BAR = 1024 * MIB
_EVERY_S = 0.005


class RandomEncoder:
    """A vector drawn from a generator that the text seeds: cheap, and the same everywhere."""

    inline = True

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.name = f"random-{dimension}"

    def __call__(self, text: str) -> Any:
        dice = np.random.Generator(np.random.Philox(key=zlib.crc32(text.encode())))
        return dice.standard_normal(self.dimension, dtype=np.float32)

    def many(self, texts: Sequence[str]) -> Any:
        return np.stack([self(text) for text in texts])


def passages(count: int) -> Iterator[Passage]:
    """Invent passages of about 100 words, 600 letters each."""
    dice = random.Random(0)
    letters = "etaoinshrdlcumwfgypbvk"
    words = ["".join(dice.choices(letters, k=dice.choice((2, 3, 4, 5, 6, 8)))) for _ in range(5000)]
    phrases = [" ".join(dice.choices(words, k=10)) for _ in range(5000)]
    for row in range(count):
        yield Passage(f"wiki-{row:09d}", " ".join(dice.choices(phrases, k=10)), "A title")


def found(store: Any) -> str:
    """Search in a batch and singly, and digest ids and scores."""
    queries = [store.encode(f"query {number}") for number in range(QUERIES)]
    batch = store.search(queries)
    assert batch[:4] == [store.search([query])[0] for query in queries[:4]], "a batch differs"
    told = [[(hit.passage.id, hit.score) for hit in hits] for hits in batch]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def build_on_disk(options: argparse.Namespace) -> Any:
    """Encode a stream into a new knowledge base, and search it."""
    shutil.rmtree(options.folder / "kb", ignore_errors=True)
    encoder = RandomEncoder(options.dimension)
    return build_index(
        passages(options.passages), options.folder / "kb", encoder, metric="cosine", k=10
    )


def build_from_vectors(options: argparse.Namespace) -> Any:
    """Take over the vectors of a file, here the ones that were just built."""
    shutil.rmtree(options.folder / "given", ignore_errors=True)
    return build_index(
        passages(options.passages),
        options.folder / "given",
        RandomEncoder(options.dimension),
        vectors=options.folder / "kb" / "vectors.npy",
        metric="cosine",
        k=10,
        batch_size=4096,
    )


def search_on_disk(options: argparse.Namespace) -> Any:
    """Open a knowledge base, and search it where it lies."""
    return load(options.folder / "kb", RandomEncoder(options.dimension))


def build_in_memory(options: argparse.Namespace) -> Any:
    """Encode into an array in memory; the passages' texts stay on the disk."""
    texts: Any = load(options.folder / "kb", verify="sizes")
    encoder = RandomEncoder(options.dimension)
    return open_retriever("numpy-flat", texts.corpus.passages, encoder, metric="cosine", k=10)


def build_with_objects(options: argparse.Namespace) -> Any:
    """Encode into an array in memory, with all passages as Python objects beside it."""
    texts = list(passages(options.passages))
    print(json.dumps({"passages_mib": anonymous() // MIB}), flush=True)
    encoder = RandomEncoder(options.dimension)
    return open_retriever("numpy-flat", texts, encoder, metric="cosine", k=10)


WAYS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "built on the disk, and searched": build_on_disk,
    "built on the disk from given vectors, and searched": build_from_vectors,
    "searched on the disk": search_on_disk,
    "limited: built on the disk, and searched": build_on_disk,
    "limited: searched on the disk": search_on_disk,
    "built in memory, and searched": build_in_memory,
    "built in memory with all passages as objects, and searched": build_with_objects,
}


def anonymous(process: str | int = "self", line: str = "RssAnon") -> int:
    """Read a number of bytes from a process's status."""
    for told in Path(f"/proc/{process}/status").read_text().splitlines():
        if told.startswith(line):
            return 1024 * int(told.split()[1])
    return 0  # it has just ended


def child(options: argparse.Namespace) -> None:
    """Go one way, and print what was found."""
    if options.way.startswith("limited"):
        resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    print(json.dumps({"before_mib": anonymous() // MIB}), flush=True)
    began_s = time.perf_counter()
    store = WAYS[options.way](options)
    built_s = time.perf_counter()
    told = {
        "found": found(store),
        "open_s": round(built_s - began_s, 2),
        "search_s": round(time.perf_counter() - built_s, 2),
        "peak_resident_mib": anonymous(line="VmHWM") // MIB,
    }
    print(json.dumps(told), flush=True)


def measured(way: str, options: argparse.Namespace) -> dict[str, Any]:
    """Go one way in a process of its own, and watch its memory."""
    command = [sys.executable, __file__, "--way", way, "--folder", str(options.folder)]
    command += ["--passages", str(options.passages), "--dimension", str(options.dimension)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        try:
            peak = max(peak, anonymous(process.pid))
        except (FileNotFoundError, ProcessLookupError):
            break
        time.sleep(_EVERY_S)
    output, _ = process.communicate()
    assert process.returncode == 0, f"{way}: exit code {process.returncode}"
    told: dict[str, Any] = {"peak_anonymous_mib": round(peak / MIB)}
    for line in output.splitlines():
        told |= json.loads(line)
    return told


def main() -> None:
    """Go all ways, print a table, hold it against the bars, and add it to the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/ralmspec-memory"))  # noqa: S108
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.way:
        child(options)
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    vectors = 4 * options.passages * options.dimension
    result: dict[str, Any] = {
        "settings": {"passages": options.passages, "dimension": options.dimension, "k": 10},
        **surroundings(),
        "vectors_mib": round(vectors / MIB),
        "bar_in_memory_mib": round(1.5 * vectors / MIB),
        "bar_mapped_mib": MAPPED_BAR // MIB,
        "limit_mib": LIMIT // MIB,
        "ways": {},
    }
    print(f"{'MiB':60}{'anonymous':>10}{'resident':>10}{'open s':>10}{'search s':>10}")
    for way in WAYS:
        told = result["ways"][way] = measured(way, options)
        bar = 1.5 * vectors if way.startswith("built in memory") else MAPPED_BAR
        told["under_the_bar"] = told["peak_anonymous_mib"] * MIB < bar
        numbers = ("peak_anonymous_mib", "peak_resident_mib", "open_s", "search_s")
        print(f"{way:60}" + "".join(f"{told[name]:10}" for name in numbers), flush=True)
    answers = {told["found"] for told in result["ways"].values()}
    assert len(answers) == 1, "the ways found different passages"
    result["equal_outputs"] = True
    shutil.rmtree(options.folder)
    results = json.loads(options.output.read_text()) if options.output.exists() else {}
    results[f"{options.passages}x{options.dimension}"] = result
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
