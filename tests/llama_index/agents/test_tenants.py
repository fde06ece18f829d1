"""Users of one agent of LlamaIndex ahead of its tools: no prompt has what another user found."""

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import pytest
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index_ralmspec import agent_stats, speculate

from ralmspec_plugins import QueryCache
from ralmspec_plugins.errors import ConfigError
from tests.brain import Brain, Reply
from tests.llama_index.agents.parts import FakeLLM, turns

# The host's own agents look at deprecated attributes of theirs when they are made, and say of
# each conversation that its memory is not written to disk.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:Skipping serialization"
)

user = ContextVar("user", default="nobody")
USERS = ("ann", "bob")


class Asked(FakeLLM):
    """Tells, with its user, all that it is asked."""

    told: Any = None

    def _reply(self, messages: Sequence[ChatMessage]) -> tuple[Reply, list[str]]:
        text = " ".join(str(one.content) for one in messages)
        self.told((user.get(), text))
        return super()._reply(messages)


def agent_of(kind: str, llm: FakeLLM) -> Any:
    """Return an agent whose tool finds what belongs to the current user."""

    async def search(q: str) -> str:
        await turns(40)
        return f"secret of {user.get()} about {q}"

    tools: Any = [FunctionTool.from_defaults(async_fn=search)]
    if kind == "react":
        return ReActAgent(tools=tools, llm=llm)
    one = FunctionAgent(name="one", description="one", tools=tools, llm=llm)
    return AgentWorkflow(agents=[one]) if kind == "workflow" else one


async def ask(agent: Any, name: str) -> str:
    """Run the agent for a user."""
    user.set(name)
    return str(await agent.run("What about foxes?"))


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("kind", ["function", "react", "workflow"])
async def test_no_prompt_has_what_another_user_found(kind: str, together: bool) -> None:
    """Each user's results are guesses for the same user only, in one memo, one after another."""
    prompts: list[tuple[str, str]] = []
    llm = Asked(brain=Brain(hops=2), react=kind == "react", turns=1, told=prompts.append)
    agent = speculate(agent_of(kind, llm), memo=QueryCache(), scope=user.get, depth=2, handover_s=5)
    for _ in range(2):
        runs = [asyncio.ensure_future(ask(agent, name)) for name in USERS]
        for one in runs:
            if not together:
                await one
        await asyncio.gather(*runs)

    assert agent_stats(agent).committed >= 4
    for name, other in (USERS, USERS[::-1]):
        asked = [text for who, text in prompts if who == name]
        assert any(f"secret of {name}" in text for text in asked)
        assert not [text for text in asked if f"secret of {other}" in text]


async def test_without_a_scope_each_run_is_alone() -> None:
    """A memo of the caller's is no scope."""
    prompts: list[tuple[str, str]] = []
    llm = Asked(brain=Brain(hops=2), turns=1, told=prompts.append)
    agent = speculate(agent_of("function", llm), memo=QueryCache(), handover_s=5)
    for name in (*USERS, *USERS):
        await asyncio.ensure_future(ask(agent, name))

    assert prompts
    assert 0 == agent_stats(agent).calls_ahead


async def test_a_scope_is_hashable() -> None:
    """It is the key of what is remembered; a list is refused when a run begins."""
    llm = Asked(brain=Brain(), told=print)
    agent = speculate(agent_of("function", llm), scope=lambda: ["a list"])
    with pytest.raises(ConfigError, match="hashable"):
        agent.run("What?")
