"""Agents of LlamaIndex for tests: a model that a brain drives, tools that wait, random agents."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, LLMMetadata
from llama_index.core.llms.callbacks import llm_chat_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools import FunctionTool, ToolOutput
from llama_index.core.workflow import Context
from llama_index_ralmspec import AgentStats, agent_stats, speculate

from tests.brain import Brain, ModelDownError, Reply
from tests.crowded import Crowded


async def turns(count: int) -> None:
    """Let the event loop turn so many times."""
    for _ in range(count):
        await asyncio.sleep(0)


class FakeLLM(FunctionCallingLLM):
    """Calls functions, or reasons in text, as a brain decides."""

    brain: Any = None
    react: bool = False
    turns: int = 2
    log: Any = None  # is called with the length of each history

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(is_function_calling_model=not self.react, model_name="brain")

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[Any],
        user_msg: Any = None,
        chat_history: Any = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        return {"messages": list(chat_history), **kwargs}

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        return [
            ToolSelection(tool_id=one["id"], tool_name=one["name"], tool_kwargs=one["args"])
            for one in response.message.additional_kwargs.get("tool_calls", ())
        ]

    def _reply(self, messages: Sequence[ChatMessage]) -> tuple[Reply, list[str]]:
        if self.log is not None:
            self.log(len(messages))
        history = [_turn(one, react=self.react) for one in messages]
        reply = self.brain.reply(history, ())
        if not self.react:
            return reply, list(reply.words)
        if reply.calls:
            call = reply.calls[0]
            given = json.dumps(call["args"])
            text = f"Thought: {''.join(reply.words)}\nAction: {call['name']}\nAction Input: {given}"
        else:
            text = f"Thought: I know.\nAnswer: {''.join(reply.words)}"
        return reply, text.split(" ")

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        async def pieces() -> AsyncIterator[ChatResponse]:
            reply, words = self._reply(messages)
            shown = ""
            for number, word in enumerate(words):
                await turns(self.turns)
                if number == reply.fails_after:
                    raise ModelDownError("the model is down")
                shown += f"{word} "
                said = ChatMessage(role="assistant", content=shown)
                yield ChatResponse(message=said, delta=word)
            yield self._last(reply, shown)

        return pieces()

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        reply, words = self._reply(messages)
        await turns(3 * self.turns)
        return self._last(reply, "".join(f"{word} " for word in words))

    def _last(self, reply: Reply, shown: str) -> ChatResponse:
        if reply.fails_after is not None:
            raise ModelDownError("the model is down")
        about = {"tool_calls": list(reply.calls)} if reply.calls and not self.react else {}
        said = ChatMessage(role="assistant", content=shown, additional_kwargs=about)
        raw = {"usage": {"total_tokens": sum(reply.tokens)}}
        return ChatResponse(message=said, delta="", raw=raw)

    def chat(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def stream_chat(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def complete(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def stream_complete(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    async def acomplete(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    async def astream_complete(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


def _turn(message: ChatMessage, *, react: bool) -> dict[str, Any]:
    role, content = message.role.value, message.content
    if react:  # reasoning is text: a step of it counts as a call
        called = role == "assistant" and str(content).startswith("Thought")
        observed = str(content).startswith("Observation")
        if called:
            return {"role": role, "content": content, "tool_calls": [{"id": "step"}]}
        if observed:
            return {"role": "tool", "content": content, "tool_call_id": "step"}
        return {"role": role, "content": content}
    found = message.additional_kwargs
    turn = {"role": role, "content": content}
    if calls := found.get("tool_calls"):
        turn["tool_calls"] = calls
    if role == "tool":
        turn["tool_call_id"] = found["tool_call_id"]
    return turn


@dataclass
class Toolbox:
    """Tools that note their calls."""

    turns: int = 40
    log: list[tuple[str, str]] = field(default_factory=list)

    def tools(self, names: Sequence[str]) -> list[FunctionTool]:
        return [getattr(self, name)() for name in dict.fromkeys(names)]

    def search(self) -> FunctionTool:
        return self._tool("search", lambda q: f"facts about {q}")

    def broken(self) -> FunctionTool:
        def fail(q: str) -> str:
            raise ValueError(f"no {q} today")

        return self._tool("broken", fail)

    def direct(self) -> FunctionTool:
        return self._tool("direct", lambda q: f"just {q}", return_direct=True)

    def context(self) -> FunctionTool:
        async def context(ctx: Context, q: str) -> str:
            """Read the state."""
            self.log.append(("context", q))
            await turns(self.turns)
            return f"state of {q}"

        return FunctionTool.from_defaults(async_fn=context)

    def _tool(self, name: str, answer: Any, **about: Any) -> FunctionTool:
        async def call(q: str) -> Any:
            self.log.append((name, q))
            await turns(self.turns)
            return answer(q)

        return FunctionTool.from_defaults(async_fn=call, name=name, description=name, **about)


@dataclass(frozen=True)
class World:
    """One agent, and how it runs."""

    seed: int
    kind: str  # "function", "react", "workflow"
    brain: Brain
    tools: tuple[str, ...]
    streaming: bool
    turns: int
    tool_turns: int
    depth: int
    right: float
    crowded: float  # share of moments at which other runs use the processor


def world(seed: int) -> World:
    """Draw an agent."""
    draw = random.Random(seed)
    kind = draw.choice(["function", "function", "react", "workflow"])
    tools = ["search", "search", "broken"]
    if draw.random() < 0.25:
        tools.append(draw.choice(["direct", "context"]))
    brain = Brain(
        seed=seed,
        hops=draw.randint(1, 4),
        parallel=1 if kind == "react" else draw.choice([1, 1, 2, 3]),
        tools=tuple(tools),
        ids=draw.choice(["unique", "repeated", "same", "empty"]),
        failing=draw.choice([0, 0, 0, 0.15]),
    )
    return World(
        seed=seed,
        kind=kind,
        brain=brain,
        tools=tuple(dict.fromkeys(tools)),
        streaming=draw.random() < 0.6,
        turns=draw.choice([0, 1, 3]),
        tool_turns=draw.choice([0, 5, 40, 80]),
        depth=draw.choice([1, 1, 2, 3]),
        right=draw.choice([0.0, 0.5, 1.0]),
        crowded=draw.choice([0.0, 0.0, 0.0, 0.3, 0.7]),
    )


@dataclass
class Outcome:
    """What a run has shown."""

    events: list[Any] = field(default_factory=list)
    result: Any = None
    memory: Any = None
    tools: list[tuple[str, str]] = field(default_factory=list)
    model_calls: int = 0
    stats: AgentStats = field(default_factory=AgentStats)


def guesser(drawn: World) -> Any:
    """Return a function that is right as often as the world says."""

    def guess(call: Any) -> Any:
        draw = random.Random(f"{drawn.seed} {call['name']} {call['args']}")
        q = call["args"].get("q")
        if draw.random() > drawn.right:
            return draw.choice([None, f"nothing about {q}"])
        if call["name"] == "broken":
            return ToolOutput(
                content=f"no {q} today", tool_name="broken", raw_input={}, is_error=True
            )
        return f"facts about {q}"

    return guess


def agent_of(drawn: World, box: Toolbox, log: Any) -> Any:
    """Make a world's agent."""
    llm = FakeLLM(brain=drawn.brain, react=drawn.kind == "react", turns=drawn.turns, log=log)
    if drawn.kind == "react":
        return ReActAgent(tools=box.tools(drawn.tools), llm=llm, streaming=drawn.streaming)
    agent = FunctionAgent(
        name="one",
        description="the one",
        tools=box.tools(drawn.tools),
        llm=llm,
        streaming=drawn.streaming,
        system_prompt="You are kind.",
    )
    return AgentWorkflow(agents=[agent]) if drawn.kind == "workflow" else agent


