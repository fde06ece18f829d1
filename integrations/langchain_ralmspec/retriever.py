"""A retriever over another one that returns the same documents with fewer calls of the store."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from inspect import isawaitable
from typing import Annotated, Any, Final, TypeAlias

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForRetrieverRun,
    CallbackManager,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import (
    ensure_config,
    get_config_list,
    merge_configs,
    patch_config,
)
from pydantic import ConfigDict, Field, StrictBool, StrictInt

from langchain_ralmspec.callbacks import retrieval_begun
from langchain_ralmspec.configs import quiet_config, silenced
from langchain_ralmspec.documents import documents_of, passage_of
from langchain_ralmspec.host_retriever import Calls, HostRetriever
from langchain_ralmspec.inspection import concrete, heeding
from langchain_ralmspec.options import checked_fields
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
StrictPositiveInt: TypeAlias = Annotated[int, Field(strict=True, gt=0)]

_config: ContextVar[RunnableConfig | None] = ContextVar("config", default=None)


@contextmanager
def calling(config: RunnableConfig) -> Iterator[None]:
    """Set the call's config for the methods that the host calls without it."""
    token = _config.set(config)
    try:
        yield
    finally:
        _config.reset(token)


def _below(run: Run) -> RunnableConfig:
    """Return the config of calls inside a run of this retriever."""
    return patch_config(_config.get() or ensure_config(), callbacks=run.get_child())


async def told(telling: Any) -> Any:
    """Return the result of a callback manager's method, awaited if it is asynchronous."""
    return await telling if isawaitable(telling) else telling


