"""What a host's retriever is made of: parts in parts, what they are set to, what they may do."""

from collections.abc import Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType
from typing import Any, Final

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts.mixin import PromptMixin
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import BaseNode, NodeWithScore
from llama_index.core.tools import BaseTool
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from ralmspec_plugins.adapters.fingerprint import (
    MOST,
    attributes,
    class_names,
    frozen,
    held,
    package_of,
    token_of,
)
from ralmspec_plugins.adapters.fingerprint import parts as walked

# Those that write on each call: a query is a statement to them.
IMPURE: Final = frozenset({"llama_index.core.indices.struct_store.sql_retriever.SQLRetriever"})
_ASKED: Final = (PromptMixin, BaseTool, BaseNodePostprocessor)  # retrievers, and their parts
_WHOLE: Final = (BaseEmbedding, BaseLLM, BasePydanticVectorStore)  # not looked into any further
_CODE: Final = (*_ASKED, BasePydanticVectorStore, FunctionType, MethodType, partial)
_HOSTS: Final = frozenset({"llama_index", "llama_index_ralmspec"})
_NO_SETTINGS: Final = frozenset({"callback_manager"})  # who hears of a call


def is_pure(retriever: BaseRetriever) -> bool:
    """Whether nothing in a retriever is known to answer differently, or to write, when asked again.

    Any language model in it counts as such, wherever it is.
    """
    return not any(
        isinstance(part, BaseLLM) or class_names(part) & IMPURE for part in parts(retriever)
    )


def is_hosts_own(retriever: BaseRetriever) -> bool:
    """Whether all code that says what a retriever finds is LlamaIndex'.

    Other code may read elsewhere, in a `ContextVar` or a database, whose turn it is; nothing
    that can be seen of its retriever keeps one's answers from another one's then. An embedder
    only ranks: what there is to be found is not its affair.
    """
    return not any(
        isinstance(part, _CODE) and package_of(part) not in _HOSTS for part in parts(retriever)
    )


def parts(whole: object) -> Iterator[object]:
    """Walk through the parts of a retriever, itself first, each once.

    Its vector stores, embedders and language models are the last of a branch; indexes and
    document stores, which hold no part that is called, are not walked through.
    """
    return walked(whole, _inside, besides=(BaseNode, NodeWithScore))


def _inside(part: object) -> list[Any]:
    """List what may hold a retriever or a model, one level down."""
    if isinstance(part, _WHOLE):
        return []
    if isinstance(part, QueryFusionRetriever) and part.num_queries <= 1:
        return [value for name, value in vars(part).items() if name != "_llm"]  # it is not asked
    if isinstance(part, _ASKED):
        return list(attributes(part).values())
    if isinstance(part, dict | list) and len(part) > MOST:  # of nodes; or one retriever for each
        items = list(part.values() if isinstance(part, dict) else part)
        return items if isinstance(items[0], _ASKED) else []
    return held(part)


def settings_of(retriever: BaseRetriever) -> tuple[tuple[str, bytes], ...]:
    """Name the parts of a retriever, and all that each of them holds, as it is now.

    Every attribute counts, whatever it is called and whenever it was set: which of them an
    answer depends on, nobody can see. So a part that counts its calls in a number is
    another one after each of them; one that counts in an object of its own is not.
    """
    return tuple(
        (token_of(part), frozen(_settings(part), MOST, _named))
        for part in parts(retriever)
        if isinstance(part, _ASKED)
    )


def _settings(part: object) -> dict[str, Any]:
    return {name: one for name, one in attributes(part).items() if name not in _NO_SETTINGS}


def _named(value: object) -> Mapping[str, Any] | None:
    """Read nothing of a part: it is named for itself, or not looked into."""
    return {} if isinstance(value, (*_ASKED, *_WHOLE)) else None
