"""What a search says about guesses, for those who build their own loops."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.documents import Document

from langchain_ralmspec.passages import passage_of
from ralmspec_plugins.errors import InputError


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a guess was right, and the documents that are, in every case."""

    right: bool
    documents: list[Document]


def check_pairs(queries: Sequence[str], guesses: Sequence[Any]) -> None:
    """Make sure that there is a guess, or `None`, for each query.

    Raises:
        InputError: there is not.
    """
    if len(queries) != len(guesses):
        raise InputError(
            f"{len(queries)} queries came with {len(guesses)} guesses; give one for each, or None"
        )


def verdicts(
    guesses: Sequence[Sequence[Document] | None], truths: Sequence[list[Document]]
) -> list[Verdict]:
    """Compare guesses with what was found: the same documents in the same order."""
    return [
        Verdict(guess is not None and _passages(guess) == _passages(truth), truth)
        for guess, truth in zip(guesses, truths, strict=True)
    ]


def _passages(documents: Sequence[Document]) -> list[Any]:
    return [passage_of(document) for document in documents]
