"""Agents with models, tools and middlewares that behave oddly: the host's outcome is ours."""

import asyncio
import contextvars
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import BaseTool, StructuredTool
from langchain_ralmspec.agents import AgentStats, SpeculativeTools
from langgraph.config import get_stream_writer

from tests.brain import Brain
from tests.langchain.agents.parts import FakeModel, Question, Toolbox, Trace, turns

WAYS = ("invoke", "ainvoke")
ASKED = {"messages": [("user", "What about foxes?")]}


def facts(call: Any) -> str:
    return f"facts about {call['args']['q']}"


def nonsense(_: Any) -> str:
    return "nonsense"


class Agents:
    """One agent, run plainly and ahead of its tools; a stream of some mode, or its result."""

    def __init__(
        self,
        model: Callable[[], Any],
        tools: Callable[[], list[BaseTool]],
        middleware: Sequence[Any] = (),
        mode: Any = None,
    ) -> None:
        self.parts = model, tools, middleware
        self.mode = mode

    def both(self, way: str, **options: Any) -> tuple[Any, Any, AgentStats]:
        ours = SpeculativeTools(**{"guess": facts, "handover_s": 5, **options})
        plain, ahead = (self._outcome(way, given) for given in ([], [ours]))
        return plain, ahead, ours.stats

    def _outcome(self, way: str, ours: list[Any]) -> Any:
        model, tools, middleware = self.parts
        agent: Any = create_agent(model(), tools(), middleware=[*middleware, *ours])
        trace = Trace()
        try:
            if way == "invoke":
                return [trace.of(one) for one in self._steps(agent)]
            return [trace.of(one) for one in asyncio.run(self._asteps(agent))]
        except Exception as error:
            return repr(error)

    def _steps(self, agent: Any) -> list[Any]:
        if self.mode is None:
            return [agent.invoke(ASKED)]
        return list(agent.stream(ASKED, stream_mode=self.mode))

    async def _asteps(self, agent: Any) -> list[Any]:
        if self.mode is None:
            return [await agent.ainvoke(ASKED)]
        return [one async for one in agent.astream(ASKED, stream_mode=self.mode)]


def agents(
    model: type[FakeModel] = FakeModel,
    answer: Callable[[str], Any] = lambda q: f"facts about {q}",
    **about: Any,
) -> Agents:
    """Make agents with one tool, which waits long enough for the model to run beside it."""
    tools = lambda: [Toolbox(turns=40, sleep_s=0.01)._tool("search", answer)]  # noqa: E731
    return Agents(lambda: model(brain=Brain(hops=3)), tools, **about)


class Changing(FakeModel):
    """Writes one more word, by what it holds."""

    held: Any = None

    def more(self) -> str:
        raise NotImplementedError

    def reply(self, messages: Any, tools: Any) -> Any:
        made = super().reply(messages, tools)
        return replace(made, words=(*made.words, self.more()))


class NumpyGenerator(Changing):
    def more(self) -> str:
        self.held = self.held or np.random.default_rng(1)
        return str(self.held.integers(10**6))

    def model_post_init(self, _: Any) -> None:
        self.held = np.random.default_rng(1)


class NumpyState(NumpyGenerator):
    def model_post_init(self, _: Any) -> None:
        self.held = np.random.RandomState(1)

    def more(self) -> str:
        return str(self.held.randint(10**6))


class TorchGenerator(NumpyGenerator):
    def model_post_init(self, _: Any) -> None:
        self.held = torch.Generator().manual_seed(1)

    def more(self) -> str:
        return str(torch.randint(10**6, (1,), generator=self.held).item())


class Takes(NumpyGenerator):
    def model_post_init(self, _: Any) -> None:
        self.held = list(range(100))

    def more(self) -> str:
        return str(self.held.pop(0))


class Marks(Changing):
    def reply(self, messages: Any, tools: Any) -> Any:
        messages[0].content += "!"
        return FakeModel.reply(self, messages, tools)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [NumpyGenerator, NumpyState, TorchGenerator, Takes, Marks])
def test_models_whose_calls_leave_traces_are_not_called_ahead(kind: Any, way: str) -> None:
    """Random generators and answers of its own; a model that writes into the history."""
    plain, ahead, stats = agents(kind).both(way, guess=nonsense)

    assert len(plain) == 1
    assert plain == ahead
    assert 0 == stats.calls_ahead


class Drops(FakeModel):
    """Returns what is no reply to a history with nonsense in it."""

    nothing: Any = None

    def _whole(self, messages: Any, kwargs: Any) -> Any:
        if any(one.content == "nonsense" for one in messages):
            return self.nothing
        return super()._whole(messages, kwargs)


