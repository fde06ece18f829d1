"""Tools that show more than their results, made ahead of the host: nothing shows twice or never."""

import asyncio
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler, adispatch_custom_event
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.tools import StructuredTool
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_ralmspec import speculative_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_stream_writer
from langgraph.types import Command, interrupt

from tests.brain import Brain
from tests.langchain.agents.parts import FakeModel, Listener, Toolbox, config_of, turns
from tests.langchain.agents.twins import ASKED, invoked, streamed, told, twins

BRAIN = Brain(tools=("deep",), hops=3)


def model() -> Any:
    return FakeModel(brain=BRAIN)


def deep(body: Any, **options: Any) -> Any:
    """Return a function that makes a tool of a body."""

    def tools(box: Toolbox) -> Any:
        async def call(q: str, config: RunnableConfig) -> Any:
            box.log.append(("deep", q))
            await turns(40)
            return await body(q)

        return [
            StructuredTool.from_function(
                coroutine=call,
                name="deep",
                description="it",
                **{k: v() for k, v in options.items()},
            )
        ]

    return tools


async def writing(q: str) -> str:
    get_stream_writer()({"about": q})
    return f"facts about {q}"


async def dispatching(q: str) -> str:
    await adispatch_custom_event("mine", {"about": q})
    return f"facts about {q}"


async def chaining(q: str) -> str:
    return await RunnableLambda(lambda one: f"facts about {one}").ainvoke(q)


async def asking(q: str) -> str:
    await FakeModel(brain=Brain(hops=0)).ainvoke(q)
    return f"facts about {q}"


async def delegating(q: str) -> str:
    agent: Any = create_agent(FakeModel(brain=Brain(hops=0)), [], name="inner")
    await agent.ainvoke({"messages": [("user", q)]})
    return f"facts about {q}"


async def checkpointed(agent: Any) -> Any:
    config = config_of("thread", Listener())
    shown = [
        one async for one in agent.astream(ASKED, config, stream_mode=["values"], subgraphs=True)
    ]
    return shown, len([one async for one in agent.checkpointer.alist(None)])


@pytest.mark.parametrize("body", [writing, dispatching, chaining, asking, delegating])
@pytest.mark.parametrize(
    "run", [told, streamed(["custom", "updates"]), streamed(["messages", "custom"]), checkpointed]
)
async def test_what_a_tool_shows_inside_is_shown_once(body: Any, run: Any) -> None:
    """Values and events of its own, chains, models and agents inside it, with checkpoints."""
    both = await twins(
        model,
        tools=deep(body),
        run=run,
        depth=3,
        read_only=["deep"],
        checkpointer=InMemorySaver if run is checkpointed else lambda: None,
    )

    assert both.plain == both.ahead
    assert 3 == both.stats.committed
    assert both.stats.tools_ahead >= 1


async def test_a_tool_that_runs_others_is_called_ahead_once_only() -> None:
    """Its call cannot replace the host's; later runs know that, and call it as often as plainly."""
    both = await twins(model, tools=deep(chaining), depth=3, read_only=["deep"], times=3)

    assert both.plain == both.ahead
    assert 9 == len(both.plain_calls)
    assert len(both.calls) <= 9 + both.stats.tools_dropped
    assert both.stats.tools_dropped <= 2
    assert 0 == both.stats.tools_committed


async def test_values_that_a_tool_streams_are_streamed_when_it_counts() -> None:
    """The result of the early call is used, and what it wrote is written then."""
    both = await twins(
        model, tools=deep(writing), run=streamed(["custom"]), depth=3, read_only=["deep"]
    )

    assert 3 == len(both.plain[0])
    assert both.plain == both.ahead
    assert 2 == both.stats.tools_committed
    assert both.plain_calls == both.calls


async def test_values_of_a_dropped_call_are_not_streamed() -> None:
    """A wrong guess leads to a call that the host never makes."""
    guess = lambda _: "nonsense"  # noqa: E731
    both = await twins(
        model,
        tools=deep(writing),
        run=streamed(["custom", "updates"]),
        guess=guess,
        depth=3,
        read_only=["deep"],
    )

    assert both.plain == both.ahead
    assert both.stats.tools_dropped >= 1


class Hearing(BaseCallbackHandler):
    """Notes the runs of the tool that it is given to."""

    run_inline = True

    def __init__(self, heard: list[str]) -> None:
        self.heard = heard

    def on_tool_start(self, *_args: Any, **_kwargs: Any) -> None:
        self.heard.append("start")

    def on_tool_end(self, *_args: Any, **_kwargs: Any) -> None:
        self.heard.append("end")


