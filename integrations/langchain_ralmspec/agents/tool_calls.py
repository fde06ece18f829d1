"""The calls of an agent's tools: which may be speculative, how they are guessed and replayed."""

from collections.abc import Callable, Mapping
from contextlib import aclosing, suppress
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import wraps
from inspect import isawaitable
from typing import Any, Final, TypeAlias, get_type_hints

from langchain_core.messages import ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.types import Command

from langchain_ralmspec.agents.inner_runs import InnerRuns
from ralmspec_plugins.adapters.agent_limits import AgentCounters
from ralmspec_plugins.adapters.agents import arguments_of
from ralmspec_plugins.adapters.speculative_calls import Recording
from ralmspec_plugins.types import Hit, Passage, Query, same_to_read

_ABOUT_THE_RUN: Final = ("config", "run_manager", "callbacks")

GuessFunction: TypeAlias = Callable[[Mapping[str, Any]], Any]


def is_read_only(tool: BaseTool, names: frozenset[str]) -> bool:
    """Return whether a tool is marked as read-only; this is never inferred from its name."""
    metadata = tool.metadata or {}
    marked = metadata.get("read_only") is True or metadata.get("readOnlyHint") is True
    return tool.name in names or marked or getattr(tool, "read_only", False) is True


def takes_injected(tool: BaseTool) -> bool:
    """Return whether the host injects arguments (state, store, runtime), which are not known."""
    seen: Any = tool.tool_call_schema
    if isinstance(seen, dict):
        return False
    given: Any = tool.get_input_schema()
    return set(given.model_fields) != set(seen.model_fields)


def may_command(tool: BaseTool) -> bool:
    """Return whether a tool is annotated as returning a `Command`."""
    call = getattr(tool, "coroutine", None) or getattr(tool, "func", None) or tool._run  # noqa: SLF001 what tools implement
    try:
        returned = get_type_hints(call).get("return")
    except Exception:  # noqa: BLE001 the annotations cannot be resolved
        return False
    parts = (returned, *getattr(returned, "__args__", ()))
    return any(part is Command or getattr(part, "__origin__", None) is Command for part in parts)


def query_of(tool: BaseTool | None, call: Mapping[str, Any]) -> Query:
    """Return a call's tool and arguments, without its id, as a query."""
    arguments = arguments_of(call["args"])
    return Query(f"{call['name']} {arguments}", key=(call["name"], id(tool), arguments))


def hits_of(message: ToolMessage) -> tuple[Hit, ...]:
    """Return an observation as hits for a query cache."""
    text = message.content if isinstance(message.content, str) else ""
    return (Hit(Passage("observation", text, metadata={"content": message.content})),)


def observation(call: Mapping[str, Any], guess: Any) -> ToolMessage:
    """Return the message of a tool call with this content."""
    if isinstance(guess, ToolMessage):
        return guess
    return ToolMessage(content=guess, name=call["name"], tool_call_id=call["id"])


async def guessed(guess: Callable[..., Any], call: Mapping[str, Any], *, wait: bool) -> Any:
    """Return a function's guess; an awaitable in a synchronous agent is no guess."""
    found = guess(deepcopy(call))  # the call is part of the agent's state
    if not isawaitable(found):
        return found
    if wait:
        return await found
    if hasattr(found, "close"):
        found.close()
    return None


@dataclass(frozen=True, slots=True)
class ToolCallResult:
    """The result of a tool's speculative call.

    Attributes:
        tool: the tool that was called.
        returned: what its implementation returned.
        asked: the arguments that it was called with.
        runs: what it has shown besides.
        generation: of the former results, when it was called.
    """

    tool: BaseTool
    returned: Any
    asked: Any
    runs: InnerRuns
    generation: int