NO_REPLIES = (
    None,
    ChatResult(generations=[]),
    ChatResult(generations=[ChatGeneration(message=HumanMessage("who?"))]),
)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("nothing", NO_REPLIES)
def test_no_reply_to_a_wrong_guess_is_dropped(nothing: Any, way: str) -> None:
    """The plain agent never makes this call."""
    model = lambda: Drops(brain=Brain(hops=3), nothing=nothing)  # noqa: E731
    plain, ahead, stats = Agents(model, agents().parts[1]).both(way, guess=nonsense)

    assert len(plain) == 1
    assert plain == ahead
    assert stats.dropped >= 1


class HaltError(BaseException):
    """Is no `Exception`."""


class Ends(FakeModel):
    """Ends the process, or calls a tool that does, where a history has nonsense in it."""

    error: Any = None  # else the tool is called

    def reply(self, messages: Any, tools: Any) -> Any:
        reply = super().reply(messages, tools)
        if not any(one.content == "nonsense" for one in messages):
            return reply
        if self.error is not None:
            raise self.error
        return replace(reply, calls=tuple({**one, "args": {"q": "end"}} for one in reply.calls))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("error", [SystemExit(1), HaltError()])
@pytest.mark.parametrize("who", ["model", "tool", "guess"])
def test_nothing_ends_because_of_a_wrong_guess(who: str, error: BaseException, way: str) -> None:
    """`SystemExit` in a task would end the whole event loop."""

    def answer(q: str) -> str:
        if q == "end":
            raise error
        return f"facts about {q}"

    def guess(call: Any) -> str:
        if who == "guess":
            raise error
        return "nonsense"

    model = lambda: Ends(brain=Brain(hops=3), error=error if who == "model" else None)  # noqa: E731
    made = Agents(model, agents(answer=answer).parts[1])
    plain, ahead, stats = made.both(way, guess=guess, depth=2, read_only=["search"])

    assert len(plain) == 1
    assert plain == ahead
    assert stats.tools_ahead >= 1 or who != "tool"
    assert stats.failed >= 1 or who != "model"


class Lists(FakeModel):
    """Gives its tool a list, with the number of the messages in it."""

    def reply(self, messages: Any, tools: Any) -> Any:
        reply = super().reply(messages, tools)
        seen = {"seen": [len(messages)]}
        return replace(
            reply, calls=tuple({**one, "args": one["args"] | seen} for one in reply.calls)
        )


@pytest.mark.parametrize("way", WAYS)
def test_a_tool_that_changes_its_arguments_changes_those_of_the_agent(way: str) -> None:
    """What it does to them ahead of the host would be missing in the agent's state."""

    def search(q: str, seen: list[int]) -> str:
        if seen[0] > 1:
            seen.append(0)
        time.sleep(0.01)
        return f"facts about {q}"

    async def asearch(q: str, seen: list[int]) -> str:
        await turns(40)
        return search(q, seen)

    schema = {"type": "object", "properties": {"q": {}, "seen": {}}, "required": ["q", "seen"]}
    tool = StructuredTool(
        name="search", description="Search.", func=search, coroutine=asearch, args_schema=schema
    )
    made = Agents(lambda: Lists(brain=Brain(hops=3)), lambda: [tool])
    plain, ahead, stats = made.both(way, depth=3, read_only=["search"])

    assert "'seen': [3, 0]" in str(plain)
    assert plain == ahead
    assert stats.tools_ahead >= 1


class Reads(FakeModel):
    """Writes what a tool returned as Python shows it."""

    def reply(self, messages: Any, tools: Any) -> Any:
        made = super().reply(messages, tools)
        return replace(made, words=(*made.words, repr(messages[-1].content)))


TRUE = {"type": "text", "text": "x", "n": 1}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "guess", [{"text": "x", "type": "text", "n": 1}, {**TRUE, "n": True}, {**TRUE, "n": 1.0}]
)
def test_a_guess_that_is_equal_and_reads_differently_is_wrong(guess: Any, way: str) -> None:
    """Of content blocks: the order of keys, and numbers of another type."""
    given = agents(Reads, lambda _: [dict(TRUE)])
    plain, ahead, stats = given.both(way, guess=lambda _: [dict(guess)])
    _, _, right = given.both(way, guess=lambda _: [dict(TRUE)])

    assert guess == TRUE
    assert plain == ahead
    assert 0 == stats.committed
    assert right.committed >= 1


@pytest.mark.parametrize("way", WAYS)
def test_observations_that_cannot_be_compared_are_not_equal(way: str) -> None:
    """No error of a comparison reaches the agent."""
    find: Callable[[Any], Any] = lambda _: [{"type": "json", "json": Incomparable()}]  # noqa: E731
    plain, ahead, stats = agents(Texts, find).both(way, guess=find)

    assert "no truth value" not in repr(ahead)
    assert plain == ahead
    assert 0 == stats.committed


@pytest.mark.parametrize("way", WAYS)
def test_arrays_are_compared_bit_by_bit(way: str) -> None:
    """An array has no truth value, and yet equal ones are a right guess; 0.0 and -0.0 are not."""
    find: Callable[[Any], Any] = lambda _: [{"type": "json", "json": np.zeros(3)}]  # noqa: E731
    other: Callable[[Any], Any] = lambda _: [{"type": "json", "json": -np.zeros(3)}]  # noqa: E731
    plain, ahead, right = agents(Texts, find).both(way, guess=find)
    still, beside, wrong = agents(Texts, find).both(way, guess=other)

    assert plain == ahead
    assert still == beside
    assert wrong.committed < right.committed  # it learns what the tool returned


