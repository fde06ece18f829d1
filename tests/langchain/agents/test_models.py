"""Models of many kinds under an agent ahead of its tools."""

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import StructuredTool

from tests.brain import Brain
from tests.langchain.agents.parts import FakeModel, Toolbox, Trace, turns
from tests.langchain.agents.twins import ASKED, facts, streamed, told, twins

BRAIN = Brain(hops=3)


class Keeping(FakeModel):
    """Keeps the tools that it is given, and returns itself."""

    kept: tuple[str, ...] = ()

    def bind_tools(self, tools: Sequence[Any], **_kwargs: Any) -> Any:
        self.kept = tuple(tool.name for tool in tools)
        return self

    def reply(self, messages: Any, tools: Any) -> Any:
        assert self.kept, "the tools are lost"
        return super().reply(messages, tools)


class Copying(Keeping):
    """Returns a copy that keeps the tools that it is given."""

    def bind_tools(self, tools: Sequence[Any], **_kwargs: Any) -> Any:
        return self.model_copy(update={"kept": tuple(tool.name for tool in tools)})


class Configuring(FakeModel):
    """Returns a binding around a binding."""

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        return super().bind_tools(tools, **kwargs).with_config(tags=["bound"])


@pytest.mark.parametrize(("kind", "committed"), [(Keeping, 3), (Copying, 0), (Configuring, 3)])
@pytest.mark.parametrize("run", [told, streamed(["values", "messages"])])
async def test_a_model_may_keep_its_tools_where_it_likes(
    kind: type[FakeModel], committed: int, run: Any
) -> None:
    """In itself, in a copy of itself, in bindings; a copy is another model with each call."""
    both = await twins(lambda: kind(brain=BRAIN), run=run)

    assert both.plain == both.ahead
    assert committed == both.stats.committed
    assert 0 == both.stats.dropped


def calling(number: str, q: str) -> AIMessage:
    return AIMessage("so", tool_calls=[{"name": "search", "args": {"q": q}, "id": number}])


class Popping(FakeModel):
    """Takes its replies from a list."""

    script: Any = None

    async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
        await turns(3)
        return ChatResult(generations=[ChatGeneration(message=self.script.pop(0))])


class Noting(FakeModel):
    """Takes as its reply the one with the number of the call."""

    script: Any = None
    seen: list[Any] = []  # noqa: RUF012 pydantic copies it

    async def _agenerate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
        await turns(3)
        self.seen.append(messages)
        message = self.script[len(self.seen) - 1]
        return ChatResult(generations=[ChatGeneration(message=message)])


@pytest.mark.parametrize("kind", [Popping, Noting])
async def test_a_scripted_model_is_not_called_ahead(kind: type[FakeModel]) -> None:
    """A dropped call would take the reply of the next one."""

    def model() -> Any:
        script = [calling("1", "fox"), calling("2", "owl"), AIMessage("done"), AIMessage("more")]
        return kind(brain=BRAIN, script=script)  # type: ignore[call-arg]

    both = await twins(model, guess=lambda _: "nonsense")

    assert both.plain == both.ahead
    assert 3 == both.stats.model_calls
    assert 0 == both.stats.calls_ahead


class Warm(FakeModel):
    """Says at which temperature it speaks."""

    temperature: float = 0.0
    model_kwargs: dict[str, Any] = {}  # noqa: RUF012

    def reply(self, messages: Any, tools: Any) -> Any:
        said = f"at {self.temperature} with {self.model_kwargs}"
        return dataclasses.replace(super().reply(messages, tools), words=(said,))


@pytest.mark.parametrize("by_attribute", [True, False])
async def test_a_model_that_is_set_anew_meanwhile_is_another(by_attribute: bool) -> None:
    """A tool turns its model's temperature; what was said before that does not count."""
    models: list[Any] = []

    def model() -> Any:
        models.append(Warm(brain=Brain(hops=3, tools=("search",))))
        return models[-1]

    def tools(box: Toolbox) -> Any:
        warm = models[-1]

        async def search(q: str) -> str:
            await turns(60)
            if by_attribute:
                warm.temperature += 0.25
            else:
                warm.model_kwargs["top_p"] = len(warm.model_kwargs) + warm.temperature
            return facts({"args": {"q": q}})

        return [StructuredTool.from_function(coroutine=search, name="search", description="it")]

    both = await twins(model, tools=tools)

    assert both.plain == both.ahead
    assert "at 0.75" in repr(both.plain) or "top_p" in repr(both.plain)
    assert 3 == both.stats.right
    assert both.stats.dropped >= 1


