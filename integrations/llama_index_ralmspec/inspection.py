"""Inspects a host's retriever: what its results depend on, and how it may be searched."""

import asyncio
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any, Final, TypeVar

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts.mixin import PromptMixin
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import BaseNode, IndexNode, NodeWithScore, QueryBundle
from llama_index.core.tools import BaseTool
from llama_index.core.vector_stores.types import BasePydanticVectorStore, VectorStoreQueryMode

from llama_index_ralmspec.capabilities import awaits
from llama_index_ralmspec.host_calls import kept, search_call
from llama_index_ralmspec.stores import BATCH_SEARCHES
from llama_index_ralmspec.stores.registry import batch_search_of
from ralmspec_plugins.adapters.batch_search import Scored, Vector
from ralmspec_plugins.adapters.fingerprint import (
    MOST,
    attributes,
    class_names,
    copied_where_possible,
    held,
    holds_no_code,
    is_data,
    is_known,
    object_id,
    overridden,
    package_of,
    qualified_name,
    value_fingerprint,
)
from ralmspec_plugins.adapters.fingerprint import parts as walked
from ralmspec_plugins.adapters.retriever_state import (
    BatchMode,
    Native,
    QueryPayload,
    RetrieverSnapshot,
)
from ralmspec_plugins.errors import ConfigError

# The nested parts of a host's retriever, their settings, and their possible side effects.


# Retrievers that may write on each call: they execute a query as a statement.
IMPURE: Final = frozenset({"llama_index.core.indices.struct_store.sql_retriever.SQLRetriever"})
_ASKED: Final = (PromptMixin, BaseTool, BaseNodePostprocessor)  # retrievers, and their parts
_WHOLE: Final = (BaseEmbedding, BaseLLM, BasePydanticVectorStore)  # not inspected any further
_RETRIEVERS: Final = frozenset(
    {
        "llama_index.core.indices.vector_store.retrievers.retriever.VectorIndexRetriever",
        "llama_index.core.indices.vector_store.retrievers.VectorIndexRetriever",
    }
)
# Packages whose objects a known store holds: its client, its index, its settings.
_CLIENTS: Final = frozenset(
    {
        *("chromadb", "faiss", "fsspec", "lancedb", "pymilvus", "qdrant_client"),
        *("llama_index.core", "llama_index.vector_stores.chroma"),
        *("llama_index.vector_stores.faiss", "llama_index.vector_stores.lancedb"),
        *("llama_index.vector_stores.milvus", "llama_index.vector_stores.qdrant"),
    }
)
_DOCSTORES: Final = frozenset(
    {"llama_index.core.storage.docstore.simple_docstore.SimpleDocumentStore"}
)
_KV_STORES: Final = frozenset({"llama_index.core.storage.kvstore.simple_kvstore.SimpleKVStore"})
_NO_SETTINGS: Final = frozenset({"callback_manager"})  # they do not affect results


def is_pure(retriever: BaseRetriever) -> bool:
    """Return whether no part of a retriever is known to have side effects or varying results.

    Any language model inside counts as such a part.
    """
    return not any(
        isinstance(part, BaseLLM) or class_names(part) & IMPURE for part in parts(retriever)
    )


def is_hosts_own(retriever: BaseRetriever) -> bool:
    """Return whether only known code determines a retriever's results.

    Its signature is then complete. Only one kind is known: LlamaIndex' own retriever of a vector
    index, whose settings are data, over a known store and its own document store. Any other
    code may read the current user from elsewhere, such as a `ContextVar` or a database. An
    embedder only affects the ranking, not which nodes are accessible.
    """
    if not is_known(retriever, _RETRIEVERS):
        return False
    own = vars(retriever)
    return (
        is_known(own["_vector_store"], BATCH_SEARCHES)
        and _only_known_code(own)
        and all(_is_plain(own[name]) for name in _SETTINGS)
        and not own["object_map"]
    )


def _only_known_code(own: Mapping[str, Any]) -> bool:
    """Return whether store and document store of a vector index' retriever run only known code.

    Searches of many callers run in the context of one. A store whose batch search was registered
    by the user is trusted.
    """
    store, docstore = own["_vector_store"], own["_docstore"]
    ours = qualified_name(type(store)) in BATCH_SEARCHES
    inside = attributes(store).values()
    if ours and not all(holds_no_code(one, _CLIENTS, "llama_index", _RECORDS) for one in inside):
        return False
    kv_store = getattr(docstore, "_kvstore", None)
    return is_known(docstore, _DOCSTORES) and is_known(kv_store, _KV_STORES)


def parts(whole: object) -> Iterator[object]:
    """Yield the retriever and its parts, each once.

    Vector stores, embedders and language models are leaves; indexes and document stores, which
    hold no part that is called, are not traversed.
    """
    return walked(whole, _inside, besides=(BaseNode, NodeWithScore))


