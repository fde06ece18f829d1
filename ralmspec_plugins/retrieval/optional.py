"""Import optional dependencies where they are used, and say how to get a missing one."""

from collections.abc import Iterator
from contextlib import contextmanager
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


# Keeps transformers from drawing progress bars while it loads: a library is silent.


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Load a model without a bar; the caller has transformers installed."""
    logging = import_module("transformers.utils.logging")
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
