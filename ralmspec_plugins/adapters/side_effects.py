"""Detects models whose calls have side effects, such as random numbers or counters."""

import logging
import random
import sys
import threading
from collections import deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterator,
    MutableSequence,
)
from contextlib import contextmanager
from functools import lru_cache, partial
from types import coroutine
from typing import Any, Final, TypeVar

import numpy as np

ItemT = TypeVar("ItemT")

_log = logging.getLogger(__name__)

_WAY_OUT: Final = " guess_through=True states that this makes no difference"
_PLAIN: Final = (bool, int, float, str, bytes, tuple, np.generic)
_COLLECTIONS: Final = (list, dict, set, deque)


class SideEffects:
    """Compares the state that a model's calls may change, before and after each. Thread-safe.

    A discarded call must not change a later one. A call that draws random numbers
    from Python's, NumPy's or torch's process-wide generators changes those of the next call;
    a call of a model that counts its calls, or reads its answers from an iterator,
    changes the next answer; so does one that takes its answers from a list. After such a call no
    further call is speculative.

    >>> import random
    >>> class Dice:
    ...     def complete(self) -> float:
    ...         return random.random()
    >>> dice = Dice()
    >>> effects = SideEffects(dice)
    >>> with effects.watched():
    ...     _ = dice.complete()
    >>> effects.found
    'it draws from process-wide random state'
    """

    def __init__(
        self, *models: object, shared_process: bool = False, logs_count: bool = False
    ) -> None:
        """Create a watcher of the calls of one or several models.

        Args:
            models: those whose attributes are compared.
            logs_count: whether a list of the model's that a call makes longer is a side effect,
                too: the next answer may depend on the number of calls in it.
            shared_process: whether other code draws random numbers while a call waits for its
                provider. A draw then only holds until a call during which nothing was drawn.
        """
        self._models = models
        self._shared_process = shared_process
        self._logs_count = logs_count
        self._lock = threading.Lock()
        self.found: str | None = None
        self.observed = False  # whether a watched call has ended

    @contextmanager
    def watched(self, slices: "Slices | None" = None) -> Iterator[None]:
        """Watch one call.

        Args:
            slices: of a call on an event loop, in which other work draws from Python's generator
                meanwhile: only draws within the call's own slices are attributed to it.
        """
        if self.found is not None:
            yield
            return
        numbers, attributes, sizes = _random_state(), self._attributes(), self._sizes()
        lengths = self._lengths()
        try:
            yield
        finally:
            first = 0 if slices is None else 1  # Python's generator is the first
            drawn = _random_state()[first:] != numbers[first:]
            drawn = drawn or (slices is not None and slices.drawn)
            if drawn and not self._shared_process:
                self.note("it draws from process-wide random state")
            elif _differ(self._attributes(), attributes):
                self.note("its calls change its attributes")
            elif self._logs_count and self._lengths() != lengths:
                self.note("its calls change its lists")
            elif any(map(_reads_from_an_iterator, self._models)):
                self.note("it takes its answers from an iterator")
            elif _less(self._sizes(), sizes):
                self.note("its calls take from a collection of its own")
            self.observed = not drawn

    def may_guess(self) -> bool:
        """Return whether calls may be speculative: one was watched, without any side effect."""
        return self.observed and self.found is None

    def _attributes(self) -> list[dict[str, object]]:
        return list(map(plain_attributes, self._models))

    def _lengths(self) -> list[tuple[str, int]]:
        return [
            (f"{number} {name}", len(value))
            for number, model in enumerate(self._models)
            for name, value in _held(model).items()
            if isinstance(value, MutableSequence)
        ]

    def _sizes(self) -> list[dict[str, int]]:
        return list(map(_sizes, self._models))

    def note(self, what: str) -> None:
        """Allow no further speculative calls, since calls have this side effect."""
        with self._lock:
            first, self.found = self.found is None, what
        if first:
            _log.warning(
                "speculation is disabled: %s keeps state between calls (%s), so a "
                "discarded call would change a later one.%s",
                ", ".join(type(model).__name__ for model in self._models) or "the model",
                what,
                "" if self._shared_process else _WAY_OUT,
            )


