"""The settings under which a model's pass is computed: the same in every thread."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any


@contextmanager
def own_pass(torch: Any, device: Any) -> Iterator[None]:
    """Compute without gradients, and without the calling thread's `torch.autocast`.

    Autocast belongs to a thread: a guess in a worker's thread would be computed without it.

    Args:
        torch: the library, which is optional here.
        device: the model's, or its name.
    """
    kind, cast = torch.device(device).type, nullcontext()
    if torch.amp.is_autocast_available(kind):
        cast = torch.autocast(kind, enabled=False)
    with torch.inference_mode(), cast:
        yield
