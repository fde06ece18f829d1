"""A retriever in front of another one: the same documents, with fewer calls of the store."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config, get_config_list
from pydantic import ConfigDict, Field, PositiveInt

from langchain_ralmspec.host_retriever import HostRetriever
from langchain_ralmspec.inside import concrete, heeding
from langchain_ralmspec.passages import documents_of
from langchain_ralmspec.retriever_runs import (
    Run,
    abroken_off,
    aended,
    astarted,
    broken_off,
    calling,
    child_calls,
    config_of_call,
    ended,
    given,
    outcomes_of,
    started,
)
from langchain_ralmspec.verdicts import Verdict, verdicts
from ralmspec_plugins.adapters.retriever_service import (
    Answering,
    Call,
    RetrieverStats,
    Serving,
    Way,
    check_pairs,
)
from ralmspec_plugins.adapters.retriever_state import BatchMode
from ralmspec_plugins.speculators.passage_cache import SharedPool
from ralmspec_plugins.speculators.query_cache import Memo

THREADS: Final = min(32, (os.cpu_count() or 1) + 4)  # as many as the host's own `batch` takes


class SpeculativeRetriever(BaseRetriever):
    """Gives exactly the documents of `retriever`, and calls its store as rarely as it can.

    Calls that come while a search is running share the next one, and `batch` is one
    search, where the store has a batch search that is known to give the same (see
    `batching`). What was found before is remembered only where you say so, with a
    `memo`: nobody else knows whether the index changes meanwhile. Everything that
    answers depend on (filters, `search_kwargs`, users' `configurable` values) keeps
    calls apart.

    A retriever that is known to answer differently each time, or to write, is
    passed straight through.
    """

    retriever: Runnable[Any, Any]
    """The retriever that answers: any runnable from a text to documents."""

    memo: Memo | None = None
    """Remembers answers, with a size and a time to live; only if the index does not change."""

    pool: SharedPool | None = None
    """Collects what was found, for `guess`."""

    batching: BatchMode = "exact"
    """Which batch searches are used: "exact" by construction, also "probed" ones, or "off"."""

    max_batch: PositiveInt = 64
    """The most queries in one search."""

    lanes: PositiveInt = 1
    """Searches of the store that may be out at a time; more than one only for a server."""

    side_by_side: PositiveInt = THREADS
    """Single calls at a time in `batch`, where the config does not say `max_concurrency`."""

    pure: bool | None = None
    """Whether equal queries find equal documents, without side effects; found out by default."""

    k: int | None = None
    """How many documents to give, instead of what the retriever says."""

    serving: Serving = Field(default_factory=Serving, exclude=True, repr=False)
    """What is running; shared by the copies that configurable fields make."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    def __init__(self, *args: Any, **fields: Any) -> None:
        """Wrap a retriever, and stand in the traces as it does.

        Raises:
            ConfigError: a k that the retriever does not take (pydantic would wrap the error).
        """
        super().__init__(*args, **fields)
        inner = concrete(self.retriever, RunnableConfig(), {}).runnable
        if isinstance(inner, BaseRetriever):
            if self.tags is None and inner.tags is not None:
                self.tags = list(inner.tags)
            if self.metadata is None and inner.metadata is not None:
                self.metadata = dict(inner.metadata)
        if self.k is not None:
            self.retriever = heeding(self.retriever, inner, self.k)

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        """Say what the wrapped retriever says of itself."""
        inner = concrete(self.retriever, RunnableConfig(), {}).runnable
        if isinstance(inner, BaseRetriever):
            return inner._get_ls_params(**kwargs)  # noqa: SLF001 there is no other way
        return super()._get_ls_params(**kwargs)

    def _way(self) -> Way[HostRetriever]:
        numbers = self.max_batch, self.lanes, self.side_by_side
        return Way(HostRetriever, self.retriever, self.batching, *numbers, self.pure)

    def _answering(self) -> Answering:
        return Answering(self.serving, self._way(), self.memo, self.pool)

    def _call(
        self, text: str, config: RunnableConfig, kwargs: Mapping[str, Any], run: Run | None = None
    ) -> Call:
        """Take a question; runs of the wrapped retriever become children of this one's."""
        passed = {} if self.k is None else {"k": self.k}
        passed |= {key: value for key, value in kwargs.items() if key != "run_id"}
        host = self.serving.host(self._way()).for_call(config, passed, child_calls(config, run))
        return self._answering().call(text, host)

    def invoke(
        self,
        input: str,  # noqa: A002 the host's own name
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Give the documents that the wrapped retriever gives."""
        config = ensure_config(config)
        with calling(config):
            return super().invoke(input, config, **kwargs)

    async def ainvoke(
        self,
        input: str,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Give the documents that the wrapped retriever gives."""
        config = ensure_config(config)
        with calling(config):
            return await super().ainvoke(input, config, **kwargs)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        try:
            call = self._call(query, config_of_call(), kwargs, run_manager)
            hits = self._answering().answer(call)
        except Exception:
            raise
        except BaseException as error:  # Ctrl-C: the host would leave the run open
            run_manager.on_retriever_error(error)
            raise
        return documents_of(hits)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        try:
            call = self._call(query, config_of_call(), kwargs, run_manager)
            hits = await self._answering().aanswer(call)
        except Exception:
            raise
        except BaseException as error:  # cancelled: the host would leave the run open
            await run_manager.on_retriever_error(error)
            raise
        return documents_of(hits)

    def batch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Give what `invoke` gives for each input, by one search where the store can."""
        if not inputs:
            return []
        configs = get_config_list(config, len(inputs))
        runs = started(self, inputs, configs, kwargs)
        try:
            calls = [
                self._call(text, one, kwargs, run)
                for text, one, run in zip(inputs, configs, runs, strict=True)
            ]
            at_once = configs[0].get("max_concurrency") or self.side_by_side
            outcomes = outcomes_of(self._answering().answers(calls, at_once))
        except BaseException as error:
            broken_off(runs, error)
            raise
        ended(runs, outcomes)
        return given(outcomes, return_exceptions=return_exceptions)

    async def abatch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Give what `ainvoke` gives for each input, by one search where the store can."""
        if not inputs:
            return []
        configs = get_config_list(config, len(inputs))
        runs = await astarted(self, inputs, configs, kwargs)
        try:
            calls = [
                self._call(text, one, kwargs, run)
                for text, one, run in zip(inputs, configs, runs, strict=True)
            ]
            at_once = configs[0].get("max_concurrency") or len(inputs)
            outcomes = outcomes_of(await self._answering().aanswers(calls, at_once))
        except BaseException as error:
            await abroken_off(runs, error)
            raise
        await aended(runs, outcomes)
        return given(outcomes, return_exceptions=return_exceptions)

    def guess(
        self, query: str, config: RunnableConfig | None = None, **kwargs: Any
    ) -> list[Document] | None:
        """Say what `invoke` is expected to give, without a search; `None` where nothing is known.

        The memo knows it exactly; the pool takes the best of what was found before.
        """
        hits = self._answering().guess(self._call(query, ensure_config(config), kwargs))
        return None if hits is None else documents_of(hits)

    async def aguess(
        self, query: str, config: RunnableConfig | None = None, **kwargs: Any
    ) -> list[Document] | None:
        """Do what `guess` does with the embedder's asynchronous method."""
        hits = await self._answering().aguess(self._call(query, ensure_config(config), kwargs))
        return None if hits is None else documents_of(hits)

    def verify(
        self,
        queries: Sequence[str],
        guesses: Sequence[Sequence[Document] | None],
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> list[Verdict]:
        """Search all queries at once, and compare: same documents, same order.

        Raises:
            InputError: not as many guesses as queries.
        """
        check_pairs(queries, guesses)
        return verdicts(guesses, self.batch(list(queries), config, **kwargs))

    async def averify(
        self,
        queries: Sequence[str],
        guesses: Sequence[Sequence[Document] | None],
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> list[Verdict]:
        """Do what `verify` does on an event loop.

        Raises:
            InputError: not as many guesses as queries.
        """
        check_pairs(queries, guesses)
        return verdicts(guesses, await self.abatch(list(queries), config, **kwargs))

    @property
    def stats(self) -> RetrieverStats:
        """What was asked so far, and what of it reached the store."""
        return self.serving.stats

    def clear(self) -> None:
        """Forget what was found, for when the index has changed."""
        if self.memo is not None:
            self.memo.clear()
        if self.pool is not None:
            self.pool.clear()

    def close(self) -> None:
        """Wait for searches in threads, and let the threads go; later calls start new ones."""
        self.serving.close()

    def __enter__(self) -> Self:
        """Use as a context manager."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Close."""
        self.close()
