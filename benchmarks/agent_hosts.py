"""Agents of both hosts whose model and tool wait, as a provider and a store on a network do."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, ToolMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.tools import tool
from langchain_ralmspec.agents import SpeculativeTools
from llama_index.core.agent.workflow import AgentStream, FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, LLMMetadata, MessageRole
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools import FunctionTool
from llama_index_ralmspec import agent_stats, speculate

from ralmspec_plugins.adapters.agent_limits import AgentStats

PIECES = 5  # of a reply


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of the grid.

    Attributes:
        host: the name of the host.
        tool_s: how long a call of the tool takes.
        reply_s: how long a reply of the model takes; it comes in pieces.
        right: the share of right guesses.
        calls: how often the tool is called in a run.
    """

    host: str
    tool_s: float
    reply_s: float
    right: float
    calls: int

    def rights(self, question: str) -> list[bool]:
        """Return which guesses of a run are right."""
        return [self.is_right(asked(question, n)) for n in range(self.calls)]

    def is_right(self, query: str) -> bool:
        """Return whether the guess for a query is right."""
        return random.Random(query).random() < self.right

    def guess(self, call: Any) -> str:
        """Return the guess for a call of the tool."""
        query = call["args"]["q"]
        return found(query) if self.is_right(query) else "nonsense"


def asked(question: str, done: int) -> str:
    """Return what the model asks its tool after so many calls."""
    return f"{question} {done}"


def found(query: str) -> str:
    """Return what the tool finds."""
    return f"facts on {query}"


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to run the agent: takes a question, streams, and returns the answer."""

    run: Callable[[str], Any]
    stats: Callable[[], AgentStats] = AgentStats


def contenders(setting: Setting, depths: Sequence[int]) -> dict[str, Contender]:
    """Return the plain agent, and one for each depth."""
    make = {"langchain": _langchain, "llama_index": _llama_index}[setting.host]
    return {
        "plain" if depth == 0 else f"depth {depth}": make(setting, depth) for depth in (0, *depths)
    }


class LangChainModel(BaseChatModel):
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
            query = asked(messages[0].text, len(done))
            call = {"name": "search", "args": json.dumps({"q": query}), "id": query, "index": 0}
            last = AIMessageChunk("", tool_call_chunks=[call])  # type: ignore[list-item]
        else:
            last = AIMessageChunk(" ".join(one.text for one in done))
        yield ChatGenerationChunk(message=last)


def _langchain(setting: Setting, depth: int) -> Contender:
    @tool
    async def search(q: str) -> str:
        """Search."""
        await asyncio.sleep(setting.tool_s)
        return found(q)

    model = LangChainModel(calls=setting.calls, reply_s=setting.reply_s)
    ours = SpeculativeTools(setting.guess, depth=depth, read_only=["search"], max_wasted_calls=None)
    agent: Any = create_agent(model, [search], middleware=[ours] if depth else [])

    async def run(question: str) -> str:
        replies: dict[str, str] = {}
        given = {"messages": [("user", question)]}
        async for message, about in agent.astream(given, stream_mode="messages"):
            if about["langgraph_node"] == "model":
                replies[message.id] = replies.get(message.id, "") + message.text
        return list(replies.values())[-1]

    return Contender(run, lambda: ours.stats)


class LlamaIndexModel(FunctionCallingLLM):
    """The same model for LlamaIndex."""

    calls: int
    reply_s: float

    @property
    def metadata(self) -> LLMMetadata:
        """Return what the host asks about a model."""
        return LLMMetadata(is_function_calling_model=True, model_name="waiting")

    async def astream_chat_with_tools(self, tools: Any, **kwargs: Any) -> Any:
        """Reply in pieces."""
        return self._pieces(kwargs["chat_history"])

    async def _pieces(self, messages: Sequence[ChatMessage]) -> AsyncIterator[ChatResponse]:
        done = [one for one in messages if one.role == MessageRole.TOOL]
        shown = ""
        for _ in range(PIECES - 1):
            await asyncio.sleep(self.reply_s / PIECES)
            shown += "word "
            yield ChatResponse(message=ChatMessage(role="assistant", content=shown), delta="word ")
        await asyncio.sleep(self.reply_s / PIECES)
        message = ChatMessage(role="assistant", content=shown)
        if len(done) < self.calls:
            query = asked(str(messages[0].content), len(done))
            message.additional_kwargs["tool_calls"] = [{"id": query, "q": query}]
        else:
            message = ChatMessage(role="assistant", content=" ".join(str(m.content) for m in done))
        yield ChatResponse(message=message, delta="")

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """Return the calls in a reply."""
        return [
            ToolSelection(tool_id=one["id"], tool_name="search", tool_kwargs={"q": one["q"]})
            for one in response.message.additional_kwargs.get("tool_calls", ())
        ]

    def _prepare_chat_with_tools(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("this model is streamed with tools")

    def chat(self, *args: Any, **kwargs: Any) -> Any:
        """Not used."""
        raise NotImplementedError("this model is streamed with tools")

    stream_chat = complete = stream_complete = chat

    async def achat(self, *args: Any, **kwargs: Any) -> Any:
        """Not used."""
        raise NotImplementedError("this model is streamed with tools")

    astream_chat = acomplete = astream_complete = achat


def _llama_index(setting: Setting, depth: int) -> Contender:
    async def search(q: str) -> str:
        """Search."""
        await asyncio.sleep(setting.tool_s)
        return found(q)

    model = LlamaIndexModel(calls=setting.calls, reply_s=setting.reply_s)
    tools: Any = [FunctionTool.from_defaults(async_fn=search)]
    agent = FunctionAgent(tools=tools, llm=model, timeout=None)
    if depth:
        agent = speculate(
            agent, guess=setting.guess, depth=depth, read_only=["search"], max_wasted_calls=None
        )

    async def run(question: str) -> str:
        handler = agent.run(question, max_iterations=setting.calls + 2)
        streamed = 0
        async for event in handler.stream_events():
            streamed += isinstance(event, AgentStream)
        assert streamed >= PIECES
        return str(await handler)

    return Contender(run, lambda: agent_stats(agent) if depth else AgentStats())
