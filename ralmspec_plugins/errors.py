"""Every error that this package raises on purpose.

All derive from `RalmSpecError`; each also derives from the built-in that fits,
so that callers who do not know this package still catch them.
"""


class RalmSpecError(Exception):
    """Root of the errors that ralmspec_plugins raises on purpose."""


class ConfigError(RalmSpecError, ValueError):
    """A setting is out of range, unknown, or does not fit another one."""


class InputError(RalmSpecError, ValueError):
    """What was passed in cannot be used: an empty knowledge base, NaN vectors, a wrong shape."""


class IndexFileError(RalmSpecError, ValueError):
    """A saved knowledge base is missing, damaged, or not one of ours."""


class ModelError(RalmSpecError, ValueError):
    """A model cannot be loaded or does not fit what is asked of it."""


class ContextOverflowError(ModelError):
    """Passage, prompt and text together exceed the model's context."""


class MissingExtraError(RalmSpecError, ImportError):
    """An optional dependency is not installed.

    >>> str(MissingExtraError("faiss", "faiss-cpu"))
    "faiss-cpu is not installed. Install it with: pip install 'ralmspec-plugins[faiss]'"
    """

    def __init__(self, extra: str, needs: str) -> None:
        """Name the package that is missing and the command that brings it."""
        super().__init__(
            f"{needs} is not installed. Install it with: pip install 'ralmspec-plugins[{extra}]'"
        )


class Cancelled(RalmSpecError):  # noqa: N818 a state of affairs, not a fault
    """A piece of work stopped because nobody needs its result any more."""


class DeadlineExceeded(RalmSpecError, TimeoutError):  # noqa: N818 as in grpc and asyncio
    """A request ran past its deadline; everything in flight was stopped."""


class Closed(RalmSpecError, RuntimeError):  # noqa: N818 a state of affairs, as above
    """A request is to go on with threads that were let go."""

    def __init__(self, what: str = "engine") -> None:
        """Name what was closed, and the way out."""
        super().__init__(
            f"This {what} was closed before the request was answered. Read its stream to the end, "
            "or close that, before you call close(); or ask again"
        )


class Overloaded(RalmSpecError, RuntimeError):  # noqa: N818 a state of affairs, as above
    """More searches are waiting than was allowed, and for longer than was allowed."""
