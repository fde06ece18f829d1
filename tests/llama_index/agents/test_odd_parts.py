"""Agents with models and tools that behave oddly: the host's outcome is ours."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import CitationBlock, TextBlock
from llama_index.core.tools import FunctionTool, ToolOutput
from llama_index_ralmspec import AgentStats, agent_stats, speculate

from tests.brain import Brain
from tests.llama_index.agents.parts import FakeLLM, bare, turns

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Skipping serialization"),
]
WAYS = ("function", "function, streamed", "react", "react, streamed")


def facts(call: Any) -> str:
    return f"facts about {call['args']['q']}"


def nonsense(_: Any) -> str:
    return "nonsense"


def both(
    way: str,
    model: type[FakeLLM] = FakeLLM,
    answer: Callable[[str], Any] = lambda q: f"facts about {q}",
    **options: Any,
) -> tuple[list[Any], list[Any], AgentStats]:
    """Run an agent plainly and ahead of its tool; return both runs' events with their results."""

    async def call(q: str) -> Any:
        await turns(40)
        return answer(q)

    def made(*, ours: bool) -> Any:
        tool = FunctionTool.from_defaults(async_fn=call, name="search", description="search")
        kind: Any = ReActAgent if "react" in way else FunctionAgent
        llm = model(brain=Brain(hops=3), react="react" in way)
        agent = kind(tools=[tool], llm=llm, streaming="streamed" in way)
        given = {"guess": facts, "handover_s": 5, **options}
        return speculate(agent, **given) if ours else agent

    ahead = made(ours=True)
    plain = asyncio.run(outcome(made(ours=False)))
    return plain, asyncio.run(outcome(ahead)), agent_stats(ahead)


async def outcome(agent: Any) -> list[Any]:
    shown: list[Any] = []
    handler = agent.run("What about foxes?", max_iterations=8)
    try:
        shown += [bare(event) async for event in handler.stream_events()]
        shown.append(bare(await handler))
    except Exception as error:
        shown.append(repr(error))
    return shown


class Changing(FakeLLM):
    """Writes one more word, by what it holds."""

    held: Any = None

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        self.held = self.begun()

    def begun(self) -> Any:
        return np.random.default_rng(1)

    def more(self) -> str:
        return str(self.held.integers(10**6))

    def _reply(self, messages: Any) -> Any:
        made, words = super()._reply(messages)
        return made, [*words, self.more()]


class TorchGenerator(Changing):
    def begun(self) -> Any:
        return torch.Generator().manual_seed(1)

    def more(self) -> str:
        return str(torch.randint(10**6, (1,), generator=self.held).item())


class Takes(Changing):
    def begun(self) -> Any:
        return list(range(100))

    def more(self) -> str:
        return str(self.held.pop(0))


class Marks(FakeLLM):
    def _reply(self, messages: Any) -> Any:
        messages[0].blocks = [TextBlock(text=f"{messages[0].content}!")]
        return super()._reply(messages)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [Changing, TorchGenerator, Takes, Marks])
def test_models_whose_calls_leave_traces_are_not_called_ahead(kind: Any, way: str) -> None:
    """Random generators and answers of its own; a model that writes into the history."""
    plain, ahead, stats = both(way, kind, guess=nonsense)

    assert len(plain) > 5
    assert plain == ahead
    assert 0 == stats.calls_ahead


class OneObject(FakeLLM):
    """Streams one response, which it writes again and again."""

    async def astream_chat(self, messages: Any, **kwargs: Any) -> Any:
        pieces = await super().astream_chat(messages, **kwargs)

        async def same() -> Any:
            one = None
            async for piece in pieces:
                one = one or piece
                one.message.blocks = piece.message.blocks
                one.message.additional_kwargs = piece.message.additional_kwargs
                one.delta, one.raw = piece.delta, piece.raw
                yield one

        return same()


@pytest.mark.parametrize("way", WAYS)
def test_each_piece_of_a_stream_is_as_it_was_when_it_came(way: str) -> None:
    """Of a call that ran ahead, too."""
    plain, ahead, stats = both(way, OneObject)

    assert len(plain) > 5
    assert plain == ahead
    assert stats.committed >= 1


class Drops(FakeLLM):
    """Gives nothing for a history with nonsense in it."""

    def wrong(self, messages: Any) -> bool:
        return any("nonsense" in str(one.content) for one in messages)

    async def achat(self, messages: Any, **kwargs: Any) -> Any:
        return None if self.wrong(messages) else await super().achat(messages, **kwargs)

    async def astream_chat(self, messages: Any, **kwargs: Any) -> Any:
        pieces = await super().astream_chat(messages, **kwargs)

        async def nothing() -> Any:
            yield None

        return nothing() if self.wrong(messages) else pieces


@pytest.mark.parametrize("way", WAYS)
def test_no_reply_to_a_wrong_guess_is_dropped(way: str) -> None:
    """The plain agent never makes this call."""
    plain, ahead, stats = both(way, Drops, guess=nonsense)

    assert len(plain) > 5
    assert plain == ahead
    assert stats.dropped >= 1


class HaltError(BaseException):
    """Is no `Exception`."""


