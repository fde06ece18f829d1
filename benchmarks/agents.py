"""Measure agents that run ahead of their tools against the same agents without.

Model and tool wait, as a provider and a store on a network do; the model streams. The plain agent
and those ahead take turns in one process, and every answer is asserted equal. Several settings
are measured at the same time: they wait for most of it.

    python -m benchmarks agents --out results/agents.json --page results/agents.md

Rows are appended to the file as they are measured; those that are there are not measured again.
"""

import asyncio
import json
import time
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.agent_hosts import Contender, Setting, asked, contenders, found
from benchmarks.agent_page import page
from benchmarks.harness.results import surroundings
from ralmspec_plugins.errors import ConfigError

HOSTS = ("langchain", "llama_index")
CROWD = Setting("", tool_s=0.2, reply_s=0.15, right=0.9, calls=4)


def finite_bound_s(setting: Setting, rights: list[bool]) -> float:
    """Return the least time of a run whose guesses are right where it is said, at any depth.

    A step after a right guess begins when its model call ahead ends; after a wrong one, when the
    tool has returned.
    """
    replied = setting.reply_s  # when the reply that calls the next tool is there
    ends = 0.0
    for right in rights:
        returned = replied + setting.tool_s
        ends = max(ends, returned)
        replied = (replied if right else returned) + setting.reply_s
    return max(replied, ends)


async def timed(contender: Contender, question: str) -> tuple[float, str]:
    """Run an agent once; return its seconds and its answer."""
    started_s = time.perf_counter()
    answer = await contender.run(question)
    return time.perf_counter() - started_s, answer


async def measure(setting: Setting, repetitions: int) -> dict[str, Any]:
    """Time the plain agent, one call ahead, and as many ahead as it makes, in turn."""
    ways = contenders(setting, sorted({1, setting.calls}))
    for contender in ways.values():  # the first call of a model is never speculative
        await contender.run("warm-up")
    before = {name: contender.stats() for name, contender in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    rights = []
    for repetition in range(repetitions):
        question = f"question {repetition}"
        answers = set()
        for name, contender in ways.items():
            taken_s, answer = await timed(contender, question)
            seconds[name].append(taken_s)
            answers.add(answer)
        assert len(answers) == 1, answers
        assert found(asked(question, setting.calls - 1)) in answers.pop()
        rights.append(setting.rights(question))
    counts = {
        name: {key: value - getattr(before[name], key) for key, value in _dict(one).items()}
        for name, one in ways.items()
    }
    return {
        "kind": "agent",
        **asdict(setting),
        "seconds": seconds,
        "rights": rights,
        "bound_s": [finite_bound_s(setting, one) for one in rights],
        "counts": counts,
    }


def _dict(contender: Contender) -> dict[str, int]:
    return asdict(contender.stats())


async def crowd(host: str, agents: int, repetitions: int) -> dict[str, Any]:
    """Time many runs at once, over one agent object of each kind, in turn."""
    setting = Setting(host, CROWD.tool_s, CROWD.reply_s, CROWD.right, CROWD.calls)
    ways = contenders(setting, (1, setting.calls))
    for contender in ways.values():
        await contender.run("warm-up")
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for repetition in range(repetitions):
        for name, contender in ways.items():
            started_s, cpu_s = time.perf_counter(), time.process_time()
            runs = [timed(contender, f"question {repetition} {n}") for n in range(agents)]
            taken = sorted(one for one, _ in await asyncio.gather(*runs))
            rows[name].append(
                {
                    "all_s": time.perf_counter() - started_s,
                    "median_s": taken[len(taken) // 2],
                    "cpu_s": time.process_time() - cpu_s,
                }
            )
    about = surroundings()
    when = {"date": about["date"], "commit": about["commit"]}
    return {"kind": "crowd", **when, **asdict(setting), "agents": agents, "rows": rows}


def agents(
    out: Annotated[Path, typer.Option(help="where the rows go, a line of JSON each")],
    page_to: Annotated[Path | None, typer.Option("--page", help="where the page goes")] = None,
    repetitions: Annotated[int, typer.Option(help="runs of each agent")] = 5,
    at_once: Annotated[int, typer.Option(help="settings that are measured at the same time")] = 4,
    only: Annotated[str | None, typer.Option(help="the one host that is measured")] = None,
    small: Annotated[bool, typer.Option(help="two short settings of each host")] = False,
) -> None:
    """Measure agents that run ahead of their tools."""
    if only is not None and only not in HOSTS:
        raise ConfigError(f"--only must be one of {', '.join(HOSTS)}, got {only!r}")
    hosts = HOSTS if only is None else (only,)
    grid = [
        Setting(host, *one)
        for one in product((0.2, 0.5, 1.0), (0.15, 0.5), (0.0, 0.5, 0.9), (2, 4, 8))
        for host in hosts
    ]
    if small:
        grid = [Setting(host, 0.05, 0.05, right, 2) for host in hosts for right in (0.0, 0.9)]
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = _read(out)
    if not rows:
        _append(out, rows, {"kind": "surroundings", **surroundings()})
    known = {_key(row) for row in rows}
    left = [one for one in grid if _key({"kind": "agent", **asdict(one)}) not in known]
    asyncio.run(_all(out, rows, left, repetitions, at_once))
    for host in hosts:
        if ("crowd", host) not in {(row["kind"], row.get("host")) for row in rows}:
            _append(out, rows, asyncio.run(crowd(host, 5 if small else 50, repetitions)))
    if page_to is not None:
        page_to.write_text(page(rows))


async def _all(
    out: Path, rows: list[Any], settings: list[Setting], repetitions: int, at_once: int
) -> None:
    waiting = iter(settings)

    async def worker() -> None:
        for setting in waiting:
            row = {**await measure(setting, repetitions), "at_once": at_once}
            _append(out, rows, row)
            print(f"{len(rows)} rows: {setting}")

    await asyncio.gather(*(worker() for _ in range(at_once)))


def _read(out: Path) -> list[Any]:
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def _append(out: Path, rows: list[Any], row: dict[str, Any]) -> None:
    rows.append(row)
    with out.open("a") as file:
        file.write(json.dumps(row) + "\n")


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    names = ("kind", "host", "tool_s", "reply_s", "right", "calls")
    return tuple(row.get(name) for name in names)
