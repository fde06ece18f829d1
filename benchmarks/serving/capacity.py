"""`python -m benchmarks capacity`: a local Ray cluster beside what virtual time foretells of it.

Requests are sent at the same moment, plain and speculative in turn, to the server of
docs/serving.md on a cluster of this machine; the same requests are answered in virtual time,
as for the capacity figures there. Real are the cluster, its processes, HTTP and the engines; store
and model wait for given times. Two numbers are measured first: what a step costs more than its
search and its segment, with single requests, and how many requests a second the processors take
on, with a crowd whose store and model take no time; all else is foretold. Each answer, measured or
simulated, is compared with one that is worked out without an engine.

    python -m benchmarks capacity --out results/capacity.json

The file is written after each number of requests. A run that was interrupted goes on with what the
file lacks; runs with other times add to it.
"""

import asyncio
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
_INSTANT: Final = "instant"  # the model whose store and segments take no time, answered plainly
_CROWD: Final = 64  # its requests at once
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
    admission_s: float = 0.0  # between two requests of a crowd, for the processors' sake

    def batch_s(self, queries: int) -> float:
        """Return the time of a search of so many queries, from the engine and back."""
        return self.search_s + self.query_s * queries + self.hop_s


@dataclass(frozen=True, slots=True)
class Round:
    """Requests that were sent at the same moment."""

    wall_s: float
    each_s: tuple[float, ...]
    busy: float | None = None  # share of the machine's processors that was in use


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
        settings = Settings(speculate=way == "speculative", pool=SharedPassageCache())
        self._admission_s = times.admission_s
        self._simulation = LoadSimulation(
            InstantWalk(0.0), InstantStore(), latencies, settings, lanes=_LANES
        )

    def round(self, prompts: Sequence[str]) -> Round:
        """Answer these requests, which are sent at the same moment and admitted in turn."""
        found = self._simulation.run(
            prompts, [at * self._admission_s for at in range(len(prompts))]
        )
        for prompt, answer in zip(prompts, found.answers, strict=True):
            assert answer.text == expected(prompt), prompt
        return Round(found.wall_s, found.ended_s)


# On a cluster.


def _store(times: Times, _: str) -> WaitingStore:
    return WaitingStore(times.search_s, times.query_s)


def _engine(times: Times, way: str, store: Any) -> AsyncEngine:
    settings = Settings(speculate=way == "speculative", pool=SharedPassageCache())
    return AsyncEngine(Walk(times.write_s), store, settings)


@contextmanager
def cluster(times: Times) -> Iterator[str]:
    """Serve both ways on a Ray cluster of this machine; give the URL of the API."""
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    os.environ.update(_ENVIRONMENT, PYTHONPATH=path)  # which replicas have, too
    import ray
    from ray import serve

    from ralmspec_plugins.serving import Limits
    from ralmspec_plugins.serving.ray import ClusterModel, application

    models = {
        name: ClusterModel(
            retriever=partial(_store, own), engine=partial(_engine, own, name), lanes=_LANES
        )
        for name, own in {**dict.fromkeys(WAYS, times), _INSTANT: Times(0.0, 0.0, 0.0)}.items()
    }
    one = {"num_replicas": 1, "max_ongoing_requests": _MOST, "ray_actor_options": {"num_cpus": 0.5}}
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 << 20,
        _node_ip_address="127.0.0.1",
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
        ray.shutdown()  # of a cluster that was started here: Serve ends with it


async def _round(client: httpx.AsyncClient, url: str, way: str, prompts: Sequence[str]) -> Round:
    began_s, before = time.perf_counter(), _ticks()
    each_s = await asyncio.gather(*(asked(client, url, way, prompt) for prompt in prompts))
    return Round(time.perf_counter() - began_s, tuple(each_s), _share(before, _ticks()))


def busy_for(seconds: float) -> float | None:
    """Watch the machine for a while; return the share of its processors that is in use."""
    before = _ticks()
    time.sleep(seconds)
    return _share(before, _ticks())


