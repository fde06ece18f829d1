"""Workflows of several agents run ahead of their tools, and hand over as they do without."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.core.tools import FunctionTool
from llama_index_ralmspec import AgentStats, agent_stats, speculate
from llama_index_ralmspec.agent_calls import ModelCall
from pydantic import BaseModel, Field, create_model

from ralmspec_plugins.types import same_to_read
from tests.brain import Brain, Reply
from tests.llama_index.agents.parts import FakeLLM, Toolbox, bare

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:Skipping serialization"
)


@dataclass(frozen=True)
class HandingOver(Brain):
    """Hands over to another agent after the first result of a tool."""

    to: str = ""

    def reply(self, messages: Sequence[dict[str, Any]], tools: Sequence[str]) -> Reply:
        reply = super().reply(messages, tools)
        if sum(one["role"] == "tool" for one in messages) != 1:
            return reply
        given = {"to_agent": self.to, "reason": "it knows more"}
        return replace(reply, calls=({"name": "handoff", "args": given, "id": "over"},))


def workflow(box: Toolbox) -> AgentWorkflow:
    tools: Any = box.tools(["search"])
    agents: Any = [
        FunctionAgent(
            name=name,
            description=name,
            tools=tools,
            llm=FakeLLM(brain=HandingOver(seed=len(name), hops=4, to=other)),
            can_handoff_to=[other],
        )
        for name, other in (("one", "three"), ("three", "one"))
    ]
    return AgentWorkflow(agents=agents, root_agent="one")


async def outcome(agent: Any) -> list[Any]:
    handler = agent.run("What about foxes?", max_iterations=12)
    return [*[bare(one) async for one in handler.stream_events()], bare(await handler)]


async def ahead(depth: int) -> tuple[list[Any], list[Any], AgentStats]:
    """Run a workflow ahead of its tools; return what it shows, its tools' calls, and counts."""
    box = Toolbox()
    guess = lambda call: f"facts about {call['args'].get('q')}"  # noqa: E731
    agent = speculate(workflow(box), guess=guess, depth=depth, read_only=["search"], handover_s=5)
    return await outcome(agent), box.log, agent_stats(agent)


@pytest.mark.parametrize("depth", [1, 3])
async def test_agents_that_hand_over_run_ahead(depth: int) -> None:
    """The host makes its tool for handing over anew for each call of the model."""
    box = Toolbox()
    plain = await outcome(workflow(box))
    shown, calls, stats = await ahead(depth)

    assert "three" in str(plain[-1])
    assert plain == shown
    assert box.log == calls
    assert len(calls) >= 2
    assert stats.committed >= 2
    assert 0 == stats.dropped


def told(description: str, name: str = "q") -> ModelCall:
    """Return a call with a tool whose argument is described so."""
    field: Any = (str, Field(description=description))
    schema: type[BaseModel] = create_model("Question", **{name: field})
    tool = FunctionTool.from_defaults(fn=print, name="search", description="s", fn_schema=schema)
    return ModelCall(FakeLLM(brain=Brain()), "achat", [], {"tools": [tool]})


@pytest.mark.parametrize(("other", "same"), [(("a",), True), (("b",), False), (("a", "p"), False)])
def test_a_tool_made_anew_is_the_same_if_the_model_is_told_the_same(
    other: tuple[str, ...], *, same: bool
) -> None:
    """The names and the descriptions of its arguments count."""
    one, two = told("a"), told(*other)

    assert same == same_to_read(one.key, two.key)
