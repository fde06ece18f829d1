"""The configs of calls that may be dropped, of which no handler of the caller is notified.

Handlers come not only from a config: also from the context, from LangSmith's tracing,
from `set_debug`, and from the parts themselves. This module disables all of them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from uuid import uuid4

from langchain_core.callbacks import (
    BaseCallbackHandler,
    BaseCallbackManager,
    CallbackManager,
    Callbacks,
)
from langchain_core.globals import get_debug
from langchain_core.language_models import BaseLanguageModel
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.runnables.configurable import RunnableConfigurableFields
from langchain_core.tracers import ConsoleCallbackHandler
from langsmith.run_helpers import tracing_context

from langchain_ralmspec.recording import CallCapture, StreamingCapture


class _Mute(ConsoleCallbackHandler):
    """Replaces the handler that the host adds for `set_debug`, which would print at once."""

    def __init__(self) -> None:
        super().__init__()
        self.function_callback = lambda _: None


def quiet_config(config: RunnableConfig, *handlers: BaseCallbackHandler) -> RunnableConfig:
    """Return the config of a call that notifies only these handlers; all else is the caller's.

    A call without a run around it gets a random parent id, as the host's custom events need one.
    """
    given = config.get("callbacks")
    if isinstance(given, BaseCallbackManager):
        manager = given.copy()
    else:
        manager = CallbackManager(handlers=[], parent_run_id=uuid4())
    manager.set_handlers([*handlers, _Mute()] if get_debug() else [*handlers])
    quiet = RunnableConfig(**config)
    quiet["callbacks"] = manager
    quiet.pop("run_name", None)
    quiet.pop("run_id", None)
    return quiet


@contextmanager
def unheard(config: RunnableConfig) -> Iterator[None]:
    """Restrict the calls made in this context to the handlers of `config`.

    Handlers also come from the context: from `get_usage_metadata_callback` and similar
    functions, from LangSmith's tracing, from the run around this one. It must be entered in a
    separate context (a worker's): the engine copies the context for each piece of work.
    """
    with ExitStack() as stack:
        stack.enter_context(tracing_context(enabled=False))
        while found := _handlers_in_context():
            for variable in found:
                stack.callback(variable.reset, variable.set(None))
        parent = var_child_runnable_config.set(config)
        stack.callback(var_child_runnable_config.reset, parent)
        yield


def _handlers_in_context() -> list[ContextVar[Any]]:
    """Return the context variables whose handlers the host adds to every run.

    Other variables may hold handlers that a part reads itself: these are unchanged.
    """
    held = [
        (variable, value)
        for variable, value in copy_context().items()
        if isinstance(value, BaseCallbackHandler)
    ]
    if not held:
        return []
    heard = CallbackManager.configure().handlers
    return [variable for variable, value in held if any(value is one for one in heard)]


@dataclass(frozen=True, slots=True, eq=False)
class HostContext:
    """The arguments of one request's call: `Request.context` of LangChain's requests."""

    config: RunnableConfig  # the caller's, with the callbacks of this request's own run
    inputs: Mapping[str, Any]  # the prompt's variables, besides the context
    streamed: bool = True  # whether the answer is requested in pieces
    calls: list[CallCapture] = field(default_factory=list)  # model calls that run or failed

    def call(self) -> tuple[RunnableConfig, CallCapture]:
        """Return the config of one model call, and the handler that captures its events."""
        streams = any(map(taps, heard_by(self.config)))
        capture = (StreamingCapture if streams else CallCapture)(streamed=self.streamed)
        return quiet_config(self.config, capture), capture

    @contextmanager
    def calling(self, config: RunnableConfig, capture: CallCapture) -> Iterator[None]:
        """Keep a call in `calls`, without the caller's handlers, while it runs in this context."""
        self.calls.append(capture)
        try:
            with unheard(config):
                yield
        except BaseException as error:
            capture.raised = error
            raise
        self.calls.remove(capture)


def heard_by(config: RunnableConfig) -> Sequence[BaseCallbackHandler]:
    """Return the handlers that are notified of a run with this config."""
    manager = config.get("callbacks")
    return manager.handlers if isinstance(manager, BaseCallbackManager) else ()


def taps(handler: BaseCallbackHandler) -> bool:
    """Return whether the host streams a chat model to this handler even if it is invoked."""
    return hasattr(handler, "tap_output_aiter")


# Removes the handlers from a host's part, so that they are notified only of committed calls.
#
# Callbacks given to a model's constructor, and listeners bound to a runnable, are notified of
# every call. A copy without them is called; they are notified at the commit, with all others.


Listen: TypeAlias = Callable[[RunnableConfig], list[BaseCallbackHandler]]


@dataclass(frozen=True, slots=True)
class Silenced:
    """A part without its own handlers, and these handlers."""

    runnable: Runnable[Any, Any]
    listeners: tuple[Listen, ...] = ()

    def handlers(self, config: RunnableConfig) -> list[BaseCallbackHandler]:
        """Return the handlers that the part would have added to a call with this config."""
        return [handler for listen in self.listeners for handler in listen(config)]


def silenced(runnable: Runnable[Any, Any]) -> Silenced:
    """Return a model or retriever without its handlers, including those of its wrappers."""
    if isinstance(runnable, RunnableBindingBase):
        return _unbound(runnable)
    if isinstance(runnable, RunnableConfigurableFields):
        inner = silenced(runnable.default)
        if not inner.listeners:
            return Silenced(runnable)
        return Silenced(runnable.model_copy(update={"default": inner.runnable}), inner.listeners)
    if isinstance(runnable, BaseLanguageModel) and runnable.callbacks:
        handlers = _handlers(runnable.callbacks)
        return Silenced(runnable.model_copy(update={"callbacks": None}), (lambda _: handlers,))
    return Silenced(runnable)


def _unbound(binding: RunnableBindingBase[Any, Any]) -> Silenced:
    inner = silenced(binding.bound)
    listeners = list(inner.listeners)
    if own := _handlers(binding.config.get("callbacks")):
        listeners.append(lambda _: own)
    listeners += [_listening(factory) for factory in binding.config_factories]
    if not listeners:
        return Silenced(binding)
    config = {key: value for key, value in binding.config.items() if key != "callbacks"}
    update = {"bound": inner.runnable, "config": config, "config_factories": []}
    return Silenced(binding.model_copy(update=update), tuple(listeners))


def _listening(factory: Callable[[RunnableConfig], RunnableConfig]) -> Listen:
    return lambda config: _handlers(factory(config).get("callbacks"))


def _handlers(callbacks: Callbacks) -> list[BaseCallbackHandler]:
    if callbacks is None:
        return []
    handlers: Sequence[BaseCallbackHandler] = (
        callbacks.handlers if isinstance(callbacks, BaseCallbackManager) else callbacks
    )
    return list(handlers)
