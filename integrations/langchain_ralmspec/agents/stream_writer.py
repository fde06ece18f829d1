"""LangGraph's stream writer in speculative calls, which must write nothing into a run's stream."""

from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.runtime import Runtime


class _NoWriter:
    """Replaces the stream writer of a run; it writes nothing, and notes that it was called."""

    def __init__(self) -> None:
        self.called = False

    def __call__(self, _: Any) -> None:
        self.called = True


def unwritten(config: RunnableConfig) -> RunnableConfig:
    """Return the config of a speculative call, whose stream writer writes nothing."""
    own = {
        name: value.override(stream_writer=_NoWriter()) if isinstance(value, Runtime) else value
        for name, value in config.get("configurable", {}).items()
    }
    made = RunnableConfig(**config)
    made["configurable"] = own
    return made


def check_unwritten(config: RunnableConfig) -> None:
    """Check that a speculative call with this config has written nothing into the stream.

    Raises:
        RuntimeError: it has, so that the host must make the call itself.
    """
    for value in config.get("configurable", {}).values():
        writer = value.stream_writer if isinstance(value, Runtime) else None
        if isinstance(writer, _NoWriter) and writer.called:
            raise RuntimeError("a speculative call has written into the stream of its run")
