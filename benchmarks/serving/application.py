"""The application that is measured: one store and one model, answered plainly and with guesses.

Store and model wait, as a vector database and a model server on a network do, and each text
depends on every passage before it, so that a wrong passage shows in the answer.

    python -m benchmarks.serving.application SEARCH_S QUERY_S WRITE_S
"""

import asyncio
import hashlib
import json
import sys
from collections.abc import Sequence
from typing import Any, Final

from ralmspec_plugins import AsyncEngine, Hit, Hits, Passage, Query, Settings, SharedPassageCache
from ralmspec_plugins.batching.verifier import Verifier
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.serving import EnginePipeline, Limits, create_app
from ralmspec_plugins.serving.server import address, listen, run
from ralmspec_plugins.workloads import TextState, TextWorkload

STEPS: Final = 6
TOPICS: Final = 40  # passages that questions are about
TURN: Final = 3  # a text stays with a passage for so many steps


def digest(text: str) -> int:
    """Return a number that a text determines."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest())


class WaitingStore:
    """Finds the passage of a topic, after the time of a round trip and of each query."""

    signature = "topics"

    def __init__(self, search_s: float, query_s: float) -> None:
        self._search_s, self._query_s = search_s, query_s

    async def asearch(self, queries: Sequence[Query]) -> list[Hits]:
        await asyncio.sleep(self._search_s + self._query_s * len(queries))
        return [(Hit(passage_of(query.text), 1.0),) for query in queries]

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        raise AssertionError("the engine is asynchronous")


def passage_of(topic: str) -> Passage:
    """Return what is known about a topic."""
    return Passage(f"p{topic}", f"What is known about topic {topic}: {digest(topic):08x}.")


class Walk(TextWorkload[TextState]):
    """Writes a line a step, and asks for the same topic for some steps before the next one."""

    inline_query = True
    append_only = True

    def __init__(self, write_s: float) -> None:
        self._write_s = write_s

    def query(self, state: TextState) -> str | None:
        step = state.text.count("\n")
        if step == STEPS:
            return None
        first, turn = digest(state.request.prompt), step // TURN
        return str((first + 7 * turn) % TOPICS)

    def extend(self, state: TextState, hits: Hits, progress: Progress) -> TextState:
        raise AssertionError("the engine is asynchronous")

    async def aextend(self, state: TextState, hits: Hits, progress: Progress) -> TextState:
        await asyncio.sleep(self._write_s)
        return self.line(state, hits)

    def line(self, state: TextState, hits: Hits) -> TextState:
        """Write a line, which shows the passage and all lines before it."""
        text = hits[0].passage.text
        return state.append(f"{text} {digest(state.text + text):08x}\n")


def expected(prompt: str) -> str:
    """Return the right answer, worked out without an engine."""
    state = TextState(request=_Prompt(prompt))  # type: ignore[arg-type]
    walk = Walk(0.0)
    while (topic := walk.query(state)) is not None:
        text = passage_of(topic).text
        state = state.append(f"{text} {digest(state.text + text):08x}\n")
    return state.text


class _Prompt:
    def __init__(self, prompt: str) -> None:
        self.prompt = prompt


def application(search_s: float, query_s: float, write_s: float) -> Any:
    """Return the application: a plain and a speculative model, each with a verifier of its own."""
    pipelines = {}
    for name in ("plain", "speculative"):
        verifier = Verifier(WaitingStore(search_s, query_s), lanes=2)
        settings = Settings(speculate=name != "plain", pool=SharedPassageCache())
        engine = AsyncEngine(Walk(write_s), verifier, settings)
        pipelines[name] = EnginePipeline(engine, verifier=verifier)
    return create_app(pipelines, limits=_LIMITS)


_LIMITS: Final = Limits(running=512, waiting=512)


def main() -> None:
    """Serve on a free port, and print the address."""
    listening = listen("127.0.0.1", 0)
    app = application(*map(float, sys.argv[1:]))
    print(json.dumps({"url": address(listening)}), flush=True)
    run(app, listening, limits=_LIMITS, drain_s=5)


if __name__ == "__main__":
    main()
