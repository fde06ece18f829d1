"""What could make an agent ahead of its tools lossy, and what is done about each."""

import asyncio
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import langchain_ralmspec
import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, HumanInTheLoopMiddleware
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.messages import ToolMessage
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.tools import StructuredTool
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_ralmspec import speculative_tool
from langchain_ralmspec.agents import AgentStats, SpeculativeTools
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.runtime import RunControl
from langgraph.types import Command

from ralmspec_plugins import QueryCache
from ralmspec_plugins.errors import ConfigError
from tests.brain import Brain
from tests.langchain.agents.parts import FakeModel, Listener, Toolbox, Trace, config_of, turns
from tests.langchain.agents.twins import invoked, twins
from tests.langchain.agents.worlds import Prompting, Renaming

ASKED = {"messages": [("user", "What about foxes?")]}


def facts(call: Any) -> str:
    return f"facts about {call['args']['q']}"


def agent_of(ours: SpeculativeTools | None, box: Toolbox, model: Any = None, **options: Any) -> Any:
    names = options.pop("tools", ("search",))
    model = model or FakeModel(brain=Brain(tools=names, hops=3))
    middleware = [] if ours is None else [ours]
    return create_agent(model, box.tools(names), middleware=middleware, **options)


async def ran(
    model: Any = None, guess: Any = facts, tools: Any = ("search",), **options: Any
) -> tuple[Any, Any, AgentStats, Toolbox]:
    """Run plainly and ahead; return both final states, the numbers and the tools' calls."""
    plain_box, box = Toolbox(turns=40), Toolbox(turns=40)
    brain = Brain(tools=tools, hops=3)
    build: Callable[[], Any] = model or (lambda: FakeModel(brain=brain))
    ours = SpeculativeTools(guess, handover_s=5, **options)
    plain = await agent_of(None, plain_box, build(), tools=tools).ainvoke(ASKED)
    ahead = await agent_of(ours, box, build(), tools=tools).ainvoke(ASKED)
    assert plain_box.log == box.log or options.get("depth", 1) > 1
    return Trace().of(plain), Trace().of(ahead), ours.stats, box


async def test_right_guesses_are_committed() -> None:
    """Each reply after a tool is the one that was made ahead of it."""
    plain, ahead, stats, _ = await ran()

    assert plain == ahead
    assert (3, 3, 0) == (stats.calls_ahead, stats.committed, stats.dropped)
    assert 1.0 == stats.acceptance_rate


async def test_wrong_guesses_are_dropped() -> None:
    """No reply made on a wrong guess is shown; their tokens are counted."""
    plain, ahead, stats, _ = await ran(guess=lambda _: "nonsense")

    assert plain == ahead
    assert (3, 0, 3) == (stats.calls_ahead, stats.committed, stats.dropped)
    assert stats.dropped_tokens > 0


async def test_the_budget_bounds_what_wrong_guesses_cost() -> None:
    """Once a run has wasted its calls, it goes on plainly."""
    plain, ahead, stats, _ = await ran(guess=lambda _: "nonsense", max_wasted_calls=1)

    assert plain == ahead
    assert (1, 0, 1) == (stats.calls_ahead, stats.committed, stats.dropped)


async def test_the_budget_of_tokens_bounds_it_too() -> None:
    """The first wrong guess has cost more than is allowed."""
    _, _, stats, _ = await ran(guess=lambda _: "nonsense", max_wasted_tokens=1)

    assert 1 == stats.calls_ahead


async def test_read_only_tools_run_ahead_too() -> None:
    """The tools that a reply announces are called early; the host's own calls return that."""
    plain, ahead, stats, box = await ran(depth=3, read_only=["search"])

    assert plain == ahead
    assert 2 == stats.tools_ahead == stats.tools_committed
    assert 3 == len(box.log)


async def test_other_tools_do_not_run_ahead() -> None:
    """A tool that is not marked runs when the host calls it, and not before."""
    plain, ahead, stats, _ = await ran(depth=3)

    assert plain == ahead
    assert (0, 3) == (stats.tools_ahead, stats.committed)


