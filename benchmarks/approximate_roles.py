"""Measure approximate indexes in both their roles, on the queries of real traces.

    python benchmarks/approximate_roles.py ../shared/data --passages 100000

The MiniLM vectors of 3,850 Wikipedia passages, padded with clustered ones, and 60
traces of 33 queries each. For HNSW, IVF and IVF-PQ, at several k:

- *replica*: how often all k hits of the index are the exact search's, in order: the
  share of right guesses in front of it.
- *verified*: how often a pool that has seen the trace so far guesses what the index
  finds, taught with the index's own k hits (it can be searched no wider), and taught
  with the exact 20 k: then the pool often knows better, and so guesses wrongly.

Then requests are answered with either role, and plainly: every answer is asserted
equal to the plain one over the same retriever. The model's step is a pause.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from batch_curves_data import clustered_vectors

from benchmarks.harness.results import surroundings
from ralmspec_plugins import Engine, Hits, PassageCache, Replica, Request, Settings, plain
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.retrieval import NumpyFlat
from ralmspec_plugins.retrieval.dense import DenseCorpus
from ralmspec_plugins.retrieval.faiss_ann import RECIPES, FaissApproximate
from ralmspec_plugins.types import Passage, Query

RESULTS = Path(__file__).parent / "results" / "approximate_roles.json"
CAPACITY = 1000


class TraceWorkload:
    """Asks a trace's queries; what it writes holds all hits of each step."""

    inline_query = True
    reads_scores = True

    def __init__(self, traces: list[list[Query]], step_s: float) -> None:
        self._traces, self._step_s = traces, step_s

    def start(self, request: Request) -> tuple[str, ...]:
        return (request.prompt,)

    def query(self, state: tuple[str, ...]) -> Query | None:
        trace = self._traces[int(state[0])]
        return trace[len(state) - 1] if len(state) <= len(trace) else None

    def extend(self, state: tuple[str, ...], hits: Hits, progress: Progress) -> tuple[str, ...]:
        end_s = time.perf_counter() + self._step_s
        while (left_s := end_s - time.perf_counter()) > 0:
            progress.check()
            time.sleep(min(0.002, left_s))
        return (*state, " ".join(f"{hit.passage.id}={hit.score!r}" for hit in hits))

    def text(self, state: tuple[str, ...]) -> str:
        return "\n".join(state)

    def settled(self, state: tuple[str, ...]) -> str:
        return self.text(state)

    def query_key(self, state: tuple[str, ...]) -> Any:
        return state[0], len(state)

    def extend_key(self, state: tuple[str, ...], hits: Hits) -> Any:
        return state, hits

    def release(self, state: tuple[str, ...]) -> None:
        return None


def load(data: Path, count: int) -> tuple[DenseCorpus, list[list[Query]]]:
    """Read the traces, and pad the passages to so many."""
    with np.load(data / "trace_vectors.npz") as files:
        real, asked = files["docs"].astype(np.float32), files["q"].astype(np.float32)
    padding = clustered_vectors(max(0, count - len(real)), real.shape[1], 0)
    vectors = np.concatenate([real, padding])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    passages = [Passage(f"p{row:08d}", "") for row in range(len(vectors))]
    traces = [
        [Query(f"{trace}.{step}", vector, key=(trace, step)) for step, vector in enumerate(queries)]
        for trace, queries in enumerate(asked)
    ]
    return DenseCorpus(passages, vectors), traces


def share(flags: list[bool]) -> float:
    """Give the share of true ones."""
    return round(sum(flags) / len(flags), 3)


def pool_guesses(
    retriever: FaissApproximate,
    traces: list[list[Query]],
    truths: list[list[Hits]],
    taught: list[list[Hits]],
) -> dict[str, float]:
    """Walk the traces: guess, compare, learn. A better guess has a higher sum of scores."""
    right, better = [], []
    for trace, truth, lessons in zip(traces, truths, taught, strict=True):
        pool = PassageCache(retriever, capacity=CAPACITY)
        for query, hits, lesson in zip(trace, truth, lessons, strict=True):
            guess = pool.guess(query)
            right.append(guess == hits)
            better.append(guess is not None and total(guess) > total(hits))
            pool.learn(query, lesson)
    return {"right": share(right), "knew_better": share(better)}


def total(hits: Hits) -> float:
    """Add up the scores."""
    return sum(hit.score or 0.0 for hit in hits)


