"""A retriever in front of another one: the same documents, with fewer calls of the store."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any, Final, TypeAlias

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForRetrieverRun,
    CallbackManager,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config, get_config_list, patch_config
from pydantic import ConfigDict, Field, PositiveInt

from langchain_ralmspec.callbacks import retrieval_manager
from langchain_ralmspec.configs import quiet_config
from langchain_ralmspec.documents import documents_of, passage_of
from langchain_ralmspec.host_retriever import Calls, HostRetriever
from langchain_ralmspec.inspection import concrete, heeding
from ralmspec_plugins.adapters.retriever import all_or_first_error
from ralmspec_plugins.adapters.retriever_service import (
    RetrieverCall,
    RetrieverRuntime,
    RetrieverService,
    ServedRetriever,
    agreeing,
    check_pairs,
    completed,
)
from ralmspec_plugins.adapters.retriever_state import BatchMode
from ralmspec_plugins.speculators.passage_cache import SharedPassageCache
from ralmspec_plugins.speculators.query_cache import QueryCache
from ralmspec_plugins.types import Hits

Run: TypeAlias = CallbackManagerForRetrieverRun | AsyncCallbackManagerForRetrieverRun
Outcome: TypeAlias = list[Document] | Exception

_config: ContextVar[RunnableConfig | None] = ContextVar("config", default=None)


@contextmanager
def calling(config: RunnableConfig) -> Iterator[None]:
    """Let the methods that the host calls in between know the call's config."""
    token = _config.set(config)
    try:
        yield
    finally:
        _config.reset(token)


def child_calls(config: RunnableConfig, run: Run | None) -> Calls:
    """Have runs of the wrapped retriever be children of a run; heard by nobody if there is none."""

    def child() -> tuple[RunnableConfig, bool]:
        if run is None:
            return quiet_config(config), False
        return patch_config(config, callbacks=run.get_child()), True

    return child


async def told(telling: Any) -> Any:
    """Give what a handlers' manager gives; the asynchronous ones are waited for."""
    return await telling if isawaitable(telling) else telling