@pytest.mark.parametrize("name", ["direct", "command"])
async def test_tools_that_steer_the_agent_are_not_run_ahead_of(name: str) -> None:
    """What follows a direct return, or a `Command`, is no model call that can be foreseen."""
    guess = lambda call: f"set {call['args']['q']}"  # noqa: E731
    _, _, first, _ = await ran(guess=guess, tools=(name,))
    ours = SpeculativeTools(guess, handover_s=5)
    agent = agent_of(ours, Toolbox(turns=40), tools=(name,))
    await agent.ainvoke(ASKED)
    before = ours.stats.calls_ahead
    await agent.ainvoke(ASKED)

    assert 0 == ours.stats.calls_ahead - before
    assert 0 == first.committed or name == "command"


class Stateful(FakeModel):
    """Keeps its conversation at the provider."""

    use_previous_response_id: bool = True


class Counting(FakeModel):
    """Counts its calls."""

    calls: int = 0

    async def _agenerate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return await super()._agenerate(messages, *args, **kwargs)


class Invoking(FakeModel):
    """Has a way of its own to be invoked."""

    async def ainvoke(self, *args: Any, **kwargs: Any) -> Any:
        return await super().ainvoke(*args, **kwargs)


@pytest.mark.parametrize("kind", [Stateful, Counting, Invoking])
async def test_models_that_keep_something_are_not_called_ahead(kind: type[FakeModel]) -> None:
    """A call that is dropped would change what a later one returns."""
    plain, ahead, stats, _ = await ran(model=lambda: kind(brain=Brain(hops=3)))

    assert plain == ahead
    assert 0 == stats.calls_ahead


class Asked(FakeModel):
    """Takes further arguments, as providers' models do."""

    model_kwargs: dict[str, Any] = {}  # noqa: RUF012 pydantic copies it


class Adding(AgentMiddleware[Any, Any]):
    """Adds settings or tools to the model's request, behind ours."""

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.changes = changes

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        tools = [*request.tools, *self.changes.get("tools", ())]
        settings = self.changes.get("settings", {})
        return await handler(request.override(tools=tools, model_settings=settings))


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {"previous_response_id": "r"}},
        {"settings": {"conversation": "c"}},
        {"tools": [{"type": "web_search"}]},
        {},
    ],
)
@pytest.mark.parametrize("kwargs", [{}, {"container": "c"}, {"tools": [{"type": "code"}]}])
async def test_state_at_the_provider_stops_calls_ahead_wherever_it_is_set(
    changes: dict[str, Any], kwargs: dict[str, Any]
) -> None:
    """In the model's further arguments, or by a middleware that comes after ours."""
    both = await twins(
        lambda: Asked(brain=Brain(hops=3), model_kwargs=kwargs),
        behind=lambda: [Adding(**changes)],
    )

    assert both.plain == both.ahead
    assert (3 if not changes and not kwargs else 0) == both.stats.calls_ahead


@pytest.mark.parametrize("unknown", [False, True])
async def test_parallel_calls_lead_to_one_call_ahead(unknown: bool) -> None:
    """It is made when the other tools of the reply have returned or are guessed."""
    brain = Brain(seed=2, hops=4, parallel=3)
    guess = lambda call: None if unknown and call["args"]["q"] == "fox" else facts(call)  # noqa: E731
    both = await twins(lambda: FakeModel(brain=brain), guess=guess)

    assert len(both.calls) > 5
    assert Counter(both.plain_calls) == Counter(both.calls)
    assert both.stats.calls_ahead == both.stats.committed
    assert both.stats.calls_ahead <= 4
    assert 4 == both.stats.calls_ahead or unknown


def test_a_run_goes_on_in_another_loop() -> None:
    """Interrupted in one, resumed at once in the next, under the same control of the caller's."""
    results = []
    for ours in (None, SpeculativeTools(facts, handover_s=5)):
        middleware = [HumanInTheLoopMiddleware({"search": True}), *([ours] if ours else [])]
        agent: Any = create_agent(
            FakeModel(brain=Brain(hops=3)),
            Toolbox(turns=40).tools(["search"]),
            middleware=middleware,
            checkpointer=InMemorySaver(),
        )
        control, given, shown = RunControl(), ASKED, []
        for _ in range(4):
            config = config_of("thread", Listener())
            shown.append(asyncio.run(agent.ainvoke(given, config, control=control)))
            given = Command(resume={"decisions": [{"type": "approve"}]})  # type: ignore[assignment]
        results.append(Trace().of(shown))

    assert 4 == len(results[0])
    assert results[0] == results[1]