def _share(before: tuple[int, int], after: tuple[int, int]) -> float | None:
    used, idle = (then - at for at, then in zip(before, after, strict=True))
    return used / (used + idle) if used + idle else None


def _ticks() -> tuple[int, int]:
    """Return how long the machine's processors were in use and idle, nothing where none says so."""
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
    except OSError:
        return 0, 0
    user, nice, system, idle, waiting, *others = map(int, line.split()[1:9])
    return user + nice + system + sum(others), idle + waiting


async def _rounds(
    url: str, ways: Sequence[str], rounds: Sequence[Sequence[str]]
) -> dict[str, list[Round]]:
    """Run the same rounds in each way, ways in turn."""
    found: dict[str, list[Round]] = {way: [] for way in ways}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=_MOST)
    async with httpx.AsyncClient(limits=limits, timeout=120, trust_env=False) as client:
        for number, prompts in enumerate(rounds):
            for way in ways if number % 2 == 0 else reversed(ways):
                found[way].append(await _round(client, url, way, prompts))
    return found


# Both.


def prompts_of(name: str, count: int, rounds: int) -> list[list[str]]:
    """Return the requests of some rounds, all of them different."""
    return [[f"question {name} {number} {at}" for at in range(count)] for number in range(rounds)]


def hop_of(singles: Sequence[Round], times: Times) -> float:
    """Return what a step of a single plain request takes more than was asked of its parts."""
    expected_s = Foreteller("plain", times).round(["question"]).wall_s
    return max(0.0, (median(one.wall_s for one in singles) - expected_s) / STEPS)


def measured_times(url: str, times: Times, rounds: int) -> Times:
    """Return the times with what a step, and what a request, costs besides."""
    singles = asyncio.run(_rounds(url, ["plain"], prompts_of("single", 1, rounds)))["plain"]
    crowds = asyncio.run(_rounds(url, [_INSTANT], prompts_of("crowd", _CROWD, rounds)))[_INSTANT]
    admission_s = median(one.wall_s for one in crowds) / _CROWD
    return replace(times, hop_s=hop_of(singles, times), admission_s=admission_s)


def compared(
    url: str, times: Times, counts: Sequence[int], rounds: int
) -> Iterator[tuple[Times, list[dict[str, Any]]]]:
    """Yield for each number of requests all times that were foretold with, and the rows."""
    warming = prompts_of("warm-up", 1, 1)
    asyncio.run(_rounds(url, (*WAYS, _INSTANT), warming))
    times = measured_times(url, times, rounds)
    tellers = {way: Foreteller(way, times) for way in WAYS}
    for teller in tellers.values():
        teller.round(warming[0])
    for count in counts:
        prompts = prompts_of(f"of {count}", count, rounds)
        real = asyncio.run(_rounds(url, WAYS, prompts))
        virtual = {way: [teller.round(one) for one in prompts] for way, teller in tellers.items()}
        yield times, [row_of(way, count, real[way], virtual[way]) for way in WAYS]


def row_of(way: str, count: int, real: Sequence[Round], virtual: Sequence[Round]) -> dict[str, Any]:
    """Return what rounds of so many requests came to, what was foretold, and how wrongly."""
    shares = [one.busy for one in real if one.busy is not None]
    rates = [[count / one.wall_s for one in rounds] for rounds in (real, virtual)]
    rate, foretold_rate = map(median, rates)
    waits = [median(s for one in rounds for s in one.each_s) for rounds in (real, virtual)]
    return {
        "way": way,
        "at_once": count,
        "per_second": rate,
        "per_second_of_rounds": rates[0],
        "foretold_per_second": foretold_rate,
        "per_second_error": foretold_rate / rate - 1,
        "median_s": waits[0],
        "foretold_median_s": waits[1],
        "median_error": waits[1] / waits[0] - 1,
        "busy": median(shares) if shares else None,
    }


