"""The results of KNN-LM's benchmarks: each part is on the disk before the next one begins."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ralmspec_plugins.bench.reading import read_results
from ralmspec_plugins.bench.surroundings import surroundings
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.whole_file import write_whole

FORMAT: Final = "ralmspec-knn-bench"
SECTIONS: Final = (
    "models",
    "cells",
    "rates",
    "baselines",
    "recalls",
    "perplexities",
    "simulated",
    "profiles",
)


class Results:
    """A file of results that grows part by part, and is gone on with after a stop."""

    def __init__(self, file: Path, settings: Mapping[str, Any]) -> None:
        """Open the file, or begin one.

        Raises:
            ConfigError: what is there was measured with other settings.
            InputError: what is there are no such results.
        """
        self._file = file
        self._settings = json.loads(json.dumps(settings))  # tuples are lists there
        self.content: dict[str, Any] = self._begun()

    def has(self, section: str, name: str) -> bool:
        """Say whether a part is there."""
        return name in self.content[section]

    def put(self, section: str, name: str, part: Any) -> None:
        """Add a part, with where its numbers come from, and write the file."""
        self.content[section][name] = {"surroundings": surroundings(), "found": part}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._file, json.dumps(self.content).encode())

    def _begun(self) -> dict[str, Any]:
        if not self._file.exists():
            empty: dict[str, Any] = {section: {} for section in SECTIONS}
            return {"format": FORMAT, "settings": self._settings, **empty}
        content = read(self._file)
        if content["settings"] != self._settings:
            raise ConfigError(
                f"{self._file} was begun with other settings ({content['settings']}); go on with "
                "them, or give another file"
            )
        return content


def read(file: Path) -> dict[str, Any]:
    """Read results.

    Raises:
        InputError: the file holds something else.
    """
    return read_results(file, FORMAT, "KNN-LM's benchmarks")
