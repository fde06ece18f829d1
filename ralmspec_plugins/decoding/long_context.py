"""A long context in chunks of tokens, of which those that are similar to a text are retrieved."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from ralmspec_plugins.decoding.drafters.protocol import DraftContext
from ralmspec_plugins.errors import (
    ConfigError,
    ContextOverflowError,
    InputError,
    ModelError,
    RalmSpecError,
)
from ralmspec_plugins.retrieval.encoders import Encoder, encoder_name
from ralmspec_plugins.retrieval.numpy_flat import NumpyFlat
from ralmspec_plugins.speculators.passage_cache import PassageCache
from ralmspec_plugins.types import Hits, Passage, Query

_WIDER: Final = 2  # the first search fills the passage cache with this many times the chunks

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkSettings:
    """How a long context is divided, and how much of it is retrieved.

    Args:
        chunk_tokens: the tokens of a chunk; the last one may have fewer.
        threshold: the least cosine similarity of a retrieved chunk.
        least_tokens: at least this many tokens may be retrieved,
        shorten: or the context's length divided by this, if that is more.
    """

    chunk_tokens: int = 512  # these four are RAPID's (2502.20330)
    threshold: float = 0.3
    least_tokens: int = 4096
    shorten: float = 24.0

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: a number is out of range.
        """
        for name, value in (
            ("chunk_tokens", self.chunk_tokens),
            ("least_tokens", self.least_tokens),
        ):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if not -1 <= self.threshold <= 1:
            raise ConfigError(f"threshold must be from -1 to 1, got {self.threshold}")
        if not self.shorten >= 1:
            raise ConfigError(f"shorten must be at least 1, got {self.shorten}")

    def tokens_for(self, length: int) -> int:
        """Return how many tokens of a context of this length may be retrieved.

        >>> ChunkSettings().tokens_for(16_000), ChunkSettings().tokens_for(120_000)
        (4096, 5000)
        """
        return max(self.least_tokens, int(length / self.shorten))


@dataclass(frozen=True, slots=True)
class PromptParts:
    """The tokens before a text: in front of the long context, the context, and the question."""

    head: Tokens
    context: Tokens
    question: Tokens

    @classmethod
    def of(cls, context: DraftContext, question_tokens: int, head_tokens: int = 0) -> "PromptParts":
        """Divide what stands before a text.

        The long context is the passages. Where there are none, it is the prompt without its
        first `head_tokens` and its last `question_tokens` tokens.

        >>> front = (0, 5, 6, 7, 8, 1, 2)
        >>> PromptParts.of(DraftContext("request", ((5, 6), (7, 8)), front, ()), 3)
        PromptParts(head=(0,), context=(5, 6, 7, 8), question=(1, 2))
        >>> PromptParts.of(DraftContext("request", (), front, ()), 3)
        PromptParts(head=(), context=(0, 5, 6, 7), question=(8, 1, 2))
        """
        front = context.front
        passages = tuple(token for passage in context.passages for token in passage)
        starts = (at for at in range(len(front)) if front[at : at + len(passages)] == passages)
        start = next(starts, None) if passages else None
        if start is None:
            end = max(head_tokens, len(front) - question_tokens)
            return cls(front[:head_tokens], front[head_tokens:end], front[end:])
        return cls(front[:start], passages, front[start + len(passages) :])


@dataclass(frozen=True, slots=True, order=True)
class Chunk:
    """Consecutive tokens of a long context, from position `start` on.

    Chunks of equal text in two places are two chunks.
    """

    start: int
    tokens: Tokens


