"""Reproduce the table of DESIGN 5: the engine in virtual time on 60 real Wikipedia traces.

Everything is simulated: the loop, the pool and the schedules are the real ones, the
durations are given. The queries are those of a real article being written, the
passages are ranked by real MiniLM vectors, k = 1.

What follows a rewrite is simulated in three ways:
- reconverging: the text comes out the same, so dropped segments are taken back;
- rewriting: dropped segments are written again, but their questions were the same,
  and what was found for them is remembered;
- straying: a segment on a wrong guess leads to questions that are not asked again.
DESIGN's columns without reconvergence turned out to be `straying` for the paper's
fixed stride (which has no memo) and `rewriting` for the others.

    python benchmarks/simulate_traces.py ../shared/data benchmarks/results/simulate_traces.json
"""

import argparse
import json
import platform
import random
import subprocess
import sys
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ralmspec_plugins import (
    Continuous,
    FixedStride,
    Hit,
    Hits,
    Latencies,
    OptimalStride,
    Passage,
    PassagePool,
    Query,
    Request,
    Settings,
    Simulation,
)
from ralmspec_plugins.protocols import Progress, Speculator
from ralmspec_plugins.schedule import Schedule

STEPS = 32
RECONVERGING, REWRITING, STRAYING = MODES = ("reconverging", "rewriting", "straying")
WIDEST = 256

# Seconds of a search by its batch size; a step takes 1 (DESIGN 5).
REGIMES: dict[str, Callable[[int], float]] = {
    "exact dense, R/G 40": lambda n: 39 + n,
    "exact dense, R/G 20": lambda n: 19.5 + 0.5 * n,
    "sparse, R/G 1.4": lambda n: 1.2 + 0.2 * n,
    "sparse, R/G 0.65": lambda n: 0.5 + 0.15 * n,
    "approximate, R/G 0.2": lambda n: 0.05 + 0.15 * n,
}


@dataclass(frozen=True)
class Column:
    """One way to speculate."""

    schedule: Schedule
    prefetch: int
    replica: bool = False


COLUMNS = {
    "fixed 3": Column(FixedStride(stride=3), 1),
    "fixed 3, P20": Column(FixedStride(stride=3), 20),
    "OS3, P20, overlap": Column(OptimalStride(overlap=True), 20),
    "continuous, P20": Column(Continuous(), 20),
    "continuous, P256": Column(Continuous(), 256),
    "P256, 4 lanes": Column(Continuous(lanes=4), 256),
    "P256, 32 lanes": Column(Continuous(lanes=32), 256),
    "+ replica": Column(Continuous(lanes=32), 256, replica=True),
}

