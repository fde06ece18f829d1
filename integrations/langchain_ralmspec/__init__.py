"""Speculative retrieval for LangChain: the answers of the plain chain, in less time.

`SpeculativeRAG` combines a retriever and a model in one runnable, `speculate()` makes one from
an existing chain, and `SpeculativeRetriever` is a retriever alone. `SpeculativeLLM` and
`SpeculativeChatModel` are LangChain models over a local model that generates several tokens
per pass, and `KNNLLM` is one over KNN-LM. For agents, `speculative_tool()` makes a tool of a
retriever, and `SpeculativeTools`, a middleware in `langchain_ralmspec.agents` (extra
`langchain-agents`), calls the model while tools run.
"""

from typing import TYPE_CHECKING, Any

from ralmspec_plugins.errors import MissingExtraError

try:
    import langchain_core as _langchain_core  # noqa: F401 the rest of this package needs it
except ImportError as missing:
    raise MissingExtraError("langchain", "langchain-core") from missing

from langchain_ralmspec.chains import SpeculativeChain, speculate
from langchain_ralmspec.knn import KNNLLM
from langchain_ralmspec.rag import SpeculativeRAG
from langchain_ralmspec.reports import Report, ReportHandler, stats_of
from langchain_ralmspec.response import Reply
from langchain_ralmspec.retriever import SpeculativeRetriever
from langchain_ralmspec.speculative_model import SpeculativeChatModel, SpeculativeLLM
from langchain_ralmspec.stores.registry import BatchSearch, Scored, register_batch_search
from langchain_ralmspec.tools import speculative_tool

if TYPE_CHECKING:
    from langchain_ralmspec.agents import SpeculativeTools as SpeculativeTools

__all__ = [
    "KNNLLM",
    "BatchSearch",
    "Reply",
    "Report",
    "ReportHandler",
    "Scored",
    "SpeculativeChain",
    "SpeculativeChatModel",
    "SpeculativeLLM",
    "SpeculativeRAG",
    "SpeculativeRetriever",
    "register_batch_search",
    "speculate",
    "speculative_tool",
    "stats_of",
]


def __getattr__(name: str) -> Any:
    """Import the class that needs the extra `langchain-agents` on first access."""
    if name == "SpeculativeTools":
        from langchain_ralmspec.agents import SpeculativeTools

        return SpeculativeTools
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
