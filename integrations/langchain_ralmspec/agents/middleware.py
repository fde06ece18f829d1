"""The middleware that observes an agent's model and tool calls, and makes them speculatively."""

import threading
from collections import OrderedDict
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Hashable,
    Sequence,
)
from contextlib import aclosing
from contextvars import copy_context
from functools import partial
from typing import Any, Final, TypeAlias

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.runnables import RunnableConfig, ensure_config
from langchain_core.tools import BaseTool
from langgraph.config import get_config
from langgraph.prebuilt.tool_node import ToolCallRequest
from langgraph.runtime import Runtime, get_runtime
from langgraph.types import Command

from langchain_ralmspec.agents.inner_runs import Kind, listeners, noticed
from langchain_ralmspec.agents.model_calls import (
    ModelCall,
    ModelTap,
    refusal,
    reply_of,
    tokens_of,
    view,
)
from langchain_ralmspec.agents.stream_writer import check_unwritten, unwritten
from langchain_ralmspec.agents.tool_calls import (
    GuessFunction,
    ToolCallResult,
    call_ahead,
    guessed,
    hits_of,
    is_read_only,
    may_command,
    observation,
    query_of,
    replaying,
    takes_injected,
)
from langchain_ralmspec.configs import quiet_config, unheard
from ralmspec_plugins.adapters.agent_limits import AgentLimits, AgentStats
from ralmspec_plugins.adapters.agents import (
    AgentEvent,
    AgentRun,
    AgentSession,
    Slot,
    ToolStep,
    check_names,
)
from ralmspec_plugins.adapters.side_effects import SideEffects
from ralmspec_plugins.adapters.speculative_calls import Recording, TaskLauncher, ThreadLauncher
from ralmspec_plugins.arguments import suggests
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.speculators.query_cache import QueryCache
from ralmspec_plugins.types import same_to_read

Scope: TypeAlias = Callable[[Runtime[Any]], Hashable]
ToolResult: TypeAlias = ToolMessage | Command[Any]

_MOST: Final = 1024  # the maximum number of runs, and of models, that are kept


class _Host:
    """The `AgentHost` of one run of a LangChain agent."""

    def __init__(self, options: "SpeculativeTools", scope: Hashable) -> None:
        self.options = options
        self.scope = scope if scope is not None else object()  # nothing is shared with other runs
        self.config = RunnableConfig()
        self.tools: dict[str, BaseTool] = {}
        self.listeners: Sequence[BaseCallbackHandler] = ()  # to runs inside of tools
        self.name: str | None = None  # of the agent, as in its messages
        self.effects: SideEffects | None = None

    def next_request(self, step: ToolStep) -> ModelCall:
        call: ModelCall = step.request
        return call.followed_by([*step.tail, *(slot.observation for slot in step.slots)])

    async def pieces(self, request: ModelCall, *, asynchronous: bool) -> AsyncGenerator[Any, None]:
        config = ensure_config()
        async with aclosing(request.pieces(asynchronous=asynchronous)) as pieces:
            async for piece in pieces:
                check_unwritten(config)
                yield piece
        check_unwritten(config)

    def reply(self, recording: Recording) -> tuple[list[Any], list[Any]]:
        message = reply_of(recording, self.name)
        return [message], list(message.tool_calls)

    async def guess(self, call: Any, *, asynchronous: bool) -> ToolMessage | None:
        tool, options = self.tools.get(call["name"]), self.options
        known = options.memo.known(self.scope, query_of(tool, call))
        if known is not None:
            return observation(call, known[0].passage.metadata["content"])
        by_tool = getattr(tool, "aguess_call" if asynchronous else "guess_call", None)
        for guess in (by_tool, options.guess):
            found = guess and await guessed(guess, call, wait=asynchronous)
            if found is not None:
                return observation(call, found)
        return None

    def may_call(self, call: Any) -> bool:
        tool = self.tools.get(call["name"])
        return (
            tool is not None
            and is_read_only(tool, self.options.read_only)
            and not tool.return_direct
            and not takes_injected(tool)
            and not self.options.commands(tool)
            and not noticed(self.options.shown(tool.name), self.listeners)
        )

    async def call_tool(self, call: Any, *, asynchronous: bool) -> tuple[Any, ToolMessage]:
        tool, generation = self.tools[call["name"]], self.options.memo.generation
        return await call_ahead(tool, call, self.config, generation, asynchronous=asynchronous)

    def fits(self, name: str, result: ToolCallResult) -> bool:
        """Return whether a tool's result is current, and nothing else would be missing."""
        self.options.note(name, result.runs.kinds)
        current = result.generation == self.options.memo.generation
        return current and not noticed(result.runs.kinds, self.listeners)

    def equal(self, guess: ToolMessage, real: ToolMessage) -> bool:
        return same_to_read(view(guess), view(real))

    def tokens(self, recording: Recording) -> int:
        return tokens_of(recording)

    def may_run_ahead(self) -> bool:
        return self.effects is not None and self.effects.may_guess()

    def samples(self, request: ModelCall) -> bool:
        return request.samples

    async def aside(
        self, work: Callable[[], Coroutine[Any, Any, None]], call: Recording | None
    ) -> None:
        with unheard(unwritten(self.config)):
            await work()

    def report(self, event: AgentEvent) -> None:
        """Report nothing: the counts say it, and the streams must be those of the plain agent."""


