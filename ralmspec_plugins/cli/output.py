"""Output: text and tables on a terminal, JSON otherwise; messages on stderr."""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Final, Self

import typer
from rich import box
from rich import progress as rich_progress
from rich.console import Console
from rich.table import Table

from ralmspec_plugins.errors import RalmSpecError
from ralmspec_plugins.types import Answer, Stats

_NOISE: Final = 0.03  # a smaller difference of times is noise
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_MEASURED: Final = ("guess_rate", "tokens_per_pass", "search_s", "write_s", "overlap_s")


def on_terminal() -> bool:
    """Return whether stdout is a terminal."""
    return sys.stdout.isatty()


def wants_json(asked: bool) -> bool:
    """Return whether stdout gets JSON: if requested, or if it is not a terminal."""
    return asked or not on_terminal()


def screen() -> Console:
    """Return the console for results: stdout."""
    return Console(highlight=False)


def notes() -> Console:
    """Return the console for progress and remarks: stderr."""
    return Console(stderr=True, highlight=False)


def complain(message: str) -> None:
    """Print an error to stderr as one paragraph."""
    typer.echo(f"Error: {' '.join(message.split())}", err=True)


def write_json(record: Mapping[str, Any]) -> None:
    """Print an object as one line, and flush."""
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


def report(record: Mapping[str, Any], shown: str | Table, as_json: bool) -> None:
    """Print the result of a command: a JSON object, or a sentence or table on a terminal."""
    if wants_json(as_json):
        write_json(record)
    else:
        screen().print(shown, markup=False, soft_wrap=isinstance(shown, str))


def table(*columns: str, title: str | None = None) -> Table:
    """Return an empty table, whose first column is text and the others are numbers or text."""
    made = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def runs_table(answers: Mapping[str, Answer]) -> Table:
    """Return what several runs of one request took, a row for each."""
    made = table("", "time", "round trips", "queries", "guesses right", "discarded")
    for mode, answer in answers.items():
        stats = answer.stats
        counts = (stats.searches, stats.queries, accepted(stats), stats.wasted_segments)
        made.add_row(mode, seconds(stats.wall_s), *map(str, counts))
    return made


def stats_record(stats: Stats) -> dict[str, Any]:
    """Return all statistics of a run, without the timeline."""
    names = [field.name for field in fields(stats) if field.name != "timeline"]
    return {name: getattr(stats, name) for name in (*names, *_MEASURED)}


def seconds(value: float) -> str:
    """Return a duration with three digits.

    >>> seconds(0.0), seconds(0.00042), seconds(0.0421), seconds(3.21987), seconds(75.3)
    ('0 ms', '0.42 ms', '42.1 ms', '3.22 s', '75.3 s')
    """
    number, unit = (value, "s") if value >= 1 else (1000 * value, "ms")
    if not number:
        return f"0 {unit}"
    digits = 2 if number < 10 else 1 if number < 100 else 0
    return f"{number:.{digits}f} {unit}"


def printable(text: str) -> str:
    r"""Return a text without control characters of terminals, which a model may generate.

    >>> printable("a\tb\nc\x1b[31md")
    'a\tb\nc\ufffd[31md'
    """
    return _CONTROL.sub("\ufffd", text)


def plural(count: int, thing: str) -> str:
    """Return a count with its noun.

    >>> plural(1, "query"), plural(3, "query"), plural(0, "round trip"), plural(2, "pass")
    ('1 query', '3 queries', '0 round trips', '2 passes')
    """
    if count == 1:
        return f"1 {thing}"
    if thing.endswith("y"):
        return f"{count:,} {thing[:-1]}ies"
    return f"{count:,} {thing}{'es' if thing.endswith('s') else 's'}"


def accepted(stats: Stats) -> str:
    """Return the number of right guesses, in words."""
    return f"{stats.accepted} of {stats.guesses}" if stats.guesses else "-"


def in_short(stats: Stats) -> str:
    """Return a summary of a run in one line."""
    trips = f"{plural(stats.searches, 'round trip')} for {plural(stats.queries, 'query')}"
    parts = [seconds(stats.wall_s), trips]
    if stats.guesses:
        parts.append(f"{accepted(stats)} guesses right")
        parts.append(f"{plural(stats.wasted_segments, 'segment')} discarded")
    if stats.drafts_accepted:
        parts.append(f"{plural(stats.tokens_written, 'token')} in {passes(stats)}")
    return ", ".join(parts)


