"""Says how long the measured parts will take, from a few passes and searches."""

import time
from statistics import median
from typing import Any, Final

from ralmspec_plugins.bench.knn.domains import Prompt
from ralmspec_plugins.bench.knn.measuring import Cell, request_of, workload_of
from ralmspec_plugins.knn.draft import TokenModel
from ralmspec_plugins.protocols import Progress

_TOKENS: Final = 6
_SHARE: Final = 0.5  # of a plain run, that another way takes on average: some take all of it


def estimated_s(cell: Cell, model: TokenModel, search: Any, prompt: Prompt, prompts: int) -> float:
    """Estimate the seconds of a cell: all its ways, prompts and repetitions, and the warm-up.

    Args:
        cell: what would be measured.
        model: what continues the prompt.
        search: of the cell's kind and k.
        prompt: one of them.
        prompts: how many there are.
    """
    token_s = _token_s(cell, model, search, prompt)
    rounds = prompts * cell.repetitions + 1
    return rounds * cell.tokens * token_s * (1 + _SHARE * len(cell.ways))


def _token_s(cell: Cell, model: TokenModel, search: Any, prompt: Prompt) -> float:
    """Time a token of the plain loop."""
    workload = workload_of(model, cell.weight)
    state = workload.start(request_of(prompt, cell.tokens))
    times = []
    for _ in range(min(_TOKENS, cell.tokens)):
        query = workload.query(state)
        if query is None:
            break
        began_s = time.perf_counter()
        state = workload.extend(state, search.search([query])[0], Progress())
        times.append(time.perf_counter() - began_s)
    workload.release(state)
    return median(times)
