"""Rows of measurements, each written as soon as it is known, within a limit of time."""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch

from benchmarks.decoding.journal import Journal
from benchmarks.harness.results import surroundings
from ralmspec_plugins.decoding.calibration import pass_clock
from ralmspec_plugins.errors import RalmSpecError

Times: TypeAlias = dict[str, list[float]]
_MOST_S: Final = 45.0


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
        del about["machine"]  # a virtual machine's memory may differ from one loan to the next
        self._journal = Journal(path, {**about, "tiny": tiny})
        self._ends_s = time.monotonic() + 60 * minutes
        self._begun = False

    @property
    def values(self) -> dict[str, dict[str, Any]]:
        """All rows by their names, those of earlier runs too."""
        return self._journal.everything()

    def complete(self, names: Sequence[str]) -> bool:
        """Return whether all of these rows are known.

        Raises:
            TimeIsUp: some are not, and there is no time left to begin with them.
        """
        missing = [name for name in names if name not in self._journal]
        if missing:
            self._check_time(missing[0])
        return not missing

    def of(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the row of a name: the known one, or a new one.

        Raises:
            TimeIsUp: there is no time left to begin with it.
        """
        if name not in self._journal:
            self._check_time(name)
            self._begun = True

        def measured() -> dict[str, Any]:
            began_s = time.perf_counter()
            row = measure()
            took_s = round(time.perf_counter() - began_s, 2)
            at = datetime.now(UTC).isoformat(timespec="seconds")
            return {**row, "at": at, "took_s": took_s, "commit": surroundings()["commit"]}

        row: dict[str, Any] = self._journal.of(name, measured)
        return row

    def _check_time(self, name: str) -> None:
        """Check that a row as long as the longest of its part would end in time.

        The first row of a run is begun in any case while there is time.
        """
        part = name.partition(":")[0]
        longest = max(
            (row["took_s"] for one, row in self.values.items() if one.partition(":")[0] == part),
            default=0.0,
        )
        left = self._ends_s - time.monotonic()
        if left < 0 or (self._begun and left < longest):
            raise TimeIsUp(f"the time was up before {name!r}; the same command goes on there")


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


def in_turn(
    ways: Mapping[str, Callable[[], Any]],
    repetitions: int,
    device: torch.device,
    most_s: float = _MOST_S,
) -> Times:
    """Time each way in turn, several times, after one time that is not counted: milliseconds.

    Args:
        ways: what is timed, by its name.
        repetitions: how often.
        device: whose work is waited for.
        most_s: after so long no further repetition is begun, but one is counted in any case.
    """
    clock = pass_clock(device) if device.type == "cuda" else time.perf_counter
    times: Times = {name: [] for name in ways}
    started_s = time.perf_counter()
    for repetition in range(repetitions + 1):
        if repetition > 1 and time.perf_counter() - started_s > most_s:
            break
        for name, way in ways.items():
            began_s = clock()
            way()
            if repetition:
                times[name].append(round(1000 * (clock() - began_s), 4))
    return times
