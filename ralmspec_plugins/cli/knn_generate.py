"""`ralmspec knn generate`: continue texts with a model and its datastore."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ralmspec_plugins.cli import knn_open, options
from ralmspec_plugins.cli.asking import Asking, Printer, modes_of, read_questions
from ralmspec_plugins.cli.assemble import make_schedule
from ralmspec_plugins.cli.options import ScheduleName
from ralmspec_plugins.cli.output import in_short, stats_record, write_json
from ralmspec_plugins.cli.runs import PLAIN, speed_up
from ralmspec_plugins.config import Settings
from ralmspec_plugins.engine.threads import Engine
from ralmspec_plugins.knn.cache import CAPACITY, FOLLOWING
from ralmspec_plugins.timeline import check_path
from ralmspec_plugins.types import Answer, Request

_WARM_TOKENS = 2


def generate(
    datastore: knn_open.Store,
    prompt: Annotated[str | None, typer.Argument(help="The start of a text.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help="Prompts, one a line ('-' for stdin), or a .jsonl file with a 'question' each."
        ),
    ] = None,
    model: options.Model = None,
    k: knn_open.K = 1024,
    weight: Annotated[
        float, typer.Option(help="The neighbours' share in each choice, up to 1 (lambda).")
    ] = 0.25,
    distance_temperature: knn_open.DistanceTemperature = 1.0,
    search: knn_open.Search = knn_open.SearchName.EXACT,
    index: knn_open.Index = None,
    rerank: knn_open.Rerank = None,
    replica: knn_open.Replica = None,
    replica_index: knn_open.ReplicaIndex = None,
    plain: options.Plain = False,
    compare: options.Compare = False,
    max_tokens: options.MaxTokens = 128,
    stop: Annotated[
        list[str] | None, typer.Option(help="End the text before this one; may be repeated.")
    ] = None,
    schedule: options.Schedule = ScheduleName.CONTINUOUS,
    stride: options.Stride = None,
    lanes: options.Lanes = None,
    window: options.Window = None,
    overlap: options.Overlap = None,
    gamma_limit: options.GammaLimit = None,
    prefetch: Annotated[
        int | None,
        typer.Option(min=1, help="Neighbours that a search brings to the cache. [default: k]"),
    ] = None,
    following: Annotated[
        int | None,
        typer.Option(
            min=0,
            help=f"Entries behind each neighbour that are guessed with. [default: {FOLLOWING}]",
        ),
    ] = None,
    followed: Annotated[
        int | None,
        typer.Option(min=0, help="Of so many neighbours, the nearest. [default: of all]"),
    ] = None,
    capacity: Annotated[
        int | None, typer.Option(min=1, help=f"Entries in the cache. [default: {CAPACITY}]")
    ] = None,
    seed: options.Seed = 0,
    temperature: options.Temperature = 0.0,
    deadline: Annotated[
        float | None,
        typer.Option(
            parser=options.duration, metavar="TIME", help="Give a text up after 30s, say."
        ),
    ] = None,
    timeline: options.Timeline = None,
    any_model: knn_open.AnyModel = False,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Continue one text, or those of a file, shown while they are written."""
    modes = modes_of(plain=plain, compare=compare)
    prompts = read_questions(prompt, file)
    if timeline is not None:
        check_path(timeline)
    cache = knn_open.cache_settings(
        search,
        replica,
        following=following,
        followed=followed,
        capacity=capacity,
        prefetch=prefetch,
    )
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
    )
    stops = tuple(stop or ())
    common = Request(prompt="", max_tokens=max_tokens, seed=seed, stop=stops, deadline_s=deadline)
    requests = [replace(common, prompt=text) for text in prompts]
    with knn_open.open_model(
        datastore,
        model,
        threads,
        knn_open.Finding(search, k, index, rerank),
        knn_open.replica(replica, k, replica_index),
        weight=weight,
        temperature=distance_temperature,
        settings=settings,
        same_model=not any_model,
        **cache,
    ) as lm:
        lm.generate("Hello", max_tokens=_WARM_TOKENS, plain=True)  # no run pays for what is set up
        engines = _engines(lm, modes, temperature)
        asking = Asking(engines, TextPrinter(json, many=len(requests) > 1), timeline, 0.0)
        failures = asking.all(requests)
    if failures:
        raise typer.Exit(1)


def _engines(lm: Any, modes: tuple[str, ...], temperature: float) -> Mapping[str, Engine]:
    from ralmspec_plugins.lm import Greedy, Sampling

    sampling = Sampling(temperature=temperature) if temperature else Greedy()
    return {mode: lm.engine(sampling, plain=mode == PLAIN) for mode in modes}


class TextPrinter(Printer):
    """Shows texts; their neighbours, a thousand for each token, are only counted."""

    def end(self, question: str, answer: Answer, mode: str) -> None:
        """Show what a text took."""
        tokens, stats = len(answer.state.tokens), answer.stats
        if not self.human:
            record = {
                "prompt": question,
                "text": answer.text,
                "tokens": list(answer.state.tokens),
                "neighbours": sum(len(step.hits) for step in answer.retrieved),
                "mode": mode,
                "stats": stats_record(stats),
            }
            write_json(record)
            return
        self._console.print("\n")
        rate = f", {tokens / stats.wall_s:.1f} tokens a second" if stats.wall_s else ""
        self._console.print(f"{in_short(stats)}{rate}", style="cyan")

    def equal(self, plain: Answer, speculative: Answer) -> None:
        """Say that a comparison went well."""
        if self.human:
            tokens = len(plain.state.tokens)
            faster = speed_up(plain.stats.wall_s, speculative.stats.wall_s)
            message = f"equal: {tokens} tokens, and the neighbours of each; {faster}"
            self._console.print(message, style="green")
