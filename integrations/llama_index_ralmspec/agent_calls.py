"""Calls of an agent's model and tools, by values that are compared, and what follows from them."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from llama_index.core.agent.react.types import ActionReasoningStep, ObservationReasoningStep
from llama_index.core.agent.workflow import ReActAgent
from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.llms import LLM
from llama_index.core.tools import ToolOutput

from ralmspec_plugins.adapters.agents import arguments_of
from ralmspec_plugins.adapters.plain_data import copied_where_possible
from ralmspec_plugins.adapters.side_effects import plain_attributes
from ralmspec_plugins.types import Query, same_to_read


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool; calls are compared by name and arguments, not by id."""

    name: str
    kwargs: Mapping[str, Any]
    id: str = field(default="", compare=False)

    @property
    def query(self) -> Query:
        """The call as a query."""
        arguments = arguments_of(self.kwargs)
        return Query(f"{self.name} {arguments}", key=(self.name, arguments))


@dataclass(init=False, eq=False)
class _ToolView:
    """What a model reads about a tool: a workflow may make new tools for each call of a model."""

    kind: type
    about: dict[str, Any]
    schema: Any = field(compare=False)

    def __init__(self, tool: Any) -> None:
        self.kind = type(tool.metadata)
        self.about = vars(tool.metadata).copy()
        self.schema = self.about.pop("fn_schema", None)

    def __eq__(self, other: object) -> bool:
        """Return whether the arguments' schemas are equal; `same_to_read` compares the fields."""
        if not isinstance(other, _ToolView):
            return NotImplemented
        if self.schema is other.schema:
            return True
        ours, theirs = self.schema.model_json_schema(), other.schema.model_json_schema()
        return same_to_read(ours, theirs)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True, eq=False)
