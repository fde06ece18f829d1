"""Agents of LlamaIndex that run ahead of their tools show what they show without."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from llama_index.core.agent.workflow import CodeActAgent, FunctionAgent
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.llm import LLMChatStartEvent
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.tools import FunctionTool, RetrieverTool
from llama_index.core.workflow import Context
from llama_index_ralmspec import (
    SPECULATIVE,
    CommitEvent,
    GuessEvent,
    RollbackEvent,
    VerificationEvent,
    agent_stats,
    speculate,
    speculative_tool,
)
from pydantic import Field
from workflows.errors import WorkflowTimeoutError

from ralmspec_plugins import QueryCache
from ralmspec_plugins.errors import ConfigError
from tests.brain import Brain
from tests.llama_index.agents.parts import (
    FakeLLM,
    Outcome,
    Toolbox,
    World,
    bare,
    run,
    turns,
    world,
)

# The host's own agents look at deprecated attributes of theirs when they are made, and say of
# each conversation that its memory is not written to disk.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:Skipping serialization"
)


def facts(call: Any) -> str:
    return f"facts about {call['args']['q']}"


def check(drawn: World, plain: Outcome, ahead: Outcome) -> None:
    """Compare all that both have shown; the real tools and the model ran as often."""
    assert len(plain.events) > 0
    if drawn.brain.parallel == 1:
        assert plain.events == ahead.events, drawn
        assert plain.memory == ahead.memory, drawn
    else:  # the host takes the results of parallel calls as they come
        assert Counter(map(repr, plain.events)) == Counter(map(repr, ahead.events)), drawn
    assert plain.result == ahead.result, drawn
    stats = ahead.stats
    unused = stats.tools_ahead - stats.tools_committed
    if drawn.depth == 1:
        assert plain.tools == ahead.tools, drawn
    assert not Counter(plain.tools) - Counter(ahead.tools), drawn
    assert len(ahead.tools) <= len(plain.tools) + unused, drawn
    most = plain.model_calls - stats.committed + stats.calls_ahead
    if drawn.brain.failing:
        most += stats.failed  # the host makes these again
    assert ahead.model_calls <= most, drawn


async def compare(seeds: range) -> Counter[str]:
    """Compare over many agents; return what happened in them."""
    totals: Counter[str] = Counter()
    for seed in seeds:
        drawn = world(seed)
        plain, ahead = await run(drawn, ahead=False), await run(drawn, ahead=True)
        check(drawn, plain, ahead)
        totals[drawn.kind] += 1
        totals["committed"] += ahead.stats.committed
        totals["dropped"] += ahead.stats.dropped
        totals["deep"] += ahead.stats.tools_committed
        totals["busy"] += ahead.stats.busy
    return totals


@pytest.mark.parametrize("part", range(2))
async def test_an_agent_ahead_of_its_tools_shows_the_same(part: int) -> None:
    """Events, response and memory: equal but for ids that the host makes up."""
    totals = await compare(range(30 * part, 30 * part + 30))

    assert min(totals["function"], totals["react"], totals["workflow"]) >= 3
    assert totals["committed"] >= 10
    assert totals["dropped"] >= 10
    assert totals["deep"] >= 1
    assert totals["busy"] >= 5


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
async def test_many_agents_ahead_of_their_tools_show_the_same(part: int) -> None:
    """The same over 2,000 agents."""
    totals = await compare(range(1000 + 200 * part, 1200 + 200 * part))

    assert totals["committed"] >= 100
    assert totals["dropped"] >= 100


def agent_of(box: Toolbox, brain: Brain, llm: Any = None, **options: Any) -> FunctionAgent:
    tools: Any = box.tools(brain.tools)
    return FunctionAgent(tools=tools, llm=llm or FakeLLM(brain=brain), **options)


async def test_the_agent_itself_is_left_as_it_is() -> None:
    """What comes back is a copy of the same class; the original runs plainly."""
    agent = agent_of(Toolbox(), Brain(hops=2))
    llm, tools = agent.llm, list(agent.tools or ())
    ahead = speculate(agent, guess=facts, handover_s=5)
    await agent.run("What?")
    before = agent_stats(ahead)
    await ahead.run("What?")

    assert type(agent) is type(ahead)
    assert agent.llm is llm
    assert tools == list(agent.tools or ())
    assert 0 == before.model_calls
    assert 2 == agent_stats(ahead).committed


async def test_runs_at_the_same_time_do_not_mix() -> None:
    """One agent serves 30 runs, whose questions differ."""
    brain = Brain(hops=3)
    plain, box = agent_of(Toolbox(turns=0), brain), Toolbox()
    ahead = speculate(agent_of(box, brain), guess=facts, handover_s=5)
    asked = [f"What about {n}?" for n in range(30)]
    expected = [bare(await plain.run(one)) for one in asked]
    actual = [bare(one) for one in await asyncio.gather(*(ahead.run(one) for one in asked))]

    assert expected == actual
    assert agent_stats(ahead).committed >= 60


class Listening(BaseEventHandler):
    """Notes the tags of the calls of models."""

    starts: list[bool] = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Listening"

    def handle(self, event: Any, **_: Any) -> None:
        if isinstance(event, LLMChatStartEvent):
            self.starts.append(SPECULATIVE in event.tags)


async def test_each_call_of_the_model_is_told_once() -> None:
    """A call made ahead is told when it is made, under a tag, and not again when it counts."""
    handler, counter = Listening(), TokenCountingHandler(tokenizer=str.split)
    llm = FakeLLM(brain=Brain(hops=3), callback_manager=CallbackManager([counter]))
    ahead = speculate(agent_of(Toolbox(), llm.brain, llm), guess=facts, handover_s=5)
    dispatcher = get_dispatcher()
    dispatcher.add_event_handler(handler)
    try:
        await ahead.run("What?")
    finally:
        dispatcher.event_handlers.remove(handler)

    assert [False, True, True, True] == handler.starts
    assert 4 == len(counter.llm_token_counts)


class Noting(BaseEventHandler):
    """Notes our own events, and the spans of calls of models made ahead."""

    own: list[Any] = Field(default_factory=list)
    spans: list[Any] = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Noting"

    def handle(self, event: Any, **_: Any) -> None:
        if isinstance(event, GuessEvent | VerificationEvent | CommitEvent | RollbackEvent):
            self.own.append(event)
        elif isinstance(event, LLMChatStartEvent) and SPECULATIVE in event.tags:
            self.spans.append(event.span_id)


async def test_own_events_say_what_was_guessed_and_what_became_of_it() -> None:
    """The first guess is right and the second wrong; calls are named by their spans."""
    handler, guesses = Noting(), iter([facts, lambda _: "nonsense", facts])
    agent = agent_of(Toolbox(), Brain(hops=3))
    ahead = speculate(agent, guess=lambda call: next(guesses)(call), handover_s=5)
    dispatcher = get_dispatcher()
    dispatcher.add_event_handler(handler)
    try:
        await ahead.run("What?")
    finally:
        dispatcher.event_handlers.remove(handler)
    kinds = [type(one).__name__ for one in handler.own]
    named = [one.span_ids for one in handler.own if hasattr(one, "span_ids")]
    rights = [one.right for one in handler.own if isinstance(one, VerificationEvent)]

    assert 3 == kinds.count("GuessEvent")
    assert [True, False, True] == rights
    assert (2, 1) == (kinds.count("CommitEvent"), kinds.count("RollbackEvent"))
    assert 3 == len(named)
    assert all(len(spans) == 1 for spans in named)
    assert 3 == len({spans[0] for spans in named})
    assert 'search {"q":' in handler.own[0].query_str
    assert all(SPECULATIVE not in one.tags for one in handler.own)


@pytest.mark.parametrize("name", ["direct", "context"])
async def test_some_tools_are_not_run_ahead_of(name: str) -> None:
    """One that ends the run, and one that is given the run's context."""
    brain = Brain(hops=2, tools=(name,))
    ahead = speculate(agent_of(Toolbox(), brain), guess=facts, handover_s=5)
    await ahead.run("What?")

    assert agent_stats(ahead).model_calls >= 1
    assert 0 == agent_stats(ahead).calls_ahead


