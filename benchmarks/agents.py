"""Measure agents that run ahead of their tools against the same agents without.

Model and tool wait, as a provider and a store on a network do; the model streams. Plain and ahead
take turns in one process, and every answer is asserted equal.

    python -m benchmarks agents --out results/agents.json
"""

import asyncio
import json
import random
import statistics
import time
from collections.abc import AsyncIterator
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, ToolMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.tools import tool
from langchain_ralmspec.agents import SpeculativeTools

from benchmarks.harness.results import surroundings

PIECES = 5  # of a reply


class Model(BaseChatModel):
    """Calls the tool so many times, then answers with what it has seen."""

    calls: int
    reply_s: float

    @property
    def _llm_type(self) -> str:
        return "waiting"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self.bind(tools=[one.name for one in tools])

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError("this model is streamed")

    async def _astream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        done = [one for one in messages if isinstance(one, ToolMessage)]
        for _ in range(PIECES - 1):
            await asyncio.sleep(self.reply_s / PIECES)
            yield ChatGenerationChunk(message=AIMessageChunk("word "))
        await asyncio.sleep(self.reply_s / PIECES)
        if len(done) < self.calls:
            asked = f"{messages[0].text} {len(done)}"
            call = {"name": "search", "args": json.dumps({"q": asked}), "id": asked, "index": 0}
            last = AIMessageChunk("", tool_call_chunks=[call])  # type: ignore[list-item]
        else:
            last = AIMessageChunk(" ".join(one.text for one in done))
        yield ChatGenerationChunk(message=last)


def searching(tool_s: float) -> Any:
    """Return a tool that takes so long."""

    @tool
    async def search(q: str) -> str:
        """Search."""
        await asyncio.sleep(tool_s)
        return f"facts on {q}"

    return search


def guessing(right: float) -> Any:
    """Return a function that is right so often."""

    def guess(call: Any) -> str:
        q = call["args"]["q"]
        return f"facts on {q}" if random.Random(q).random() < right else "nonsense"

    return guess


def finite_bound_s(calls: int, tool_s: float, reply_s: float, rights: list[bool]) -> float:
    """Return the least time of a run whose guesses are right where it is said, at any depth.

    A step after a right guess begins when its model call ahead ends; after a wrong one, when the
    tool has returned.
    """
    replied = reply_s  # when the reply that calls the next tool is there
    ends = 0.0
    for right in rights[:calls]:
        returned = replied + tool_s
        ends = max(ends, returned)
        replied = (replied if right else returned) + reply_s
    return max(replied, ends)


async def timed(agent: Any, asked: str) -> tuple[float, str]:
    """Stream one run; return its seconds and its answer."""
    started_s = time.perf_counter()
    last = ""
    given = {"messages": [("user", asked)]}
    async for message, about in agent.astream(given, stream_mode="messages"):
        if about["langgraph_node"] == "model":
            last = message.text
    return time.perf_counter() - started_s, last


async def measure(
    tool_s: float, reply_s: float, right: float, calls: int, depth: int, repetitions: int
) -> dict[str, Any]:
    """Time plain and ahead in turn."""
    model, search, guess = Model(calls=calls, reply_s=reply_s), searching(tool_s), guessing(right)
    ours = SpeculativeTools(guess, depth=depth, read_only=["search"], max_wasted_calls=None)
    agents = {"plain": create_agent(model, [search])}
    agents["ahead"] = create_agent(model, [search], middleware=[ours])
    seconds: dict[str, list[float]] = {name: [] for name in agents}
    bounds = []
    for repetition in range(repetitions):
        asked = f"question {repetition}"
        answers = []
        for name, agent in agents.items():
            taken, answer = await timed(agent, asked)
            seconds[name].append(taken)
            answers.append(answer)
        assert answers[0] == answers[1]
        rights = [random.Random(f"{asked} {n}").random() < right for n in range(calls)]
        bounds.append(finite_bound_s(calls, tool_s, reply_s, rights))
    plain_s, ahead_s = (statistics.median(seconds[name]) for name in ("plain", "ahead"))
    stats = ours.stats
    rate = stats.acceptance_rate or 0.0
    row = {
        "tool_s": tool_s,
        "reply_s": reply_s,
        "right": right,
        "calls": calls,
        "depth": depth,
        "plain_s": seconds["plain"],
        "ahead_s": seconds["ahead"],
        "acceptance_rate": rate,
        "gain": 1 - ahead_s / plain_s,
        "hidden_s": plain_s - ahead_s,
        "hideable_s": rate * calls * min(tool_s, reply_s),  # at depth 1
        "finite_bound_s": statistics.median(bounds),  # at any depth
        "dropped": stats.dropped,
    }
    print(
        f"tool {tool_s} s, model {reply_s} s, {right:.0%} right, {calls} calls, depth {depth}: "
        f"plain {plain_s:.2f} s, ahead {ahead_s:.2f} s (bound {row['finite_bound_s']:.2f} s)"
    )
    return row


async def crowd(agents: int) -> dict[str, Any]:
    """Time many agents at once, over one middleware object."""
    model, search = Model(calls=4, reply_s=0.15), searching(0.2)
    ours = SpeculativeTools(guessing(0.9), max_wasted_calls=None)
    row: dict[str, Any] = {"agents": agents}
    for name, middleware in (("plain", []), ("ahead", [ours])):
        agent = create_agent(model, [search], middleware=middleware)
        started_s = time.perf_counter()
        await asyncio.gather(*(timed(agent, f"question {n}") for n in range(agents)))
        row[f"{name}_s"] = time.perf_counter() - started_s
    print(f"{agents} agents at once: plain {row['plain_s']:.2f} s, ahead {row['ahead_s']:.2f} s")
    return row


def agents(
    out: Annotated[Path, typer.Option(help="where the rows go, as JSON")],
    repetitions: Annotated[int, typer.Option(help="runs of each agent")] = 5,
    small: Annotated[bool, typer.Option(help="two settings, one of each kind")] = False,
) -> None:
    """Measure agents that run ahead of their tools."""
    settings = list(product((0.2, 0.5, 1.0), (0.15, 0.5), (0.0, 0.5, 0.9), (2, 4, 8), (1, 8)))
    if small:
        settings = [(0.2, 0.15, 0.9, 2, 1), (0.2, 0.15, 0.9, 2, 8), (0.2, 0.15, 0.0, 2, 1)]

    async def all_rows() -> tuple[list[Any], Any]:
        rows = [await measure(*setting, repetitions) for setting in settings]
        return rows, await crowd(5 if small else 50)

    rows, many = asyncio.run(all_rows())
    about = {"what": "seconds a run of an agent", **surroundings()}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**about, "rows": rows, "crowd": many}, indent=1) + "\n")
