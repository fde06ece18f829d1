"""Imports of optional dependencies, with an error that names the missing extra."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from ralmspec_plugins.errors import MissingExtraError


def optional(module: str, extra: str, package: str) -> Any:
    """Return a module of an extra.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise  # the module is installed, and lacks its own dependency
        raise MissingExtraError(extra, package) from error


# Disables the progress bars of transformers while it loads a model.


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Disable progress bars in a context; transformers must be installed."""
    logging = import_module("transformers.utils.logging")
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