# DESIGN 5: the article in the knowledge base, left out.
EXPECTED = {
    "exact dense, R/G 40": [
        (2.3, 2.0), (2.5, 2.4), (3.7, 3.4), (8.0, 7.5), (8.4, 7.9), (8.6, 8.1), (11.8, 11.7),
        (18.3, 18.3),
    ],
    "exact dense, R/G 20": [
        (2.2, 2.0), (2.4, 2.3), (3.3, 3.0), (6.0, 5.2), (6.6, 5.7), (7.8, 7.5), (9.2, 8.5),
        (13.1, 13.0),
    ],
    "sparse, R/G 1.4": [
        (1.3, 1.2), (1.4, 1.4), (1.7, 1.6), (2.1, 2.0), (2.2, 2.2), (2.3, 2.3), (2.3, 2.3),
        (2.4, 2.4),
    ],
    "sparse, R/G 0.65": [
        (1.1, 1.0), (1.2, 1.2), (1.6, 1.6), (1.6, 1.6), (1.6, 1.6), (1.6, 1.6), (1.6, 1.6),
        (1.7, 1.7),
    ],
    "approximate, R/G 0.2": [
        (0.9, 0.8), (1.0, 1.0), (1.2, 1.2), (1.2, 1.2), (1.2, 1.2), (1.2, 1.2), (1.2, 1.2),
        (1.2, 1.2),
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Written:
    """How far the article is written, and which wrong passages led there."""

    steps: int = 0
    strayed: Hashable = None


class TraceWorkload:
    """Asks the questions of one trace; what is written is the article."""

    inline_query = True
    reads_scores = False

    def __init__(self, trace: "Trace", mode: str) -> None:
        self._trace = trace
        self._mode = mode

    def start(self, request: Request) -> Written:
        return Written()

    def query(self, state: Written) -> Query | None:
        if state.steps >= STEPS:
            return None
        return Query(str(state.steps), key=(state.steps, state.strayed))

    def extend(self, state: Written, hits: Hits, progress: Progress) -> Written:
        right = self._trace.ranked(state.steps)[:1]
        if self._mode != STRAYING or hits[0].passage == right[0].passage:
            return Written(state.steps + 1, state.strayed)
        return Written(state.steps + 1, (state.steps, hits[0].passage.id, state.strayed))

    def text(self, state: Written) -> str:
        return "x" * state.steps

    def settled(self, state: Written) -> str:
        return self.text(state)

    def query_key(self, state: Written) -> Hashable:
        return state

    def extend_key(self, state: Written, hits: Hits) -> Hashable | None:
        return state if self._mode == RECONVERGING else None

    def release(self, state: Written) -> None:
        """Nothing is kept."""


class Trace:
    """One trace over the knowledge base: an exact, poolable retriever, ranked beforehand."""

    inline_encode = True
    k = 1

    def __init__(
        self, passages: Sequence[Passage], documents: np.ndarray, queries: np.ndarray
    ) -> None:
        self.signature: Hashable = id(self)
        self.scores = documents @ queries.T  # [passages, queries]
        best = np.argsort(-self.scores, axis=0, kind="stable")[:WIDEST]
        self._ranked = [
            tuple(
                Hit(passages[row], float(self.scores[row, step]), features=row)
                for row in best[:, step]
            )
            for step in range(STEPS)
        ]

    def ranked(self, step: int) -> Hits:
        return self._ranked[step]

    def encode(self, text: str) -> Query:
        return Query(text)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        return self.search_wide(queries, self.k)

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        return [self._ranked[int(query.text)][:width] for query in queries]

    def table(self, capacity: int) -> "TraceTable":
        return TraceTable(self, capacity)


class TraceTable:
    """Ranks a pool by the trace's own scores."""

    def __init__(self, trace: Trace, capacity: int) -> None:
        self._trace = trace
        self._rows = np.zeros(capacity, dtype=np.int64)

    def put(self, slot: int, hit: Hit) -> None:
        self._rows[slot] = hit.features

    def rank(self, query: Query, slots: Sequence[int], k: int) -> list[tuple[int, float]]:
        chosen = np.asarray(slots)
        rows = self._rows[chosen]
        scores = self._trace.scores[rows, int(query.text)]
        best = np.lexsort((rows, -scores))[:k]
        return [(int(chosen[place]), float(scores[place])) for place in best]


class NoisyReplica:
    """Guesses any retrieval, the first too, and is right 97 % of the time."""

    inline = True
    RIGHT = 0.97

    def __init__(self, trace: Trace, seed: int) -> None:
        self._trace = trace
        self._dice = random.Random(seed)
        self.signature = trace.signature

    def guess(self, query: Query) -> Hits:
        hits = self._trace.search_wide([query], 2)[0]
        return hits[:1] if self._dice.random() < self.RIGHT else hits[1:]

    def learn(self, query: Query, hits: Hits) -> None:
        """It knows all there is."""


def load(folder: Path, *, left_out: bool) -> list[Trace]:
    """Load the 60 traces, over all passages or over those of other articles."""
    vectors = np.load(folder / "trace_vectors.npz", allow_pickle=False)
    documents = vectors["docs"].astype(np.float32)
    queries = vectors["q"].astype(np.float32)
    traces_told = json.loads((folder / "trace_queries.json").read_text())
    articles = [trace["article"] for trace in traces_told]
    lines = (folder / "wikipedia_passages.jsonl").read_text().splitlines()
    passages = [Passage(row["id"], "", row["title"]) for row in map(json.loads, lines)]
    traces = []
    for article, asked in zip(articles, queries, strict=True):
        rows = [n for n, one in enumerate(passages) if not (left_out and one.title == article)]
        traces.append(Trace([passages[row] for row in rows], documents[rows], asked))
    return traces


def speculators(column: Column, trace: Trace, seed: int) -> tuple[Speculator, ...] | None:
    """Give the speculators of a column: a pool, or a pool with a replica behind it."""
    if not column.replica:
        return None
    return PassagePool(trace), NoisyReplica(trace, seed)


def speed_up(
    traces: Sequence[Trace], column: Column, search_s: Callable[[int], float], mode: str
) -> dict[str, Any]:
    """Run all traces; give the ratio of summed times, and how often guesses were right."""
    total_s, guesses, right = 0.0, 0, 0
    for number, trace in enumerate(traces):
        simulation = Simulation(
            TraceWorkload(trace, mode),
            trace,
            Latencies(extend_s=1.0, search_s=search_s),
            Settings(
                schedule=column.schedule,
                prefetch=column.prefetch,
                speculators=speculators(column, trace, number),
            ),
        )
        answer = simulation.run("")
        assert answer.text == "x" * STEPS
        assert [step.hits for step in answer.retrieved] == [
            trace.ranked(step)[:1] for step in range(STEPS)
        ]
        total_s += answer.stats.wall_s
        guesses += answer.stats.guesses
        right += answer.stats.guesses_right
    plain_s = len(traces) * STEPS * (1 + search_s(1))
    return {"speed_up": plain_s / total_s, "guess_rate": right / guesses if guesses else None}


def cell(
    both: Sequence[Sequence[Trace]],
    regime: str,
    name: str,
    expected: tuple[float, float],
    mode: str,
) -> dict[str, Any]:
    """Measure one cell of the table, print it beside DESIGN's, and say whether it is as good."""
    found = [speed_up(traces, COLUMNS[name], REGIMES[regime], mode) for traces in both]
    pairs = [(one["speed_up"], want) for one, want in zip(found, expected, strict=True)]
    good: bool | None = None
    if mode == RECONVERGING:
        good = all(one >= want - 0.051 for one, want in pairs)  # DESIGN rounds to 0.1
    elif (mode == STRAYING) == name.startswith("fixed"):
        good = all(abs(one / want - 1) <= 0.1 for one, want in pairs)
    verdict = {True: "ok", False: "MISSED", None: ""}[good]
    shown = " / ".join(f"{one:.2f}" for one, _ in pairs)
    print(
        f"{regime:22} {name:18} {mode:13} {shown:14} "
        f"design {expected[0]} / {expected[1]} {verdict}",
        flush=True,
    )
    return {
        "regime": regime,
        "column": name,
        "mode": mode,
        "design": expected,
        "in_knowledge_base": found[0],
        "left_out": found[1],
        "good": good,
    }


def main() -> int:
    """Print the table beside DESIGN's, write the result, and fail where it is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("result", type=Path)
    options = parser.parse_args()
    both = [load(options.data, left_out=left_out) for left_out in (False, True)]
    cells = [
        cell(both, regime, name, expected, mode)
        for regime in REGIMES
        for name, expected in zip(COLUMNS, EXPECTED[regime], strict=True)
        for mode in MODES
    ]
    missed = sum(one["good"] is False for one in cells)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    result = {
        "what": "simulated in virtual time; speed-up over the plain loop",
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
        "steps": STEPS,
        "traces": len(both[0]),
        "cells": cells,
    }
    options.result.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{missed} of {len(cells)} cells missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
