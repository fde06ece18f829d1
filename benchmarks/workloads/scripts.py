"""Scripts of the three workloads, and the least time that each can take."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.workloads.waiting import Oracle, Piece, die, word
from ralmspec_plugins.types import TokenLogprob


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of a run takes at least, and whether its guess is right.

    The query is formed in `ahead_s`; then it is searched, if it is, and guessed in `guess_s`; then
    `write_s` is written with what was found.
    """

    ahead_s: float
    search_s: float | None
    right: bool
    write_s: float
    guess_s: float = 0.0


def plain_s(steps: Sequence[Step]) -> float:
    """Return the time of the steps one after the other.

    >>> plain_s([Step(0.0, 1.0, True, 0.5), Step(0.5, None, True, 0.0)])
    2.0
    """
    return sum(step.ahead_s + (step.search_s or 0.0) + step.write_s for step in steps)


def least_s(steps: Sequence[Step]) -> float:
    """Return the least time of the steps with these guesses, by any lossless schedule.

    One model writes without a pause, but for wrong guesses: then it waits for the search. No
    answer ends before all its searches have.

    >>> least_s([Step(0.5, 1.0, True, 0.5), Step(0.0, 1.0, True, 0.5)])
    2.0
    >>> least_s([Step(0.5, 1.0, False, 0.5), Step(0.0, 1.0, True, 0.5)])
    3.0
    """
    written = searched = 0.0
    for step in steps:
        written += step.ahead_s
        if step.search_s is not None:
            returned = written + step.search_s
            searched = max(searched, returned)
            written = written + step.guess_s if step.right else returned
        written += step.write_s
    return max(written, searched)


@dataclass(frozen=True, slots=True)
class FlareScript:
    """An article of so many sentences, each with one token that may be unsure.

    A search behind an unsure sentence finds other passages in a share `changes` of the cases.
    """

    sentences: int
    changes: float
    seed: int = 0

    def probability(self, number: int) -> float:
        """Return the probability of a sentence's least sure token: 0.8 is the middle one."""
        return math.pow(die(self.seed, "probability", number), 0.32)

    def piece(self, prompt: str, before: str, front: str) -> Piece:
        """Return the next sentence, which depends on the passages in front."""
        number = before.count(".")
        told = f" {number}:{front}:{word(prompt, before, front)}."
        unsure = TokenLogprob(" perhaps", math.log(self.probability(number)))
        tokens = (TokenLogprob(" It is", -0.001), unsure, TokenLogprob(told, -0.001))
        return Piece(tokens, finished=number + 1 == self.sentences)

    def found(self, query: str) -> str:
        """Return the passages that the sentence was written with, or others."""
        number, _, rest = query.rpartition(" ")[2].partition(":")
        if not rest:
            return word("first", query)
        front = rest.partition(":")[0]
        return word("next", front, number) if self.is_other(number) else front

    def is_other(self, number: str | int) -> bool:
        """Return whether the search behind a sentence finds other passages."""
        return die(self.seed, "changes", number) < self.changes

    def steps(
        self, queries: Sequence[str], oracle: Oracle, write_s: float, search_s: float, theta: float
    ) -> Iterator[Step]:
        """Return the steps of a run with these searches, whose savings are made."""
        asked = iter(queries)
        yield Step(0.0, search_s, oracle.is_right(next(asked)), 0.0)
        for number in range(self.sentences):
            if self.probability(number) > theta:
                yield Step(write_s, None, True, 0.0)
            else:
                again_s = write_s if self.is_other(number) else 0.0
                yield Step(write_s, search_s, oracle.is_right(next(asked)), again_s)


@dataclass(frozen=True, slots=True)
class HopScript:
    """An answer that asks so many times, each time for something else."""

    hops: int

    def piece(self, prompt: str, before: str, front: str) -> Piece:
        """Return a turn: a query, or the answer."""
        number = before.count("</search>")
        tag = "search" if number < self.hops else "answer"
        text = f"So. <{tag}>{number}:{word(prompt, before)}"
        return Piece((TokenLogprob(text, -0.001),), f"</{tag}>", finished=True)

    def found(self, query: str) -> str:
        """Return a passage for the query."""
        return word("found", query)

    def steps(
        self, queries: Sequence[str], oracle: Oracle, write_s: float, search_s: float
    ) -> Iterator[Step]:
        """Return the steps of a run with these searches."""
        yield Step(write_s, None, True, 0.0)
        for query in queries:
            yield Step(0.0, search_s, oracle.is_right(query), write_s)


@dataclass(frozen=True, slots=True)
class AnswerScript:
    """Answers that depend on what was found for the one before."""

    def piece(self, prompt: str, before: str, front: str) -> Piece:
        """Return the whole answer."""
        return Piece((TokenLogprob(word(prompt, front), -0.001),), finished=True)

    def found(self, query: str) -> str:
        """Return a passage for the query."""
        return word("found", query)

    def steps(
        self, queries: Sequence[str], oracle: Oracle, write_s: float, search_s: float
    ) -> Iterator[Step]:
        """Return the steps of a run with these searches."""
        for query in queries:
            yield Step(0.0, search_s, oracle.is_right(query), write_s)
