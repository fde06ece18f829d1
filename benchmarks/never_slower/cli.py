"""`python -m benchmarks never_slower`: what a user might lose, row by row.

Plain, speculative and plain again take turns in one process, in an order that changes with each
repetition, and every answer is asserted equal. A ratio above 1 says that speculation was faster;
that of "plain again" says what a ratio of 1 looks like on the machine at hand.

    python -m benchmarks never_slower --out results/never_slower.jsonl --page never_slower.md

Rows are appended to the file as they are measured; those that are there are not measured again.
"""

import gc
import json
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final

import typer
from threadpoolctl import threadpool_limits

from benchmarks.harness.results import surroundings
from benchmarks.never_slower.rows import Row
from benchmarks.never_slower.rows import rows as all_rows
from ralmspec_plugins.errors import ConfigError

LEAST: Final = 0.97  # that the lower end of an interval must reach
WAYS: Final = ("plain", "speculative", "plain again")
_DRAWS: Final = 2000


def never_slower(
    out: Annotated[Path, typer.Option(help="where the rows go, a line of JSON each")],
    page_to: Annotated[Path | None, typer.Option("--page", help="where the page goes")] = None,
    chosen: Annotated[
        list[str] | None, typer.Option("--rows", help="a row's name; may be given several times")
    ] = None,
    repetitions: Annotated[
        int | None, typer.Option(min=2, help="of each row. [default: its own]")
    ] = None,
    small: Annotated[
        bool, typer.Option(help="small rows, which show that everything runs")
    ] = False,
    names: Annotated[bool, typer.Option("--list", help="name the rows, and stop")] = False,
) -> None:
    """Measure where speculation might cost time."""
    known = all_rows(small=small)
    unknown = [name for name in chosen or () if name not in known]
    if unknown:
        raise ConfigError(f"no row is named {', '.join(unknown)}; there are: {', '.join(known)}")
    if names:
        for row in known.values():
            print(f"{row.name}: {row.about}")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    found = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    if not found:
        found.append({"row": None, **surroundings()})
        _append(out, found[0])
    for name in chosen or known:
        if not any(one["row"] == name for one in found):
            found.append(measure(known[name], repetitions or known[name].repetitions))
            _append(out, found[-1])
            print(line(found[-1]))
    if page_to is not None:
        page_to.write_text(page(found))


def measure(row: Row, repetitions: int) -> dict[str, Any]:
    """Time both ways and the plain one again, in turn, after one repetition that is not counted.

    Raises:
        AssertionError: the answers of two ways differ, or are empty.
    """
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    with threadpool_limits(1), row.opened() as (plain, ours):
        ways = dict(zip(WAYS, (plain, ours, plain), strict=True))
        for repetition in range(-1, repetitions):
            order = list(WAYS)
            random.Random(repetition).shuffle(order)
            answers = []
            for name in order:
                gc.collect()  # not in the middle of the run
                began_s = time.perf_counter()
                answers.append(ways[name](repetition))
                if repetition >= 0:
                    seconds[name].append(time.perf_counter() - began_s)
            assert answers[0], row.name
            assert all(one == answers[0] for one in answers), f"{row.name}: the answers differ"
    return {"row": row.name, "about": row.about, "seconds": seconds}


def ratios(seconds: Mapping[str, Sequence[float]], way: str) -> list[float]:
    """Return how many times as fast as the plain run beside it each run of a way was."""
    return [plain / one for plain, one in zip(seconds["plain"], seconds[way], strict=True)]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median with its 95 % interval, by drawing from the values again and again."""
    dice = random.Random(0)
    medians = sorted(median(dice.choices(values, k=len(values))) for _ in range(_DRAWS))
    return median(values), medians[_DRAWS // 40], medians[-_DRAWS // 40 - 1]


def line(found: Mapping[str, Any]) -> str:
    """Return the table's line of a row."""
    seconds = found["seconds"]
    cells = [found["row"], found["about"], f"{1000 * median(seconds['plain']):.1f}"]
    for way in WAYS[1:]:
        middle, low, high = spread(ratios(seconds, way))
        cells.append(f"{middle:.3f} ({low:.3f} to {high:.3f})")
    reached = spread(ratios(seconds, "speculative"))[1] >= LEAST
    cells += ["yes" if reached else "no", str(len(seconds["plain"]))]
    return f"| {' | '.join(cells)} |"


def page(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the page: where the numbers come from, and the table."""
    told = found[0]
    where = f"{told['date']}, commit {told['commit']}, {told['machine']}"
    head = (
        *("row", "what runs", "plain, ms", "speculative, as fast as plain (95 %)"),
        *("plain again (95 %)", f"lower end at least {LEAST}", "n"),
    )
    return "\n".join(
        [
            f"{where}; load before: {told['load_before']}; one thread for each call of BLAS.",
            "",
            f"| {' | '.join(head)} |",
            f"|{'---|' * len(head)}",
            *(line(one) for one in found[1:]),
            "",
        ]
    )


def _append(out: Path, row: Mapping[str, Any]) -> None:
    with out.open("a") as file:
        file.write(json.dumps(row) + "\n")
