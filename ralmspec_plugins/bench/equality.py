"""Holds two answers of one request together: they must be equal, and it is said where they part."""

from ralmspec_plugins.errors import RalmSpecError
from ralmspec_plugins.records import Answer


class UnequalError(RalmSpecError):
    """Two runs of one request gave different answers, which must never happen."""


def check_equal(question: str, first: Answer, second: Answer) -> None:
    """Compare texts, queries, and sources with their scores.

    Raises:
        UnequalError: they differ.
    """
    if first == second:
        return
    if first.text != second.text:
        raise UnequalError(f"{question!r}: the two runs' texts differ, {_parting(first, second)}")
    raise UnequalError(f"{question!r}: the two runs' texts are equal, but their sources are not")


def _parting(first: Answer, second: Answer) -> str:
    """Show where two texts part."""
    pairs = enumerate(zip(first.text, second.text, strict=False))
    shorter = min(len(first.text), len(second.text))
    at = next((place for place, (one, other) in pairs if one != other), shorter)
    shown = [repr(answer.text[max(0, at - 20) : at + 20]) for answer in (first, second)]
    return f"from character {at} on: {shown[0]} and {shown[1]}"
