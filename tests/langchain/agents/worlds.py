"""Random agents, each run plainly and ahead of its tools, in one of the host's ways."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    ClearToolUsesEdit,
    ContextEditingMiddleware,
    HumanInTheLoopMiddleware,
    ModelCallLimitMiddleware,
    ModelFallbackMiddleware,
    SummarizationMiddleware,
    ToolCallLimitMiddleware,
    ToolRetryMiddleware,
)
from langchain.agents.structured_output import ToolStrategy
from langchain_core.messages import SystemMessage, ToolMessage
from langchain_ralmspec.agents import AgentStats, SpeculativeTools
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from tests.brain import Brain
from tests.crowded import Crowded
from tests.langchain.agents.parts import FakeModel, Listener, Toolbox, Trace, config_of

STREAM_MODES = ("values", "updates", "messages", "custom", "tasks", "checkpoints", "debug")


STRUCTURED = {
    "title": "Answer",
    "description": "A structured response.",
    "type": "object",
    "properties": {"text": {"type": "string"}},
    "required": ["text"],
}


class Prompting(AgentMiddleware[Any, Any]):
    """Writes the length of the history into the system message."""

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return handler(self._changed(request))

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        return await handler(self._changed(request))

    def _changed(self, request: Any) -> Any:
        return request.override(
            system_message=SystemMessage(f"{len(request.messages)} messages so far"),
            model_settings={"temperature": 0},
        )


class Renaming(AgentMiddleware[Any, Any]):
    """Changes what the tools are asked, by turns: the call that comes is not the one announced."""

    def wrap_tool_call(self, request: Any, handler: Any) -> Any:
        return handler(self._changed(request))

    async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
        return await handler(self._changed(request))

    def _changed(self, request: Any) -> Any:
        call = request.tool_call
        if call["args"].get("q") != "fox":
            return request
        return request.override(tool_call={**call, "args": {"q": "wolf"}})


def _limits(draw: random.Random) -> Any:
    return ModelCallLimitMiddleware(run_limit=draw.randint(1, 4), exit_behavior="end")


MIDDLEWARES: dict[str, Callable[[random.Random], Any]] = {
    "prompting": lambda _: Prompting(),
    "renaming": lambda _: Renaming(),
    "model_limit": _limits,
    "tool_limit": lambda draw: ToolCallLimitMiddleware(run_limit=draw.randint(1, 3)),
    "fallback": lambda _: ModelFallbackMiddleware(FakeModel(brain=Brain(seed=77, hops=1))),
    "retry": lambda _: ToolRetryMiddleware(max_retries=1, initial_delay=0, jitter=False),
    "summary": lambda _: SummarizationMiddleware(
        FakeModel(brain=Brain(seed=99, hops=0)), trigger=("messages", 6), keep=("messages", 3)
    ),
    "editing": lambda _: ContextEditingMiddleware(
        edits=[ClearToolUsesEdit(trigger=10, keep=1, placeholder="[cleared]")]
    ),
    "human": lambda _: HumanInTheLoopMiddleware(interrupt_on={"search": True}),
}


@dataclass(frozen=True)
class World:
    """One agent and what is done with it."""

    seed: int
    brain: Brain
    tools: tuple[str, ...]
    before: tuple[str, ...]
    behind: tuple[str, ...]
    structured: bool
    way: str  # "invoke", "events", "several" modes of streams, or one of them
    turns: int  # of the model, a word
    tool_turns: int
    depth: int
    right: float  # share of right guesses
    limit: int | None
    scenario: str  # "once", "twice", "travel"
    synchronous: bool  # calls ahead are made in threads
    handover_s: float
    wasted_share: float | None  # of dropped calls that is not exceeded
    crowded: float  # share of moments at which other runs use the processor


def world(seed: int) -> World:
    """Draw an agent."""
    draw = random.Random(seed)
    kinds = ["search", "search", "artful", "broken"]
    if draw.random() < 0.25:
        kinds.append(draw.choice(["deadly", "asking", "command", "direct"]))
    brain = Brain(
        seed=seed,
        hops=draw.randint(1, 4),
        parallel=draw.choice([1, 1, 2, 3]),
        tools=tuple(kinds),
        ids=draw.choice(["unique", "unique", "repeated", "same", "empty"]),
        failing=draw.choice([0, 0, 0, 0.15]),
    )
    names = draw.sample(sorted(MIDDLEWARES), draw.choice([0, 0, 1, 1, 2, 3]))
    cut = draw.randint(0, len(names))
    return World(
        seed=seed,
        brain=brain,
        tools=tuple(dict.fromkeys(kinds)),
        before=tuple(names[:cut]),
        behind=tuple(names[cut:]),
        structured=draw.random() < 0.2,
        way=draw.choice(["invoke", "invoke", "invoke", "events", "several", *STREAM_MODES]),
        turns=draw.choice([0, 1, 3]),
        tool_turns=draw.choice([0, 5, 20, 60]),
        depth=draw.choice([1, 1, 2, 3]),
        right=draw.choice([0.0, 0.5, 0.9, 1.0]),
        limit=draw.choice([None, None, 1, 3]),
        scenario=draw.choice(["once", "once", "twice", "travel"]),
        synchronous=draw.random() < 0.2,
        handover_s=draw.choice([5, 5, 5, 0.002]),
        crowded=draw.choice([0.0, 0.0, 0.0, 0.3, 0.7]),
        wasted_share=draw.choice([None, None, None, None, 0.4]),
    )


@dataclass
class Outcome:
    """What a run has shown."""

    shown: list[Any] = field(default_factory=list)
    history: list[Any] = field(default_factory=list)  # the checkpoints
    errors: list[str] = field(default_factory=list)  # those that the runs ended with
    heard: list[Any] = field(default_factory=list)
    tools: list[tuple[str, str]] = field(default_factory=list)
    model_calls: int = 0
    interrupted: bool = False
    stats: AgentStats = field(default_factory=AgentStats)


def guesser(world: World) -> Callable[[Any], str | None]:
    """Return a function that is right as often as the world says."""

    def guess(call: Any) -> Any:
        draw = random.Random(f"{world.seed} {call['name']} {call['args']}")
        q = call["args"]["q"]
        if draw.random() > world.right:
            return draw.choice([None, f"nothing about {q}"])
        if call["name"] == "broken":
            text = f"no {q} today"
            return ToolMessage(text, name="broken", tool_call_id=call["id"], status="error")
        other = {"artful": f"found {q}", "asking": "they said yes"}
        return other.get(call["name"], f"facts about {q}")

    return guess


async def run(world: World, *, ahead: bool) -> Outcome:
    """Run a world's agent plainly or ahead."""
    draw = random.Random(world.seed)
    log: list[Any] = []
    box = Toolbox(turns=world.tool_turns, sleep_s=world.tool_turns * 2e-4 * world.synchronous)
    ours = SpeculativeTools(
        guesser(world),
        depth=world.depth,
        read_only=["search", "artful", "broken"],
        max_wasted_calls=world.limit,
        max_wasted_share=world.wasted_share,
        handover_s=world.handover_s,
    )
    ours._session.load = Crowded(world.seed, world.crowded)
    before = [MIDDLEWARES[name](draw) for name in world.before]
    behind = [MIDDLEWARES[name](draw) for name in world.behind]
    agent: Any = create_agent(
        FakeModel(
            brain=world.brain,
            turns=world.turns,
            log=log.append,
            sleep_s=world.turns * 2e-3 * world.synchronous,
        ),
        box.tools(world.tools),
        middleware=[*before, *([ours] if ahead else []), *behind],
        response_format=ToolStrategy(STRUCTURED) if world.structured else None,
        checkpointer=InMemorySaver(),
        name=draw.choice([None, "agent"]),
    )
    outcome, listener = Outcome(), Listener()
    await _played(world, agent, outcome, listener)
    exact = world.brain.parallel == 1  # the host promises no order among parallel calls
    trace = Trace(numbered=exact)
    outcome.shown = [trace.of(one) for one in outcome.shown]
    outcome.heard = [trace.of(one) for one in listener.heard]
    if world.synchronous:  # a thread writes checkpoints, whose messages may have no ids yet
        trace = Trace(numbered=False)
    outcome.history = [trace.of(one) for one in outcome.history]
    if not exact:
        outcome.shown.sort(key=repr)
        outcome.heard.sort(key=repr)
    outcome.tools, outcome.model_calls, outcome.stats = box.log, len(log), ours.stats
    return outcome


