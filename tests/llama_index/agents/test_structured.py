"""An agent that runs ahead of its tools gives the structured response that it gives without."""

from typing import Any

import pytest
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.core.llms.llm import ToolSelection
from llama_index_ralmspec import agent_stats, speculate
from pydantic import BaseModel

from tests.brain import Brain
from tests.llama_index.agents.parts import FakeLLM, Toolbox

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Answer(BaseModel):
    """A structured response."""

    text: str


class Structuring(FakeLLM):
    """Fills the schema that it is given as its only tool."""

    async def achat_with_tools(self, tools: Any, **kwargs: Any) -> Any:
        if "Answer" not in [one.metadata.get_name() for one in tools]:
            return await super().achat_with_tools(tools, **kwargs)
        reply = await self.achat(kwargs["chat_history"])
        call = {"id": "1", "name": "Answer", "args": {"text": str(reply.message.content)}}
        reply.message.additional_kwargs["tool_calls"] = [call]
        return reply

    def get_tool_calls_from_response(
        self, response: Any, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        return super().get_tool_calls_from_response(response, error_on_no_tool_call)


@pytest.mark.parametrize("workflow", [False, True])
async def test_a_structured_response_is_the_same(workflow: bool) -> None:
    """The call that fills the schema is the host's own; it goes through the model that is seen."""
    brain, results = Brain(hops=2), []
    for ahead in (False, True):
        tools: Any = Toolbox().tools(["search"])
        llm = Structuring(brain=brain)
        agent: Any = FunctionAgent(name="one", description="one", tools=tools, llm=llm)
        if workflow:
            agent = AgentWorkflow(agents=[agent], output_cls=Answer)
        else:
            agent.output_cls = Answer
        if ahead:
            agent = speculate(
                agent, guess=lambda call: f"facts about {call['args']['q']}", handover_s=5
            )
        result = await agent.run("What?")
        results.append((str(result), result.structured_response))
        if ahead:
            assert agent_stats(agent).committed == 2

    assert results[0][1]
    assert results[0] == results[1]
