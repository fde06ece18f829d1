"""The plain loop: the definition of the right answer."""

from typing import Any

from ralmspec_plugins.errors import InputError
from ralmspec_plugins.protocols import Progress, Retriever, Workload
from ralmspec_plugins.types import Answer, Query, Request, Retrieved, Stats, fixed, unscored


def formed(workload: Workload[Any], retriever: Retriever, state: Any) -> Query | None:
    """Form and encode the next query of a state; `None` when the answer is complete."""
    query = workload.query(state)
    return retriever.encode(query) if isinstance(query, str) else usable(query)


def usable(query: Query | None) -> Query | None:
    """Make sure that a workload's own query cannot be taken for another one.

    Raises:
        InputError: its key cannot be a key.
    """
    if query is None:
        return None
    try:
        hash(query.key)
    except TypeError as error:
        raise InputError(f"the key of a query must be hashable, got {query.key!r}") from error
    if query.encoding is not None and query.key == query.text:
        # Many encodings may have one text: without a key of its own it equals no other query.
        return Query(query.text, query.encoding, key=object())
    return query


def plain(workload: Workload[Any], request: Request, retriever: Retriever) -> Answer:
    """Answer a request one step at a time: ask, search, write, and again.

    Everything else in this package computes the same, faster.
    """
    state = workload.start(request)
    retrieved: list[Retrieved] = []
    try:
        while (query := formed(workload, retriever, state)) is not None:
            hits = fixed(retriever.search([query])[0])
            retrieved.append(Retrieved(query, hits))
            seen = hits if workload.reads_scores else unscored(hits)
            state = workload.extend(state, seen, Progress())
        text = workload.text(state)
    finally:
        workload.release(state)
    count = len(retrieved)
    stats = Stats(searches=count, queries=count, batch_sizes=(1,) * count, segments=count)
    return Answer(text, tuple(retrieved), state, stats)
