"""`StopIteration` and `StopAsyncIteration` of a part come out as what the plain loop raises.

A bare `next()` in a search is a common mistake. Where Python itself allows no `StopIteration`
(out of a coroutine, out of an iterator that has not ended) a `RuntimeError` is raised from it.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from ralmspec_plugins import AsyncEngine, Engine, Latencies, Settings, Simulation, plain
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing import EchoWorkload, Lines, WordRetriever
from ralmspec_plugins.types import Hits, Query, Request

TEXTS = ["red fox", "blue whale"]
PROMPT = "red blue"
SPECULATE = (True, False)


class Store(WordRetriever):
    """Ends an iteration in the given method."""

    inline_encode = False

    def __init__(self, where: str, error: type[Exception]) -> None:
        super().__init__(TEXTS)
        self.where, self.error = where, error

    def encode(self, text: str) -> Query:
        if self.where == "encode":
            raise self.error("of encode")
        return super().encode(text)

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        if self.where == "search":
            raise self.error("of search")
        return super().search_wide(queries, width)


class Echo(EchoWorkload):
    """Ends an iteration in the given method."""

    inline_query = False

    def __init__(self, where: str, error: type[Exception]) -> None:
        self.where, self.error = where, error

    def start(self, request: Request) -> Lines:
        if self.where == "start":
            raise self.error("of start")
        return super().start(request)

    def query(self, state: Lines) -> str | None:
        if self.where == "query":
            raise self.error("of query")
        return super().query(state)

    def extend(self, state: Lines, hits: Hits, progress: Progress) -> Lines:
        if self.where == "extend" and state[1]:
            raise self.error("of extend")
        return super().extend(state, hits, progress)

    def text(self, state: Lines) -> str:
        if self.where == "text" and not state[0]:
            raise self.error("of text")
        return super().text(state)

    def settled(self, state: Lines) -> str:
        return super().text(state)

    def release(self, state: Lines) -> None:
        if self.where == "release":
            raise self.error("of release")


WHERE = ["start", "query", "encode", "search", "extend", "text", "release"]
places = pytest.mark.parametrize("where", WHERE)
errors = pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration])
speculate = pytest.mark.parametrize("speculate", SPECULATE)


def parts(where: str, error: type[Exception]) -> tuple[Any, Any]:
    return Echo(where, error), Store(where, error)


@places
@errors
def test_the_plain_loop_raises_it(where: str, error: type[Exception]) -> None:
    """The definition; so does the simulation."""
    workload, retriever = parts(where, error)
    with pytest.raises(error, match=f"of {where}"):
        plain(workload, retriever, Request(prompt=PROMPT))
    with pytest.raises(error, match=f"of {where}"):
        Simulation(workload, retriever, Latencies()).run(PROMPT)


@places
@errors
@speculate
def test_threads_raise_it(where: str, error: type[Exception], *, speculate: bool) -> None:
    """A run, a batch, and the answer of a stream."""
    with Engine(*parts(where, error), Settings(speculate=speculate)) as engine:
        with pytest.raises(error, match=f"of {where}"):
            engine.run(PROMPT)
        with pytest.raises(error, match=f"of {where}"):
            engine.batch([PROMPT])
        [returned] = engine.batch([PROMPT], return_exceptions=True)
        assert isinstance(returned, error)
        with pytest.raises(error, match=f"of {where}"):
            _ = engine.stream(PROMPT).answer


@places
@errors
@speculate
def test_a_stream_does_not_end_as_if_it_were_whole(
    where: str, error: type[Exception], *, speculate: bool
) -> None:
    """Reading on raises: an iterator's own `StopIteration` would cut the text off silently."""
    with Engine(*parts(where, error), Settings(speculate=speculate)) as engine:
        stream = engine.stream(PROMPT)
        with pytest.raises(RuntimeError, match=f"of {where}") as raised:
            list(stream)
        assert isinstance(raised.value.__cause__, error)
        with pytest.raises(error, match=f"of {where}"):
            _ = stream.answer
        assert list(stream) == []


@places
@errors
@speculate
def test_asyncio_raises_it(where: str, error: type[Exception], *, speculate: bool) -> None:
    """As itself where a coroutine can raise it, and returned as itself by a batch."""
    expected = error if error is StopAsyncIteration else RuntimeError

    async def main() -> None:
        async with AsyncEngine(*parts(where, error), Settings(speculate=speculate)) as engine:
            with pytest.raises(expected) as raised:
                await engine.run(PROMPT)
            if expected is RuntimeError:
                assert isinstance(raised.value.__cause__, error)
            with pytest.raises(expected):
                await engine.batch([PROMPT])
            [returned] = await engine.batch([PROMPT], return_exceptions=True)
            # Merged searches are awaited, and so cross a coroutine.
            assert isinstance(returned, error) or isinstance(returned.__cause__, error)
            stream = engine.stream(PROMPT)
            with pytest.raises(RuntimeError) as told:
                [piece async for piece in stream]
            assert isinstance(told.value.__cause__, error)
            assert [piece async for piece in stream] == []

    asyncio.run(asyncio.wait_for(main(), timeout=20))
