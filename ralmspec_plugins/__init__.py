"""Speculative retrieval for iterative RAG: the same answers as the plain loop, in less time.

`Engine` (threads), `AsyncEngine` (asyncio) and `Simulation` (virtual time) run a workload over a
retriever; `plain()` defines the correct answer.
"""

from ralmspec_plugins.batching.verifier import Verifier
from ralmspec_plugins.config import Settings
from ralmspec_plugins.engine.aio import AsyncEngine
from ralmspec_plugins.engine.simulation import Latencies, Simulation
from ralmspec_plugins.engine.streams import (
    AnswerStream,
    AsyncAnswerStream,
    AsyncEventStream,
    EventStream,
)
from ralmspec_plugins.engine.threads import Engine
from ralmspec_plugins.plain import plain
from ralmspec_plugins.protocols import Retriever, Workload
from ralmspec_plugins.retrieval import open_retriever
from ralmspec_plugins.scheduling.model_queue import ModelQueue
from ralmspec_plugins.scheduling.schedules import Continuous, FixedStride, OptimalStride
from ralmspec_plugins.speculators.passage_cache import PassageCache, SharedPassageCache
from ralmspec_plugins.speculators.query_cache import QueryCache
from ralmspec_plugins.speculators.repetition import Repetition
from ralmspec_plugins.speculators.replica import Replica
from ralmspec_plugins.types import (
    NO_RETRIEVAL,
    Answer,
    Formed,
    Hit,
    Hits,
    Passage,
    Query,
    Request,
    Retrieved,
    Stats,
    VerifierStats,
)
from ralmspec_plugins.waste import WasteShare
from ralmspec_plugins.workloads import Interval

__version__ = "0.1.0"

__all__ = [
    "NO_RETRIEVAL",
    "Answer",
    "AnswerStream",
    "AsyncAnswerStream",
    "AsyncEngine",
    "AsyncEventStream",
    "Continuous",
    "Engine",
    "EventStream",
    "FixedStride",
    "Formed",
    "Hit",
    "Hits",
    "Interval",
    "Latencies",
    "ModelQueue",
    "OptimalStride",
    "Passage",
    "PassageCache",
    "Query",
    "QueryCache",
    "Repetition",
    "Replica",
    "Request",
    "Retrieved",
    "Retriever",
    "Settings",
    "SharedPassageCache",
    "Simulation",
    "Stats",
    "Verifier",
    "VerifierStats",
    "WasteShare",
    "Workload",
    "open_retriever",
    "plain",
]
