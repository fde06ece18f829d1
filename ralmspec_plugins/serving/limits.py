"""The limits of a server, and the admission of requests by them."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields

from ralmspec_plugins.errors import ConfigError, Overloaded


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a server takes on. The defaults suit a pipeline that calls a model server.

    A request above a limit of its own is refused (400, 413, 431); one above the limits of all
    requests is refused for now (429 with `Retry-After`).
    """

    max_body_bytes: int = 1 << 20
    max_header_bytes: int = 16 << 10
    max_tokens: int = 4096  # of an answer
    running: int = 64  # requests that are answered at the same time
    waiting: int = 256  # requests that wait for their turn
    per_tenant: int | None = None  # of both together, for one tenant; None: all
    deadline_s: float = 300.0  # from the beginning of the answer; waiting is not counted
    header_timeout_s: float = 30.0  # for the headers, under `ralmspec serve`; others have their own
    body_timeout_s: float = 30.0  # for a request's body to arrive
    send_timeout_s: float = 60.0  # for a client to take the next piece
    retry_after_s: int = 1  # in the header of a refusal

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            lowest = 0 if name == "waiting" else 1 if isinstance(value, int) else 0.001
            if value is None and name == "per_tenant":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or value < lowest:
                raise ConfigError(f"{name} must be at least {lowest}, got {value!r}")
            if not name.endswith("_s") and not isinstance(value, int):
                raise ConfigError(f"{name} must be a whole number, got {value!r}")


class Admission:
    """Counts the requests that run, wait and have ended, and refuses those above the limits.

    Used by one event loop.
    """

    def __init__(self, limits: Limits) -> None:
        """Admit requests by these limits."""
        self._limits = limits
        self._free = asyncio.Semaphore(limits.running)
        self._of_tenant: Counter[str] = Counter()
        self.running = self.waiting = self.ended = 0
        self.stopping = False  # whether the server accepts no more connections

    @asynccontextmanager
    async def slot(self, tenant: str) -> AsyncGenerator[None, None]:
        """Wait for a turn, in the order of arrival, and keep it in the context.

        Raises:
            Overloaded: too many requests are waiting, or the tenant has too many.
        """
        limits = self._limits
        if limits.per_tenant is not None and self._of_tenant[tenant] >= limits.per_tenant:
            raise Overloaded("this tenant has too many requests under way: try again later")
        if self._free.locked() and self.waiting >= limits.waiting:
            raise Overloaded("too many requests are waiting: try again later")
        self._of_tenant[tenant] += 1
        try:
            await self._turn()
            self.running += 1
            try:
                yield
            finally:
                self.running -= 1
                self.ended += 1
                self._free.release()
        finally:
            self._of_tenant[tenant] -= 1
            if not self._of_tenant[tenant]:
                del self._of_tenant[tenant]

    async def _turn(self) -> None:
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
