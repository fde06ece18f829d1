"""What `Engine.events` and `AsyncEngine.events` tell while a request is answered.

A step of the answer is told in this order: `Confirmed`, any number of `Settled`, and
`Commit`; at its end more text may settle. The steps come one after the other, as in
the plain loop. `Guessed`, `Judged` and `RolledBack` tell of speculation, and may stand
anywhere. A request that fails ends with `Failed`.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

from ralmspec_plugins.records import Hits, Query, Retrieved


@dataclass(frozen=True, slots=True, eq=False)
class Guessed:
    """A step is written ahead of its search, with these hits."""

    query: Query
    hits: Hits


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """The search for a query that was guessed has answered."""

    query: Query
    right: bool


@dataclass(frozen=True, slots=True, eq=False)
class RolledBack:
    """So many segments, written or being written, stand behind a wrong guess and are dropped."""

    segments: int


@dataclass(frozen=True, slots=True, eq=False)
class Confirmed:
    """The next step of the answer has its real hits; what is written with them is to come."""

    retrieved: Retrieved


@dataclass(frozen=True, slots=True, eq=False)
class Commit:
    """This step is part of the answer."""

    retrieved: Retrieved
    state: Any


@dataclass(frozen=True, slots=True, eq=False)
class Settled:
    """The text from the beginning that nothing can change any more.

    `state` is what it was taken from: a committed one, or an unfinished segment's.
    """

    text: str
    state: Any


@dataclass(frozen=True, slots=True, eq=False)
class Failed:
    """The request comes to this error, as the plain loop does."""

    error: Exception
    query: Query | None = None  # whose search it was; `None` where asking or writing failed


Event: TypeAlias = Guessed | Judged | RolledBack | Confirmed | Commit | Settled | Failed
