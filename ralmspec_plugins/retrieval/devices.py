"""Devices of models, checked before a model is loaded."""

from typing import Any

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.retrieval.device_memory import is_memory_error


def usable_device(torch: Any, name: Any) -> Any:
    """Return a device that torch can compute on.

    Args:
        torch: the library, which is optional here.
        name: of the device, or the device itself.

    Raises:
        ConfigError: there is no such device here.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        problem = "its tensors have no data" if device.type == "meta" else ""
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        problem = "" if is_memory_error(error) else str(error).strip().partition("\n")[0]
    if problem:
        raise ConfigError(
            f"torch {torch.__version__} cannot use the device {str(name)!r} ({problem}); give "
            "'cpu', or 'cuda' or 'cuda:<number>' with a CUDA build of torch and its driver"
        )
    return device
