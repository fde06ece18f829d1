"""`python -m benchmarks capacity`: a local Ray cluster beside what virtual time foretells of it.

Requests are sent at the same moment, plain and speculative in turn, to the server of
docs/serving.md on a cluster of this machine; the same requests are answered in virtual time,
as for the capacity figures there. What a step costs more than its search and its segment is
measured with a single request; all else is foretold. Each answer, measured or simulated, is
compared with one that is worked out without an engine.

    python -m benchmarks capacity --out results/capacity.json
"""

import asyncio
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final

import httpx
import typer

from benchmarks.harness.results import surroundings
from benchmarks.serving.application import STEPS, WaitingStore, Walk, expected, passage_of
from benchmarks.serving.cli import WAYS, asked
from benchmarks.simulated.crowd import LoadSimulation
from ralmspec_plugins import AsyncEngine, Hit, Hits, Latencies, Query, Settings, SharedPassageCache
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.workloads import TextState

_ROOT: Final = Path(__file__).parents[2]
_LANES: Final = 2
_MOST: Final = 512  # requests at once
_ENVIRONMENT: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
    "RAY_worker_niceness": "0",
}


@dataclass(frozen=True, slots=True)
class Times:
    """How long each part of a step takes, in seconds."""

    search_s: float
    query_s: float
    write_s: float
    hop_s: float = 0.0  # of a step's calls between processes; counted with its search

    def batch_s(self, queries: int) -> float:
        """Return the time of a search of so many queries, from the engine and back."""
        return self.search_s + self.query_s * queries + self.hop_s


@dataclass(frozen=True, slots=True)
class Round:
    """Requests that were sent at the same moment."""

    wall_s: float
    each_s: tuple[float, ...]


# In virtual time.


class InstantStore:
    """The store of the benchmark, whose time is virtual."""

    signature = "topics"

    def encode(self, text: str) -> Query:
        """Return the query of a text."""
        return Query(text)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """Find the passage of each topic."""
        return [(Hit(passage_of(query.text), 1.0),) for query in queries]


class InstantWalk(Walk):
    """The model of the benchmark, whose time is virtual."""

    def extend(self, state: TextState, hits: Hits, progress: Progress) -> TextState:
        """Write a line."""
        return self.line(state, hits)


class Foreteller:
    """Answers rounds in virtual time, one after the other, as one server does."""

    def __init__(self, way: str, times: Times) -> None:
        """Begin with an empty passage cache."""
        latencies = Latencies(extend_s=times.write_s, search_s=times.batch_s)
        settings = Settings(speculate=way != "plain", pool=SharedPassageCache())
        self._simulation = LoadSimulation(
            InstantWalk(0.0), InstantStore(), latencies, settings, lanes=_LANES
        )

    def round(self, prompts: Sequence[str]) -> Round:
        """Answer these requests, which come at the same moment."""
        found = self._simulation.run(prompts)
        for prompt, answer in zip(prompts, found.answers, strict=True):
            assert answer.text == expected(prompt), prompt
        return Round(found.wall_s, tuple(found.latencies_s))


# On a cluster.


def _store(times: Times, _: str) -> WaitingStore:
    return WaitingStore(times.search_s, times.query_s)


def _engine(times: Times, way: str, store: Any) -> AsyncEngine:
    settings = Settings(speculate=way != "plain", pool=SharedPassageCache())
    return AsyncEngine(Walk(times.write_s), store, settings)


@contextmanager
def cluster(times: Times) -> Iterator[str]:
    """Serve both ways on a Ray cluster of this machine; give the URL of the API."""
    os.environ.update(_ENVIRONMENT)
    import ray
    from ray import serve

    from ralmspec_plugins.serving import Limits
    from ralmspec_plugins.serving.ray import ClusterModel, application

    models = {
        way: ClusterModel(
            retriever=partial(_store, times), engine=partial(_engine, times, way), lanes=_LANES
        )
        for way in WAYS
    }
    one = {"num_replicas": 1, "max_ongoing_requests": _MOST, "ray_actor_options": {"num_cpus": 0.5}}
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 << 20,
        _node_ip_address="127.0.0.1",
        runtime_env={"env_vars": {"PYTHONPATH": str(_ROOT)}},
    )
    try:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        limits = Limits(running=_MOST, waiting=_MOST)
        made = application(models, limits=limits, engines=one, retrieval=one)
        serve.run(made, route_prefix="/")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        serve.shutdown()
        ray.shutdown()


async def _round(client: httpx.AsyncClient, url: str, way: str, prompts: Sequence[str]) -> Round:
    began_s = time.perf_counter()
    each_s = await asyncio.gather(*(asked(client, url, way, prompt) for prompt in prompts))
    return Round(time.perf_counter() - began_s, tuple(each_s))


