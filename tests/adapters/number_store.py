"""A host for tests: a store of numbers on a line, searched for those next to a number."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ralmspec_plugins.adapters.batch_search import Scored
from ralmspec_plugins.adapters.retriever import HostSearch
from ralmspec_plugins.adapters.retriever_state import (
    Cut,
    HitPayload,
    Native,
    QueryPayload,
    RetrieverSnapshot,
    RetrieverState,
    all_of,
    payload_of,
)
from ralmspec_plugins.types import Hit, Hits, Passage, Query


@dataclass
class NumberStore:
    """Numbers, and the calls that were made: with one query, and with many."""

    numbers: list[float]
    k: int = 2
    singles: list[tuple[str, Any]] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    def nearest(self, number: float, k: int) -> list[tuple[float, float]]:
        ranked = sorted(self.numbers, key=lambda one: (abs(one - number), one))[:k]
        return [(one, -abs(one - number)) for one in ranked]


@dataclass
class NumberSearch:
    """The store's batch search; `bend` may make its scores wrong."""

    store: NumberStore
    k: int
    exact: bool = True
    wide: bool = True
    bend: Callable[[float], float] = float
    name: str = "numbers"
    metric: None = None
    signature: Hashable = "numbers"

    def search(self, vectors: Sequence[float], k: int) -> list[list[Scored]]:
        self.store.batches.append(len(vectors))
        if any(vector != vector for vector in vectors):
            raise ValueError("not a number, among others")
        found = [self.store.nearest(vector, k) for vector in vectors]
        return [[Scored(one, one, self.bend(score)) for one, score in own] for own in found]


class NumberEmbedder:
    """Reads a number; the asynchronous way leaves a mark."""

    def embed(self, text: str) -> QueryPayload:
        return QueryPayload(float(text))

    async def aembed(self, text: str) -> QueryPayload:
        return QueryPayload(float(text), recording="awaited")


def hit_of(number: float, score: float) -> Hit:
    return Hit(Passage(str(number), f"the number {number}"), score, HitPayload(number))


@dataclass(frozen=True)
class NumberHost:
    """The store as one caller calls it."""

    store: NumberStore
    calls: str = "nobody"

    @property
    def retriever(self) -> NumberStore:
        return self.store

    def look_at(self) -> tuple[Hashable, int]:
        return ("numbers", self.store.k), self.store.k

    def single(self, look: RetrieverSnapshot, query: Query) -> Hits:
        self.store.singles.append((query.text, payload_of(query).calls))
        number = float(query.text)
        if number != number:
            raise ArithmeticError("the store knows no such number")
        k = self.store.k if look.fixed is None else look.fixed
        return tuple(hit_of(*one) for one in self.store.nearest(number, k))

    async def asingle(self, look: RetrieverSnapshot, query: Query) -> Hits:
        return self.single(look, query)

    def hits_of(self, found: Sequence[Scored]) -> Hits:
        return tuple(hit_of(one.document, one.score or 0.0) for one in found)

    def nobodys(self) -> "NumberHost":
        return replace(self, calls="nobody")

    def unheard(self, query: Query) -> Query:
        return Query(query.text, QueryPayload(calls="unheard"))


def prepared(
    signature: Hashable,
    k: int,
    *,
    store: NumberStore,
    search: Callable[..., Any] | None,
    pure: bool = True,
    cut: Cut = all_of,
    fixed: bool = True,
    **more: bool,
) -> RetrieverSnapshot:
    native = None if search is None else Native(search(store, k), NumberEmbedder(), cut)
    return RetrieverSnapshot(signature, native, k, pure, k if fixed else None, **more)


def searching(
    store: NumberStore,
    search: Callable[..., Any] | None = NumberSearch,
    *,
    side_by_side: int = 2,
    **options: Any,
) -> HostSearch[NumberHost]:
    """Make the core's retriever over a store; without `search` it is a black box."""
    known = RetrieverState(partial(prepared, store=store, search=search, **options))
    return HostSearch(NumberHost(store), known, side_by_side)
