"""Measure what the loop and its engines cost a step, with a free model and a free retriever.

The plain loop is subtracted; medians and quartiles of interleaved repetitions.

    python benchmarks/overhead.py benchmarks/results/overhead.json
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

from benchmarks.harness.results import surroundings
from ralmspec_plugins import (
    AsyncEngine,
    Continuous,
    Engine,
    FixedStride,
    Hit,
    Hits,
    OptimalStride,
    Passage,
    Query,
    Request,
    Settings,
    plain,
)
from ralmspec_plugins.effects import Completion, Work
from ralmspec_plugins.engine.context import RequestContext
from ralmspec_plugins.engine.session import Session
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.scheduling.schedules import Schedule

STEPS = 400
REPETITIONS = 15
LIMITS_US = {"inline": 50.0, "threads": 150.0, "asyncio": 250.0}


class FreeWorkload:
    """Counts to the end."""

    inline_query = True
    reads_scores = False

    def start(self, request: Request) -> int:
        return 0

    def query(self, state: int) -> str | None:
        return str(state) if state < STEPS else None

    def extend(self, state: int, hits: Hits, progress: Progress) -> int:
        return state + 1

    async def aextend(self, state: int, hits: Hits, progress: Progress) -> int:
        return state + 1

    def text(self, state: int) -> str:
        return ""

    def settled(self, state: int) -> str:
        return ""

    def query_key(self, state: int) -> Hashable:
        return state

    def extend_key(self, state: int, hits: Hits) -> Hashable:
        return state

    def release(self, state: int) -> None:
        pass


class FreeRetriever:
    """Finds the same passage for every query."""

    inline_encode = True
    signature = "free"
    hits = (Hit(Passage("p", "text"), 1.0),)

    def encode(self, text: str) -> Query:
        return Query(text)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        return [self.hits] * len(queries)

    async def asearch(self, queries: Sequence[Query]) -> list[Hits]:
        return [self.hits] * len(queries)


class FreeGuesser:
    """Always right."""

    inline = True

    def guess(self, query: Query) -> Hits:
        return FreeRetriever.hits

    def learn(self, query: Query, hits: Hits) -> None:
        pass


def run_inline(settings: Settings) -> None:
    """Drive the loop in this thread: each need is carried out when it is asked for."""
    context = RequestContext(Session(FreeWorkload(), FreeRetriever(), settings), Request(prompt=""))
    completed: list[Completion] = []
    needs = next(context.flow)
    while True:
        for need in needs:
            if isinstance(need, Work):
                context.carry_out(need, time.perf_counter, completed.append)
            else:
                context.note(need)
        if context.finish is not None:
            return
        needs = context.flow.send(completed.pop(0))


def main() -> int:
    """Print the table, write the result, and fail above a limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    options = parser.parse_args()
    rows, failed = [], False
    for schedule in (Continuous(), FixedStride(stride=3), OptimalStride()):
        for engine, measured in measure(schedule).items():
            low, middle, high = statistics.quantiles(measured, n=4)
            good = middle <= LIMITS_US[engine]
            failed |= not good
            rows.append(
                {
                    "schedule": repr(schedule),
                    "engine": engine,
                    "us_per_step": {"median": middle, "quartiles": [low, high]},
                    "limit_us": LIMITS_US[engine],
                }
            )
            print(
                f"{type(schedule).__name__:14} {engine:8} {middle:7.1f} us a step "
                f"({low:.1f} to {high:.1f}), limit {LIMITS_US[engine]:.0f}"
            )
    result = {
        "what": "microseconds a step on top of the plain loop",
        "steps": STEPS,
        "repetitions": REPETITIONS,
        **surroundings(),
        "rows": rows,
    }
    options.result.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if failed else 0


def measure(schedule: Schedule) -> dict[str, list[float]]:
    """Time the plain loop and the three ways of driving, in turn."""
    settings = Settings(schedule=schedule, speculators=(FreeGuesser(),))
    request = Request(prompt="")
    measured: dict[str, list[float]] = {"inline": [], "threads": [], "asyncio": []}

    def timed(run: Callable[[], object]) -> float:
        began = time.perf_counter()
        run()
        return (time.perf_counter() - began) / STEPS * 1e6

    async def in_tasks() -> list[float]:
        async with AsyncEngine(FreeWorkload(), FreeRetriever(), settings) as engine:
            began = time.perf_counter()
            await engine.run(request)
            return [(time.perf_counter() - began) / STEPS * 1e6]

    with Engine(FreeWorkload(), FreeRetriever(), settings) as engine:
        engine.run(request)
        for _ in range(REPETITIONS):
            base = timed(lambda: plain(FreeWorkload(), FreeRetriever(), request))
            measured["inline"].append(timed(lambda: run_inline(settings)) - base)
            measured["threads"].append(timed(lambda: engine.run(request)) - base)
            measured["asyncio"].append(asyncio.run(in_tasks())[0] - base)
    return measured


if __name__ == "__main__":
    sys.exit(main())
