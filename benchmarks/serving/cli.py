"""`python -m benchmarks serving`: requests a second and their times, by the number of clients.

The server runs in a process of its own, the clients in this one. Plain and speculative requests
take turns in short rounds, and each answer is compared with one that is worked out without an
engine. With it: how many searches were merged, how late the event loop was, and how soon the
server was free after a client had left.

    python -m benchmarks serving --out results/serving.json
"""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated, Any, Final

import httpx
import typer

from benchmarks.harness.results import surroundings
from benchmarks.serving.application import expected
from ralmspec_plugins.errors import ConfigError

WAYS: Final = ("plain", "speculative")
_LINE: Final = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")


@contextmanager
def started(search_s: float, query_s: float, write_s: float) -> Iterator[str]:
    """Run the server in a process of its own; give its address."""
    command = [sys.executable, "-m", "benchmarks.serving.application"]
    times = [str(one) for one in (search_s, query_s, write_s)]
    with subprocess.Popen([*command, *times], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.terminate()


async def metrics(client: httpx.AsyncClient, url: str) -> dict[str, float]:
    """Return the server's metrics by name and labels."""
    text = (await client.get(f"{url.removesuffix('/v1')}/metrics")).text
    found = filter(None, map(_LINE.match, text.splitlines()))
    return {f"{one[1]}{{{one[2] or ''}}}": float(one[3]) for one in found}


async def asked(client: httpx.AsyncClient, url: str, model: str, prompt: str) -> float:
    """Ask once in a stream, check the answer, and return its seconds."""
    messages = [{"role": "user", "content": prompt}]
    started_s, text = time.perf_counter(), ""
    async with client.stream(
        "POST",
        f"{url}/chat/completions",
        json={"model": model, "messages": messages, "stream": True},
    ) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    text += choice["delta"].get("content", "")
    taken_s = time.perf_counter() - started_s
    assert text == expected(prompt), (model, prompt, response.status_code)
    return taken_s


async def round_of(
    client: httpx.AsyncClient, url: str, model: str, clients: int, prompts: list[str]
) -> dict[str, Any]:
    """Let clients ask one question after the other, and measure all of it."""
    left = iter(prompts)
    seconds: list[float] = []

    async def one() -> None:
        for prompt in left:
            seconds.append(await asked(client, url, model, prompt))  # noqa: PERF401 shared

    before = await metrics(client, url)
    started_s = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    all_s = time.perf_counter() - started_s
    after = await metrics(client, url)
    grown = {name: value - before.get(name, 0.0) for name, value in after.items()}
    return {"seconds": seconds, "all_s": all_s, "grown": grown}


def row(model: str, clients: int, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the rounds of one model and one number of clients come to."""
    seconds = [one for found in rounds for one in found["seconds"]]
    cuts = quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else seconds * 99

    def total(name: str, labels: str = "") -> float:
        return sum(found["grown"].get(f"{name}{{{labels}}}", 0.0) for found in rounds)

    def merged(kind: str) -> float:
        return total("ralmspec_verifier_total", f'kind="{kind}",model="{model}"') or total(
            "ralmspec_verifier_total", f'model="{model}",kind="{kind}"'
        )

    ticks = total("ralmspec_event_loop_lag_seconds_count")
    late = {
        limit: ticks - total("ralmspec_event_loop_lag_seconds_bucket", f'le="{limit}"')
        for limit in ("0.005", "0.01", "0.02", "0.05")
    }
    searches = merged("searches")
    return {
        "model": model,
        "clients": clients,
        "requests": len(seconds),
        "per_second": len(seconds) / sum(found["all_s"] for found in rounds),
        "p50_s": cuts[49],
        "p95_s": cuts[94],
        "p99_s": cuts[98],
        "calls": merged("calls"),
        "searches": searches,
        "queries_per_search": merged("queries") / searches if searches else None,
        "loop_ticks": ticks,
        "loop_later_than": late,
        "round_per_second": [len(found["seconds"]) / found["all_s"] for found in rounds],
    }


async def freed_s(client: httpx.AsyncClient, url: str) -> float:
    """Leave a stream after its first text; return how long the server still counted it."""
    body = {"model": "plain", "messages": [{"role": "user", "content": "left"}], "stream": True}
    async with client.stream("POST", f"{url}/chat/completions", json=body) as response:
        await anext(response.aiter_lines())
    left_s = time.perf_counter()
    while (await metrics(client, url))["ralmspec_running{}"]:
        await asyncio.sleep(0)
    return time.perf_counter() - left_s


async def measured(url: str, clients: list[int], requests: int, rounds: int) -> dict[str, Any]:
    """Measure all numbers of clients, ways in turn."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=max(clients))
    async with httpx.AsyncClient(limits=limits, timeout=120, trust_env=False) as client:
        for way in WAYS:
            await asked(client, url, way, "warm-up")
        rows = []
        for number in clients:
            each = max(number, requests)
            found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
            for turn in range(rounds):
                prompts = [f"question {turn} {at}" for at in range(each)]
                for way in WAYS if turn % 2 == 0 else reversed(WAYS):
                    found[way].append(await round_of(client, url, way, number, prompts))
            rows += [row(way, number, found[way]) for way in WAYS]
        left = [await freed_s(client, url) for _ in range(10)]
    return {"rows": rows, "freed_s": left}


def serving(
    out: Annotated[Path, typer.Option(help="the file of the results")],
    clients: Annotated[str, typer.Option(help="numbers of clients at once")] = "1,8,32,128,200",
    requests: Annotated[int, typer.Option(help="requests of a round, at least")] = 24,
    rounds: Annotated[int, typer.Option(help="rounds of each way")] = 5,
    search_ms: Annotated[float, typer.Option(help="a search's round trip")] = 40.0,
    query_ms: Annotated[float, typer.Option(help="what each query of a search adds")] = 0.5,
    write_ms: Annotated[float, typer.Option(help="a step of the model")] = 30.0,
) -> None:
    """Measure the server under load, plain and speculative."""
    try:
        numbers = [int(one) for one in clients.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1 or requests < 1 or rounds < 1:
        raise ConfigError("clients, requests and rounds must be whole numbers of at least 1")
    times = {"search_s": search_ms / 1e3, "query_s": query_ms / 1e3, "write_s": write_ms / 1e3}
    with started(**times) as url:
        found = asyncio.run(measured(url, numbers, requests, rounds))
    result = {"surroundings": surroundings(), **times, **found}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for line in table(result):
        print(line)


def table(result: dict[str, Any]) -> list[str]:
    """Return the results as a table in Markdown, and what a client that leaves costs."""
    head = (
        "| clients | model | requests a second | p50 | p95 | p99 | queries a search | loop late |"
    )
    lines = [head, "|" + " --- |" * 8]
    for one in result["rows"]:
        times = " | ".join(f"{1000 * one[name]:.0f} ms" for name in ("p50_s", "p95_s", "p99_s"))
        late = one["loop_later_than"]["0.02"] / one["loop_ticks"] if one["loop_ticks"] else 0.0
        lines.append(
            f"| {one['clients']} | {one['model']} | {one['per_second']:.1f} | {times} "
            f"| {one['queries_per_search'] or 0:.1f} | {100 * late:.2f} % |"
        )
    left = [1000 * one for one in result["freed_s"]]
    lines.append(f"\nFree after a client left: {median(left):.0f} ms, at most {max(left):.0f} ms.")
    return lines
