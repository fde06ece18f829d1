"""The plain loop, which defines the correct answer."""

from typing import Any

from ralmspec_plugins.parts import Parts, as_given, results
from ralmspec_plugins.protocols import Progress, Retriever, Workload
from ralmspec_plugins.types import (
    Answer,
    Hits,
    NoRetrieval,
    Request,
    Retrieved,
    Stats,
    as_request,
    unscored,
)


def plain(workload: Workload[Any], retriever: Retriever, request: Request | str) -> Answer:
    """Answer a request one step at a time: form a query, search, and generate.

    The engines compute the same answer in less time.
    """
    parts = Parts(workload, retriever)
    state = parts.start(as_request(request))
    retrieved: list[Retrieved] = []
    segments, progress = 0, Progress()
    try:
        while (formed := parts.form(state, progress)).query is not None:
            hits: Hits = ()
            if not isinstance(formed.query, NoRetrieval):
                asked = formed.query
                query = parts.encode(asked) if isinstance(asked, str) else asked
                [hits] = results(parts.retriever.search([query]), [query])
                retrieved.append(Retrieved(as_given(query), hits))
            seen = hits if workload.reads_scores else unscored(hits)
            state = parts.extend(state, seen, progress, formed.carried)
            segments += 1
        text = parts.text(state)
    finally:
        workload.release(state)
    count = len(retrieved)
    stats = Stats(
        searches=count,
        queries=count,
        batch_sizes=(1,) * count,
        segments=segments,
        without_retrieval=segments - count,
        model_passes=progress.model_passes,
        tokens_written=progress.tokens,
        drafts_accepted=progress.drafts_accepted,
        decisions_retaken=progress.decisions_retaken,
    )
    return Answer(text, tuple(retrieved), state, stats)
