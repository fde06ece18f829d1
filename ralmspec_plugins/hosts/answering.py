"""Answers the calls of a retriever in front of a host's: by the memo, or one search for many."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from ralmspec_plugins.config import Settings
from ralmspec_plugins.hosts.native import Look
from ralmspec_plugins.hosts.retriever import HostSearch
from ralmspec_plugins.hosts.serving import Place, Serving, Way
from ralmspec_plugins.hosts.side_by_side import aeach, each
from ralmspec_plugins.speculators.passage_cache import SharedPool
from ralmspec_plugins.speculators.query_cache import Memo
from ralmspec_plugins.types import Hits, Query


@dataclass(frozen=True, slots=True)
class Call:
    """One question with its caller's settings; its retriever as it is at this moment."""

    text: str
    host: HostSearch[Any]
    look: Look
    place: Place

    @property
    def unencoded(self) -> Query:
        """The question as it stands, for the memo and for what is only passed on."""
        return self.host.unencoded(self.text)


@dataclass(frozen=True, slots=True)
class Answering:
    """Finds what the wrapped retriever finds. Thread-safe.

    What is looked into goes through one line in front of the store, where calls
    that come together are searched together. A black box is called as the host
    would call it: nothing is gained by waiting for others.
    """

    serving: Serving
    way: Way[Any]
    memo: Memo | None
    pool: SharedPool | None

    def call(self, text: str, host: HostSearch[Any]) -> Call:
        """Take a question; nothing is searched yet.

        Args:
            text: what is asked.
            host: the wrapped retriever with the settings of this call.
        """
        look = host.look()
        if not look.pure:
            self.serving.warn_once(self.way.retriever)
        return Call(text, host, look, self.serving.place(self.way, host, look))

    def answer(self, call: Call) -> Hits:
        """Answer one question."""
        hits = self._asked(call)
        return self._fresh(call) if hits is None else hits

    def _fresh(self, call: Call) -> Hits:
        query = call.unencoded if call.look.native is None else call.host.encode(call.text)
        return self._search(call, [query])[0]

    def answers(self, calls: Sequence[Call], at_once: int) -> list[Hits | Exception]:
        """Answer many questions, each with its hits or its own error."""
        answers: dict[int, Hits | Exception] = {}
        for place in self._by_place(calls, answers):
            self._answer_place([(at, calls[at]) for at in place], answers, at_once)
        return [answers[at] for at in range(len(calls))]

    def _by_place(
        self, calls: Sequence[Call], answers: dict[int, Hits | Exception]
    ) -> list[list[int]]:
        """Answer what is remembered, and list the rest by where it is searched."""
        places: dict[Hashable, list[int]] = {}
        for at, call in enumerate(calls):
            hits = self._asked(call)
            if hits is None:
                places.setdefault(call.look.signature, []).append(at)
            else:
                answers[at] = hits
        return list(places.values())

    def _answer_place(
        self,
        asked: Sequence[tuple[int, Call]],
        answers: dict[int, Hits | Exception],
        at_once: int,
    ) -> None:
        numbers, calls = [at for at, _ in asked], [call for _, call in asked]
        if calls[0].look.native is None:
            answers.update(zip(numbers, each(self._fresh, calls, at_once), strict=True))
            return
        queries = each(lambda call: call.host.encode(call.text), calls, at_once)
        good = [query for query in queries if isinstance(query, Query)]
        try:
            found: Sequence[Hits | Exception] = self._search(calls[0], good) if good else []
        except Exception:  # noqa: BLE001 whose it is shows when each is asked alone
            found = each(lambda query: self._search(calls[0], [query])[0], good, at_once)
        answers.update(_in_place(numbers, queries, found))

    def _search(self, call: Call, queries: Sequence[Query]) -> list[Hits]:
        """Search queries of one signature, and learn what was found."""
        searcher: Any = call.host if call.look.native is None else call.place.line
        width = self._width(call, searcher)
        if width is None:
            found = list(searcher.search(queries))
        else:
            found = searcher.search_wide(queries, width)
        return self._learned(call, queries, found, width)

    def _asked(self, call: Call) -> Hits | None:
        """Count a question; answer it if the memo can."""
        hits = None
        if self.memo is not None and call.look.pure:
            hits = self.memo.known(call.look.signature, call.unencoded)
        self.serving.note(remembered=hits is not None)
        return hits

    def _width(self, call: Call, searcher: Any) -> int | None:
        """Say how wide to search for the pool's sake, where a wider search is the same one."""
        if call.look.k is None or self._pool(call) is None or not hasattr(searcher, "search_wide"):
            return None
        return Settings().width(call.look.k)

    def _learned(
        self, call: Call, queries: Sequence[Query], found: list[Hits], width: int | None
    ) -> list[Hits]:
        """Remember, and give back what was asked for."""
        exactly = [hits if width is None else hits[: call.look.k] for hits in found]
        pool = self._pool(call)
        if not call.look.pure or (self.memo is None and pool is None):
            return exactly
        if call.host.signature != call.look.signature:
            return exactly  # found under other settings, for all that is known
        for query, hits, wide in zip(queries, exactly, found, strict=True):
            if self.memo is not None:
                self.memo.learn(call.look.signature, query, hits)
            if pool is not None:
                pool.of(call.place.host).learn(query, wide)
        return exactly

    def _pool(self, call: Call) -> SharedPool | None:
        """Give the pool for a call, unless nobody else could use what it finds."""
        return self.pool if call.look.pure and not call.look.passing else None

    def guess(self, call: Call) -> Hits | None:
        """Say what a search is expected to find, without one."""
        known, pool = self._known(call), self._pool(call)
        if known is not None or pool is None:
            return known
        return pool.of(call.place.host).guess(call.host.encode(call.text))

    def _known(self, call: Call) -> Hits | None:
        if self.memo is None or not call.look.pure:
            return None
        return self.memo.known(call.look.signature, call.unencoded)

    async def aguess(self, call: Call) -> Hits | None:
        """Do what `guess` does with the embedder's asynchronous method."""
        known, pool = self._known(call), self._pool(call)
        if known is not None or pool is None:
            return known
        return pool.of(call.place.host).guess(await call.host.aencode(call.text))

    async def aanswer(self, call: Call) -> Hits:
        """Answer one question, by the host's asynchronous methods."""
        hits = self._asked(call)
        return await self._afresh(call) if hits is None else hits

    async def _afresh(self, call: Call) -> Hits:
        native = call.look.native is not None
        query = await call.host.aencode(call.text) if native else call.unencoded
        return (await self._asearch(call, [query]))[0]

    async def aanswers(self, calls: Sequence[Call], at_once: int) -> list[Hits | Exception]:
        """Answer many questions, each with its hits or its own error."""
        answers: dict[int, Hits | Exception] = {}
        for place in self._by_place(calls, answers):
            await self._aanswer_place([(at, calls[at]) for at in place], answers, at_once)
        return [answers[at] for at in range(len(calls))]

    async def _aanswer_place(
        self,
        asked: Sequence[tuple[int, Call]],
        answers: dict[int, Hits | Exception],
        at_once: int,
    ) -> None:
        numbers, calls = [at for at, _ in asked], [call for _, call in asked]
        if calls[0].look.native is None:
            answers.update(zip(numbers, await aeach(self._afresh, calls, at_once), strict=True))
            return
        queries = await aeach(lambda call: call.host.aencode(call.text), calls, at_once)
        good = [query for query in queries if isinstance(query, Query)]
        try:
            found: Sequence[Hits | Exception] = await self._asearch(calls[0], good) if good else []
        except Exception:  # noqa: BLE001 whose it is shows when each is asked alone

            async def alone(query: Query) -> Hits:
                return (await self._asearch(calls[0], [query]))[0]

            found = await aeach(alone, good, at_once)
        answers.update(_in_place(numbers, queries, found))

    async def _asearch(self, call: Call, queries: Sequence[Query]) -> list[Hits]:
        searcher: Any = call.host if call.look.native is None else call.place.line
        width = self._width(call, searcher)
        if width is None:
            found = list(await searcher.asearch(queries))
        else:
            found = await searcher.asearch_wide(queries, width)
        return self._learned(call, queries, found, width)


def _in_place(
    numbers: Sequence[int],
    queries: Sequence[Query | Exception],
    found: Sequence[Hits | Exception],
) -> dict[int, Hits | Exception]:
    """Give each question what was found for it, or why it could not be encoded."""
    rest = iter(found)
    return {
        at: next(rest) if isinstance(query, Query) else query
        for at, query in zip(numbers, queries, strict=True)
    }
