"""Notices models whose calls leave traces: they draw from process-wide random state, or count."""

import logging
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

_log = logging.getLogger(__name__)

_PLAIN: Final = (bool, int, float, str, bytes, tuple, np.generic)


class SideEffects:
    """Compares what a model's calls may change, before and after each. Thread-safe.

    A call that is discarded must not be noticed by a later one. One that drew random numbers
    from Python's, NumPy's or torch's process-wide generators changes what the next call
    draws, and one of a model that counts its calls, or takes its answers from an iterator,
    what the next one says. Once a call was seen to do so, no call is made ahead any more.

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

    def __init__(self, *models: object) -> None:
        """Watch the calls of a model, or of something that calls several."""
        self._models = models
        self._lock = threading.Lock()
        self.found: str | None = None
        self.observed = False  # whether a call has been watched to its end

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch one call."""
        if self.found is not None:
            yield
            return
        numbers, attributes = _random_state(), self._attributes()
        try:
            yield
        finally:
            if _random_state() != numbers:
                self._note("it draws from process-wide random state")
            elif _differ(self._attributes(), attributes):
                self._note("its calls change its attributes")
            elif any(map(_reads_from_an_iterator, self._models)):
                self._note("it takes its answers from an iterator")
            self.observed = True

    def may_guess(self) -> bool:
        """Whether calls may be made that may be discarded: one was watched, and none found out."""
        return self.observed and self.found is None

    def _attributes(self) -> list[dict[str, object]]:
        return list(map(_plain_attributes, self._models))

    def _note(self, what: str) -> None:
        with self._lock:
            first, self.found = self.found is None, what
        if first:
            _log.warning(
                "nothing is written on guesses: %s keeps something between two calls (%s), so a "
                "call that is discarded would change a later one. guess_through=True says that "
                "this makes no difference",
                ", ".join(type(model).__name__ for model in self._models) or "the model",
                what,
            )


def _random_state() -> list[object]:
    """Return the states of the random generators that are shared by a process."""
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
    """Return the states of torch's generators of devices; none is set up for that."""
    cuda = getattr(torch, "cuda", None)
    if cuda is None or not cuda.is_initialized():
        return []
    states: list[Any] = cuda.get_rng_state_all()
    return states


def _plain_attributes(model: object) -> dict[str, object]:
    """Return the attributes of a model that are plain values, and its own generators' states."""
    held = _held(model)
    plain = {name: value for name, value in held.items() if isinstance(value, _PLAIN)}
    return plain | {
        name: value.getstate()
        for name, value in held.items()
        if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom)
    }  # a SystemRandom has no state: no call changes what another one draws


def _differ(now: list[dict[str, object]], before: list[dict[str, object]]) -> bool:
    """Whether attributes differ; those that cannot be compared, such as arrays, do."""
    try:
        return now != before
    except Exception:  # noqa: BLE001 whatever it is, it must not take the place of the model's reply
        return True


def _reads_from_an_iterator(model: object) -> bool:
    """Whether a model holds an iterator, which each call may take something from."""
    return any(isinstance(value, Iterator) for value in _held(model).values())


def _held(model: object) -> dict[str, object]:
    private = getattr(model, "__pydantic_private__", None) or {}
    return {**getattr(model, "__dict__", {}), **private}