class Drawing(FakeModel):
    """Draws a number in each call."""

    async def _agenerate(self, *args: Any, **kwargs: Any) -> Any:
        random.random()
        return await super()._agenerate(*args, **kwargs)


@pytest.mark.parametrize(("kind", "ahead"), [(FakeModel, 3), (Drawing, 0)])
async def test_numbers_that_others_draw_meanwhile_are_not_the_models(
    kind: type[FakeModel], ahead: int
) -> None:
    """A busy process draws all the time: the host itself does for each checkpoint."""

    async def draw() -> None:
        while True:
            random.random()
            await asyncio.sleep(0)

    task = asyncio.ensure_future(draw())
    try:
        _, _, stats, _ = await ran(model=lambda: kind(brain=Brain(hops=3)))
    finally:
        task.cancel()

    assert ahead == stats.calls_ahead == stats.committed


async def test_a_scope_is_hashable() -> None:
    """It is the key of what is remembered; a list is refused when a run begins."""
    with pytest.raises(ConfigError, match="hashable"):
        await ran(scope=lambda _: ["a list"])


async def test_a_rate_limiter_stops_calls_ahead() -> None:
    """They would take the turns of real calls."""
    limiter = InMemoryRateLimiter(requests_per_second=1e6, max_bucket_size=1e6)
    model = lambda: FakeModel(brain=Brain(hops=3), rate_limiter=limiter)  # noqa: E731
    _, _, stats, _ = await ran(model=model)

    assert 0 == stats.calls_ahead


async def test_tools_of_the_provider_stop_calls_ahead() -> None:
    """The provider runs them, and may write."""
    ours = SpeculativeTools(facts, handover_s=5)
    model = FakeModel(brain=Brain(hops=2))
    tools = [
        *Toolbox(turns=40).tools(["search"]),
        {"type": "web_search"},
    ]
    agent: Any = create_agent(model, tools, middleware=[ours])  # type: ignore[arg-type]
    result = await agent.ainvoke(ASKED)

    assert len(result["messages"]) > 3
    assert 0 == ours.stats.calls_ahead


async def test_runs_at_the_same_time_do_not_mix() -> None:
    """One object serves 50 runs, whose histories differ by one word."""
    box = Toolbox(turns=40)
    ours = SpeculativeTools(facts, handover_s=5)
    plain, ahead = agent_of(None, Toolbox()), agent_of(ours, box)
    asked = [{"messages": [("user", f"What about {n}?")]} for n in range(50)]
    expected = [Trace().of(await plain.ainvoke(one)) for one in asked]
    actual = await asyncio.gather(*(ahead.ainvoke(one) for one in asked))

    assert expected == [Trace().of(one) for one in actual]
    assert ours.stats.committed >= 100
    assert 50 == len({one["messages"][-1].id for one in actual})


async def test_results_are_remembered_within_a_scope_only() -> None:
    """What a tool returned to one user is no guess for another; the same thread has it."""
    seen: list[Any] = []
    model = FakeModel(brain=Brain(hops=1), log=seen.append)
    box = Toolbox(turns=40)

    def tools_of(thread: str, scope: Any = None) -> SpeculativeTools:
        return SpeculativeTools(scope=scope, handover_s=5)

    ours = tools_of("a")
    agent: Any = create_agent(
        model, box.tools(["search"]), middleware=[ours], checkpointer=InMemorySaver()
    )
    for thread, expected in (("a", 0), ("b", 0), ("c", 0)):
        await agent.ainvoke(ASKED, config_of(thread, Listener()))
        assert expected == ours.stats.calls_ahead
    shared = SpeculativeTools(scope=lambda _: "everyone", handover_s=5)
    agent = create_agent(model, box.tools(["search"]), middleware=[shared])
    await agent.ainvoke(ASKED)
    assert 0 == shared.stats.calls_ahead
    await agent.ainvoke(ASKED)

    assert (1, 1) == (shared.stats.calls_ahead, shared.stats.committed)


