"""What a host's retriever is made of: the concrete one behind its wrappings, and what is in it."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType
from typing import Any, Final

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
from langchain_core.runnables.config import ensure_config, merge_configs
from langchain_core.runnables.configurable import (
    DynamicRunnable,
    RunnableConfigurableAlternatives,
    RunnableConfigurableFields,
)
from langchain_core.vectorstores import VectorStore

from ralmspec_plugins.adapters.fingerprint import (
    MOST,
    attributes,
    class_names,
    frozen,
    held,
    package_of,
    parts,
    token_of,
)
from ralmspec_plugins.errors import ConfigError

# Those that write on each call, or ask a sampling model: not the same answer twice.
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
_WHOLE: Final = (VectorStore, Embeddings, BaseLanguageModel)  # not looked into any further
_CODE: Final = (*_PARTS, VectorStore, FunctionType, MethodType, partial)
_HOSTS: Final = frozenset({"langchain", "langgraph"})  # packages, and those named after them


@dataclass(frozen=True, slots=True)
class Concrete:
    """A retriever without its wrappings, and what they say about its calls."""

    runnable: Runnable[Any, Any]
    config: RunnableConfig
    kwargs: Mapping[str, Any]


def concrete(
    runnable: Runnable[Any, Any], config: RunnableConfig, kwargs: Mapping[str, Any]
) -> Concrete:
    """Find the retriever that a call with this config and these arguments would reach.

    Only wrappings that pass a call on and do nothing else are taken off: bindings
    (`bind`, `with_config`), configurable fields and alternatives. Retries, fallbacks
    and listeners stay.
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
    """Whether nothing in a retriever is known to answer differently, or to write, when asked again.

    Any language model in it counts as such, wherever it is.
    """
    return not any(
        isinstance(part, BaseLanguageModel) or class_names(part) & IMPURE
        for part in parts(runnable, _direct, (Document,))
    )


def is_hosts_own(at: Concrete) -> bool:
    """Whether all code that says what a retriever finds is LangChain's.

    Other code may read elsewhere, in a `ContextVar` or a database, whose turn it is; nothing
    that can be seen of its retriever keeps one's answers from another one's then. An embedder
    only ranks: what there is to be found is not its affair.
    """
    return not any(
        isinstance(part, _CODE) and package_of(part).partition("_")[0] not in _HOSTS
        for whole in (at.runnable, dict(at.kwargs))
        for part in parts(whole, _direct, (Document,))
    )


def _direct(part: object) -> list[Any]:
    """List what may hold a retriever or a model, one level down."""
    if isinstance(part, RunnableLambda):
        return [*attributes(part).values(), *part.deps]
    if isinstance(part, VectorStore):
        return [part.embeddings]
    return list(attributes(part).values()) if isinstance(part, Runnable) else held(part)


def settings_of(runnable: Runnable[Any, Any]) -> Hashable:
    """Name a black box by all that it and its parts hold, as they are now.

    Every attribute counts, public or not, whenever it was set: which of them an answer
    depends on, nobody can see. A retriever is named by them alone, since configurable
    fields make a new one for each call.
    """
    if isinstance(runnable, BaseRetriever):
        return token_of(type(runnable)), frozen(attributes(runnable), MOST, _read)
    return frozen(runnable, MOST, _read)


def _read(value: object) -> Mapping[str, Any] | None:
    """Read all of what a retriever is made of; stores, embedders and models are only themselves."""
    if isinstance(value, _WHOLE):
        return {}
    return attributes(value) if isinstance(value, _PARTS) else None


def heeding(runnable: Runnable[Any, Any], inner: Runnable[Any, Any], k: int) -> Runnable[Any, Any]:
    """Give a retriever that heeds a k: as an argument of each call, or as a field of its own.

    Args:
        runnable: the retriever, perhaps wrapped.
        inner: the concrete one in it.
        k: how many documents it is to give.

    Raises:
        ConfigError: it cannot, or the k lets nothing through.
    """
    if k < 1:
        raise ConfigError(f"k must be at least 1, got {k}")
    if isinstance(inner, BaseRetriever) and not inner._expects_other_args:  # noqa: SLF001
        whole: Any = inner
        own = getattr(inner, "k", None)
        if own is None or runnable is not inner:
            raise ConfigError(
                f"{type(inner).__name__} takes no k at its calls; set it where it is made"
            )
        changed: Runnable[Any, Any] = whole.model_copy(update={"k": k})
        return inner if own == k else changed
    return runnable
