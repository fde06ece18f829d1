"""The configs under which a host's parts are called, so that only a recording hears of it.

Handlers come from more places than a config: from the context, from LangSmith's
tracing, from `set_debug`. Here they are all kept away from calls that may be rolled back.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
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
from langchain_core.tracers import context as tracing
from langchain_core.tracers._streaming import _V2StreamingCallbackHandler
from langchain_core.tracers.stdout import ConsoleCallbackHandler, FunctionCallbackHandler
from langsmith.run_helpers import tracing_context

from langchain_ralmspec.recording import Recorder, Recording, recorder_like
from ralmspec_plugins.adapters.events import Failures


class _Mute(ConsoleCallbackHandler):
    """Stands where the host would put its printer of `set_debug`, which would print at once."""

    def __init__(self) -> None:
        FunctionCallbackHandler.__init__(self, lambda _: None)


def _quietly(manager: CallbackManager, recorder: Recorder) -> CallbackManager:
    """Have a manager tell nobody but a recorder."""
    for handler in (recorder, _Mute()) if get_debug() else (recorder,):
        manager.add_handler(handler)
    return manager


@dataclass(frozen=True, slots=True, eq=False)
class HostContext:
    """What one request was called with: `Request.context` of LangChain's requests."""

    config: RunnableConfig  # the caller's, with the callbacks of this request's own run
    inputs: Mapping[str, Any]  # what the prompt is formatted with, besides the context
    asynchronous: bool = False
    failures: Failures[Recording] = field(default_factory=Failures)

    def call(self) -> tuple[RunnableConfig, Recording]:
        """Make the config for one host call of this request, and the recording of its events."""
        recording = Recording()
        manager = self.config.get("callbacks")
        handlers: Sequence[BaseCallbackHandler] = ()
        quiet = CallbackManager(handlers=[])
        if isinstance(manager, BaseCallbackManager):
            handlers = manager.inheritable_handlers
            quiet = CallbackManager(
                handlers=[],
                parent_run_id=manager.parent_run_id,
                tags=list(manager.tags),
                inheritable_tags=list(manager.inheritable_tags),
                metadata=dict(manager.metadata),
                inheritable_metadata=dict(manager.inheritable_metadata),
            )
        recorder = recorder_like(handlers, recording, asynchronous=self.asynchronous)
        config = RunnableConfig(**self.config)
        config["callbacks"] = _quietly(quiet, recorder)
        config.pop("run_name", None)
        config.pop("run_id", None)
        return config, recording


def heard_by(config: RunnableConfig) -> Sequence[BaseCallbackHandler]:
    """Give the handlers that hear of a run with this config."""
    manager = config.get("callbacks")
    return manager.handlers if isinstance(manager, BaseCallbackManager) else ()


def wants_stream(config: RunnableConfig) -> bool:
    """Say whether some handler follows what a model writes while it writes."""
    return any(
        isinstance(handler, _V2StreamingCallbackHandler) or hasattr(handler, "tap_output_aiter")
        for handler in heard_by(config)
    )


def shared_call(config: RunnableConfig) -> tuple[RunnableConfig, Recording]:
    """Make the config of a call whose result others may get too: under nobody's run.

    What sets the call up is kept: its `configurable` values, tags, metadata and limits. The run
    above it is nobody's, but there is one, as the host's custom events need.
    """
    recording = Recording()
    manager = CallbackManager(handlers=[], parent_run_id=uuid4())
    quiet = RunnableConfig(
        callbacks=_quietly(manager, Recorder(recording)),
        tags=list(config.get("tags") or ()),
        metadata=dict(config.get("metadata") or {}),
    )
    if "configurable" in config:
        quiet["configurable"] = config["configurable"]
    if "max_concurrency" in config:
        quiet["max_concurrency"] = config["max_concurrency"]
    if "recursion_limit" in config:
        quiet["recursion_limit"] = config["recursion_limit"]
    return quiet, recording


@contextmanager
def unheard(config: RunnableConfig) -> Iterator[None]:
    """Have what runs here tell nobody but the handlers of `config`.

    Handlers also come from the context: from `get_usage_metadata_callback` and its
    kind, from LangSmith's tracing, from the run around this one. To be entered in
    a context of its own (a worker's): the engine copies it for each piece of work.
    """
    hooks: list[ContextVar[Any]] = [hook[0] for hook in getattr(tracing, "_configure_hooks", ())]
    tokens = [(hook, hook.set(None)) for hook in hooks]
    parent = var_child_runnable_config.set(config)
    try:
        with tracing_context(enabled=False):
            yield
    finally:
        var_child_runnable_config.reset(parent)
        for hook, token in reversed(tokens):
            hook.reset(token)


# Takes the handlers off a host's part, so that they hear of it only what is committed.
#
# Callbacks given to a model's constructor, and listeners bound to a runnable, hear every
# call. A part without them is called; they are told afterwards, with all other handlers.


Listen: TypeAlias = Callable[[RunnableConfig], list[BaseCallbackHandler]]


@dataclass(frozen=True, slots=True)
class Silenced:
    """A part without its own handlers, and these."""

    runnable: Runnable[Any, Any]
    listeners: tuple[Listen, ...] = ()

    def handlers(self, config: RunnableConfig) -> list[BaseCallbackHandler]:
        """Give the handlers that the part would have brought to a call with this config."""
        return [handler for listen in self.listeners for handler in listen(config)]


def silenced(runnable: Runnable[Any, Any]) -> Silenced:
    """Take the handlers off a model or retriever, through what is wrapped around it."""
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
