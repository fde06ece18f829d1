"""`python -m benchmarks workloads`: FLARE, Iter-RetGen and multi-hop, plain and speculative.

Model and store wait, so the times are those of the loop. Plain and speculative runs take turns in
one process, every answer is asserted equal, and beside each time stands the least that is possible
with the same guesses.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any, Final

import typer

from benchmarks.harness.results import surroundings
from benchmarks.workloads.scripts import (
    AnswerScript,
    FlareScript,
    HopScript,
    Step,
    least_s,
    plain_s,
)
from benchmarks.workloads.waiting import Oracle, WaitingModel, WaitingStore
from ralmspec_plugins import Continuous, Engine, Settings
from ralmspec_plugins.engine.simulation import Latencies, Simulation
from ralmspec_plugins.plain import plain
from ralmspec_plugins.types import Answer
from ralmspec_plugins.workloads import Flare, IterRetGen, MultiHop

WRITE_S: Final = 0.25  # a sentence of FLARE, a turn of multi-hop: a
ANSWER_S: Final = 0.75  # a whole answer of Iter-RetGen
SENTENCES: Final = 12
CHANGES: Final = 0.5  # share of FLARE's searches that find other passages
THETA: Final = 0.8
LANES: Final = 8

# Acceptance, and the time of a guess and of a segment in searches, as SpecHop's table has them.
PUBLISHED: Final = {
    "GPT-4o, 2Wiki": (0.68, 0.19, 0.10),
    "GPT-4o, MuSiQue": (0.50, 0.19, 0.11),
    "Llama-3.1-8B, 2Wiki": (0.28, 0.03, 0.10),
    "GPT-4o-mini, DeepResearch": (0.44, 0.22, 0.13),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One workload over one script, and what its steps take at least."""

    script: Any
    make: Callable[[WaitingModel], Any]
    write_s: float
    search_s: float
    steps: Callable[..., Iterator[Step]]

    def steps_of(self, answer: Answer, oracle: Oracle) -> list[Step]:
        """Return the steps of an answer, with the guesses of this oracle."""
        queries = [retrieved.query.text for retrieved in answer.retrieved]
        return list(self.steps(queries, oracle, self.write_s, self.search_s))


def flare_case(search_s: float, seed: int, *, theta: float = THETA) -> Case:
    """Return FLARE over an article."""
    script = FlareScript(SENTENCES, CHANGES, seed)
    steps = partial(script.steps, theta=theta)
    return Case(script, partial(Flare, theta=theta), WRITE_S, search_s, steps)


def hop_case(hops: int, search_s: float) -> Case:
    """Return multi-hop over an answer of so many hops."""
    script = HopScript(hops)
    make = partial(MultiHop, max_hops=hops)
    return Case(script, make, WRITE_S, search_s, script.steps)


def answer_case(search_s: float) -> Case:
    """Return Iter-RetGen with three iterations."""
    script = AnswerScript()
    return Case(script, partial(IterRetGen, iterations=3), ANSWER_S, search_s, script.steps)


def run_plain(case: Case, prompt: str, **settings: Any) -> Answer:
    """Run the plain loop, in an engine that measures it."""
    return _run(case, prompt, Settings(speculate=False), settings)


def run_ahead(case: Case, prompt: str, oracle: Oracle, window: int = 64) -> Answer:
    """Run with the guesses of an oracle."""
    schedule = Continuous(window=window, lanes=LANES, min_acceptance_rate=0.0)
    return _run(case, prompt, Settings(schedule=schedule, speculators=[oracle]), {})


def _run(case: Case, prompt: str, settings: Settings, options: dict[str, Any]) -> Answer:
    model = WaitingModel(case.script, case.write_s)
    store = WaitingStore(case.script, case.search_s)
    with Engine(case.make(model, **options), store, settings) as engine:
        return engine.run(prompt)


def compare(
    cases: Sequence[Case], rights: Sequence[float], window: int = 64
) -> Iterator[dict[str, Any]]:
    """Run each case plainly once and ahead for each share of right guesses; yield a row each."""
    prompts = [f"question {number}" for number in range(len(cases))]
    plains = [run_plain(case, prompt) for case, prompt in zip(cases, prompts, strict=True)]
    for right in rights:
        plain_times, ahead_times, bounds, guesses, accepted = [], [], [], 0, 0
        for case, prompt, expected in zip(cases, prompts, plains, strict=True):
            oracle = Oracle(case.script, right)
            answer = run_ahead(case, prompt, oracle, window)
            assert expected == answer
            assert answer.text
            plain_times.append(expected.stats.wall_s)
            ahead_times.append(answer.stats.wall_s)
            bounds.append(least_s(case.steps_of(expected, oracle)))
            guesses += answer.stats.guesses
            accepted += answer.stats.accepted
        yield {
            "search_s": cases[0].search_s,
            "write_s": cases[0].write_s,
            "right": right,
            "window": window,
            "acceptance_rate": accepted / guesses if guesses else None,
            "plain_s": plain_times,
            "ahead_s": ahead_times,
            "bound_s": bounds,
            "share_of_bound": sum(bounds) / sum(ahead_times),
        }


# FLARE's savings, without a guess


