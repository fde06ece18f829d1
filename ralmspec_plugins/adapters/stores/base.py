"""Base class of batch searches: the settings of a host, and its order of ties."""

import asyncio
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Coroutine, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

from ralmspec_plugins.adapters.batch_search import Scored, ScoreOf, Vector, note_repeat


class Ranked(Protocol):
    """A row of a store's response: its id, and a score that shows ties."""

    @property
    def id(self) -> Hashable:
        """The id of the row in the store."""
        ...

    @property
    def score(self) -> float:
        """The store's own score or distance."""
        ...


RowT = TypeVar("RowT")
RankedT = TypeVar("RankedT", bound=Ranked)
# Returns the best rows of many vectors, best first.
RowSearch: TypeAlias = Callable[[Sequence[Vector], int], list[list[RankedT]]]
AsyncRowSearch: TypeAlias = Callable[
    [Sequence[Vector], int], Coroutine[Any, Any, list[list[RankedT]]]
]
# Converts the rows of a whole batch to the host's documents.
DocumentsOf: TypeAlias = Callable[[Sequence[list[RowT]]], list[list[Scored]]]


def no_options() -> Mapping[str, Any]:
    """Return no options."""
    return {}


def no_relevance() -> None:
    """Return no conversion: relevances are computed by the host, query by query."""


class TieRecord:
    """How many of the recent queries of a store had a tie among their first rows. Thread-safe.

    Such queries are searched twice: widely, and as the host does. Where that is frequent, both
    searches start at the same time.

    >>> record = TieRecord()
    >>> record.observe([True, False, True])
    >>> record.frequent
    True
    """

    RECENT: Final = 32  # queries in the record
    FREQUENT: Final = 0.25  # share of them from which on both searches start together

    def __init__(self) -> None:
        """Create an empty record."""
        self._recent: deque[bool] = deque(maxlen=self.RECENT)
        self._lock = threading.Lock()

    def observe(self, tied: Sequence[bool]) -> None:
        """Record for each query of a batch whether it had to be searched again."""
        with self._lock:
            self._recent.extend(tied)

    @property
    def frequent(self) -> bool:
        """Whether a second search is likely."""
        with self._lock:
            return sum(self._recent) > self.FREQUENT * len(self._recent)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSearch(ABC, Generic[RowT]):
    """The batch call of one store, with the settings of one retriever of a host.

    A subclass adds the location of the rows (a collection, a table, an index) and their
    search. Replaceable parts of the host's store object are passed as functions, and
    read at each search, so that changes take effect.

    Args:
        k: the number of documents of the retriever.
        documents: converts the rows of each query to the host's documents; of a batch in one
            call, since a host may fetch contents from elsewhere.
        options: the arguments of the client that restrict the search, from the host's
            settings; may raise the host's own error.
        shown: converts the store's score to the host's; `None`: there is no such conversion.
        relevance: returns the conversion of scores to relevances, for a host with a
            threshold; `None` if a batch does not provide them.
        ties: of recent queries.
    """

    k: int
    documents: DocumentsOf[RowT]
    options: Callable[[], Mapping[str, Any]] = no_options
    shown: ScoreOf | None = None
    relevance: Callable[[], ScoreOf | None] = no_relevance
    ties: TieRecord = field(default_factory=TieRecord, compare=False, repr=False)

    @property
    def score_of(self) -> ScoreOf | None:
        """Return what makes the host's scores of the metric's values, for guesses."""
        shown = self.shown
        return None if shown is None else lambda value: shown(self.stored_score(value))

    def stored_score(self, value: float) -> float:
        """Return the store's score for a cosine, a product or a squared distance."""
        return value

    def own_documents(self, found: Sequence[list[RowT]], own: int) -> list[list[Scored]]:
        """Return the documents of wide searches, without later ones if earlier ones are missing.

        A host that omits rows (such as those without a text) of the first
        `own` returns fewer documents: later rows must not replace them.

        Args:
            found: the rows of each query, best first.
            own: the number of rows that the host itself requests.
        """
        made = self.documents(found)
        left_out = [
            at for at, rows in enumerate(found) if len(made[at]) < len(rows) and len(rows) > own
        ]
        first = self.documents([found[at][:own] for at in left_out]) if left_out else []
        for at, documents in zip(left_out, first, strict=True):
            if len(documents) < own:
                made[at] = documents
        return made

    @abstractmethod
    def search(self, vectors: Sequence[Vector], k: int) -> list[list[Scored]]:
        """Return the best k documents of each query; those beyond the own k are prefetched."""