async def test_results_of_one_run_are_no_guesses_of_another() -> None:
    """Also with a memo of the caller's; runs of equal scope share them."""
    brain = Brain(hops=1)
    alone = speculate(agent_of(Toolbox(), brain), memo=QueryCache(), handover_s=5)
    shared = speculate(agent_of(Toolbox(), brain), scope=lambda: "all", handover_s=5)
    for agent in (alone, alone, shared, shared):
        await agent.run("What?")

    assert 0 == agent_stats(alone).calls_ahead
    assert 1 == agent_stats(shared).committed


async def test_a_memory_of_several_runs_is_the_same() -> None:
    """Three runs write into one memory of the caller's, one of them after a way as text."""
    results: list[Any] = []
    for ahead in (False, True):
        agent: Any = agent_of(Toolbox(), Brain(hops=2))
        agent = speculate(agent, guess=facts, handover_s=5) if ahead else agent
        memory, context = ChatMemoryBuffer.from_defaults(), Context(agent)
        for asked in ("What about foxes?", "And owls?"):
            await agent.run(asked, memory=memory)
            await agent.run(asked, ctx=context)
            context = Context.from_dict(agent, context.to_dict())
        again = await agent.run("And elms?", memory=memory)
        results.append([bare(again), *map(bare, memory.get_all())])

    assert len(results[0]) > 15
    assert results[0] == results[1]
    assert 10 == agent_stats(agent).committed


async def test_a_run_that_is_too_slow_leaves_nothing() -> None:
    """The host ends it after its time; no call goes on 100 ms later."""

    async def search(q: str) -> str:
        """Search."""
        await asyncio.sleep(0.5)
        return facts({"args": {"q": q}})

    tool = FunctionTool.from_defaults(async_fn=search)
    llm = FakeLLM(brain=Brain(), turns=0)
    ahead = speculate(FunctionAgent(tools=[tool], llm=llm, timeout=0.2), guess=facts)
    with pytest.raises(WorkflowTimeoutError):
        await ahead.run("What?")
    await asyncio.sleep(0.1)

    assert 1 == agent_stats(ahead).dropped
    assert not [one for one in asyncio.all_tasks() if "silently" in repr(one)]


