"""Cuts texts into the windows that a model reads, so that each token has enough before it."""

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
    """Some tokens of a document, read in one pass, and what followed the last ones."""

    tokens: Tokens
    following: Tokens  # one for each of the last positions, those that no window before had
    ends_document: bool


def windows_of(tokens: Tokens, context: int, stride: int) -> Iterator[Window]:
    """Cut a document: each window begins `stride` tokens behind the one before.

    Every token but the last is a position that a token followed, and is new in just
    one window, the first that it is in. So from the second window on it is read with
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
    """Gather windows in order, as many as hold this many tokens together; at least one.

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
    """Name what the model reads, and what is written of it."""
    digest = hashlib.sha256()
    for window in windows:
        sizes = (len(window.tokens), len(window.following), window.ends_document)
        digest.update(np.array(sizes, dtype="<i4").tobytes())
        digest.update(window.tokens.astype("<i4").tobytes())
        digest.update(window.following.astype("<i4").tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutting:
    """How texts become windows.

    A text is read as it stands: what looks like a special token in it is text. The
    tokens of one text never stand in another's window.
    """

    tokenizer: "PreTrainedTokenizerBase"
    context: int
    stride: int
    bos: bool
    eos: bool

    def __post_init__(self) -> None:
        """Refuse lengths that leave tokens out, and tokens that the tokenizer has not.

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
                raise ConfigError(f"{name} is set, but the tokenizer has no such token; leave it")

    @property
    def identity(self) -> Mapping[str, Any]:
        """Name the settings, but for the tokenizer."""
        names = ("context", "stride", "bos", "eos")
        return {name: getattr(self, name) for name in names}

    def windows(self, texts: Iterable[str]) -> Iterator[Window]:
        """Cut texts one after another; one of fewer than two tokens has no window.

        Raises:
            InputError: a text is none, or holds half a character.
        """
        for number, text in enumerate(texts):
            yield from windows_of(self._tokens(number, text), self.context, self.stride)

    def count(self, texts: Iterable[str]) -> int:
        """Count the entries that texts make, without the model.

        Raises:
            InputError: a text is none, or holds half a character.
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
