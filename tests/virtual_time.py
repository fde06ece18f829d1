"""An event loop on which time passes only when something is computed or waited for."""

import asyncio
import selectors
from collections.abc import Callable
from typing import Any


class VirtualClock:
    """The time, and how much of it was computed."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.computed_s = 0.0

    def compute(self, seconds: float) -> None:
        """Let time pass that a processor is used."""
        self.now_s += seconds
        self.computed_s += seconds


class _Selector(selectors.DefaultSelector):
    """Does not wait for a timer: the clock goes on to it."""

    clock: VirtualClock

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "nothing is due: something waits for real time"
            self.clock.now_s += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time, whose every `sleep` costs some seconds of its processor."""

    def __init__(self, clock: VirtualClock, cost_s: float) -> None:
        selector = _Selector()
        selector.clock = self.clock = clock
        self.cost_s = cost_s
        super().__init__(selector)

    def time(self) -> float:
        return self.clock.now_s

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> asyncio.TimerHandle:
        if callback.__module__.startswith("asyncio."):
            self.clock.compute(self.cost_s)
        return super().call_at(when, callback, *args, **kwargs)

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future
