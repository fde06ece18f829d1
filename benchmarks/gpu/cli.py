"""`python -m benchmarks gpu`: what was never measured without a GPU, part by part."""

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import torch
import typer

from benchmarks.gpu.copying import CopySizes, copying
from benchmarks.gpu.passing import SMALL, PassSizes, passes
from benchmarks.gpu.regimes import RegimeSizes, regimes
from benchmarks.gpu.report import report
from benchmarks.gpu.rows import Rows, TimeIsUp, about_device
from benchmarks.gpu.searching import SearchSizes, search
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.retrieval.storage.files import write_whole

_GRACE_MINUTES: Final = 1.5  # for the row that is being measured when the time is up
_LONG: Final = (4096, 8192, 32_768, 65_536, 131_072)  # the first is a draft's short context


class Part(StrEnum):
    """The parts, each under ten minutes on a large GPU."""

    DEVICE = "device"
    SEARCH_1M = "search-1m"
    SEARCH_20M = "search-20m"
    PASSES = "passes"
    LONG = "long"
    COPYING = "copying"
    REGIMES = "regimes"


Measure = Callable[[Rows, str], None]


def _parts(*, tiny: bool) -> Mapping[Part, Measure]:
    """Return what each part measures."""
    if tiny:
        small: dict[str, Any] = {"dimension": 16, "batches": (1, 3), "callers": (1, 4)}
        searches = SearchSizes(passages=2000, tiles=(10,), repetitions=2, **small)
        short = PassSizes(
            shape=SMALL, rows=(1, 2, 4), contexts=(8, 16), fixed_rows=(4,), repetitions=2
        )
        few = RegimeSizes(
            shapes=(SMALL,), passages=0, dimension=32, requests=1, repetitions=1, steps=3
        )
        both = {Part.SEARCH_1M: searches, Part.SEARCH_20M: searches}
        copies = CopySizes(shape=SMALL, texts=1, tokens=40, pass_rows=(8,), repetitions=1)
        long = PassSizes(shape=SMALL, rows=(1, 4), contexts=(8, 16), fixed_rows=(), repetitions=2)
    else:
        both = {
            Part.SEARCH_1M: SearchSizes(passages=1_000_000),
            Part.SEARCH_20M: SearchSizes(passages=20_000_000, repetitions=5),
        }
        short, few, copies = PassSizes(), RegimeSizes(), CopySizes()
        long = PassSizes(rows=(1, 4, 8, 16), contexts=_LONG, fixed_rows=(), repetitions=9)
    return {
        Part.DEVICE: _describe,
        **{part: partial(search, sizes=sizes) for part, sizes in both.items()},
        Part.PASSES: partial(passes, sizes=short),
        Part.LONG: partial(passes, sizes=long),
        Part.COPYING: partial(copying, sizes=copies),
        Part.REGIMES: partial(regimes, sizes=few),
    }


def _describe(rows: Rows, part: str) -> None:
    rows.of(part, partial(about_device, rows.device))


def gpu(
    out: Annotated[Path, typer.Option(help="The folder for rows and report.")] = Path(
        "ralmspec-gpu"
    ),
    part: Annotated[
        list[Part] | None, typer.Option(help="Only this part; several may be given. [default: all]")
    ] = None,
    device: Annotated[str, typer.Option(help="A device of torch.")] = "cuda",
    minutes: Annotated[
        float,
        typer.Option(
            min=0,
            help="No row is begun that would end later, and the process ends 1.5 minutes "
            "after; run it again to go on.",
        ),
    ] = 8.0,
    tiny: Annotated[bool, typer.Option("--tiny", help="Only see that all of it runs.")] = False,
) -> None:
    """Measure searches, passes and requests on a GPU; what is found is asserted equal.

    Each row is written at once. The same command goes on behind the last one.
    """
    place = _place(device)
    rows = Rows(out / "rows.jsonl", place, minutes, tiny=tiny)
    left = ""
    with _stopped_after(minutes + _GRACE_MINUTES):
        for name, measure in _parts(tiny=tiny).items():
            if part and name not in part:
                continue
            try:
                measure(rows, name)
            except TimeIsUp as up:
                left = str(up)
                break
    about = {**about_device(place), "tiny": tiny}
    write_whole(out / "results.json", _json({"surroundings": about, "rows": rows.values}))
    page = report(about, rows.values)
    write_whole(out / "report.md", page.encode())
    typer.echo(page)
    if left:
        typer.echo(f"Not complete: {left}.")


@contextmanager
def _stopped_after(minutes: float) -> Iterator[None]:
    """End the process if it takes longer; what is measured by then is written already."""
    watch = threading.Timer(60 * minutes, _stop, [minutes])
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        watch.cancel()


def _stop(minutes: float) -> None:
    typer.echo(
        f"Stopped after {minutes:g} minutes in the middle of a row. The same command goes on with "
        "that row; if it was the first one of this run, give more --minutes.",
        err=True,
    )
    os._exit(1)  # the main thread may wait for the device


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _place(name: str) -> torch.device:
    """Return a device that there is.

    Raises:
        ConfigError: there is none.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"torch {torch.__version__} cannot use the device {name!r} "
            f"({str(error).partition(chr(10))[0]}); docs/gpu.md says what to install. "
            "--device cpu --tiny shows that the script runs"
        ) from error
    return device
