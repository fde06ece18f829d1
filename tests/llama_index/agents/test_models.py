"""Models and tools of many kinds under an agent of LlamaIndex ahead of its tools."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import QueryBundle, TextNode
from llama_index.core.tools import FunctionTool, QueryEngineTool, RetrieverTool
from llama_index_ralmspec import AgentStats, agent_stats, speculate

from tests.brain import Brain
from tests.llama_index.agents.parts import FakeLLM, Toolbox, bare, turns

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:Skipping serialization"
)

BRAIN = Brain(hops=3)


def facts(call: Any) -> str:
    """Guess right."""
    return f"facts about {call['args']['q']}"


@dataclass
class Twins:
    """What the plain agent and the one ahead of its tools have shown, and the latter's counts."""

    plain: Any
    ahead: Any
    stats: AgentStats
    plain_calls: list[Any]  # of tools
    calls: list[Any]


async def shown_by(agent: Any, times: int) -> list[Any]:
    """Run an agent; return its events and results."""
    shown = []
    for _ in range(times):
        handler = agent.run("What about foxes?", max_iterations=8)
        shown += [bare(event) async for event in handler.stream_events()]
        shown.append(bare(await handler))
    return shown


async def twins(
    llm: Callable[[], Any],
    *,
    tools: Callable[[Toolbox], Sequence[Any]] = lambda box: box.tools(["search"]),
    agent: Callable[[Any, Any], Any] = lambda llm, tools: FunctionAgent(llm=llm, tools=tools),
    guess: Any = facts,
    times: int = 1,
    **options: Any,
) -> Twins:
    """Run an agent made of new parts plainly, then one ahead of its tools."""
    shown, calls, stats = [], [], AgentStats()
    for ahead in (False, True):
        box = Toolbox(turns=60)
        made = agent(llm(), tools(box))
        if ahead:
            made = speculate(made, guess=guess, **{"handover_s": 5, **options})
        shown.append(await shown_by(made, times))
        calls.append(box.log)
        if ahead:
            stats = agent_stats(made)
    assert len(shown[0]) > 5
    return Twins(*shown, stats, *calls)


class Overwriting(FakeLLM):
    """Yields one response again and again, on which it writes on, as some clients do."""

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        whole = [one async for one in await super().astream_chat(messages, **kwargs)]

        async def pieces() -> AsyncIterator[ChatResponse]:
            calls: list[Any] = []
            said = ChatMessage(role="assistant", content="")
            said.additional_kwargs["tool_calls"] = calls
            shown = ChatResponse(message=said, raw={"parts": []})
            for piece in whole:
                await turns(self.turns)
                said.blocks = piece.message.blocks
                calls.extend(piece.message.additional_kwargs.get("tool_calls", ()))
                shown.raw["parts"].append(piece.delta)
                shown.delta = piece.delta
                yield shown

        return pieces()


async def test_a_response_that_is_written_on_is_shown_as_it_was() -> None:
    """Each event of the stream has what was there when its piece was read."""
    both = await twins(lambda: Overwriting(brain=BRAIN))

    assert both.plain == both.ahead
    assert 3 == both.stats.committed


class Popping(FakeLLM):
    """Takes its replies from a list."""

    script: Any = None

    def _reply(self, messages: Sequence[ChatMessage]) -> Any:
        reply, _ = super()._reply(messages)
        return reply, [self.script.pop(0)]


async def test_a_scripted_model_is_not_called_ahead() -> None:
    """A dropped call would take the reply of the next one."""
    both = await twins(
        lambda: Popping(brain=BRAIN, script=list("abcdefgh")), guess=lambda _: "nonsense"
    )

    assert both.plain == both.ahead
    assert 4 == both.stats.model_calls
    assert 0 == both.stats.calls_ahead


class Warm(FakeLLM):
    """Says at which temperature it speaks."""

    temperature: float = 0.0
    additional_kwargs: dict[str, Any] = {}  # noqa: RUF012 pydantic copies it

    def _reply(self, messages: Sequence[ChatMessage]) -> Any:
        reply, _ = super()._reply(messages)
        return reply, [f"at {self.temperature} with {self.additional_kwargs}"]


