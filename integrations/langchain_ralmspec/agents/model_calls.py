"""An agent's calls of a chat model: intercepted, compared, made speculatively and replayed.

The host's own wrapper around a model (callbacks, caches, streams, binding of tools) is
unchanged. The four methods below it that an integration implements are replaced on a copy of
the model.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from copy import copy
from dataclasses import dataclass, field
from functools import lru_cache, wraps
from inspect import signature
from typing import Any, Final, Literal
from uuid import uuid4

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    BaseCallbackHandler,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables.base import RunnableBinding

from ralmspec_plugins.adapters.agents import AgentRun
from ralmspec_plugins.adapters.plain_data import copied_where_possible
from ralmspec_plugins.adapters.side_effects import SideEffects, Slices, plain_attributes
from ralmspec_plugins.adapters.speculative_calls import Recording
from ralmspec_plugins.types import same_to_read

_GENERATED: Final = "lc_run-"  # prefix of ids that the host generates: they differ in each run

# Providers' names for the state that they keep between two calls of one conversation.
_SERVER_STATE: Final = (
    "previous_response_id",
    "use_previous_response_id",
    "conversation",
    "conversation_id",
    "session_id",
    "thread_id",
    "container",
    "mcp_servers",
    "background",
)
_IMPLEMENTED: Final = ("_generate", "_agenerate", "_stream", "_astream")  # by integrations
_WRAPPERS: Final = (  # the host's own methods around these; they are called on a copy
    *("invoke", "ainvoke", "stream", "astream", "generate", "agenerate", "generate_prompt"),
    *("agenerate_prompt", "_generate_with_cache", "_agenerate_with_cache"),
)
_NATIVE: Final = ("_stream_chat_model_events", "_astream_chat_model_events")  # of some models
_BINDERS: Final = ("bind", "bind_tools")
_CLIENT_TOOLS: Final = ("function", "custom")


def view(message: BaseMessage) -> dict[str, Any]:
    """Return the fields of a message that a model may read: no generated ids, no artifacts."""
    if isinstance(message, ToolMessage):
        return message.model_dump(exclude={"id", "artifact"})
    seen = message.model_dump()
    if isinstance(message, AIMessage) and str(seen["id"] or _GENERATED).startswith(_GENERATED):
        seen["id"] = None
    return seen


@dataclass(frozen=True, slots=True, eq=False)
class ModelCall:
    """One call of a model, below the host's wrapper.

    Attributes:
        model: the caller's own.
        method: whether the call returns a stream or a whole reply.
        messages: the history.
        stop: strings at which the reply ends.
        kwargs: tools, their choice, the response's format, settings.
        key: a copy of all these values and of the model's own settings, which later changes do
            not affect.
    """

    model: BaseChatModel
    method: Literal["stream", "generate"]
    messages: Sequence[BaseMessage]
    stop: Sequence[str] | None
    kwargs: Mapping[str, Any]
    key: tuple[Any, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Copy the values of the call."""
        views = [view(message) for message in self.messages]
        settings = plain_attributes(self.model), _frozen(getattr(self.model, "model_kwargs", None))
        key = (self.method, views, _frozen(self.stop), _frozen(dict(self.kwargs)), settings)
        object.__setattr__(self, "key", key)

    def __eq__(self, other: object) -> bool:
        """Return whether the calls are equal; values that cannot be compared are not."""
        if not isinstance(other, ModelCall):
            return NotImplemented
        try:
            return self.model is other.model and same_to_read(self.key, other.key)
        except Exception:  # noqa: BLE001 such as an array in a message
            return False

    __hash__ = None  # type: ignore[assignment]

    @property
    def samples(self) -> bool:
        """Whether the model has a temperature, other than 0: equal requests differ in replies."""
        found = {**vars(self.model), **(getattr(self.model, "model_kwargs", None) or {})}
        return bool({**found, **self.kwargs}.get("temperature", 0) != 0)

    def followed_by(self, messages: Sequence[BaseMessage]) -> "ModelCall":
        """Return the same call with more history."""
        together = [*self.messages, *messages]
        return ModelCall(self.model, self.method, together, self.stop, self.kwargs)

    def changed(self, messages: Sequence[BaseMessage]) -> bool:
        """Return whether messages that the model was given are no longer those of the call."""
        return not same_to_read(self.key[1], [view(message) for message in messages])

    async def pieces(self, *, asynchronous: bool) -> AsyncGenerator[Any, None]:
        """Make the call with a copy of the history: chunks, or one whole reply with its tokens.

        Raises:
            RuntimeError: the model changed the history, as it would change the caller's.
        """
        messages = copied_where_possible(list(self.messages))
        if self.method == "generate":
            whole = await self._generated(messages, asynchronous=asynchronous)
            self._check(messages)
            yield whole
            return
        async with aclosing(self._streamed(messages, asynchronous=asynchronous)) as chunks:
            async for chunk in chunks:
                yield copied_where_possible(chunk)
        self._check(messages)

    def _check(self, messages: Sequence[BaseMessage]) -> None:
        if self.changed(messages):
            raise RuntimeError("the model changes the history that it is given")

    async def _streamed(
        self, messages: list[BaseMessage], *, asynchronous: bool
    ) -> AsyncGenerator[Any, None]:
        arguments = {"stop": self.stop, **self.kwargs}
        model: Any = self.model
        if asynchronous:
            async with aclosing(model._astream(messages, **arguments)) as chunks:  # noqa: SLF001 what integrations implement
                async for chunk in chunks:
                    yield chunk
        else:
            for chunk in model._stream(messages, **arguments):  # noqa: SLF001
                yield chunk

    async def _generated(self, messages: list[BaseMessage], *, asynchronous: bool) -> "WholeReply":
        model: Any = self.model
        tokens = _Tokens()
        kind: Any = AsyncCallbackManagerForLLMRun if asynchronous else CallbackManagerForLLMRun
        call = model._agenerate if asynchronous else model._generate  # noqa: SLF001
        arguments = {"stop": self.stop, **self.kwargs}
        if "run_manager" in signature(call).parameters:
            arguments["run_manager"] = kind(
                run_id=uuid4(), handlers=[tokens], inheritable_handlers=[tokens]
            )
        result = call(messages, **arguments)
        return WholeReply(await result if asynchronous else result, tokens.seen)


