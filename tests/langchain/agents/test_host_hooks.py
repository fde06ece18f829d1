"""What the host does around a middleware: it traces its hooks."""

import asyncio
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_ralmspec.agents import SpeculativeTools
from langsmith import Client, tracing_context

from tests.brain import Brain
from tests.langchain.agents.parts import FakeModel, Toolbox
from tests.langchain.agents.twins import ASKED, Twins, facts, twins


class Traced(Client):
    """Keeps the runs of a trace."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:9", api_key="none", auto_batch_tracing=False)
        self.begun: dict[str, tuple[str, str | None]] = {}

    def create_run(self, name: str, inputs: Any, run_type: Any, **about: Any) -> None:
        parent = about.get("parent_run_id")
        self.begun[str(about["id"])] = name, parent and str(parent)

    def update_run(self, run_id: Any, **about: Any) -> None:
        """Keep nothing of what a run has returned."""

    def paths(self) -> list[str]:
        """Return the runs with those around them, but for the hooks of our middleware."""
        return sorted(map(self._path, self.begun))

    def _path(self, run_id: str) -> str:
        name, parent = self.begun[run_id]
        return name if parent is None else f"{self._path(parent)} > {name}"


async def traced(agent: Any) -> list[str]:
    """Run an agent; return the paths of its runs but those of our middleware's hooks."""
    client = Traced()
    with tracing_context(enabled=True, client=client):
        await agent.ainvoke(ASKED)
    return [one for one in client.paths() if not one.split(" > ")[-1].startswith("Speculative")]


async def shown(**options: Any) -> Twins:
    return await twins(lambda: FakeModel(brain=Brain(hops=3)), read_only=["search"], **options)


@pytest.mark.parametrize("depth", [1, 3])
async def test_a_trace_has_the_same_runs_in_the_same_places(depth: int) -> None:
    """Each model and each tool once, below its node."""
    both = await shown(run=traced, depth=depth)

    assert "LangGraph > model > FakeModel" in both.plain[0]
    assert "LangGraph > tools > search" in both.plain[0]
    assert both.plain == both.ahead
    assert both.stats.committed >= 2


async def test_no_step_waits_for_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host would trace the hooks of a crowd of agents in its few threads, by turns."""
    asked = list[Any]()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "run_in_executor", lambda *given: asked.append(given))
    ours = SpeculativeTools(facts, handover_s=5)
    model, tools = FakeModel(brain=Brain(hops=3)), Toolbox(turns=40).tools(["search"])
    answer = await create_agent(model, tools, middleware=[ours]).ainvoke(ASKED)  # type: ignore[call-overload, unused-ignore]

    assert answer["messages"][-1].content
    assert ours.stats.committed >= 2
    assert [] == asked
