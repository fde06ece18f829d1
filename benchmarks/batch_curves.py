"""Measure what a batch of queries costs, b(n), for exact dense search by several kernels.

    python benchmarks/batch_curves.py --passages 200000 --dimension 384

Random unit vectors, k hits a query. `numpy-flat` and `faiss-flat` are whole
searches, float64 ranking and hits included; `faiss (blocked)` has its BLAS
threshold lowered; `torch` is only the product and its top-k. `own threads`
comes last, since it holds BLAS to one thread in the whole process. The searches'
ids and scores are asserted equal, in batches and singly, in the same run.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from ralmspec_plugins.records import Passage, Query
from ralmspec_plugins.retrieval.dense import DenseCorpus
from ralmspec_plugins.retrieval.faiss_backend import FaissFlat
from ralmspec_plugins.retrieval.numpy_flat import NumpyFlat

BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
RESULTS = Path(__file__).parent / "results" / "batch_curves.json"


def unit_vectors(count: int, dimension: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Draw vectors of length 1."""
    vectors = np.random.default_rng(seed).standard_normal((count, dimension), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def measured(call: Callable[[], object], runs: int) -> dict[str, float]:
    """Time a call: median, and the spread from the fastest to the slowest run, in ms."""
    call()
    times_ms = []
    for _ in range(runs):
        started_s = time.perf_counter()
        call()
        times_ms.append(1000 * (time.perf_counter() - started_s))
    return {
        "median_ms": round(statistics.median(times_ms), 3),
        "min_ms": round(min(times_ms), 3),
        "max_ms": round(max(times_ms), 3),
    }


def curves(options: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """Measure every kernel at every batch size."""
    vectors = unit_vectors(options.passages, options.dimension, options.seed)
    passages = [Passage(f"p{row:08d}", "") for row in range(options.passages)]
    corpus = DenseCorpus(passages, vectors)
    ours, theirs = NumpyFlat(corpus, k=options.k), FaissFlat(corpus, k=options.k)
    asked = unit_vectors(max(BATCHES), options.dimension, options.seed + 1)
    queries = [Query(str(row), vector) for row, vector in enumerate(asked)]
    singly = [ours.search([query])[0] for query in queries]
    assert singly == ours.search(queries) == theirs.search(queries), "kernels disagree"
    tensor, asked_tensor = torch.from_numpy(vectors), torch.from_numpy(asked)
    usual = faiss.cvar.distance_compute_blas_threshold
    found: dict[str, dict[str, dict[str, float]]] = {}

    def record(name: str, batch: int, call: Callable[[], object]) -> None:
        found.setdefault(name, {})[str(batch)] = measured(call, options.runs)

    for n in BATCHES:
        record("numpy-flat", n, lambda n=n: ours.search(queries[:n]))
        record("faiss-flat", n, lambda n=n: theirs.search(queries[:n]))
        faiss.cvar.distance_compute_blas_threshold = 3 * options.dimension
        record("faiss-flat (blocked)", n, lambda n=n: theirs.search(queries[:n]))
        assert singly == theirs.search(queries), "the blocked kernel disagrees"
        faiss.cvar.distance_compute_blas_threshold = usual
        record(
            "torch product and top-k",
            n,
            lambda n=n: (tensor @ asked_tensor[:n].T).topk(options.k, dim=0),
        )
    own = NumpyFlat(corpus, k=options.k, threads=options.threads)
    for n in BATCHES:
        assert singly[:n] == own.search(queries[:n]), "own threads disagree"
        record(f"numpy-flat, {options.threads} own threads", n, lambda n=n: own.search(queries[:n]))
    return found


def surroundings() -> dict[str, Any]:
    """Say where the numbers come from."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_before": os.getloadavg()[0],
        "torch_threads": torch.get_num_threads(),
        "faiss_threads": faiss.omp_get_max_threads(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "torch", "faiss-cpu", "threadpoolctl")},
        },
    }


def main() -> None:
    """Measure, print a table, and add the numbers to the results under their size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--passages", type=int, default=200_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    settings = {k: v for k, v in vars(options).items() if k != "output"}
    result = {"settings": settings, **surroundings(), "equal_outputs": True}
    result["curves"] = curves(options)
    print(f"{'ms for a batch of':26}" + "".join(f"{n:>8}" for n in BATCHES))
    for name, curve in result["curves"].items():
        print(f"{name:26}" + "".join(f"{curve[str(n)]['median_ms']:8.1f}" for n in BATCHES))
    results = json.loads(options.output.read_text()) if options.output.exists() else {}
    results[f"{options.passages}x{options.dimension}"] = result
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