@dataclass(frozen=True, slots=True)
class WholeReply:
    """A reply that was not streamed, and the tokens that the model reported meanwhile."""

    result: ChatResult
    tokens: Sequence[tuple[Any, Any]]


class _Tokens(BaseCallbackHandler):
    """Records the tokens that a model reports by itself."""

    run_inline = True
    raise_error = True

    def __init__(self) -> None:
        self.seen: list[tuple[Any, Any]] = []

    def on_llm_new_token(self, token: Any, *, chunk: Any = None, **_about: Any) -> None:
        self.seen.append((token, chunk))


def _frozen(value: Any) -> Any:
    """Copy the containers of a value, so that it stays what it is."""
    if isinstance(value, Mapping):
        return {key: _frozen(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_frozen(one) for one in value]
    return value


def reply_of(recording: Recording, name: str | None) -> AIMessage:
    """Return the message that the host makes of the pieces of a call, but for its id.

    Raises:
        ValueError: the host makes another message than the pieces show.
    """
    [*pieces] = recording.pieces
    if getattr(recording.request.model, "output_version", None) == "v1":
        raise ValueError("the host rewrites the content of this model's replies")
    if isinstance(pieces[0], WholeReply):
        result: ChatResult = pieces[0].result
        generation, output = result.generations[0], result.llm_output or {}
    else:
        chunks = [piece.model_copy(deep=True) for piece in pieces]
        for chunk in chunks:
            chunk.message.response_metadata = _metadata(chunk)
        if not getattr(chunks[-1].message, "chunk_position", None):
            content: Any = "" if isinstance(chunks[-1].message.content, str) else []
            last = AIMessageChunk(content=content, chunk_position="last")
            chunks.append(ChatGenerationChunk(message=last))
        generation, output = generate_from_stream(iter(chunks)).generations[0], {}
    message: Any = generation.message.model_copy(deep=True)
    message.response_metadata = {**output, **_metadata(generation)}
    if name is not None:
        message.name = name
    assert isinstance(message, AIMessage)
    return message


def _metadata(generation: Any) -> dict[str, Any]:
    return {**(generation.generation_info or {}), **generation.message.response_metadata}


def tokens_of(recording: Recording) -> int:
    """Return the tokens that the pieces of a call report, prompts included."""
    total = 0
    for piece in recording.pieces:
        whole = isinstance(piece, WholeReply)
        message: Any = piece.result.generations[0].message if whole else piece.message
        if isinstance(message, AIMessage) and message.usage_metadata is not None:
            total += message.usage_metadata.get("total_tokens", 0)
    return total


def refusal(model: Any, tools: Sequence[Any]) -> str | None:
    """Return why a model must not be called speculatively, or `None` if it may be."""
    if not isinstance(model, BaseChatModel):
        return "it is not a chat model, but a wrapper around one"
    refused = _refused_class(type(model))
    if refused is not None:
        return refused
    if model.rate_limiter is not None:
        return "its rate limiter counts calls"
    if any(isinstance(tool, dict) for tool in tools):
        return "the provider runs tools of its own"
    settings = {**model.__dict__, **(getattr(model, "model_kwargs", None) or {})}
    return _server_state(settings)


@lru_cache(maxsize=64)
def _refused_class(model: type[BaseChatModel]) -> str | None:
    """Return why no model of a class must be called speculatively, or `None`."""
    for name in _WRAPPERS:
        if getattr(model, name) is not getattr(BaseChatModel, name):
            return f"it has a {name}() of its own"
    if any(getattr(model, name, None) is not None for name in _NATIVE):
        return "it streams events of its own"
    return None


def _server_state(settings: Mapping[str, Any]) -> str | None:
    for name in _SERVER_STATE:
        if settings.get(name):
            return f"the provider keeps state between calls ({name})"
    for tool in settings.get("tools") or ():
        if isinstance(tool, dict) and tool.get("type", "function") not in _CLIENT_TOOLS:
            return "the provider runs tools of its own"
    return None


def in_place_of(original: Callable[..., Any], method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls a method, with the signature of `original` for the host."""

    def called(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    called.__wrapped__ = original  # type: ignore[attr-defined]
    return called


class ModelTap:
    """Intercepts the host's calls of a model, and replays those that were made speculatively.

    Attributes:
        last: the last call that succeeded.
    """

    def __init__(self, run: AgentRun, model: BaseChatModel, effects: SideEffects) -> None:
        """Create a tap of a model's calls in a run."""
        self.last: ModelCall | None = None
        self._run = run
        self._model: Any = model
        self._effects = effects
        self._calls = {name: getattr(model, name) for name in _IMPLEMENTED}

    def model(self) -> BaseChatModel:
        """Return a copy of the model whose calls are intercepted.

        The copy is of the same class. Calls are made on the original, since models may count them,
        and so are bindings, since models may keep what is bound.
        """
        tapped = copy(self._model)
        for name, call in self._calls.items():
            tapped.__dict__[name] = in_place_of(call, getattr(self, name))
        for name in _BINDERS:
            tapped.__dict__[name] = self._binding(getattr(self._model, name))
        return tapped  # type: ignore[no-any-return]

    def _binding(self, bind: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(bind)
        def bound(*args: Any, **kwargs: Any) -> Any:
            return self._tapped(bind(*args, **kwargs))

        return bound

    def _tapped(self, bound: Any) -> Any:
        """Return what a model binds with its calls intercepted; another model's calls are not."""
        if bound is self._model:
            return self.model()
        if isinstance(bound, RunnableBinding):
            return bound.model_copy(update={"bound": self._tapped(bound.bound)})
        return bound

    def _claim(
        self, method: Any, messages: Any, stop: Any, kwargs: Mapping[str, Any]
    ) -> tuple[ModelCall | None, Recording | None]:
        call: ModelCall | None
        try:
            call = ModelCall(self._model, method, list(messages), stop, kwargs)
        except Exception:  # noqa: BLE001 a call that cannot be compared cannot be replaced
            call = None
        if call is None or _server_state(kwargs) is not None:
            self._run.close()
            return None, None
        return call, self._run.claim(call)

    def _made(self, call: ModelCall | None) -> None:
        self.last = call
        if call is not None and call.changed(call.messages):
            self._effects.note("it changes the history that it is given")

    def _slices(self, name: str) -> Slices | None:
        """Return a watcher of a call on the loop; the host's own methods call threads."""
        own = getattr(type(self._model), name) is not getattr(BaseChatModel, name)
        return Slices() if own else None

    def _generate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        call, ahead = self._claim("generate", messages, stop, kwargs)
        for piece in _pieces(ahead):
            if run_manager is not None:
                for token, chunk in piece.tokens:
                    run_manager.on_llm_new_token(token, chunk=chunk)
            self.last = call
            return piece.result  # type: ignore[no-any-return]
        given = _arguments(self._calls["_generate"], stop, run_manager, kwargs)
        with self._effects.watched():
            result: ChatResult = self._calls["_generate"](messages, **given)
        self._made(call)
        return result

    async def _agenerate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        call, ahead = self._claim("generate", messages, stop, kwargs)
        async with aclosing(_apieces(ahead)) as pieces:
            async for piece in pieces:
                if run_manager is not None:
                    for token, chunk in piece.tokens:
                        await run_manager.on_llm_new_token(token, chunk=chunk)
                self.last = call
                return piece.result  # type: ignore[no-any-return]
        given = _arguments(self._calls["_agenerate"], stop, run_manager, kwargs)
        slices = self._slices("_agenerate")
        with self._effects.watched(slices):
            work = self._calls["_agenerate"](messages, **given)
            result: ChatResult = await (work if slices is None else slices.of(work))
        self._made(call)
        return result

    def _stream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        call, ahead = self._claim("stream", messages, stop, kwargs)
        given = _Prefix(ahead)
        for chunk in _pieces(ahead):
            yield given.noted(chunk)
        if not given.complete:
            passed = _arguments(self._calls["_stream"], stop, run_manager, kwargs)
            with self._effects.watched():
                for chunk in self._calls["_stream"](messages, **passed):
                    if not given.repeats(chunk):
                        yield chunk
        self._made(call)

    async def _astream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        call, ahead = self._claim("stream", messages, stop, kwargs)
        given = _Prefix(ahead)
        async with aclosing(_apieces(ahead)) as pieces:
            async for chunk in pieces:
                yield given.noted(chunk)
        if not given.complete:
            passed = _arguments(self._calls["_astream"], stop, run_manager, kwargs)
            slices = self._slices("_astream")
            with self._effects.watched(slices):
                async with aclosing(self._calls["_astream"](messages, **passed)) as chunks:
                    async for chunk in chunks if slices is None else slices.items(chunks):
                        if not given.repeats(chunk):
                            yield chunk
        self._made(call)


def _arguments(
    call: Callable[..., Any], stop: Any, run_manager: Any, kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of the host's call, with its `run_manager` if there is one."""
    given = {"stop": stop, **kwargs}
    if run_manager is not None and "run_manager" in signature(call).parameters:
        given["run_manager"] = run_manager
    return given


def _pieces(ahead: Recording | None) -> Iterator[Any]:
    """Return the pieces of a speculative call up to an error; then the host's call is made."""
    return iter(()) if ahead is None else ahead.read()


async def _apieces(ahead: Recording | None) -> AsyncGenerator[Any, None]:
    if ahead is not None:
        async with aclosing(ahead.aread()) as pieces:
            async for piece in pieces:
                yield piece


class _Prefix:
    """The chunks that a stream has yielded of a speculative call which then failed.

    The call is made again. If its stream begins differently, the first call's error is raised.
    """

    def __init__(self, ahead: Recording | None) -> None:
        self._ahead = ahead
        self._given: list[Any] = []
        self._again = 0

    @property
    def complete(self) -> bool:
        """Whether the speculative call was replayed to its end."""
        return self._ahead is not None and self._ahead.error is None

    def noted(self, chunk: Any) -> Any:
        self._given.append(_content(chunk))
        return chunk

    def repeats(self, chunk: Any) -> bool:
        """Return whether a chunk was yielded before."""
        if self._again == len(self._given):
            return False
        if _content(chunk) != self._given[self._again]:
            assert self._ahead is not None
            assert self._ahead.error is not None
            raise self._ahead.error
        self._again += 1
        return True


def _content(chunk: Any) -> Any:
    message = chunk.message
    return _frozen([message.content, getattr(message, "tool_call_chunks", None)])
