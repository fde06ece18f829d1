"""Inspects a host's retriever: what its results depend on, and how it may be searched."""

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.documents import (
    BaseDocumentCompressor,
    BaseDocumentTransformer,
    Document,
)
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseLanguageModel
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import (
    Runnable,
    RunnableBinding,
    RunnableConfig,
    RunnableLambda,
)
from langchain_core.runnables.config import ensure_config, merge_configs, run_in_executor
from langchain_core.runnables.configurable import (
    DynamicRunnable,
    RunnableConfigurableAlternatives,
    RunnableConfigurableFields,
)
from langchain_core.vectorstores import VectorStore, VectorStoreRetriever

from langchain_ralmspec.stores import BATCH_SEARCHES
from langchain_ralmspec.stores.registry import BatchSearch, batch_search_of
from ralmspec_plugins.adapters.batch_search import Scored
from ralmspec_plugins.adapters.fingerprint import (
    MOST,
    as_called,
    attributes,
    class_names,
    copied,
    held,
    holds_no_code,
    is_data,
    is_known,
    object_id,
    overridden,
    package_of,
    parts,
    qualified_name,
    value_fingerprint,
)
from ralmspec_plugins.adapters.retriever_state import (
    BatchMode,
    Native,
    QueryPayload,
    RetrieverSnapshot,
    all_of,
)
from ralmspec_plugins.errors import ConfigError

# The parts of a host's retriever: the concrete one inside its wrappers, and its attributes.


# Retrievers that write on each call, or call a sampling model: their results vary.
IMPURE: Final = frozenset(
    f"{package}.retrievers.{place}"
    for package in ("langchain", "langchain_classic", "langchain_community")
    for place in (
        "time_weighted_retriever.TimeWeightedVectorStoreRetriever",
        "multi_query.MultiQueryRetriever",
    )
)
_DYNAMIC: Final = (RunnableConfigurableFields, RunnableConfigurableAlternatives)
_PARTS: Final = (Runnable, BaseDocumentCompressor, BaseDocumentTransformer)
_WHOLE: Final = (VectorStore, Embeddings, BaseLanguageModel)  # not inspected any further
_RETRIEVERS: Final = frozenset({"langchain_core.vectorstores.base.VectorStoreRetriever"})
# Packages whose objects a known store holds: its client, its index, its settings.
_CLIENTS: Final = frozenset(
    {
        *("chromadb", "faiss", "lancedb", "pymilvus", "qdrant_client"),
        *("langchain_chroma", "langchain_community", "langchain_core", "langchain_milvus"),
        *("langchain_qdrant",),
    }
)


@dataclass(frozen=True, slots=True)
class Concrete:
    """A retriever without its wrappers, and the config and arguments that these add."""

    runnable: Runnable[Any, Any]
    config: RunnableConfig
    kwargs: Mapping[str, Any]


def concrete(
    runnable: Runnable[Any, Any], config: RunnableConfig, kwargs: Mapping[str, Any]
) -> Concrete:
    """Return the retriever that a call with this config and these arguments would reach.

    Only wrappers that merely forward a call are removed: bindings (`bind`, `with_config`),
    configurable fields and alternatives. Retries, fallbacks and listeners stay.
    """
    while True:
        kind = type(runnable)
        if isinstance(runnable, DynamicRunnable) and kind in _DYNAMIC:
            runnable, config = runnable.prepare(config)
        elif isinstance(runnable, RunnableBinding) and kind is RunnableBinding:
            if runnable.config_factories:
                return Concrete(runnable, config, kwargs)
            config = merge_configs(runnable.config, config)
            kwargs = {**runnable.kwargs, **kwargs}
            runnable = runnable.bound
        else:
            return Concrete(runnable, ensure_config(config), kwargs)


def is_pure(runnable: Runnable[Any, Any]) -> bool:
    """Return whether no part of a retriever is known to have side effects or varying results.

    Any language model inside counts as such a part.
    """
    return not any(
        isinstance(part, BaseLanguageModel) or class_names(part) & IMPURE
        for part in parts(runnable, _direct, (Document,))
    )


def models_in(runnable: Runnable[Any, Any]) -> list[BaseLanguageModel[Any]]:
    """Return the language models in a runnable, at any depth."""
    found = parts(runnable, _direct, (Document,))
    return [part for part in found if isinstance(part, BaseLanguageModel)]


