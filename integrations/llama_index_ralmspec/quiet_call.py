"""One call of the host for a request: what it tells is recorded, and so is what it is given."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, TypeVar

from llama_index.core.schema import NodeWithScore, QueryBundle

from llama_index_ralmspec.call_context import HostContext
from llama_index_ralmspec.passages import nodes_of
from llama_index_ralmspec.postprocessing import Postprocessing
from llama_index_ralmspec.recording import Recording, recorded
from ralmspec_plugins.errors import Cancelled, Closed
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Hits, Request

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True, eq=False)
class QuietCall:
    """One call, or several that belong together: for one segment of a text."""

    bundle: QueryBundle
    recording: Recording
    context: HostContext | None = None
    asynchronous: bool = False

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have nobody hear of what runs inside but the recording.

        What it raises is noted, for the case that it counts: then its events do too.
        Without a context nothing is kept back: there is nobody who would tell it later.
        """
        if self.context is None:
            yield
            return
        try:
            with recorded(self.recording):
                yield
        except (Cancelled, asyncio.CancelledError, GeneratorExit):
            self.recording.drop()
            raise
        except Exception as error:
            self.context.failures.note(error, self.recording)
            raise

    def nodes(self, hits: Hits, processing: Postprocessing) -> list[NodeWithScore]:
        """Give what the host's code is to see of these hits."""
        used = processing.run(self._fresh(hits), self.bundle)
        self.recording.used = list(used)
        return used

    async def anodes(self, hits: Hits, processing: Postprocessing) -> list[NodeWithScore]:
        """Do the same with the postprocessors' asynchronous methods."""
        used = await processing.arun(self._fresh(hits), self.bundle)
        self.recording.used = list(used)
        return used

    async def beside(self, call: Callable[[], ResultT], progress: Progress) -> ResultT:
        """Make a call in a thread: one that would hold up the event loop.

        A call that is given up is told so, and waited for: until it ends, the model is not free.

        Raises:
            Closed: the engine's threads are gone.
        """
        threads = None if self.context is None else self.context.threads
        loop = asyncio.get_running_loop()
        try:
            made = loop.run_in_executor(threads, copy_context().run, call)
        except RuntimeError as error:
            raise Closed from error
        try:
            return await asyncio.shield(made)
        except asyncio.CancelledError:
            progress.cancel()
            await asyncio.wait([made])
            if not made.cancelled():
                made.exception()  # nobody waits for that any more
            raise

    def _fresh(self, hits: Hits) -> list[NodeWithScore]:
        nodes = nodes_of(hits)
        self.recording.nodes = list(nodes)
        return nodes


def quiet_call(request: Request) -> QuietCall:
    """Begin a call for a request."""
    context: HostContext | None = request.context
    if context is None:
        return QuietCall(QueryBundle(request.prompt), Recording())
    return QuietCall(context.query(), context.recording(), context, context.asynchronous)


def in_a_loop_of_its_own(call: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run what holds up an event loop in one where nobody else waits, in this thread.

    A model whose asynchronous methods are its synchronous ones is asked by the
    asynchronous ones all the same, for a request that is: they are what its events
    and spans are called after.
    """
    return asyncio.run(call)
