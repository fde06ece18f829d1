"""Counts how many of the true neighbours an approximate search finds, along plain texts."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from ralmspec_plugins.bench.knn.virtual import VirtualRuns, virtual_latencies
from ralmspec_plugins.knn.neighbours import Neighbours
from ralmspec_plugins.knn.search import NeighbourSearch
from ralmspec_plugins.records import Answer, Query


def recalls(
    runs: VirtualRuns, k: int, searches: Mapping[str, NeighbourSearch]
) -> list[dict[str, Any]]:
    """Ask each search what the exact one was asked, and hold its answers to the exact ones.

    Args:
        runs: what is continued, plainly.
        k: how many neighbours vote; that of each search.
        searches: approximate ones, by name.
    """
    answers = runs.plain(k, virtual_latencies(1.0, 0.5))  # any: the plain text is the same
    rows = []
    for name, search in searches.items():
        for place, ours in runs.by_place(answers):
            pairs = list(_asked(ours))
            found = search.search([query for query, _ in pairs])
            shares = [_share(near, true) for near, (_, true) in zip(found, pairs, strict=True)]
            rows.append(
                {
                    "k": k,
                    "search": name,
                    "place": place,
                    "queries": len(shares),
                    "recall": fmean(shares),
                    "all_found": fmean(share == 1.0 for share in shares),
                }
            )
    return rows


def _asked(answers: Sequence[Answer]) -> list[tuple[Query, Any]]:
    return [(step.query, step.hits) for answer in answers for step in answer.retrieved]


def _share(near: Neighbours, true: Neighbours) -> float:
    """Give the share of the true neighbours that are among the near ones."""
    return len(set(near.ids.tolist()) & set(true.ids.tolist())) / len(true)
