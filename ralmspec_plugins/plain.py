"""The plain loop: the definition of the right answer."""

from typing import Any

from ralmspec_plugins.protocols import Progress, Retriever, Workload
from ralmspec_plugins.records import Answer, Query, Request, Retrieved
from ralmspec_plugins.stats import Stats


def formed(workload: Workload[Any], retriever: Retriever, state: Any) -> Query | None:
    """Form and encode the next query of a state; `None` when the answer is complete."""
    query = workload.query(state)
    return retriever.encode(query) if isinstance(query, str) else query


def plain(workload: Workload[Any], request: Request, retriever: Retriever) -> Answer:
    """Answer a request one step at a time: ask, search, write, and again.

    Everything else in this package computes the same, faster.
    """
    state = workload.start(request)
    retrieved: list[Retrieved] = []
    while (query := formed(workload, retriever, state)) is not None:
        hits = retriever.search([query])[0]
        retrieved.append(Retrieved(query, hits))
        seen = hits if workload.reads_scores else tuple(hit.unscored() for hit in hits)
        state = workload.extend(state, seen, Progress())
    text = workload.text(state)
    count = len(retrieved)
    stats = Stats(searches=count, queries=count, batch_sizes=(1,) * count, segments=count)
    workload.release(state)
    return Answer(text, tuple(retrieved), state, stats)
