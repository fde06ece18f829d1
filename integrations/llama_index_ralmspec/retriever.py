"""A retriever in front of another one: the same nodes, with fewer calls of the store."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.prompts.mixin import PromptDictType, PromptMixinType
from llama_index.core.schema import NodeWithScore, QueryBundle

from llama_index_ralmspec.callbacks import tell_retrieval
from llama_index_ralmspec.documents import nodes_of, passage_of
from llama_index_ralmspec.host_retriever import HostRetriever
from llama_index_ralmspec.inspection import check_retriever
from ralmspec_plugins.adapters.arguments import suggests
from ralmspec_plugins.adapters.retriever import all_or_first_error
from ralmspec_plugins.adapters.retriever_service import (
    RetrieverCall,
    RetrieverRuntime,
    RetrieverService,
    ServedRetriever,
    agreeing,
    check_caches,
    check_pairs,
    completed,
    outcomes,
)
from ralmspec_plugins.adapters.retriever_state import BatchMode, check_way
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.speculators.passage_cache import SharedPassageCache
from ralmspec_plugins.speculators.query_cache import QueryCache

Asked: TypeAlias = str | QueryBundle
THREADS: Final = min(32, (os.cpu_count() or 1) + 4)  # as many as Python's own pools of threads


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a guess was right, and the nodes that are, in every case, with their scores."""

    right: bool
    nodes: list[NodeWithScore]


class SpeculativeRetriever(ServedRetriever, BaseRetriever):
    """Gives exactly the nodes of `retriever`, and calls its store as rarely as it can.

    Calls that come while a search is running share the next one, and `retrieve_batch` is one
    search, where the store has a batch search that is known to give the same (see
    `batching`). What was found before is remembered only where you say so, with a
    `memo`: nobody else knows whether the index changes meanwhile (call `invalidate` when
    it has). Everything that answers depend on (filters, `similarity_top_k`, a query's own
    embedding) keeps calls apart.

    A retriever that is known to answer differently each time, or to write, is
    passed straight through. Asynchronous calls never hold up the event loop.
    """

    keeps_the_loop: Final = True  # its searches belong to the event loop of its callers

    @suggests
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
            memo: remembers answers, with a size and a time to live, until `invalidate` is called.
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
        check_caches(memo, pool, pure)
        for name, number in (("max_batch", max_batch), ("lanes", lanes)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ConfigError(f"{name} must be at least 1, got {number!r}")
        self._retriever = retriever
        super().__init__(
            callback_manager=callback_manager or getattr(retriever, "callback_manager", None),
            object_map=getattr(retriever, "object_map", None),
            verbose=getattr(retriever, "_verbose", False),
        )
        self._service: RetrieverService[HostRetriever] = RetrieverService(
            RetrieverRuntime(),
            HostRetriever,
            retriever,
            memo=memo,
            pool=pool,
            batching=batching,
            max_batch=max_batch,
            lanes=lanes,
            side_by_side=side_by_side,
            pure=pure,
        )

    @property
    def retriever(self) -> BaseRetriever:
        """The one that answers."""
        return self._retriever

    def _call(self, bundle: QueryBundle) -> RetrieverCall[HostRetriever]:
        return self._service.call(bundle.query_str, self._service.host.for_call(bundle))

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        call = self._call(query_bundle)
        answers = completed(self._service.answers([call], 1, asynchronous=False))
        [hits] = all_or_first_error(answers)
        call.host.embed_into(query_bundle)
        return nodes_of(hits)

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        call = self._call(query_bundle)
        [hits] = all_or_first_error(await self._service.answers([call], 1, asynchronous=True))
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
        found = completed(self._found(queries, asynchronous=False))
        return found if return_exceptions else all_or_first_error(found)

    async def aretrieve_batch(
        self, queries: Sequence[Asked], *, return_exceptions: bool = False
    ) -> list[Any]:
        """Do what `retrieve_batch` does on an event loop.

        Raises:
            Exception: the first error, unless they are to be returned.
        """
        found = await self._found(queries, asynchronous=True)
        return found if return_exceptions else all_or_first_error(found)

    async def _found(self, queries: Sequence[Asked], *, asynchronous: bool) -> list[Any]:
        """Retrieve for many queries, each with its nodes or its own error."""
        bundles = [_bundle(query) for query in queries]
        calls, at_once = [self._call(one) for one in bundles], self._service.side_by_side
        if any(call.look.native is None for call in calls):  # the host tells of each by itself
            singly = [(self, one) for one in bundles]
            return await outcomes("retrieve", singly, at_once, asynchronous=asynchronous)
        answers = await self._service.answers(calls, at_once, asynchronous=asynchronous)
        found: list[Any] = []
        for call, answer in zip(calls, answers, strict=True):
            if isinstance(answer, Exception):
                found.append(answer)
            else:
                tell_retrieval(call.text, answer)
                found.append(nodes_of(answer))
        return found

    def guess(self, query: Asked) -> list[NodeWithScore] | None:
        """Say what `retrieve` is expected to give, without a search; `None`: nothing is known.

        The memo knows it exactly; the pool takes the best of what was found before.
        """
        call = self._call(_bundle(query))
        hits = completed(self._service.guess(call, asynchronous=False))
        return None if hits is None else nodes_of(hits)

    async def aguess(self, query: Asked) -> list[NodeWithScore] | None:
        """Do what `guess` does with the embedder's asynchronous method."""
        hits = await self._service.guess(self._call(_bundle(query)), asynchronous=True)
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

    def _get_prompts(self) -> PromptDictType:
        return self._retriever._get_prompts()  # noqa: SLF001 they are the wrapped one's

    def _get_prompt_modules(self) -> PromptMixinType:
        return self._retriever._get_prompt_modules()  # noqa: SLF001

    def _update_prompts(self, prompts: PromptDictType) -> None:
        self._retriever._update_prompts(prompts)  # noqa: SLF001


def _bundle(query: Asked) -> QueryBundle:
    return QueryBundle(query) if isinstance(query, str) else query


def _verdicts(
    guesses: Sequence[Sequence[NodeWithScore] | None], truths: Sequence[list[NodeWithScore]]
) -> list[Verdict]:
    right = agreeing(guesses, truths, lambda one: passage_of(one.node))
    return [Verdict(good, truth) for good, truth in zip(right, truths, strict=True)]