async def test_handlers_of_a_tool_are_told_once() -> None:
    """Those that were given to its constructor, too."""
    heard: list[list[str]] = []

    def handlers() -> Any:
        heard.append([])
        return [Hearing(heard[-1])]

    both = await twins(
        model, tools=deep(facts_about, callbacks=handlers), depth=3, read_only=["deep"]
    )

    assert both.plain == both.ahead
    assert 2 == both.stats.tools_committed
    assert 3 * ["start", "end"] == heard[0]
    assert heard[0] == heard[1]


async def facts_about(q: str) -> str:
    return f"facts about {q}"


class Asking(FakeModel):
    """Asks as a retriever tool wants it."""

    def reply(self, messages: Any, tools: Any) -> Any:
        reply = super().reply(messages, tools)
        for call in reply.calls:
            call["args"] = {"query": call["args"].pop("q")}
        return reply


@pytest.mark.parametrize(
    ("run", "early"),
    [(invoked, True), (streamed(["values", "messages"]), True), (told, False)],
)
async def test_a_retriever_tool_shows_its_retriever_to_who_listens(run: Any, early: bool) -> None:
    """Its early calls count where nobody would be told of the search; elsewhere the host's do."""

    def tools(_: Toolbox) -> Any:
        store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
        store.add_texts(
            [f"about {word}" for word in ("fox", "owl", "elm", "oak")], ids=list("abcd")
        )
        return [speculative_tool(store.as_retriever(search_kwargs={"k": 2}))]

    both = await twins(
        lambda: Asking(brain=Brain(hops=3), turns=0),
        tools=tools,
        run=run,
        guess=None,
        times=3,
        depth=3,
        scope=lambda _: "everyone",
    )

    assert both.plain == both.ahead
    assert both.stats.tools_ahead >= 1
    assert early is (both.stats.tools_committed >= 1)


async def test_a_tool_called_ahead_may_be_cancelled_from_inside() -> None:
    """The host's own call does not wait for it for ever."""
    calls: list[str] = []

    async def body(q: str) -> str:
        calls.append(q)
        if len(calls) == 5:  # after the three of the plain run, the first one ahead
            raise asyncio.CancelledError
        return f"facts about {q}"

    work = twins(model, tools=deep(body), depth=3, read_only=["deep"])
    both = await asyncio.wait_for(work, 30)

    assert both.plain == both.ahead
    assert len(calls) >= 7
    assert both.stats.tools_dropped >= 1


async def test_an_interrupt_ahead_is_no_interrupt() -> None:
    """A tool that asks, wrongly said to be read-only: the host asks, as often as plainly."""

    async def body(q: str) -> str:
        return f"they said {interrupt({'about': q})}"

    async def run(agent: Any) -> Any:
        config, shown = config_of("thread", Listener()), []
        given: Any = ASKED
        for _ in range(8):
            shown.append(await agent.ainvoke(given, config))
            if not shown[-1].get("__interrupt__"):
                return shown
            given = Command(resume="yes")
        return shown

    both = await twins(
        model,
        tools=deep(body),
        run=run,
        guess=lambda _: "they said yes",
        depth=3,
        read_only=["deep"],
        checkpointer=InMemorySaver,
    )

    assert 4 == len(both.plain[0])
    assert both.plain == both.ahead


async def test_a_guess_may_do_what_it_likes_with_its_call() -> None:
    """It is given a copy; the agent's state has another."""

    def guess(call: Any) -> str:
        call["name"] = "mine"
        return f"facts about {call['args'].pop('q')}"

    both = await twins(model, tools=deep(facts_about), guess=guess)

    assert both.plain == both.ahead
    assert 3 == both.stats.committed


@pytest.mark.parametrize(
    "guess",
    [
        {"type": "text", "text": "a", "n": 1},
        {"type": "text", "text": "a", "n": 1.0},
        {"n": True, "text": "a", "type": "text"},
    ],
)
async def test_a_guess_that_is_equal_and_reads_differently_is_wrong(guess: Any) -> None:
    """For Python, 1 equals `True`, and dicts have no order; a prompt shows the difference."""

    async def body(q: str) -> Any:
        return [{"type": "text", "text": "a", "n": True}]

    both = await twins(model, tools=deep(body), guess=lambda _: [guess])

    assert both.plain == both.ahead
    assert (3, 0, 0) == (both.stats.guesses, both.stats.right, both.stats.committed)
