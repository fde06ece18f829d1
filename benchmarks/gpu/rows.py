"""Rows of measurements, each written as soon as it is known, within a limit of time."""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import torch

from benchmarks.decoding.journal import Journal
from benchmarks.harness.results import surroundings
from ralmspec_plugins.decoding.calibration import pass_clock
from ralmspec_plugins.errors import RalmSpecError

Times: TypeAlias = dict[str, list[float]]


class TimeIsUp(RalmSpecError):  # noqa: N818 a state, not a fault
    """The limit was reached between two rows; the same command goes on behind the last one."""


class Rows:
    """The rows of one device, in a file that a later run goes on with."""

    def __init__(self, path: Path, device: torch.device, minutes: float, *, tiny: bool) -> None:
        """Go on with a file, or begin one.

        Raises:
            InputError: the file is of another device, other versions or other sizes.
        """
        self.device = device
        about = about_device(device)
        self._journal = Journal(path, {**about, "tiny": tiny})
        self._ends_s = time.monotonic() + 60 * minutes
        self.values: dict[str, dict[str, Any]] = {}

    def known(self, names: Sequence[str]) -> bool:
        """Return whether all of these rows were measured, in this run or before it."""
        return all(name in self._journal for name in names)

    def recall(self, names: Sequence[str]) -> None:
        """Have rows that were measured before among the values."""
        for name in names:
            self.values[name] = self._journal.known(name)

    def of(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the row of a name: the known one, or a new one.

        Raises:
            TimeIsUp: there is no time left to begin with it.
        """
        if name not in self._journal and time.monotonic() > self._ends_s:
            raise TimeIsUp(f"the time was up before {name!r}; the same command goes on there")

        def measured() -> dict[str, Any]:
            began_s = time.perf_counter()
            row = measure()
            took_s = round(time.perf_counter() - began_s, 2)
            at = datetime.now(UTC).isoformat(timespec="seconds")
            return {**row, "at": at, "took_s": took_s, "commit": surroundings()["commit"]}

        self.values[name] = self._journal.of(name, measured)
        return self.values[name]


def about_device(device: torch.device) -> dict[str, Any]:
    """Return a device's name and memory, and the versions that the numbers depend on."""
    here = surroundings()
    about: dict[str, Any] = {"device": str(device), "machine": here["machine"]}
    about["versions"] = {**here["versions"], "cuda": torch.version.cuda}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        about["gpu"] = properties.name
        about["memory_gib"] = round(properties.total_memory / 2**30, 1)
        about["multiprocessors"] = properties.multi_processor_count
        about["capability"] = f"{properties.major}.{properties.minor}"
    return about


def in_turn(ways: Mapping[str, Callable[[], Any]], repetitions: int, device: torch.device) -> Times:
    """Time each way in turn, several times, after one time that is not counted: milliseconds."""
    clock = pass_clock(device) if device.type == "cuda" else time.perf_counter
    times: Times = {name: [] for name in ways}
    for repetition in range(repetitions + 1):
        for name, way in ways.items():
            began_s = clock()
            way()
            if repetition:
                times[name].append(round(1000 * (clock() - began_s), 4))
    return times
