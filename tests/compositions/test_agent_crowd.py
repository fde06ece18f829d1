"""A crowd of agents on one processor, in both hosts."""

import asyncio
from functools import partial

import pytest

from benchmarks.agent_hosts import Contender, Setting, contenders
from ralmspec_plugins.adapters import agents
from ralmspec_plugins.scheduling.processor import ProcessorLoad
from tests.virtual_time import VirtualClock, VirtualLoop


async def _seconds(contender: Contender, number: int) -> float:
    """Run many agents at once; return the seconds until the last has answered."""
    loop = asyncio.get_running_loop()
    before_s = loop.time()
    answers = await asyncio.gather(*(contender.run(f"question {n}") for n in range(number)))
    assert all("facts on" in answer for answer in answers)
    return loop.time() - before_s


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Skipping serialization")
@pytest.mark.parametrize(
    ("host", "right"), [("langchain", 0.0), ("langchain", 0.9), ("llama_index", 0.9)]
)
def test_a_crowd_of_agents_is_not_slower(
    host: str, right: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In virtual time, a call of the model costs the loop 25 ms; two agents still run ahead."""
    clock = VirtualClock()
    load = partial(ProcessorLoad, lambda: clock.now_s, lambda: clock.computed_s)
    monkeypatch.setattr(agents, "ProcessorLoad", load)
    loop = VirtualLoop(clock, cost_s=0.005)
    setting = Setting(host, tool_s=0.2, reply_s=0.15, right=right, calls=2)
    try:
        ways = contenders(setting, [1])
        for contender in ways.values():
            loop.run_until_complete(contender.run("warm-up"))
        crowd = {name: loop.run_until_complete(_seconds(one, 12)) for name, one in ways.items()}
        crowded = ways["depth 1"].stats()
        few = {name: loop.run_until_complete(_seconds(one, 2)) for name, one in ways.items()}
        after = ways["depth 1"].stats()
    finally:
        loop.close()

    assert crowd["depth 1"] <= 1.02 * crowd["plain"]
    assert crowded.busy > 10
    assert 4 <= after.calls_ahead - crowded.calls_ahead
    if right:
        assert few["depth 1"] < 0.9 * few["plain"]
