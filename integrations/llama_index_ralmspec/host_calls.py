"""The calls of the host that one request makes: their query, thread and record."""

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

# The request of the current work: the retrievers of an engine serve many requests.
current_request: ContextVar["HostContext | None"] = ContextVar("ralmspec_request", default=None)


@dataclass(slots=True, eq=False)
class CallRecord:
    """The inputs and the results of one call of postprocessors and model.

    Attributes:
        nodes: the nodes of the hits, in their order.
        used: the nodes after the postprocessors.
        span_id: the span around a speculative call; `None` for other calls.
        response: the response of a response synthesizer.
        unread: whether the response streams and the caller reads it.
    """

    nodes: list[NodeWithScore] = field(default_factory=list)
    used: list[NodeWithScore] = field(default_factory=list)
    span_id: str | None = None
    response: Any = None
    unread: bool = False

    def score(self, hits: Hits) -> None:
        """Set the nodes' scores to those of the search that confirmed them.

        At the time of the call these may have been scores of a guess. The response has the same
        objects.
        """
        for node, hit in zip(self.nodes, hits, strict=False):
            if node.node.node_id == hit.passage.id:
                node.score = hit.score


@dataclass(slots=True, eq=False)
class HostContext:
    """A request's query, and the calls of the host made for it.

    The host's own query engine passes one bundle, the caller's, to retriever, postprocessors
    and synthesizer, and each of them sees the changes of the others. Here the search receives
    a copy, whose changes are applied to `bundle`; each later call receives a copy of
    that, or `bundle` itself if no call is speculative.

    Attributes:
        bundle: the caller's own for `one_shot`, a copy for other workloads.
        asynchronous: whether the request is answered on an event loop.
        streaming: the response synthesizer's setting when the request began.
        alone: whether no call is speculative: then there is only one.
        retriever: the retriever of the real searches.
        threads: executes calls that would block the event loop.
        effects: observes the calls of a model that may have side effects.
        records: the records of the calls that write, in order.
        begun: whether a streaming response has been returned.
        spans: the ids of the spans of all speculative calls, in order.
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
        """Apply the changes that a search has made to its copy of the query.

        Raises:
            ConfigError: the question was changed, while calls are made with the original one.
        """
        if text != self.bundle.query_str:
            return
        if not self.alone and written.get("query_str", text) != text:
            raise ConfigError(
                f"{type(self.retriever).__name__} changes the question of its query to "
                f"{written['query_str']!r}, from {text!r}. The response synthesizer needs the new "
                "question, so it cannot be called while the search runs: use guess_through=False"
            )
        vars(self.bundle).update(written)


def search_call() -> tuple[CallRecord, SpeculativeCall]:
    """Return the record and the span of a search or embedding for the current request, if any."""
    record, context = CallRecord(), current_request.get()
    return record, SpeculativeCall(record, None if context is None else context.spans)


def kept(record: CallRecord) -> CallRecord | None:
    """Return the record of a speculative call, to be kept with its result; `None` for others."""
    return None if record.span_id is None else record


def note_query(retriever: BaseRetriever, text: str, written: Mapping[str, Any]) -> None:
    """Apply the changes that a search has made to its query to the current request.

    Raises:
        ConfigError: the request cannot continue with it.
    """
    context = current_request.get()
    if context is not None and context.retriever is retriever:  # not a replica
        context.note(text, written)


def copied(bundle: QueryBundle) -> QueryBundle:
    """Return a copy of a query and its lists; other attributes are shared."""
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
        """Make the calls; speculative ones are tagged and in a span of their own."""
        with self.watched():
            return self._ahead.run(call)

    async def arun(self, call: Callable[[], Coroutine[Any, Any, ResultT]]) -> ResultT:
        """Await the calls; speculative ones are tagged and in a span of their own."""
        with self.watched():
            return await self._ahead.arun(call)

    def watched(self) -> AbstractContextManager[None]:
        """Observe side effects of a call: a model that has any is not called speculatively."""
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
        """Return the nodes of these hits, postprocessed by the asynchronous methods."""
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
    """Return the calls for one segment of a request."""
    context: HostContext | None = request.context
    if context is None:
        return RequestCall(QueryBundle(request.prompt))
    call = RequestCall(context.query(), CallRecord(), context, context.asynchronous)
    context.records.append(call.record)
    return call


def in_own_loop(call: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run a coroutine that blocks its event loop in a new one, in this thread.

    For an asynchronous request a model is called by its asynchronous methods even if these call
    the synchronous ones, since its events and spans are named after them.
    """
    return asyncio.run(call)
