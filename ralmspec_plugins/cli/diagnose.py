"""`ralmspec diagnose`: what speculation can gain at best, before anyone turns it on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.table import Table

from ralmspec_plugins.cli import options
from ralmspec_plugins.cli.asking import readable
from ralmspec_plugins.cli.assemble import Style, Weights, make_workload, open_store
from ralmspec_plugins.cli.output import notes, on_terminal, screen, seconds, write_json
from ralmspec_plugins.cli.runs import PLAIN, engines
from ralmspec_plugins.config import Settings
from ralmspec_plugins.diagnosis import (
    Bounds,
    StepTimes,
    batch_curve,
    batch_worth,
    step_times,
    typical_step,
    verdict,
)
from ralmspec_plugins.protocols import Retriever, WideRetriever
from ralmspec_plugins.types import Answer, Passage, Request


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that was measured."""

    curve: dict[int, float]
    steps: StepTimes
    bounds: Bounds
    plain_s: tuple[float, ...]  # two real runs
    agrees: bool  # whether those two gave the same answer
    latency_s: float

    def record(self) -> dict[str, Any]:
        """Give all numbers, for machines."""
        bounds = self.bounds
        return {
            "batch_s": {str(size): value for size, value in self.curve.items()},
            "batch_worth": {str(size): batch_worth(self.curve, size) for size in self.curve},
            "steps": bounds.steps,
            "step_s": bounds.step_s,
            "step_same_passage_s": self.steps.same_s,
            "step_changed_passage_s": self.steps.changed_s,
            "plain_s": bounds.plain_s,
            "best_s": bounds.best_s,
            "best_with_replica_s": bounds.best_guessed_s,
            "speed_up": bounds.speed_up,
            "speed_up_with_replica": bounds.speed_up_guessed,
            "measured_plain_s": list(self.plain_s),
            "deterministic": self.agrees,
            "added_latency_s": self.latency_s,
            "verdict": verdict(bounds, self.curve),
        }


def diagnose(
    kb: options.Kb,
    question: Annotated[str, typer.Argument(help="A typical question.")] = "Tell me the story.",
    model: options.Model = None,
    encoder: options.Encoder = None,
    k: options.K = None,
    interval: options.Interval = 4,
    query_tokens: options.QueryTokens = 32,
    max_tokens: options.MaxTokens = 128,
    prefetch: options.Prefetch = None,
    latency: options.Latency = 0.0,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Measure searches and writing, and say what speculation can gain at best."""
    settings = Settings(prefetch=prefetch)
    request = Request(prompt=readable(question), max_tokens=max_tokens)
    store = open_store(kb, encoder, k, latency)
    with notes().status("loading the model"):
        weights = Weights(model, Style(), threads)
    if notes().is_terminal:
        notes().print("measuring", style="dim")  # no spinner: it would take part in the race
    answers = [
        _plainly(weights, store, settings, request, interval, query_tokens) for _ in range(2)
    ]
    diagnosis = _diagnosis(store, settings, weights, request, answers, interval, latency)
    if json or not on_terminal():
        write_json(diagnosis.record())
    else:
        _show(diagnosis)


def _plainly(
    weights: Weights,
    store: Retriever,
    settings: Settings,
    request: Request,
    interval: int,
    query_tokens: int,
) -> Answer:
    """Answer once by the plain loop, with empty caches."""
    lm = weights.language_model()
    workload = make_workload("interval", lm, interval, query_tokens)
    with engines((PLAIN,), lambda: workload, store, settings) as opened:
        return opened[PLAIN].run(request)


def _diagnosis(
    store: Retriever,
    settings: Settings,
    weights: Weights,
    request: Request,
    answers: Sequence[Answer],
    interval: int,
    latency_s: float,
) -> Diagnosis:
    queries = [step.query for step in answers[0].retrieved]
    width = settings.width(store.k) if isinstance(store, WideRetriever) else None
    curve = batch_curve(store, queries, width)
    passages = _different(store, answers[0])
    return Diagnosis(
        curve,
        step_times(weights.language_model(), request, passages, interval),
        Bounds(answers[0].stats.segments, typical_step(answers), curve[1]),
        tuple(answer.stats.wall_s for answer in answers),
        answers[0] == answers[1],
        latency_s,
    )


def _different(store: Retriever, answer: Answer) -> list[list[Passage]]:
    """Collect what single steps may be given, no two alike."""
    found: dict[tuple[str, ...], list[Passage]] = {}
    for step in answer.retrieved:
        hits = step.hits
        if isinstance(store, WideRetriever):
            wide = store.search_wide([step.query], 8 * store.k)[0]
            groups = [wide[at : at + store.k] for at in range(0, len(wide), store.k)]
        else:
            groups = [hits]
        for group in groups:
            found.setdefault(tuple(hit.passage.id for hit in group), [hit.passage for hit in group])
        if len(found) > 8:
            break
    return list(found.values())


def _show(diagnosis: Diagnosis) -> None:
    """Print tables and the verdict."""
    console = screen()
    table = Table("queries", "b(n)", "for each", "worth", title="one search of n queries")
    for size, value in diagnosis.curve.items():
        worth = f"{batch_worth(diagnosis.curve, size):.1f} x"
        table.add_row(str(size), seconds(value), seconds(value / size), worth)
    console.print(table)
    bounds, steps = diagnosis.bounds, diagnosis.steps
    rows = Table(show_header=False, title="one request")
    rows.add_row("steps N", str(bounds.steps))
    rows.add_row("a step a, on average", seconds(bounds.step_s))
    rows.add_row("  with the same passages", _or_dash(steps.same_s))
    rows.add_row("  with new passages", _or_dash(steps.changed_s))
    rows.add_row("plain: N a + N b(1)", seconds(bounds.plain_s))
    rows.add_row("  two real runs", ", ".join(map(seconds, diagnosis.plain_s)))
    rows.add_row("at best: N a + b(1)", f"{seconds(bounds.best_s)} ({bounds.speed_up:.2f} x)")
    guessed = f"{seconds(bounds.best_guessed_s)} ({bounds.speed_up_guessed:.2f} x)"
    rows.add_row("  first search guessed: (N - 1) a + max(a, b(1))", guessed)
    console.print(rows)
    console.print(verdict(bounds, diagnosis.curve), style="bold")
    if diagnosis.agrees:
        console.print("Two plain runs gave the same answer: this machine agrees with itself.")
    else:
        console.print(
            "Two plain runs gave different answers: this machine does not agree with itself, "
            "so no two runs can be promised to be equal. Fix the number of threads (--threads 1).",
            style="red",
        )


def _or_dash(value: float | None) -> str:
    return "-" if value is None else seconds(value)
