"""The Lucene indexes that pyserini offers for download, by name."""

import contextlib
import difflib
import logging
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from ralmspec_plugins.errors import ConfigError, IndexFileError, MissingExtraError
from ralmspec_plugins.retrieval.lucene_jvm import classes, start_java

_log = logging.getLogger(__name__)
_SHOWN = 5


def prebuilt_folder(name: str) -> Path:
    """Find a prebuilt index in pyserini's cache, or download it there with pyserini's own helper.

    Raises:
        ConfigError: there is none of that name; the message lists close ones.
        IndexFileError: the download failed.
        MissingExtraError: pyserini, or what it downloads with, is not installed.
    """
    start_java()  # before pyserini, which would start it in its own way
    try:
        with classes:  # pyserini looks up Java's while it is imported
            known: Mapping[str, Any] = import_module("pyserini.prebuilt_index_info").TF_INDEX_INFO
            download = import_module("pyserini.util").download_prebuilt_index
    except ModuleNotFoundError as error:
        raise MissingExtraError("lucene", str(error.name)) from error
    if name not in known:
        close = difflib.get_close_matches(name, known, n=_SHOWN, cutoff=0.4)
        raise ConfigError(
            f"pyserini has no prebuilt BM25 index {name!r}; close to it are "
            f"{', '.join(close or list(known)[:_SHOWN])}"
        )
    with contextlib.redirect_stdout(_Log()), contextlib.redirect_stderr(_Log()):
        try:
            return Path(download(name, verbose=False))
        except (OSError, ValueError, AssertionError, LookupError) as error:
            raise IndexFileError(
                f"the prebuilt index {name!r} could not be downloaded ({error}); check the "
                "network, or download it by hand and open its folder"
            ) from error


class _Log:
    """Takes what pyserini prints; a library is silent."""

    def write(self, text: str) -> int:
        if text.strip():
            _log.info("%s", text.strip())
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""