def _inside(part: object) -> list[Any]:
    """Return the direct parts that may contain a retriever or a model."""
    if isinstance(part, _WHOLE):
        return []
    if isinstance(part, QueryFusionRetriever) and part.num_queries <= 1:
        return [value for name, value in vars(part).items() if name != "_llm"]  # it is not called
    if isinstance(part, _ASKED):
        return list(attributes(part).values())
    if isinstance(part, dict | list) and len(part) > MOST:  # of nodes, or of one retriever per node
        items = list(part.values() if isinstance(part, dict) else part)
        return items if isinstance(items[0], _ASKED) else []
    return held(part)


def settings_of(retriever: BaseRetriever) -> tuple[tuple[str, bytes], ...]:
    """Return the fingerprint of the parts of a retriever and of all their attributes.

    Every attribute counts, since it is unknown which of them a result depends on. So a part
    that counts its calls in a number has another fingerprint after each call; one that counts
    in a separate object has not.
    """
    return tuple(
        (object_id(part), value_fingerprint(_settings(part), MOST, _named))
        for part in parts(retriever)
        if isinstance(part, _ASKED)
    )


def _settings(part: object) -> dict[str, Any]:
    return {name: one for name, one in attributes(part).items() if name not in _NO_SETTINGS}


def _named(value: object) -> Mapping[str, Any] | None:
    """Return no attributes for a part that has its own fingerprint or is not inspected."""
    return {} if isinstance(value, (*_ASKED, *_WHOLE)) else None


# Lists of node ids: a retriever holds those of its whole index.
#
# `index.as_retriever()` lists the ids of all nodes in the index. Reading twenty thousand of them
# at each call, like other settings, would take longer than a search.


_KEPT: Final = 64


@dataclass(frozen=True, slots=True, eq=False)
class Ids:
    """A private copy of a list of ids, and a number that identifies its value."""

    name: int
    values: list[str]
    listed: list[str]  # the list itself, kept so that its `id` is not reused


class _Known:
    """The most recently used lists, by `id` and by value. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._by_place: OrderedDict[int, Ids] = OrderedDict()
        self._by_value: OrderedDict[tuple[str, ...], int] = OrderedDict()

    def ids(self, listed: list[str]) -> Ids | None:
        with self._lock:
            known = self._by_place.get(id(listed))
            if known is not None and known.listed is listed and _same(known.values, listed):
                self._by_place.move_to_end(id(listed))
                return known
        values = list(listed)
        if set(map(type, values)) - {str}:
            return None
        with self._lock:
            name = self._by_value.setdefault(tuple(values), next(self._numbers))
            found = self._by_place[id(listed)] = Ids(name, values, listed)
            for kept in (self._by_place, self._by_value):
                if len(kept) > _KEPT:
                    kept.popitem(last=False)
        return found


_node_ids = _Known()


def ids_of(listed: Any) -> Ids | None:
    """Return the copy and the number of a list of ids; `None` for other objects.

    For an unchanged list this takes only one comparison of its items. A list that was not used
    for long may get a new number, which only causes a cache miss.
    """
    return _node_ids.ids(listed) if type(listed) is list else None


def _same(ours: list[str], theirs: list[str]) -> bool:
    return len(ours) == len(theirs) and all(map(is_, ours, theirs))


# Which coroutines wait, and which compute and thus block the event loop.
#
# Where an asynchronous method is known to call the synchronous one, it runs in a thread, with an
# event loop of its own. All others are awaited in the caller's event loop, to which
# their connections belong: a user's coroutine that computes blocks it, as in the host.


ResultT = TypeVar("ResultT")
# Modules whose asynchronous methods call the synchronous ones.
_COMPUTES: Final = frozenset(
    {
        "llama_index.core.base.base_retriever",  # the defaults of the host's base classes
        "llama_index.core.base.embeddings.base",
        "llama_index.core.vector_stores.types",
        "llama_index.core.vector_stores.simple",
        "llama_index.core.embeddings.mock_embed_model",
        "llama_index.embeddings.huggingface.base",
        "llama_index.vector_stores.chroma.base",
        "llama_index.vector_stores.faiss.base",
        "llama_index.vector_stores.lancedb.base",
    }
)


def waits(kind: type, method: str) -> bool:
    """Return whether an asynchronous method is not known to call the synchronous one.

    >>> from llama_index.core import MockEmbedding
    >>> waits(MockEmbedding, "_aget_query_embedding")
    False
    """
    return getattr(getattr(kind, method), "__module__", None) not in _COMPUTES


def blocks_loop(retriever: BaseRetriever) -> bool:
    """Return whether a retriever's coroutine must run in a thread.

    It must if it or one of its parts is known to compute, and none has connections that
    belong to the caller's event loop.
    """
    known = [one for one in map(_waits, parts(retriever)) if one is not None]
    return bool(known) and not any(known)


def _waits(part: object) -> bool | None:
    """Return whether a part waits; `None` if it is not called or only calls other parts."""
    if getattr(part, "keeps_the_loop", False):
        return True
    if isinstance(part, BaseLLM):
        return awaits(part, "acomplete")
    if isinstance(part, BaseEmbedding):
        return waits(type(part), "_aget_query_embedding")
    if isinstance(part, BasePydanticVectorStore):
        return waits(type(part), "aquery")
    if not isinstance(part, BaseRetriever):
        return None
    if package_of(part).startswith("llama_index") and waits(type(part), "_aretrieve"):
        return None  # its parts are checked instead
    return waits(type(part), "_aretrieve")


async def in_thread(call: Callable[[], Coroutine[Any, Any, ResultT]]) -> ResultT:
    """Run a coroutine in a new event loop in a thread, in a copy of this context."""
    return await asyncio.to_thread(lambda: asyncio.run(call()))


_SETTINGS: Final = (
    "_filters",
    "_kwargs",
    "_node_ids",
    "_doc_ids",
)  # mutable settings
_IDS: Final = ("_node_ids", "_doc_ids")
_NUMBERS: Final = ("_similarity_top_k", "_alpha", "_sparse_top_k", "_hybrid_top_k")
_RECORDS: Final = frozenset({"llama_index.core", "qdrant_client"})  # packages whose models are data
_MODE: Final = "_vector_store_query_mode"
_SIZED: Final = "llama_index.retrievers.bm25.base.BM25Retriever"


@dataclass(frozen=True, slots=True)
class At:
    """A retriever with the settings of one call, and its query if that is more than a text."""

    retriever: BaseRetriever
    special: QueryBundle | None


def special(bundle: QueryBundle | None) -> QueryBundle | None:
    """Return a query if it has more than its text, such as an embedding or an image.

    This includes queries of subclasses, and those with further attributes.
    """
    if bundle is None:
        return None
    more = {name: value for name, value in vars(bundle).items() if value is not None}
    return None if type(bundle) is QueryBundle and more.keys() == {"query_str"} else bundle


def check_retriever(retriever: object) -> None:
    """Check that a retriever is one of the host.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(retriever, BaseRetriever):
        raise ConfigError(
            f"a retriever must be a LlamaIndex BaseRetriever, got {type(retriever).__name__}; "
            "for an index pass index.as_retriever()"
        )


