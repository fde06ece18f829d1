"""Errors of a device without enough memory, whichever library reports them."""

from collections.abc import Callable
from typing import TypeVar

from ralmspec_plugins.errors import DeviceMemoryError

ResultT = TypeVar("ResultT")

# Torch's allocator on a GPU has a class for it; that on the CPU, pinned memory, cuBLAS and FAISS
# only have these words.
_WORDS = ("out of memory", "cublas_status_alloc_failed", "alloc fail", "defaultcpuallocator")


def is_memory_error(problem: BaseException) -> bool:
    """Return whether an error says that a device has no memory left.

    >>> is_memory_error(RuntimeError("CUDA error: out of memory"))
    True
    """
    if type(problem).__name__ == "OutOfMemoryError":  # of torch, which is optional here
        return True
    text = str(problem).lower()
    return isinstance(problem, RuntimeError) and any(words in text for words in _WORDS)


def within_memory(compute: Callable[[], ResultT], advice: str) -> ResultT:
    """Return the result of a computation on a device.

    The error does not refer to the library's own, whose traceback would keep the tensors of the
    failed computation alive.

    Args:
        compute: the computation.
        advice: what it was, and what to do.

    Raises:
        DeviceMemoryError: the device has too little memory.
    """
    try:
        return compute()
    except Exception as problem:
        if not is_memory_error(problem):
            raise
        said = str(problem).strip().partition("\n")[0]
    raise DeviceMemoryError(f"{advice} ({said})")