class SpeculativeTools(AgentMiddleware[Any, Any]):
    """Calls the model while a tool runs, with the result that the tool is expected to return.

    Put it last in `create_agent(..., middleware=[..., SpeculativeTools()])`. The tool itself runs
    unchanged. When the host calls the model, and the whole request (messages, tools, settings)
    equals the expected one, the host receives the reply of the speculative call; otherwise
    that reply is dropped and the host's call is made. State, streams, events, checkpoints and
    usage are those of the agent without it, except for ids and times.

    The expected result comes from the former result of the same call (`memo`), from the tool
    itself (`speculative_tool()`), or from a function (`guess`), in this order.

    A model is never called speculatively if its provider keeps state between calls or runs tools
    of its own, if it has a rate limiter, or if its calls are observed to use process-wide random
    state or a counter. A model that samples gives another draw from the same distribution;
    `stats.sampled` counts its calls.
    """

    @suggests
    def __init__(
        self,
        guess: GuessFunction | None = None,
        *,
        depth: int = 1,
        read_only: Collection[str] = (),
        memo: QueryCache | None = None,
        scope: Scope | None = None,
        max_wasted_calls: int | None = 8,
        max_wasted_tokens: int | None = None,
        max_wasted_share: float | None = None,
        handover_s: float = 0.08,
    ) -> None:
        """Create a middleware.

        Args:
            guess: takes a tool call (name, args, id) and returns the content that its tool is
                expected to return, or `None`; may be asynchronous in an asynchronous agent.
            depth: the maximum number of model calls ahead of the host. With more than one, the
                tool calls of a speculative reply are made speculatively, too, if all of
                these tools are read-only.
            read_only: names of tools that change nothing and need no approval. Tools with
                `metadata={"read_only": True}`, and those of `speculative_tool()`, need not be
                named.
            memo: a cache of former results, by tool, arguments and scope.
            scope: returns the scope of a run; runs of equal scope share former results as
                guesses. The default is the `thread_id`. A guess is sent to the model as part of
                a prompt, so different users need different scopes.
            max_wasted_calls: the number of dropped model calls after which a run continues
                without speculation.
            max_wasted_tokens: the same for their tokens.
            max_wasted_share: the share of dropped calls among all calls of the model, in all runs,
                that is not exceeded.
            handover_s: how long speculative work waits for the host's next call.

        Raises:
            ConfigError: a setting is out of range or of another type.
        """
        super().__init__()
        if guess is not None and not callable(guess):
            raise ConfigError(f"guess must be a function of a tool call or None, got {guess!r}")
        check_names("read_only", read_only)
        if not isinstance(memo, QueryCache | None):
            raise ConfigError(f"memo must be a QueryCache or None, got {memo!r}")
        if scope is not None and not callable(scope):
            raise ConfigError(f"scope must be a function of a runtime or None, got {scope!r}")
        self.guess = guess
        self.read_only = frozenset(read_only)
        self.memo = QueryCache(capacity=_MOST) if memo is None else memo
        self._scope = scope
        limits = AgentLimits(
            depth=depth,
            max_wasted_calls=max_wasted_calls,
            max_wasted_tokens=max_wasted_tokens,
            max_wasted_share=max_wasted_share,
            handover_s=handover_s,
        )
        self._session = AgentSession(limits)
        self._lock = threading.RLock()  # a garbage collection may end a run under the lock
        self._runs: OrderedDict[Hashable, AgentRun] = OrderedDict()
        self._effects: OrderedDict[int, tuple[Any, SideEffects]] = OrderedDict()
        self._commanding: set[str] = set()  # names of tools that have returned a `Command`
        self._shown: dict[str, frozenset[Kind]] = {}  # what tools have shown besides results

    @property
    def stats(self) -> AgentStats:
        """The counts of the speculative calls of all runs, and of their outcomes."""
        return self._session.counters.stats

    def invalidate(self) -> None:
        """Discard all former results, for example after a change of the searched index."""
        self.memo.invalidate()

    def commands(self, tool: BaseTool) -> bool:
        """Return whether a tool returns, or has returned, a `Command`."""
        return tool.name in self._commanding or may_command(tool)

    def shown(self, name: str) -> Collection[Kind]:
        """Return what calls of a tool have shown besides their results."""
        return self._shown.get(name, ())

    def note(self, name: str, kinds: Collection[Kind]) -> None:
        """Record what a tool's call has shown besides its result."""
        with self._lock:
            self._shown[name] = frozenset(kinds).union(self.shown(name))

    # Model calls

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> Any:
        """Call the model, or replay the speculative call with the same request."""
        run = self._run_of(request, asynchronous=False)
        with self._session.load.call():
            if run is None:
                return handler(request)
            with run.held():
                tap = ModelTap(run, request.model, self._watch(run, request.model))
                response = handler(request.override(model=tap.model()))
                self._replied(run, tap, response)
            return response

    def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> Coroutine[Any, Any, Any]:
        """Call the model, or replay a speculative call, on an event loop.

        This is a function that returns a coroutine: around a coroutine function the host works in
        two other threads, for LangSmith, also where that is off.
        """
        return self._model_called(request, handler)

    async def _model_called(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> Any:
        run = self._run_of(request, asynchronous=True)
        with self._session.load.call():
            if run is None:
                return await handler(request)
            with run.held():
                tap = ModelTap(run, request.model, self._watch(run, request.model))
                response = await handler(request.override(model=tap.model()))
                self._replied(run, tap, response)
            return response

    def _run_of(self, request: ModelRequest[Any], *, asynchronous: bool) -> AgentRun | None:
        """Return the run of a model call, or `None` if it must not speculate."""
        key = _key(request.state)
        with self._lock:
            run = None if key is None else self._runs.pop(key, None)
        off = key is None or self._session.limits.depth == 0
        if off or refusal(request.model, request.tools):
            if run is not None:
                run.close()
            return None
        if self._session.is_busy(run):
            return None
        if run is not None and not run.usable(asynchronous=asynchronous):
            run.close()
        if run is None or run.closed:
            run = self._new_run(asynchronous=asynchronous)
        self._host(run).config = quiet_config(get_config())
        run.model_context = copy_context()
        return run

    def _new_run(self, *, asynchronous: bool) -> AgentRun:
        runtime = get_runtime()
        scope: Hashable
        if self._scope is not None:
            scope = self._scope(runtime)
            if not isinstance(scope, Hashable):
                raise ConfigError(f"scope must return a hashable value, got {scope!r}")
        else:
            info = runtime.execution_info
            scope = None if info is None else info.thread_id
        launcher = TaskLauncher() if asynchronous else ThreadLauncher()
        return AgentRun(_Host(self, scope), launcher, self._session)

    def _host(self, run: AgentRun) -> _Host:
        host = run.host
        assert isinstance(host, _Host)
        return host

    def _watch(self, run: AgentRun, model: BaseChatModel) -> SideEffects:
        """Return the observer of a model's side effects, shared by all runs."""
        with self._lock:
            known = self._effects.get(id(model))
            if known is None or known[0] is not model:
                known = (model, SideEffects(model, shared_process=True, logs_count=True))
            self._effects[id(model)] = known
            self._effects.move_to_end(id(model))
            while len(self._effects) > _MOST:
                self._effects.popitem(last=False)
        self._host(run).effects = known[1]
        return known[1]

    def _replied(self, run: AgentRun, tap: ModelTap, response: ModelResponse[Any]) -> None:
        """Record the reply, and keep the run for its tool calls."""
        result = list(response.result)
        reply = next((one for one in result if isinstance(one, AIMessage)), None)
        if reply is None or tap.last is None or not reply.tool_calls or reply.id is None:
            self._session.counters.add(model_calls=1)
            run.close()
            return
        self._host(run).name = reply.name
        run.replied(tap.last, [reply], _pending(reply, result))
        key = _run_key(reply.id)
        run.on_close = lambda: self._forget(key, run)
        with self._lock:
            self._runs[key] = run
            while len(self._runs) > _MOST:
                self._runs.popitem(last=False)

    def _forget(self, key: Hashable, run: AgentRun) -> None:
        with self._lock:
            if self._runs.get(key) is run:
                del self._runs[key]

    # Tool calls

    def wrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], ToolResult]
    ) -> ToolResult:
        """Run the tool as the host does, and the model with its expected result in parallel."""
        run, step, slot = self._arrived(request, asynchronous=False)
        with self._session.load.call():
            if run is None:
                return handler(request)
            assert step is not None
            with run.held():
                self._begin(step, slot, request)
                generation = self.memo.generation
                result = handler(self._replayed(run, slot, request))
                self._returned(run, step, slot, request, result, generation)
            return result

    def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[ToolResult]]
    ) -> Coroutine[Any, Any, ToolResult]:
        """Run the tool, and the model in parallel, on an event loop; returns a coroutine."""
        return self._tool_called(request, handler)

    async def _tool_called(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[ToolResult]]
    ) -> ToolResult:
        run, step, slot = self._arrived(request, asynchronous=True)
        with self._session.load.call():
            if run is None:
                return await handler(request)
            assert step is not None
            with run.held():
                self._begin(step, slot, request)
                generation = self.memo.generation
                result = await handler(self._replayed(run, slot, request))
                self._returned(run, step, slot, request, result, generation)
            return result

    def _arrived(
        self, request: ToolCallRequest, *, asynchronous: bool
    ) -> tuple[AgentRun | None, ToolStep | None, Slot | None]:
        """Return the run, the step and the slot of a tool call."""
        key = _key(request.state)
        with self._lock:
            run = None if key is None else self._runs.get(key)
        step = None if run is None else run.step
        if run is None or step is None or not run.usable(asynchronous=asynchronous):
            return None, None, None
        host = self._host(run)
        host.config = quiet_config(request.runtime.config)
        host.listeners = listeners(request.runtime.config)
        host.tools = {tool.name: tool for tool in request.runtime.tools}
        with run.lock:
            if not any(slot.arrived for slot in step.slots):
                step.tail = _tail(_messages(request.state))
            return run, step, step.arrive(request.tool_call)

    def _begin(self, step: ToolStep, slot: Slot | None, request: ToolCallRequest) -> None:
        tool = request.tool
        if tool is not None and (tool.return_direct or self.commands(tool)):
            step.bar()
        elif slot is not None:
            step.guess(slot)

    def _replayed(
        self, run: AgentRun, slot: Slot | None, request: ToolCallRequest
    ) -> ToolCallRequest:
        """Return a request whose tool replays the speculative call, if there is one."""
        if slot is None or slot.early is None or slot.early.dropped or request.tool is None:
            return request
        name = request.tool.name
        fits = partial(self._host(run).fits, name)
        return request.override(tool=replaying(request.tool, slot.early, fits, run.counters))

    def _returned(
        self,
        run: AgentRun,
        step: ToolStep,
        slot: Slot | None,
        request: ToolCallRequest,
        result: ToolResult,
        generation: int,
    ) -> None:
        if not isinstance(result, ToolMessage):
            self._commanding.add(request.tool_call["name"])
            step.bar()
        elif slot is not None:
            step.observe(slot, result)
            if result.status == "success":
                query = query_of(request.tool, request.tool_call)
                self.memo.learn(self._host(run).scope, query, hits_of(result), generation)


