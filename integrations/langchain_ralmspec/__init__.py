"""Speculative retrieval for LangChain: the same answers as the plain chain, sooner.

`SpeculativeRAG` is a retriever and a model as one runnable, `speculate()` makes one of
a chain that is there already, and `SpeculativeRetriever` is the retriever's part alone.
`SpeculativeLLM` and `SpeculativeChatModel` are a local model that writes several tokens a
pass, `KNNLLM` is KNN-LM, as models of the host. For agents, `speculative_tool()` makes a tool
of a retriever, and `SpeculativeTools`, a middleware in `langchain_ralmspec.agents` (extra
`langchain-agents`), runs the model while tools do.
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
    """Import what needs the extra `langchain-agents` when it is asked for."""
    if name == "SpeculativeTools":
        from langchain_ralmspec.agents import SpeculativeTools

        return SpeculativeTools
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
