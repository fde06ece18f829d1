"""Runs KNN-LM's benchmarks part by part; what is done already is not done again."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

from ralmspec_plugins.bench.knn.artefacts import Artefacts, prepare
from ralmspec_plugins.bench.knn.away import AWAY, AwaySearch
from ralmspec_plugins.bench.knn.baselines import baselines
from ralmspec_plugins.bench.knn.beside import BesideSearch, served
from ralmspec_plugins.bench.knn.domains import Domain, Prompt
from ralmspec_plugins.bench.knn.estimating import estimated_s
from ralmspec_plugins.bench.knn.measuring import Cell, measure
from ralmspec_plugins.bench.knn.perplexities import perplexities
from ralmspec_plugins.bench.knn.profiling import profile
from ralmspec_plugins.bench.knn.rates import rates
from ralmspec_plugins.bench.knn.recalls import recalls
from ralmspec_plugins.bench.knn.replaying import OfK, Remembered, RememberingModel
from ralmspec_plugins.bench.knn.results import Results
from ralmspec_plugins.bench.knn.scale import Scale
from ralmspec_plugins.bench.knn.simulating import simulate
from ralmspec_plugins.bench.knn.virtual import VirtualRuns
from ralmspec_plugins.bench.knn.ways import (
    REPLICAS,
    approximate_ways,
    exact_ways,
    simulated_ways,
)
from ralmspec_plugins.knn.approximate import ApproximateSearch
from ralmspec_plugins.knn.exact import ExactSearch
from ralmspec_plugins.knn.model import KNNModel
from ralmspec_plugins.knn.search import GUESSED, own_threads

Told = Callable[[str], None]
REPLICA_KIND: Final = "hnsw"
WEIGHT: Final = 0.25  # lambda in the model's own domain (PAPERS 6.1)
GOAL: Final = "exact, more prompts"  # with the best ways alone


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of work whose result is kept under a section and a name."""

    section: str
    name: str
    run: Callable[[], Any]