def is_hosts_own(at: Concrete) -> bool:
    """Return whether only known code determines a retriever's results.

    Its signature is then complete. Only one kind is known: a `VectorStoreRetriever` over a store
    of `BATCH_SEARCHES`, whose settings are data, and which holds only data, an embedder and
    objects of its own client. Any other code may read the current user from elsewhere, such
    as a `ContextVar` or a database. An embedder only affects the ranking, not which documents
    are accessible.
    """
    retriever = at.runnable
    if not isinstance(retriever, VectorStoreRetriever) or not is_known(retriever, _RETRIEVERS):
        return False
    store = retriever.vectorstore
    return (
        is_known(store, BATCH_SEARCHES)
        and is_data({**retriever.search_kwargs, **at.kwargs}, _records_of(store))
        and all(map(_holds_no_code, attributes(store).values()))
    )


def _reads_nothing(embedder: object) -> bool:
    """Return whether an embedder is an unchanged class of one of the known packages."""
    kind = type(embedder)
    return package_of(kind) in _EMBEDDERS and is_known(embedder, {qualified_name(kind)})


def _holds_no_code(value: object) -> bool:
    """Return whether a store's attribute is data, an embedder, or an object of its client."""
    return isinstance(value, Embeddings) or holds_no_code(value, _CLIENTS, "langchain")


def _direct(part: object) -> list[Any]:
    """Return the direct parts that may contain a retriever or a model."""
    if isinstance(part, RunnableLambda):
        return [*attributes(part).values(), *part.deps]
    if isinstance(part, VectorStore):
        return [part.embeddings]
    return list(attributes(part).values()) if isinstance(part, Runnable) else held(part)


def settings_of(runnable: Runnable[Any, Any]) -> Hashable:
    """Return the fingerprint of an opaque retriever: of all its attributes and those of its parts.

    Every attribute counts, public or not, since it is unknown which of them a result depends
    on. A retriever's identity does not count, since configurable fields create a new one for
    each call.
    """
    if isinstance(runnable, BaseRetriever):
        return object_id(type(runnable)), value_fingerprint(attributes(runnable), MOST, _read)
    return value_fingerprint(runnable, MOST, _read)


def _read(value: object) -> Mapping[str, Any] | None:
    """Return the attributes of a retriever's part; stores, embedders and models have none here."""
    if isinstance(value, _WHOLE):
        return {}
    return attributes(value) if isinstance(value, _PARTS) else None


def heeding(runnable: Runnable[Any, Any], inner: Runnable[Any, Any], k: int) -> Runnable[Any, Any]:
    """Return a retriever with a k: as an argument of each call, or as its own field.

    Args:
        runnable: the retriever, possibly wrapped.
        inner: the concrete retriever inside.
        k: the number of documents.

    Raises:
        ConfigError: the retriever does not support it, or the k is below 1.
    """
    if k < 1:
        raise ConfigError(f"k must be at least 1, got {k}")
    if isinstance(inner, BaseRetriever) and not inner._expects_other_args:  # noqa: SLF001
        whole: Any = inner
        own = getattr(inner, "k", None)
        if own is None or runnable is not inner:
            raise ConfigError(
                f"{type(inner).__name__} accepts no k in its calls; set it when creating it"
            )
        changed: Runnable[Any, Any] = whole.model_copy(update={"k": k})
        return inner if own == k else changed
    return runnable


_THRESHOLD: Final = "similarity_score_threshold"
_RECORDS: Final = frozenset({"qdrant_client"})
_OF_ONE_RUN: Final = ("__pregel", "checkpoint_ns", "checkpoint_id", "langgraph_checkpoint_ns")
# Packages whose embedders do not read a call's config or context.
_EMBEDDERS: Final = frozenset(
    {
        *("langchain_aws", "langchain_cohere", "langchain_community", "langchain_core"),
        *("langchain_google_genai", "langchain_google_vertexai", "langchain_huggingface"),
        *("langchain_mistralai", "langchain_nomic", "langchain_ollama", "langchain_openai"),
        *("langchain_voyageai",),
    }
)


@dataclass(frozen=True, slots=True)
class QueryEmbedder:
    """A store's embedder, called as the store's own searches call it."""

    embedder: Embeddings
    own_async: bool = True  # whether the store's asynchronous search is its own, not a thread

    def embed(self, text: str) -> QueryPayload:
        """Return a query's embedding."""
        return QueryPayload(self.embedder.embed_query(text))

    async def aembed(self, text: str) -> QueryPayload:
        """Return a query's embedding by the method of the store's own asynchronous search."""
        if self.own_async:
            try:
                return QueryPayload(await self.embedder.aembed_query(text))
            except NotImplementedError:  # it has only the synchronous method
                pass
        return QueryPayload(await run_in_executor(None, self.embedder.embed_query, text))