class Record:
    """The file of the results: a session for each run, with the rows of its numbers."""

    def __init__(self, path: Path, times: Times, rounds: int) -> None:
        """Read what the file has of this commit."""
        self._path = path
        self._session: dict[str, Any] = {
            "surroundings": {**surroundings(), "busy_before": busy_for(2.0)},
            "search_s": times.search_s,
            "query_s": times.query_s,
            "write_s": times.write_s,
            "lanes": _LANES,
            "steps": STEPS,
            "rounds": rounds,
            "rows": [],
        }
        self._before: list[dict[str, Any]] = []
        if path.exists():
            self._before = [
                one
                for one in json.loads(path.read_text(encoding="utf-8"))["sessions"]
                if self._commit(one) == self._commit(self._session)
            ]

    @staticmethod
    def _commit(session: dict[str, Any]) -> Any:
        return session["surroundings"]["commit"]

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """All sessions that have rows."""
        return [*self._before, *([self._session] if self._session["rows"] else [])]

    def lacking(self, counts: Sequence[int]) -> list[int]:
        """Return the numbers that were not measured with the same times."""
        names = ("search_s", "query_s", "write_s", "lanes", "steps", "rounds")
        same = [
            one for one in self._before if all(one[name] == self._session[name] for name in names)
        ]
        known = {row["at_once"] for one in same for row in one["rows"]}
        return [count for count in counts if count not in known]

    def add(self, times: Times, rows: Sequence[dict[str, Any]]) -> None:
        """Write rows into the file."""
        self._session |= {"hop_s": times.hop_s, "admission_s": times.admission_s}
        self._session["rows"] += rows
        self._path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"sessions": self.sessions}, indent=1)
        self._path.write_text(f"{text}\n", encoding="utf-8")


def capacity(
    out: Annotated[Path, typer.Option(help="the file of the results, which is added to")],
    at_once: Annotated[str, typer.Option(help="numbers of requests at once")] = "4,16,64",
    rounds: Annotated[int, typer.Option(help="rounds of each number and way", min=1)] = 5,
    search_ms: Annotated[float, typer.Option(help="a search's round trip", min=0)] = 400.0,
    query_ms: Annotated[float, typer.Option(help="what each query adds", min=0)] = 5.0,
    write_ms: Annotated[float, typer.Option(help="a step of the model", min=0)] = 300.0,
) -> None:
    """Compare a local Ray cluster with the same requests in virtual time."""
    try:
        counts = [int(one) for one in at_once.split(",")]
    except ValueError:
        counts = []
    if not counts or not 1 <= min(counts) <= max(counts) <= _MOST:
        raise ConfigError(f"at_once must be whole numbers from 1 to {_MOST}, got {at_once!r}")
    times = Times(search_ms / 1e3, query_ms / 1e3, write_ms / 1e3)
    record = Record(out, times, rounds)
    if lacking := record.lacking(counts):
        with cluster(times) as url:
            for measured, rows in compared(url, times, lacking, rounds):
                record.add(measured, rows)
    for line in table(record.sessions):
        print(line)


def table(sessions: Sequence[dict[str, Any]]) -> list[str]:
    """Return the results as a table in Markdown."""
    head = (
        "| a search | at once | way | requests a second | predicted | error "
        "| median | predicted | error | processors in use |"
    )
    lines = [head, "|" + " --- |" * 10]
    for session in sessions:
        store = f"{1e3 * session['search_s']:g} ms + {1e3 * session['query_s']:g} ms a query"
        lines += [
            f"| {store} | {one['at_once']} | {one['way']} "
            f"| {one['per_second']:.2f} | {one['foretold_per_second']:.2f} "
            f"| {100 * one['per_second_error']:+.0f} % "
            f"| {one['median_s']:.2f} s | {one['foretold_median_s']:.2f} s "
            f"| {100 * one['median_error']:+.0f} % "
            f"| {'unknown' if one['busy'] is None else format(one['busy'], '.0%')} |"
            for one in session["rows"]
        ]
    lines += [
        f"\nWith {1e3 * session['search_s']:g} ms + {1e3 * session['query_s']:g} ms: a step's "
        f"calls between processes {1e3 * session['hop_s']:.1f} ms, at most "
        f"{1 / session['admission_s']:.1f} requests a second by the processors."
        for session in sessions
    ]
    return lines
