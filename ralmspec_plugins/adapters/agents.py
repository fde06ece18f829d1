"""Speculation of one agent: expected results of tools, and calls that depend on them.

An agent alternates between its model and its tools. While a tool runs, the model is called with
the observation that the tool is expected to return. When the host then calls the model with a
request equal to the expected one, the speculative call replaces that call; otherwise it is
dropped, and the host's own call is made. No host is imported: `AgentHost` is the interface to
the hosts.
"""

import json
import logging
import threading
from asyncio import CancelledError
from collections.abc import (
    AsyncGenerator,
    Callable,
    Collection,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, contextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

from ralmspec_plugins.adapters.agent_limits import AgentCounters, AgentLimits
from ralmspec_plugins.adapters.speculative_calls import Launcher, Recording
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.scheduling.processor import ProcessorLoad
from ralmspec_plugins.scheduling.rate_limit import RateLimit
from ralmspec_plugins.types import same_to_read

_log = logging.getLogger(__name__)


class AgentSession:
    """What the runs of one agent share: limits, counts, the load of processor and providers."""

    def __init__(self, limits: AgentLimits, load: ProcessorLoad | None = None) -> None:
        """Create a session without runs.

        Args:
            limits: of each run.
            load: measures the processor.
        """
        self.limits = limits
        self.counters = AgentCounters()
        self.load = load or ProcessorLoad()
        self.rate_limit = RateLimit()

    def is_busy(self, run: "AgentRun | None") -> bool:
        """Return whether a host's model call is left to the host: other runs use the processor.

        A run whose next call is already made speculatively uses it. Otherwise it is closed.
        """
        if (run is not None and run.runs_ahead) or self.load.is_spare():
            return False
        if run is not None:
            run.close()
        self.counters.add(model_calls=1, busy=1)
        return True


def arguments_of(given: Mapping[str, Any]) -> str:
    """Return a tool call's arguments as a text, by which former results are found.

    >>> arguments_of({"b": 1, "a": [2]})
    '{"a": [2], "b": 1}'
    """
    try:
        return json.dumps(given, sort_keys=True, default=repr)
    except Exception:  # noqa: BLE001 keys without an order, or values that contain themselves
        return repr(given)


def check_names(name: str, given: object) -> None:
    """Check that a setting has names of tools.

    Raises:
        ConfigError: it has another type, such as one text.
    """
    if isinstance(given, str) or not isinstance(given, Collection):
        raise ConfigError(f"{name} must be names of tools, got {given!r}")
    if not all(isinstance(one, str) for one in given):
        raise ConfigError(f"{name} must be names of tools, got {given!r}")


@dataclass(frozen=True, slots=True)
class AgentEvent:
    """What happens to speculative work.

    Attributes:
        kind: a result is guessed, the guess is right or wrong, a speculative model call replaces
            one of the host's or is dropped.
        subject: the tool call, or the speculative model call.
    """

    kind: Literal["guess", "right", "wrong", "commit", "drop"]
    subject: Any


class Slot:
    """One tool call of a step, its guessed observation, and its real one."""

    def __init__(self, call: Any) -> None:
        """Create a slot without observations."""
        self.call = call
        self.arrived = False  # whether the host has made this call
        self.guess: Any = None
        self.real: Any = None  # the observation, from the host's or a speculative call
        self.early: Recording | None = None  # the speculative call of the tool

    @property
    def observation(self) -> Any:
        """The real observation if it is known, else the guess, if there is one."""
        return self.guess if self.real is None else self.real


class AgentHost(Protocol):
    """The interface to a host, for one run."""

    def next_request(self, step: "ToolStep") -> Any:
        """Return the model request that follows a step's observations; compared by `==`."""

    def pieces(self, request: Any, *, asynchronous: bool) -> AsyncGenerator[Any, None]:
        """Call the model without the caller's handlers, and yield its reply in pieces."""

    def reply(self, recording: Recording) -> tuple[list[Any], list[Any]]:
        """Return the messages that a reply adds to the history, and the tool calls in it."""

    def guess(self, call: Any, *, asynchronous: bool) -> Coroutine[Any, Any, Any]:
        """Return the expected observation of a tool call, or `None`."""

    def may_call(self, call: Any) -> bool:
        """Return whether a tool may be called speculatively: it is marked read-only."""

    def call_tool(self, call: Any, *, asynchronous: bool) -> Coroutine[Any, Any, tuple[Any, Any]]:
        """Call a tool without the caller's handlers; return its replay and its observation."""

    def equal(self, guess: Any, real: Any) -> bool:
        """Return whether the model reads the same in a guessed and a real observation.

        An error, such as of an array without a truth value, means that it does not.
        """

    def tokens(self, recording: Recording) -> int:
        """Return the number of tokens that a call's pieces report; an error means none."""

    def may_run_ahead(self) -> bool:
        """Return whether speculative calls may be made now."""

    def samples(self, request: Any) -> bool:
        """Return whether the model of a request is set to sample."""

    def aside(
        self, work: Callable[[], Coroutine[Any, Any, None]], call: Recording | None
    ) -> Coroutine[Any, Any, None]:
        """Do the work of a speculative call, or of a guess, without the caller's handlers."""

    def report(self, event: AgentEvent) -> None:
        """Report what happens to speculative work."""


class ToolStep:
    """The tool calls of one model reply, and the model call that follows their observations.

    Attributes:
        index: the number of the reply in its run.
        request: the request that the reply answers.
        tail: the messages that the reply has added to the history.
        slots: the tool calls, in the order of the reply.
        finished: the tool calls that have returned, in the order of their return.
        ahead: the speculative model call with their observations.
        barred: whether no more speculative calls are made for this step.
    """

    def __init__(
        self, run: "AgentRun", index: int, request: Any, tail: Sequence[Any], calls: Sequence[Any]
    ) -> None:
        """Create a step without observations."""
        self.run = run
        self.index = index
        self.request = request
        self.tail = list(tail)
        self.slots = [Slot(call) for call in calls]
        self.finished: list[Slot] = []
        self.ahead: Recording | None = None
        self.barred = False
        self._cancels: list[Callable[[], None]] = []

    def arrive(self, call: Any) -> Slot | None:
        """Return the free slot of a call by the host, or `None` if there is none.

        Calls are identified by their content, not by their ids, which models repeat.
        """
        with self.run.lock:
            for slot in self.slots:
                if not slot.arrived and _same(slot.call, call):
                    slot.arrived = True
                    return slot
            self.bar()
            return None

    def guess(self, slot: Slot) -> None:
        """Start guessing the observation of a call, and then call the model with it."""
        if self.barred or slot.guess is not None or not self.run.is_spare():
            self.settle()
            return
        self._cancels.append(self.run.start(lambda: self._guess(slot)))

    async def _guess(self, slot: Slot) -> None:
        host, asynchronous = self.run.host, self.run.launcher.asynchronous
        try:
            guess = await host.guess(slot.call, asynchronous=asynchronous)
        except Exception:  # noqa: BLE001 an error in a speculator means no guess
            _log.debug("a guess failed", exc_info=True)
            return
        with self.run.lock:
            if guess is not None and slot.real is None:
                slot.guess = guess
                host.report(AgentEvent("guess", slot.call))
            self.settle()

    def begin_ahead(self) -> None:
        """Make the tool calls of a speculative reply."""
        for slot in self.slots:
            slot.early = Recording(slot.call, self.index)
            self.run.counters.add(tools_ahead=1)
            slot.early.cancel = self.run.start(partial(self._call, slot), slot.early)
            self.guess(slot)

    async def _call(self, slot: Slot) -> None:
        early, run = slot.early, self.run
        assert early is not None
        try:
            replay, observation = await run.host.call_tool(
                slot.call, asynchronous=run.launcher.asynchronous
            )
        except BaseException as error:
            run.rate_limit.note(error)
            early.end(error)
            with run.lock:
                self.bar()
            if not isinstance(error, Exception):
                raise
            return  # the host's own call raises its own error
        with run.lock:
            if not early.dropped and slot.real is None:
                self._observed(slot, observation)
            early.put(replay)
            early.end()
            self.settle()

    def observe(self, slot: Slot, observation: Any) -> None:
        """Record the observation of the host's own call."""
        with self.run.lock:
            if slot.real is None or not self.run.equal(slot.real, observation):
                self._observed(slot, observation)
            self.settle()

    def _observed(self, slot: Slot, observation: Any) -> None:
        slot.real = observation
        if slot not in self.finished:
            self.finished.append(slot)
        if slot.guess is not None:
            right = self.run.equal(slot.guess, observation)
            self.run.counters.add(guesses=1, right=int(right))
            self.run.host.report(AgentEvent("right" if right else "wrong", slot.call))

    def settle(self) -> None:
        """Make the speculative model call that is expected now, and drop another one."""
        run = self.run
        if self.barred or run.closed or any(slot.observation is None for slot in self.slots):
            return
        if self.ahead is None and not self._may_run_ahead():
            return
        try:
            request = run.host.next_request(self)
        except Exception:  # noqa: BLE001 without the request no speculative call is made
            _log.debug("the next request cannot be predicted", exc_info=True)
            self.bar()
            return
        if self.ahead is not None:
            if self.ahead.request == request:
                return
            run.drop(self.ahead)
            self.ahead = None
            if not self._may_run_ahead():
                return
        if run.counters.began_ahead(run.limits.max_wasted_share):
            self.ahead = Recording(request, self.index + 1)
            run.record(self.ahead)

    def _may_run_ahead(self) -> bool:
        if all(slot.arrived and slot.real is not None for slot in self.slots):
            return False  # the host calls the model itself now
        return self.index - self.run.index < self.run.limits.depth and self.run.may_spend()

    def bar(self) -> None:
        """Drop the step's speculative model call, and make no more speculative calls."""
        self.barred = True
        if self.ahead is not None:
            self.run.drop(self.ahead)
            self.ahead = None

    def drop(self) -> None:
        """Drop the step with all its speculative calls."""
        self.bar()
        for cancel in self._cancels:
            cancel()
        for slot in self.slots:
            if slot.early is not None and not slot.early.committed and not slot.early.dropped:
                slot.early.dropped = True
                slot.early.cancel()
                self.run.counters.add(tools_dropped=1)


def _same(ours: object, theirs: object) -> bool:
    """Return whether calls are equal and read the same; those that cannot be compared do not."""
    try:
        return same_to_read(ours, theirs)
    except Exception:  # noqa: BLE001 such as an array in the arguments
        return False


class AgentRun:
    """The speculative work of one run of an agent. Thread-safe."""

    def __init__(self, host: AgentHost, launcher: Launcher, session: AgentSession) -> None:
        """Create a run without speculative work."""
        self.host = host
        self.launcher = launcher
        self.limits = session.limits
        self.counters = session.counters
        self.load = session.load
        self.rate_limit = session.rate_limit
        self.lock = threading.RLock()
        self.index = 0
        self.step: ToolStep | None = None  # the host's current step
        self.closed = False
        self.on_close: Callable[[], None] = lambda: None
        self.model_context: Context | None = None  # of the host's last call of the model
        self._out: list[Recording] = []  # model calls that are neither committed nor dropped
        self._wasted_calls = 0
        self._wasted_tokens = 0
        self._holders = 0
        self._handover = 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep speculative work while the host makes a call; drop all if that raises."""
        with self.lock:
            self._holders += 1
        try:
            yield
        except BaseException as error:
            self.rate_limit.note(error)
            self.close()
            raise
        finally:
            with self.lock:
                self._holders -= 1
                self._handover += 1
                if self._holders == 0 and not self.closed:
                    now = self._handover
                    self.launcher.later(self.limits.handover_s, lambda: self._expire(now))

    def _expire(self, handover: int) -> None:
        """Close the run if the host has made no call since."""
        with self.lock:
            if self._holders == 0 and self._handover == handover:
                self.close()

    def usable(self, *, asynchronous: bool) -> bool:
        """Return whether calls can be made speculatively from here."""
        same = self.launcher.asynchronous == asynchronous
        return not self.closed and same and self.launcher.usable()

    def close(self) -> None:
        """Drop all speculative work; the run continues without speculation."""
        with self.lock:
            if self.closed:
                return
            self.closed = True
            if self.step is not None:
                self.step.drop()
            for recording in list(self._out):
                self.drop(recording)
        self.on_close()

    def start(
        self,
        work: Callable[[], Coroutine[Any, Any, None]],
        call: Recording | None = None,
        context: Context | None = None,
    ) -> Callable[[], None]:
        """Start work without the caller's handlers; return a function that cancels it.

        Args:
            work: the work.
            call: the speculative call that it makes, if it makes one.
            context: is copied for the work; `None`: the current one.
        """

        async def silently() -> None:
            try:
                await self.host.aside(work, call)
            except (CancelledError, KeyboardInterrupt, GeneratorExit):
                raise
            except BaseException:  # noqa: BLE001 such as `SystemExit`, which would end the loop
                _log.debug("speculative work has failed", exc_info=True)

        return self.launcher.start(silently, copy_context() if context is None else context.copy())

    def equal(self, guess: Any, real: Any) -> bool:
        """Return whether the model reads the same in two observations."""
        try:
            return self.host.equal(guess, real)
        except Exception:  # noqa: BLE001 values that cannot be compared are not equal
            return False

    def may_spend(self) -> bool:
        """Return whether one more speculative call stays within the limits in the worst case.

        The processor is not busy with other runs, either, and no provider asks for fewer calls.
        """
        if self.rate_limit.active:
            return False
        most_calls, most_tokens = self.limits.max_wasted_calls, self.limits.max_wasted_tokens
        if most_calls is not None and self._wasted_calls + len(self._out) >= most_calls:
            return False
        if most_tokens is not None and self._wasted_tokens >= most_tokens:
            return False
        return self.host.may_run_ahead() and self.is_spare()

    def is_spare(self) -> bool:
        """Return whether speculative work delays no other run."""
        return self.load.is_spare(self._holders)

    @property
    def runs_ahead(self) -> bool:
        """Whether there is a speculative model call that the host may still make."""
        return bool(self._out)

    def record(self, recording: Recording) -> None:
        """Start a speculative model call."""
        self._out.append(recording)
        recording.cancel = self.start(
            lambda: self._record(recording), recording, self.model_context
        )

    async def _record(self, recording: Recording) -> None:
        pieces: Any = self.host.pieces(recording.request, asynchronous=self.launcher.asynchronous)
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    self.launcher.poll()
                    if recording.dropped:
                        return
                    recording.put(piece)
        except BaseException as error:
            self.rate_limit.note(error)
            recording.end(error)
            if not isinstance(error, Exception):
                raise
        else:
            recording.end()
        finally:
            with self.lock:
                self._ended(recording)

    def _ended(self, recording: Recording) -> None:
        if recording.dropped:
            return
        if recording.error is not None:
            self.counters.add(failed=1)
        elif not recording.committed:
            self._grow(recording)

    def _grow(self, recording: Recording) -> None:
        """Speculate on the tools of a speculative call, if all of them allow it."""
        if recording.index - self.index >= self.limits.depth or recording.step is not None:
            return
        try:
            messages, calls = self.host.reply(recording)
            allowed = bool(calls) and all(map(self.host.may_call, calls))
        except Exception:  # noqa: BLE001 the host reads its own reply
            _log.debug("the reply of a speculative call cannot be read", exc_info=True)
            return
        if allowed:
            recording.step = ToolStep(self, recording.index, recording.request, messages, calls)
            recording.step.begin_ahead()

    def drop(self, recording: Recording) -> None:
        """Drop a speculative call with all that depends on it, and count its cost."""
        if recording.committed or recording.dropped:
            return
        recording.dropped = True
        recording.cancel()
        self._out.remove(recording)
        tokens = self._tokens(recording)
        self._wasted_calls += 1
        self._wasted_tokens += tokens
        self.counters.add(dropped=1, dropped_tokens=tokens)
        self.host.report(AgentEvent("drop", recording))
        if recording.step is not None:
            recording.step.drop()

    def _tokens(self, recording: Recording) -> int:
        try:
            return self.host.tokens(recording)
        except Exception:  # noqa: BLE001 a reply to a wrong guess may be no reply at all
            _log.debug("the tokens of a dropped call cannot be counted", exc_info=True)
            return 0

    def claim(self, request: Any) -> Recording | None:
        """Return the speculative call that replaces a call by the host, or `None`.

        Its request must be equal; otherwise it is dropped with all that depends on it.
        """
        with self.lock:
            step, self.step = self.step, None
            ahead = None if step is None or self.closed else step.ahead
            if ahead is None or ahead.error is not None or ahead.request != request:
                if step is not None:
                    step.drop()
                return None
            ahead.committed = True
            self._out.remove(ahead)
            self.counters.add(committed=1, sampled=int(self.host.samples(request)))
            self.host.report(AgentEvent("commit", ahead))
            self.index = ahead.index
            self.step = ahead.step
            self._extend()
            return ahead

    def _extend(self) -> None:
        """Start the speculative steps that the depth allows after the host's next step."""
        step = self.step
        while step is not None:
            step.settle()
            ahead = step.ahead
            if ahead is not None and ahead.ended and ahead.error is None:
                self._grow(ahead)
            step = None if ahead is None else ahead.step

    def replied(self, request: Any, tail: Sequence[Any], calls: Sequence[Any]) -> None:
        """Record the reply that the host received, and the tool calls that it makes next."""
        with self.lock:
            self.counters.add(model_calls=1)
            step = self.step
            if step is not None and _same([slot.call for slot in step.slots], list(calls)):
                step.tail = list(tail)
                return
            if step is not None:
                step.drop()
            self.step = ToolStep(self, self.index, request, tail, calls) if calls else None
