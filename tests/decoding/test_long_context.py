"""A long context in chunks: nothing is lost, and what is similar is retrieved in its order."""

from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import pytest

from ralmspec_plugins.decoding.drafters import DraftContext
from ralmspec_plugins.decoding.long_context import (
    Chunk,
    ChunkSettings,
    LongContext,
    PromptParts,
)
from ralmspec_plugins.errors import ConfigError, ContextOverflowError, InputError, ModelError


def _text(tokens: Sequence[int]) -> str:
    return " ".join(map(str, tokens))


def _vector(text: str) -> Any:
    """Count the numbers from 0 to 9 in a text."""
    return np.bincount([int(word) for word in text.split()], minlength=10).astype(np.float32)


def _settings(**given: Any) -> ChunkSettings:
    return ChunkSettings(**{"chunk_tokens": 2, "least_tokens": 4, "threshold": 0.5, **given})


@pytest.mark.parametrize("seed", range(5))
def test_chunks_are_the_context(seed: int) -> None:
    """Put together they are its tokens, and each stands where it says."""
    rng = Random(seed)
    tokens = tuple(rng.randrange(10) for _ in range(rng.randint(1, 60)))
    size = rng.randint(1, 9)
    context = LongContext(tokens, _text, _vector, _settings(chunk_tokens=size))
    joined = tuple(token for chunk in context.chunks for token in chunk.tokens)

    assert tokens == joined
    assert [tokens[one.start : one.start + size] for one in context.chunks] == [
        one.tokens for one in context.chunks
    ]


def test_the_similar_ones_come_in_their_order() -> None:
    """Two fit, the best of which stands last; the third best is similar, but has no room."""
    context = LongContext((7, 1, 2, 2, 9, 9, 7, 7, 7, 2), _text, _vector, _settings())

    assert [Chunk(0, (7, 1)), Chunk(6, (7, 7))] == context.retrieve("7 7")
    assert [Chunk(6, (7, 7))] == context.retrieve("7 7", most_tokens=3)


def test_chunks_of_equal_text_are_two() -> None:
    """What is said twice is retrieved twice, each where it stands."""
    context = LongContext((3, 3, 1, 1, 3, 3), _text, _vector, _settings())

    assert [Chunk(0, (3, 3)), Chunk(4, (3, 3))] == context.retrieve("3")


def test_how_much_is_retrieved() -> None:
    """At least 4,096 tokens, and a 24th of the context."""
    settings = ChunkSettings()

    assert [4096, 4096, 5000] == [settings.tokens_for(n) for n in (10, 98_304, 120_000)]


def test_later_texts_ask_the_passage_cache_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only if that has nothing new, or too little, the chunks are searched again."""
    tokens = (1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6)
    context = LongContext(tokens, _text, _vector, _settings(threshold=0.1))
    searched = []
    search = context._retriever.search_wide
    monkeypatch.setattr(
        context._retriever,
        "search_wide",
        lambda queries, width: searched.append(queries[0].text) or search(queries, width),
    )
    first = context.retrieve("1 2")
    again = context.retrieve_again("1 2 2", first)
    cached = context.retrieve_again("2", [])
    other = context.retrieve_again("6", first)

    assert [Chunk(0, (1, 1)), Chunk(2, (2, 2))] == first
    assert first == again  # the cache had nothing else: searched
    assert [Chunk(2, (2, 2))] == cached  # not searched
    assert [Chunk(10, (6, 6))] == other
    assert ["1 2", "1 2 2", "6"] == searched


def test_what_cannot_be_retrieved_from_is_explained() -> None:
    """No context, nothing similar, no room, an encoder that fails or gives nonsense."""
    context = LongContext((1, 1, 2, 2), _text, _vector, _settings())
    with pytest.raises(InputError, match=r"none of the 2 chunks .* threshold 0\.5"):
        context.retrieve("9")
    with pytest.raises(ContextOverflowError, match=r"room for 1 .* chunk of 2"):
        context.retrieve("1", most_tokens=1)
    with pytest.raises(InputError, match="no context"):
        LongContext((), _text, _vector, _settings())

    def failing(text: str) -> Any:
        raise RuntimeError("out of memory")

    with pytest.raises(ModelError, match=r"failed on the chunks .* out of memory"):
        LongContext((1, 1), _text, failing, _settings())

    def nonsense(text: str) -> Any:
        return np.full(3, np.nan, dtype=np.float32)

    with pytest.raises(InputError, match="NaN"):
        LongContext((1, 1), _text, nonsense, _settings())


def test_a_query_that_cannot_be_encoded_is_explained() -> None:
    """The encoder is named."""

    def short(text: str) -> Any:
        if text == "1":
            raise OSError("gone")
        return _vector(text)

    context = LongContext((1, 1), _text, short, _settings())
    with pytest.raises(ModelError, match=r"short.* failed on the query: OSError: gone"):
        context.retrieve("1")


def test_the_context_is_found_between_head_and_question() -> None:
    """Passages that are empty, or none, leave the prompt itself."""
    front = (0, 4, 5, 6, 1, 2, 3)

    assert PromptParts((0,), (4, 5, 6), (1, 2, 3)) == PromptParts.of(
        DraftContext("r", ((4,), (5, 6)), front, ()), 2
    )
    assert PromptParts((), (0, 4, 5, 6, 1), (2, 3)) == PromptParts.of(
        DraftContext("r", ((),), front, ()), 2
    )
    assert PromptParts((0,), (4, 5, 6, 1), (2, 3)) == PromptParts.of(
        DraftContext("r", (), front, ()), 2, head_tokens=1
    )
    assert PromptParts((), (), (1,)) == PromptParts.of(DraftContext("r", (), (1,), ()), 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [("chunk_tokens", 0), ("least_tokens", 0), ("threshold", 1.5), ("shorten", 0.5)],
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    """Each message names the setting."""
    with pytest.raises(ConfigError, match=name):
        ChunkSettings(**{name: value})  # type: ignore[arg-type]
