"""Exact search of a datastore: every key is scored, float64 decides, whatever the batch."""

from collections.abc import Hashable, Sequence

from ralmspec_plugins.errors import InputError
from ralmspec_plugins.knn.datastore import Datastore
from ralmspec_plugins.knn.neighbours import Neighbours
from ralmspec_plugins.knn.search_keys import HELD_BYTES, Keys, hidden_states
from ralmspec_plugins.retrieval.corpus import check_k
from ralmspec_plugins.retrieval.scan import InTurn, OwnThreads, Scan
from ralmspec_plugins.types import Query

_QUERIES_AT_ONCE = 64


class ExactSearch:
    """Gives the true k nearest entries, ties by id: the same bits in any batch.

    float32 products nominate, with a margin that is certified to hold the true
    neighbours; these are measured again in float64 and put in order. A batch goes
    through the keys once, so 16 queries take little longer than one.
    """

    exact = True
    pure = True
    inline_encode = True  # there is nothing to encode: queries are hidden states already

    def __init__(
        self,
        datastore: Datastore,
        *,
        k: int = 1024,
        memory_bytes: int = HELD_BYTES,
        threads: int | None = None,
    ) -> None:
        """Search a datastore.

        Args:
            datastore: whose keys may be memory-mapped.
            k: how many neighbours a query gets; all entries where there are fewer.
            memory_bytes: how much a float32 copy of the keys may take (2 GiB). Keys beyond it
                stay on the disk, and are widened at each search, once for all its queries.
            threads: scan on so many threads of our own, with numpy's BLAS held to one thread in
                the whole process; None leaves the threads to BLAS. The bits are the same.

        Raises:
            ConfigError: k or threads below 1, or less than no memory.
            MissingExtraError: threads are asked for, and threadpoolctl is not installed.
        """
        self.k = check_k(k)
        self._scan: Scan = InTurn() if threads is None else OwnThreads(threads)
        self.keys = Keys(datastore, memory_bytes)
        self.datastore = datastore
        self.size = len(datastore)
        self.signature: Hashable = ("knn-exact", k, datastore.signature)

    def encode(self, text: str) -> Query:
        """Refuse a text: the model's hidden states are the queries.

        Raises:
            InputError: always.
        """
        return encode_no_text(text)

    def search(self, queries: Sequence[Query]) -> list[Neighbours]:
        """Find the k nearest entries of each query."""
        return self.search_wide(queries, self.k)

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Neighbours]:
        """Find the `width` nearest entries of each query.

        Raises:
            InputError: a query without hidden state, of another dimension, or with NaN.
        """
        check_k(width)
        if not queries:
            return []
        keys = self.keys
        matrix = hidden_states(queries, keys.dimension)
        found = []
        for start in range(0, len(matrix), _QUERIES_AT_ONCE):
            batch = matrix[start : start + _QUERIES_AT_ONCE]
            for query, ids in zip(batch, self._scan(keys, batch, width), strict=True):
                found.append(keys.ranked(ids, query, width))
        return found


def encode_no_text(text: str) -> Query:
    """Refuse to encode a text.

    Raises:
        InputError: always.
    """
    raise InputError(
        f"a datastore is searched with hidden states, not with texts, got {text!r}; "
        "give a Query whose encoding is one"
    )
