"""`ralmspec diagnose`: the upper bound of the speedup by speculation."""

from typing import Any

from rich.table import Table

from ralmspec_plugins.cli import build, options, output
from ralmspec_plugins.cli.options import PLAIN, SPECULATIVE
from ralmspec_plugins.config import Settings
from ralmspec_plugins.diagnosis import Diagnosis, batch_worth, diagnosed, verdict
from ralmspec_plugins.protocols import Workload
from ralmspec_plugins.types import Answer, Request


@options.command
def diagnose(
    question: str = "Tell me the story.",
    *,
    searching: build.SearchOptions,
    common: options.CommonOptions,
    max_tokens: options.Count = 128,
) -> None:
    """Measure searches and generation, and print the upper bound of the speedup.

    Options:
        question: A typical question.
        max_tokens: The maximum number of tokens of an answer.
    """
    request = Request(prompt=options.readable(question), max_tokens=max_tokens)
    store = searching.open(common.device)
    model = build.told_model(common.model, searching.samples())
    with output.notes().status("loading the model"):
        weights = build.Weights(model, common.threads, device=common.device)
    if output.notes().is_terminal:
        output.notes().print("measuring", style="dim")  # a spinner would compete for the processor

    def workload(mode: str) -> Workload[Any]:
        return searching.workload(weights.language_model(mode))

    def run(switch_interval_s: float | None, *, plain: bool) -> Answer:
        mode = PLAIN if plain else SPECULATIVE
        settings = Settings(prefetch=searching.prefetch, switch_interval_s=switch_interval_s)
        with build.engines((mode,), workload, store, settings) as opened:
            return opened[mode].run(request)

    diagnosis = diagnosed(
        run,
        store,
        weights.language_model(),
        request,
        width=Settings(prefetch=searching.prefetch).width,
        interval=searching.interval,
    )
    if output.wants_json(common.json):
        output.write_json(_record(diagnosis, searching.latency))
    else:
        _show(diagnosis)


def _record(diagnosis: Diagnosis, latency_s: float) -> dict[str, Any]:
    bounds, curve = diagnosis.bounds, diagnosis.curve
    return {
        "batch_s": {str(size): value for size, value in curve.items()},
        "batch_worth": {str(size): batch_worth(curve, size) for size in curve},
        "steps": bounds.steps,
        "step_s": bounds.step_s,
        "step_same_passage_s": diagnosis.steps.same_s,
        "step_changed_passage_s": diagnosis.steps.changed_s,
        "plain_s": bounds.plain_s,
        "best_s": bounds.best_s,
        "best_with_replica_s": bounds.best_guessed_s,
        "speed_up": bounds.speed_up,
        "speed_up_with_replica": bounds.speed_up_guessed,
        "measured_plain_s": list(diagnosis.plain_s),
        "deterministic": diagnosis.agrees,
        "switch_interval_gains": list(diagnosis.switch_gains),
        "added_latency_s": latency_s,
        "verdict": verdict(bounds, curve, diagnosis.switch_gains),
    }


def _show(diagnosis: Diagnosis) -> None:
    """Print tables and the verdict."""
    console, seconds = output.screen(), output.seconds
    bounds, steps, curve = diagnosis.bounds, diagnosis.steps, diagnosis.curve
    table = Table("queries", "b(n)", "for each", "worth", title="one search of n queries")
    for size, value in curve.items():
        worth = f"{batch_worth(curve, size):.1f} x"
        table.add_row(str(size), seconds(value), seconds(value / size), worth)
    console.print(table)
    rows = Table(show_header=False, title="one request")
    rows.add_row("steps N", str(bounds.steps))
    rows.add_row("a step a, on average", seconds(bounds.step_s))
    for name, step_s in (("the same", steps.same_s), ("new", steps.changed_s)):
        rows.add_row(f"  with {name} passages", "-" if step_s is None else seconds(step_s))
    rows.add_row("plain: N a + N b(1)", seconds(bounds.plain_s))
    rows.add_row("  two real runs", ", ".join(map(seconds, diagnosis.plain_s)))
    rows.add_row("at best: N a + b(1)", f"{seconds(bounds.best_s)} ({bounds.speed_up:.2f} x)")
    guessed = f"{seconds(bounds.best_guessed_s)} ({bounds.speed_up_guessed:.2f} x)"
    rows.add_row("  first search guessed: (N - 1) a + max(a, b(1))", guessed)
    console.print(rows)
    console.print(verdict(bounds, curve, diagnosis.switch_gains), style="bold")
    if diagnosis.agrees:
        console.print("Two plain runs gave equal answers: this machine is deterministic.")
    else:
        console.print(
            "Two plain runs gave different answers: this machine is not deterministic, "
            "so equal answers cannot be guaranteed. Fix the number of threads (--threads 1).",
            style="red",
        )