class Ends(FakeLLM):
    """Ends the process where a history has nonsense in it."""

    error: Any = SystemExit(1)

    def _reply(self, messages: Any) -> Any:
        if any("nonsense" in str(one.content) for one in messages):
            raise self.error
        return super()._reply(messages)


class Halts(Ends):
    error: Any = HaltError()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", [Ends, Halts])
def test_nothing_ends_because_of_a_wrong_guess(model: type[FakeLLM], way: str) -> None:
    """`SystemExit` in a task would end the whole event loop."""
    plain, ahead, stats = both(way, model, guess=nonsense)

    assert len(plain) > 5
    assert plain == ahead
    assert stats.failed >= 1


class Lists(FakeLLM):
    """Gives its tool a list, with the number of the messages in it."""

    def _reply(self, messages: Any) -> Any:
        reply, words = super()._reply(messages)
        for one in reply.calls:
            one["args"]["q"] = [len(messages), one["args"]["q"]]
        return reply, words


@pytest.mark.parametrize("way", WAYS[:2])
def test_a_tool_that_changes_its_arguments_changes_those_of_the_agent(way: str) -> None:
    """What it does to them ahead of the host would be missing in the agent's memory."""

    def answer(q: Any) -> str:
        if q[0] > 1:
            q.append("seen")
        return f"facts about {q[1]}"

    guess = lambda call: f"facts about {call['args']['q'][1]}"  # noqa: E731
    plain, ahead, stats = both(way, Lists, answer, guess=guess, depth=3, read_only=["search"])

    assert "'seen'" in str(plain)
    assert plain == ahead
    assert stats.tools_ahead >= 1


class Reads(FakeLLM):
    """Writes what a tool returned as Python shows it."""

    def _reply(self, messages: Any) -> Any:
        made, words = super()._reply(messages)
        return made, [*words, *(repr(one) for one in messages[-1].blocks)]


def cited(**places: int) -> CitationBlock:
    text = TextBlock(text="x")
    return CitationBlock(cited_content=text, source="s", title="t", additional_location_info=places)


@pytest.mark.parametrize("way", WAYS[:2])
def test_a_guess_that_is_equal_and_reads_differently_is_wrong(way: str) -> None:
    """Of content blocks: the order of keys."""

    def guess(block: CitationBlock) -> Callable[[Any], ToolOutput]:
        about: dict[str, Any] = {"tool_name": "search", "raw_input": {}, "raw_output": None}
        return lambda _: ToolOutput(blocks=[block], **about)

    find = lambda _: cited(page=1, line=2)  # noqa: E731
    plain, ahead, stats = both(way, Reads, find, guess=guess(cited(line=2, page=1)))
    _, _, right = both(way, Reads, find, guess=guess(cited(page=1, line=2)))

    assert "'page': 1, 'line': 2" in repr(plain)
    assert plain == ahead
    assert 0 == stats.committed
    assert right.committed >= 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration, KeyError])
def test_an_error_of_the_model_is_the_hosts(error: type[Exception], way: str) -> None:
    """The end of an iteration, too, which generators turn into another error."""

    class Ends(FakeLLM):
        async def achat(self, messages: Any, **kwargs: Any) -> Any:
            await self.check(messages)
            return await super().achat(messages, **kwargs)

        async def astream_chat(self, messages: Any, **kwargs: Any) -> Any:
            await self.check(messages)
            return await super().astream_chat(messages, **kwargs)

        async def check(self, messages: Any) -> None:
            if len(messages) > 1:
                raise error("ended")

    plain, ahead, _ = both(way, Ends)

    assert error.__name__ in plain[-1]
    assert plain == ahead


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration])
def test_an_error_of_a_tool_is_the_hosts(error: type[Exception], way: str) -> None:
    """Of a tool that ran ahead, too."""

    def fail(_: str) -> Any:
        raise error("ended")

    plain, ahead, stats = both(way, answer=fail, depth=2, read_only=["search"])

    assert "ended" in repr(plain) or "raised StopIteration" in repr(plain)
    assert plain == ahead
    assert stats.tools_ahead >= 1


@pytest.mark.parametrize("way", WAYS[:2])
@pytest.mark.parametrize("guess", [5, np.zeros(3), object()])
def test_a_guess_that_is_nonsense_is_wrong(guess: Any, way: str) -> None:
    """Whatever a function returns."""
    plain, ahead, stats = both(way, guess=lambda _: guess)

    assert len(plain) > 5
    assert plain == ahead
    assert 0 == stats.committed


@pytest.mark.parametrize("way", WAYS[:2])
def test_arguments_without_an_order_are_taken(way: str) -> None:
    """What a tool is asked may hold keys that cannot be sorted."""

    class Mixed(FakeLLM):
        def get_tool_calls_from_response(self, *args: Any, **kwargs: Any) -> Any:
            found = super().get_tool_calls_from_response(*args, **kwargs)
            return [one.model_copy(update={"tool_kwargs": {"q": MIXED}}) for one in found]

    plain, ahead, stats = both(way, Mixed)

    assert "1: 'a'" in repr(plain)
    assert plain == ahead
    assert stats.committed >= 1


MIXED = {1: "a", "b": 2}