@pytest.mark.parametrize("by_attribute", [True, False])
async def test_a_model_that_is_set_anew_meanwhile_is_another(by_attribute: bool) -> None:
    """A tool turns its model's temperature; what was said before that does not count."""
    models: list[Any] = []

    def llm() -> Any:
        models.append(Warm(brain=BRAIN))
        return models[-1]

    def tools(box: Toolbox) -> Any:
        warm = models[-1]

        async def search(q: str) -> str:
            await turns(80)
            if by_attribute:
                warm.temperature += 0.25
            else:
                warm.additional_kwargs[q] = len(warm.additional_kwargs)
            return f"facts about {q}"

        return [FunctionTool.from_defaults(async_fn=search)]

    both = await twins(llm, tools=tools)

    assert both.plain == both.ahead
    assert 3 == both.stats.right
    assert both.stats.dropped >= 1


@pytest.mark.parametrize(("temperature", "sampled"), [(0.0, 0), (0.7, 3)])
async def test_replies_of_models_that_sample_are_labelled(temperature: float, sampled: int) -> None:
    """They are draws from the same distribution."""
    both = await twins(lambda: Warm(brain=BRAIN, temperature=temperature))

    assert (3, sampled) == (both.stats.committed, both.stats.sampled)


async def test_a_tool_that_is_described_anew_meanwhile_is_another() -> None:
    """The model reads descriptions; this one tells how often the tool was called."""

    class Reading(FakeLLM):
        async def astream_chat_with_tools(self, tools: Any, **kwargs: Any) -> Any:
            history = [*kwargs["chat_history"]]
            history[0] = ChatMessage(role="user", content=tools[0].metadata.description)
            return await self.astream_chat(history)

    def tools(box: Toolbox) -> Any:
        made: list[FunctionTool] = []

        async def search(q: str) -> str:
            await turns(80)
            made[0].metadata.description += "again "
            return f"facts about {q}"

        made.append(FunctionTool.from_defaults(async_fn=search, description="it "))
        return made

    both = await twins(lambda: Reading(brain=BRAIN), tools=tools)

    assert both.plain == both.ahead
    assert both.stats.right >= 1


class Cancelling(FakeLLM):
    """Is cancelled from inside in the second call and each second one after it."""

    count: Any = None

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        self.count["calls"] += 1
        if self.count["cancels"] and self.count["calls"] % 2 == 0:
            await turns(80)  # until the host waits for it
            raise asyncio.CancelledError
        return await super().astream_chat(messages, **kwargs)


async def test_a_call_ahead_that_ends_without_a_reply_is_made_again() -> None:
    """Its reader does not wait for ever."""
    counts = iter([Counter(), Counter(cancels=1)])
    work = twins(
        lambda: Cancelling(brain=BRAIN, count=next(counts)),
        tools=lambda _: Toolbox(turns=9).tools(["search"]),
    )
    both = await asyncio.wait_for(work, 30)

    assert both.plain == both.ahead
    assert both.stats.calls_ahead >= 1


async def test_a_tool_called_ahead_may_be_cancelled_from_inside() -> None:
    """The host's own call does not wait for it for ever."""
    calls: list[str] = []

    def tools(_: Toolbox) -> Any:
        async def search(q: str) -> str:
            calls.append(q)
            number = len(calls)
            await turns(40)
            if number == 5:  # after the three of the plain run, the first one ahead
                raise asyncio.CancelledError
            return f"facts about {q}"

        return [FunctionTool.from_defaults(async_fn=search)]

    work = twins(lambda: FakeLLM(brain=BRAIN), tools=tools, depth=3, read_only=["search"])
    both = await asyncio.wait_for(work, 30)

    assert both.plain == both.ahead
    assert len(calls) >= 7
    assert both.stats.tools_dropped >= 1


