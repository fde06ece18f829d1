"""Where a token's time goes: the model's pass, the search, guessing, choosing, the loop.

The parts are timed one by one on the states and neighbours of real texts. What loop and
threads take is seen in runs in which passes and searches are remembered and take nothing.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Final

from ralmspec_plugins.bench.knn.domains import Prompt
from ralmspec_plugins.bench.knn.measuring import request_of, workload_of
from ralmspec_plugins.bench.knn.replaying import Remembered, RememberingModel, remembered_search
from ralmspec_plugins.bench.knn.ways import FIXED, PLAIN, Way
from ralmspec_plugins.config import Settings
from ralmspec_plugins.engine import Engine
from ralmspec_plugins.knn.distribution import interpolate
from ralmspec_plugins.knn.draft import KNNDraft, TokenModel
from ralmspec_plugins.knn.neighbours import Neighbours
from ralmspec_plugins.knn.search import NeighbourSearch
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.records import Hits, Query, Request

SIZES: Final = (1, 2, 4, 8, 16, 32)
_REPEATS: Final = 7


class Known:
    """Guesses the truth from memory, and learns nothing: what is left is the loop."""

    inline = True

    def __init__(self, search: Any) -> None:
        """Give what this search remembers."""
        self._search = search

    def guess(self, query: Query) -> Neighbours:
        """Give the truth."""
        found: list[Neighbours] = self._search.search([query])
        return found[0]

    def learn(self, query: Query, hits: Hits) -> None:
        """Nothing is unknown."""


@dataclass(frozen=True, slots=True)
class Step:
    """One token as the plain loop writes it: the state, what was found, and its pass."""

    state: KNNDraft
    query: Query
    found: Neighbours
    pass_s: float


def profile(
    model: TokenModel,
    search: NeighbourSearch,
    prompts: Sequence[Prompt],
    *,
    weight: float,
    tokens: int,
    way: Way = FIXED[-1],
) -> dict[str, Any]:
    """Time the parts of a token, in microseconds.

    Args:
        model: what continues the prompts.
        search: what is looked up; its k is that of all parts.
        prompts: what is continued.
        weight: the neighbours' share.
        tokens: of each text.
        way: whose cache and whose loop are timed; one that guesses whatever work takes.
    """
    remembered, once = Remembered(search), RememberingModel(model)
    requests = [request_of(prompt, tokens) for prompt in prompts]
    texts = [_steps(once, remembered, request, weight) for request in requests]
    steps = [step for text in texts for step in text]
    known = remembered_search(remembered, search.k)
    guessing = way.settings(search.datastore, search.k)
    knowing = Settings(
        schedule=guessing.schedule, prefetch=search.k, speculators=lambda: (Known(known),)
    )
    looped = partial(_loop_us, once, known, requests, weight)
    return {
        "k": search.k,
        "search": type(search).__name__,
        "way": way.name,
        "tokens": len(steps),
        "parts_us": {
            "pass": _us(step.pass_s for step in steps),
            "choosing": _us(_choosing(steps, weight)),
            "guessing": _us(_guessing(texts, guessing)),
        },
        "search_us": {str(size): _search_us(search, steps, size) for size in SIZES},
        "loop_us": {
            "plain": looped(PLAIN.settings(search.datastore, search.k)),
            "knowing all": looped(knowing),
            "guessing": looped(guessing),
        },
    }


def _steps(
    model: RememberingModel, remembered: Remembered, request: Request, weight: float
) -> list[Step]:
    """Write a text plainly; passes take what they take, since they are the first of their kind."""
    workload, steps = workload_of(model, weight), []
    state = workload.start(request)
    while (query := workload.query(state)) is not None:
        found = remembered.search([query])[0]
        token = workload.chosen(state, found)
        began_s = time.perf_counter()
        after = model.feed(state, token, Progress())
        steps.append(Step(state, query, found, time.perf_counter() - began_s))
        state = after
    return steps


def _choosing(steps: Sequence[Step], weight: float) -> Iterable[float]:
    """Time mixing and choosing, which a step does once for its guess and once for the truth."""
    for step in steps:
        assert step.state.log_probs is not None
        began_s = time.perf_counter()
        interpolate(step.state.log_probs, step.found, weight, 1.0).argmax()
        yield time.perf_counter() - began_s


def _guessing(texts: Sequence[Sequence[Step]], settings: Settings) -> Iterator[float]:
    """Time a guess as each text goes on, with taking in what the last search found."""
    for text in texts:
        made = settings.speculators
        assert callable(made)
        (cache,) = made()
        for step in text:
            yield _took_s(partial(cache.guess, step.query))
            cache.learn(step.query, step.found)


def _search_us(search: NeighbourSearch, steps: Sequence[Step], size: int) -> float:
    """Time one search of so many queries."""
    times = []
    for repeat in range(_REPEATS):
        queries = [steps[(repeat * size + place) % len(steps)].query for place in range(size)]
        times.append(_took_s(partial(search.search, queries)))
    return _us(times)


def _loop_us(
    model: RememberingModel,
    search: Any,
    requests: Sequence[Request],
    weight: float,
    settings: Settings,
) -> float:
    """Time a token of whole runs in which passes and searches take nothing."""
    times = []
    with Engine(workload_of(model, weight), search, settings) as engine:
        for request in requests:
            engine.run(request)  # what is off the plain path is remembered from here on
            took_s = [_took_s(partial(engine.run, request)) for _ in range(3)]
            steps = len(engine.run(request).retrieved)
            times.append(median(took_s) / steps)
    return _us(times)


def _took_s(work: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def _us(seconds: Iterable[float]) -> float:
    """Give the median in microseconds."""
    return 1e6 * median(seconds)
