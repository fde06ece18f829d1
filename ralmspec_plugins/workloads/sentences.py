"""Sentence by sentence: retrieve with the end of the text, and write the next sentence."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.protocols import LanguageModel, Progress
from ralmspec_plugins.types import Passage, Request
from ralmspec_plugins.workloads.base import DraftWorkload

DraftT = TypeVar("DraftT")


class SentenceModel(LanguageModel[DraftT], Protocol[DraftT]):
    """A model that can also write just one sentence.

    `write_key` must cover all that `write_sentence` depends on, too.
    """

    def write_sentence(
        self, draft: DraftT, passages: Sequence[Passage], tokens: int, progress: Progress
    ) -> DraftT:
        """Continue a draft to the end of its next sentence, by at most this many tokens.

        Raises:
            ContextOverflowError: passages, prompt and text exceed the context.
            Cancelled: `progress` was cancelled while writing.
        """
        ...


@dataclass(frozen=True, slots=True)
class SentenceState(Generic[DraftT]):
    """The question, the draft, and the number of sentences in it."""

    question: str
    draft: DraftT
    sentences: int = 0


class Sentences(DraftWorkload[SentenceState[DraftT], DraftT], Generic[DraftT]):
    """Write a sentence, retrieve with the last `query_tokens`, and repeat.

    This suits a model behind an API, where each step is a call. The first query is the
    question itself. New passages replace the old ones, as in `Interval`.
    """

    def __init__(
        self,
        lm: SentenceModel[DraftT],
        *,
        tokens: int = 64,  # the longest sentence, as in FLARE's reference code
        query_tokens: int = 32,  # as in the paper: the last 32 tokens of the text so far
        max_sentences: int = 16,
    ) -> None:
        """Create a workload that retrieves before each sentence of `lm`.

        Raises:
            ConfigError: a length is below 1.
        """
        for name, value in (
            ("tokens", tokens),
            ("query_tokens", query_tokens),
            ("max_sentences", max_sentences),
        ):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        super().__init__(lm, "write_sentence")
        self.tokens = tokens
        self.query_tokens = query_tokens
        self.max_sentences = max_sentences

    def start(self, request: Request) -> SentenceState[DraftT]:
        """Return the state of the question without text."""
        return SentenceState(request.prompt, self.lm.begin(request))

    def query(self, state: SentenceState[DraftT]) -> str | None:
        """Return the question, then the end of the text, and `None` if the text is complete."""
        if state.sentences >= self.max_sentences or self.lm.finished(state.draft):
            return None
        if not state.sentences:
            return state.question
        return self.lm.tail(state.draft, self.query_tokens)

    def query_key(self, state: SentenceState[DraftT]) -> Hashable | None:
        """Return the question, the text, and the number of its sentences."""
        return state.question, state.sentences, self.lm.text_key(state.draft)

    def draft(self, state: SentenceState[DraftT]) -> DraftT:
        """Return the draft."""
        return state.draft

    def after(self, state: SentenceState[DraftT], draft: DraftT) -> SentenceState[DraftT]:
        """Return the state with one more sentence."""
        return SentenceState(state.question, draft, state.sentences + 1)

    def tokens_of(self, state: SentenceState[DraftT]) -> int:
        """Return the maximum length of a sentence."""
        return self.tokens
