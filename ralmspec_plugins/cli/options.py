"""The options that several commands share, and how their values are read."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

_UNITS = (("ms", 0.001), ("s", 1.0), ("", 1.0))  # "ms" before "s", which it ends with


class ScheduleName(StrEnum):
    """The schedules by name."""

    CONTINUOUS = "continuous"
    FIXED = "fixed"
    OS3 = "os3"


class WorkloadName(StrEnum):
    """The workloads by name."""

    INTERVAL = "interval"
    ONE_SHOT = "one-shot"


class EvictionName(StrEnum):
    """What leaves a full pool: a test holds this against `speculators.POLICIES`."""

    LRU = "lru"
    LFU = "lfu"
    FIFO = "fifo"


class ChatPlace(StrEnum):
    """Where a chat model sees the passages."""

    FRONT = "front"
    SYSTEM = "system"
    USER = "user"


def duration(text: str | float) -> float:
    """Read a time with its unit, in seconds; a default comes as a number already.

    >>> duration("50ms"), duration("1.5s"), duration("2")
    (0.05, 1.5, 2.0)
    """
    if not isinstance(text, str):
        return float(text)
    for unit, factor in _UNITS:
        if text.endswith(unit):
            try:
                value = float(text.removesuffix(unit)) * factor
            except ValueError:
                break
            if 0 <= value < float("inf"):
                return value
            break
    raise typer.BadParameter(f"{text!r} is not a time; give for example 50ms or 1.5s")


Kb = Annotated[Path, typer.Option("--kb", help="A saved knowledge base (see: ralmspec index).")]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="A causal model's folder, or its name on the hub. [default: the demo's own]",
    ),
]
Encoder = Annotated[
    str | None,
    typer.Option(help="The encoder, if it has moved since the knowledge base was saved."),
]
K = Annotated[
    int | None,
    typer.Option("--k", min=1, help="Passages for each query. [default: as saved]"),
]
Interval = Annotated[int, typer.Option(min=1, help="Tokens written between two searches.")]
QueryTokens = Annotated[int, typer.Option(min=1, help="Last tokens that a query is made of.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="The most tokens of an answer.")]
Prefetch = Annotated[
    int | None,
    typer.Option(min=1, help="Hits that each search brings to the pool. [default: 20 k]"),
]
Latency = Annotated[
    float,
    typer.Option(
        parser=duration,
        metavar="TIME",
        help="Simulate a remote store: add this to each round trip, such as 50ms.",
    ),
]
Plain = Annotated[bool, typer.Option("--plain", help="Do not speculate.")]
Compare = Annotated[bool, typer.Option("--compare", help="Run both, and check that all is equal.")]
Schedule = Annotated[ScheduleName, typer.Option(help="How far to run ahead, and when to search.")]
Stride = Annotated[int | None, typer.Option(min=1, help="Guesses for each verification: fixed.")]
Lanes = Annotated[int | None, typer.Option(min=1, help="Searches out at a time: continuous.")]
Window = Annotated[
    int | None,
    typer.Option(min=1, help="The most unverified steps (continuous), rounds looked at (os3)."),
]
Overlap = Annotated[
    bool | None,
    typer.Option("--overlap/--no-overlap", help="Write during a verification: fixed, os3."),
]
GammaLimit = Annotated[
    float | None,
    typer.Option(
        help="os3: the highest share of right guesses that it believes in, 0.6 if not "
        "given (the paper's); 0.98 for a replica."
    ),
]
Seed = Annotated[int, typer.Option(help="Of the draws, with a temperature.")]
Temperature = Annotated[
    float, typer.Option(min=0.0, help="0 takes the most likely token; above, tokens are drawn.")
]
Timeline = Annotated[
    Path | None, typer.Option(help="Draw what happened when: .html, .json (trace events), .svg.")
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1, help="The model's threads. [default: torch's choice; 1 for the demo's model]"
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="JSON on stdout, as always when it is no terminal.")
]
