"""Makes what a host streams closable: a stream that nobody reads on is let go at once."""

from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable
from typing import Any, TypeVar

PieceT = TypeVar("PieceT")


def closable(pieces: Iterable[PieceT]) -> Generator[PieceT, None, None]:
    """Give the pieces of any iterable; closing this closes it, where it can be closed.

    >>> each = closable(iter("ab"))
    >>> next(each), each.close()
    ('a', None)
    """
    yield from pieces


async def aclosable(pieces: AsyncIterable[PieceT]) -> AsyncGenerator[PieceT, None]:
    """Do the same with what is awaited."""
    try:
        async for piece in pieces:
            yield piece
    finally:
        close: Any = getattr(pieces, "aclose", None)
        if close is not None:
            await close()
