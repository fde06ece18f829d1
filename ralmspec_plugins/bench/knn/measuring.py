"""Measures one cell: all ways in turn, prompt by prompt, with equal tokens and records asserted."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from ralmspec_plugins.bench.cases import PLAIN_NAME
from ralmspec_plugins.bench.equality import UnequalError, check_equal
from ralmspec_plugins.bench.knn.domains import Prompt
from ralmspec_plugins.bench.knn.ways import PLAIN, Way
from ralmspec_plugins.bench.measuring import at_rest
from ralmspec_plugins.bench.rows import Row, row_of
from ralmspec_plugins.engine import Engine
from ralmspec_plugins.knn.distribution import Mixing
from ralmspec_plugins.knn.draft import TokenModel
from ralmspec_plugins.knn.model import LogProbChooser
from ralmspec_plugins.knn.search import NeighbourSearch
from ralmspec_plugins.lm.sampling import Greedy
from ralmspec_plugins.records import Answer, Request
from ralmspec_plugins.speculation.replica import Replica
from ralmspec_plugins.workloads.knn_lm import KNNLM


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What is measured together.

    Args:
        model: its name.
        search: "exact", "exact beside", an approximate one by its name, or that behind a delay.
        k: how many neighbours vote.
        weight: their share.
        tokens: of each text.
        repetitions: of all prompts.
        ways: beside the plain one.
    """

    model: str
    search: str
    k: int
    weight: float = 0.25
    tokens: int = 48
    repetitions: int = 3
    ways: tuple[Way, ...] = ()

    @property
    def name(self) -> str:
        """Name it."""
        return f"{self.model}, {self.search}, k = {self.k}"

    def record(self) -> dict[str, Any]:
        """Give it as JSON takes it, and as `bench.summary` reads it."""
        return {
            "name": self.name,
            "model": self.model,
            "search": self.search,
            "k": self.k,
            "weight": self.weight,
            "tokens": self.tokens,
            "repetitions": self.repetitions,
            "concurrency": 1,
            "arms": [way.record() for way in self.ways],
        }


def measure(
    cell: Cell,
    model: TokenModel,
    search: NeighbourSearch,
    prompts: Sequence[Prompt],
    watch: Callable[[Row], None] | None = None,
    replica: NeighbourSearch | None = None,
) -> dict[str, Any]:
    """Measure a cell: plain, A, B, plain, A, B, and so on, for each prompt and repetition.

    One round over the first prompt warms up, and is not counted. With each repetition what
    engines learn of costs begins anew; what is guessed with begins anew with each request.

    Args:
        cell: what is measured.
        model: keeps nothing of one run for the next.
        search: of the cell's name and k.
        prompts: what is continued.
        watch: is shown each row.
        replica: what ways with a replica guess with; less than a millisecond a query.

    Returns:
        The cell, and one row for each run, as JSON takes it.

    Raises:
        UnequalError: a text or its neighbours are not the plain loop's.
    """
    rows: list[Row] = []
    with at_rest():
        for repetition in range(-1, cell.repetitions):
            asked = prompts if repetition >= 0 else prompts[:1]
            for row in _round(cell, model, search, asked, replica):
                if repetition < 0:
                    continue
                rows.append({"repetition": repetition, **row})
                if watch is not None:
                    watch(rows[-1])
    return {"case": cell.record(), "rows": rows}


def request_of(prompt: Prompt, tokens: int) -> Request:
    """Ask for so many tokens behind a prompt."""
    return Request(prompt=prompt.text, max_tokens=tokens)


def check_same(prompt: str, plain: Answer, answer: Answer) -> None:
    """Compare tokens, text, queries and neighbours, with their distances, to the bit.

    Raises:
        UnequalError: they differ.
    """
    if plain.state.tokens != answer.state.tokens:
        raise UnequalError(
            f"{prompt!r}: the two runs' tokens differ: {plain.state.tokens} and "
            f"{answer.state.tokens}"
        )
    check_equal(prompt, plain, answer)


def workload_of(model: TokenModel, weight: float) -> KNNLM:
    """Write greedily with this share of the neighbours."""
    return KNNLM(model, LogProbChooser(Greedy()), Mixing(weight=weight))


def _round(
    cell: Cell,
    model: TokenModel,
    search: NeighbourSearch,
    prompts: Sequence[Prompt],
    replica: NeighbourSearch | None,
) -> Iterator[Row]:
    """Run all prompts in all ways, the plain one first."""
    retriever: Any = search  # whose lists of neighbours are lists of hits
    cheap: Any = replica
    guesser = None if replica is None else Replica(cheap, retriever, inline=True)
    with ExitStack() as stack:
        engines = {
            way.name: stack.enter_context(
                Engine(
                    workload_of(model, cell.weight),
                    retriever,
                    way.settings(search.datastore, cell.k, guesser),
                )
            )
            for way in (PLAIN, *cell.ways)
        }
        for number, prompt in enumerate(prompts):
            plain: Answer | None = None
            for name, engine in engines.items():
                gc.collect()  # not in the middle of the run
                answer = engine.run(request_of(prompt, cell.tokens))
                plain = answer if plain is None else plain
                check_same(f"{cell.name}, {name}: {prompt.text}", plain, answer)
                told = {"request": number, "source": prompt.source, "place": prompt.place}
                yield {**told, "arm": name, **row_of(answer, plain)}


def plain_rows(record: dict[str, Any]) -> list[Row]:
    """Give the plain runs of a measured cell."""
    return [row for row in record["rows"] if row["arm"] == PLAIN_NAME]
