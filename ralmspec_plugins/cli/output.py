"""Where output goes: text and tables on a terminal, JSON otherwise; messages always to stderr."""

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import typer
from rich.console import Console

from ralmspec_plugins.types import Answer, Stats

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_MEASURED = ("guess_rate", "search_s", "write_s", "overlap_s")


def on_terminal() -> bool:
    """Say whether a person reads stdout."""
    return sys.stdout.isatty()


def screen() -> Console:
    """Give the console for what was asked for."""
    return Console(highlight=False)


def notes() -> Console:
    """Give the console for progress and remarks: stderr."""
    return Console(stderr=True, highlight=False)


def complain(message: str) -> None:
    """Print an error to stderr as one paragraph."""
    typer.echo(f"Error: {' '.join(message.split())}", err=True)


def write_json(record: Mapping[str, Any]) -> None:
    """Print an object as one line, at once."""
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


def stats_record(stats: Stats) -> dict[str, Any]:
    """Give all numbers of a run, without the timeline."""
    names = [field.name for field in fields(stats) if field.name != "timeline"]
    return {name: getattr(stats, name) for name in (*names, *_MEASURED)}


def answer_record(question: str, answer: Answer, mode: str) -> dict[str, Any]:
    """Give an answer with its sources in order of use."""
    sources = [
        {
            "id": hit.passage.id,
            "title": hit.passage.title,
            "score": hit.score,
            "text": hit.passage.text,
        }
        for hit in answer.sources
    ]
    return {
        "question": question,
        "answer": answer.text,
        "sources": sources,
        "mode": mode,
        "stats": stats_record(answer.stats),
    }


def seconds(value: float) -> str:
    """Write a duration with three figures.

    >>> seconds(0.0), seconds(0.00042), seconds(0.0421), seconds(3.21987), seconds(75.3)
    ('0 ms', '0.42 ms', '42.1 ms', '3.22 s', '75.3 s')
    """
    number, unit = (value, "s") if value >= 1 else (1000 * value, "ms")
    if not number:
        return f"0 {unit}"
    digits = 2 if number < 10 else 1 if number < 100 else 0
    return f"{number:.{digits}f} {unit}"


def printable(text: str) -> str:
    r"""Take out what would steer a terminal: a model may write anything.

    >>> printable("a\tb\nc\x1b[31md")
    'a\tb\nc\ufffd[31md'
    """
    return _CONTROL.sub("\ufffd", text)


def plural(count: int, thing: str) -> str:
    """Count things in English.

    >>> plural(1, "query"), plural(3, "query"), plural(0, "round trip")
    ('1 query', '3 queries', '0 round trips')
    """
    if count == 1:
        return f"1 {thing}"
    return f"{count:,} {thing[:-1]}ies" if thing.endswith("y") else f"{count:,} {thing}s"


def accepted(stats: Stats) -> str:
    """Say how many guesses were right."""
    return f"{stats.accepted} of {stats.guesses}" if stats.guesses else "-"


def in_short(stats: Stats) -> str:
    """Sum a run up in one line."""
    parts = [
        seconds(stats.wall_s),
        f"{plural(stats.searches, 'round trip')} for {plural(stats.queries, 'query')}",
    ]
    if stats.guesses:
        parts.append(f"{accepted(stats)} guesses right")
        parts.append(f"{plural(stats.wasted_segments, 'segment')} thrown away")
    return ", ".join(parts)
