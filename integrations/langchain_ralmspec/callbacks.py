"""Tells the host's handlers what is part of the answer, through its callback managers.

One run for each committed search and each committed call of the model, under the request's
own, in the host's order: a step's search, then its model. They are told in the caller's
thread or task, from the engine's events: a search when its documents are confirmed, a
model's run when it is committed, or as far as its text is settled.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

from langchain_core.callbacks import AsyncCallbackManager, BaseCallbackHandler, CallbackManager
from langchain_core.documents import Document
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, LLMResult
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import merge_configs
from langchain_core.runnables.configurable import DynamicRunnable

from langchain_ralmspec.configs import HostContext, Silenced
from langchain_ralmspec.documents import document_of
from langchain_ralmspec.local_model import DirectRuns
from langchain_ralmspec.prompts import Prompting
from langchain_ralmspec.recording import CallCapture, ModelRun
from langchain_ralmspec.reports import REPORT_EVENT
from ralmspec_plugins import Answer, effects
from ralmspec_plugins.adapters.documents import HostPassage
from ralmspec_plugins.adapters.events import report_of
from ralmspec_plugins.adapters.text_state import draft_of
from ralmspec_plugins.errors import Cancelled
from ralmspec_plugins.types import Retrieved, passages_of

# The run of one retrieval, as the host's own `invoke` opens it.


ManagerKind: TypeAlias = type[CallbackManager] | type[AsyncCallbackManager]


def retrieval_manager(
    kind: ManagerKind,
    retriever: Any,
    config: RunnableConfig,
    handlers: list[BaseCallbackHandler] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """Configure a callback manager for a call of a retriever, as `BaseRetriever.invoke` does."""
    kwargs = {key: value for key, value in (kwargs or {}).items() if key != "run_id"}
    tags = metadata = None
    inheritable = dict(config.get("metadata") or {})
    if isinstance(retriever, BaseRetriever):
        tags, metadata = retriever.tags, retriever.metadata
        # The host's hook for subclasses: what it says of a store is said nowhere else.
        inheritable |= retriever._get_ls_params(**kwargs)  # noqa: SLF001
    return kind.configure(
        config.get("callbacks"),
        handlers,
        verbose=kwargs.get("verbose", False),
        inheritable_tags=config.get("tags"),
        local_tags=tags,
        inheritable_metadata=inheritable,
        local_metadata=metadata,
    )


@runtime_checkable
class Layer(Protocol):
    """A retriever in front of another one, in whose name its searches are told."""

    def told_as(self, config: RunnableConfig) -> tuple[Runnable[Any, Any], RunnableConfig] | None:
        """Return the retriever behind it, with what a call's config becomes; `None`: itself."""
        ...


