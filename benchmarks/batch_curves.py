"""Measure what a batch of queries costs, b(n), for every backend.

    python benchmarks/batch_curves.py --passages 200000 --dimension 384
    python benchmarks/batch_curves.py --passages 1000000 --only numpy-flat --only torch
    python benchmarks/batch_curves.py --list
    python benchmarks/batch_curves.py --plot          # draw what has been measured

Every number is a whole search: ranking in float64 and hits included. The vectors
lie in clusters, as those of real texts do (approximate indexes are useless on random
ones); texts are words of Zipf's frequencies. Whatever stands in the table of
backends is measured, and skipped where its extra is not installed. Batch sizes are
interleaved over the repetitions. In the same run each batch's hits are asserted equal
to single searches', and the exact dense ones' to numpy-flat's.

Building HNSW and indexing text takes longer than searching: those backends are
measured on at most `--approximate-passages` and `--text-passages`, which stands in
the result. Own threads come last, since they hold BLAS to one thread in the process.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faiss
from batch_curves_data import clustered_vectors, zipf_texts

from benchmarks.harness.results import surroundings
from ralmspec_plugins.errors import ConfigError, MissingExtraError
from ralmspec_plugins.retrieval import BACKENDS, open_retriever
from ralmspec_plugins.retrieval.registry import needs_encoder
from ralmspec_plugins.types import Hits, Passage, Query

RESULTS = Path(__file__).parent / "results" / "batch_curves.json"
MOST = 32


@dataclass(frozen=True)
class Kernel:
    """One curve: a backend with its settings."""

    label: str
    backend: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    blocked: bool = False  # FAISS's BLAS threshold lowered while it is measured
    last: bool = False

    @property
    def kind(self) -> str:
        """Say on which data it is measured."""
        if not needs_encoder(self.backend):
            return "text"
        return "exact" if self.backend.endswith("-flat") else "approximate"


def kernels(threads: int, device: str) -> list[Kernel]:
    """Give the table's backends, some of them in several settings."""
    on_gpu = device != "cpu"
    suffix = f", {device}" if on_gpu else ""
    faiss_device = {"device": "gpu" if on_gpu else "cpu"}
    several = {
        "numpy-flat": [
            Kernel("numpy-flat", "numpy-flat"),
            Kernel(f"numpy-flat, {threads} threads", "numpy-flat", {"threads": threads}, last=True),
        ],
        "torch-flat": [
            Kernel(
                f"torch-flat, {precision}{suffix}",
                "torch-flat",
                {"device": device, "precision": precision},
            )
            for precision in ("float32", "half")
        ],
        "faiss-flat": [
            Kernel(f"faiss-flat{', gpu' if on_gpu else ''}", "faiss-flat", faiss_device),
            Kernel("faiss-flat, blocked", "faiss-flat", blocked=True),
        ],
    }
    found = [k for name in BACKENDS for k in several.get(name, [Kernel(name, name)])]
    return sorted(found, key=lambda kernel: kernel.last)


class Data:
    """Passages and queries of both kinds, each made once and only when needed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self._vectors: Any = None

    def size(self, kind: str) -> int:
        """Say how many passages a kind of backend gets."""
        most = {
            "exact": self.options.passages,
            "approximate": self.options.approximate_passages,
            "text": self.options.text_passages,
        }
        return min(self.options.passages, most[kind])

    def opened(self, kernel: Kernel) -> Any:
        """Make a kernel's retriever."""
        size, k = self.size(kernel.kind), self.options.k
        if kernel.kind == "text":
            texts = zipf_texts(size, 100, self.options.seed)
            passages = [Passage(f"p{row:08d}", text) for row, text in enumerate(texts)]
            return open_retriever(kernel.backend, passages, k=k, **kernel.settings)
        if self._vectors is None:
            self._vectors = clustered_vectors(
                self.options.passages, self.options.dimension, self.options.seed
            )
        passages = [Passage(f"p{row:08d}", "") for row in range(size)]
        vectors = self._vectors[:size]
        return open_retriever(kernel.backend, passages, vectors=vectors, k=k, **kernel.settings)

    def queries(self, kernel: Kernel, retriever: Any) -> list[Query]:
        """Make the queries of the largest batch."""
        seed = self.options.seed + 1
        if kernel.kind == "text":
            return [retriever.encode(text) for text in zipf_texts(MOST, 24, seed)]
        asked = clustered_vectors(MOST, self.options.dimension, seed)
        return [Query(str(row), vector) for row, vector in enumerate(asked)]


def points(
    search: Callable[[list[Query]], list[Hits]],
    queries: list[Query],
    singly: list[Hits],
    sizes: Sequence[int],
    runs: int,
) -> dict[str, dict[str, float]]:
    """Time every batch size in turn, several times; what is found must be what singles find."""
    times_ms: dict[int, list[float]] = {size: [] for size in sizes}
    for run in range(runs + 1):
        for size in sizes:
            batch = queries[:size]
            started_s = time.perf_counter()
            found = search(batch)
            elapsed_ms = 1000 * (time.perf_counter() - started_s)
            assert found == singly[:size], f"a batch of {size} finds something else"
            if run:  # the first one warms up
                times_ms[size].append(elapsed_ms)
    return {
        str(size): {
            "median_ms": round(statistics.median(times), 3),
            "min_ms": round(min(times), 3),
            "max_ms": round(max(times), 3),
        }
        for size, times in times_ms.items()
    }


