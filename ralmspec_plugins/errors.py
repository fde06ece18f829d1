"""The errors that this package raises.

All derive from `RalmSpecError`; each also derives from the built-in that fits,
so that callers who do not know this package still catch them.
"""


class RalmSpecError(Exception):
    """Base class of the errors of this package."""


class ConfigError(RalmSpecError, ValueError):
    """A setting is out of range, unknown, or does not fit another one."""


class InputError(RalmSpecError, ValueError):
    """What was passed in cannot be used: an empty knowledge base, NaN vectors, a wrong shape."""


class IndexFileError(RalmSpecError, ValueError):
    """A saved knowledge base is missing, damaged, or in another format."""


class ModelError(RalmSpecError, ValueError):
    """A model cannot be loaded, or does not support what is requested."""


class ContextOverflowError(ModelError):
    """Passage, prompt and text together exceed the model's context."""


class DeviceMemoryError(RalmSpecError, MemoryError):
    """A device has too little memory for a computation; what was computed before is not lost."""


class MissingExtraError(RalmSpecError, ImportError):
    """An optional dependency is not installed.

    >>> str(MissingExtraError("faiss", "faiss-cpu"))
    "faiss-cpu is not installed. Install it with: pip install 'ralmspec-plugins[faiss]'"
    """

    def __init__(self, extra: str, needs: str) -> None:
        """Name the missing package and the command that installs it."""
        super().__init__(
            f"{needs} is not installed. Install it with: pip install 'ralmspec-plugins[{extra}]'"
        )


class Cancelled(RalmSpecError):  # noqa: N818 a state, not a fault
    """A piece of work stopped because its result is no longer needed."""


class DeadlineExceeded(RalmSpecError, TimeoutError):  # noqa: N818 as in grpc and asyncio
    """A request ran past its deadline; everything in flight was stopped."""


class Closed(RalmSpecError, RuntimeError):  # noqa: N818 a state, as above
    """A request needs threads of an engine that was closed."""

    def __init__(self, what: str = "engine") -> None:
        """Name what was closed, and what to do."""
        super().__init__(
            f"This {what} was closed before the request was answered. Read its stream to the end, "
            "or close that, before you call close(); or send the request again"
        )


class Overloaded(RalmSpecError, RuntimeError):  # noqa: N818 a state, as above
    """More searches than the limit are waiting, for longer than the timeout."""