class LongContext:
    """The chunks of a context, their index, and the passage cache before it.

    The chunks are slices of the tokens: together they are the context, without a gap. They are
    searched by an exact retriever with the cosine of their vectors. Thread-safe.
    """

    def __init__(
        self,
        tokens: Tokens,
        decode: Callable[[Sequence[int]], str],
        encoder: Encoder,
        settings: ChunkSettings,
    ) -> None:
        """Divide a context, and encode its chunks.

        Raises:
            InputError: the context is empty, or the encoder returned invalid vectors.
            ModelError: the encoder raised.
        """
        if not tokens:
            raise InputError("there is no context to retrieve from: nothing precedes the question")
        size = settings.chunk_tokens
        self.settings = settings
        self.room = settings.tokens_for(len(tokens))  # tokens that may be retrieved
        self.chunks = [Chunk(at, tokens[at : at + size]) for at in range(0, len(tokens), size)]
        self._encoder = encoder
        # Ids in the order of positions: of equal scores the earlier chunk ranks first.
        passages = [
            Passage(f"{number:09d}", decode(chunk.tokens))
            for number, chunk in enumerate(self.chunks)
        ]
        count = min(len(passages), -(-self.room // size))
        with _naming(encoder, "the chunks of the context"):
            self._retriever = NumpyFlat.build(passages, encoder, k=count, metric="cosine")
        self._cache = PassageCache(self._retriever)
        self._lock = threading.Lock()

    def retrieve(self, text: str, most_tokens: int | None = None) -> list[Chunk]:
        """Return the chunks that are most similar to a text, in the order of the context.

        Args:
            text: the query.
            most_tokens: how many tokens their reader has room for; unset, as many as may be
                retrieved.

        Raises:
            InputError: no chunk is as similar as the threshold.
            ContextOverflowError: there is no room for a chunk.
            ModelError: the encoder raised.
        """
        room = self._room(most_tokens)
        query = self._query(text)
        [hits] = self._retriever.search_wide([query], _WIDER * self._retriever.k)
        with self._lock:
            self._cache.learn(query, hits)
        chosen = self._chosen(hits, room)
        if not chosen:
            raise InputError(
                f"none of the {len(self.chunks)} chunks of the context is similar to the query "
                f"(the best one {hits[0].score:.2f}, threshold {self.settings.threshold}): lower "
                "the threshold, or use an encoder by a model"
            )
        return chosen

    def retrieve_again(
        self, text: str, in_use: Sequence[Chunk], most_tokens: int | None = None
    ) -> list[Chunk]:
        """Return the chunks that are similar to a later text.

        The passage cache is asked first; the retriever is searched if the cache has too few
        chunks, or just those in use.

        Raises:
            RalmSpecError: as for `retrieve`.
        """
        query = self._query(text)
        with self._lock:
            guess = self._cache.guess(query)
        chosen = self._chosen(guess, self._room(most_tokens)) if guess is not None else []
        if chosen and chosen != list(in_use):
            return chosen
        return self.retrieve(text, most_tokens)

    def _query(self, text: str) -> Query:
        with _naming(self._encoder, "the query"):
            return self._retriever.encode(text)

    def _room(self, most_tokens: int | None) -> int:
        size = len(self.chunks[0].tokens)
        room = self.room if most_tokens is None else min(self.room, most_tokens)
        if room < size:
            raise ContextOverflowError(
                f"there is room for {max(0, room)} retrieved tokens, less than a chunk of {size}: "
                "use a smaller chunk_tokens, more least_tokens, or a drafter with more positions"
            )
        return room

    def _chosen(self, hits: Hits, room: int) -> list[Chunk]:
        """Return the best chunks that are similar enough and fit, in order."""
        chosen: list[Chunk] = []
        for hit in hits[: self._retriever.k]:
            chunk = self.chunks[int(hit.passage.id)]
            assert hit.score is not None
            if hit.score >= self.settings.threshold and len(chunk.tokens) <= room:
                chosen.append(chunk)
                room -= len(chunk.tokens)
        return sorted(chosen)


@contextmanager
def _naming(encoder: Encoder, what: str) -> Iterator[None]:
    """Convert an encoder's own error to a `ModelError` that names the encoder."""
    try:
        yield
    except RalmSpecError:
        raise
    except Exception as error:
        raise ModelError(
            f"the encoder {encoder_name(encoder)} failed on {what}: {type(error).__name__}: {error}"
        ) from error
