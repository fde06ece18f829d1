"""What a search says about guessed documents, for those who build their own loops."""

from collections.abc import Sequence
from dataclasses import dataclass

from langchain_core.documents import Document

from langchain_ralmspec.passages import passage_of
from ralmspec_plugins.adapters.retriever_service import agreeing


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a guess was right, and the documents that are, in every case."""

    right: bool
    documents: list[Document]


def verdicts(
    guesses: Sequence[Sequence[Document] | None], truths: Sequence[list[Document]]
) -> list[Verdict]:
    """Compare guesses with what was found: the same documents in the same order."""
    right = agreeing(guesses, truths, passage_of)
    return list(map(Verdict, right, truths))
