"""The records that travel through the system: passage, query, hit, request, answer."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ralmspec_plugins.errors import ConfigError, DeadlineExceeded
from ralmspec_plugins.stats import Stats


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of the knowledge base with an id that never changes."""

    id: str
    text: str
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked: a text, and its encoding, made once.

    The encoding is the retriever's own (a vector, a list of terms) and is
    searched, guessed with and remembered as it is: encoding the same text
    again, in another batch, differs in the last bits (DESIGN 6).
    """

    text: str = field(compare=False)
    encoding: Any = field(default=None, compare=False, repr=False)
    key: Hashable = None  # what makes two queries the same; the text unless given

    def __post_init__(self) -> None:
        """Fall back to the text as the key."""
        if self.key is None:
            object.__setattr__(self, "key", self.text)


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage with its score, or without one for workloads that do not read scores.

    `features` is what the retriever wants remembered to rank this passage in a
    pool (a row number, a vector); it is no part of a hit's value.
    """

    passage: Passage
    score: float | None = None
    features: Any = field(default=None, compare=False, repr=False)

    def unscored(self) -> "Hit":
        """Give the hit back without its score, for a workload that may not see it."""
        return Hit(self.passage)


Hits: TypeAlias = Sequence[Hit]  # immutable: a tuple, or arrays that say so (`fixed`)


def fixed(hits: Hits) -> Hits:
    """Give hits that nobody can change: those of a list, say, as a tuple.

    Arrays that stand for hits (a thousand neighbours of a token) are left as they are
    where they are marked by `immutable = True`: no hit is made that nobody looks at.
    """
    return hits if getattr(hits, "immutable", False) else tuple(hits)


def unscored(hits: Hits) -> Hits:
    """Give hits without their scores, for a workload that may not see them."""
    return tuple(hit.unscored() for hit in hits)


def passages_of(hits: Hits) -> list[Passage]:
    """Give the passages of hits, best first."""
    return [hit.passage for hit in hits]


def read_by(lm: object, hits: Hits) -> Any:
    """Give what a language model is handed: passages, or the hits themselves if it `reads_hits`."""
    return hits if getattr(lm, "reads_hits", False) else passages_of(hits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One question to be answered."""

    prompt: str
    max_tokens: int = 128  # the length of the papers' answers (PAPERS 1.10)
    seed: int = 0
    stop: tuple[str, ...] = ()
    deadline_s: float | None = None
    context: Any = field(default=None, compare=False, repr=False)  # for the parts; never looked at

    def __post_init__(self) -> None:
        """Refuse settings that no workload could honour."""
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise ConfigError(f"deadline_s must be above 0, got {self.deadline_s}")
        if not isinstance(self.stop, tuple) or not all(self.stop):
            raise ConfigError(f"stop must be a tuple of texts, none empty, got {self.stop!r}")

    def check_deadline(self, elapsed_s: float) -> None:
        """Raise `DeadlineExceeded` when this much time is too much."""
        if self.deadline_s is not None and elapsed_s > self.deadline_s:
            raise DeadlineExceeded(f"no answer within {self.deadline_s} seconds")


@dataclass(frozen=True, slots=True)
class Retrieved:
    """One committed step's part in the record: what was asked, and what was really found."""

    query: Query
    hits: Hits


@dataclass(frozen=True, slots=True)
class Answer:
    """The final text, what it rests on, and what it took."""

    text: str
    retrieved: tuple[Retrieved, ...]
    state: Any = field(compare=False, repr=False)
    stats: Stats = field(compare=False, repr=False)

    @property
    def sources(self) -> tuple[Hit, ...]:
        """The hits of all committed steps in order of use, each passage once."""
        first: dict[str, Hit] = {}
        for step in self.retrieved:
            for hit in step.hits:
                first.setdefault(hit.passage.id, hit)
        return tuple(first.values())