class Bench:
    """All parts over one model, made when they are needed."""

    def __init__(
        self, name: str, scale: Scale, domains: Sequence[Domain], data: Path, work: Path, told: Told
    ) -> None:
        """Measure one model.

        Args:
            name: "demo", or a drawn one.
            scale: how much.
            domains: the texts.
            data: the shared folder.
            work: where models, datastores and indexes are kept.
            told: hears of everything as it is done.
        """
        self.name = name
        self._scale = scale
        self._domains = domains
        self._data = data
        self._asked = scale.prompts(domains, data)
        self._work = work / name.replace(":", "-")
        self._told = told
        self._remembering: tuple[int, VirtualRuns] | None = None

    @cached_property
    def made(self) -> Artefacts:
        """The model and the datastore."""
        return prepare(
            self.name,
            self._domains,
            self._work,
            entries=self._scale.entries,
            course=self._scale.course,
            watch=lambda stage, done: self._told(f"{self.name}: {stage} {done:,}"),
        )

    @cached_property
    def exact(self) -> ExactSearch:
        """The exact search in this process."""
        k = max(1024, *self._scale.ks)
        return ExactSearch(self.made.datastore, k=k, threads=own_threads())

    @cached_property
    def replica(self) -> ApproximateSearch:
        """What guesses for the ways that have a replica."""
        return self.made.search(REPLICA_KIND, GUESSED)

    @cached_property
    def _model(self) -> KNNModel:
        return self.made.model()

    def parts(self) -> Iterator[Part]:
        """Give all parts, those that take least first."""
        scale, name = self._scale, self.name
        yield Part("models", name, self.facts)
        for asked in self._domains:
            yield Part("perplexities", f"{name}, {asked.name}", partial(self.foretold, asked))
        for k in scale.profile_ks:
            yield Part("profiles", f"{name}, k = {k}", partial(self.profiled, k))
        for cell in self.cells():
            yield Part("cells", cell.name, partial(self.measured, cell))
        for k in scale.ks:  # what is remembered of one k serves both
            if k in scale.rate_ks:
                yield Part("rates", f"{name}, k = {k}", partial(self.counted, k))
                yield Part("baselines", f"{name}, k = {k}", partial(self.held_against, k))
            yield Part("recalls", f"{name}, k = {k}", partial(self.recalled, k))
            yield Part("simulated", f"{name}, k = {k}", partial(self.simulated, k))

    def build(self) -> None:
        """Make the model, the datastore and all indexes, as far as they are not there."""
        for kind in self._scale.approximate:
            self.made.search(kind, max(self._scale.ks))
            self._told(f"{self.name}: {kind} is there")

    def facts(self) -> dict[str, Any]:
        """Say what model and datastore are."""
        made = self.made
        return {
            "parameters": made.loaded.parameters,
            "entries": len(made.datastore),
            "dimension": made.datastore.about.dimension,
            "vocabulary": made.datastore.about.vocabulary,
            "documents": made.datastore.about.documents,
            "ends": made.ends,
            "prompts": [asdict(prompt) for prompt in self._asked],
            **made.facts,
        }

    def cell(self, search: str, k: int) -> Cell:
        """Say what is measured with a search and a k."""
        scale, exact = self._scale, search.startswith("exact")
        return Cell(
            model=self.name,
            search=search,
            k=k,
            weight=WEIGHT,
            tokens=scale.tokens,
            repetitions=scale.repetitions if exact else scale.approximate_repetitions,
            ways=REPLICAS if search == GOAL else exact_ways(k) if exact else approximate_ways(k),
        )

    def prompts(self, cell: Cell) -> tuple[Prompt, ...]:
        """Say what is continued in a cell."""
        if cell.search == GOAL:
            return self._scale.goal_prompts(self._domains, self._data)
        return self._asked

    def measured(self, cell: Cell) -> dict[str, Any]:
        """Measure a cell."""
        with self.opened(cell.search, cell.k) as search:
            return measure(
                cell,
                self._model,
                search,
                self.prompts(cell),
                lambda row: self._told(_line(cell, row)),
                self.replica,
            )

    @contextmanager
    def opened(self, kind: str, k: int) -> Iterator[Any]:
        """Open a search for as long as a cell lasts."""
        if kind in {"exact", GOAL}:
            yield OfK(self.exact, k)
        elif kind == "exact beside":
            with served(self.made.folder / "datastore") as port:
                yield BesideSearch(port, self.made.datastore, k)
        else:
            near, _, away = kind.partition(", ")
            search = self.made.search(near, k)
            yield AwaySearch(search) if away else search

    def estimated_s(self, cell: Cell) -> float:
        """Say how long a cell will take; models, datastores and indexes are made if need be."""
        with self.opened(cell.search, cell.k) as search:
            prompts = len(self.prompts(cell))
            return estimated_s(cell, self._model, search, self._asked[0], prompts)

    def cells(self) -> Iterator[Cell]:
        """Give all cells."""
        scale = self._scale
        for search in ("exact", *scale.approximate):
            yield from (self.cell(search, k) for k in scale.ks)
        yield from (self.cell(f"{scale.approximate[0]}, {AWAY}", k) for k in scale.away_ks)
        yield from (self.cell("exact beside", k) for k in scale.beside_ks)
        yield from (self.cell(GOAL, k) for k in scale.goal_ks)

    def foretold(self, asked: Domain) -> list[dict[str, Any]]:
        """Foretell held-out texts of a domain."""
        return perplexities(self.made, asked, self._scale.words, told=self._told)

    def counted(self, k: int) -> list[dict[str, Any]]:
        """Count guesses."""
        return rates(self._virtual(k), (k,), told=self._told)

    def held_against(self, k: int) -> list[dict[str, Any]]:
        """Count guesses that cost nothing beside them."""
        return baselines(self._virtual(k), k, told=self._told)

    def recalled(self, k: int) -> list[dict[str, Any]]:
        """Count what the approximate searches find."""
        kinds = self._scale.approximate
        return recalls(self._virtual(k), k, {kind: self.made.search(kind, k) for kind in kinds})

    def simulated(self, k: int) -> list[dict[str, Any]]:
        """Run in virtual time."""
        return simulate(self._virtual(k), (k,), told=self._told)

    def profiled(self, k: int) -> dict[str, Any]:
        """Time the parts of a token."""
        search = OfK(self.exact, k)
        return profile(
            self._model, search, self._asked[:2], weight=WEIGHT, tokens=self._scale.tokens
        )

    def _virtual(self, k: int) -> VirtualRuns:
        """Remember what is said and found for one k: another k's texts are others."""
        if self._remembering is None or self._remembering[0] != k:
            self._remembering = k, self._fresh_runs(k)
        return self._remembering[1]

    def _fresh_runs(self, k: int) -> VirtualRuns:
        width = max(k, *(way.width or k for way in simulated_ways(k)))
        return VirtualRuns(
            model=RememberingModel(self._model),
            remembered=Remembered(OfK(self.exact, width)),
            prompts=self._asked,
            weight=WEIGHT,
            tokens=self._scale.tokens,
            replica=Remembered(self.replica),
        )


def run(benches: Sequence[Bench], sections: Sequence[str], results: Results, told: Told) -> None:
    """Do all parts of these sections that are not there yet.

    Raises:
        UnequalError: a speculative text is not the plain one.
    """
    for bench in benches:
        for part in bench.parts():
            if part.section not in sections or results.has(part.section, part.name):
                continue
            told(f"{part.section}: {part.name}")
            results.put(part.section, part.name, part.run())


def estimate(benches: Sequence[Bench], results: Results, told: Told) -> float:
    """Tell how many minutes each cell that is not there yet will take, and all of them."""
    total_s = 0.0
    for bench in benches:
        for cell in bench.cells():
            if not results.has("cells", cell.name):
                seconds = bench.estimated_s(cell)
                total_s += seconds
                told(f"{cell.name:44} {seconds / 60:6.1f} minutes")
    told(f"{'all cells':44} {total_s / 60:6.1f} minutes")
    return total_s


def _line(cell: Cell, row: dict[str, Any]) -> str:
    return (
        f"{cell.name} {row['place']} {row['arm']}: {row['wall_s']:.2f} s, "
        f"{row['plain_s'] / row['wall_s']:.2f} times plain"
    )
