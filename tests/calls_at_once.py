"""How many calls of a model run at a time."""

import asyncio
import threading


class CallsAtOnce:
    """Counts them; each waits a moment for a third one to begin.

    Attributes:
        most: the largest number so far.
    """

    def __init__(self) -> None:
        self.most = 0
        self._running = 0
        self._changed = threading.Condition()

    def call(self, _: str) -> None:
        """Take the place of a call in a thread."""
        with self._changed:
            self._begin()
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._running > 2, timeout=0.02)
            self._running -= 1

    async def acall(self, _: str) -> None:
        """Take the place of a call on an event loop."""
        self._begin()
        for _turn in range(20):
            await asyncio.sleep(0.001 * (self.most <= 2))
        self._running -= 1

    def _begin(self) -> None:
        self._running += 1
        self.most = max(self.most, self._running)
