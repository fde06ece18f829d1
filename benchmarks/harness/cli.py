"""`python -m benchmarks`: measure plain and speculative runs side by side, and write a report."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.harness.cases import SUITES, Case
from benchmarks.harness.inputs import Library, folder_library, python_library, world_library
from ralmspec_plugins.cli.build import make_encoder
from ralmspec_plugins.cli.output import notes, seconds, wants_json, write_json
from ralmspec_plugins.errors import ConfigError, MissingExtraError
from ralmspec_plugins.retrieval import HashingEncoder
from ralmspec_plugins.retrieval.optional import optional
from ralmspec_plugins.retrieval.storage.files import write_whole

_RESULTS, _PAGE = "results.json", "report.md"


class SuiteName(StrEnum):
    """The suites by name: a test holds this against `SUITES`."""

    QUICK = "quick"
    PAPER = "paper"
    ABLATIONS = "ablations"
    SLOWER = "slower"
    FULL = "full"


def bench(
    suite: Annotated[SuiteName, typer.Argument(help="Which cases.")] = SuiteName.QUICK,
    out: Annotated[Path, typer.Option(help="The folder for results, report and pictures.")] = Path(
        "ralmspec-bench"
    ),
    data: Annotated[
        Path | None,
        typer.Option(
            help="A folder with *articles.jsonl and *passages.jsonl. "
            "[default: Python's own documentation]"
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Of queries and passages: a sentence-transformers folder or hub name. "
            "[default: hashed words]"
        ),
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Cases with this in their name.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="This model in all cases: a folder, a hub name, or random:4x256."),
    ] = None,
    requests: Annotated[
        int | None, typer.Option(min=1, help="Requests of each case. [default: its own]")
    ] = None,
    repetitions: Annotated[
        int | None, typer.Option(min=1, help="Repetitions of each case. [default: its own]")
    ] = None,
    names: Annotated[bool, typer.Option("--list", help="Name the cases, and stop.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="JSON on stdout, as always when it is no terminal.")
    ] = False,
) -> None:
    """Measure plain and speculative runs side by side, and write results, report and pictures."""
    cases = chosen(SUITES[suite](), only, model, requests, repetitions)
    if names:
        for case in cases:
            typer.echo(f"{case.name}: {case.store.told}; {case.model}; {len(case.arms)} ways")
        return
    optional("torch", "hf", "torch")
    optional("transformers", "hf", "transformers")
    from benchmarks.harness.measure import run

    library = texts(data, cases)
    console = notes()
    console.print(f"{len(cases)} cases over {library.name}: {len(library.passages):,} passages")
    result = run(
        suite,
        cases,
        library,
        make_encoder(encoder) or HashingEncoder(),
        out / _RESULTS,
        lambda case, row: console.print(
            f"{case.name}: {row['arm']}, {seconds(row['wall_s'])}", markup=False
        ),
    )
    page = drawn(result, out)
    write_whole(out / _PAGE, page.encode())
    if wants_json(json):
        write_json({"results": str(out / _RESULTS), "report": str(out / _PAGE), "equal": True})
        return
    typer.echo(page)
    typer.echo(f"Results, report and pictures are in {out}.")


def texts(data: Path | None, cases: list[Case]) -> Library:
    """Read the texts of traces; where all cases are about the demo's world, that is enough."""
    if data is not None:
        return folder_library(data)
    return python_library() if any(case.text == "trace" for case in cases) else world_library()


def chosen(
    cases: list[Case],
    only: str | None,
    model: str | None,
    requests: int | None,
    repetitions: int | None,
) -> list[Case]:
    """Give the cases that are asked for, with other counts and another model if those are.

    Raises:
        ConfigError: there are none.
    """
    found = [case for case in cases if only is None or only in case.name]
    if not found:
        names = "; ".join(case.name for case in cases)
        raise ConfigError(f"no case has {only!r} in its name; there are: {names}")
    return [case.with_counts(requests, repetitions).with_model(model) for case in found]


def drawn(result: dict[str, Any], out: Path) -> str:
    """Draw the pictures, where matplotlib is there, and give the page that shows them."""
    from benchmarks.harness.report import report
    from benchmarks.harness.tables import where_the_time_goes

    pictures: dict[str, str] = {}
    for record in result["cases"]:
        name = record["case"]["name"]
        file = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".svg"
        try:
            write_whole(out / file, where_the_time_goes(record))
        except MissingExtraError as missing:
            notes().print(f"no pictures: {missing}", markup=False)
            break
        pictures[name] = file
    return report(result, pictures)
