"""`ralmspec ask`: answer questions over a saved knowledge base."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ralmspec_plugins.cli import options
from ralmspec_plugins.cli.asking import Asking, Printer, modes_of, read_questions
from ralmspec_plugins.cli.assemble import (
    Style,
    Weights,
    make_schedule,
    make_workload,
    open_store,
)
from ralmspec_plugins.cli.options import (
    WORKLOAD_NAMES,
    ChatPlace,
    EvictionName,
    ScheduleName,
    workload_name,
)
from ralmspec_plugins.cli.output import notes
from ralmspec_plugins.cli.runs import engines
from ralmspec_plugins.config import Settings
from ralmspec_plugins.timeline import check_path
from ralmspec_plugins.types import Request


def ask(
    kb: options.Kb,
    question: Annotated[
        str | None, typer.Argument(help="One question, or rather: the start of a text.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help="Questions, one a line ('-' for stdin), or a .jsonl file with a 'question' each."
        ),
    ] = None,
    model: options.Model = None,
    encoder: options.Encoder = None,
    k: options.K = None,
    plain: options.Plain = False,
    compare: options.Compare = False,
    workload: Annotated[
        str,
        typer.Option(
            parser=workload_name,
            metavar=f"[{'|'.join(WORKLOAD_NAMES)}]",
            help="Search every few tokens, every sentence, or once.",
        ),
    ] = "interval",
    interval: options.Interval = 4,
    query_tokens: options.QueryTokens = 32,
    max_tokens: options.MaxTokens = 128,
    stop: Annotated[
        list[str] | None, typer.Option(help="End the answer before this text; may be repeated.")
    ] = None,
    schedule: options.Schedule = ScheduleName.CONTINUOUS,
    stride: options.Stride = None,
    lanes: options.Lanes = None,
    window: options.Window = None,
    overlap: options.Overlap = None,
    gamma_limit: options.GammaLimit = None,
    prefetch: options.Prefetch = None,
    capacity: Annotated[int, typer.Option(min=1, help="Passages in the pool.")] = 1000,
    eviction: Annotated[EvictionName, typer.Option(help="What leaves a full pool.")] = (
        EvictionName.LRU
    ),
    seed: options.Seed = 0,
    temperature: options.Temperature = 0.0,
    template: Annotated[
        str | None,
        typer.Option(
            help="The text around a question. [default: {prompt}, on a line for the demo's model]"
        ),
    ] = None,
    chat: Annotated[
        ChatPlace | None,
        typer.Option(help="Use the model's chat template, with the passages in this place."),
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(
            parser=options.duration, metavar="TIME", help="Give a question up after 30s, say."
        ),
    ] = None,
    timeline: options.Timeline = None,
    latency: options.Latency = 0.0,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Answer one question, or those of a file, with the text shown while it is written."""
    modes = modes_of(plain=plain, compare=compare)
    questions = read_questions(question, file)
    if timeline is not None:
        check_path(timeline)
    settings = Settings(
        schedule=make_schedule(
            schedule,
            stride=stride,
            lanes=lanes,
            window=window,
            overlap=overlap,
            gamma_limit=gamma_limit,
        ),
        prefetch=prefetch,
        capacity=capacity,
        eviction=eviction.value,
    )
    stops = tuple(stop or ())
    common = Request(prompt="", max_tokens=max_tokens, seed=seed, stop=stops, deadline_s=deadline)
    requests = [replace(common, prompt=text) for text in questions]
    store = open_store(kb, encoder, k, latency)
    with notes().status("loading the model"):
        style = Style(temperature=temperature, template=template, chat=chat)
        weights = Weights(model, style, threads)

    with engines(
        modes,
        lambda: make_workload(workload, weights.language_model(), interval, query_tokens),
        store,
        settings,
    ) as opened:
        asking = Asking(opened, Printer(json, many=len(requests) > 1), timeline, latency)
        failures = asking.all(requests)
    if failures:
        raise typer.Exit(1)
