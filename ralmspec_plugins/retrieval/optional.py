"""Import optional dependencies where they are used, and say how to get a missing one."""

from importlib import import_module
from typing import Any

from ralmspec_plugins.errors import MissingExtraError


def optional(module: str, extra: str, package: str) -> Any:
    """Import a module that an extra brings.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise  # the module is there, and lacks something of its own
        raise MissingExtraError(extra, package) from error
