"""Speculators, which guess the hits of a search: query cache, passage cache and replica."""

from ralmspec_plugins.speculators.passage_cache import POLICIES, PassageCache, SharedPassageCache
from ralmspec_plugins.speculators.proxy import (
    Bm25ProxyTable,
    EmbeddingProxyTable,
    FallbackTable,
    ProxyTable,
)
from ralmspec_plugins.speculators.query_cache import QueryCache
from ralmspec_plugins.speculators.repetition import Repetition
from ralmspec_plugins.speculators.replica import Replica

__all__ = [
    "POLICIES",
    "Bm25ProxyTable",
    "EmbeddingProxyTable",
    "FallbackTable",
    "PassageCache",
    "ProxyTable",
    "QueryCache",
    "Repetition",
    "Replica",
    "SharedPassageCache",
]
