"""Tells coroutines that wait from those that compute: the second kind would stop the event loop.

Most of the host's retrievers, stores and embedders have asynchronous methods that call the
synchronous ones. These run in a thread, each with an event loop of its own. What really
waits stays where it is: its connections belong to the caller's loop.
"""

import asyncio
import dis
import inspect
from collections.abc import Callable, Coroutine
from functools import lru_cache
from types import CodeType
from typing import Any, Final, TypeVar

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from llama_index_ralmspec.inside import parts

ResultT = TypeVar("ResultT")
_WAITS: Final = frozenset({"GET_AWAITABLE", "GET_AITER", "GET_ANEXT", "BEFORE_ASYNC_WITH"})


def awaits(function: Callable[..., Any]) -> bool:
    """Say whether a coroutine function awaits anything; yes, where its code cannot be read.

    >>> async def waits() -> None:
    ...     await asyncio.sleep(0)
    >>> async def computes() -> int:
    ...     return 1
    >>> awaits(waits), awaits(computes)
    (True, False)
    """
    code = getattr(inspect.unwrap(function), "__code__", None)
    return not isinstance(code, CodeType) or _awaits(code)


@lru_cache(maxsize=1024)
def _awaits(code: CodeType) -> bool:
    return any(step.opname in _WAITS for step in dis.get_instructions(code))


def stops_the_loop(retriever: BaseRetriever) -> bool:
    """Say whether a retriever's own coroutine is to run in a thread.

    It is, where some part of it computes instead of waiting, and none has connections that
    belong to the caller's event loop. A retriever that awaits may only await what it is made
    of; one that is made of nothing else awaits something of its own.
    """
    computing = False
    for part in parts(retriever):
        if getattr(part, "keeps_the_loop", False):
            return False
        waits = _waits(part)
        if waits and (not isinstance(part, BaseRetriever) or _made_of_nothing(part)):
            return False
        computing |= waits is False
    return computing


def _made_of_nothing(retriever: BaseRetriever) -> bool:
    """Say whether a retriever holds no other part that is called."""
    return all(part is retriever or _waits(part) is None for part in parts(retriever))


def _waits(part: object) -> bool | None:
    """Say whether a part waits; `None`: it is none that is called."""
    if isinstance(part, BaseLLM):
        return True
    if isinstance(part, BaseEmbedding):
        return embeds_waiting(part)
    if isinstance(part, BasePydanticVectorStore):
        return awaits(type(part).aquery)
    if isinstance(part, VectorIndexRetriever):
        return True  # its store and its embedder say more
    if isinstance(part, BaseRetriever):
        return awaits(type(part)._aretrieve)  # noqa: SLF001 what the host's users write
    return None


def embeds_waiting(model: BaseEmbedding) -> bool:
    """Say whether an embedder waits for its vectors, as one of a server does."""
    return awaits(type(model)._aget_query_embedding)  # noqa: SLF001 what its authors write


async def in_thread(call: Callable[[], Coroutine[Any, Any, ResultT]]) -> ResultT:
    """Run a coroutine in a thread and an event loop of its own, in a copy of this context."""
    return await asyncio.to_thread(lambda: asyncio.run(call()))
