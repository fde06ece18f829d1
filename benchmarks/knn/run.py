"""Runs KNN-LM's benchmarks part by part; what is done already is not done again."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.harness.results import read_results, surroundings
from benchmarks.knn.inputs import TRAINED, Artefacts, Domain, Prompt, prepare, prompts
from benchmarks.knn.measure import (
    Cell,
    OfK,
    Remembered,
    RememberingModel,
    measure,
    profile,
    request_of,
    workload_of,
)
from benchmarks.knn.simulate import VirtualRuns, baselines, perplexities, rates, recalls, simulate
from benchmarks.knn.train import Course
from benchmarks.knn.ways import (
    AWAY,
    REPLICAS,
    AwaySearch,
    BesideSearch,
    approximate_ways,
    exact_ways,
    served,
    simulated_ways,
)
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.knn.ann_search import ApproximateSearch
from ralmspec_plugins.knn.model import KNNModel
from ralmspec_plugins.knn.search import GUESSED, ExactSearch, own_threads
from ralmspec_plugins.knn.state import TokenModel
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.retrieval.storage.files import write_whole

# How much KNN-LM's benchmarks measure.


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is measured.

    Args:
        models: as `prepare` takes them.
        entries: of a datastore, about; of all texts where they give fewer.
        course: of training.
        each: prompts of each domain.
        outside: prompts of none.
        goal_each: prompts of each domain where a goal is measured, with the best ways alone.
        goal_outside: prompts of none there.
        tokens: of each text.
        repetitions: of each measured cell over an exact search.
        approximate_repetitions: of each over another, which takes a tenth of the time.
        ks: how many neighbours vote.
        goal_ks: those that goals are measured for.
        rate_ks: those that guesses are counted for.
        beside_ks: those that are measured with the search in a process of its own, too.
        away_ks: those that are measured with the first approximate search behind a delay, too.
        profile_ks: those that a token's parts are timed for.
        words: of each held-out text whose perplexity is taken.
        approximate: settings of approximate indexes, by kind.
    """

    models: tuple[str, ...] = ("demo", TRAINED)
    entries: int = 1_800_000
    course: Course = field(default_factory=Course)
    each: int = 1
    outside: int = 2
    goal_each: int = 4
    goal_outside: int = 4
    tokens: int = 64
    repetitions: int = 1
    approximate_repetitions: int = 3
    ks: tuple[int, ...] = (1, 8, 64, 256, 1024)
    goal_ks: tuple[int, ...] = (1, 8, 1024)
    rate_ks: tuple[int, ...] = (1, 8, 1024)
    beside_ks: tuple[int, ...] = (8, 1024)
    away_ks: tuple[int, ...] = (8, 1024)
    profile_ks: tuple[int, ...] = (8, 1024)
    words: int = 300
    approximate: tuple[str, ...] = ("hnsw", "ivfpq")

    def prompts(self, domains: Sequence[Domain], data: Path) -> tuple[Prompt, ...]:
        """Take what is continued."""
        return tuple(prompts(domains, data, self.each, self.outside))

    def goal_prompts(self, domains: Sequence[Domain], data: Path) -> tuple[Prompt, ...]:
        """Take what is continued where a goal is measured."""
        return tuple(prompts(domains, data, self.goal_each, self.goal_outside))

    def record(self) -> dict[str, Any]:
        """Give it as JSON takes it; which models are measured may change from run to run."""
        return {name: value for name, value in asdict(self).items() if name != "models"}


SMALL: Final = Scale(
    models=("random:1x64",),
    entries=4_000,
    course=Course(steps=6, batch=2, window=32, every=3),
    each=1,
    outside=1,
    goal_each=1,
    goal_outside=1,
    tokens=6,
    repetitions=1,
    approximate_repetitions=1,
    ks=(1, 8),
    goal_ks=(8,),
    rate_ks=(8,),
    beside_ks=(8,),
    away_ks=(8,),
    profile_ks=(8,),
    words=20,
)
"""For a trial of a minute; its numbers mean nothing."""


# The results of KNN-LM's benchmarks: each part is on the disk before the next one begins.


FORMAT: Final = "ralmspec-knn-bench"
SECTIONS: Final = (
    "models",
    "cells",
    "rates",
    "baselines",
    "recalls",
    "perplexities",
    "simulated",
    "profiles",
)


class Results:
    """A file of results that grows part by part, and is gone on with after a stop."""

    def __init__(self, file: Path, settings: Mapping[str, Any]) -> None:
        """Open the file, or begin one.

        Raises:
            ConfigError: what is there was measured with other settings.
            InputError: what is there are no such results.
        """
        self._file = file
        self._settings = json.loads(json.dumps(settings))  # tuples are lists there
        self.content: dict[str, Any] = self._begun()

    def has(self, section: str, name: str) -> bool:
        """Say whether a part is there."""
        return name in self.content[section]

    def put(self, section: str, name: str, part: Any) -> None:
        """Add a part, with where its numbers come from, and write the file."""
        self.content[section][name] = {"surroundings": surroundings(), "found": part}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._file, json.dumps(self.content).encode())

    def _begun(self) -> dict[str, Any]:
        if not self._file.exists():
            empty: dict[str, Any] = {section: {} for section in SECTIONS}
            return {"format": FORMAT, "settings": self._settings, **empty}
        content = read(self._file)
        if content["settings"] != self._settings:
            raise ConfigError(
                f"{self._file} was begun with other settings ({content['settings']}); go on with "
                "them, or give another file"
            )
        return content


def read(file: Path) -> dict[str, Any]:
    """Read results.

    Raises:
        InputError: the file holds something else.
    """
    return read_results(file, FORMAT, "KNN-LM's benchmarks")


# Says how long the measured parts will take, from a few passes and searches.


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


Told = Callable[[str], None]
REPLICA_KIND: Final = "hnsw"
WEIGHT: Final = 0.25  # lambda in the model's own domain
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
