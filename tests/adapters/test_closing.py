"""What streams is closed when nobody reads on, whatever it is."""

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing

import pytest

from ralmspec_plugins.adapters.events import aclosable, closable


class Stream:
    """Streams numbers as an object of a host's own does."""

    def __init__(self) -> None:
        self.at = 0
        self.closed = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.at += 1
        if self.at > 3:
            raise StopIteration
        return self.at

    def __aiter__(self) -> AsyncIterator[int]:
        return self

    async def __anext__(self) -> int:
        try:
            return next(self)
        except StopIteration:
            raise StopAsyncIteration from None

    def close(self) -> None:
        self.closed += 1

    async def aclose(self) -> None:
        self.closed += 1


async def test_what_is_not_read_to_its_end_is_closed() -> None:
    """Once, in both ways to read."""
    for stream in (first := Stream(), second := Stream()):
        if stream is first:
            with closing(closable(stream)) as pieces:
                assert 1 == next(pieces)
        else:
            async with aclosing(aclosable(second)) as apieces:
                assert 1 == await anext(apieces)
        assert 1 == stream.closed


@pytest.mark.parametrize("pieces", [[1, 2, 3], iter((1, 2, 3)), (at for at in (1, 2, 3))])
def test_what_cannot_be_closed_is_read_all_the_same(pieces: list[int]) -> None:
    """Lists and iterators; what is read to its end needs no closing."""
    with closing(closable(pieces)) as read:
        assert [1, 2, 3] == list(read)


async def test_what_cannot_be_closed_is_awaited_all_the_same() -> None:
    """An asynchronous iterator need have nothing but its pieces."""

    class Bare:
        def __init__(self) -> None:
            self.stream = Stream()

        def __aiter__(self) -> AsyncIterator[int]:
            return self.stream.__aiter__()

    async with aclosing(aclosable(Bare())) as read:
        assert [1, 2, 3] == [piece async for piece in read]
