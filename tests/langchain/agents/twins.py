"""The same agent plainly and ahead of its tools: what both show, to compare."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from langchain.agents import create_agent
from langchain_ralmspec.agents import AgentStats, SpeculativeTools

from tests.langchain.agents.parts import Toolbox, Trace

ASKED = {"messages": [("user", "What about foxes?")]}


def facts(call: Any) -> str:
    """Guess right."""
    return f"facts about {call['args']['q']}"


async def invoked(agent: Any) -> Any:
    """Run an agent; return its final state."""
    return await agent.ainvoke(ASKED)


def streamed(modes: Any, **options: Any) -> Callable[[Any], Any]:
    """Return a function that streams an agent's run in these modes."""

    async def run(agent: Any) -> Any:
        return [one async for one in agent.astream(ASKED, stream_mode=modes, **options)]

    return run


async def told(agent: Any) -> Any:
    """Run an agent; return its events."""
    return [event async for event in agent.astream_events(ASKED, version="v2")]


@dataclass
class Twins:
    """What the plain agent and the one ahead of its tools have shown, and the latter's counts."""

    plain: Any
    ahead: Any
    stats: AgentStats
    plain_calls: list[Any]  # of tools
    calls: list[Any]


async def twins(
    model: Callable[[], Any],
    *,
    tools: Callable[[Toolbox], Sequence[Any]] = lambda box: box.tools(["search"]),
    run: Callable[[Any], Any] = invoked,
    times: int = 1,
    guess: Any = facts,
    before: Callable[[], Sequence[Any]] = lambda: (),
    behind: Callable[[], Sequence[Any]] = lambda: (),
    checkpointer: Callable[[], Any] = lambda: None,
    response_format: Any = None,
    **options: Any,
) -> Twins:
    """Run an agent made of new parts plainly, then with others ahead of its tools."""
    shown, calls = [], []
    ours = SpeculativeTools(guess, **{"handover_s": 5, **options})
    for mine in ([], [ours]):
        box, trace = Toolbox(turns=40), Trace()
        agent: Any = create_agent(
            model(),
            tools(box),
            middleware=[*before(), *mine, *behind()],
            checkpointer=checkpointer(),
            response_format=response_format,
        )
        shown.append([trace.of(await run(agent)) for _ in range(times)])
        calls.append(box.log)
    assert shown[0]
    return Twins(*shown, ours.stats, *calls)
