"""What one request was called with: `Request.context` of LlamaIndex's requests."""

from collections.abc import Mapping
from concurrent.futures import Executor
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import QueryBundle

from llama_index_ralmspec.recording import Recording, Recordings
from ralmspec_plugins.adapters.events import Failures
from ralmspec_plugins.errors import ConfigError

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
