"""How often guesses that need no encoding are right, on 60 real Wikipedia traces.

A trace is that of `benchmarks/guess_rates.py`: 33 queries of an article being written, searched
exactly over MiniLM's vectors. At each step but the first are counted:

- repeated: the search found the passages that the step before was given, in the same order;
- by the text: BM25 of the query's words over the cached passages gave what the search found;
- by the encoding: so did the cache, by its retriever's own metric.

Nothing is timed. Passages are compared, not their scores.

    python -m benchmarks.early_guesses DATA benchmarks/results/early_guesses.json
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from benchmarks.guess_rates import CAPACITY, Trace, dense, load
from benchmarks.harness.report import table
from benchmarks.harness.results import surroundings
from ralmspec_plugins import PassageCache, Repetition
from ralmspec_plugins.retrieval.storage.files import write_whole
from ralmspec_plugins.speculators import Bm25ProxyTable
from ralmspec_plugins.types import Hits

KINDS: Final = ("repeated", "by the text", "by the encoding")
WIDTHS: Final = ((1, 20), (4, 80))  # k, and the default prefetch of a search


def counted(
    retriever: Any, queries: Sequence[Any], k: int, prefetch: int, counts: Counter[str]
) -> None:
    """Take one request through its queries."""
    guessers: dict[str, Any] = {
        "repeated": Repetition(),
        "by the text": PassageCache(retriever, capacity=CAPACITY, k=k, table=Bm25ProxyTable()),
        "by the encoding": PassageCache(retriever, capacity=CAPACITY, k=k),
    }
    previous: Hits = ()
    for step, query in enumerate(queries):
        wide = retriever.search_wide([query], max(k, prefetch))[0]
        truth = wide[:k]
        counts["steps"] += step > 0
        for kind, guesser in guessers.items():
            repeats = isinstance(guesser, Repetition)
            guess = guesser.guess_after(query, previous) if repeats else guesser.guess(query)
            counts[kind] += step > 0 and _ids(guess) == _ids(truth)
            guesser.learn(query, wide)
        previous = truth


def _ids(hits: Hits | None) -> list[str] | None:
    return None if hits is None else [hit.passage.id for hit in hits]


def rates(data: Path, most: int) -> Iterator[dict[str, Any]]:
    """Count over all traces; an article left out has a knowledge base of its own."""
    passages, vectors, traces = load(data, most)
    titles = [passage.title for passage in passages]
    make, ask = dense(passages, vectors)
    everything = make(range(len(passages)))

    def retriever_of(trace: Trace, *, left_out: bool) -> Any:
        if not left_out:
            return everything
        return make([row for row, title in enumerate(titles) if title != trace.article])

    for k, prefetch in WIDTHS:
        for left_out in (False, True):
            counts: Counter[str] = Counter()
            for trace in traces:
                retriever = retriever_of(trace, left_out=left_out)
                counted(retriever, ask(retriever, trace), k, prefetch, counts)
            shares = {kind: counts[kind] / counts["steps"] for kind in KINDS}
            yield {"k": k, "left_out": left_out, "steps": counts["steps"], **shares}


def main(
    data: Annotated[Path, typer.Argument(help="The folder of the traces.")],
    out: Annotated[Path, typer.Argument(help="The file for the results.")],
    traces: Annotated[int, typer.Option(help="Only the first ones, for a trial.")] = 60,
) -> None:
    """Count, write the result, and print the table."""
    found = list(rates(data, traces))
    write_whole(out, json.dumps({**surroundings(), "rates": found}, indent=1).encode())
    typer.echo(
        table(
            ["k", "the article is", *KINDS],
            [
                [
                    str(row["k"]),
                    "left out" if row["left_out"] else "in the knowledge base",
                    *(f"{row[kind]:.0%}" for kind in KINDS),
                ]
                for row in found
            ],
        )
    )


if __name__ == "__main__":
    typer.run(main)
