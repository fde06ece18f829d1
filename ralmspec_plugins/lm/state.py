"""The draft of a local language model."""

from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.lm.text import Decode, Transcript, settled_length, stop_at, stop_position
from ralmspec_plugins.types import Passage, TokenLogprob

Ending: TypeAlias = Literal["eos", "stop", "length"]


@dataclass(frozen=True, slots=True)
class DraftOrigin:
    """The constants of a request: the tokens around the passages, stop strings and seed.

    `owner` distinguishes the caches of requests. It is not part of the value:
    equal requests have equal drafts.
    """

    owner: int = field(compare=False, repr=False)
    head_tokens: tuple[int, ...]  # before the passages
    prompt_tokens: tuple[int, ...]  # after them
    max_tokens: int
    seed: int
    stop: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token's log-probability, and how long the text was behind the token."""

    logprob: float
    text_length: int


@dataclass(frozen=True, slots=True)
class Draft:
    """The generated tokens, and the data that the compute schedule needs.

    The key-value cache of a draft is a function of `passages`, `prefilled_at`
    and `tokens`: the passages in one pass, the prompt with the
    first `prefilled_at` tokens in another, then one pass for each token except the
    last, whose pass belongs to the next segment.

    `scores` of the tokens are there where a scored model wrote them. They are no part of the
    value: decoded with drafts, they differ in the last bits.
    """

    origin: DraftOrigin
    transcript: Transcript = field(repr=False)
    tokens: tuple[int, ...] = ()
    passages: tuple[Passage, ...] | None = None  # without metadata; None before the first segment
    prefilled_at: int = 0
    ending: Ending | None = None
    stopped_by: str = ""  # the stop string, where that is the ending
    scores: tuple[TokenScore, ...] = field(default=(), compare=False, repr=False)

    @property
    def prompt_tokens(self) -> tuple[int, ...]:
        """The tokens between the passages and the text."""
        return self.origin.prompt_tokens

    @property
    def finished(self) -> bool:
        """Whether the text has ended."""
        return self.ending is not None

    @property
    def text(self) -> str:
        """The generated text, without the prompt, cut before a stop string."""
        return self.transcript.text + self.transcript.pending

    @property
    def settled(self) -> str:
        """The part of `text` that no later token can change."""
        text = self.transcript.text
        return text if self.finished else text[: settled_length(text, self.origin.stop)]

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        """The log-probability of each token, with what the token added to the text.

        Raises:
            InputError: some tokens were written without.
        """
        if len(self.scores) != len(self.tokens):
            raise InputError(
                f"of {len(self.tokens)} tokens {len(self.scores)} have log-probabilities; "
                "write all of them with a model that scored() gave"
            )
        text, start, found = self.text, 0, []
        for number, score in enumerate(self.scores, 1):
            last = number == len(self.scores)  # it shows what later tokens may change, too
            end = len(text) if last else score.text_length
            found.append(TokenLogprob(text[start:end], score.logprob))
            start = end
        return tuple(found)

    def placed(self, passages: Sequence[Passage]) -> "Draft":
        """Return the draft with these passages: other ones than before require a new prefill."""
        front = tuple(Passage(passage.id, passage.text, passage.title) for passage in passages)
        if front == self.passages:
            return self
        return replace(self, passages=front, prefilled_at=len(self.tokens))

    def allowed(self, tokens: int) -> int:
        """Return how many of these tokens are left in the request's limit."""
        if tokens < 1:
            raise ConfigError(f"tokens must be at least 1, got {tokens}")
        return min(tokens, self.origin.max_tokens - len(self.tokens))

    def grown(
        self, token: int, eos: Container[int], decode: Decode, logprob: float | None = None
    ) -> "Draft":
        """Return the draft with one more token, ended if the token ends the text."""
        tokens = (*self.tokens, token)
        transcript, ending = self.transcript, _ending(token, len(tokens), self.origin, eos)
        if ending != "eos":
            transcript = transcript.add(token, decode)
        if ending is not None:
            transcript = transcript.close()
        scores = self.scores
        if logprob is not None:
            scores = (*scores, TokenScore(logprob, len(transcript.text)))
        stop = stop_position(transcript.text, len(self.transcript.text), self.origin.stop)
        stopped_by = ""
        if stop is not None:
            stopped_by = stop_at(transcript.text, stop, self.origin.stop)
            transcript, ending = transcript.cut(stop), "stop"
        return replace(
            self,
            transcript=transcript,
            tokens=tokens,
            ending=ending,
            stopped_by=stopped_by,
            scores=scores,
        )


def _ending(token: int, length: int, origin: DraftOrigin, eos: Container[int]) -> Ending | None:
    if token in eos:
        return "eos"
    return "length" if length == origin.max_tokens else None
