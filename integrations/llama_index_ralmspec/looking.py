"""Looks at a host's retriever: what its answers depend on, and how it may be searched."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import IndexNode, QueryBundle

from llama_index_ralmspec.awaiting import embeds_waiting, in_thread
from llama_index_ralmspec.batch_search import batch_search_of
from llama_index_ralmspec.inside import is_hosts_own, is_pure, settings_of
from llama_index_ralmspec.node_ids import ids_of
from llama_index_ralmspec.recording import Recording, searched
from ralmspec_plugins.adapters.batch_search import Scored, Vector
from ralmspec_plugins.adapters.fingerprint import (
    MOST,
    copied_where_possible,
    frozen,
    is_data,
    overridden,
    qualified_name,
    token_of,
)
from ralmspec_plugins.adapters.retriever_state import Asked, BatchMode, Look, Native
from ralmspec_plugins.errors import ConfigError

_SETTINGS: Final = ("_filters", "_kwargs", "_node_ids", "_doc_ids")  # what can be changed in place
_IDS: Final = ("_node_ids", "_doc_ids")
_NUMBERS: Final = ("_similarity_top_k", "_alpha", "_sparse_top_k", "_hybrid_top_k")
_RECORDS: Final = frozenset({"llama_index", "qdrant_client"})  # packages whose models are data
_MODE: Final = "_vector_store_query_mode"
_SIZED: Final = "llama_index.retrievers.bm25.base.BM25Retriever"


@dataclass(frozen=True, slots=True)
class At:
    """A retriever as one call finds it, and the query that has more to it than its text."""

    retriever: BaseRetriever
    special: QueryBundle | None


def special(bundle: QueryBundle | None) -> QueryBundle | None:
    """Give a query back if it says more than its text: an embedding, strings for it, an image.

    So does one of another class, or one that its caller has put something on.
    """
    if bundle is None:
        return None
    more = {name: value for name, value in vars(bundle).items() if value is not None}
    return None if type(bundle) is QueryBundle and more.keys() == {"query_str"} else bundle


def check_retriever(retriever: object) -> None:
    """Refuse what cannot be searched.

    Raises:
        ConfigError: it is no retriever of the host's.
    """
    if not isinstance(retriever, BaseRetriever):
        raise ConfigError(
            f"a retriever must be a LlamaIndex BaseRetriever, got {type(retriever).__name__}; "
            "of an index, give index.as_retriever()"
        )


def look_at(retriever: BaseRetriever, query: QueryBundle | None) -> tuple[Hashable, At]:
    """Name all that a retriever's answers depend on, as it is now.

    What is looked into goes with a copy of it whose settings nobody changes meanwhile.
    """
    about = None if query is None else frozen(query)
    if not _known(retriever):
        return ("llama_index", settings_of(retriever), about), At(retriever, query)
    fixed, named = _fixed(retriever)
    own: dict[str, Any] = vars(fixed)
    store = own["_vector_store"]
    signature = (
        "llama_index",
        qualified_name(type(store)),
        *map(token_of, (store, own["_index"], own["_docstore"], own["_embed_model"])),
        frozen([own[name] for name in ("_filters", "_kwargs", *_NUMBERS, _MODE)]),
        *named,
        frozen(own["object_map"], MOST),
        about,
    )
    return signature, At(fixed, query)


def prepared(
    signature: Hashable, at: At, *, mode: BatchMode, pure: bool | None, heard: bool
) -> Look:
    """Look closely at a retriever: what is found out holds as long as the signature does."""
    good = is_pure(at.retriever) if pure is None else pure
    native = native_of(at, mode, heard=heard) if good else None
    k = k_of(at.retriever) if native is None else native.search.k
    fixed = at.retriever if _known(at.retriever) else None
    own = native is not None or is_hosts_own(at.retriever)
    return Look(signature, native, k, good, fixed, own, passing=at.special is not None)


def native_of(at: At, mode: BatchMode, *, heard: bool) -> Native | None:
    """Give the batch search of a retriever, if there is one that is just like it.

    A batch is searched in the context of one of its callers. So there is none where code
    takes part in the search: what it reads from a `ContextVar` would be that caller's.
    """
    retriever = at.retriever
    if mode == "off" or not isinstance(retriever, VectorIndexRetriever) or not _known(retriever):
        return None
    own: dict[str, Any] = vars(retriever)
    embedder = own["_embed_model"]
    if not isinstance(embedder, BaseEmbedding) or not retriever._needs_embedding():  # noqa: SLF001
        return None
    if not all(_is_plain(own[name]) for name in _SETTINGS):
        return None
    search = batch_search_of(retriever)
    if search is None or not (search.exact or mode == "probed"):
        return None
    leads_on = bool(retriever.object_map)
    return Native(search, QueryEmbedder(embedder, at.special, heard), Handed(retriever), leads_on)


def k_of(retriever: BaseRetriever) -> int | None:
    """Say how many nodes a retriever gives, where it says so itself."""
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
    """A retriever's embedder, called as the retriever itself calls it.

    `heard`: what the embedder tells is heard at once; otherwise it is kept with the vector.
    """

    embedder: BaseEmbedding
    special: QueryBundle | None
    heard: bool

    def embed(self, text: str) -> Asked:
        """Embed a query; one that has nothing to embed has no vector."""
        vector, strings = self._given(text)
        if vector is not None or not strings:
            return Asked(vector)
        if self.heard:
            return Asked(self.embedder.get_agg_embedding_from_queries(strings))
        recording = Recording()
        with searched(recording, text):
            vector = self.embedder.get_agg_embedding_from_queries(strings)
        return Asked(vector, recording=recording if len(recording) else None)

    async def aembed(self, text: str) -> Asked:
        """Embed a query by the asynchronous method, in a thread if that would not wait."""
        vector, strings = self._given(text)
        if vector is not None or not strings:
            return Asked(vector)
        if self.heard:
            return Asked(await self._aembed(strings))
        recording = Recording()
        with searched(recording, text):
            vector = await self._aembed(strings)
        return Asked(vector, recording=recording if len(recording) else None)

    async def _aembed(self, strings: list[str]) -> Vector:
        if embeds_waiting(self.embedder):
            return await self.embedder.aget_agg_embedding_from_queries(strings)
        return await in_thread(lambda: self.embedder.aget_agg_embedding_from_queries(strings))

    def _given(self, text: str) -> tuple[Vector | None, list[str]]:
        """Give the vector that the query brings along, or the strings that it is made of."""
        bundle = self.special
        if bundle is None or bundle.query_str != text:
            bundle = QueryBundle(text)
        vector = None if bundle.embedding is None else list(bundle.embedding)
        return vector, list(bundle.embedding_strs)


@dataclass(frozen=True, slots=True)
class Handed:
    """What a retriever hands on of its store's results: each node once.

    What a node stands for is retrieved from by the retriever itself.
    """

    retriever: VectorIndexRetriever

    def __call__(self, found: Sequence[list[Scored]]) -> list[list[Scored] | None]:
        """Keep the first of each node; `None` where the retriever goes on into one."""
        return [self._once(nodes) for nodes in found]

    def _once(self, nodes: list[Scored]) -> list[Scored] | None:
        if any(self._leads_on(one.document) for one in nodes):
            return None
        first: dict[str, Scored] = {}
        for at, one in enumerate(nodes):
            first.setdefault(one.document.node_id, one)
            if at + 1 == self.retriever.similarity_top_k and len(first) <= at:
                break  # nothing behind them belongs to them
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
    """Copy a retriever with its settings, and name its lists of ids, which are read once.

    What is code, or cannot be copied, is shared.
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
        named.append(frozen(own[name]) if ids is None else ids.name)
        own[name] = copied_where_possible(own[name]) if ids is None else ids.values
    own["object_map"] = dict(own["object_map"])
    return made, named