def passes(stats: Stats) -> str:
    """Return the number of passes and the accepted drafts, in words.

    >>> passes(Stats(model_passes=9, drafts_accepted=30, decisions_retaken=1))
    '9 passes (30 drafts accepted, 1 choice taken again)'
    """
    drafts = f"{plural(stats.drafts_accepted, 'draft')} accepted"
    if stats.decisions_retaken:
        drafts += f", {plural(stats.decisions_retaken, 'choice')} taken again"
    return f"{plural(stats.model_passes, 'pass')} ({drafts})"


def speed_up(plain_s: float, speculative_s: float) -> str:
    """Return the speedup in words.

    >>> speed_up(3.0, 1.5), speed_up(1.0, 1.25), speed_up(1.0, 0.99)
    ('2.00 times as fast', '0.80 times as fast', 'as fast')
    """
    ratio = plain_s / speculative_s if speculative_s else 1.0
    return "as fast" if abs(ratio - 1) < _NOISE else f"{ratio:.2f} times as fast"


def spread(plain_s: Sequence[float], speculative_s: Sequence[float], *, same: bool = False) -> str:
    """Return how many times as fast some runs were, with the least and the most of one.

    Args:
        plain_s: the times of the plain runs.
        speculative_s: those of the speculative ones.
        same: whether both did the same work, so that only noise can be between them.

    >>> spread([2.0, 3.0], [1.0, 1.0]), spread([1.0, 1.0], [1.02, 0.98])
    ('2.50 (2.00 to 3.00)', 'about the same: 0.98 to 1.02')
    >>> spread([2.0], [1.0]), spread([1.0], [0.99])
    ('2.00', 'about the same: 1.01')
    """
    ratios = [plain / max(ours, 1e-9) for plain, ours in zip(plain_s, speculative_s, strict=True)]
    ends = f"{min(ratios):.2f} to {max(ratios):.2f}"
    ratio = sum(plain_s) / max(sum(speculative_s), 1e-9)
    if same or min(ratios) <= 1 <= max(ratios) or abs(ratio - 1) < _NOISE:
        return f"about the same: {ends if len(ratios) > 1 else f'{ratio:.2f}'}"
    return f"{ratio:.2f} ({ends})" if len(ratios) > 1 else f"{ratio:.2f}"


def bars() -> rich_progress.Progress:
    """Return progress bars on stderr, which are only shown on a terminal."""
    console = notes()
    text = rich_progress.TextColumn("{task.description}", markup=False)
    columns = (rich_progress.SpinnerColumn(), text, rich_progress.BarColumn())
    counts = (rich_progress.MofNCompleteColumn(), rich_progress.TimeElapsedColumn())
    return rich_progress.Progress(
        *columns, *counts, console=console, disable=not console.is_terminal
    )


class BuildBars:
    """Shows the progress of a build that reads its input first to count it."""

    def __init__(self, progress: rich_progress.Progress, source: str) -> None:
        """Show that a source is being read."""
        self._progress = progress
        self._task = progress.add_task(f"reading {source}", total=None)
        self._total = self._encoded = 0

    def counted(self, total: int) -> None:
        """Show that the input was read, and start the build's bar."""
        self._total = total
        self._progress.update(self._task, total=total, completed=total)
        self._task = self._progress.add_task("encoding", total=total)

    def __call__(self, stage: str, done: int) -> None:
        """Show the progress in a stage of `build_index` or `build_datastore`."""
        if stage in ("checking", "encoding"):
            self._encoded = done
            self._progress.update(self._task, completed=done, description=stage)
        elif not done:
            self._task = self._progress.add_task(stage, total=None)
        else:
            self._progress.update(self._task, total=done, completed=done)

    @contextmanager
    def kept(self, thing: str) -> Iterator[None]:
        """Print what is kept and how to continue, if the build is interrupted."""
        try:
            yield
        except RalmSpecError:
            raise
        except BaseException:
            if self._encoded:
                notes().print(
                    f"{self._encoded:,} of {plural(self._total, thing)} are encoded, and kept: "
                    "the same command continues from there.",
                    soft_wrap=True,
                )
            raise


class ServerStatus:
    """Prints where a server listens, and on a terminal the counts of its requests."""

    def __init__(self, url: str, model: str, as_json: bool) -> None:
        """Print one object on stdout, or a line that stays on a terminal."""
        told = {"url": url, "model": model}
        report(told, f"serving {model} at {url}; Ctrl-C stops it", as_json)
        self._status = notes().status("no request yet")

    def __enter__(self) -> Self:
        """Show the line."""
        self._status.start()
        return self

    def show(self, counts: Any) -> None:
        """Show the counts of requests."""
        self._status.update(
            f"{counts.running} running, {counts.waiting} waiting, {counts.ended:,} ended"
        )

    def __exit__(self, *_: object) -> None:
        """Remove the line."""
        self._status.stop()
