"""A model that asks its tool once, and a tool with a cheap guess of what it returns."""

import time

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool as as_tool


class Scripted(BaseChatModel):
    """Asks for the colour of the fox, then answers."""

    @property
    def _llm_type(self):
        return "scripted"

    def bind_tools(self, tools, **kwargs):
        return self.bind(**kwargs)

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        call = {"name": "search", "args": {"query": "fox"}, "id": "call-1"}
        last = messages[-1]
        done = AIMessage(f"They say: {last.content}")
        reply = done if last.type == "tool" else AIMessage("", tool_calls=[call])
        return ChatResult(generations=[ChatGeneration(message=reply)])


@as_tool
def tool(query: str) -> str:
    """Search the documents."""
    time.sleep(0.3)
    return cheap_guess(query)


tool.name = "search"


def cheap_guess(query):
    """Return what the tool will probably return."""
    return f"The {query} is red."


model = Scripted()