async def ended(run: Run, outcome: list[Document] | BaseException) -> None:
    """Close a run with what came of it."""
    if isinstance(outcome, BaseException):
        await told(run.on_retriever_error(outcome))
    else:
        await told(run.on_retriever_end(outcome))


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a guess was right, and the documents that are, in every case."""

    right: bool
    documents: list[Document]


def verdicts(
    guesses: Sequence[Sequence[Document] | None], truths: Sequence[list[Document]]
) -> list[Verdict]:
    """Compare guesses with what was found: the same documents in the same order."""
    return list(map(Verdict, agreeing(guesses, truths, passage_of), truths))


THREADS: Final = min(32, (os.cpu_count() or 1) + 4)  # as many as the host's own `batch` takes


class SpeculativeRetriever(ServedRetriever, BaseRetriever):
    """Gives exactly the documents of `retriever`, and calls its store as rarely as it can.

    Calls that come while a search is running share the next one, and `batch` is one
    search, where the store has a batch search that is known to give the same (see
    `batching`). What was found before is remembered only where you say so, with a
    `memo`: nobody else knows whether the index changes meanwhile (call `invalidate` when
    it has). Everything that answers depend on (filters, `search_kwargs`, users'
    `configurable` values) keeps calls apart.

    A retriever that is known to answer differently each time, or to write, is
    passed straight through.
    """

    retriever: Runnable[Any, Any]
    """The retriever that answers: any runnable from a text to documents."""

    memo: QueryCache | None = None
    """Remembers answers, with a size and a time to live, until `invalidate` is called."""

    pool: SharedPassageCache | None = None
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

    runtime: RetrieverRuntime = Field(default_factory=RetrieverRuntime, exclude=True, repr=False)
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

    @property
    def _service(self) -> RetrieverService[HostRetriever]:
        return RetrieverService(
            self.runtime,
            HostRetriever,
            self.retriever,
            memo=self.memo,
            pool=self.pool,
            batching=self.batching,
            max_batch=self.max_batch,
            lanes=self.lanes,
            side_by_side=self.side_by_side,
            pure=self.pure,
        )

    def _call(
        self, text: str, config: RunnableConfig, kwargs: Mapping[str, Any], run: Run | None = None
    ) -> RetrieverCall[HostRetriever]:
        """Take a question; runs of the wrapped retriever become children of this one's."""
        passed = {} if self.k is None else {"k": self.k}
        passed |= {key: value for key, value in kwargs.items() if key != "run_id"}
        service = self._service
        return service.call(text, service.host.for_call(config, passed, child_calls(config, run)))

    async def _found(
        self, query: str, run: Run, kwargs: Mapping[str, Any], *, asynchronous: bool
    ) -> list[Outcome]:
        """Answer one question inside its run."""
        try:
            call = self._call(query, _config.get() or ensure_config(), kwargs, run)
            answers = await self._service.answers([call], 1, asynchronous=asynchronous)
        except Exception:
            raise
        except BaseException as error:  # Ctrl-C, cancelled: the host would leave the run open
            await ended(run, error)
            raise
        return _outcomes(answers)

    async def _found_together(
        self,
        inputs: Sequence[str],
        config: RunnableConfig | Sequence[RunnableConfig] | None,
        kwargs: Mapping[str, Any],
        *,
        asynchronous: bool,
    ) -> list[Outcome]:
        """Answer many questions, each inside a run of its own, as the host's `batch` does."""
        configs = get_config_list(config, len(inputs))
        kind = AsyncCallbackManager if asynchronous else CallbackManager
        runs: list[Run] = []
        for text, one in zip(inputs, configs, strict=True):
            manager: Any = retrieval_manager(kind, self, one, kwargs=kwargs)
            name, run_id = one.get("run_name") or self.get_name(), kwargs.get("run_id")
            begun = manager.on_retriever_start(None, text, name=name, run_id=run_id)
            runs.append(await told(begun))
        try:
            calls = [
                self._call(text, one, kwargs, run)
                for text, one, run in zip(inputs, configs, runs, strict=True)
            ]
            by_default = len(inputs) if asynchronous else self.side_by_side
            at_once = configs[0].get("max_concurrency") or by_default
            answers = await self._service.answers(calls, at_once, asynchronous=asynchronous)
            outcomes = _outcomes(answers)
        except BaseException as error:
            for run in runs:
                await ended(run, error)
            raise
        for run, outcome in zip(runs, outcomes, strict=True):
            await ended(run, outcome)
        return outcomes

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
        found = completed(self._found(query, run_manager, kwargs, asynchronous=False))
        return all_or_first_error(found)[0]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        if self._overrides("_get_relevant_documents"):  # and not this one: the host's default
            return await super()._aget_relevant_documents(query, run_manager=run_manager, **kwargs)
        found = await self._found(query, run_manager, kwargs, asynchronous=True)
        return all_or_first_error(found)[0]

    def _overrides(self, *names: str) -> bool:
        """Whether a subclass has one of these methods of its own: the host calls it each time."""
        kind = type(self)
        return any(getattr(kind, name) is not getattr(SpeculativeRetriever, name) for name in names)

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
        if self._overrides("invoke", "_get_relevant_documents"):
            return super().batch(inputs, config, return_exceptions=return_exceptions, **kwargs)
        found = completed(self._found_together(inputs, config, kwargs, asynchronous=False))
        return found if return_exceptions else all_or_first_error(found)

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
        if self._overrides("ainvoke", "_get_relevant_documents", "_aget_relevant_documents"):
            return await super().abatch(
                inputs, config, return_exceptions=return_exceptions, **kwargs
            )
        found = await self._found_together(inputs, config, kwargs, asynchronous=True)
        return found if return_exceptions else all_or_first_error(found)

    def guess(
        self, query: str, config: RunnableConfig | None = None, **kwargs: Any
    ) -> list[Document] | None:
        """Say what `invoke` is expected to give, without a search; `None` where nothing is known.

        The memo knows it exactly; the pool takes the best of what was found before.
        """
        call = self._call(query, ensure_config(config), kwargs)
        hits = completed(self._service.guess(call, asynchronous=False))
        return None if hits is None else documents_of(hits)

    async def aguess(
        self, query: str, config: RunnableConfig | None = None, **kwargs: Any
    ) -> list[Document] | None:
        """Do what `guess` does with the embedder's asynchronous method."""
        call = self._call(query, ensure_config(config), kwargs)
        hits = await self._service.guess(call, asynchronous=True)
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


def _outcomes(answers: Sequence[Hits | Exception]) -> list[Outcome]:
    """Make each answer the caller's own documents."""
    return [answer if isinstance(answer, Exception) else documents_of(answer) for answer in answers]