@dataclass(frozen=True, slots=True)
class RelevanceCut:
    """Keeps the documents that `similarity_score_threshold` keeps."""

    search: BatchSearch
    threshold: Any  # the minimum relevance score, or `None`

    def __call__(self, found: Sequence[list[Scored]]) -> list[list[Scored] | None]:
        """Return what the retriever keeps; `None` where only the retriever itself can decide."""
        relevance = self.search.relevance()
        if relevance is None:
            return [None for _ in found]
        return [self._relevant(documents, relevance) for documents in found]

    def _relevant(
        self, documents: list[Scored], relevance: Callable[[float], float]
    ) -> list[Scored] | None:
        own, rest = documents[: self.search.k], documents[self.search.k :]
        values = [None if one.score is None else relevance(one.score) for one in own]
        if any(value is None or value < 0.0 or value > 1.0 for value in values):
            return None  # the store warns about these
        if self.threshold is None:
            return documents
        kept = [one for one, value in zip(own, values, strict=True) if value >= self.threshold]
        if len(kept) < len(own):
            return kept
        for one in rest:
            if one.score is None or not relevance(one.score) >= self.threshold:
                break
            kept.append(one)
        return kept


def of_one_run(config: RunnableConfig, kwargs: Mapping[str, Any]) -> bool:
    """Return whether a call has values that no later call can be known to share.

    These are objects that a host creates for each run, such as LangGraph's runtime, and all
    objects that are not plain data. A retriever may read them, so nothing is cached or shared.
    """
    setup = setup_of(config)
    keys = (*setup["configurable"], *setup["metadata"])
    if any(str(key).startswith(_OF_ONE_RUN) for key in keys):
        return True
    try:
        return not is_data([dict(setup), dict(kwargs)], _RECORDS)
    except RecursionError:
        return True


def setup_of(config: RunnableConfig) -> RunnableConfig:
    """Return the part of a config that a retriever may read, without handlers.

    Metadata and tags also come from the callback manager of the run around the call.
    """
    tags, metadata = list(config.get("tags") or ()), dict(config.get("metadata") or {})
    manager = config.get("callbacks")
    if isinstance(manager, BaseCallbackManager):
        tags = list(dict.fromkeys([*manager.tags, *manager.inheritable_tags, *tags]))
        metadata = {**manager.metadata, **manager.inheritable_metadata, **metadata}
    found = RunnableConfig(
        configurable=dict(config.get("configurable") or {}), tags=tags, metadata=metadata
    )
    if config.get("max_concurrency") is not None:
        found["max_concurrency"] = config["max_concurrency"]
    if "recursion_limit" in config:
        found["recursion_limit"] = config["recursion_limit"]
    return found


def signature_of(at: Concrete, own: Hashable = None) -> Hashable:
    """Return the fingerprint of all that a retriever's results currently depend on.

    Bound arguments count like those of a call. An opaque retriever may read its whole config;
    a vector store does not receive it, and for a known one only its settings count.
    """
    runnable, called = at.runnable, _called(at, own)
    if type(runnable) is not VectorStoreRetriever:
        return "langchain", settings_of(runnable), called
    store = runnable.vectorstore
    return (
        "langchain",
        qualified_name(type(store)),
        object_id(store),
        runnable.search_type,
        value_fingerprint({**runnable.search_kwargs, **at.kwargs}),
        object_id(store.embeddings),
        called,
        overridden(runnable) or overridden(store),
    )


def _called(at: Concrete, own: Hashable) -> Hashable:
    """Return the fingerprint of a call's values; `own` if no later call can share them."""
    if reads_no_config(at):
        return b""
    if of_one_run(at.config, at.kwargs):
        return own
    return as_called([dict(setup_of(at.config)), dict(at.kwargs)])


def reads_no_config(at: Concrete) -> bool:
    """Return whether all code of a search is known not to read its call's config."""
    runnable = at.runnable
    return (
        isinstance(runnable, VectorStoreRetriever)
        and is_hosts_own(at)
        and _reads_nothing(runnable.vectorstore.embeddings)
    )


def look_at(
    runnable: Runnable[Any, Any],
    config: RunnableConfig,
    kwargs: Mapping[str, Any],
    own: Hashable,
) -> tuple[Hashable, Concrete]:
    """Return the signature and the concrete retriever of a call.

    A vector store's retriever is copied, so that its settings cannot change meanwhile. `own`
    identifies this call alone, for values that no other call can be known to share.
    """
    at = _fixed(concrete(runnable, config, kwargs))
    return signature_of(at, own), at