async def _played(world: World, agent: Any, outcome: Outcome, listener: Listener) -> None:
    config = config_of("thread", listener)
    await _turn(world, agent, {"messages": [("user", "What about foxes?")]}, config, outcome)
    if world.scenario == "twice":
        await _turn(world, agent, {"messages": [("user", "And owls?")]}, config, outcome)
    history = [snapshot async for snapshot in agent.aget_state_history(config)]
    if world.scenario == "travel":
        past = history[len(history) // 2]
        back = {**past.config, "callbacks": [listener], "recursion_limit": 40}
        await _turn(world, agent, None, back, outcome)
        history = [snapshot async for snapshot in agent.aget_state_history(config)]
    outcome.history = history


async def _turn(world: World, agent: Any, given: Any, config: Any, outcome: Outcome) -> None:
    for _ in range(4):
        try:
            await _once(world, agent, given, config, outcome)
        except Exception as error:
            outcome.errors.append(f"{type(error).__name__}: {error}")
            return
        state = await agent.aget_state(config_of("thread", Listener()))
        if not state.interrupts:
            return
        outcome.interrupted = True
        config = config_of("thread", config["callbacks"][0])
        given = Command(resume=_answers(state.interrupts))


def _answers(interrupts: Any) -> Any:
    answers = {}
    for one in interrupts:
        requests = one.value.get("action_requests") if isinstance(one.value, dict) else None
        answers[one.id] = (
            {"decisions": [{"type": "approve"} for _ in requests]} if requests else "yes"
        )
    return answers


async def _once(world: World, agent: Any, given: Any, config: Any, outcome: Outcome) -> None:
    if world.synchronous and world.way != "events":
        await asyncio.to_thread(_once_in_a_thread, world, agent, given, config, outcome)
    elif world.way == "invoke":
        outcome.shown.append(await agent.ainvoke(given, config))
    elif world.way == "events":
        async for event in agent.astream_events(given, config, version="v2"):
            outcome.shown.append(event)
    else:
        modes = ["values", "updates", "messages"] if world.way == "several" else world.way
        async for item in agent.astream(given, config, stream_mode=modes):
            outcome.shown.append(item)


def _once_in_a_thread(world: World, agent: Any, given: Any, config: Any, outcome: Outcome) -> None:
    if world.way == "invoke":
        outcome.shown.append(agent.invoke(given, config))
    else:
        modes = ["values", "updates", "messages"] if world.way == "several" else world.way
        for item in agent.stream(given, config, stream_mode=modes):
            outcome.shown.append(item)


async def both(world: World) -> tuple[Outcome, Outcome]:
    """Run a world's agent plainly, then ahead."""
    plain = await run(world, ahead=False)
    ahead = await run(world, ahead=True)
    await asyncio.sleep(0)
    return plain, ahead