async def test_invalidated_results_are_no_guesses() -> None:
    """What was found before is forgotten, and the call is made plainly."""
    ours = SpeculativeTools(scope=lambda _: "everyone", memo=QueryCache(), handover_s=5)
    agent = agent_of(ours, Toolbox(turns=40))
    await agent.ainvoke(ASKED)
    ours.invalidate()
    await agent.ainvoke(ASKED)

    assert 0 == ours.stats.calls_ahead


def changing(versions: list[int], changed: Callable[[], None]) -> StructuredTool:
    """Return a tool whose index changes during its first call."""

    async def search(q: str) -> str:
        """Search."""
        found = f"{len(versions)} facts about {q}"
        await turns(40)
        if not versions:
            versions.append(1)
            changed()
        return found

    return StructuredTool.from_function(coroutine=search)


async def test_what_a_search_found_that_began_before_a_change_is_forgotten() -> None:
    """It is no guess for the next run."""
    ours = SpeculativeTools(scope=lambda _: "everyone", handover_s=5)
    versions: list[int] = []
    tool = changing(versions, ours.invalidate)
    agent: Any = create_agent(FakeModel(brain=Brain(hops=1)), [tool], middleware=[ours])
    for _ in range(2):
        await agent.ainvoke(ASKED)

    assert versions
    assert 4 == ours.stats.model_calls
    assert 0 == ours.stats.calls_ahead


async def test_a_tool_called_ahead_of_a_change_is_called_again() -> None:
    """Its result is of an index that the plain agent's call does not see."""
    guess = lambda call: f"0 facts about {call['args']['q']}"  # noqa: E731
    ours = SpeculativeTools(guess, depth=3, read_only=["search"], handover_s=5)
    results = []
    for mine in ([], [ours]):
        tool = changing([], ours.invalidate)
        agent: Any = create_agent(FakeModel(brain=Brain(hops=3)), [tool], middleware=mine)
        results.append(Trace().of(await agent.ainvoke(ASKED)))

    assert "1 facts about" in str(results[0])
    assert results[0] == results[1]
    assert ours.stats.tools_dropped >= 1


async def test_a_guess_that_fails_is_none() -> None:
    """Whatever a speculator raises, the run is the plain one."""

    def guess(call: Any) -> str:
        raise KeyError("nothing there")

    plain, ahead, stats, _ = await ran(guess=guess)

    assert plain == ahead
    assert 0 == stats.guesses


async def test_an_asynchronous_guess_is_awaited() -> None:
    """It runs beside the tool."""

    async def guess(call: Any) -> str:
        await turns(3)
        return facts(call)

    plain, ahead, stats, _ = await ran(guess=guess)

    assert plain == ahead
    assert 3 == stats.committed


class FailingAhead(FakeModel):
    """Fails in every call that the host has not made itself: those have no handlers."""

    async def _agenerate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Any:
        heard = run_manager is not None and run_manager.parent_run_id is not None
        if not heard and len(messages) > 1:
            raise RuntimeError("too many requests")
        return await super()._agenerate(messages, stop, run_manager, **kwargs)


async def test_an_error_of_a_call_ahead_is_not_shown() -> None:
    """The host's own call is made, and only what that one raises counts."""
    plain, ahead, stats, _ = await ran(model=lambda: FailingAhead(brain=Brain(hops=3)))

    assert plain == ahead
    assert 0 == stats.committed
    assert 3 == stats.failed


async def test_a_resumed_run_begins_plainly() -> None:
    """After an interrupt there is nothing made ahead, and the tool is asked again as before."""
    results = []
    for ours in (None, SpeculativeTools(lambda _: "they said yes", handover_s=5)):
        box = Toolbox(turns=40)
        agent = agent_of(ours, box, tools=("asking",), checkpointer=InMemorySaver())
        config = config_of("thread", Listener())
        given: Any = ASKED
        while (result := await agent.ainvoke(given, config)).get("__interrupt__"):
            given = Command(resume="yes")
        results.append((Trace().of(result), box.log))

    assert results[0] == results[1]
    assert 6 == len(results[0][1])