def look_at(retriever: BaseRetriever, query: QueryBundle | None) -> tuple[Hashable, At]:
    """Return the signature of all that a retriever's results depend on, and the retriever.

    A retriever that is inspected is copied, so that its settings cannot change meanwhile.
    """
    about = None if query is None else value_fingerprint(query)
    if not _known(retriever):
        return ("llama_index", settings_of(retriever), about), At(retriever, query)
    fixed, named = _fixed(retriever)
    own: dict[str, Any] = vars(fixed)
    store = own["_vector_store"]
    signature = (
        "llama_index",
        qualified_name(type(store)),
        *map(object_id, (store, own["_index"], own["_docstore"], own["_embed_model"])),
        value_fingerprint([own[name] for name in ("_filters", "_kwargs", *_NUMBERS, _MODE)]),
        *named,
        value_fingerprint(own["object_map"], MOST),
        about,
    )
    return signature, At(fixed, query)


def prepared(
    signature: Hashable, at: At, *, mode: BatchMode, pure: bool | None
) -> RetrieverSnapshot:
    """Return a retriever's snapshot, which is valid as long as its signature."""
    good = is_pure(at.retriever) if pure is None else pure
    native = native_of(at, mode) if good else None
    k = k_of(at.retriever) if native is None else native.search.k
    fixed = at.retriever if _known(at.retriever) else None
    own = is_hosts_own(at.retriever)
    return RetrieverSnapshot(signature, native, k, good, fixed, own, passing=at.special is not None)


def native_of(at: At, mode: BatchMode) -> Native | None:
    """Return the batch search that equals a retriever's own search, or `None`.

    A batch is searched in the context of one of its callers. So there is none if unknown code
    takes part in the search: it would read that caller's `ContextVar`.
    """
    retriever = at.retriever
    if mode == "off" or not isinstance(retriever, VectorIndexRetriever) or not _known(retriever):
        return None
    own: dict[str, Any] = vars(retriever)
    embedder = own["_embed_model"]
    if not isinstance(embedder, BaseEmbedding) or not _searches_by_vectors(own):
        return None
    if not all(_is_plain(own[name]) for name in _SETTINGS) or not _only_known_code(own):
        return None
    search = batch_search_of(retriever)
    if search is None or not (search.exact or mode == "probed"):
        return None
    leads_on = bool(retriever.object_map)
    return Native(search, QueryEmbedder(embedder, at.special), Handed(retriever), leads_on)