class Incomparable:
    """A value whose comparison raises."""

    __hash__ = object.__hash__

    def __eq__(self, _: object) -> bool:
        raise ValueError("no truth value")

    def __repr__(self) -> str:
        return "Incomparable()"


class Texts(FakeModel):
    """Reads texts only."""

    def reply(self, messages: Any, tools: Any) -> Any:
        texts = [one.model_copy(update={"content": str(one.content)}) for one in messages]
        return super().reply(texts, tools)


class Sandboxes(AgentMiddleware[Any, Any]):
    """Calls another tool in place of the agent's."""

    def wrap_tool_call(self, request: Any, handler: Any) -> Any:
        return handler(request.override(tool=self._other()))

    async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
        return await handler(request.override(tool=self._other()))

    def _other(self) -> BaseTool:
        box = Toolbox(turns=40, sleep_s=0.01)
        return box._tool("search", lambda q: f"sandboxed {q}")


@pytest.mark.parametrize("way", WAYS)
def test_a_tool_that_a_middleware_replaces_is_not_the_one_that_ran_ahead(way: str) -> None:
    """What was called early was the agent's own tool."""
    plain, ahead, stats = agents(middleware=[Sandboxes()]).both(
        way,
        guess=lambda call: f"sandboxed {call['args']['q']}",
        depth=3,
        read_only=["search"],
    )

    assert "sandboxed" in repr(plain)
    assert plain == ahead
    assert stats.tools_ahead >= 1


def _says(q: str) -> str:
    get_stream_writer()(f"searching {q}")
    return f"facts about {q}"


async def _asays(q: str) -> str:
    await turns(40)
    return _says(q)


class Says(FakeModel):
    """Writes into the stream how much it has read."""

    def reply(self, messages: Any, tools: Any) -> Any:
        get_stream_writer()(f"reading {len(messages)}")
        return super().reply(messages, tools)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("guess", [facts, nonsense])
@pytest.mark.parametrize("who", ["model", "tool"])
def test_the_stream_has_what_the_hosts_own_calls_write(who: str, guess: Any, way: str) -> None:
    """A call that writes with LangGraph's stream writer is made by the host itself."""
    tool = StructuredTool(
        name="search", description="search", func=_says, coroutine=_asays, args_schema=Question
    )
    given = agents(Says, mode="custom")
    if who == "tool":
        given = Agents(lambda: FakeModel(brain=Brain(hops=3)), lambda: [tool], mode="custom")
    plain, ahead, stats = given.both(way, guess=guess, depth=3, read_only=["search"])

    assert len(plain) >= 3
    assert plain == ahead
    assert stats.calls_ahead >= 1


tenant = contextvars.ContextVar("tenant", default="everybody")


class Tenants(AgentMiddleware[Any, Any]):
    """Sets whom the model is called for."""

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        token = tenant.set("ann")
        try:
            return handler(request)
        finally:
            tenant.reset(token)

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        token = tenant.set("ann")
        try:
            return await handler(request)
        finally:
            tenant.reset(token)


class Personal(FakeModel):
    """Writes for whom it was called."""

    def reply(self, messages: Any, tools: Any) -> Any:
        made = super().reply(messages, tools)
        return replace(made, words=(*made.words, tenant.get()))


@pytest.mark.parametrize("way", WAYS)
def test_a_call_ahead_has_the_context_of_the_models_calls(way: str) -> None:
    """What a middleware sets around each call of the model is set ahead, too."""
    plain, ahead, stats = agents(Personal, middleware=[Tenants()]).both(way)

    assert "ann" in repr(plain)
    assert plain == ahead
    assert stats.committed >= 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration, KeyError])
@pytest.mark.parametrize("who", ["model", "tool"])
def test_an_error_is_the_hosts(who: str, error: type[Exception], way: str) -> None:
    """The end of an iteration, too, which generators turn into another error."""

    class Ends(FakeModel):
        def reply(self, messages: Any, tools: Any) -> Any:
            if len(messages) > 2:
                raise error("ended")
            return super().reply(messages, tools)

    def fail(_: str) -> Any:
        raise error("ended")

    given = agents(Ends) if who == "model" else agents(answer=fail)
    plain, ahead, _ = given.both(way, depth=2, read_only=["search"])

    assert error.__name__ in plain
    assert plain == ahead


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("guess", [5, [None], np.zeros(3), object()])
def test_a_guess_that_is_nonsense_is_wrong(guess: Any, way: str) -> None:
    """Whatever a function returns."""
    plain, ahead, _ = agents().both(way, guess=lambda _: guess)

    assert len(plain) == 1
    assert plain == ahead