def savings(cases: Sequence[Case], theta: float) -> dict[str, Any]:
    """Compare the plain loop that writes every sentence twice with the one that does not."""
    twice, once, formula = [], [], []
    searched = kept = 0
    for number, case in enumerate(cases):
        prompt = f"question {number}"
        official = run_plain(case, prompt, keep_unchanged=False)
        ours = run_plain(case, prompt)
        assert official.text == ours.text
        assert official.retrieved == ours.retrieved
        steps = case.steps_of(ours, Oracle(case.script, 0.0))
        searched += sum(step.search_s is not None for step in steps[1:])
        kept += sum(step.write_s == 0.0 for step in steps[1:])
        both = case.search_s + SENTENCES * 2 * case.write_s
        both += sum(step.search_s or 0.0 for step in steps[1:])
        formula.append(both / plain_s(steps))
        twice.append(official.stats.wall_s)
        once.append(ours.stats.wall_s)
    sentences = SENTENCES * len(cases)
    faster, expected = sum(twice) / sum(once), fmean(formula)
    return {
        "search_s": cases[0].search_s,
        "theta": theta,
        "searched": searched / sentences,  # u
        "kept": kept / sentences,  # q
        "twice_s": twice,
        "once_s": once,
        "faster": faster,
        "formula": expected,
        "share_of_formula": faster / expected,
    }


# Virtual time


def published_rows(questions: int, hops: Sequence[int], windows: Sequence[int]) -> list[Any]:
    """Run multi-hop in virtual time with SpecHop's published latencies and acceptance."""
    rows = []
    for (name, (right, guess, segment)), count, window in product(PUBLISHED.items(), hops, windows):
        script = HopScript(count)
        oracle = Oracle(script, right, inline=False)
        settings = Settings(
            schedule=Continuous(window=window, lanes=LANES, min_acceptance_rate=0.0),
            speculators=[oracle],
        )
        latencies = Latencies(extend_s=segment, search_s=lambda _: 1.0, guess_s=guess)
        workload = MultiHop(WaitingModel(script, 0.0), max_hops=count)
        store = WaitingStore(script, 0.0)
        simulation = Simulation(workload, store, latencies, settings)
        taken = []
        for number in range(questions):
            prompt = f"question {number}"
            answer = simulation.run(prompt)
            assert plain(workload, store, prompt) == answer
            taken.append(answer.stats.wall_s)
        whole = count * (1.0 + segment) + segment
        rows.append(
            {
                "what": name,
                "hops": count,
                "window": window,
                "relative_latency": fmean(taken) / whole,
                "unbounded": 1 - right * (1 - guess) / (1 + segment),  # SpecHop's RelLat*
            }
        )
    return rows


def workloads(
    out: Annotated[Path, typer.Option(help="where the rows go, as JSON")],
    repetitions: Annotated[int, typer.Option(help="questions in each row")] = 5,
    small: Annotated[bool, typer.Option(help="one short row of each kind")] = False,
) -> None:
    """Measure FLARE, Iter-RetGen and multi-hop with a model and a store that wait."""
    many = range(1 if small else repetitions)
    waits = (0.1,) if small else (0.5, 1.0)
    rights = (0.9,) if small else (0.6, 0.9)
    content: dict[str, Any] = {
        "what": "seconds a question; model and store wait",
        **surroundings(),
    }
    thetas = (THETA,) if small else (0.0, 0.5, THETA, 0.95, 1.0)
    content["flare_savings"] = _shown(
        savings([flare_case(wait, seed, theta=theta) for seed in many], theta)
        for wait, theta in product(waits, thetas)
    )
    content["flare"] = _shown(
        row for wait in waits for row in compare([flare_case(wait, seed) for seed in many], rights)
    )
    content["iter_retgen"] = _shown(
        row for wait in waits for row in compare([answer_case(wait) for _ in many], rights)
    )
    content["multi_hop"] = _shown(
        {"hops": hops, **row, "formula_share": _formula_share(hops, row)}
        for hops, wait in product((2,) if small else (2, 3, 5), waits)
        for row in compare([hop_case(hops, wait) for _ in many], rights)
    )
    windows, shares = ((2,), (0.9,)) if small else ((1, 2, 3, 8), (0.0, 0.5, 0.9, 1.0))
    content["multi_hop_ablation"] = _shown(
        {"hops": 5, **row}
        for window in windows
        for row in compare([hop_case(5, waits[-1]) for _ in many], shares, window)
    )
    hops = (2,) if small else tuple(range(2, 9))
    content["simulated"] = published_rows(3 if small else 50, hops, (1, 2, 3, 8))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _formula_share(hops: int, row: dict[str, Any]) -> float:
    """Return the measured relative latency as a share of 1 - p (N - 1) s / (N (s + a) + a).

    Above 1 the run was slower than that formula at the measured acceptance p.
    """
    p, s, a = row["acceptance_rate"] or 0.0, row["search_s"], row["write_s"]
    formula: float = 1 - p * (hops - 1) * s / (hops * (s + a) + a)
    measured: float = sum(row["ahead_s"]) / sum(row["plain_s"])
    return measured / formula


def _shown(rows: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows, and print each as it comes."""
    kept = []
    for row in rows:
        kept.append(row)
        times = {name: median(one) if isinstance(one, list) else one for name, one in row.items()}
        typer.echo(", ".join(f"{name} {_short(one)}" for name, one in times.items()))
    return kept


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