def reached(
    look: RetrieverSnapshot,
    runnable: Runnable[Any, Any],
    config: RunnableConfig,
    kwargs: Mapping[str, Any],
) -> Concrete:
    """Return the target of a single call, with the settings of `look` if these are kept."""
    if look.fixed is None:
        return Concrete(runnable, config, kwargs)
    at = concrete(runnable, config, kwargs)
    return Concrete(look.fixed.runnable, at.config, look.fixed.kwargs)


def check_retriever(retriever: object) -> None:
    """Check that a retriever is a runnable.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(retriever, Runnable):
        raise ConfigError(
            f"a retriever must be a LangChain Runnable, got {type(retriever).__name__}"
        )


def _fixed(at: Concrete) -> Concrete:
    if type(at.runnable) is not VectorStoreRetriever:
        return at
    update = {"search_kwargs": _copies(at.runnable.search_kwargs)}
    return Concrete(at.runnable.model_copy(update=update), at.config, _copies(at.kwargs))


def _copies(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of settings; values that are not data are shared."""
    return {
        name: copied(value) if is_data(value, _RECORDS) else value
        for name, value in settings.items()
    }


def prepared(
    signature: Hashable, at: Concrete, mode: BatchMode, pure: bool | None
) -> RetrieverSnapshot:
    """Return a retriever's snapshot: its signature, batch search, k and purity.

    Args:
        signature: the fingerprint of all that its results depend on.
        at: the retriever, with fixed settings.
        mode: which batch searches are used.
        pure: the user's setting, or `None`.
    """
    pure = is_pure(at.runnable) if pure is None else pure
    native = native_of(at, mode) if pure else None
    k = k_of(at) if native is None else native.search.k
    fixed = at if isinstance(at.runnable, VectorStoreRetriever) else None
    return RetrieverSnapshot(
        signature,
        native,
        k,
        pure,
        fixed,
        hosts_own=is_hosts_own(at),
        passing=not reads_no_config(at) and of_one_run(at.config, at.kwargs),
    )


def native_of(at: Concrete, mode: BatchMode) -> Native | None:
    """Return the batch search that equals a retriever's own search, or `None`.

    A batch is searched in the context of one of its callers. So there is none if unknown code
    takes part in the search, such as a callable filter: it would read that caller's
    `ContextVar`.
    """
    retriever = at.runnable
    if mode == "off" or type(retriever) is not VectorStoreRetriever:
        return None
    with_relevance = retriever.search_type == _THRESHOLD
    if retriever.search_type not in ("similarity", _THRESHOLD):
        return None
    store = retriever.vectorstore
    if qualified_name(type(store)) in BATCH_SEARCHES and not all(
        map(_holds_no_code, attributes(store).values())
    ):
        return None
    embedder = store.embeddings
    if not isinstance(embedder, Embeddings):
        return None
    settings = {**retriever.search_kwargs, **at.kwargs}
    if not is_data(settings, _records_of(retriever.vectorstore)):
        return None
    if with_relevance and _own_relevance(retriever.vectorstore):
        return None
    threshold = settings.pop("score_threshold", None) if with_relevance else None
    plain = retriever.model_copy(update={"search_type": "similarity", "search_kwargs": settings})
    search = batch_search_of(plain)
    if search is None or not (search.exact or mode == "probed"):
        return None
    if with_relevance and search.relevance() is None:
        return None  # relevance scores could not be computed for a batch
    way = "asimilarity_search_with_score" if with_relevance else "asimilarity_search"
    own_async = getattr(type(retriever.vectorstore), way) is not getattr(VectorStore, way)
    cut = RelevanceCut(search, threshold) if with_relevance else all_of
    return Native(search, QueryEmbedder(embedder, own_async), cut)


def _records_of(store: object) -> frozenset[str]:
    """Return the packages whose records are data: the store's own, and its client's."""
    return _RECORDS | {type(store).__module__.partition(".")[0]}


def _own_relevance(store: object) -> bool:
    """Return whether a user's function computes the relevance scores of a store."""
    names = "override_relevance_score_fn", "relevance_score_fn"
    return any(getattr(store, name, None) is not None for name in names)


def k_of(at: Concrete) -> int | None:
    """Return the number of documents that a retriever is set to, or `None` if unknown."""
    runnable = at.runnable
    settings: dict[str, Any] = {}
    if isinstance(runnable, VectorStoreRetriever):
        default = inspect.signature(runnable.vectorstore.similarity_search).parameters.get("k")
        settings = {"k": getattr(default, "default", None), **runnable.search_kwargs}
    elif hasattr(runnable, "k"):
        settings = {"k": runnable.k}
    k = {**settings, **at.kwargs}.get("k")
    return k if type(k) is int and k >= 1 else None