def _searches_by_vectors(own: Mapping[str, Any]) -> bool:
    """Return whether a retriever embeds its queries, as any version of the host does."""
    by_words = own[_MODE] in (VectorStoreQueryMode.TEXT_SEARCH, VectorStoreQueryMode.SPARSE)
    return bool(own["_vector_store"].is_embedding_query) and not by_words


def k_of(retriever: BaseRetriever) -> int | None:
    """Return the number of nodes that a retriever is set to, or `None` if unknown."""
    k: Any = None
    if isinstance(retriever, VectorIndexRetriever):
        if retriever._vector_store_query_mode == "default":  # noqa: SLF001
            k = retriever.similarity_top_k
    elif type(retriever) is QueryFusionRetriever:
        k = retriever.similarity_top_k
    elif qualified_name(type(retriever)) == _SIZED:
        k = vars(retriever).get("similarity_top_k")
    return k if type(k) is int and k >= 1 else None


@dataclass(frozen=True, slots=True)
class QueryEmbedder:
    """A retriever's embedder, called as the retriever itself calls it."""

    embedder: BaseEmbedding
    special: QueryBundle | None

    def embed(self, text: str) -> QueryPayload:
        """Return a query's embedding; without a vector if there is nothing to embed."""
        vector, strings = self._given(text)
        if vector is not None or not strings:
            return QueryPayload(vector)
        record, call = search_call()
        embed = self.embedder.get_agg_embedding_from_queries
        vector = call.run(lambda: embed(strings))
        return QueryPayload(vector, recording=kept(record))

    async def aembed(self, text: str) -> QueryPayload:
        """Return a query's embedding by the asynchronous method, in a thread if it computes."""
        vector, strings = self._given(text)
        if vector is not None or not strings:
            return QueryPayload(vector)
        record, call = search_call()
        vector = await call.arun(lambda: self._aembed(strings))
        return QueryPayload(vector, recording=kept(record))

    async def _aembed(self, strings: list[str]) -> Vector:
        if waits(type(self.embedder), "_aget_query_embedding"):
            return await self.embedder.aget_agg_embedding_from_queries(strings)
        return await in_thread(lambda: self.embedder.aget_agg_embedding_from_queries(strings))

    def _given(self, text: str) -> tuple[Vector | None, list[str]]:
        """Return the vector of the query, and the strings to embed."""
        bundle = self.special
        if bundle is None or bundle.query_str != text:
            bundle = QueryBundle(text)
        vector = None if bundle.embedding is None else list(bundle.embedding)
        return vector, list(bundle.embedding_strs)


@dataclass(frozen=True, slots=True)
class Handed:
    """Removes duplicates from a store's results, as the retriever does.

    If a node has an object to retrieve from, the retriever itself does that.
    """

    retriever: VectorIndexRetriever

    def __call__(self, found: Sequence[list[Scored]]) -> list[list[Scored] | None]:
        """Return the first of each node; `None` if the retriever retrieves from one's object."""
        return [self._once(nodes) for nodes in found]

    def _once(self, nodes: list[Scored]) -> list[Scored] | None:
        if any(self._leads_on(one.document) for one in nodes):
            return None
        first: dict[str, Scored] = {}
        for at, one in enumerate(nodes):
            first.setdefault(one.document.node_id, one)
            if at + 1 == self.retriever.similarity_top_k and len(first) <= at:
                break  # the retriever returns fewer nodes, and none of the rest
        return list(first.values())

    def _leads_on(self, node: Any) -> bool:
        if not isinstance(node, IndexNode):
            return False
        return node.obj is not None or self.retriever.object_map.get(node.index_id) is not None


def _is_plain(value: Any) -> bool:
    return ids_of(value) is not None or is_data(value, _RECORDS)


def _known(retriever: BaseRetriever) -> bool:
    return type(retriever) is VectorIndexRetriever and not overridden(retriever)


def _fixed(retriever: BaseRetriever) -> tuple[BaseRetriever, list[Hashable]]:
    """Return a copy of a retriever with its settings, and the keys of its lists of ids.

    Values that are not data are shared.
    """
    made = object.__new__(type(retriever))
    own = vars(made)
    own.update(vars(retriever))
    for name in ("_filters", "_kwargs"):
        if is_data(own[name], _RECORDS):
            own[name] = copied_where_possible(own[name])
    named: list[Hashable] = []
    for name in _IDS:
        ids = ids_of(own[name])
        named.append(value_fingerprint(own[name]) if ids is None else ids.name)
        own[name] = copied_where_possible(own[name]) if ids is None else ids.values
    own["object_map"] = dict(own["object_map"])
    return made, named
