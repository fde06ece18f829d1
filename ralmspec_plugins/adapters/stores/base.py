"""What the batch searches of all stores share: a host's settings, and ties decided its way."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from ralmspec_plugins.adapters.batch_search import Scored, ScoreOf, Vector


class Ranked(Protocol):
    """A row of a store's answer: its id, and a score that ties can be seen by."""

    @property
    def id(self) -> Hashable:
        """Name the row within the store."""
        ...

    @property
    def score(self) -> float:
        """Return the store's own score or distance."""
        ...


RowT = TypeVar("RowT")
RankedT = TypeVar("RankedT", bound=Ranked)
# Searches many vectors for so many rows each, best first.
RowSearch: TypeAlias = Callable[[Sequence[Vector], int], list[list[RankedT]]]
# Makes a host's documents of each query's rows, of a whole batch at once.
DocumentsOf: TypeAlias = Callable[[Sequence[list[RowT]]], list[list[Scored]]]


def no_options() -> Mapping[str, Any]:
    """Narrow nothing."""
    return {}


def no_relevance() -> None:
    """Have no relevances: the host is asked for them, query by query."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSearch(ABC, Generic[RowT]):
    """The batch call of one store, with the settings of one retriever of a host.

    A store's class adds where its rows are (a collection, a table, an index) and asks for
    them. Whatever a host may exchange in its own store object is given as a function, and
    read again at each search, so that the search after a change finds what is there then.

    Args:
        k: how many documents the retriever asks for.
        documents: makes the host's documents of the rows of each query; of a batch in one
            call, since a host may fetch what it shows from elsewhere.
        options: what narrows the search, by the names of the client's arguments, as the host
            reads its settings; may raise the host's own error.
        shown: makes the host's score of the store's; `None`: the host shows none, or another.
        relevance: gives what makes relevances of the store's scores, for a host that cuts by
            them; `None` where they cannot be had from a batch.
    """

    k: int
    documents: DocumentsOf[RowT]
    options: Callable[[], Mapping[str, Any]] = no_options
    shown: ScoreOf | None = None
    relevance: Callable[[], ScoreOf | None] = no_relevance

    @property
    def score_of(self) -> ScoreOf | None:
        """Return what makes the host's scores of the metric's values, for guesses."""
        shown = self.shown
        return None if shown is None else lambda value: shown(self.stored_score(value))

    def stored_score(self, value: float) -> float:
        """Make the store's score of a cosine, a product or a squared distance."""
        return value

    def own_documents(self, found: Sequence[list[RowT]], own: int) -> list[list[Scored]]:
        """Make the documents of wide searches; none from behind where some are missing in front.

        A host that leaves out rows (such as those without a text) leaves them out of the first
        `own`, and then gives fewer: what comes behind must not take their places.

        Args:
            found: the rows of each query, best first.
            own: how many rows the host itself would have asked for.
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
        """Find the best k documents of each query; what lies behind the own k is for pools."""


# Wider searches that begin with the search for k, where ties were decided another way.


def decided(scores: Sequence[float], k: int) -> bool:
    """Return whether the order of the first k, or who is among them, was decided by a tie.

    NaN has no order, so it ties with everything.

    >>> decided([3.0, 2.0, 2.0], 1), decided([3.0, 2.0, 2.0], 2)
    (False, True)
    """
    first = scores[: k + 1]
    return any(not (left < right or left > right) for left, right in pairwise(first))


def own_first(
    search: RowSearch[RankedT], vectors: Sequence[Vector], own: int, width: int
) -> list[list[RankedT]]:
    """Search wide, so that the first rows are those of the search for `own` rows.

    Where a tie is among the first or at their end, who comes first may depend on the
    width: these are searched once more, and what else the wide search found is put behind.

    Args:
        search: gives the rows of each vector, best first, at most so many.
        vectors: what is searched for.
        own: how many rows are to be exactly those of the narrow search.
        width: how many are wanted in all.
    """
    found = search(vectors, width)
    doubtful = tied(found, own, width)
    if doubtful:
        put_first(found, doubtful, search([vectors[at] for at in doubtful], own))
    return found


def tied(found: Sequence[Sequence[Ranked]], own: int, width: int) -> list[int]:
    """List the queries whose first rows may be others in a narrower search."""
    if width <= own:
        return []
    return [
        at for at, rows in enumerate(found) if decided([row.score for row in rows[: own + 1]], own)
    ]


def put_first(
    found: list[list[RankedT]], places: Sequence[int], narrow: Sequence[Sequence[RankedT]]
) -> None:
    """Put the rows of narrow searches before what else wide ones found."""
    for at, rows in zip(places, narrow, strict=True):
        first = {row.id for row in rows}
        found[at] = [*rows, *(row for row in found[at] if row.id not in first)]
