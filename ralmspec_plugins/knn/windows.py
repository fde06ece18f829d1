"""Cuts texts into windows for a model, with a minimum context for each token."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.lm.prompts import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens: TypeAlias = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens of a document for one pass, and the next tokens of the last positions."""

    tokens: Tokens
    following: Tokens  # one for each position that is new in this window
    ends_document: bool


def windows_of(tokens: Tokens, context: int, stride: int) -> Iterator[Window]:
    """Yield the windows of a document, each `stride` tokens after the previous one.

    Every token except the last is a position with a next token, and is new in exactly
    one window, the first that contains it. So from the second window on it has
    at least `context - stride` tokens before it.

    >>> for window in windows_of(np.arange(7, dtype=np.int32), context=4, stride=2):
    ...     print(window.tokens, window.following, window.ends_document)
    [0 1 2 3] [1 2 3 4] False
    [2 3 4 5] [5 6] True
    """
    end = len(tokens) - 1
    start = done = 0
    while done < end:
        stop = min(start + context, end)
        yield Window(tokens[start:stop], tokens[done + 1 : stop + 1], stop == end)
        done = stop
        start += stride


def portions(windows: Iterable[Window], tokens: int) -> Iterator[list[Window]]:
    """Yield groups of windows in order, of up to this many tokens, or of one window.

    >>> cut = windows_of(np.arange(12, dtype=np.int32), context=4, stride=4)
    >>> [[len(window.tokens) for window in portion] for portion in portions(cut, 8)]
    [[4, 4], [3]]
    """
    some: list[Window] = []
    held = 0
    for window in windows:
        if some and held + len(window.tokens) > tokens:
            yield some
            some, held = [], 0
        some.append(window)
        held += len(window.tokens)
    if some:
        yield some


def digest_of(windows: Sequence[Window]) -> str:
    """Return a digest of the windows' tokens and next tokens."""
    digest = hashlib.sha256()
    for window in windows:
        sizes = (len(window.tokens), len(window.following), window.ends_document)
        digest.update(np.array(sizes, dtype="<i4").tobytes())
        digest.update(window.tokens.astype("<i4").tobytes())
        digest.update(window.following.astype("<i4").tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutting:
    """The settings by which texts are cut into windows.

    Special tokens in a text are read as plain text. A window has
    tokens of one text only.
    """

    tokenizer: "PreTrainedTokenizerBase"
    context: int
    stride: int
    bos: bool
    eos: bool

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: a setting is out of range.
        """
        if not 1 <= self.stride <= self.context:
            raise ConfigError(
                "stride must be at least 1 and at most the context, got "
                f"stride={self.stride} and context={self.context}"
            )
        for name, token in (
            ("bos", self.tokenizer.bos_token_id),
            ("eos", self.tokenizer.eos_token_id),
        ):
            if getattr(self, name) and token is None:
                raise ConfigError(f"{name} is set, but the tokenizer has no such token; omit it")

    @property
    def identity(self) -> Mapping[str, Any]:
        """Return the settings, without the tokenizer."""
        names = ("context", "stride", "bos", "eos")
        return {name: getattr(self, name) for name in names}

    def windows(self, texts: Iterable[str]) -> Iterator[Window]:
        """Yield the windows of texts in order; a text of fewer than two tokens has none.

        Raises:
            InputError: a text is no str, or has an incomplete character.
        """
        for number, text in enumerate(texts):
            yield from windows_of(self._tokens(number, text), self.context, self.stride)

    def count(self, texts: Iterable[str]) -> int:
        """Return the number of entries of texts, without the model.

        Raises:
            InputError: a text is no str, or has an incomplete character.
        """
        lengths = (len(self._tokens(number, text)) for number, text in enumerate(texts))
        return sum(max(0, length - 1) for length in lengths)

    def _tokens(self, number: int, text: str) -> Tokens:
        _check(number, text)
        begins = [self.tokenizer.bos_token_id] if self.bos else []
        ends = [self.tokenizer.eos_token_id] if self.eos else []
        inner = encode(self.tokenizer, text, literal=True)
        return np.array([*begins, *inner, *ends], dtype=np.int32)


def _check(number: int, text: object) -> None:
    if not isinstance(text, str):
        raise InputError(f"text {number} must be a str, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"text {number} is no valid text ({error.reason}); decode it from its bytes with the "
            "right encoding"
        ) from None
