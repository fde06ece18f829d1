"""Agents over a provider's real client and a strict server on loopback."""

import asyncio
import time
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_openai import ChatOpenAI
from langchain_ralmspec.agents import SpeculativeTools
from pydantic import SecretStr

from tests.brain import Brain, MalformedError, check
from tests.langchain.agents.parts import Listener, Toolbox, Trace, config_of
from tests.langchain.agents.provider import Provider, providing

ASKED = {"messages": [("user", "What about foxes?")]}


def facts(call: Any) -> str | None:
    """Guess right but for owls."""
    q = call["args"]["q"]
    return "who?" if q == "owl" else f"facts about {q}"


def model(provider: Provider) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=provider.url,
        api_key=SecretStr("none"),
        model="strict",
        max_retries=0,
        stream_usage=True,
        temperature=0,
    )


@pytest.mark.parametrize("way", ["invoke", "messages"])
async def test_a_strict_provider_sees_well_formed_histories_only(way: str) -> None:
    """Parallel calls, right and wrong guesses: nothing is refused, and the same is shown."""
    shown, tools, committed, dropped = [], [], 0, 0
    for ahead in (False, True):
        items: list[Any] = []
        for seed in range(8):
            brain = Brain(seed=seed, hops=3, parallel=1 + seed % 2)
            box = Toolbox(sleep_s=0.1)
            ours = SpeculativeTools(facts, handover_s=5)
            with providing(brain) as provider:
                agent: Any = create_agent(
                    model(provider), box.tools(["search"]), middleware=[ours] if ahead else []
                )
                trace = Trace(numbered=False)
                if way == "invoke":
                    items.append(trace.of(await agent.ainvoke(ASKED)))
                else:
                    streamed = [
                        trace.of(one)
                        async for one in agent.astream(ASKED, stream_mode=["messages", "values"])
                    ]
                    items.append(sorted(streamed, key=repr) if brain.parallel > 1 else streamed)
            assert [] == provider.refused
            tools.append((ahead, box.log))
            committed += ours.stats.committed
            dropped += ours.stats.dropped
        shown.append(items)

    assert shown[0] == shown[1]
    assert [log for ahead, log in tools if ahead] == [log for ahead, log in tools if not ahead]
    assert committed >= 8
    assert dropped >= 1


async def test_a_cancelled_run_hangs_up() -> None:
    """The provider's connections are closed: it writes for nobody."""
    with providing(Brain(hops=3), word_s=0.15) as provider:
        ours = SpeculativeTools(facts)
        box = Toolbox(sleep_s=3)
        agent: Any = create_agent(model(provider), box.tools(["search"]), middleware=[ours])
        run = agent.astream(ASKED, config_of(None, Listener()), stream_mode="messages")
        task = asyncio.ensure_future(_read(run))
        while ours.stats.calls_ahead == 0 or provider.streaming == 0:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        until = time.monotonic() + 5
        while provider.streaming and time.monotonic() < until:
            await asyncio.sleep(0.01)
        asked = len(provider.requests)
        await asyncio.sleep(0.2)

        assert 0 == provider.streaming
        assert asked == len(provider.requests)
        assert 1 == ours.stats.dropped


async def _read(run: Any) -> None:
    async for _ in run:
        pass


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "tool", "tool_call_id": "a"}],
        [{"role": "assistant", "tool_calls": [{"id": "a"}]}],
        [{"role": "assistant", "tool_calls": [{"id": "a"}]}, {"role": "user"}],
        [{"role": "assistant", "tool_calls": [{"id": "a"}, {"id": "a"}]}],
    ],
)
def test_the_strict_provider_is_strict(messages: Any) -> None:
    """Results without calls, calls without results, ids twice: it would notice."""
    with pytest.raises(MalformedError):
        check(messages)
