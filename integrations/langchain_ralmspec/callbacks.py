"""Reports committed searches and model calls to the host's handlers, by its callback managers.

There is one run for each committed search and each committed call of the model, under the
request's own, in the host's order: a step's search, then its model call. Handlers are called
in the caller's thread or task, on the engine's events: a search is reported when its documents
are confirmed, and a model's run when it is committed, or as far as its text is settled.
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
    """Return the callback manager of a retriever's call, as `BaseRetriever.invoke` creates it."""
    kwargs = {key: value for key, value in (kwargs or {}).items() if key != "run_id"}
    tags = metadata = None
    inheritable = dict(config.get("metadata") or {})
    if isinstance(retriever, BaseRetriever):
        tags, metadata = retriever.tags, retriever.metadata
        # The host's hook for subclasses, the only source of the store's name.
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
    """A retriever over another one, under whose name its searches are reported."""

    def told_as(self, config: RunnableConfig) -> tuple[Runnable[Any, Any], RunnableConfig] | None:
        """Return the wrapped retriever with the config of its call; `None`: this retriever."""
        ...


def retrieval_begun(
    kind: ManagerKind,
    part: Silenced,
    config: RunnableConfig,
    query: str,
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """Start the run of a retrieval that is not a call of the host; return its run manager."""
    handlers = part.handlers(config)
    retriever, config = _called(part.runnable, config)
    manager = retrieval_manager(kind, retriever, config, handlers, kwargs)
    name = config.get("run_name") or retriever.get_name()
    return manager.on_retriever_start(None, query, name=name, run_id=(kwargs or {}).get("run_id"))


def _called(
    retriever: Runnable[Any, Any], config: RunnableConfig
) -> tuple[Runnable[Any, Any], RunnableConfig]:
    """Return the retriever inside bindings, configurable fields and layers, and its config."""
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


# A model's run that has been reported in part.


@dataclass(slots=True, eq=False)
class OpenRun:
    """A run that was reported as started but not as ended.

    A call that was interrupted may be made again, in isolation: the run then continues with the
    tokens of the second call after those already reported.
    """

    manager: Any  # the run's manager
    source: ModelRun
    _next: int = 0  # index of the source's next token
    _read: int = 0  # characters of the source read so far
    _told: int = 0  # characters reported so far, of any source

    def tokens(self, source: ModelRun) -> Iterator[tuple[Any, Any]]:
        """Yield the tokens of a source that were not reported yet."""
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
        """Return messages with the id of this run, by which the host joins chunks."""
        here, there = str(self.manager.run_id), str(self.source.run_id)
        return value if here == there else _renamed(value, there, here)


def _text_of(token: Any) -> str:
    if isinstance(token, str):
        return token
    return "".join(one.get("text", "") for one in token if isinstance(one, dict))


def _cut(token: Any, chunk: Any, characters: int) -> tuple[Any, Any]:
    """Return a token without its first characters, if it is a text."""
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


# The reports of one request.


# Each step is the result of a callback manager's method, awaited if it is asynchronous.
Steps: TypeAlias = Generator[Any, Any, None]


@dataclass(slots=True, eq=False)
class CallbackSink:
    """Reports committed events to the handlers of one request and of its parts.

    Args:
        context: the request's call, with its handlers and its run.
        llm: the model, whose own handlers are notified of its calls, too.
        retriever: the retriever, whose own handlers are notified of its searches, too.
        prompting: formats documents: equal prompts are one call.
        direct: creates the runs of segments that no call of the host's model has written.
    """

    context: HostContext
    llm: Silenced
    retriever: Silenced
    prompting: Prompting
    direct: DirectRuns | None = None
    _heard: bool = field(init=False)
    _writing: Retrieved | None = field(init=False, default=None)  # confirmed, not committed
    _written: Any = field(init=False, default=None)  # the last committed draft
    _open: OpenRun | None = field(init=False, default=None)
    _ended: ModelRun | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Check in the caller's context, which may have handlers too, whether there are any."""
        parts = self.llm.listeners or self.retriever.listeners
        self._heard = bool(parts or self._manager(CallbackManager).handlers)

    def tell(self, event: effects.Event) -> None:
        """Report an event to the host's handlers.

        Raises:
            Exception: the error of a handler with `raise_error`.
        """
        _run(self._steps(event, CallbackManager))

    async def atell(self, event: effects.Event) -> None:
        """Report an event to the host's handlers on an event loop.

        Raises:
            Exception: the error of a handler with `raise_error`.
        """
        await _arun(self._steps(event, AsyncCallbackManager))

    def ended(self, answer: Answer) -> None:
        """Report an answer's statistics."""
        _run(self._ended_with(answer, CallbackManager))

    async def aended(self, answer: Answer) -> None:
        """Report an answer's statistics on an event loop."""
        await _arun(self._ended_with(answer, AsyncCallbackManager))

    def failed(self, error: BaseException) -> None:
        """Report the call that failed or was cancelled, and end the open run."""
        _run(self._failed(error, CallbackManager))

    async def afailed(self, error: BaseException) -> None:
        """Report a failed or cancelled call on an event loop."""
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
        """Return the run of the model that wrote a state."""
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
        """Report the new tokens of a model's run, and its end if it has ended."""
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
        """Return the call that was writing with the confirmed documents."""
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
    """Return the name and the data of a custom event of the host for guesses."""
    if isinstance(event, effects.Guessed):
        return "ralmspec.guess", {"documents": [hit.passage.id for hit in event.hits]}
    if isinstance(event, effects.Judged):
        return "ralmspec.verify", {"right": event.right}
    return "ralmspec.rollback", {"segments": event.segments}


def _told(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else Cancelled("the request was cancelled")


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
