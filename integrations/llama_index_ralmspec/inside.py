"""What a host's retriever is made of: parts in parts, what they are set to, what they may do."""

import inspect
from collections.abc import Iterator
from typing import Any, Final

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.prompts.mixin import PromptMixin
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import BaseNode, NodeWithScore
from llama_index.core.tools import BaseTool
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from ralmspec_plugins.hosts.classes import class_names
from ralmspec_plugins.hosts.parts import MOST, held
from ralmspec_plugins.hosts.parts import parts as walked
from ralmspec_plugins.hosts.signatures import frozen, token_of

# Those that write on each call: a query is a statement to them.
IMPURE: Final = frozenset({"llama_index.core.indices.struct_store.sql_retriever.SQLRetriever"})
_WHOLE: Final = (BaseEmbedding, BaseLLM, BasePydanticVectorStore)  # not looked into any further


def is_pure(retriever: BaseRetriever) -> bool:
    """Whether nothing in a retriever is known to answer differently, or to write, when asked again.

    Any language model in it counts as such, wherever it is.
    """
    return not any(
        isinstance(part, BaseLLM) or class_names(part) & IMPURE for part in parts(retriever)
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
    if isinstance(part, PromptMixin | BaseTool):
        return list(vars(part).values())
    return held(part)


def settings_of(retriever: BaseRetriever) -> tuple[tuple[str, bytes], ...]:
    """Name the parts of a retriever, and what each of them is set to, as it is now.

    Settings are the attributes that are called as the constructor's arguments are, with an
    underscore or without. Others (counters, caches) change by the calls themselves.
    """
    return tuple(
        (token_of(part), frozen(_settings(part), MOST))
        for part in parts(retriever)
        if isinstance(part, PromptMixin)
    )


def _settings(part: object) -> dict[str, Any]:
    names = {name for kind in type(part).__mro__ for name in _arguments(kind)}
    return {name: value for name, value in vars(part).items() if name.lstrip("_") in names}


def _arguments(kind: type) -> list[str]:
    init = vars(kind).get("__init__")
    return list(inspect.signature(init).parameters)[1:] if inspect.isfunction(init) else []