def curve(kernel: Kernel, data: Data, truth: dict[int, list[Hits]]) -> dict[str, Any]:
    """Measure one kernel; exact dense ones must find what the first of them found."""
    options = data.options
    started_s = time.perf_counter()
    retriever = data.opened(kernel)
    built_s = time.perf_counter() - started_s
    queries = data.queries(kernel, retriever)
    singly = [retriever.search([query])[0] for query in queries]
    size = data.size(kernel.kind)
    result: dict[str, Any] = {"passages": size, "build_s": round(built_s, 2)}
    if kernel.kind == "exact":
        assert truth.setdefault(size, singly) == singly, f"{kernel.label} finds something else"
    elif kernel.kind == "approximate":
        if size not in truth:
            truth[size] = data.opened(Kernel("truth", "numpy-flat")).search(queries)
        result["recall"] = round(recall(singly, truth[size]), 3)
    usual = faiss.cvar.distance_compute_blas_threshold
    if kernel.blocked:
        faiss.cvar.distance_compute_blas_threshold = 3 * options.dimension
    try:
        result["points"] = points(retriever.search, queries, singly, options.batches, options.runs)
    finally:
        faiss.cvar.distance_compute_blas_threshold = usual
    return {**result, "equal_outputs": True, "measured": surroundings()}


def recall(found: list[Hits], truth: list[Hits]) -> float:
    """Give the share of the true best passages that were found."""
    ids = [
        ({h.passage.id for h in a}, {h.passage.id for h in b})
        for a, b in zip(found, truth, strict=True)
    ]
    return sum(len(a & b) for a, b in ids) / sum(len(b) for _, b in ids)


def batch_sizes(text: str) -> list[int]:
    """Read "1-32" or "1,2,4"."""
    first, _, last = text.partition("-")
    sizes = range(int(first), int(last) + 1) if last else [int(n) for n in text.split(",")]
    if not sizes or not all(1 <= n <= MOST for n in sizes):
        raise argparse.ArgumentTypeError(f"give sizes from 1 to {MOST}, got {text!r}")
    return list(sizes)


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--passages", type=int, default=200_000)
    parser.add_argument("--approximate-passages", type=int, default=100_000)
    parser.add_argument("--text-passages", type=int, default=50_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--device", default="cpu", help="for torch-flat; any other: FAISS's GPU too"
    )
    parser.add_argument("--batches", type=batch_sizes, default=batch_sizes(f"1-{MOST}"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], help="part of a kernel's name")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--list", action="store_true", help="name the kernels, and do nothing")
    parser.add_argument("--plot", action="store_true", help="draw what has been measured")
    return parser.parse_args()


def measure(options: argparse.Namespace, wanted: list[Kernel]) -> None:
    """Measure each kernel, print its line, and put it in the results at once."""
    data, truth = Data(options), {}  # type: tuple[Data, dict[int, list[Hits]]]
    shown = [n for n in (1, 2, 4, 8, 16, 32) if n in options.batches]
    print(f"{'ms for a batch of':30}" + "".join(f"{n:>8}" for n in shown), flush=True)
    for kernel in wanted:
        try:
            found = curve(kernel, data, truth)
        except (MissingExtraError, ConfigError) as error:
            print(f"{kernel.label:30} left out: {error}", flush=True)
            continue
        medians = [found["points"][str(n)]["median_ms"] for n in shown]
        print(f"{kernel.label:30}" + "".join(f"{ms:8.1f}" for ms in medians), flush=True)
        keep(options, kernel.label, found)
        gc.collect()


def keep(options: argparse.Namespace, label: str, found: dict[str, Any]) -> None:
    """Put one curve in the results, under its size, and leave all others there."""
    results = json.loads(options.output.read_text()) if options.output.exists() else {}
    entry = results.setdefault(f"{options.passages}x{options.dimension}", {"curves": {}})
    names = ("passages", "dimension", "k", "runs", "seed")
    found["settings"] = {name: getattr(options, name) for name in names}
    entry["curves"][label] = found
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n")


def main() -> None:
    """Measure, and draw, as asked."""
    options = parsed()
    wanted = [
        kernel
        for kernel in kernels(options.threads, options.device)
        if not options.only or any(part in kernel.label for part in options.only)
    ]
    if options.list:
        print("\n".join(kernel.label for kernel in wanted))
        return
    if not options.plot:
        measure(options, wanted)
    from batch_curves_plot import draw

    for picture in draw(options.output):
        print(f"drew {picture}")


if __name__ == "__main__":
    main()
