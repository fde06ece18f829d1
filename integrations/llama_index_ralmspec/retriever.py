"""A retriever over another one that returns the same nodes with fewer calls of the store."""

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
from ralmspec_plugins.arguments import suggests
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.speculators.passage_cache import SharedPassageCache
from ralmspec_plugins.speculators.query_cache import QueryCache

Asked: TypeAlias = str | QueryBundle
THREADS: Final = min(32, (os.cpu_count() or 1) + 4)  # as in Python's own thread pools


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a guess was right, and the nodes found in either case, with their scores."""

    right: bool
    nodes: list[NodeWithScore]


class SpeculativeRetriever(ServedRetriever, BaseRetriever):
    """Returns exactly the nodes of `retriever`, with as few calls of its store as possible.

    Calls that arrive while a search is running share the next one, and `retrieve_batch` is one
    search, if the store has a batch search that is known to return the same (see `batching`).
    Results are cached only with a `memo`, since only you know whether the index changes (call
    `invalidate` after a change). Calls share results only if everything that these depend on
    is equal (filters, `similarity_top_k`, a query's own embedding).

    A retriever that is known to have side effects, or to return different results for the
    same query, is called directly. Asynchronous calls never block the event loop.
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
            retriever: the wrapped retriever.
            memo: caches results, with a size and a time to live, until `invalidate` is called.
            pool: collects the nodes found, for `guess`.
            batching: which batch searches are used: "exact" by construction, "probed" ones too,
                or "off".
            max_batch: the maximum number of queries in one search.
            lanes: concurrent searches of the store; more than one is useful only for a server.
            side_by_side: concurrent single calls in `retrieve_batch`.
            pure: whether equal queries find equal nodes, without side effects; `None`:
                determined by the classes inside.
            callback_manager: the host's callback manager; that of `retriever` by default.

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
        """The wrapped retriever."""
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
        """Return the nodes unchanged: the wrapped retriever has processed them already."""
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
        """Return the nodes of each query, by one search if the store supports it.

        Args:
            queries: texts or bundles.
            return_exceptions: whether an error is returned in place of a query's nodes, instead
                of being raised when all are done.

        Raises:
            Exception: the first error, unless they are to be returned.
        """
        found = completed(self._found(queries, asynchronous=False))
        return found if return_exceptions else all_or_first_error(found)

    async def aretrieve_batch(
        self, queries: Sequence[Asked], *, return_exceptions: bool = False
    ) -> list[Any]:
        """Return the nodes of each query on an event loop, by one search if possible.

        Raises:
            Exception: the first error, unless they are to be returned.
        """
        found = await self._found(queries, asynchronous=True)
        return found if return_exceptions else all_or_first_error(found)

    async def _found(self, queries: Sequence[Asked], *, asynchronous: bool) -> list[Any]:
        """Return the nodes or the error of each query."""
        bundles = [_bundle(query) for query in queries]
        calls, at_once = [self._call(one) for one in bundles], self._service.side_by_side
        if any(call.look.native is None for call in calls):  # the host reports each by itself
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
        """Return the expected result of `retrieve` without a search, or `None`.

        A result in the memo is exact; the pool ranks the nodes found before.
        """
        call = self._call(_bundle(query))
        hits = completed(self._service.guess(call, asynchronous=False))
        return None if hits is None else nodes_of(hits)

    async def aguess(self, query: Asked) -> list[NodeWithScore] | None:
        """Return the expected result of `aretrieve`, with the embedder's asynchronous method."""
        hits = await self._service.guess(self._call(_bundle(query)), asynchronous=True)
        return None if hits is None else nodes_of(hits)

    def verify(
        self, queries: Sequence[Asked], guesses: Sequence[Sequence[NodeWithScore] | None]
    ) -> list[Verdict]:
        """Search all queries at once; return whether each guess has the same nodes in order.

        Raises:
            InputError: the numbers of guesses and queries differ.
        """
        check_pairs(queries, guesses)
        return _verdicts(guesses, self.retrieve_batch(queries))

    async def averify(
        self, queries: Sequence[Asked], guesses: Sequence[Sequence[NodeWithScore] | None]
    ) -> list[Verdict]:
        """Search all queries at once and compare, on an event loop.

        Raises:
            InputError: the numbers of guesses and queries differ.
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
