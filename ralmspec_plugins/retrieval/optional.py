"""Imports of optional dependencies, and loading of models with them."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from ralmspec_plugins.errors import MissingExtraError, ModelError
from ralmspec_plugins.retrieval.device_memory import is_memory_error


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


def here_only(path: str) -> bool:
    """Return whether a model is a folder, whose files must not cause downloads."""
    return Path(path).is_dir()


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Convert the errors of reading a saved model's files, which may be of any class.

    Raises:
        ModelError: the files are damaged, or there are none.
    """
    try:
        with no_progress_bar():
            yield
    except (ImportError, MemoryError):
        raise
    except Exception as problem:
        if is_memory_error(problem):
            raise
        raise ModelError(f"{what}: {problem}") from problem
