"""What an event loop says of streams that are left half-way: nothing, as of the host's own."""

import asyncio
from typing import Any

import pytest

from tests.langchain.rag_parts import HashChat, HashLLM, HashRetriever, documents, rag_of


@pytest.mark.parametrize("workload", ["one_shot", "interval"])
@pytest.mark.parametrize("model", [HashLLM, HashChat])
@pytest.mark.parametrize("read", [1, 2, 3])
def test_a_stream_left_half_way_is_silent_at_the_loops_end(
    read: int, model: Any, workload: str
) -> None:
    """No error is reported when the loop closes what is open."""
    reported: list[str] = []
    kept = []
    rag = rag_of(model(), HashRetriever(documents=documents()), workload)

    async def left() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, about: reported.append(repr(about)))
        for _ in range(2):
            stream: Any = rag.astream("Who saw it?")
            kept.append(stream)
            for _ in range(read):
                assert await anext(stream)

    asyncio.run(left())

    assert len(kept) == 2
    assert reported == []
