"""Run requests plainly and speculatively over one store and one model, and hold them together."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from ralmspec_plugins.config import Settings
from ralmspec_plugins.engine.threads import Engine
from ralmspec_plugins.protocols import Retriever, Workload
from ralmspec_plugins.types import Answer, Request

PLAIN, SPECULATIVE = "plain", "speculative"


@contextmanager
def engines(
    modes: tuple[str, ...],
    workload: Callable[[], Workload[Any]],
    retriever: Retriever,
    settings: Settings,
) -> Iterator[Mapping[str, Engine]]:
    """Open one engine for each mode, each with a workload, and so with caches, of its own."""
    with ExitStack() as stack:
        yield {
            mode: stack.enter_context(
                Engine(workload(), retriever, replace(settings, speculate=mode != PLAIN))
            )
            for mode in modes
        }


def answered(engine: Engine, request: Request, show: Callable[[str], None]) -> Answer:
    """Answer a request, and show its text while it is written."""
    stream = engine.stream(request)
    try:
        for piece in stream:
            show(piece)
    finally:
        stream.close()
    return stream.answer


def speed_up(plain: float, speculative: float) -> str:
    """Compare two times in words.

    >>> speed_up(3.0, 1.5), speed_up(1.0, 1.25), speed_up(1.0, 0.99)
    ('2.00 times as fast', '0.80 times as fast', 'as fast')
    """
    ratio = plain / speculative if speculative else 1.0
    return "as fast" if abs(ratio - 1) < 0.03 else f"{ratio:.2f} times as fast"
