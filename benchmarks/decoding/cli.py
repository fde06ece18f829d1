"""`python -m benchmarks decoding`: token-level speculation beside plain decoding, as one report."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.decoding.both import measure_both, summary_of_both
from benchmarks.decoding.course import drawn, opened
from benchmarks.decoding.journal import Journal
from benchmarks.decoding.measure import goals, means, measure, summary
from benchmarks.decoding.tasks import (
    SEED,
    Task,
    mixed_tasks,
    text_corpus,
    text_tasks,
    world_corpus,
    world_tasks,
)
from benchmarks.harness.inputs import LoadedModel, load_model, python_library
from benchmarks.harness.report import table
from benchmarks.harness.results import surroundings
from ralmspec_plugins.decoding.calibration import measure_costs
from ralmspec_plugins.lm.decoder import HostedModel
from ralmspec_plugins.lm.kv_cache import ModelRunner
from ralmspec_plugins.lm.sampling import Greedy
from ralmspec_plugins.retrieval.storage.files import write_whole

SIZES = ("random:10x512", "random:16x768")  # about 34 and 120 million weights: costs alone

_COLUMNS = {
    "task": "task",
    "way": "way",
    "requests": "requests",
    "speed": "speed",
    "least": "least",
    "most": "most",
    "decoding": "decoding alone",
    "tokens_a_pass": "tokens a pass",
    "bound": "bound",
    "share": "share",
    "bound_drafting": "bound, drafting paid",
    "share_drafting": "share of it",
}


def decoding(
    out: Annotated[Path, typer.Option(help="The folder for results and report.")] = Path(
        "ralmspec-decoding"
    ),
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="trained or drawn (see --cache; what drawn writes repeats nothing), a model's "
            "folder, or demo. [default: demo]"
        ),
    ] = None,
    cache: Annotated[
        Path, typer.Option(help="Where `python -m benchmarks.decoding.course` put its models.")
    ] = Path("CACHE"),
    data: Annotated[
        Path, typer.Option(help="The folder with *articles.jsonl and *passages.jsonl.")
    ] = Path("DATA"),
    requests: Annotated[int, typer.Option(min=1, help="Texts of each kind.")] = 4,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of each text.")] = 96,
    repetitions: Annotated[int, typer.Option(min=1)] = 3,
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    delay_s: Annotated[float, typer.Option(help="A search's, for both speculations.")] = 0.02,
    costs: Annotated[bool, typer.Option(help="Time passes of larger, drawn models.")] = True,
    way: Annotated[
        list[str] | None, typer.Option(help='Only with these drafters: "suffix", ...')
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only see that all of it runs.")] = False,
) -> None:
    """Measure drafts beside plain decoding and transformers' own; texts are asserted equal.

    A run that was stopped goes on where it was, with the same command.
    """
    torch.set_num_threads(threads)
    if quick:
        requests, tokens, repetitions = 1, 24, 1
    names, sizes = model or ["demo"], (SIZES[:1] if quick else SIZES) if costs else ()
    settings = {
        "models": names, "requests": requests, "tokens": tokens, "repetitions": repetitions,
        "threads": threads, "delay_s": delay_s, "sizes": sizes, "seed": SEED,
        "ways": way,
    }  # fmt: skip
    journal = Journal(out / "journal.jsonl", settings)
    about = journal.of("surroundings", surroundings)
    result: dict[str, Any] = {"surroundings": about, "settings": settings, "models": []}
    for name in names:
        loaded, small = _opened(name, cache)
        tasks, corpus = _tasks(name, requests, data)
        result["models"].append(
            measure(loaded, tasks, tokens, repetitions, journal, _say, corpus, small, way or ())
        )
        if name == "demo":
            result["both"] = measure_both(loaded, requests, tokens, delay_s, journal, _say)
    budget_s = 2.0 if quick else 20.0
    result["costs"] = {
        name: journal.of(f"costs {name}", partial(_costs, name, budget_s)) for name in sizes
    }
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "results.json", json.dumps(result, indent=1).encode())
    page = report(result)
    write_whole(out / "report.md", page.encode())
    typer.echo(page)


def _opened(name: str, cache: Path) -> tuple[LoadedModel, LoadedModel | None]:
    """Open a model, and the small one that drafts for it if there is one."""
    if name == "drawn":
        return drawn(cache), opened(cache)["drafter"]
    if name != "trained":
        return load_model(name, ()), None
    models = opened(cache)
    target = models["target"]
    return LoadedModel(name, target.model, target.tokenizer, target.template), models["drafter"]


def _tasks(name: str, requests: int, data: Path) -> tuple[list[Task], list[str]]:
    """Return what a model continues, and what REST's drafts are copied from."""
    if name == "demo":
        return world_tasks(requests), world_corpus()
    tasks = mixed_tasks(requests, data) if name == "drawn" else text_tasks(requests, data)
    return tasks, text_corpus(data)


def report(result: dict[str, Any]) -> str:
    """Write the tables of a result."""
    about = result["surroundings"]
    parts = [f"Measured on {about['machine']}, load {about['load_before']:.1f} before it began.\n"]
    for measured in result["models"]:
        parts.append(f"## {measured['model']}, {measured['parameters']:,} weights\n")
        parts.append("c(rows): " + _curve(measured["costs"]) + "\n")
        # One thread's own time can be told from others'; that of several is the clock's.
        clock = "own_s" if result["surroundings"]["torch_threads"] == 1 else "seconds"
        told = summary(measured, clock)
        rows = [[_shown(row.get(name)) for name in _COLUMNS] for row in told]
        parts.append(table(list(_COLUMNS.values()), rows))
        parts.append("Geometric means of the tasks with a bound:\n")
        ordered = sorted(means(told).items(), key=lambda one: -one[1])
        parts.append(table(["way", "speed"], [[way, _shown(speed)] for way, speed in ordered]))
        for goal, missed in goals(told).items():
            told_of = "not measured" if missed is None else "; ".join(missed)
            parts.append(f"- {goal}: {told_of or 'reached'}")
        parts.append("")
    for name, costs in result["costs"].items():
        parts.append(f"c(rows) of {name}, drawn: {_curve(costs)}\n")
    if "both" in result:
        parts.append("## Both speculations at once, seconds\n")
        columns = ["interval", "loop", "model", "seconds", "speed", "bound"]
        both = summary_of_both(result["both"], result["settings"]["delay_s"])
        parts.append(table(columns, [[_shown(row[name]) for name in columns] for row in both]))
    return "\n".join(parts)


def _costs(name: str, budget_s: float) -> dict[str, float]:
    """Time the passes of a drawn model."""
    loaded = load_model(name, python_library().articles[:2])
    hosted = HostedModel(
        runner=ModelRunner(loaded.model.train(False), 0),
        sampling=Greedy(),
        vocabulary=int(loaded.model.config.vocab_size),
        context=int(loaded.model.config.max_position_embeddings),
        encode=lambda _: (),
        tokenizer=loaded.tokenizer,
    )
    curve = measure_costs(hosted, budget_s)
    return {str(rows): cost for rows, cost in zip(curve.rows, curve.costs, strict=True)}


def _curve(costs: dict[str, float]) -> str:
    return ", ".join(f"{rows}: {cost:.2f}" for rows, cost in costs.items())


def _shown(value: Any) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _say(row: dict[str, Any]) -> None:
    typer.echo(json.dumps(row), err=True)