async def call_ahead(
    tool: BaseTool,
    call: Mapping[str, Any],
    config: RunnableConfig,
    generation: int,
    *,
    asynchronous: bool,
) -> tuple[ToolCallResult, ToolMessage]:
    """Call a tool as the host does; return the result of its implementation, and its message.

    Raises:
        TypeError: it did not return a single message, or has changed its arguments, as the host's
            call changes those in the agent's state.
    """
    results: list[ToolCallResult] = []
    runs = InnerRuns()
    seen = copy(tool)
    seen.__dict__.update(callbacks=None, verbose=False)
    original: Any = tool

    async def arun(*args: Any, **kwargs: Any) -> Any:
        asked = deepcopy(_asked(args, kwargs))
        try:
            returned = await original._arun(*args, **kwargs)  # noqa: SLF001
        except SystemExit as error:  # the host calls tools in tasks, where it would end the loop
            raise RuntimeError(f"{tool.name} ends the process") from error
        if same_to_read(asked, _asked(args, kwargs)):
            results.append(ToolCallResult(tool, returned, asked, runs, generation))
        return returned

    def run(*args: Any, **kwargs: Any) -> Any:
        asked = deepcopy(_asked(args, kwargs))
        returned = original._run(*args, **kwargs)  # noqa: SLF001
        if same_to_read(asked, _asked(args, kwargs)):
            results.append(ToolCallResult(tool, returned, asked, runs, generation))
        return returned

    _replace(seen, arun, run)
    given = {**deepcopy(call), "type": "tool_call"}
    aside = runs.config(config)
    message = await seen.ainvoke(given, aside) if asynchronous else seen.invoke(given, aside)
    if not isinstance(message, ToolMessage) or not results:
        raise TypeError(
            f"{tool.name} must return a message and leave its arguments, got {message!r}"
        )
    if isinstance(results[0].returned, Command):
        raise TypeError(f"{tool.name} must return a message, got a Command")
    return results[0], message


def _asked(args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Return the arguments of a tool's call, without those that the host adds about the run."""
    return args, {name: one for name, one in kwargs.items() if name not in _ABOUT_THE_RUN}


def _same(early: ToolCallResult, tool: BaseTool, asked: Any) -> bool:
    """Return whether a speculative call was one of this tool with these arguments."""
    try:
        return early.tool is tool and same_to_read(early.asked, asked)
    except Exception:  # noqa: BLE001 values that cannot be compared are not equal
        return False


class _Replay:
    """The result of a speculative call, for the first call of its tool by the host."""

    def __init__(
        self,
        tool: BaseTool,
        early: Recording,
        fits: Callable[[ToolCallResult], bool],
        counters: AgentCounters,
    ) -> None:
        self._tool = tool
        self._early = early
        self._fits = fits
        self._counters = counters
        self._used = False

    async def aresult(self, asked: Any) -> ToolCallResult | None:
        """Wait for the result, `None` if there is none of a call with these arguments."""
        if self._used:
            return None
        self._used = True
        result: ToolCallResult
        with suppress(Exception):  # the host's own call raises the tool's own error
            async with aclosing(self._early.aread()) as results:
                async for result in results:
                    if self._takes(result, asked):
                        return result
        self._counters.add(tools_dropped=1)
        return None

    def result(self, asked: Any) -> ToolCallResult | None:
        """Wait for the result in this thread."""
        if self._used:
            return None
        self._used = True
        result: ToolCallResult
        with suppress(Exception):
            for result in self._early.read():
                if self._takes(result, asked):
                    return result
        self._counters.add(tools_dropped=1)
        return None

    def _takes(self, result: ToolCallResult, asked: Any) -> bool:
        if not (_same(result, self._tool, asked) and self._fits(result)):
            return False
        result.runs.write_again()
        self._counters.add(tools_committed=1)
        return True


def replaying(
    tool: BaseTool,
    early: Recording,
    fits: Callable[[ToolCallResult], bool],
    counters: AgentCounters,
) -> BaseTool:
    """Return a copy of a tool that waits for a speculative call and returns its result, once.

    If that call fails, does not fit, or a middleware changes the tool or the arguments, the tool
    itself is called; also where a middleware calls it again, such as until it likes the result.
    """
    replay = copy(tool)
    original: Any = tool
    early.committed = True
    once = _Replay(tool, early, fits, counters)

    async def arun(*args: Any, **kwargs: Any) -> Any:
        result = await once.aresult(_asked(args, kwargs))
        if result is None:
            return await original._arun(*args, **kwargs)  # noqa: SLF001
        return result.returned

    def run(*args: Any, **kwargs: Any) -> Any:
        result = once.result(_asked(args, kwargs))
        if result is None:
            return original._run(*args, **kwargs)  # noqa: SLF001
        return result.returned

    _replace(replay, arun, run)
    return replay


def _replace(tool: Any, arun: Callable[..., Any], run: Callable[..., Any]) -> None:
    """Replace methods of a copy, with the signatures of the original for the host."""
    tool.__dict__["_arun"] = wraps(tool._arun)(arun)  # noqa: SLF001
    tool.__dict__["_run"] = wraps(tool._run)(run)  # noqa: SLF001