async def run(drawn: World, *, ahead: bool) -> Outcome:
    """Run a world's agent twice in one conversation, plainly or ahead."""
    box, log, outcome = Toolbox(turns=drawn.tool_turns), list[Any](), Outcome()
    agent = agent_of(drawn, box, log.append)
    if ahead:
        agent = speculate(
            agent,
            guess=guesser(drawn),
            depth=drawn.depth,
            read_only=["search"],
            handover_s=5,
            max_wasted_calls=None,
        )
        vars(agent)["_ralmspec_agent"].session.load = Crowded(drawn.seed, drawn.crowded)
    context = Context(agent)
    for asked in ("What about foxes?", "And owls?"):
        handler = agent.run(asked, ctx=context, max_iterations=8)
        try:
            async for event in handler.stream_events():
                outcome.events.append(bare(event))
            outcome.result = bare(await handler)
        except Exception as error:
            outcome.events.append(f"{type(error).__name__}: {error}")
            break
    memory = await context.store.get("memory")
    outcome.memory = [bare(one) for one in await memory.aget()]
    outcome.tools, outcome.model_calls = box.log, len(log)
    if ahead:
        outcome.stats = agent_stats(agent)
    return outcome


def bare(value: Any) -> Any:
    """Return an event's or a message's values, without times and the ids that the host makes up."""
    dumped = value.model_dump() if hasattr(value, "model_dump") else value
    return [type(value).__name__, _without_ids(dumped)]


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: "ID" if key == "tool_id" and len(str(one)) == 36 else _without_ids(one)
            for key, one in value.items()
            if key != "elapsed_seconds"
        }
    if isinstance(value, list | tuple):
        return [_without_ids(one) for one in value]
    if isinstance(value, str | int | float | bool | None):
        return value
    return _without_ids(value.model_dump()) if hasattr(value, "model_dump") else repr(value)
