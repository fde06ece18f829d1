"""Keeps transformers from drawing progress bars while it loads: a library is silent."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module


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