class Slices:
    """Watches Python's random generator while a call runs on the event loop, not while it waits.

    Attributes:
        drawn: whether the call has drawn numbers.
    """

    def __init__(self) -> None:
        """Create a watcher of a call that has not begun."""
        self.drawn = False

    async def items(self, source: AsyncIterator[ItemT]) -> AsyncIterator[ItemT]:
        """Yield the items of a call."""
        while True:
            try:
                item = await self.of(anext(source))
            except StopAsyncIteration:
                return
            yield item

    @coroutine
    def of(self, call: Awaitable[ItemT]) -> Generator[Any, Any, ItemT]:
        """Return the result of a call, which is awaited slice by slice."""
        running = call.__await__()
        step: Callable[[], Any] = partial(next, running)
        while True:
            before = random.getstate()
            try:
                waits_for = step()
            except StopIteration as result:
                return result.value  # type: ignore[no-any-return]
            finally:
                self.drawn = self.drawn or random.getstate() != before
            try:
                step = partial(running.send, (yield waits_for))
            except BaseException as error:  # noqa: BLE001 the call handles it, or raises it
                step = partial(running.throw, error)


def _random_state() -> list[object]:
    """Return the states of the process-wide random generators."""
    states: list[object] = [random.getstate()]
    numpy: Any = sys.modules.get("numpy.random")
    if numpy is not None:
        kind, keys, position, has_gauss, gauss = numpy.get_state()
        states += [kind, keys.tobytes(), position, has_gauss, gauss]
    torch: Any = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_rng_state"):
        states.append(torch.get_rng_state().numpy().tobytes())
        states += [one.numpy().tobytes() for one in _device_states(torch)]
    return states


def _device_states(torch: Any) -> list[Any]:
    """Return the states of torch's device generators, without initialising any."""
    cuda = getattr(torch, "cuda", None)
    if cuda is None or not cuda.is_initialized():
        return []
    states: list[Any] = cuda.get_rng_state_all()
    return states


def plain_attributes(model: object) -> dict[str, object]:
    """Return the plain attributes of a model, and the states of its random generators."""
    states = {}
    for name, value in _held(model).items():
        kind: Any = type(value)
        read = _reader(kind)
        if read is not None:
            states[name] = read(value)
    return states


@lru_cache(maxsize=256)
def _reader(kind: type) -> Callable[[Any], object] | None:
    """Return a function that reads the state of values of a class, or `None` if they have none.

    The state of a plain value is the value itself; that of a random generator changes with draws.
    """
    if issubclass(kind, _PLAIN):
        return lambda value: value
    if issubclass(kind, random.SystemRandom):
        return None
    if issubclass(kind, random.Random):
        return lambda value: value.getstate()
    if _is_a(kind, "numpy.random", "RandomState"):
        return lambda value: repr(value.get_state(legacy=False))
    if _is_a(kind, "numpy.random", "Generator"):
        return lambda value: repr(value.bit_generator.state)
    if _is_a(kind, "torch", "Generator"):
        return lambda value: value.get_state().numpy().tobytes()
    return None


def _is_a(kind: type, module: str, name: str) -> bool:
    """Return whether a class is one of a module that is not imported for this, or inherits it."""
    parent = getattr(sys.modules.get(module), name, None)
    return isinstance(parent, type) and issubclass(kind, parent)


def _sizes(model: object) -> dict[str, int]:
    """Return the sizes of a model's collections: of answers that it takes out, for example."""
    held = _held(model)
    return {name: len(value) for name, value in held.items() if isinstance(value, _COLLECTIONS)}


def _less(now: list[dict[str, int]], before: list[dict[str, int]]) -> bool:
    """Return whether a collection has become smaller; one that grows is a log or a cache."""
    return any(
        one.get(name, 0) < size
        for one, then in zip(now, before, strict=True)
        for name, size in then.items()
    )


def _differ(now: list[dict[str, object]], before: list[dict[str, object]]) -> bool:
    """Return whether attributes differ; incomparable ones, such as arrays, do."""
    try:
        return now != before
    except Exception:  # noqa: BLE001 no error may replace the model's reply
        return True


def _reads_from_an_iterator(model: object) -> bool:
    """Return whether a model has an iterator, which each call may advance."""
    return any(isinstance(value, Iterator) for value in _held(model).values())


def _held(model: object) -> dict[str, object]:
    private = getattr(model, "__pydantic_private__", None) or {}
    return {**getattr(model, "__dict__", {}), **private}