async def test_a_retriever_tool_guesses_by_itself() -> None:
    """What was found before, in any run, is the guess of the next; artifacts are the documents."""
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    store.add_texts([f"about {word}" for word in ("fox", "owl", "elm", "oak")], ids=list("abcd"))
    found = speculative_tool(store.as_retriever(search_kwargs={"k": 2}), memo=QueryCache())

    class Asking(FakeModel):
        def reply(self, messages: Any, tools: Any) -> Any:
            reply = super().reply(messages, tools)
            for call in reply.calls:
                call["args"] = {"query": call["args"].pop("q")}
            return reply

    ours = SpeculativeTools(handover_s=5)
    model = Asking(brain=Brain(hops=2), turns=0)
    agent: Any = create_agent(model, [found], middleware=[ours])
    first = await agent.ainvoke(ASKED)
    again = await agent.ainvoke(ASKED)
    call = {"args": {"query": "fox"}, "name": "search", "id": "1"}
    message = await found.ainvoke({**call, "type": "tool_call"})

    assert Trace().of(first) == Trace().of(again)
    assert 2 == len(message.artifact)
    assert message.content == await found.aguess_call(call)
    assert ours.stats.guesses >= 2


def test_a_synchronous_agent_runs_ahead_in_threads() -> None:
    """`stream` gives the same, and no thread stays."""
    results = []
    brain = Brain(hops=3)
    ours = SpeculativeTools(facts, depth=2, read_only=["search"], handover_s=5)
    for given in (None, ours):
        box = Toolbox(sleep_s=0.02)
        agent = agent_of(given, box, FakeModel(brain=brain, sleep_s=0.001))
        trace = Trace()
        modes = ["values", "updates", "messages"]
        results.append([trace.of(one) for one in agent.stream(ASKED, stream_mode=modes)])

    assert len(results[0]) > 10
    assert results[0] == results[1]
    assert ours.stats.committed >= 1
    assert [] == _threads()