def _messages(state: Any) -> Sequence[BaseMessage]:
    found = state.get("messages") if isinstance(state, dict) else getattr(state, "messages", None)
    return found or ()


def _tail(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """Return the last reply of the model and what follows it."""
    for position in range(len(messages) - 1, -1, -1):
        if isinstance(messages[position], AIMessage):
            return list(messages[position:])
    return []


def _pending(reply: AIMessage, result: Sequence[BaseMessage]) -> list[Any]:
    answered = [one.tool_call_id for one in result if isinstance(one, ToolMessage)]
    return [call for call in reply.tool_calls if call["id"] not in answered]


def _key(state: Any) -> Hashable | None:
    """Return the key of a state's run and last reply."""
    tail = _tail(_messages(state))
    return _run_key(tail[0].id if tail else None)


def _run_key(message_id: str | None) -> Hashable | None:
    """Return a run's key: its control object, graph, thread and last reply; `None` outside.

    The object itself, not its id, which a later run may have.
    """
    try:
        runtime = get_runtime()
    except Exception:  # noqa: BLE001 outside of a graph
        return None
    info = None if runtime is None else runtime.execution_info
    if info is None or runtime.control is None:
        return None
    return runtime.control, info.checkpoint_ns.rpartition("|")[0], info.thread_id, message_id