async def _measured(url: str, plan: "Plan") -> dict[str, list[Round]]:
    """Run the rounds of all ways, in turn."""
    found: dict[str, list[Round]] = {way: [] for way in WAYS}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=_MOST)
    async with httpx.AsyncClient(limits=limits, timeout=120, trust_env=False) as client:
        for number, prompts in enumerate(plan.prompts):
            for way in WAYS if number % 2 == 0 else reversed(WAYS):
                found[way].append(await _round(client, url, way, prompts))
    return found


@dataclass(frozen=True, slots=True)
class Plan:
    """The rounds: first single requests, of which the first warms up, then each number."""

    counts: Sequence[int]
    rounds: int

    @property
    def sizes(self) -> list[int]:
        """The number of requests of each round, in order."""
        return [1] * (1 + self.rounds) + [
            count for count in self.counts for _ in range(self.rounds)
        ]

    @property
    def prompts(self) -> list[list[str]]:
        """The requests of each round, all of them different."""
        return [
            [f"question {number} {at}" for at in range(size)]
            for number, size in enumerate(self.sizes)
        ]

    def rows(
        self, measured: dict[str, list[Round]], foretold: dict[str, list[Round]]
    ) -> list[dict[str, Any]]:
        """Return what the rounds of each number came to, and what was foretold of it."""
        rows = []
        for place, count in enumerate(self.counts, start=1):
            chosen = slice(1 + place * self.rounds, 1 + (place + 1) * self.rounds)
            for way in WAYS:
                real, virtual = measured[way][chosen], foretold[way][chosen]
                rows.append({"way": way, "at_once": count, **_compared(count, real, virtual)})
        return rows


def _compared(count: int, real: Sequence[Round], virtual: Sequence[Round]) -> dict[str, Any]:
    rates = [[count / one.wall_s for one in rounds] for rounds in (real, virtual)]
    waits = [median(s for one in rounds for s in one.each_s) for rounds in (real, virtual)]
    return {
        "per_second": median(rates[0]),
        "per_second_of_rounds": rates[0],
        "foretold_per_second": median(rates[1]),
        "median_s": waits[0],
        "foretold_median_s": waits[1],
    }


def hop_of(measured: Sequence[Round], plan: Plan, times: Times) -> float:
    """Return what a step of a single plain request takes more than was asked of its parts."""
    single = Foreteller("plain", times).round(["question"])
    real_s = median(one.wall_s for one in measured[1 : 1 + plan.rounds])
    return max(0.0, (real_s - single.wall_s) / STEPS)


def capacity(
    out: Annotated[Path, typer.Option(help="the file of the results")],
    at_once: Annotated[str, typer.Option(help="numbers of requests at once")] = "4,16,64",
    rounds: Annotated[int, typer.Option(help="rounds of each number and way", min=1)] = 5,
    search_ms: Annotated[float, typer.Option(help="a search's round trip", min=0)] = 200.0,
    query_ms: Annotated[float, typer.Option(help="what each query adds", min=0)] = 5.0,
    write_ms: Annotated[float, typer.Option(help="a step of the model", min=0)] = 150.0,
) -> None:
    """Compare a local Ray cluster with the same requests in virtual time."""
    try:
        plan = Plan([int(one) for one in at_once.split(",")], rounds)
    except ValueError:
        plan = Plan([], rounds)
    if not plan.counts or not 1 <= min(plan.counts) <= max(plan.counts) <= _MOST:
        raise ConfigError(f"at_once must be whole numbers from 1 to {_MOST}, got {at_once!r}")
    asked_for = Times(search_ms / 1e3, query_ms / 1e3, write_ms / 1e3)
    with cluster(asked_for) as url:
        measured = asyncio.run(_measured(url, plan))
    hop_s = hop_of(measured["plain"], plan, asked_for)
    times = Times(asked_for.search_s, asked_for.query_s, asked_for.write_s, hop_s)
    foretold = {}
    for way in WAYS:
        teller = Foreteller(way, times)
        foretold[way] = [teller.round(prompts) for prompts in plan.prompts]
    named = {"search_s": times.search_s, "query_s": times.query_s, "write_s": times.write_s}
    rows = plan.rows(measured, foretold)
    result = {"surroundings": surroundings(), **named, "hop_s": hop_s, "steps": STEPS, "rows": rows}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for line in table(result):
        print(line)


def table(result: dict[str, Any]) -> list[str]:
    """Return the results as a table in Markdown."""
    head = "| at once | way | requests a second | foretold | median | foretold |"
    lines = [head, "|" + " --- |" * 6]
    lines += [
        f"| {one['at_once']} | {one['way']} | {one['per_second']:.2f} "
        f"| {one['foretold_per_second']:.2f} | {one['median_s']:.2f} s "
        f"| {one['foretold_median_s']:.2f} s |"
        for one in result["rows"]
    ]
    lines.append(f"\nA step's calls between processes: {1000 * result['hop_s']:.1f} ms.")
    return lines