def changing(versions: list[int], memo: QueryCache) -> Any:
    """Return a tool whose index changes during its first call."""

    async def search(q: str) -> str:
        """Search."""
        found = f"{len(versions)} facts about {q}"
        await turns(40)
        if not versions:
            versions.append(1)
            memo.invalidate()
        return found

    return FunctionTool.from_defaults(async_fn=search)


async def test_what_a_search_found_that_began_before_a_change_is_forgotten() -> None:
    """It is no guess for the next run."""
    memo, versions = QueryCache(), list[int]()
    agent = FunctionAgent(tools=[changing(versions, memo)], llm=FakeLLM(brain=Brain(hops=1)))
    ahead = speculate(agent, memo=memo, scope=lambda: "all", handover_s=5)
    for _ in range(2):
        await ahead.run("What?")

    assert versions
    assert 4 == agent_stats(ahead).model_calls
    assert 0 == agent_stats(ahead).calls_ahead


async def test_a_tool_called_ahead_of_a_change_is_called_again() -> None:
    """Its result is of an index that the plain agent's call does not see."""
    memo = QueryCache()
    options: Any = {"depth": 3, "read_only": ["search"], "memo": memo, "handover_s": 5}
    results: list[Any] = []
    for speculative in (False, True):
        agent: Any = FunctionAgent(tools=[changing([], memo)], llm=FakeLLM(brain=Brain(hops=3)))
        if speculative:
            guess = lambda call: f"0 facts about {call['args']['q']}"  # noqa: E731
            agent = speculate(agent, guess=guess, **options)
        handler = agent.run("What?")
        results.append([bare(event) async for event in handler.stream_events()])

    assert "1 facts about" in str(results[0])
    assert results[0] == results[1]
    assert agent_stats(agent).tools_dropped >= 1


@pytest.mark.parametrize("after", [3, 30, 80])
@pytest.mark.parametrize("depth", [1, 3])
async def test_nothing_outlives_a_cancelled_run(after: int, depth: int) -> None:
    """100 ms after a run is cancelled there is no task, and no call goes on."""
    log: list[Any] = []
    box, brain = Toolbox(turns=60), Brain(hops=4)
    llm = FakeLLM(brain=brain, turns=10, log=log.append)
    ahead = speculate(agent_of(box, brain, llm), guess=facts, depth=depth, read_only=["search"])
    others = asyncio.all_tasks()
    handler = ahead.run("What?")
    while not box.log:
        await asyncio.sleep(0)
    await turns(after)
    await handler.cancel_run()
    with pytest.raises(BaseException):  # noqa: B017, PT011 the host's, and it differs by version
        await handler
    await asyncio.sleep(0.1)
    left = {one for one in asyncio.all_tasks() - others if "silently" in repr(one)}
    calls = len(log), len(box.log)
    await asyncio.sleep(0.05)

    assert set() == left
    assert calls == (len(log), len(box.log))


async def test_a_retriever_tool_guesses_by_itself() -> None:
    """It returns what the host's retriever tool does, and knows it the second time."""
    from llama_index.core import MockEmbedding, VectorStoreIndex
    from llama_index.core.schema import TextNode

    nodes = [TextNode(text=f"about {word}", id_=word) for word in ("fox", "owl", "elm")]
    index = VectorStoreIndex(nodes, embed_model=MockEmbedding(8))
    found = speculative_tool(index.as_retriever(), name="search", memo=QueryCache())
    plain = RetrieverTool.from_defaults(index.as_retriever(), name="search")
    call = {"name": "search", "args": {"q": "fox"}, "id": "1"}
    before = await found.aguess_call(call)
    output = await found.acall(q="fox")
    guess = await found.aguess_call(call)

    assert before is None
    assert (await plain.acall(q="fox")).content == output.content
    assert guess is not None
    assert output.content == guess.content


def test_other_agents_and_options_are_refused() -> None:
    """At once, with what there is."""
    llm = FakeLLM(brain=Brain())
    agent = FunctionAgent(tools=[], llm=llm)
    with pytest.raises(ConfigError, match="CodeActAgent"):
        speculate(CodeActAgent(code_execute_fn=lambda code: code, tools=[], llm=llm))
    with pytest.raises(TypeError, match="did you mean 'depth'"):
        speculate(agent, dept=1)
    with pytest.raises(ConfigError, match="depth must be"):
        speculate(agent, depth=-1)
    for wrong in ({"scope": "user"}, {"read_only": 5}, {"read_only": [5]}, {"handover_s": "1"}):
        with pytest.raises(ConfigError, match="must be"):
            speculate(agent, **wrong)
    with pytest.raises(ConfigError, match="an agent returned by speculate"):
        agent_stats(agent)
