"""A retriever in front of another one: the same nodes, with fewer calls of the store."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.prompts.mixin import PromptDictType, PromptMixinType
from llama_index.core.schema import NodeWithScore, QueryBundle

from llama_index_ralmspec.callbacks import tell_retrieval
from llama_index_ralmspec.documents import nodes_of, passage_of
from llama_index_ralmspec.host_retriever import HostRetriever
from llama_index_ralmspec.inspection import check_retriever
from ralmspec_plugins.adapters.retriever import aeach, each
from ralmspec_plugins.adapters.retriever_service import (
    RetrieverCall,
    RetrieverConfig,
    RetrieverService,
    RetrieverStats,
    ServiceState,
    agreeing,
    check_pairs,
)
from ralmspec_plugins.adapters.retriever_state import BatchMode, check_way
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.speculators.passage_cache import SharedPassageCache
from ralmspec_plugins.speculators.query_cache import QueryCache
from ralmspec_plugins.types import Hits

Asked: TypeAlias = str | QueryBundle
THREADS: Final = min(32, (os.cpu_count() or 1) + 4)  # as many as Python's own pools of threads


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a guess was right, and the nodes that are, in every case, with their scores."""

    right: bool
    nodes: list[NodeWithScore]


class SpeculativeRetriever(BaseRetriever):
    """Gives exactly the nodes of `retriever`, and calls its store as rarely as it can.

    Calls that come while a search is running share the next one, and `retrieve_batch` is one
    search, where the store has a batch search that is known to give the same (see
    `batching`). What was found before is remembered only where you say so, with a
    `memo`: nobody else knows whether the index changes meanwhile. Everything that
    answers depend on (filters, `similarity_top_k`, a query's own embedding) keeps calls apart.

    A retriever that is known to answer differently each time, or to write, is
    passed straight through. Asynchronous calls never hold up the event loop.
    """

    keeps_the_loop: Final = True  # its searches belong to the event loop of its callers

    def __init__(
        self,
        retriever: BaseRetriever,
        memo: QueryCache | None = None,
        pool: SharedPassageCache | None = None,
        batching: BatchMode = "exact",
        max_batch: int = 64,
        lanes: int = 1,
        side_by_side: int = THREADS,
        pure: bool | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        """Wrap a retriever; nothing is called yet.

        Args:
            retriever: the one that answers.
            memo: remembers answers, with a size and a time to live; only if the index does
                not change.
            pool: collects what was found, for `guess`.
            batching: which batch searches are used: "exact" by construction, also "probed"
                ones, or "off".
            max_batch: the most queries in one search.
            lanes: searches of the store that may be out at a time; more than one only for a
                server.
            side_by_side: single calls at a time in `retrieve_batch`.
            pure: whether equal queries find equal nodes, without side effects; found out by
                default.
            callback_manager: the host's; that of `retriever` by default.

        Raises:
            ConfigError: the message says why.
        """
        check_retriever(retriever)
        check_way(batching, side_by_side)
        for name, number in (("max_batch", max_batch), ("lanes", lanes)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ConfigError(f"{name} must be at least 1, got {number!r}")
        self._retriever = retriever
        super().__init__(
            callback_manager=callback_manager or getattr(retriever, "callback_manager", None),
            object_map=getattr(retriever, "object_map", None),
            verbose=getattr(retriever, "_verbose", False),
        )
        numbers = max_batch, lanes, side_by_side
        way: RetrieverConfig[HostRetriever] = RetrieverConfig(
            HostRetriever, retriever, batching, *numbers, pure
        )
        self._serving = ServiceState()
        self._answering = RetrieverService(self._serving, way, memo, pool)
        self._way = way

    @property
    def retriever(self) -> BaseRetriever:
        """The one that answers."""
        return self._retriever

    def _host(self, query: QueryBundle) -> HostRetriever:
        return self._serving.host(self._way).for_call(query)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        host = self._host(query_bundle)
        hits = self._answering.answer(self._answering.call(query_bundle.query_str, host))
        host.embed_into(query_bundle)
        return nodes_of(hits)

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        host = self._host(query_bundle)
        hits = await self._answering.aanswer(self._answering.call(query_bundle.query_str, host))
        return nodes_of(hits)

    def _handle_recursive_retrieval(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
    ) -> list[NodeWithScore]:
        """Leave nodes as they are: the wrapped retriever has gone into them."""
        return nodes

    async def _ahandle_recursive_retrieval(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
    ) -> list[NodeWithScore]:
        return nodes

    def retrieve_batch(
        self, queries: Sequence[Asked], *, return_exceptions: bool = False
    ) -> list[Any]:
        """Give what `retrieve` gives for each query, by one search where the store can.

        Args:
            queries: texts or bundles.
            return_exceptions: whether an error stands in the place of a query's nodes,
                instead of being raised when all are done.

        Raises:
            Exception: the first error, unless they are to be returned.
        """
        bundles = [_bundle(query) for query in queries]
        calls, at_once = self._calls(bundles), self._way.side_by_side
        if not _merged(calls):
            outcomes = each(self.retrieve, bundles, at_once)
        else:
            outcomes = _retrieved(calls, self._answering.answers(calls, at_once))
        return _outcomes(outcomes, return_exceptions=return_exceptions)

    async def aretrieve_batch(
        self, queries: Sequence[Asked], *, return_exceptions: bool = False
    ) -> list[Any]:
        """Do what `retrieve_batch` does on an event loop.

        Raises:
            Exception: the first error, unless they are to be returned.
        """
        bundles = [_bundle(query) for query in queries]
        calls, at_once = self._calls(bundles), self._way.side_by_side
        if not _merged(calls):
            outcomes = await aeach(self.aretrieve, bundles, at_once)
        else:
            outcomes = _retrieved(calls, await self._answering.aanswers(calls, at_once))
        return _outcomes(outcomes, return_exceptions=return_exceptions)

    def guess(self, query: Asked) -> list[NodeWithScore] | None:
        """Say what `retrieve` is expected to give, without a search; `None`: nothing is known.

        The memo knows it exactly; the pool takes the best of what was found before.
        """
        [call] = self._calls([_bundle(query)])
        hits = self._answering.guess(call)
        return None if hits is None else nodes_of(hits)

    async def aguess(self, query: Asked) -> list[NodeWithScore] | None:
        """Do what `guess` does with the embedder's asynchronous method."""
        [call] = self._calls([_bundle(query)])
        hits = await self._answering.aguess(call)
        return None if hits is None else nodes_of(hits)

    def verify(
        self, queries: Sequence[Asked], guesses: Sequence[Sequence[NodeWithScore] | None]
    ) -> list[Verdict]:
        """Search all queries at once, and compare: the same nodes in the same order.

        Raises:
            InputError: not as many guesses as queries.
        """
        check_pairs(queries, guesses)
        return _verdicts(guesses, self.retrieve_batch(queries))

    async def averify(
        self, queries: Sequence[Asked], guesses: Sequence[Sequence[NodeWithScore] | None]
    ) -> list[Verdict]:
        """Do what `verify` does on an event loop.

        Raises:
            InputError: not as many guesses as queries.
        """
        check_pairs(queries, guesses)
        return _verdicts(guesses, await self.aretrieve_batch(queries))

    def _calls(self, bundles: Sequence[QueryBundle]) -> list[RetrieverCall]:
        return [self._answering.call(one.query_str, self._host(one)) for one in bundles]

    def _get_prompts(self) -> PromptDictType:
        return self._retriever._get_prompts()  # noqa: SLF001 they are the wrapped one's

    def _get_prompt_modules(self) -> PromptMixinType:
        return self._retriever._get_prompt_modules()  # noqa: SLF001

    def _update_prompts(self, prompts: PromptDictType) -> None:
        self._retriever._update_prompts(prompts)  # noqa: SLF001

    @property
    def stats(self) -> RetrieverStats:
        """What was asked so far, and what of it reached the store."""
        return self._serving.stats

    def clear(self) -> None:
        """Forget what was found, for when the index has changed."""
        for kept in (self._answering.memo, self._answering.pool):
            if kept is not None:
                kept.clear()

    def close(self) -> None:
        """Wait for searches in threads, and let the threads go; later calls start new ones."""
        self._serving.close()

    def __enter__(self) -> Self:
        """Use as a context manager."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


def _bundle(query: Asked) -> QueryBundle:
    return QueryBundle(query) if isinstance(query, str) else query


def _retrieved(
    calls: Sequence[RetrieverCall], answers: Sequence[Hits | Exception]
) -> list[list[NodeWithScore] | Exception]:
    """Return the nodes of searches that were made together, and tell an event for each."""
    outcomes: list[list[NodeWithScore] | Exception] = []
    for call, answer in zip(calls, answers, strict=True):
        if isinstance(answer, Exception):
            outcomes.append(answer)
        else:
            tell_retrieval(call.text, answer)
            outcomes.append(nodes_of(answer))
    return outcomes


def _merged(calls: Sequence[RetrieverCall]) -> bool:
    """Whether these are searched together: all are looked into."""
    return all(call.look.native is not None for call in calls)


def _outcomes(outcomes: Sequence[Any], *, return_exceptions: bool) -> list[Any]:
    for outcome in outcomes:
        if isinstance(outcome, Exception) and not return_exceptions:
            raise outcome
    return list(outcomes)


def _verdicts(
    guesses: Sequence[Sequence[NodeWithScore] | None], truths: Sequence[list[NodeWithScore]]
) -> list[Verdict]:
    right = agreeing(guesses, truths, lambda one: passage_of(one.node))
    return [Verdict(good, truth) for good, truth in zip(right, truths, strict=True)]