@dataclass(slots=True, eq=False)
class Question:
    """One query of a caller, and the run under which its search is reported.

    Each has one run, under the wrapped retriever's name. If that retriever itself is called, it
    reports the run; otherwise the run is started and ended here.
    """

    config: RunnableConfig
    heard: bool = True  # whether handlers are notified
    run: Run | None = None
    call: RetrieverCall[HostRetriever] = field(init=False)

    def calls(self) -> tuple[RunnableConfig, bool]:
        """Return the config of a call of the wrapped retriever, and whether handlers see it."""
        heard = self.heard and self.run is None
        return (self.config if heard else quiet_config(self.config)), heard

    async def ended(self, outcome: list[Document] | BaseException) -> None:
        """End the run with its documents or its error."""
        if self.run is None:
            return
        if isinstance(outcome, BaseException):
            await told(self.run.on_retriever_error(outcome))
        else:
            await told(self.run.on_retriever_end(outcome))


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a guess was right, and the documents found in either case."""

    right: bool
    documents: list[Document]


def verdicts(
    guesses: Sequence[Sequence[Document] | None], truths: Sequence[list[Document]]
) -> list[Verdict]:
    """Return whether each guess has the documents found, in the same order."""
    return list(map(Verdict, agreeing(guesses, truths, passage_of), truths))


THREADS: Final = min(32, (os.cpu_count() or 1) + 4)  # as in the host's own `batch`


class SpeculativeRetriever(ServedRetriever, BaseRetriever):
    """Returns exactly the documents of `retriever`, with as few calls of its store as possible.

    Calls that arrive while a search is running share the next one, and `batch` is one
    search, if the store has a batch search that is known to return the same (see `batching`).
    Results are cached only with a `memo`, since only you know whether the index changes (call
    `invalidate` after a change). Calls share results only if everything that these depend on
    is equal (filters, `search_kwargs`, users' `configurable` values).

    A retriever that is known to have side effects, or to return different results for the
    same query, is called directly.
    """

    retriever: Runnable[Any, Any]
    """The wrapped retriever: any runnable from a text to documents."""

    memo: QueryCache | None = None
    """Caches results, with a size and a time to live, until `invalidate` is called."""

    pool: SharedPassageCache | None = None
    """Collects the documents found, for `guess`."""

    batching: BatchMode = "exact"
    """Which batch searches are used: "exact" by construction, "probed" ones too, or "off"."""

    max_batch: StrictPositiveInt = 64
    """The maximum number of queries in one search."""

    lanes: StrictPositiveInt = 1
    """Concurrent searches of the store; more than one is useful only for a server."""

    side_by_side: StrictPositiveInt = THREADS
    """Concurrent single calls in `batch`, unless the config sets `max_concurrency`."""

    pure: StrictBool | None = None
    """Whether equal queries find equal documents, without side effects; `None`: determined by
    the retriever's class."""

    k: StrictInt | None = None
    """The number of documents, instead of the retriever's own setting."""

    runtime: RetrieverRuntime = Field(default_factory=RetrieverRuntime, exclude=True, repr=False)
    """Shared state of running calls; copies made by configurable fields share it."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    def __init__(self, *args: Any, **fields: Any) -> None:
        """Wrap a retriever.

        Raises:
            ConfigError: a field is unknown or of another type, or the retriever does not support
                the k.
        """
        with checked_fields(type(self)):
            super().__init__(*args, **fields)
        if self.k is not None:
            inner = concrete(self.retriever, RunnableConfig(), {}).runnable
            self.retriever = heeding(self.retriever, inner, self.k)

    def told_as(self, config: RunnableConfig) -> tuple[Runnable[Any, Any], RunnableConfig] | None:
        """Return the wrapped retriever, and a call's config with this one's name, tags, metadata.

        Traces show the wrapped retriever. `None` for a subclass with its own methods: it is
        reported as a retriever itself.
        """
        if self._answers_itself():
            return None
        own = RunnableConfig()
        if self.name is not None:
            own["run_name"] = self.name
        own |= RunnableConfig(tags=self.tags or [], metadata=self.metadata or {})
        return self.retriever, merge_configs(own, config)

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
        self, text: str, config: RunnableConfig, kwargs: Mapping[str, Any], calls: Calls
    ) -> RetrieverCall[HostRetriever]:
        """Return the call for a query; nothing is searched yet."""
        passed = {**({} if self.k is None else {"k": self.k}), **kwargs}
        service = self._service
        return service.call(text, service.host.for_call(config, passed, calls))

    async def _asked(
        self, text: str, config: RunnableConfig, kwargs: Mapping[str, Any], *, asynchronous: bool
    ) -> Question:
        """Return a query, with its run started unless the wrapped retriever starts it."""
        behind = self.told_as(config)
        question = Question(config if behind is None else behind[1])
        passed = {key: value for key, value in kwargs.items() if key != "run_id"}
        question.call = self._call(text, config, passed, question.calls)
        if question.call.remembered is not None or question.call.look.native is not None:
            kind = AsyncCallbackManager if asynchronous else CallbackManager
            part = silenced(self.retriever)
            question.run = await told(retrieval_begun(kind, part, question.config, text, kwargs))
        elif "run_id" in kwargs:
            question.call = self._call(text, config, kwargs, question.calls)
        return question

    async def _found(
        self,
        inputs: Sequence[str],
        configs: Sequence[RunnableConfig],
        kwargs: Mapping[str, Any],
        *,
        asynchronous: bool,
    ) -> list[Outcome]:
        """Return the results of queries, each in one run under the wrapped retriever's name."""
        asked: list[Question] = []
        try:
            for text, config in zip(inputs, configs, strict=True):
                asked.append(await self._asked(text, config, kwargs, asynchronous=asynchronous))
            by_default = len(inputs) if asynchronous else self.side_by_side
            at_once = configs[0].get("max_concurrency") or by_default
            calls = [question.call for question in asked]
            answers = await self._service.answers(calls, at_once, asynchronous=asynchronous)
            outcomes = _outcomes(answers)
        except BaseException as error:  # on Ctrl-C and cancellation too, no run stays open
            for question in asked:
                await question.ended(error)
            raise
        for question, outcome in zip(asked, outcomes, strict=True):
            await question.ended(outcome)
        return outcomes

    def _found_now(
        self, inputs: Sequence[str], configs: Sequence[RunnableConfig], kwargs: Mapping[str, Any]
    ) -> list[Outcome]:
        return completed(self._found(inputs, configs, kwargs, asynchronous=False))

    def invoke(
        self,
        input: str,  # noqa: A002 the host's own name
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Return the documents of the wrapped retriever."""
        config = ensure_config(config)
        if self._answers_itself():
            with calling(config):
                return super().invoke(input, config, **kwargs)
        return all_or_first_error(self._found_now([input], [config], kwargs))[0]

    async def ainvoke(
        self,
        input: str,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Return the documents of the wrapped retriever."""
        config = ensure_config(config)
        if self._answers_itself():
            with calling(config):
                return await super().ainvoke(input, config, **kwargs)
        found = await self._found([input], [config], kwargs, asynchronous=True)
        return all_or_first_error(found)[0]

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        found = self._found_now([query], [_below(run_manager)], kwargs)
        return all_or_first_error(found)[0]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        if self._overrides("_get_relevant_documents"):  # but not this method: the host's default
            return await super()._aget_relevant_documents(query, run_manager=run_manager, **kwargs)
        found = await self._found([query], [_below(run_manager)], kwargs, asynchronous=True)
        return all_or_first_error(found)[0]

    def _answers_itself(self) -> bool:
        """Return whether a subclass implements the host's methods of a retriever itself."""
        return self._overrides("_get_relevant_documents", "_aget_relevant_documents")

    def _overrides(self, *names: str) -> bool:
        """Return whether a subclass overrides one of these methods, which is then called."""
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
        """Return the documents of each input, by one search if the store supports it."""
        if not inputs:
            return []
        if self._overrides("invoke", "_get_relevant_documents"):
            return super().batch(inputs, config, return_exceptions=return_exceptions, **kwargs)
        found = self._found_now(inputs, get_config_list(config, len(inputs)), kwargs)
        return found if return_exceptions else all_or_first_error(found)

    async def abatch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Return the documents of each input on an event loop, by one search if possible."""
        if not inputs:
            return []
        if self._overrides("ainvoke", "_get_relevant_documents", "_aget_relevant_documents"):
            return await super().abatch(
                inputs, config, return_exceptions=return_exceptions, **kwargs
            )
        configs = get_config_list(config, len(inputs))
        found = await self._found(inputs, configs, kwargs, asynchronous=True)
        return found if return_exceptions else all_or_first_error(found)

    def guess(
        self, query: str, config: RunnableConfig | None = None, **kwargs: Any
    ) -> list[Document] | None:
        """Return the expected result of `invoke` without a search, or `None`.

        A result in the memo is exact; the pool ranks the documents found before.
        """
        config = ensure_config(config)
        call = self._call(query, config, kwargs, Question(config, heard=False).calls)
        hits = completed(self._service.guess(call, asynchronous=False))
        return None if hits is None else documents_of(hits)

    async def aguess(
        self, query: str, config: RunnableConfig | None = None, **kwargs: Any
    ) -> list[Document] | None:
        """Return the expected result of `ainvoke`, with the embedder's asynchronous method."""
        config = ensure_config(config)
        call = self._call(query, config, kwargs, Question(config, heard=False).calls)
        hits = await self._service.guess(call, asynchronous=True)
        return None if hits is None else documents_of(hits)

    def verify(
        self,
        queries: Sequence[str],
        guesses: Sequence[Sequence[Document] | None],
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> list[Verdict]:
        """Search all queries at once; return whether each guess has the same documents in order.

        Raises:
            InputError: the numbers of guesses and queries differ.
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
        """Search all queries at once and compare, on an event loop.

        Raises:
            InputError: the numbers of guesses and queries differ.
        """
        check_pairs(queries, guesses)
        return verdicts(guesses, await self.abatch(list(queries), config, **kwargs))


def _outcomes(answers: Sequence[Hits | Exception]) -> list[Outcome]:
    """Return each result as new documents for the caller."""
    return [answer if isinstance(answer, Exception) else documents_of(answer) for answer in answers]