def retrieval_begun(
    kind: ManagerKind,
    part: Silenced,
    config: RunnableConfig,
    query: str,
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """Begin the run of a retrieval that the host's own call does not tell: name, tags, handlers."""
    handlers = part.handlers(config)
    retriever, config = _called(part.runnable, config)
    manager = retrieval_manager(kind, retriever, config, handlers, kwargs)
    name = config.get("run_name") or retriever.get_name()
    return manager.on_retriever_start(None, query, name=name, run_id=(kwargs or {}).get("run_id"))


def _called(
    retriever: Runnable[Any, Any], config: RunnableConfig
) -> tuple[Runnable[Any, Any], RunnableConfig]:
    """Find what stands inside of bindings, configurable fields and layers, and its config."""
    while True:
        if isinstance(retriever, RunnableBindingBase):
            config = merge_configs(retriever.config, config)
            retriever = retriever.bound
        elif isinstance(retriever, DynamicRunnable):
            retriever, config = retriever.prepare(config)
        elif isinstance(retriever, Layer) and (behind := retriever.told_as(config)) is not None:
            retriever, config = behind
        else:
            return retriever, config


# A model's run that has been told in part.


@dataclass(slots=True, eq=False)
class OpenRun:
    """A run whose handlers wait for its end.

    A call that broke off may be made once more, alone: its run goes on with that one's
    tokens, from where its own had come to.
    """

    manager: Any  # of the run
    source: ModelRun
    _next: int = 0  # token of the source
    _read: int = 0  # characters of the source
    _told: int = 0  # characters, of any source

    def tokens(self, source: ModelRun) -> Iterator[tuple[Any, Any]]:
        """Give what has not been told of a source's tokens."""
        if source is not self.source:
            self.source, self._next, self._read = source, 0, 0
        while self._next < len(source.tokens):
            token, chunk = source.tokens[self._next]
            self._next += 1
            began, self._read = self._read, self._read + len(_text_of(token))
            if began < self._told:
                if self._read <= self._told:
                    continue
                token, chunk = _cut(token, chunk, self._told - began)
            self._told = self._read
            yield token, self.own(chunk)

    def own(self, value: Any) -> Any:
        """Give messages the id of this run: streams put chunks together by it."""
        here, there = str(self.manager.run_id), str(self.source.run_id)
        return value if here == there else _renamed(value, there, here)


def _text_of(token: Any) -> str:
    if isinstance(token, str):
        return token
    return "".join(one.get("text", "") for one in token if isinstance(one, dict))


def _cut(token: Any, chunk: Any, characters: int) -> tuple[Any, Any]:
    """Take the first characters off a token that is a text."""
    if not isinstance(token, str):
        return token, chunk
    token = token[characters:]
    if isinstance(chunk, ChatGenerationChunk):
        message = chunk.message.model_copy(update={"content": token})
        return token, chunk.model_copy(update={"message": message, "text": token})
    return token, chunk and chunk.model_copy(update={"text": token})


def _renamed(value: Any, there: str, here: str) -> Any:
    if isinstance(value, LLMResult):
        made = [[_renamed(one, there, here) for one in some] for some in value.generations]
        return value.model_copy(update={"generations": made})
    if isinstance(value, ChatGeneration):
        return value.model_copy(update={"message": _renamed(value.message, there, here)})
    if isinstance(value, BaseMessage) and value.id is not None:
        return value.model_copy(update={"id": value.id.replace(there, here)})
    return value


# What one request tells.


# Each step is what a callback manager's method gives: with an asynchronous one to be awaited.
Steps: TypeAlias = Generator[Any, Any, None]


@dataclass(slots=True, eq=False)
class CallbackSink:
    """Tells the handlers of one request, and those of its parts, what has been committed.

    Args:
        context: whose handlers, and under which run.
        llm: the model's own handlers are told of its calls too, ...
        retriever: ... as the retriever's are of its searches.
        prompting: how documents become a prompt: equal ones are one call.
        direct: makes the runs of segments that no call of the host's model has written.
    """

    context: HostContext
    llm: Silenced
    retriever: Silenced
    prompting: Prompting
    direct: DirectRuns | None = None
    _heard: bool = field(init=False)
    _writing: Retrieved | None = field(init=False, default=None)  # confirmed, not committed
    _written: Any = field(init=False, default=None)  # the draft that was committed last
    _open: OpenRun | None = field(init=False, default=None)
    _ended: ModelRun | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """See whether anybody listens: in the caller's context, where handlers stand too."""
        parts = self.llm.listeners or self.retriever.listeners
        self._heard = bool(parts or self._manager(CallbackManager).handlers)

    def tell(self, event: effects.Event) -> None:
        """Tell what an event means for the host.

        Raises:
            Exception: what a handler has raised that was asked to.
        """
        _run(self._steps(event, CallbackManager))

    async def atell(self, event: effects.Event) -> None:
        """Do the same on an event loop.

        Raises:
            Exception: what a handler has raised that was asked to.
        """
        await _arun(self._steps(event, AsyncCallbackManager))

    def ended(self, answer: Answer) -> None:
        """Tell what an answer took."""
        _run(self._ended_with(answer, CallbackManager))

    async def aended(self, answer: Answer) -> None:
        """Do the same on an event loop."""
        await _arun(self._ended_with(answer, AsyncCallbackManager))

    def failed(self, error: BaseException) -> None:
        """Tell of the call that failed or was given up, and end the run that is open."""
        _run(self._failed(error, CallbackManager))

    async def afailed(self, error: BaseException) -> None:
        """Do the same on an event loop."""
        await _arun(self._failed(error, AsyncCallbackManager))

    def _manager(self, kind: ManagerKind, **local: Any) -> Any:
        config = self.context.config
        return kind.configure(
            config.get("callbacks"),
            inheritable_tags=config.get("tags"),
            inheritable_metadata=config.get("metadata"),
            **local,
        )

    def _steps(self, event: effects.Event, kind: ManagerKind) -> Steps:
        if isinstance(event, effects.Confirmed):
            self._writing = event.retrieved
        if isinstance(event, effects.Commit):
            self._writing, self._written = None, draft_of(event.state)
        if not self._heard:
            return
        if isinstance(event, effects.Confirmed):
            found = passages_of(event.retrieved.hits)
            documents = [document_of(one) for one in found if isinstance(one, HostPassage)]
            yield from self._search(kind, event.retrieved.query.text, documents)
        elif isinstance(event, effects.Failed) and event.query is not None:
            yield from self._search(kind, event.query.text, event.error)
        elif isinstance(event, effects.Commit | effects.Settled):
            source = self._source(event)
            if source is not None:
                yield from self._model(kind, source, ended=isinstance(event, effects.Commit))
        elif not isinstance(event, effects.Failed):
            yield self._custom_event(kind, *_custom(event))

    def _ended_with(self, answer: Answer, kind: ManagerKind) -> Steps:
        if self._heard:
            yield self._custom_event(kind, REPORT_EVENT, report_of(answer))

    def _custom_event(self, kind: ManagerKind, name: str, data: Mapping[str, Any]) -> Any:
        manager = self._manager(kind)
        return manager.on_custom_event(name, data, run_id=manager.parent_run_id)

    def _source(self, event: effects.Commit | effects.Settled) -> ModelRun | None:
        """Find the run of the model that wrote a state."""
        if self.direct is not None:
            return self.direct.run_of(event) if isinstance(event, effects.Commit) else None
        call = getattr(draft_of(event.state), "recording", None)
        return call.run if isinstance(call, CallCapture) else None

    def _search(
        self, kind: ManagerKind, query: str, outcome: Sequence[Document] | Exception
    ) -> Steps:
        run = yield retrieval_begun(kind, self.retriever, self.context.config, query)
        if isinstance(outcome, Exception):
            yield run.on_retriever_error(outcome)
        else:
            yield run.on_retriever_end(outcome)

    def _model(self, kind: ManagerKind, source: ModelRun, *, ended: bool) -> Steps:
        """Tell what is new of a model's run, and its end if it is to be told."""
        if source is self._ended:
            return
        if self._open is None:
            manager = self._manager(
                kind,
                local_callbacks=self.llm.handlers(self.context.config),
                local_tags=source.tags,
                local_metadata=source.metadata,
            )
            start = getattr(manager, source.method)
            [run] = yield start(
                source.serialized, [source.given], run_id=source.run_id, **source.options
            )
            self._open = OpenRun(run, source)
        for token, chunk in self._open.tokens(source):
            yield self._open.manager.on_llm_new_token(token, chunk=chunk)
        if ended:
            here, self._open, self._ended = self._open, None, source
            if source.error is not None:
                options = {key: here.own(value) for key, value in source.error_options.items()}
                yield here.manager.on_llm_error(_told(source.error), **options)
            else:
                yield here.manager.on_llm_end(here.own(source.response))

    def _failed(self, error: BaseException, kind: ManagerKind) -> Steps:
        calls = self.context.calls if self._heard else []
        call = next((one for one in calls if one.raised is error), None) or self._given_up()
        if call is not None and call.run is not None:
            yield from self._model(kind, call.run, ended=call.run.done)
        if self._open is not None:
            here, self._open = self._open, None
            yield here.manager.on_llm_error(_told(error))

    def _given_up(self) -> CallCapture | None:
        """Find the call that was writing behind the documents that are confirmed."""
        if self._writing is None or not self._heard:
            return None
        given = passages_of(self._writing.hits)
        for call in reversed(self.context.calls):
            first = self._written is None and call.before is not None and not call.before.calls
            if (first or call.before == self._written) and self.prompting.same_passages(
                call.given or (), given
            ):
                return call
        return None


def _custom(
    event: effects.Guessed | effects.Judged | effects.RolledBack,
) -> tuple[str, dict[str, Any]]:
    """Say what happens to guesses, as an event of the host's."""
    if isinstance(event, effects.Guessed):
        return "ralmspec.guess", {"documents": [hit.passage.id for hit in event.hits]}
    if isinstance(event, effects.Judged):
        return "ralmspec.verify", {"right": event.right}
    return "ralmspec.rollback", {"segments": event.segments}


def _told(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else Cancelled("the request was given up")


def _run(steps: Steps) -> None:
    value = None
    while True:
        try:
            value = steps.send(value)
        except StopIteration:
            return


async def _arun(steps: Steps) -> None:
    value = None
    while True:
        try:
            value = await steps.send(value)
        except StopIteration:
            return