async def test_a_guess_may_do_what_it_likes_with_its_call() -> None:
    """It is given a copy; the agent's state has another."""

    def guess(call: Any) -> str:
        call["name"] = "mine"
        call["args"]["filters"].append("mine")
        return f"facts about {call['args'].pop('q')}"

    class Filtering(FakeLLM):
        def _reply(self, messages: Sequence[ChatMessage]) -> Any:
            reply, words = super()._reply(messages)
            for call in reply.calls:
                call["args"]["filters"] = []
            return reply, words

    def tools(box: Toolbox) -> Any:
        async def search(q: str, filters: list[str]) -> str:
            box.log.append((q, str(filters)))
            await turns(60)
            return f"facts about {q}"

        return [FunctionTool.from_defaults(async_fn=search)]

    both = await twins(lambda: Filtering(brain=BRAIN), tools=tools, guess=guess)

    assert both.plain == both.ahead
    assert both.plain_calls == both.calls
    assert 3 == both.stats.committed


@pytest.mark.parametrize(
    "settings",
    [{"previous_response_id": "r"}, {"tools": [{"type": "web_search"}]}, {"conversation": "c"}],
)
async def test_state_at_the_provider_stops_calls_ahead(settings: dict[str, Any]) -> None:
    """It may be asked for among the model's further arguments."""
    both = await twins(lambda: Warm(brain=BRAIN, additional_kwargs=settings))

    assert both.plain == both.ahead
    assert 0 == both.stats.calls_ahead


async def test_agents_that_hand_over_show_the_same() -> None:
    """Two agents, one model and one tool of both: what was is ahead for one is not the other's."""

    class HandingOver(FakeLLM):
        def _reply(self, messages: Sequence[ChatMessage]) -> Any:
            reply, words = super()._reply(messages)
            said = [one for one in messages if one.role.value == "assistant"]
            first = str(messages[0].content).startswith("You are one")
            for call in reply.calls:
                if first and len(said) == 1:
                    call.update(name="handoff", args={"to_agent": "two", "reason": "so"})
            return reply, words

    def agent(llm: Any, tools: Any) -> Any:
        agents: Any = [
            FunctionAgent(
                name=name,
                description=name,
                llm=llm,
                tools=tools,
                system_prompt=f"You are {name}.",
                can_handoff_to=["two"] if name == "one" else [],
            )
            for name in ("one", "two")
        ]
        return AgentWorkflow(agents=agents, root_agent="one")

    both = await twins(
        lambda: HandingOver(brain=Brain(hops=5)), agent=agent, depth=3, read_only=["search"]
    )

    assert both.plain == both.ahead
    assert "handoff" in repr(both.plain)
    assert "'two'" in repr(both.plain)
    assert both.stats.committed >= 2


class Slow(BaseRetriever):
    """A retriever that takes a while."""

    def __init__(self, inner: BaseRetriever) -> None:
        super().__init__()
        self.inner = inner

    def _retrieve(self, query_bundle: QueryBundle) -> Any:
        return self.inner.retrieve(query_bundle)

    async def _aretrieve(self, query_bundle: QueryBundle) -> Any:
        await turns(60)
        return await self.inner.aretrieve(query_bundle)


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("kind", ["retriever", "query engine"])
async def test_the_hosts_own_tools_are_guessed_by_what_they_returned(kind: str, depth: int) -> None:
    """A retriever's nodes, a query engine's answer: the same call again has the same result."""

    class Inputs(FakeLLM):
        def get_tool_calls_from_response(self, response: Any, *args: Any, **kwargs: Any) -> Any:
            found = super().get_tool_calls_from_response(response, *args, **kwargs)
            for one in found:
                one.tool_kwargs = {"input": "fox"}
            return found

    def tools(_: Toolbox) -> Any:
        nodes = [TextNode(text=f"about {word}", id_=word) for word in ("fox", "owl", "elm")]
        index = VectorStoreIndex(nodes, embed_model=MockEmbedding(8))
        retriever = Slow(index.as_retriever())
        if kind == "retriever":
            return [RetrieverTool.from_defaults(retriever, name="search")]
        engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM(max_tokens=5))
        return [QueryEngineTool.from_defaults(engine, name="search")]

    both = await twins(
        lambda: Inputs(brain=Brain(hops=3), turns=0),
        tools=tools,
        guess=None,
        times=2,
        depth=depth,
        read_only=["search"],
    )

    assert both.plain == both.ahead
    assert both.stats.guesses >= 1
    assert both.stats.guesses == both.stats.right
