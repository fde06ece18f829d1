"""Other middlewares before and behind ours, over a provider that refuses malformed histories."""

from collections.abc import Sequence
from typing import Any

import pytest
from langchain.agents.middleware import (
    AgentMiddleware,
    HumanInTheLoopMiddleware,
    ModelCallLimitMiddleware,
    ModelFallbackMiddleware,
    ModelRetryMiddleware,
    SummarizationMiddleware,
    ToolCallLimitMiddleware,
)
from langchain.agents.structured_output import ToolStrategy
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from openai import APIError

from tests.brain import Brain
from tests.langchain.agents.parts import FakeModel, Listener, Toolbox, config_of
from tests.langchain.agents.provider import providing
from tests.langchain.agents.test_provider import facts, model
from tests.langchain.agents.twins import ASKED, twins
from tests.langchain.agents.worlds import STRUCTURED

AGAIN = {"messages": [("user", "And owls?")]}

COMPOSED: dict[str, Any] = {
    "summary": lambda: SummarizationMiddleware(
        FakeModel(brain=Brain(seed=9, hops=0)), trigger=("messages", 7), keep=("messages", 3)
    ),
    "model calls": lambda: ModelCallLimitMiddleware(run_limit=2, exit_behavior="end"),
    "tool calls": lambda: ToolCallLimitMiddleware(run_limit=1),
    "fallback": lambda: ModelFallbackMiddleware(FakeModel(brain=Brain(seed=7, hops=1))),
    "retry": lambda: ModelRetryMiddleware(max_retries=1, initial_delay=0, jitter=False),
    "human": lambda: HumanInTheLoopMiddleware(interrupt_on={"artful": True}),
}


async def conversed(agent: Any) -> Any:
    """Ask twice in one thread, approving of each tool; return all that was streamed, and states."""
    shown: list[Any] = []
    for asked in (ASKED, AGAIN):
        given: Any = asked
        for _ in range(8):
            config = config_of("thread", Listener())
            modes = ["messages", "updates"]
            try:
                shown += [one async for one in agent.astream(given, config, stream_mode=modes)]
            except APIError as error:
                return [*shown, repr(error)]
            state = await agent.aget_state(config)
            if not state.interrupts:
                break
            wanted = [one.value["action_requests"] for one in state.interrupts]
            given = Command(resume={"decisions": [{"type": "approve"} for _ in wanted[0]]})
        shown.append(state.values)
    return shown


@pytest.mark.parametrize("place", ["before", "behind"])
@pytest.mark.parametrize(
    "names",
    [
        *[(name,) for name in COMPOSED],
        ("summary", "retry", "human"),
        ("fallback", "tool calls", "summary"),
    ],
)
async def test_a_composition_shows_the_same(names: Sequence[str], place: str) -> None:
    """Two turns of a conversation: streams and states are equal, and no history is malformed."""

    def others() -> list[AgentMiddleware[Any, Any]]:
        return [COMPOSED[name]() for name in names]

    failing = 0.2 if {"fallback", "retry"} & set(names) else 0.0
    brain = Brain(seed=5, hops=2, tools=("search", "search", "artful"), failing=failing)
    with providing(brain) as provider:
        both = await twins(
            lambda: model(provider),
            tools=lambda _: Toolbox(sleep_s=0.1).tools(["search", "artful"]),
            run=conversed,
            guess=facts,
            checkpointer=InMemorySaver,
            **{place: others},  # type: ignore[arg-type]
        )

    assert both.plain == both.ahead
    assert [] == provider.refused
    assert "ToolMessage" in repr(both.plain)
    assert both.stats.calls_ahead >= 1


@pytest.mark.parametrize("place", ["before", "behind"])
async def test_a_structured_response_is_the_same(place: str) -> None:
    """The last reply fills a schema; middlewares change its request or not."""
    with providing(Brain(seed=4, hops=2)) as provider:
        both = await twins(
            lambda: model(provider),
            tools=lambda _: Toolbox(sleep_s=0.1).tools(["search"]),
            run=conversed,
            guess=facts,
            checkpointer=InMemorySaver,
            response_format=ToolStrategy(STRUCTURED),
            **{place: lambda: [COMPOSED["summary"]()]},  # type: ignore[arg-type]
        )

    assert both.plain == both.ahead
    assert [] == provider.refused
    assert "structured_response" in repr(both.plain)
    assert both.stats.committed >= 1
