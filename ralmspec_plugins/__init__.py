"""Speculative retrieval for iterative RAG: the same answers as the plain loop, sooner.

`Engine` (threads), `AsyncEngine` (asyncio) and `Simulation` (virtual time) put a
workload in front of a retriever; `plain()` is the definition of the right answer.
"""

from ralmspec_plugins.async_engine import AsyncEngine
from ralmspec_plugins.async_streams import AsyncAnswerStream, AsyncEventStream
from ralmspec_plugins.config import Settings
from ralmspec_plugins.engine import Engine
from ralmspec_plugins.latencies import Latencies
from ralmspec_plugins.plain import plain
from ralmspec_plugins.records import Answer, Hit, Hits, Passage, Query, Request, Retrieved
from ralmspec_plugins.schedule import Continuous, FixedStride, OptimalStride
from ralmspec_plugins.simulation import Simulation
from ralmspec_plugins.speculation.memo import Memo
from ralmspec_plugins.speculation.pool import PassagePool
from ralmspec_plugins.speculation.replica import Replica
from ralmspec_plugins.speculation.shared import SharedPool
from ralmspec_plugins.stats import Stats, VerifierStats
from ralmspec_plugins.streams import AnswerStream, EventStream
from ralmspec_plugins.verifier import Verifier

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "AnswerStream",
    "AsyncAnswerStream",
    "AsyncEngine",
    "AsyncEventStream",
    "Continuous",
    "Engine",
    "EventStream",
    "FixedStride",
    "Hit",
    "Hits",
    "Latencies",
    "Memo",
    "OptimalStride",
    "Passage",
    "PassagePool",
    "Query",
    "Replica",
    "Request",
    "Retrieved",
    "Settings",
    "SharedPool",
    "Simulation",
    "Stats",
    "Verifier",
    "VerifierStats",
    "plain",
]
