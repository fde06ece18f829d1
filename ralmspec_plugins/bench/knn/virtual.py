"""Continues prompts in virtual time, with what the model and the datastore really say."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ralmspec_plugins.bench.knn.domains import Prompt
from ralmspec_plugins.bench.knn.measuring import check_same, request_of, workload_of
from ralmspec_plugins.bench.knn.replaying import Remembered, RememberingModel, remembered_search
from ralmspec_plugins.bench.knn.ways import PLAIN, Way
from ralmspec_plugins.latencies import Latencies
from ralmspec_plugins.records import Answer
from ralmspec_plugins.simulation import Simulation
from ralmspec_plugins.speculation.replica import Replica

ALL_PLACES = "all"
REPLICA_TAKES = 0.1  # of a token: what a replica's guess takes in virtual time


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualRuns:
    """Prompts that are continued again and again.

    Args:
        model: what continues them.
        remembered: a search for the most neighbours that are asked for.
        prompts: what is continued.
        weight: the neighbours' share.
        tokens: of each text.
        replica: what ways with a replica guess with.
    """

    model: RememberingModel
    remembered: Remembered
    prompts: tuple[Prompt, ...]
    weight: float
    tokens: int
    replica: Remembered | None = None

    def plain(self, k: int, latencies: Latencies) -> list[Answer]:
        """Give the plain loop's answers."""
        return [self._run(PLAIN, k, latencies, prompt) for prompt in self.prompts]

    def run(self, way: Way, k: int, latencies: Latencies, truths: Sequence[Answer]) -> list[Answer]:
        """Continue each prompt with nothing measured before it.

        Raises:
            UnequalError: a text is not the plain loop's.
        """
        answers = []
        for prompt, truth in zip(self.prompts, truths, strict=True):
            answers.append(self._run(way, k, latencies, prompt))
            check_same(f"{way.name}, k = {k}: {prompt.text}", truth, answers[-1])
        return answers

    def by_place(self, answers: Sequence[Answer]) -> Iterator[tuple[str, list[Answer]]]:
        """Give the answers by where their prompts are from, and all of them last."""
        places = [prompt.place for prompt in self.prompts]
        for place in dict.fromkeys(places):
            pairs = zip(places, answers, strict=True)
            yield place, [answer for of, answer in pairs if of == place]
        yield ALL_PLACES, list(answers)

    def _run(self, way: Way, k: int, latencies: Latencies, prompt: Prompt) -> Answer:
        search: Any = remembered_search(self.remembered, k)
        simulation = Simulation(
            workload_of(self.model, self.weight),
            search,
            latencies,
            way.settings(search.datastore, k, self._guesser(search)),
        )
        return simulation.run(request_of(prompt, self.tokens))

    def _guesser(self, of: Any) -> Replica | None:
        """Guess with the cheap search, which takes virtual time, unlike a cache."""
        if self.replica is None:
            return None
        cheap: Any = remembered_search(self.replica, self.replica.inner.k)
        return Replica(cheap, of)


def virtual_latencies(ratio: float, fixed: float) -> Latencies:
    """Let a token take 1 and a search `ratio`, a share of which does not grow with the batch."""
    return Latencies(
        extend_s=1.0,
        search_s=lambda n: ratio * (fixed + (1 - fixed) * n),
        guess_s=REPLICA_TAKES,
    )


def guess_rate(answers: Sequence[Answer]) -> float | None:
    """Give the share of right guesses; `None` where none was made."""
    guesses = sum(answer.stats.guesses for answer in answers)
    right = sum(answer.stats.guesses_right for answer in answers)
    return right / guesses if guesses else None
