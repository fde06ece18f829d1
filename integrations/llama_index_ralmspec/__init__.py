"""Speculative retrieval for LlamaIndex: the responses of the host's query engine, in less time.

`SpeculativeQueryEngine` is a query engine over a retriever, and `SpeculativeRetriever` is a
retriever alone. `SpeculativeLLM` is a LlamaIndex model over a local model that generates several
tokens per pass, and `KNNLLM` is one over KNN-LM.
"""

from ralmspec_plugins.errors import MissingExtraError

try:
    import llama_index.core as _llama_index_core  # noqa: F401 the rest of this package needs it
except ImportError as missing:
    raise MissingExtraError("llama-index", "llama-index-core") from missing

from llama_index_ralmspec.agents import AgentOptions, agent_stats
from llama_index_ralmspec.callbacks import (
    SPECULATIVE,
    CommitEvent,
    GuessEvent,
    RetrievalEvent,
    RollbackEvent,
    VerificationEvent,
)
from llama_index_ralmspec.knn import KNNLLM
from llama_index_ralmspec.options import Options
from llama_index_ralmspec.query_engine import SpeculativeQueryEngine, speculate
from llama_index_ralmspec.response import stats_of
from llama_index_ralmspec.retriever import SpeculativeRetriever, Verdict
from llama_index_ralmspec.speculative_model import SpeculativeLLM
from llama_index_ralmspec.stores.registry import BatchSearch, Scored, register_batch_search
from llama_index_ralmspec.tools import speculative_tool
from ralmspec_plugins.adapters.agent_limits import AgentStats
from ralmspec_plugins.adapters.events import Report

__all__ = [
    "KNNLLM",
    "SPECULATIVE",
    "AgentOptions",
    "AgentStats",
    "BatchSearch",
    "CommitEvent",
    "GuessEvent",
    "Options",
    "Report",
    "RetrievalEvent",
    "RollbackEvent",
    "Scored",
    "SpeculativeLLM",
    "SpeculativeQueryEngine",
    "SpeculativeRetriever",
    "Verdict",
    "VerificationEvent",
    "agent_stats",
    "register_batch_search",
    "speculate",
    "speculative_tool",
    "stats_of",
]
