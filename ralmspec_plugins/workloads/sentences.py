"""Sentence by sentence: ask with the end of the text, and write the next sentence."""

from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.protocols import LanguageModel, Progress
from ralmspec_plugins.types import Hits, Passage, Request, read_by
from ralmspec_plugins.workloads.base import Reports

DraftT = TypeVar("DraftT")


class SentenceModel(LanguageModel[DraftT], Protocol[DraftT]):
    """A model that can also write just one sentence.

    `write_key` must hold what `write_sentence` depends on too.
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


class Sentences(Generic[DraftT]):
    """Write a sentence, ask with the last `query_tokens`, and start over.

    The natural step of a model behind an API, where each step is a call. The
    first question is asked as it is; after that the new passages take the place
    of the old ones, as with `Interval`.
    """

    inline_query = True

    def __init__(
        self,
        lm: SentenceModel[DraftT],
        *,
        tokens: int = 64,  # the longest sentence, as in FLARE's reference code
        query_tokens: int = 32,  # PAPERS 1.10: the last 32 tokens of the text so far
        max_sentences: int = 16,
    ) -> None:
        """Ask before each sentence of `lm`.

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
        self.lm = lm
        self.tokens = tokens
        self.query_tokens = query_tokens
        self.max_sentences = max_sentences
        self.side_by_side: bool = getattr(lm, "side_by_side", False)
        self.reads_scores: bool = getattr(lm, "reads_scores", False)
        # Only there where the model can: engines look for them.
        if hasattr(lm, "awrite_sentence"):
            self._awrite: Callable[..., Awaitable[DraftT]] = lm.awrite_sentence
            self.aextend = self._aextend
        if hasattr(lm, "same_passages"):
            self._same_passages: Callable[..., bool] = lm.same_passages
            self.agree = self._agree

    def start(self, request: Request) -> SentenceState[DraftT]:
        """Begin with the question and no text."""
        return SentenceState(request.prompt, self.lm.begin(request))

    def query(self, state: SentenceState[DraftT]) -> str | None:
        """Ask the question, then with the end of the text, until that is complete."""
        if state.sentences >= self.max_sentences or self.lm.finished(state.draft):
            return None
        if not state.sentences:
            return state.question
        return self.lm.tail(state.draft, self.query_tokens)

    def extend(
        self, state: SentenceState[DraftT], hits: Hits, progress: Progress
    ) -> SentenceState[DraftT]:
        """Write the next sentence with these passages in front."""
        reports = Reports(progress, partial(_next, state))
        draft = self.lm.write_sentence(state.draft, read_by(self.lm, hits), self.tokens, reports)
        return _next(state, draft)

    async def _aextend(
        self, state: SentenceState[DraftT], hits: Hits, progress: Progress
    ) -> SentenceState[DraftT]:
        reports = Reports(progress, partial(_next, state))
        draft = await self._awrite(state.draft, read_by(self.lm, hits), self.tokens, reports)
        return _next(state, draft)

    def _agree(self, state: SentenceState[DraftT], guess: Hits, hits: Hits) -> bool:
        return self._same_passages(read_by(self.lm, guess), read_by(self.lm, hits))

    def text(self, state: SentenceState[DraftT]) -> str:
        """Give what was written, without the prompt."""
        return self.lm.text(state.draft)

    def settled(self, state: SentenceState[DraftT]) -> str:
        """Give the part of the text that no later sentence can change."""
        return self.lm.settled(state.draft)

    def query_key(self, state: SentenceState[DraftT]) -> Hashable | None:
        """Hold the text, and how many sentences it has."""
        return state.question, state.sentences, self.lm.text_key(state.draft)

    def extend_key(self, state: SentenceState[DraftT], hits: Hits) -> Hashable | None:
        """Hold what the model's next sentence depends on, to the last bit."""
        written = self.lm.write_key(state.draft, read_by(self.lm, hits), self.tokens)
        return state.question, state.sentences, written

    def release(self, state: SentenceState[DraftT]) -> None:
        """Free the model's caches for this request."""
        self.lm.release(state.draft)


def _next(state: SentenceState[Any], draft: Any) -> SentenceState[Any]:
    return SentenceState(state.question, draft, state.sentences + 1)
