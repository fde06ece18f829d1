"""Takes the handlers off a host's part, so that they hear of it only what is committed.

Callbacks given to a model's constructor, and listeners bound to a runnable, hear every
call. A part without them is called; they are told afterwards, with all other handlers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager, Callbacks
from langchain_core.language_models import BaseLanguageModel
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.configurable import RunnableConfigurableFields

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
