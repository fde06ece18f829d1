"""What was measured so far, line by line in a file: a run that was stopped goes on behind it."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ralmspec_plugins.errors import InputError
from ralmspec_plugins.retrieval.storage.files import write_whole


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
        lines = path.read_bytes().splitlines() if path.is_file() else []
        found = list(_records(lines))
        if found and found[0] != told:
            raise InputError(
                f"{path} is of a run with other settings ({json.dumps(found[0])}); give another "
                "--out, or remove it"
            )
        for record in found[1:]:
            self._known[record["name"]] = record["value"]
        whole = [told, *({"name": name, "value": value} for name, value in self._known.items())]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, "".join(json.dumps(one) + "\n" for one in whole).encode())

    def __contains__(self, name: str) -> bool:
        """Return whether something stands under a name."""
        return name in self._known

    def known(self, name: str) -> Any:
        """Return what stands under a name."""
        return self._known[name]

    def everything(self) -> dict[str, Any]:
        """Return all that is known, by its names."""
        return dict(self._known)

    def of(self, name: str, measure: Callable[[], Any]) -> Any:
        """Return what stands under a name, or measure it and write it down."""
        if name not in self._known:
            self._known[name] = json.loads(json.dumps(measure()))
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"name": name, "value": self._known[name]}) + "\n")
        return self._known[name]


def _records(lines: Sequence[bytes]) -> Iterator[Any]:
    """Yield what stands in whole lines; the last may have been cut off when a run was stopped."""
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            return
