"""What a host's retriever is made of: the concrete one behind its wrappings, and what is in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from langchain_core.documents import Document
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

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.hosts.classes import class_names
from ralmspec_plugins.hosts.parts import held, parts

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


def _direct(part: object) -> list[Any]:
    """List what may hold a retriever or a model, one level down."""
    if isinstance(part, RunnableLambda):
        return list(part.deps)
    if isinstance(part, VectorStore):
        return [part.embeddings]
    return held(part)


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
