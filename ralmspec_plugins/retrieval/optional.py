"""Imports of optional dependencies, and loading of models with them."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Final

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


# Decides where a model is loaded from: a folder, the hub's cache, or the hub.


_HUB_S: Final = 3.0  # for the hub's first answer; its own retries take a minute and more
_MARKS: Final = ("config.json", "modules.json")  # of a model, of a sentence-transformers model


def local_files_only(name: str) -> bool:
    """Return whether a model must be loaded without the hub: a folder, or one in the hub's cache.

    The latter only if the hub cannot be reached, which takes no retries to detect.

    Raises:
        ModelError: the name can only be a path, and there is no such folder; or the hub cannot be
            reached, and the model is not in its cache.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return True
    if path.exists():
        raise ModelError(f"{name!r} is a file; give the directory of a saved model.")
    if _looks_local(name):
        raise ModelError(f"There is no directory {name!r}.")
    if _hub_answers():
        return False
    if not _is_cached(name):
        raise ModelError(
            f"There is no directory {name!r}, and no model of this name in the cache of the hub, "
            "which cannot be reached from here. Give the directory of a saved model."
        )
    return True


def _looks_local(name: str) -> bool:
    """Return whether a name can be a path only; names on the hub are `owner/model` or `model`."""
    owner, _, model = name.partition("/")
    return (
        Path(name).is_absolute()
        or name.startswith(("~", "."))
        or "\\" in name
        or "/" in model
        or name.endswith("/")
        or (bool(model) and Path(owner).is_dir())
    )


def _is_cached(name: str) -> bool:
    hub = import_module("huggingface_hub")
    try:
        return any(isinstance(hub.try_to_load_from_cache(name, mark), str) for mark in _MARKS)
    except ValueError:  # no name that the hub may have
        return False


def _hub_answers() -> bool:
    """Return whether the hub can be reached, by its own client: proxies and settings hold."""
    constants = import_module("huggingface_hub.constants")
    if constants.HF_HUB_OFFLINE:
        return False
    session = import_module("huggingface_hub").get_session()
    try:
        session.head(constants.ENDPOINT, timeout=_HUB_S)
    except import_module("httpx").HTTPError:
        return False
    return True


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
