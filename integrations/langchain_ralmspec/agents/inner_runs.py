"""What a tool's call shows besides its result: runs inside it, custom events, streamed values.

The result of a speculative call may replace the host's own call only if nothing else would be
missing there.
"""

from collections.abc import Collection, Sequence
from typing import Any, Final, Literal, TypeAlias

from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler, CallbackManager
from langchain_core.runnables import RunnableConfig
from langgraph.config import get_stream_writer
from langgraph.runtime import Runtime

from langchain_ralmspec.configs import quiet_config

Kind: TypeAlias = Literal["run", "retriever", "custom event"]

_HEARD: Final = {  # the handlers' methods and the attribute that disables them
    "retriever": (
        "ignore_retriever",
        ("on_retriever_start", "on_retriever_end", "on_retriever_error"),
    ),
    "custom event": ("ignore_custom_event", ("on_custom_event",)),
}
_SILENT: Final = (BaseCallbackHandler, AsyncCallbackHandler)  # whose methods do nothing


class InnerRuns(BaseCallbackHandler):
    """Records what a speculative call of a tool shows besides its result.

    Attributes:
        kinds: what began inside it: a run of a retriever, another run (of a chain, a graph, a
            model, a tool), a custom event.
        written: the values that it has written to the graph's stream.
    """

    run_inline = True

    def __init__(self) -> None:
        """Create a handler that has recorded nothing."""
        self.kinds: set[Kind] = set()
        self.written: list[Any] = []
        self._own: Any = None  # the id of the tool's own run

    def config(self, config: RunnableConfig) -> RunnableConfig:
        """Return the config of a call that is recorded and shows nothing.

        It has none of the graph's own entries except the runtime: an agent inside the tool
        writes no checkpoint, and an interrupt is an error.
        """
        quiet = quiet_config(config, self)
        kept: dict[str, Any] = {}
        for name, value in (config.get("configurable") or {}).items():
            if isinstance(value, Runtime):
                kept[name] = value.override(stream_writer=self.written.append)
            elif not name.startswith("__"):
                kept[name] = value
        quiet["configurable"] = kept
        return quiet

    def write_again(self) -> None:
        """Write the recorded values to the stream of the host's call."""
        if self.written:
            write = get_stream_writer()
            for value in self.written:
                write(value)

    def on_tool_start(self, *_args: Any, run_id: Any, **_about: Any) -> None:
        """Record a tool inside the tool."""
        if self._own is None:
            self._own = run_id
        else:
            self.kinds.add("run")

    def on_chain_start(self, *_args: Any, **_about: Any) -> None:
        """Record a chain or a graph."""
        self.kinds.add("run")

    def on_llm_start(self, *_args: Any, **_about: Any) -> None:
        """Record a model."""
        self.kinds.add("run")

    def on_chat_model_start(self, *_args: Any, **_about: Any) -> None:
        """Record a chat model."""
        self.kinds.add("run")

    def on_retriever_start(self, *_args: Any, **_about: Any) -> None:
        """Record a retriever."""
        self.kinds.add("retriever")

    def on_custom_event(self, *_args: Any, **_about: Any) -> None:
        """Record an event of the tool's own."""
        self.kinds.add("custom event")


def listeners(config: RunnableConfig) -> Sequence[BaseCallbackHandler]:
    """Return the handlers that are notified of runs inside a call with this config."""
    return CallbackManager.configure(inheritable_callbacks=config.get("callbacks")).handlers


def noticed(kinds: Collection[Kind], handlers: Sequence[BaseCallbackHandler]) -> bool:
    """Return whether a handler or a graph misses what a call of these kinds has shown.

    A run of another kind always counts: it may write checkpoints or streams of its own.
    """
    return "run" in kinds or any(_hears(handler, kind) for kind in kinds for handler in handlers)


def _hears(handler: BaseCallbackHandler, kind: Kind) -> bool:
    ignored, methods = _HEARD[kind]
    if getattr(handler, ignored):
        return False
    return any(
        getattr(type(handler), name) not in [getattr(one, name) for one in _SILENT]
        for name in methods
    )
