"""Agents of LlamaIndex that run their model while their tools run.

The host has no middleware; an agent's model and tools are objects that it calls. An agent that
`speculate()` returns is a copy of the host's own class, with copies of its model and tools whose
calls are intercepted. All other attributes are those of the originals, on which calls are made.
"""

from collections.abc import (
    AsyncGenerator,
    Callable,
    Collection,
    Coroutine,
    Hashable,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from contextvars import ContextVar, copy_context
from copy import copy, deepcopy
from dataclasses import dataclass, field
from functools import wraps
from inspect import isawaitable
from typing import Any, Final, TypeAlias, cast

from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.agent.workflow.base_agent import BaseWorkflowAgent
from llama_index.core.base.llms.types import ChatResponse
from llama_index.core.llms import LLM
from llama_index.core.tools import BaseTool, FunctionTool, ToolOutput

from llama_index_ralmspec.agent_calls import (
    ModelCall,
    ToolCall,
    blocks_of,
    message_of,
    output_of,
    pieces_of,
    reasoning_of,
    reply_of,
    tokens_of,
)
from llama_index_ralmspec.callbacks import SpeculativeCall, tagged, tell_agent_event
from ralmspec_plugins.adapters.agent_limits import AgentLimits, AgentStats
from ralmspec_plugins.adapters.agents import (
    AgentEvent,
    AgentRun,
    AgentSession,
    Slot,
    ToolStep,
    check_names,
)
from ralmspec_plugins.adapters.side_effects import SideEffects, Slices
from ralmspec_plugins.adapters.speculative_calls import Recording, TaskLauncher
from ralmspec_plugins.arguments import suggests_fields
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.scheduling.processor import ProcessorLoad
from ralmspec_plugins.speculators.query_cache import QueryCache
from ralmspec_plugins.types import Hit, Passage, same_to_read

Guess: TypeAlias = Callable[[Mapping[str, Any]], Any]
Scope: TypeAlias = Callable[[], Hashable]

_OPTIONS: Final = "_ralmspec_agent"  # attribute of a copied agent with its settings
_MOST: Final = 1024  # the maximum number of former results, unless a memo is given
_SEEN: Final = ("achat", "astream_chat", "achat_with_tools", "astream_chat_with_tools")
_SERVER_STATE: Final = (
    "previous_response_id",
    "track_previous_responses",
    "built_in_tools",
    "conversation",
    "conversation_id",
    "container",
    "mcp_servers",
    "background",
)

_current: ContextVar["_Conversation | None"] = ContextVar("ralmspec_agent_run", default=None)


@suggests_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOptions:
    """The settings of a speculative agent, and what its runs share.

    Args:
        guess: takes a tool call (name, args, id) and returns the expected result of the tool:
            a text, a `ToolOutput`, or `None`; may be asynchronous.
        depth: the maximum number of model calls ahead of the host. With more than one, the tool
            calls of a speculative reply are made speculatively, too, if all of these tools are
            read-only.
        read_only: names of tools that change nothing and need no approval, in addition to those
            of `speculative_tool()`.
        memo: a cache of former results, by tool, arguments and scope.
        scope: is called in `run()`, in the context of its caller, and returns the scope of the
            run; runs of equal scope share former results as guesses. By default each run is
            alone. A guess is sent to the model as part of a prompt, so different users need
            different scopes.
        max_wasted_calls: the number of dropped model calls after which a run continues without
            speculation.
        max_wasted_tokens: the same for their tokens, if the model reports them.
        max_wasted_share: the share of dropped calls among all calls of the model, in all runs,
            that is not exceeded.
        handover_s: how long speculative work waits for the host's next call.
    """

    guess: Guess | None = None
    depth: int = 1
    read_only: Collection[str] = ()
    memo: QueryCache | None = None
    scope: Scope | None = None
    max_wasted_calls: int | None = 8
    max_wasted_tokens: int | None = None
    max_wasted_share: float | None = None
    handover_s: float = 0.08
    session: AgentSession = field(init=False)

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.guess is not None and not callable(self.guess):
            raise ConfigError(f"guess must be a function or None, got {self.guess!r}")
        check_names("read_only", self.read_only)
        if not isinstance(self.memo, QueryCache | None):
            raise ConfigError(f"memo must be a QueryCache or None, got {self.memo!r}")
        if self.memo is None:
            object.__setattr__(self, "memo", QueryCache(capacity=_MOST))
        if self.scope is not None and not callable(self.scope):
            raise ConfigError(f"scope must be a function or None, got {self.scope!r}")
        limits = AgentLimits(
            depth=self.depth,
            max_wasted_calls=self.max_wasted_calls,
            max_wasted_tokens=self.max_wasted_tokens,
            max_wasted_share=self.max_wasted_share,
            handover_s=self.handover_s,
        )
        object.__setattr__(self, "session", AgentSession(limits))


class _Conversation:
    """The `AgentHost` of one `run()` of an agent or a workflow of agents."""

    def __init__(self, options: AgentOptions) -> None:
        assert options.memo is not None
        self.options = options
        self.memo = options.memo
        self.scope = object() if options.scope is None else options.scope()
        if not isinstance(self.scope, Hashable):
            raise ConfigError(f"scope must return a hashable value, got {self.scope!r}")
        self.agent: Any = None  # the agent whose model was called last
        self.tools: dict[str, Any] = {}  # its original tools
        self.effects: SideEffects | None = None
        self._context = copy_context()  # of the caller of `run()`
        self._run: AgentRun | None = None

    def run(self) -> AgentRun:
        """Return the current speculative run, or a new one if that was closed."""
        if self._run is None or self._run.closed:
            self._run = AgentRun(self, TaskLauncher(), self.options.session)
        return self._run

    def live(self) -> AgentRun | None:
        """Return the current speculative run, or `None` if it was closed."""
        return None if self._run is None or self._run.closed else self._run

    def next_request(self, step: ToolStep) -> ModelCall:
        asked: ModelCall = step.request
        waiting = [slot for slot in step.slots if slot not in step.finished]
        observed = [(slot.call, slot.observation) for slot in [*step.finished, *waiting]]
        if isinstance(self.agent, ReActAgent):
            more = reasoning_of(self.agent, step.tail, observed)
        else:
            more = [*step.tail, *(message_of(call, output) for call, output in observed)]
        kwargs = dict(asked.kwargs)
        kwargs.pop("tool_choice", None)  # the host passes it only to the first call
        return ModelCall(asked.llm, asked.method, [*asked.messages, *more], kwargs)

    def pieces(
        self, request: ModelCall, *, asynchronous: bool
    ) -> AsyncGenerator[ChatResponse, None]:
        assert asynchronous
        return request.ahead()

    def reply(self, recording: Recording) -> tuple[list[Any], list[Any]]:
        return reply_of(self.agent, recording.request, recording.pieces[-1])

    async def guess(self, call: ToolCall, *, asynchronous: bool) -> ToolOutput | None:
        assert asynchronous
        known = self.memo.known(self.scope, call.query)
        if known is not None:
            return output_of(call, blocks=known[0].passage.metadata["blocks"])
        # A copy: the call is part of the agent's state.
        given = deepcopy({"name": call.name, "args": dict(call.kwargs), "id": call.id})
        by_tool = getattr(self.tools.get(call.name), "aguess_call", None)
        for guess in (by_tool, self.options.guess):
            found = guess and guess(given)
            found = await found if isawaitable(found) else found
            if found is not None:
                return found if isinstance(found, ToolOutput) else output_of(call, content=found)
        return None

    def may_call(self, call: ToolCall) -> bool:
        tool = self.tools.get(call.name)
        marked = call.name in self.options.read_only or getattr(tool, "read_only", False) is True
        return tool is not None and marked and _may_guess(tool)

    async def call_tool(self, call: ToolCall, *, asynchronous: bool) -> tuple[Any, ToolOutput]:
        assert asynchronous
        generation = self.memo.generation
        given = deepcopy(dict(call.kwargs))
        output = await self.tools[call.name].acall(**given)
        if not same_to_read(given, dict(call.kwargs)):
            raise TypeError(f"{call.name} changes its arguments, which are in the agent's state")
        return (generation, output), output

    def equal(self, guess: ToolOutput, real: ToolOutput) -> bool:
        return same_to_read(blocks_of(guess), blocks_of(real))

    def tokens(self, recording: Recording) -> int:
        return tokens_of(recording.pieces[-1]) if recording.pieces else 0

    def may_run_ahead(self) -> bool:
        return self.effects is not None and self.effects.may_guess()

    def samples(self, request: ModelCall) -> bool:
        return request.samples

    async def aside(
        self, work: Callable[[], Coroutine[Any, Any, None]], call: Recording | None
    ) -> None:
        with tagged():
            if call is None:
                await work()
            else:
                await SpeculativeCall(call).aahead(work)

    def report(self, event: AgentEvent) -> None:
        self._context.copy().run(tell_agent_event, event)


def _may_guess(tool: BaseTool) -> bool:
    needs_context = isinstance(tool, FunctionTool) and tool.requires_context
    return not needs_context and not tool.metadata.return_direct


def _refusal(llm: LLM) -> str | None:
    """Return why a model must not be called speculatively, or `None` if it may be."""
    more = getattr(llm, "additional_kwargs", None)
    more = more if isinstance(more, Mapping) else {}
    for name in _SERVER_STATE:
        if getattr(llm, name, None) or more.get(name):
            return f"the provider keeps state between calls ({name})"
    if more.get("tools"):
        return "the provider runs tools of its own"
    return None


def _history(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the history of a call in the form that agents use; nothing for other calls."""
    if "with_tools" in name:
        return None if args else kwargs.get("chat_history")
    return args[0] if len(args) == 1 else None


class _ModelTap:
    """Intercepts an agent's calls of its model, and replays those made speculatively."""

    def __init__(self, agent: Any, llm: LLM) -> None:
        self._agent = agent
        self._llm: Any = llm
        self._effects = SideEffects(llm, shared_process=True, logs_count=True)

    def model(self) -> Any:
        """Return a copy of the model, of the same class, whose calls are intercepted."""
        seen = copy(self._llm)
        for name in _SEEN:
            if hasattr(self._llm, name):
                seen.__dict__[name] = self._method(name)
        return seen

    def _method(self, name: str) -> Callable[..., Any]:
        original = getattr(self._llm, name)

        @wraps(original)
        async def called(*args: Any, **kwargs: Any) -> Any:
            conversation = _current.get()
            messages = _history(name, args, kwargs)
            if conversation is None or not messages:
                return await original(*args, **kwargs)
            session = conversation.options.session
            busy = session.is_busy(conversation.live())
            call = None if busy else self._call(name, messages, kwargs)
            made = original(*args, **kwargs) if call is None else self._made(conversation, call)
            if "stream" in name:
                return _counted(session.load, await made)
            with session.load.call():
                return await made

        return called

    def _call(self, name: str, messages: Any, kwargs: Mapping[str, Any]) -> ModelCall | None:
        """Return a call, or `None` if it cannot be compared, and thus not be replaced."""
        rest = {key: value for key, value in kwargs.items() if key != "chat_history"}
        try:
            return ModelCall(self._llm, name, messages, rest)
        except Exception:  # noqa: BLE001 such as an argument that cannot be copied
            return None

    async def _made(self, conversation: _Conversation, call: ModelCall) -> Any:
        """Return the reply to a call, or its stream."""
        run = self._taken(conversation)
        return await (self._stream(run, call) if call.streams else self._whole(run, call))

    def _taken(self, conversation: _Conversation) -> AgentRun:
        conversation.agent = self._agent
        conversation.tools = {
            tool.metadata.get_name(): getattr(tool, "__dict__", {}).get(_OPTIONS, tool)
            for tool in self._agent.tools or ()
        }
        conversation.effects = self._effects
        return conversation.run()

    async def _whole(self, run: AgentRun, call: ModelCall) -> Any:
        """Return a reply: of the speculative call, or of the host's own."""
        with run.held():
            ahead, reply = run.claim(call), None
            if ahead is not None:
                async with aclosing(ahead.aread()) as pieces:
                    reply = await anext(pieces, None)
            if reply is None:
                slices = Slices()
                with self._effects.watched(slices):
                    reply = await slices.of(call.made())
                self._check(call)
            self._replied(run, call, reply)
            return reply

    async def _stream(self, run: AgentRun, call: ModelCall) -> Any:
        """Return a stream: of the speculative call, or of the host's own, which is made here."""
        with run.held():
            ahead, reply = run.claim(call), None
            if ahead is None:
                slices = Slices()
                with self._effects.watched(slices):
                    reply = await slices.of(call.made())
        return self._pieces(run, call, ahead, reply)

    async def _pieces(
        self, run: AgentRun, call: ModelCall, ahead: Recording | None, reply: Any
    ) -> AsyncGenerator[ChatResponse, None]:
        """Yield the pieces of a speculative call, or of the host's own if there is none."""
        last, given = None, 0
        with run.held():
            if ahead is not None:
                async with aclosing(ahead.aread()) as pieces:
                    async for last in pieces:
                        given += 1
                        yield last
            if ahead is None or ahead.error is not None:
                slices = Slices()
                with self._effects.watched(slices):
                    reply = await slices.of(call.made()) if ahead is not None else reply
                    async with aclosing(pieces_of(reply)) as pieces:
                        async for piece in slices.items(pieces):
                            given -= 1
                            if given < 0:
                                last = piece
                                yield piece
                self._check(call)
            if last is None:
                run.close()
                return
            self._replied(run, call, last)

    def _check(self, call: ModelCall) -> None:
        if call.changed(call.messages):
            self._effects.note("it changes the history that it is given")

    def _replied(self, run: AgentRun, call: ModelCall, reply: Any) -> None:
        """Record a reply, and the tool calls in it."""
        try:
            tail, calls = reply_of(self._agent, call, reply)
        except Exception:  # noqa: BLE001 the agent reads its reply itself and raises its own error
            tail, calls = [], []
        run.replied(call, tail, calls)
        if not calls:
            run.close()


async def _counted(load: ProcessorLoad, reply: Any) -> AsyncGenerator[ChatResponse, None]:
    """Yield the pieces of a stream, which is a call until its end."""
    with load.call():
        async with aclosing(pieces_of(reply)) as pieces:
            async for piece in pieces:
                yield piece


def _seen_tool(tool: Any) -> Any:
    """Return a copy of a tool, of the same class, whose calls are intercepted."""
    seen = copy(tool)
    name = tool.metadata.get_name()

    @wraps(tool.acall)
    async def acall(*args: Any, **kwargs: Any) -> ToolOutput:
        conversation = _current.get()
        if conversation is None:
            return cast("ToolOutput", await tool.acall(*args, **kwargs))
        with conversation.options.session.load.call():
            run = conversation.live()
            step = None if run is None else run.step
            if run is None or step is None or args:
                return cast("ToolOutput", await tool.acall(*args, **kwargs))
            with run.held():
                return await _called(conversation, run, step, ToolCall(name, kwargs), tool)

    seen.__dict__["acall"] = acall
    seen.__dict__[_OPTIONS] = tool
    return seen


async def _called(
    conversation: _Conversation, run: AgentRun, step: ToolStep, call: ToolCall, tool: Any
) -> ToolOutput:
    """Make the host's call of a tool, with speculative model calls in parallel."""
    slot = step.arrive(call)
    if not _may_guess(tool):
        step.bar()
    elif slot is not None:
        step.guess(slot)
    generation = conversation.memo.generation
    output = await _early(run, slot, generation)
    if output is None:
        output = await tool.acall(**call.kwargs)
    if slot is not None and isinstance(output, ToolOutput):
        step.observe(slot, output)
        if not output.is_error:
            hit = Hit(Passage("observation", output.content, metadata={"blocks": output.blocks}))
            conversation.memo.learn(conversation.scope, call.query, (hit,), generation)
    return output


async def _early(run: AgentRun, slot: Slot | None, generation: int) -> ToolOutput | None:
    """Return the result of a tool's speculative call, or `None` if there is none of use.

    It is of none if the call has failed, or if former results were discarded since it began.
    """
    early = None if slot is None else slot.early
    if early is None or early.dropped:
        return None
    early.committed = True
    async with aclosing(early.aread()) as outputs:
        async for began, output in outputs:
            if began == generation:
                run.counters.add(tools_committed=1)
                return output  # type: ignore[no-any-return]
    run.counters.add(tools_dropped=1)
    return None


def speculate_agent(agent: Any, options: AgentOptions) -> Any:
    """Return a copy of an agent, or of a workflow of agents, that speculates on its tools.

    Raises:
        ConfigError: the class of the agent is not supported.
    """
    if isinstance(agent, AgentWorkflow):
        workflow = copy(agent)
        workflow.agents = {name: _seen_agent(one) for name, one in agent.agents.items()}
        return _started(workflow, agent, options)
    return _started(_seen_agent(agent), agent, options)


def _seen_agent(agent: BaseWorkflowAgent) -> BaseWorkflowAgent:
    if not isinstance(agent, FunctionAgent | ReActAgent):
        raise ConfigError(
            f"speculate() supports only FunctionAgent, ReActAgent and workflows of these, "
            f"got a {type(agent).__name__}"
        )
    seen = copy(agent)
    seen.tools = None if agent.tools is None else [_seen_tool(tool) for tool in agent.tools]
    if _refusal(agent.llm) is None:
        seen.llm = _ModelTap(seen, agent.llm).model()
    return seen


def _started(seen: Any, agent: Any, options: AgentOptions) -> Any:
    """Return the copy with a `run()` that starts a new conversation each time."""

    @wraps(agent.run)
    def run(*args: Any, **kwargs: Any) -> Any:
        token = _current.set(_Conversation(options))
        try:
            return type(agent).run(seen, *args, **kwargs)
        finally:
            _current.reset(token)

    seen.__dict__["run"] = run
    seen.__dict__[_OPTIONS] = options
    return seen


def agent_stats(agent: Any) -> AgentStats:
    """Return the counts of the speculative calls of an agent that `speculate()` returned.

    Raises:
        ConfigError: `speculate()` did not return this agent.
    """
    options = getattr(agent, "__dict__", {}).get(_OPTIONS)
    if not isinstance(options, AgentOptions):
        raise ConfigError(f"expected an agent returned by speculate(), got {agent!r}")
    return options.session.counters.stats