@pytest.mark.parametrize(("temperature", "sampled"), [(0.0, 0), (0.7, 3), (None, 3)])
async def test_replies_of_models_that_sample_are_labelled(temperature: Any, sampled: int) -> None:
    """They are draws from the same distribution; a provider that is not told otherwise samples."""

    class Sampling(FakeModel):
        temperature: float | None = None

    both = await twins(lambda: Sampling(brain=BRAIN, temperature=temperature))

    assert (3, sampled) == (both.stats.committed, both.stats.sampled)


class Cancelling(FakeModel):
    """Is cancelled from inside in every call that the host has not made itself."""

    async def _agenerate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Any:
        heard = run_manager is not None and run_manager.parent_run_id is not None
        await turns(3)
        if not heard and len(messages) > 1:
            await turns(60)  # until the host waits for it
            raise asyncio.CancelledError
        return await super()._agenerate(messages, stop, run_manager, **kwargs)


async def test_a_call_ahead_that_ends_without_a_reply_is_made_again() -> None:
    """Its reader does not wait for ever."""
    work = twins(
        lambda: Cancelling(brain=BRAIN), tools=lambda _: Toolbox(turns=9).tools(["search"])
    )
    both = await asyncio.wait_for(work, 30)

    assert both.plain == both.ahead
    assert 3 == both.stats.calls_ahead


async def test_a_cache_of_replies_has_the_same_entries() -> None:
    """Dropped replies are not in it, committed ones are, and a second run finds them."""
    caches: list[InMemoryCache] = []

    def model() -> Any:
        caches.append(InMemoryCache())
        return FakeModel(brain=Brain(hops=5), cache=caches[-1])

    guess = lambda call: "nonsense" if call["args"]["q"] == "owl" else facts(call)  # noqa: E731
    both = await twins(model, guess=guess, times=2)
    plain, ahead = (sorted(Trace(numbered=False).of(list(one._cache))) for one in caches)

    assert both.plain == both.ahead
    assert len(plain) >= 6
    assert plain == ahead
    assert both.stats.committed >= 1
    assert both.stats.dropped >= 1


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("run", [streamed(["values", "messages"]), told])
async def test_content_that_the_host_rewrites_is_the_same(depth: int, run: Any) -> None:
    """With blocks of version 1, the history differs from what the model returned."""
    both = await twins(
        lambda: FakeModel(brain=BRAIN, output_version="v1"),
        run=run,
        depth=depth,
        read_only=["search"],
    )

    assert both.plain == both.ahead
    assert 3 == both.stats.committed
    assert 0 == both.stats.tools_ahead


class Named(FakeModel):
    """Reports its name with the usage, as providers do."""

    def _whole(self, messages: Any, kwargs: Any) -> ChatResult:
        result = super()._whole(messages, kwargs)
        result.generations[0].message.response_metadata["model_name"] = "named"
        return result


async def test_usage_counts_committed_calls_once_and_dropped_ones_never() -> None:
    """What dropped calls cost stands in our own counts."""
    guess = lambda call: "nonsense" if call["args"]["q"] == "owl" else facts(call)  # noqa: E731

    async def run(agent: Any) -> Any:
        with get_usage_metadata_callback() as usage:
            await agent.ainvoke(ASKED)
        return usage.usage_metadata

    both = await twins(lambda: Named(brain=Brain(hops=5)), run=run, guess=guess)

    assert both.plain[0]["named"]["total_tokens"] > 0
    assert both.plain == both.ahead
    assert both.stats.committed >= 1
    assert both.stats.dropped_tokens > 0


async def test_other_wrappers_are_left_alone() -> None:
    """A model with a method of its own around its calls is not called ahead."""

    class Wrapped(FakeModel):
        async def agenerate_prompt(self, *args: Any, **kwargs: Any) -> Any:
            return await super().agenerate_prompt(*args, **kwargs)

    both = await twins(lambda: Wrapped(brain=BRAIN))

    assert both.plain == both.ahead
    assert 0 == both.stats.calls_ahead
