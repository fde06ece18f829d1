"""What agents in tests are made of: a model, tools that wait, and traces to compare."""

import asyncio
import dataclasses
import json
import re
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Annotated, Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ToolMessage,
    convert_to_openai_messages,
)
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import (
    BaseTool,
    InjectedToolCallId,
    StructuredTool,
    ToolException,
    tool,
)
from langgraph.types import Command, interrupt
from pydantic import BaseModel, ConfigDict

from tests.brain import Brain, ModelDownError, Reply


class FakeModel(BaseChatModel):
    """Streams what a brain says, a word in so many turns of the event loop."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    brain: Brain
    turns: int = 2
    sleep_s: float = 0.0
    log: Any = None  # is called with the history of each call

    @property
    def _llm_type(self) -> str:
        return "brain"

    def bind_tools(self, tools: Sequence[Any], *, tool_choice: Any = None, **kwargs: Any) -> Any:
        schemas = [
            one
            if isinstance(one, dict) and "function" not in one
            else {"type": "function", "function": {"name": getattr(one, "name", str(one))}}
            for one in tools
        ]
        return self.bind(tools=schemas, tool_choice=tool_choice, **kwargs)

    def reply(self, messages: Sequence[BaseMessage], tools: Sequence[Any]) -> Reply:
        history: Any = convert_to_openai_messages(messages)
        if self.log is not None:
            self.log(history)
        names = [tool["function"]["name"] for tool in tools if "function" in tool]
        return self.brain.reply(history, names)

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        time.sleep(self.sleep_s)
        return self._whole(messages, kwargs)

    async def _agenerate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        await turns(3 * self.turns)
        if self.sleep_s:
            await asyncio.sleep(self.sleep_s)
        result = self._whole(messages, kwargs)
        if run_manager is not None:
            await run_manager.on_llm_new_token("told by itself")
        return result

    def _whole(self, messages: list[BaseMessage], kwargs: dict[str, Any]) -> ChatResult:
        reply = self.reply(messages, kwargs.get("tools", ()))
        if reply.fails_after is not None:
            raise ModelDownError("the model is down")
        message = AIMessage(
            content="".join(reply.words),
            tool_calls=[{**call, "type": "tool_call"} for call in reply.calls],  # type: ignore[typeddict-item]
            usage_metadata=_usage(reply),
            response_metadata={"finish_reason": "whole"},
        )
        generation = ChatGeneration(message=message, generation_info={"seen": 1})
        return ChatResult(generations=[generation], llm_output={"model": "brain"})

    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        for chunk in _chunks(self.reply(messages, kwargs.get("tools", ()))):
            time.sleep(self.sleep_s)
            yield chunk

    async def _astream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in _chunks(self.reply(messages, kwargs.get("tools", ()))):
            await turns(self.turns)
            if self.sleep_s:
                await asyncio.sleep(self.sleep_s)
            yield chunk


def _usage(reply: Reply) -> Any:
    given, made = reply.tokens
    return {"input_tokens": given, "output_tokens": made, "total_tokens": given + made}


def _chunks(reply: Reply) -> Iterator[ChatGenerationChunk]:
    for number, word in enumerate(reply.words):
        if number == reply.fails_after:
            raise ModelDownError("the model is down")
        yield ChatGenerationChunk(message=AIMessageChunk(content=word))
    if reply.fails_after is not None:
        raise ModelDownError("the model is down")
    for index, call in enumerate(reply.calls):
        args = json.dumps(call["args"])
        head = {"name": call["name"], "args": args[:4], "id": call["id"], "index": index}
        rest = {"name": None, "args": args[4:], "id": None, "index": index}
        for part in (head, rest):
            yield ChatGenerationChunk(message=AIMessageChunk(content="", tool_call_chunks=[part]))  # type: ignore[list-item]
    end = AIMessageChunk(content="", usage_metadata=_usage(reply))
    yield ChatGenerationChunk(message=end, generation_info={"finish_reason": "stop"})


async def turns(count: int) -> None:
    """Let the event loop turn so many times."""
    for _ in range(count):
        await asyncio.sleep(0)


class Question(BaseModel):
    """What a tool takes."""

    q: str


@dataclasses.dataclass
class Toolbox:
    """Tools that note their calls."""

    turns: int = 8
    sleep_s: float = 0.0
    log: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def tools(self, names: Sequence[str]) -> list[BaseTool]:
        return [getattr(self, name)() for name in names]

    def search(self) -> BaseTool:
        return self._tool("search", lambda q: f"facts about {q}")

    def artful(self) -> BaseTool:
        return self._tool("artful", lambda q: (f"found {q}", {"of": q}), artifact=True)

    def broken(self) -> BaseTool:
        def fail(q: str) -> str:
            raise ToolException(f"no {q} today")

        return self._tool("broken", fail, handled=True)

    def deadly(self) -> BaseTool:
        def fail(q: str) -> str:
            raise ValueError(f"no {q} ever")

        return self._tool("deadly", fail)

    def asking(self) -> BaseTool:
        return self._tool("asking", lambda q: f"they said {interrupt({'about': q})}")

    def command(self) -> BaseTool:
        @tool
        async def command(q: str, tool_call_id: Annotated[str, InjectedToolCallId]) -> Any:
            """Change the state."""
            self.log.append(("command", q))
            await turns(self.turns)
            message = ToolMessage(f"set {q}", name="command", tool_call_id=tool_call_id)
            return Command(update={"messages": [message]})

        return command

    def direct(self) -> BaseTool:
        return self._tool("direct", lambda q: f"just {q}", direct=True)

    def _tool(
        self,
        name: str,
        answer: Any,
        *,
        artifact: bool = False,
        handled: bool = False,
        direct: bool = False,
    ) -> BaseTool:
        def call(q: str) -> Any:
            self.log.append((name, q))
            time.sleep(self.sleep_s)
            return answer(q)

        async def acall(q: str) -> Any:
            self.log.append((name, q))
            await turns(self.turns)
            if self.sleep_s:
                await asyncio.sleep(self.sleep_s)
            return answer(q)

        return StructuredTool(
            name=name,
            description=name,
            func=call,
            coroutine=acall,
            args_schema=Question,
            response_format="content_and_artifact" if artifact else "content",
            handle_tool_error=handled,
            return_direct=direct,
        )


class Listener(BaseCallbackHandler):
    """Notes what handlers are told."""

    run_inline = True

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def on_chat_model_start(self, serialized: Any, messages: Any, **about: Any) -> None:
        self.heard.append(("model starts", messages, about.get("invocation_params")))

    def on_llm_new_token(self, token: Any, **about: Any) -> None:
        self.heard.append(("token", token))

    def on_llm_end(self, response: Any, **about: Any) -> None:
        self.heard.append(("model ends", [one.message for one in response.generations[0]]))

    def on_llm_error(self, error: BaseException, **about: Any) -> None:
        self.heard.append(("model fails", repr(error)))

    def on_tool_start(self, serialized: Any, text: str, **about: Any) -> None:
        self.heard.append(("tool starts", text))

    def on_tool_end(self, output: Any, **about: Any) -> None:
        self.heard.append(("tool ends", output))

    def on_tool_error(self, error: BaseException, **about: Any) -> None:
        self.heard.append(("tool fails", repr(error)))


_ID = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.+]+")
_SHORTEST = 19  # characters of an id or a time
_PLACE = re.compile(r"0x[0-9a-f]+")


class Trace:
    """Makes what a run gives comparable: ids become numbers by their first appearance."""

    def __init__(self, *, numbered: bool = True) -> None:
        self._ids: dict[str, int] = {}
        self._numbered = numbered

    def of(self, value: Any) -> Any:
        if isinstance(value, str):
            return value if len(value) < _SHORTEST else self._text(value)
        if isinstance(value, float | int | bool | None):
            return value
        if isinstance(value, dict):
            return {self.of(key): self.of(one) for key, one in value.items()}
        if isinstance(value, BaseMessage | BaseModel):
            return [type(value).__name__, self.of(self._fields(value))]
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return [type(value).__name__, *map(self.of, value)]
        if isinstance(value, list | tuple | set | frozenset):
            return [self.of(one) for one in value]
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            names = [one.name for one in dataclasses.fields(value)]
            return [type(value).__name__, {name: self.of(getattr(value, name)) for name in names}]
        return self._text(str(value))

    def _fields(self, value: BaseMessage | BaseModel) -> dict[str, Any]:
        fields = dict(value)
        if isinstance(value, BaseMessage) and not self._numbered:
            fields["id"] = "ID"  # whether a checkpoint already has it is a race of the host's
        return fields

    def _text(self, text: str) -> str:
        return _ID.sub(self._number, _PLACE.sub("AT", _TIME.sub("TIME", text)))

    def _number(self, found: re.Match[str]) -> str:
        if not self._numbered:
            return "ID"
        return f"ID{self._ids.setdefault(found.group(), len(self._ids))}"


def config_of(thread: str | None, listener: Listener) -> RunnableConfig:
    configurable = {} if thread is None else {"thread_id": thread}
    return RunnableConfig(callbacks=[listener], configurable=configurable, recursion_limit=40)
