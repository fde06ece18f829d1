"""What was measured so far, line by line in a file: a run that was stopped goes on behind it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ralmspec_plugins.errors import InputError


class Journal:
    """Results by their names, each written as soon as it is known."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Go on with a file of a run of the same settings, or begin one.

        Raises:
            InputError: the file is of a run of other settings.
        """
        self._path = path
        self._known: dict[str, Any] = {}
        told = json.loads(json.dumps({"settings": settings}))
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        if lines and json.loads(lines[0]) != told:
            raise InputError(
                f"{path} is of a run with other settings ({lines[0]}); give another --out, "
                "or remove it"
            )
        for line in lines[1:]:
            try:
                record = json.loads(line)
            except ValueError:
                break  # the last line was not whole when the run was stopped
            self._known[record["name"]] = record["value"]
        whole = [told, *({"name": name, "value": value} for name, value in self._known.items())]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(one) + "\n" for one in whole), encoding="utf-8")

    def __contains__(self, name: str) -> bool:
        """Return whether something stands under a name."""
        return name in self._known

    def known(self, name: str) -> Any:
        """Return what stands under a name."""
        return self._known[name]

    def of(self, name: str, measure: Callable[[], Any]) -> Any:
        """Return what stands under a name, or measure it and write it down."""
        if name not in self._known:
            self._known[name] = json.loads(json.dumps(measure()))
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"name": name, "value": self._known[name]}) + "\n")
        return self._known[name]