class ModelCall:
    """One call of a model by an agent.

    Attributes:
        llm: the caller's own model.
        method: the name of the called method.
        messages: the history.
        kwargs: tools and settings.
        key: a copy of all these values, and of the model's and the tools' own settings.
    """

    llm: LLM
    method: str
    messages: Sequence[ChatMessage]
    kwargs: Mapping[str, Any]
    key: tuple[Any, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Copy the values of the call."""
        tools = [_ToolView(tool) for tool in self.kwargs.get("tools") or ()]
        rest = {name: value for name, value in self.kwargs.items() if name != "tools"}
        more = getattr(self.llm, "additional_kwargs", None)
        settings = plain_attributes(self.llm), dict(more) if isinstance(more, Mapping) else more
        key = ([one.model_dump() for one in self.messages], tools, rest, settings)
        object.__setattr__(self, "key", key)

    def __eq__(self, other: object) -> bool:
        """Return whether the calls are equal; values that cannot be compared are not."""
        if not isinstance(other, ModelCall):
            return NotImplemented
        try:
            same = self.llm is other.llm and self.method == other.method
            return same and same_to_read(self.key, other.key)
        except Exception:  # noqa: BLE001 such as an array in a message
            return False

    __hash__ = None  # type: ignore[assignment]

    @property
    def samples(self) -> bool:
        """Whether the model has a temperature, other than 0: equal requests differ in replies."""
        more = getattr(self.llm, "additional_kwargs", None)
        found = {**vars(self.llm), **(more if isinstance(more, Mapping) else {})}
        return bool(found.get("temperature", 0) != 0)

    @property
    def streams(self) -> bool:
        """Whether the reply is a stream."""
        return self.method.startswith("astream")

    def changed(self, messages: Sequence[ChatMessage]) -> bool:
        """Return whether messages that the model was given are no longer those of the call."""
        return not same_to_read(self.key[0], [one.model_dump() for one in messages])

    async def made(self, messages: Sequence[ChatMessage] | None = None) -> Any:
        """Make the call, with a copy of its messages if one is given; return its reply."""
        call: Any = getattr(self.llm, self.method)
        history = list(self.messages if messages is None else messages)
        if "with_tools" in self.method:
            return await call(chat_history=history, **self.kwargs)
        return await call(history, **self.kwargs)

    async def ahead(self) -> AsyncGenerator[ChatResponse, None]:
        """Make the call with a copy of the history, and yield copies of its reply's pieces.

        Raises:
            RuntimeError: the model changed the history, as it would change the caller's.
        """
        messages = copied_where_possible(list(self.messages))
        reply = await self.made(messages)
        if not self.streams:
            self._check(messages)
            yield reply
            return
        async with aclosing(pieces_of(reply)) as pieces:
            async for piece in pieces:  # models may yield one object again and again, and write it
                yield snapshot(piece)
        self._check(messages)

    def _check(self, messages: Sequence[ChatMessage]) -> None:
        if self.changed(messages):
            raise RuntimeError("the model changes the history that it is given")


async def pieces_of(reply: Any) -> AsyncGenerator[ChatResponse, None]:
    """Yield the pieces of a model's stream, and close it."""
    try:
        async for piece in reply:
            yield piece
    finally:
        if hasattr(reply, "aclose"):
            await reply.aclose()


def snapshot(piece: ChatResponse) -> ChatResponse:
    """Return a copy of a piece, which stays as it is when the model writes on in the original."""
    copied: dict[str, Any] = {
        "message": piece.message.model_copy(deep=True),
        "additional_kwargs": deepcopy(piece.additional_kwargs),
    }
    try:
        copied["raw"] = deepcopy(piece.raw)
    except Exception:  # noqa: BLE001 a provider's own object, which it does not write on
        copied["raw"] = piece.raw
    return piece.model_copy(update=copied)


def blocks_of(output: ToolOutput) -> list[Any]:
    """Return the content of a tool's result, by values."""
    return [block.model_dump() for block in output.blocks]


def output_of(call: ToolCall, *, content: Any = None, blocks: Any = None) -> ToolOutput:
    """Return a tool's result of a text or of content blocks."""
    given = {"blocks": blocks} if content is None else {"content": str(content)}
    return ToolOutput(tool_name=call.name, raw_input=dict(call.kwargs), raw_output=None, **given)


def message_of(call: ToolCall, output: ToolOutput) -> ChatMessage:
    """Return the message that a `FunctionAgent` makes of a tool's result."""
    about = {"tool_call_id": call.id}
    return ChatMessage(role="tool", blocks=output.blocks, additional_kwargs=about)


def reasoning_of(
    agent: ReActAgent, tail: Sequence[Any], observed: Sequence[Any]
) -> list[ChatMessage]:
    """Return the messages that a `ReActAgent` makes of a reasoning step and its results."""
    seen = [
        ObservationReasoningStep(observation=str(output.content), return_direct=False)
        for _, output in observed
    ]
    return list(agent.formatter.format([], chat_history=[], current_reasoning=[*tail, *seen])[1:])


def reply_of(agent: Any, call: ModelCall, last: ChatResponse) -> tuple[list[Any], list[ToolCall]]:
    """Return a reply's additions to the history, and its tool calls, as the agent reads them."""
    if isinstance(agent, ReActAgent):
        try:
            step = agent.output_parser.parse(last.message.content or "", is_streaming=False)
        except ValueError:
            return [], []
        if not isinstance(step, ActionReasoningStep):
            return [], []
        return [step], [ToolCall(step.action, dict(step.action_input))]
    llm: Any = call.llm
    found = llm.get_tool_calls_from_response(last, error_on_no_tool_call=False) or []
    return [last.message], [ToolCall(one.tool_name, one.tool_kwargs, one.tool_id) for one in found]


def tokens_of(response: ChatResponse) -> int:
    """Return the number of tokens that a reply reports in one of the usual fields."""
    raw: Any = response.raw
    usage = raw.get("usage") if isinstance(raw, Mapping) else getattr(raw, "usage", None)
    for reported in (usage, response.additional_kwargs):
        total = (
            reported.get("total_tokens")
            if isinstance(reported, Mapping)
            else getattr(reported, "total_tokens", None)
        )
        if isinstance(total, int):
            return total
    return 0
