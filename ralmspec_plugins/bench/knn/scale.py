"""How much KNN-LM's benchmarks measure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from ralmspec_plugins.bench.knn.artefacts import TRAINED
from ralmspec_plugins.bench.knn.domains import Domain, Prompt, prompts
from ralmspec_plugins.bench.knn.learning import Course


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
