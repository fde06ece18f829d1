"""What guesses the hits of a search before they are there: memo, pool and replica."""

from ralmspec_plugins.speculation.eviction import POLICIES
from ralmspec_plugins.speculation.memo import Memo
from ralmspec_plugins.speculation.pool import PassagePool
from ralmspec_plugins.speculation.proxy import Bm25ProxyTable, EmbeddingProxyTable, ProxyTable
from ralmspec_plugins.speculation.replica import Replica
from ralmspec_plugins.speculation.shared import SharedPool

__all__ = [
    "POLICIES",
    "Bm25ProxyTable",
    "EmbeddingProxyTable",
    "Memo",
    "PassagePool",
    "ProxyTable",
    "Replica",
    "SharedPool",
]