def guess_rates(corpus: DenseCorpus, index: FaissApproximate, k: int, traces: Any) -> Any:
    """Measure both roles of one index at one k."""
    exact = NumpyFlat(corpus, k=k)
    approximate = FaissApproximate(corpus, index.index, k=k)
    wide = [exact.search_wide(trace, 20 * k) for trace in traces]
    found = [approximate.search(trace) for trace in traces]
    pairs = [
        (f, w[:k]) for fs, ws in zip(found, wide, strict=True) for f, w in zip(fs, ws, strict=True)
    ]
    hit = [h in truth for f, truth in pairs for h in f]
    return {
        "recall": share(hit),
        "replica_right": share([f == truth for f, truth in pairs]),
        "verified_pool_own_k": pool_guesses(approximate, traces, found, found),
        "verified_pool_exact_20k": pool_guesses(approximate, traces, found, wide),
    }


def seconds(
    ways: dict[str, Callable[[str], Any]], prompts: list[str], runs: int
) -> dict[str, dict[str, float]]:
    """Time each way over the prompts, interleaved: seconds a request."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, answer in ways.items():
            for prompt in prompts:
                started_s = time.perf_counter()
                answer(prompt)
                times[name].append(time.perf_counter() - started_s)
    return {
        name: {
            "median_s": round(statistics.median(each), 4),
            "min_s": round(min(each), 4),
            "max_s": round(max(each), 4),
        }
        for name, each in times.items()
    }


def requests(
    corpus: DenseCorpus, index: FaissApproximate, traces: Any, options: argparse.Namespace
) -> Any:
    """Answer requests plainly and with either role, and hold every answer to the plain one."""
    k = options.request_k
    exact = NumpyFlat(corpus, k=k)
    approximate = FaissApproximate(corpus, index.index, k=k)
    workload = TraceWorkload(traces, options.step_ms / 1000)
    replica = Settings(speculators=(Replica(approximate, exact),))
    prompts = [str(number) for number in range(options.requests)]
    guesses: dict[str, list[float]] = {"exact, replica": [], "approximate, pool": []}
    with Engine(workload, exact, replica) as front, Engine(workload, approximate) as verified:
        true = {
            "exact, replica": {p: plain(workload, exact, Request(prompt=p)) for p in prompts},
            "approximate, pool": {
                p: plain(workload, approximate, Request(prompt=p)) for p in prompts
            },
        }

        def checked(name: str, engine: Engine) -> Callable[[str], None]:
            def answer(prompt: str) -> None:
                found = engine.run(prompt)
                assert found == true[name][prompt], (
                    f"{name}: request {prompt} is answered otherwise"
                )
                guesses[name] += [rate for rate in [found.stats.guess_rate] if rate is not None]

            return answer

        result: dict[str, Any] = seconds(
            {
                "exact, plain": lambda p: plain(workload, exact, Request(prompt=p)),
                "exact, replica": checked("exact, replica", front),
                "approximate, plain": lambda p: plain(workload, approximate, Request(prompt=p)),
                "approximate, pool": checked("approximate, pool", verified),
            },
            prompts,
            options.runs,
        )
    for name, rates in guesses.items():
        # None: guessing could not pay, so the engine made no guess
        result[name]["accepted"] = round(statistics.mean(rates), 3) if rates else None
    return result


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("data", type=Path)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--traces", type=int, default=60)
    parser.add_argument("--k", type=int, nargs="+", default=[1, 4, 10])
    parser.add_argument("--request-k", type=int, default=4)
    parser.add_argument("--requests", type=int, default=3)
    parser.add_argument("--step-ms", type=float, default=10.0)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    corpus, traces = load(options.data, options.passages)
    traces = traces[: options.traces]
    settings = {
        name: value for name, value in vars(options).items() if name not in ("data", "output")
    }
    result: dict[str, Any] = {"settings": settings, **surroundings(), "indexes": {}}
    for name, recipe in RECIPES.items():
        index = FaissApproximate.build(corpus.passages, recipe=recipe(), vectors=corpus.vectors)
        rates = {str(k): guess_rates(corpus, index, k, traces) for k in options.k}
        timed = requests(corpus, index, traces, options)
        result["indexes"][name] = {"guesses": rates, "requests": timed, "equal_outputs": True}
        print(name, json.dumps(result["indexes"][name], indent=1), flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
