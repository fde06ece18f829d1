"""Holds guesses against what was found, for those who build their own loops."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ralmspec_plugins.errors import InputError

FoundT = TypeVar("FoundT")


def check_pairs(queries: Sequence[Any], guesses: Sequence[Any]) -> None:
    """Make sure that there is a guess, or `None`, for each query.

    Raises:
        InputError: there is not.
    """
    if len(queries) != len(guesses):
        raise InputError(
            f"{len(queries)} queries came with {len(guesses)} guesses; give one for each, or None"
        )


def agreeing(
    guesses: Sequence[Sequence[FoundT] | None],
    truths: Sequence[Sequence[FoundT]],
    value_of: Callable[[FoundT], object],
) -> list[bool]:
    """Say of each guess whether it is what was found, one by one and in the same order.

    >>> agreeing([["a"], None, ["b"]], [["A"], [], ["c"]], str.lower)
    [True, False, False]
    """
    return [
        guess is not None and list(map(value_of, guess)) == list(map(value_of, truth))
        for guess, truth in zip(guesses, truths, strict=True)
    ]