def _threads(within_s: float = 2.0) -> list[str]:
    """Return the threads of ours that are there after a while at most."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        names = [one.name for one in threading.enumerate() if one.name == "ralmspec-agent"]
        if not names:
            return []
        time.sleep(0.01)
    return names


@pytest.mark.parametrize("after", [5, 45, 90])
@pytest.mark.parametrize("depth", [1, 3])
async def test_nothing_outlives_a_cancelled_run(after: int, depth: int) -> None:
    """Wherever a run is cancelled, 100 ms later there is no task, and no call goes on."""
    box, log = Toolbox(turns=40), list[Any]()
    model = FakeModel(brain=Brain(hops=4), sleep_s=0.3, log=log.append)
    ours = SpeculativeTools(facts, depth=depth, read_only=["search"])
    agent = agent_of(ours, box, model)
    others = asyncio.all_tasks()
    task = asyncio.ensure_future(agent.ainvoke(ASKED))
    while not box.log:
        await asyncio.sleep(0)
    await turns(after)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.1)
    left = asyncio.all_tasks() - others
    calls = len(log), len(box.log)
    await asyncio.sleep(0.05)

    assert set() == left
    assert calls == (len(log), len(box.log))


async def test_a_run_that_stops_between_two_steps_leaves_nothing() -> None:
    """A reader who does not come back for the next step has no call waiting for him."""
    ours = SpeculativeTools(facts, handover_s=0.3)
    agent = agent_of(ours, Toolbox(turns=40), FakeModel(brain=Brain(hops=2), turns=500))
    others = asyncio.all_tasks()
    stream = agent.astream(ASKED, stream_mode="updates")
    async for item in stream:
        if "tools" in item:
            break
    await asyncio.sleep(0.5)
    left = {one for one in asyncio.all_tasks() - others if "silently" in repr(one)}
    await stream.aclose()

    assert set() == left
    assert 1 == ours.stats.dropped


@pytest.mark.parametrize(
    "settings",
    [
        {"depth": -1},
        {"depth": True},
        {"max_wasted_calls": -1},
        {"max_wasted_calls": 1.5},
        {"max_wasted_tokens": "5"},
        {"max_wasted_share": 1.5},
        {"max_wasted_share": True},
        {"max_wasted_share": float("nan")},
        {"handover_s": 0},
        {"handover_s": "1"},
        {"guess": "search"},
        {"read_only": "search"},
        {"read_only": 5},
        {"read_only": [5]},
        {"memo": {}},
        {"scope": "user"},
    ],
)
def test_settings_are_checked_at_once(settings: dict[str, Any]) -> None:
    """What was wrong is said."""
    with pytest.raises(ConfigError, match="must be"):
        SpeculativeTools(**settings)


def test_without_langchain_the_error_says_what_to_install() -> None:
    """The rest of the package needs langchain-core alone."""
    code = (
        "import sys; sys.modules['langchain.agents'] = None; import langchain_ralmspec as r\n"
        "try: r.SpeculativeTools\n"
        "except ImportError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "pip install 'ralmspec-plugins[langchain-agents]'" in said.stdout


def test_the_middleware_is_found_at_the_top() -> None:
    """It is imported when it is asked for: it needs more than the rest."""
    assert SpeculativeTools is langchain_ralmspec.SpeculativeTools
    with pytest.raises(AttributeError, match="nothing"):
        _ = langchain_ralmspec.nothing


async def test_the_replayed_tool_message_is_the_hosts() -> None:
    """A tool that runs early gives content and artifact as its own call would."""
    plain, ahead, stats, _ = await ran(
        guess=lambda call: f"found {call['args']['q']}",
        tools=("artful",),
        depth=3,
        read_only=["artful"],
    )
    messages = [one for one in plain["messages"] if one[0] == ToolMessage.__name__]

    assert plain == ahead
    assert 2 == stats.tools_committed
    assert all(one[1]["artifact"] for one in messages)


@pytest.mark.parametrize("ours_last", [True, False])
async def test_a_request_that_a_middleware_changes_is_another_one(ours_last: bool) -> None:
    """The guess was right, and the reply is dropped: the model is asked something else."""
    results, ours = [], SpeculativeTools(facts, handover_s=5)
    for mine in ([], [ours]):
        box, model = Toolbox(turns=40), FakeModel(brain=Brain(hops=3))
        middleware = [Prompting(), *mine] if ours_last else [*mine, Prompting()]
        agent: Any = create_agent(model, box.tools(["search"]), middleware=middleware)
        results.append(Trace().of(await agent.ainvoke(ASKED)))

    assert results[0] == results[1]
    assert (3, 0, 3) == (ours.stats.right, ours.stats.committed, ours.stats.dropped)


async def test_a_tool_call_that_a_middleware_changes_is_another_one() -> None:
    """What the tool returned ahead was an answer to something else; the tool is called."""
    results, ours = [], SpeculativeTools(facts, depth=3, read_only=["search"], handover_s=5)
    for mine in ([], [ours]):
        box = Toolbox(turns=40)
        model = FakeModel(brain=Brain(seed=3, hops=6))
        middleware = [*mine, Renaming()]
        agent: Any = create_agent(model, box.tools(["search"]), middleware=middleware)
        results.append((Trace().of(await agent.ainvoke(ASKED)), set(box.log)))

    assert results[0][0] == results[1][0]
    assert ("search", "wolf") in results[0][1]
    assert results[0][1] <= results[1][1]


class Polls(AgentMiddleware[Any, Any]):
    """Calls a tool again while it is not ready, a few times."""

    def wrap_tool_call(self, request: Any, handler: Any) -> Any:
        for _ in range(4):
            result = handler(request)
            if result.content != "not yet":
                break
        return result

    async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
        for _ in range(4):
            result = await handler(request)
            if result.content != "not yet":
                break
        return result


async def in_a_thread(agent: Any) -> Any:
    """Run an agent synchronously."""
    return await asyncio.to_thread(agent.invoke, ASKED)


@pytest.mark.parametrize("run", [invoked, in_a_thread])
async def test_a_tool_that_the_host_calls_again_is_called_again(run: Any) -> None:
    """The result of the call ahead is the first one, and not all of them."""

    def polled(box: Toolbox) -> list[Any]:
        def answer(q: str) -> str:
            return "not yet" if box.log.count(("search", q)) == 1 else f"facts about {q}"

        return [box._tool("search", answer)]

    both = await twins(
        lambda: FakeModel(brain=Brain(seed=2, hops=4), turns=1),
        tools=polled,
        run=run,
        behind=lambda: [Polls()],
        depth=3,
        read_only=["search"],
        max_wasted_calls=None,
    )

    assert both.plain == both.ahead
    assert "not yet" not in repr(both.plain)
    assert both.stats.tools_committed >= 1