# Wider searches that start with the search for k, also with ties in another order.


def decided(scores: Sequence[float], k: int) -> bool:
    """Return whether a tie decided the order or the set of the first k.

    NaN has no order, so it ties with everything.

    >>> decided([3.0, 2.0, 2.0], 1), decided([3.0, 2.0, 2.0], 2)
    (False, True)
    """
    first = scores[: k + 1]
    return any(not (left < right or left > right) for left, right in pairwise(first))


def own_first(
    search: RowSearch[RankedT],
    vectors: Sequence[Vector],
    own: int,
    width: int,
    ties: TieRecord | None = None,
) -> list[list[RankedT]]:
    """Return the rows of a wide search that starts with the search for `own` rows.

    With a tie among the first rows or at their end, their order may depend on the
    width: such queries are searched narrowly too, and the other rows are appended. Where ties
    are frequent, the narrow search of all queries runs in parallel with the wide one, else
    after it.

    Args:
        search: returns the rows of each vector, best first, up to a number.
        vectors: the query vectors.
        own: the number of rows that equal those of the narrow search.
        width: the total number of rows.
        ties: of the store's recent queries; this search is added. `None`: the searches never
            run in parallel.
    """
    if width <= own:
        return search(vectors, width)
    if ties is None or not ties.frequent:
        found = search(vectors, width)
        doubtful = tied(found, own, ties)
        if doubtful:
            note_repeat(len(doubtful))
            put_first(found, doubtful, search([vectors[at] for at in doubtful], own))
        return found
    note_repeat(len(vectors))
    with ThreadPoolExecutor(1) as thread:
        narrow = thread.submit(copy_context().run, search, vectors, own)
        found = search(vectors, width)
        doubtful = tied(found, own, ties)
        if doubtful:
            put_first(found, doubtful, [narrow.result()[at] for at in doubtful])
    return found


async def aown_first(
    search: AsyncRowSearch[RankedT],
    vectors: Sequence[Vector],
    own: int,
    width: int,
    ties: TieRecord,
) -> list[list[RankedT]]:
    """Return the rows of `own_first`, by an asynchronous search."""
    if width <= own:
        return await search(vectors, width)
    if not ties.frequent:
        found = await search(vectors, width)
        doubtful = tied(found, own, ties)
        if doubtful:
            note_repeat(len(doubtful))
            put_first(found, doubtful, await search([vectors[at] for at in doubtful], own))
        return found
    note_repeat(len(vectors))
    narrow = asyncio.create_task(search(vectors, own))
    try:
        found = await search(vectors, width)
        doubtful = tied(found, own, ties)
        if doubtful:
            first = await narrow
            put_first(found, doubtful, [first[at] for at in doubtful])
    finally:
        narrow.cancel()
        await asyncio.gather(narrow, return_exceptions=True)
    return found


def tied(found: Sequence[Sequence[Ranked]], own: int, ties: TieRecord | None) -> list[int]:
    """Return the queries whose first rows may differ in a narrower search, and record them."""
    doubtful = [decided([row.score for row in rows[: own + 1]], own) for rows in found]
    if ties is not None:
        ties.observe(doubtful)
    return [at for at, doubt in enumerate(doubtful) if doubt]


def put_first(
    found: list[list[RankedT]], places: Sequence[int], narrow: Sequence[Sequence[RankedT]]
) -> None:
    """Put the rows of narrow searches before the other rows of wide ones."""
    for at, rows in zip(places, narrow, strict=True):
        first = {row.id for row in rows}
        found[at] = [*rows, *(row for row in found[at] if row.id not in first)]
