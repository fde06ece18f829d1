"""A LlamaIndex retriever as the core's `Retriever`: the same nodes, in batches."""

from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle

from llama_index_ralmspec.documents import hits_of, passage_of
from llama_index_ralmspec.host_calls import CallRecord, copied, kept, note_query, search_call
from llama_index_ralmspec.inspection import (
    At,
    blocks_loop,
    check_retriever,
    in_thread,
    look_at,
    prepared,
    special,
)
from ralmspec_plugins.adapters.batch_search import Scored, Vector
from ralmspec_plugins.adapters.retriever import HostSearch
from ralmspec_plugins.adapters.retriever_state import (
    BatchMode,
    HitPayload,
    RetrieverSnapshot,
    RetrieverState,
    check_way,
    payload_of,
)
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.types import Hit, Hits, Query


class HostRetriever(HostSearch["_Called"]):
    """A LlamaIndex retriever, for one query bundle.

    A `VectorIndexRetriever` is inspected: its query is embedded once, by its own
    embedder, and searched in batches if an adapter supports the store and all settings.
    Any other retriever is opaque and called query by query. In both cases the nodes and their
    scores are those of `retriever.retrieve(query)`.

    A change of the retriever's settings (`similarity_top_k`, filters) takes effect with the next
    call: a retriever returned by `for_call` keeps a copy of a `VectorIndexRetriever`'s settings.
    """

    def __init__(
        self,
        retriever: BaseRetriever,
        *,
        batch: BatchMode = "exact",
        side_by_side: int = 8,
        pure: bool | None = None,
    ) -> None:
        """Wrap a retriever; nothing is called yet.

        Args:
            retriever: the host's retriever.
            batch: "exact": only batch searches whose results do not depend on the batch by
                construction; "probed": all, with one query of each batch compared with the
                host's own single search; "off": none.
            side_by_side: the maximum number of concurrent single calls, and of embeddings that
                are waited for.
            pure: whether the same query finds the same nodes, without side effects; `None`:
                determined by the classes inside.

        Raises:
            ConfigError: it is not a retriever, `batch` is unknown, or `side_by_side` is below 1.
        """
        check_way(batch, side_by_side)
        check_retriever(retriever)
        known = RetrieverState(partial(prepared, mode=batch, pure=pure))
        super().__init__(_Called(retriever, None), known, side_by_side)

    def for_call(
        self, bundle: QueryBundle | None, look: RetrieverSnapshot | None = None
    ) -> "HostRetriever":
        """Return the same retriever for one request; measurements are shared.

        Args:
            bundle: the request's query. If it has an embedding, strings to embed or an image,
                these apply to searches of its own text, and its calls share no results.
            look: the settings, if they are those of a call that continues.
        """
        own = special(bundle)
        own = None if own is None else copied(own)
        return self.beside(_Called(self._host.retriever, own), look)

    def encode(self, text: str, calls: Any = None) -> Query:
        """Return the query of a text, embedded as by the retriever."""
        query = super().encode(text, calls)
        self._host.embedding = vector = payload_of(query).vector
        if vector is not None:  # the host's synchronous call writes it into the query
            note_query(self._host.retriever, text, {"embedding": list(vector)})
        return query

    def embed_into(self, bundle: QueryBundle) -> None:
        """Write the embedding into a query, as the host's own synchronous call does.

        Later parts may use it. A query whose result was cached has not been embedded, and is
        not changed.
        """
        if bundle.embedding is None and self._host.embedding is not None:
            bundle.embedding = list(self._host.embedding)


class _Called:
    """A retriever with one caller's query, called as LlamaIndex calls it."""

    def __init__(self, retriever: BaseRetriever, calls: QueryBundle | None) -> None:
        self.retriever = retriever
        self.calls = calls
        self.embedding: Vector | None = None  # of the last query

    def look_at(self) -> tuple[Hashable, At]:
        return look_at(self.retriever, self.calls)

    def single(self, look: RetrieverSnapshot, query: Query) -> Hits:
        retriever, bundle = self._reached(look), self._bundle(query)
        record, call = search_call()
        nodes = call.run(lambda: retriever.retrieve(bundle))
        self._note(look, query, bundle)
        return single_hits(nodes, record)

    async def asingle(self, look: RetrieverSnapshot, query: Query) -> Hits:
        retriever, bundle = self._reached(look), self._bundle(query)
        record, call = search_call()
        nodes = await call.arun(lambda: _aretrieved(retriever, bundle))
        self._note(look, query, bundle)
        return single_hits(nodes, record)

    def _note(self, look: RetrieverSnapshot, query: Query, bundle: QueryBundle) -> None:
        """Report what an opaque retriever has written into its query."""
        self.embedding = bundle.embedding
        if look.native is None:
            note_query(self.retriever, query.text, vars(bundle))

    def _reached(self, look: RetrieverSnapshot) -> BaseRetriever:
        """Return the target of a call, with the settings of `look` if these are kept."""
        reached: BaseRetriever = self.retriever if look.fixed is None else look.fixed
        return reached

    def _bundle(self, query: Query) -> QueryBundle:
        """Return a new bundle for one call, into which the host may write."""
        own = payload_of(query).calls or self.calls
        if isinstance(own, QueryBundle) and own.query_str == query.text:
            return copied(own)
        return QueryBundle(query.text)

    def hits_of(self, found: Sequence[Scored]) -> Hits:
        return tuple(
            Hit(passage_of(one.document), one.score, HitPayload(one.vector)) for one in found
        )

    def nobodys(self) -> "_Called":
        return self

    def unheard(self, query: Query) -> Query:
        return query


def single_hits(nodes: Any, record: CallRecord) -> Hits:
    """Return the hits of the result of one call of the host.

    Raises:
        InputError: it is not a list of nodes with scores.
    """
    if not isinstance(nodes, list) or not all(isinstance(one, NodeWithScore) for one in nodes):
        raise InputError(
            f"a retriever must return a list of NodeWithScore, got {type(nodes).__name__}: "
            f"{nodes!r:.200}"
        )
    return hits_of(nodes, HitPayload(None, kept(record)))


async def _aretrieved(retriever: BaseRetriever, bundle: QueryBundle) -> list[NodeWithScore]:
    if blocks_loop(retriever):
        return await in_thread(lambda: retriever.aretrieve(bundle))
    return await retriever.aretrieve(bundle)
