"""One call of the host for a request: what it tells is recorded, and so is what it is given."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from copy import copy
from dataclasses import dataclass, field
from typing import Any, TypeVar

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle

from llama_index_ralmspec.documents import nodes_of
from llama_index_ralmspec.postprocessing import Postprocessing
from llama_index_ralmspec.recording import Recording, Recordings, recorded
from ralmspec_plugins.adapters.events import Failures
from ralmspec_plugins.errors import Cancelled, Closed, ConfigError
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Hits, Request

# What one request was called with: `Request.context` of LlamaIndex's requests.


# Whose request it is that is worked for; the retrievers of an engine serve many.
asking: ContextVar["HostContext | None"] = ContextVar("ralmspec_asking", default=None)


@dataclass(frozen=True, slots=True, eq=False)
class HostContext:
    """A request's query as its caller gave it, and the calls of the host that failed for it.

    With the host's own query engine a retriever, the postprocessors and the synthesizer are
    given one bundle, the caller's, and what one of them puts on it the others see. Here the
    search works on a copy, and what it has put on that is taken over; the calls behind it
    are given the caller's own, unless some of them may be made on guesses.

    Attributes:
        bundle: a copy of the query as it came.
        asynchronous: whether it is answered on an event loop.
        streaming: as the response synthesizer was told when the request began.
        own: the caller's own, where the host's query engine would put something on it.
        alone: whether no call is made on a guess: then there is but one.
        retriever: whose search it is that counts.
        threads: where calls are made that would hold up the event loop.
    """

    bundle: QueryBundle
    asynchronous: bool = False
    streaming: bool = False
    own: QueryBundle | None = None
    alone: bool = False
    retriever: BaseRetriever | None = None
    threads: Executor | None = None
    failures: Failures[Recording] = field(default_factory=Failures)
    recordings: Recordings = field(default_factory=Recordings)  # of this request's calls

    def recording(self) -> Recording:
        """Begin the recording of one call of the host for this request."""
        return self.recordings.begun()

    def query(self) -> QueryBundle:
        """Give the query for one call of the host."""
        if self.own is not None and self.alone:
            return self.own
        return copied(self.bundle if self.own is None else self.own)

    def searched(self, bundle: QueryBundle) -> None:
        """Put on a copy of the query what the search has left on the caller's."""
        if self.own is not None and bundle.query_str == self.bundle.query_str:
            vars(bundle).update(vars(copied(self.own)))

    def left(self, text: str, found: Mapping[str, Any]) -> None:
        """Take over what a search has put on its copy of the query.

        Raises:
            ConfigError: that is another question, while calls are made with the first one.
        """
        if self.own is None or text != self.bundle.query_str:
            return
        if not self.alone and found.get("query_str", text) != text:
            raise ConfigError(
                f"{type(self.retriever).__name__} puts another question into the query that it is "
                f"given: {found['query_str']!r} for {text!r}. The response synthesizer is to be "
                "given that, and cannot be called while the search runs: use guess_through=False"
            )
        vars(self.own).update(found)

    def ended(self) -> None:
        """End the recordings of this request: what was not told by now never is."""
        self.recordings.end()


def left_on_query(retriever: BaseRetriever, text: str, found: Mapping[str, Any]) -> None:
    """Hand what a search has put on its copy of a query to the request that it is made for.

    Raises:
        ConfigError: the request cannot go on with it.
    """
    context = asking.get()
    if context is not None and context.retriever is retriever:  # and no near copy that guesses
        context.left(text, found)


def copied(bundle: QueryBundle) -> QueryBundle:
    """Copy a query, its lists too; what else its class or its caller put on it goes with it."""
    made = copy(bundle)
    strings, vector = bundle.custom_embedding_strs, bundle.embedding
    made.custom_embedding_strs = None if strings is None else list(strings)
    made.embedding = None if vector is None else list(vector)
    return made


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
