"""Measure what merging the searches of concurrent callers gains over exact search.

    python benchmarks/verifier.py --passages 1000000 --dimension 384

Two things, each side by side in one process, interleaved over the repetitions:

- searches a second: n callers in threads, each asking one query after another, of
  the retriever itself (with BLAS's threads, and with own threads) and through a
  `Verifier`; what is found is asserted equal.
- requests a second: n concurrent requests of 8 retrievals each, whose queries
  drift, without a model: the plain loop and `Engine.run` in n threads each, and
  `Engine.batch`, which merges. Every answer is asserted equal to the plain one.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from batch_curves_data import unit_vectors

from benchmarks.harness.results import surroundings
from ralmspec_plugins import Engine, Request, Verifier, plain
from ralmspec_plugins.protocols import Retriever
from ralmspec_plugins.retrieval.dense import DenseCorpus
from ralmspec_plugins.retrieval.numpy_flat import NumpyFlat
from ralmspec_plugins.testing import EchoWorkload
from ralmspec_plugins.types import Hits, Passage, Query

CALLERS = (1, 4, 16, 64)
STEPS = 8  # retrievals of one request
RESULTS = Path(__file__).parent / "results" / "verifier.json"


class Drift:
    """Encodes "request.step": each request has a direction that its queries stray from."""

    name = "drift"
    inline = True

    def __init__(self, dimension: int, requests: int) -> None:
        self.starts = unit_vectors(requests, dimension, 17)
        self.strays = unit_vectors(requests * STEPS, dimension, 18)

    def __call__(self, text: str) -> Any:
        request, step = map(int, text.split("."))
        vector = self.starts[request] + 0.15 * self.strays[request * STEPS + step]
        return vector / np.linalg.norm(vector)


def side_by_side(
    ways: dict[str, Callable[[], Any]], repetitions: int, done: int, check: Callable[[Any], bool]
) -> dict[str, dict[str, float]]:
    """Time each way in turn, several times: things done a second, median and spread."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for repetition in range(repetitions + 1):
        for name, way in ways.items():
            began_s = time.perf_counter()
            found = way()
            seconds = time.perf_counter() - began_s
            assert check(found), f"{name} differs"
            if repetition:  # the first is for warming up
                rates[name].append(done / seconds)
    return {
        name: {
            "per_second": round(statistics.median(rate), 3),
            "least": round(min(rate), 3),
            "most": round(max(rate), 3),
        }
        for name, rate in rates.items()
    }


def searching(
    retriever: Retriever, queries: Sequence[Query], callers: int
) -> Callable[[], list[Hits]]:
    """Have each of n callers ask his share of the queries, one after the other."""
    shares = [queries[caller::callers] for caller in range(callers)]

    def run() -> list[Hits]:
        with ThreadPoolExecutor(callers) as threads:
            parts = list(
                threads.map(lambda share: [retriever.search([query])[0] for query in share], shares)
            )
        found: list[Hits] = [()] * len(queries)
        for caller, part in enumerate(parts):
            found[caller::callers] = part
        return found

    return run


def in_threads(callers: int, answer: Callable[[str], Any], prompts: Sequence[str]) -> list[Any]:
    """Answer prompts in n threads."""
    with ThreadPoolExecutor(callers) as threads:
        return list(threads.map(answer, prompts))


def main() -> None:
    """Measure, print, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--request-repetitions", type=int, default=3)
    parser.add_argument("--searches", type=int, default=64, help="in a run")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--only-requests", action="store_true", help="keep the searches there are")
    options = parser.parse_args()
    passages = [Passage(f"p{row:08d}", str(row)) for row in range(options.passages)]
    drift = Drift(options.dimension, max(CALLERS))
    vectors = unit_vectors(options.passages, options.dimension, 0)
    corpus = DenseCorpus(passages, vectors, drift)
    blas = NumpyFlat(corpus, k=4)
    asked = unit_vectors(options.searches, options.dimension, 1)
    queries = [Query(str(row), vector) for row, vector in enumerate(asked)]
    truth = [blas.search([query])[0] for query in queries]
    result: dict[str, Any] = {
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        **surroundings(),
        "equal_outputs": True,
        "searches": {},
        "requests": {},
    }
    if options.only_requests:
        result["searches"] = json.loads(options.output.read_text())["searches"]
    for callers in () if options.only_requests else CALLERS:  # before own threads hold BLAS to one
        result["searches"][str(callers)] = side_by_side(
            {"alone, BLAS threads": searching(blas, queries, callers)},
            options.repetitions,
            len(queries),
            lambda found: found == truth,
        )
    store = NumpyFlat(corpus, k=4, threads=options.threads)
    single = NumpyFlat(corpus, k=4)  # made now, it knows that BLAS has one thread
    for callers in () if options.only_requests else CALLERS:
        with Verifier(store) as verifier:
            found = side_by_side(
                {
                    "alone, own threads": searching(store, queries, callers),
                    "alone, one thread a search": searching(single, queries, callers),
                    "merged": searching(verifier, queries, callers),
                },
                options.repetitions,
                len(queries),
                lambda found: found == truth,
            )
            row = result["searches"][str(callers)] | found
            best = max(row[name]["per_second"] for name in row if name.startswith("alone"))
            row["merged"]["mean_batch"] = round(verifier.stats.mean_batch or 0, 2)
            row["merged"]["times_own_threads"] = round(
                row["merged"]["per_second"] / row["alone, own threads"]["per_second"], 2
            )
            row["merged"]["times_best_alone"] = round(row["merged"]["per_second"] / best, 2)
            result["searches"][str(callers)] = row
        print(callers, json.dumps(row), flush=True)
    for callers in CALLERS:
        result["requests"][str(callers)] = requests(store, callers, options.request_repetitions)
        print(callers, json.dumps(result["requests"][str(callers)]), flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")


def requests(store: NumpyFlat, callers: int, repetitions: int) -> dict[str, dict[str, float]]:
    """Answer n requests at once, merged and not."""
    prompts = [" ".join(f"{request}.{step}" for step in range(STEPS)) for request in range(callers)]
    workload = EchoWorkload()
    truth = [plain(workload, store, Request(prompt=prompt)).text for prompt in prompts]

    def batched() -> list[Any]:
        with Engine(workload, store) as fresh:  # whose pool knows nothing of earlier repetitions
            return fresh.batch(prompts, max_concurrency=callers)

    def singly() -> list[Any]:
        with Engine(workload, store) as fresh:
            return in_threads(callers, fresh.run, prompts)

    return side_by_side(
        {
            "plain, alone": lambda: in_threads(
                callers, lambda prompt: plain(workload, store, Request(prompt=prompt)), prompts
            ),
            "speculative, alone": singly,
            "speculative, merged": batched,
        },
        repetitions,
        len(prompts),
        lambda answers: [answer.text for answer in answers] == truth,
    )


if __name__ == "__main__":
    main()
