"""The calls of the host that one request makes: with which query, and in which thread."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, copy_context
from copy import copy
from dataclasses import dataclass, field
from typing import Any, TypeVar

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle

from llama_index_ralmspec.callbacks import SpeculativeCall
from llama_index_ralmspec.documents import nodes_of
from llama_index_ralmspec.postprocessing import Postprocessing
from ralmspec_plugins.adapters.side_effects import SideEffects
from ralmspec_plugins.errors import Closed, ConfigError
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Hits, Request

ResultT = TypeVar("ResultT")

# The request that work is done for: the retrievers of an engine serve many requests.
current_request: ContextVar["HostContext | None"] = ContextVar("ralmspec_request", default=None)


@dataclass(slots=True, eq=False)
class CallRecord:
    """What one call of postprocessors and model was given, and made.

    Attributes:
        nodes: the nodes of the hits, in their order.
        used: what the postprocessors left of them.
        span_id: of the span around a call that was made ahead; `None` for one that was not.
        response: of a response synthesizer.
        unread: whether the response streams, and its reader is the caller.
    """

    nodes: list[NodeWithScore] = field(default_factory=list)
    used: list[NodeWithScore] = field(default_factory=list)
    span_id: str | None = None
    response: Any = None
    unread: bool = False

    def score(self, hits: Hits) -> None:
        """Give the nodes the scores of the search that confirmed them.

        They may have been a guess's when the call was made. The same objects stand in the
        response.
        """
        for node, hit in zip(self.nodes, hits, strict=False):
            if node.node.node_id == hit.passage.id:
                node.score = hit.score


@dataclass(slots=True, eq=False)
class HostContext:
    """A request's query as its caller gave it, and the calls of the host made for it.

    The host's own query engine gives one bundle, the caller's, to retriever, postprocessors
    and synthesizer, and what one of them writes into it the others see. Here the search gets
    a copy, and what it writes there is taken over into `bundle`; each later call gets a copy of
    that, or `bundle` itself where no call is made on a guess.

    Attributes:
        bundle: the caller's own for `one_shot`, a copy for other workloads.
        asynchronous: whether the request is answered on an event loop.
        streaming: as the response synthesizer was set when the request began.
        alone: whether no call is made on a guess: then there is but one.
        retriever: the one whose search counts.
        threads: where calls are made that would block the event loop.
        effects: watches the calls of a model that is not known to leave no traces.
        records: of the calls that write, in order.
        begun: whether a response that streams has been returned: it is fed from here.
        spans: the ids of the spans of all calls made ahead, in order.
    """

    bundle: QueryBundle
    asynchronous: bool = False
    streaming: bool = False
    alone: bool = False
    retriever: BaseRetriever | None = None
    threads: Executor | None = None
    effects: SideEffects | None = None
    records: list[CallRecord] = field(default_factory=list)
    begun: bool = False
    spans: list[str] = field(default_factory=list)

    def query(self) -> QueryBundle:
        """Return the query for one call of the host."""
        return self.bundle if self.alone else copied(self.bundle)

    def note(self, text: str, written: Mapping[str, Any]) -> None:
        """Take over what a search has written into its copy of the query.

        Raises:
            ConfigError: another question, while calls are made with the first one.
        """
        if text != self.bundle.query_str:
            return
        if not self.alone and written.get("query_str", text) != text:
            raise ConfigError(
                f"{type(self.retriever).__name__} puts another question into the query that it is "
                f"given: {written['query_str']!r} for {text!r}. The response synthesizer is to be "
                "given that, and cannot be called while the search runs: use guess_through=False"
            )
        vars(self.bundle).update(written)


def search_call() -> tuple[CallRecord, SpeculativeCall]:
    """Begin a call that embeds a query or searches, for the current request if there is one."""
    record, context = CallRecord(), current_request.get()
    return record, SpeculativeCall(record, None if context is None else context.spans)


def kept(record: CallRecord) -> CallRecord | None:
    """Return the record of a call made ahead, to be kept with what it found; of others nothing."""
    return None if record.span_id is None else record


def note_query(retriever: BaseRetriever, text: str, written: Mapping[str, Any]) -> None:
    """Hand what a search has written into its copy of a query to the request it is made for.

    Raises:
        ConfigError: the request cannot continue with it.
    """
    context = current_request.get()
    if context is not None and context.retriever is retriever:  # not a replica
        context.note(text, written)


def copied(bundle: QueryBundle) -> QueryBundle:
    """Copy a query and its lists; other attributes of its class or caller are kept."""
    made = copy(bundle)
    strings, vector = bundle.custom_embedding_strs, bundle.embedding
    made.custom_embedding_strs = None if strings is None else list(strings)
    made.embedding = None if vector is None else list(vector)
    return made


@dataclass(frozen=True, slots=True, eq=False)
class RequestCall:
    """The calls of postprocessors and model that write one segment of a text."""

    bundle: QueryBundle
    record: CallRecord = field(default_factory=CallRecord)
    context: HostContext | None = None
    asynchronous: bool = False

    def run(self, call: Callable[[], ResultT]) -> ResultT:
        """Make the calls; those made ahead stand in a span of their own and are tagged."""
        with self.watched():
            return self._ahead.run(call)

    async def arun(self, call: Callable[[], Coroutine[Any, Any, ResultT]]) -> ResultT:
        """Do the same with a coroutine."""
        with self.watched():
            return await self._ahead.arun(call)

    def watched(self) -> AbstractContextManager[None]:
        """Watch for traces that a call leaves: such a model is not called ahead."""
        effects = None if self.context is None else self.context.effects
        return nullcontext() if effects is None else effects.watched()

    @property
    def _ahead(self) -> SpeculativeCall:
        return SpeculativeCall(self.record, None if self.context is None else self.context.spans)

    def nodes(self, hits: Hits, processing: Postprocessing) -> list[NodeWithScore]:
        """Return the nodes of these hits, postprocessed."""
        self.record.nodes = nodes_of(hits)
        used = processing.run(list(self.record.nodes), self.bundle)
        self.record.used = list(used)
        return used

    async def anodes(self, hits: Hits, processing: Postprocessing) -> list[NodeWithScore]:
        """Do the same with the postprocessors' asynchronous methods."""
        self.record.nodes = nodes_of(hits)
        used = await processing.arun(list(self.record.nodes), self.bundle)
        self.record.used = list(used)
        return used

    async def in_thread(self, call: Callable[[], ResultT], progress: Progress) -> ResultT:
        """Make a call that would block the event loop in a thread.

        A cancelled call is notified, and awaited: until it ends, the model is not free.

        Raises:
            Closed: the engine's threads have been closed.
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
                made.exception()  # retrieved, so that asyncio does not log it
            raise


def request_call(request: Request) -> RequestCall:
    """Begin the calls for one segment of a request."""
    context: HostContext | None = request.context
    if context is None:
        return RequestCall(QueryBundle(request.prompt))
    call = RequestCall(context.query(), CallRecord(), context, context.asynchronous)
    context.records.append(call.record)
    return call


def in_own_loop(call: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run a coroutine that blocks its event loop in a new one, in this thread.

    A model whose asynchronous methods are its synchronous ones is called by the asynchronous
    ones all the same for an asynchronous request: its events and spans are named after them.
    """
    return asyncio.run(call)
