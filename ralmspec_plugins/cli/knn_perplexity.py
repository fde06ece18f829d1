"""`ralmspec knn perplexity`: how well held-out texts are foretold, with neighbours and without."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from ralmspec_plugins.cli import knn_open, options
from ralmspec_plugins.cli.bars import bars
from ralmspec_plugins.cli.output import on_terminal, plural, screen, write_json
from ralmspec_plugins.knn.interpolation import Mixing
from ralmspec_plugins.knn.perplexity import BLOCK, STRIDE
from ralmspec_plugins.retrieval.ingest import stream_texts


def perplexity(
    datastore: knn_open.Store,
    text: Annotated[
        list[Path],
        typer.Option(help="A .txt, .md or .jsonl file (text), or a folder; may be repeated."),
    ],
    model: options.Model = None,
    k: knn_open.K = 1024,
    weight: Annotated[
        list[float] | None,
        typer.Option(help="The neighbours' share; may be repeated. [default: 0.25]"),
    ] = None,
    distance_temperature: knn_open.DistanceTemperature = 1.0,
    search: knn_open.Search = knn_open.SearchName.EXACT,
    index: knn_open.Index = None,
    rerank: knn_open.Rerank = None,
    block: Annotated[int, typer.Option(min=2, help="Tokens of a window.")] = BLOCK,
    stride: Annotated[int, typer.Option(min=1, help="Tokens that a window goes on by.")] = STRIDE,
    any_model: knn_open.AnyModel = False,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Measure the perplexity of texts that are not in the datastore."""
    weights = [Mixing(weight=one).weight for one in weight or (Mixing().weight,)]
    texts = list(stream_texts(text))
    with (
        knn_open.open_model(
            datastore,
            model,
            threads,
            knn_open.Finding(search, k, index, rerank),
            temperature=distance_temperature,
            same_model=not any_model,
        ) as lm,
        bars() as progress,
    ):
        task = progress.add_task("reading", total=None)
        foretold = lm.perplexity(
            texts,
            block=block,
            stride=stride,
            progress=lambda tokens: progress.update(task, completed=tokens),
        )
    record: dict[str, Any] = {
        "texts": foretold.texts,
        "tokens": foretold.tokens,
        "k": k,
        "model": foretold.model_perplexity,
        "interpolated": {str(one): _finite(foretold.perplexity(one)) for one in weights},
    }
    _report_perplexity(record, json)


def _finite(perplexity: float) -> float | None:
    """Give a number that JSON has: none where the neighbours alone made a token impossible."""
    return perplexity if math.isfinite(perplexity) else None


def _report_perplexity(record: dict[str, Any], as_json: bool) -> None:
    if as_json or not on_terminal():
        write_json(record)
        return
    console = screen()
    counted = f"{plural(record['tokens'], 'token')} of {plural(record['texts'], 'text')}"
    console.print(f"{counted}, {plural(record['k'], 'neighbour')} each", style="dim")
    console.print(f"model alone          {record['model']:10.2f}")
    for weight, value in record["interpolated"].items():
        shown = "infinite" if value is None else f"{value:.2f}"
        console.print(f"with weight {weight:9}{shown:>10}")
