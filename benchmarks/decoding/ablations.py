"""`python -m benchmarks.decoding.ablations`: fused drafts and REST's datastore, one part at a time.

The texts are those that plain decoding writes; what follows is counted on them, so that nothing
depends on how busy the machine is. What drafting takes is timed, by the thread's own time.
At the end, speeds in virtual time: the acceptance is measured, the costs of a GPU are published.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Final

import torch
import typer

from benchmarks.decoding import bounds
from benchmarks.decoding.bounds import WrittenText
from benchmarks.decoding.course import opened
from benchmarks.decoding.journal import Journal
from benchmarks.decoding.measure import Ways
from benchmarks.decoding.tasks import SEED, text_corpus, text_tasks
from benchmarks.harness.inputs import LoadedModel
from benchmarks.harness.report import table
from benchmarks.harness.results import surroundings
from benchmarks.harness.tables import figure_class, svg
from ralmspec_plugins.decoding import (
    CorpusDrafter,
    CostCurve,
    Drafter,
    FusedDrafter,
    ModelDrafter,
    RecyclingDrafter,
    SimulatedDecoder,
    SuffixDrafter,
    TokenCorpus,
)
from ralmspec_plugins.effects import Extend
from ralmspec_plugins.lm.prompts import encode
from ralmspec_plugins.lm.sampling import Greedy
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.retrieval.storage.files import write_whole
from ralmspec_plugins.types import Request

Row = dict[str, Any]
_DRAFTS: Final = 15  # a pass, where another thing is varied
_RUNS: Final = 20  # of each way in virtual time
_SIMULATED: Final = 96  # tokens of each
_PARTS: Final = (0.01, 0.03, 0.1, 0.3, 1.0)  # of the datastore's documents
_VARIED: Final[Mapping[str, Mapping[str, Any]]] = {
    "default": {},
    "all sources each time": {"always": True},
    "learned weights, pruned": {"top_tokens": 20, "trusted_match": 5},
    "fixed weight": {"weight": 1.0},
    "k_p 1": {"top_tokens": 1, "trusted_match": 5, "weight": 1.0},
    "k_p 5": {"top_tokens": 5, "trusted_match": 5, "weight": 1.0},
    "k_p 20 (RASD)": {"top_tokens": 20, "trusted_match": 5, "weight": 1.0},
    "k_p 100": {"top_tokens": 100, "trusted_match": 5, "weight": 1.0},
    "trust 1": {"top_tokens": 20, "trusted_match": 1, "weight": 1.0},
    "trust 3": {"top_tokens": 20, "trusted_match": 3, "weight": 1.0},
    "trust 10": {"top_tokens": 20, "trusted_match": 10, "weight": 1.0},
    "no trust": {"top_tokens": 20, "trusted_match": None, "weight": 1.0},
    "parallel": {"parallel": True},
}


def fused(
    small: LoadedModel, corpus: TokenCorpus, settings: Mapping[str, Any]
) -> Callable[[], Sequence[Drafter]]:
    """Return what makes the fused drafter of the benchmark with other settings."""

    def make() -> Sequence[Drafter]:
        model = ModelDrafter(small.model, small.tokenizer)
        retrieval = (SuffixDrafter(), RecyclingDrafter(), CorpusDrafter(corpus))
        given = {key: value for key, value in settings.items() if key != "always"}
        drafter = FusedDrafter(model, *retrieval, **{"parallel": False, **given})
        if "always" in settings:
            for worth in drafter._worths:
                worth.ask = lambda: True  # type: ignore[method-assign]
        return (drafter,)

    return make


def written_texts(
    ways: Ways, requests: int, tokens: int, data: Path
) -> list[tuple[str, WrittenText]]:
    """Let plain decoding write the benchmark's texts; return each with its kind."""
    lm = next(iter(ways.fast.values()))
    found = []
    for number, task in enumerate(text_tasks(requests, data)):
        if not task.free:
            draft = ways.plain.begin(Request(prompt=task.prompt, max_tokens=tokens, seed=number))
            draft = ways.plain.write(draft, task.passages, tokens, Progress())
            found.append((task.kind, WrittenText.of(lm, draft)))
    return found


def ablated(
    name: str,
    make: Callable[[], Sequence[Drafter]],
    texts: Sequence[tuple[str, WrittenText]],
    ways: Ways,
    sizes: Sequence[int],
) -> list[Row]:
    """Count tokens a pass with a drafter, by kind of text and number of drafts."""
    pass_s = ways.costs.pass_s
    assert pass_s is not None
    began_s = time.perf_counter()
    found = [
        (kind, bounds.counted({name: make}, ways.target, text, sizes, pass_s)[name])
        for kind, text in texts
    ]
    took_s = time.perf_counter() - began_s
    rows: list[Row] = []
    for kind in dict.fromkeys(kind for kind, _ in texts):
        counts = bounds.summed([one for of, one in found if of == kind])
        for size, (tokens, passes, drafting_s) in counts.items():
            one = {size: (tokens, passes, drafting_s)}
            rows.append(
                {
                    "name": name,
                    "task": kind,
                    "drafts": int(size),
                    "tokens_a_pass": tokens / passes,
                    "drafting_s": drafting_s / passes,
                    "wall_s": took_s / sum(count[size][1] for _, count in found),
                    "speed": bounds.bound(one, ways.costs),
                    "speed_drafting": bounds.bound(one, ways.costs, drafting=True),
                }
            )
    return rows


# Virtual time.

PUBLISHED: Final[Mapping[str, Mapping[str, tuple[int, float, float]]]] = {
    # Spec-Bench's leaderboard (fd2c1cd), Vicuna-7B: rows of a pass, mean accepted, speed.
    "A100": {
        "PLD": (11, 1.75, 1.66),
        "REST": (65, 1.82, 1.48),
        "Token Recycling": (81, 2.73, 2.22),
    },
    "RTX 3090": {
        "PLD": (11, 1.73, 1.64),
        "REST": (65, 1.63, 1.28),
        "Token Recycling": (81, 2.73, 1.40),
    },
}


def published_curve(device: str) -> CostCurve:
    """Return what a pass and its drafting cost on a GPU: mean accepted tokens over speed.

    >>> [round(cost, 2) for cost in published_curve("A100").costs]
    [1.0, 1.05, 1.23, 1.23]
    """
    rows, costs = [1], [1.0]
    for size, accepted, speed in PUBLISHED[device].values():
        rows.append(size)
        costs.append(max(costs[-1], accepted / speed))
    return CostCurve(tuple(rows), tuple(costs))


def acceptance(counts: Mapping[str, Sequence[float]], drafts: int) -> float:
    """Return the rate at which chains of so many drafts give as many tokens a pass.

    >>> round(acceptance({"3": (30.0, 16.0, 0.0)}, 3), 2)
    0.5
    """
    tokens, passes, _ = counts[str(drafts)]
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if sum(middle**depth for depth in range(drafts + 1)) < tokens / passes:
            low = middle
        else:
            high = middle
    return low


def simulated(expected: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]) -> list[Row]:
    """Return speeds in virtual time, of measured acceptance and a GPU's published costs."""
    rows = []
    for device in PUBLISHED:
        curve = published_curve(device)
        for kind, by_way in expected.items():
            for way, counts in by_way.items():
                rate = acceptance(counts, _DRAFTS)
                decoder = SimulatedDecoder(curve, acceptance=rate, pass_s=0.025, tokens=_SIMULATED)
                progress = Progress()
                took_s = fmean(decoder(Extend(None, (), progress=progress)) for _ in range(_RUNS))
                rows.append(
                    {
                        "device": device,
                        "task": kind,
                        "way": way,
                        "acceptance": rate,
                        "tokens_a_pass": _RUNS * _SIMULATED / progress.model_passes,
                        "speed": 0.025 * _SIMULATED / took_s,
                    }
                )
    return rows


# The command.


def ablations(
    data: Annotated[Path, typer.Option(help="The folder with *articles.jsonl, *passages.jsonl.")],
    cache: Annotated[Path, typer.Option(help="Where the course put its models.")],
    results: Annotated[Path, typer.Option(help="results.json of the benchmark of decoding.")],
    out: Annotated[Path, typer.Option(help="The folder for what is found.")],
    requests: Annotated[int, typer.Option(min=1, help="Texts of each kind.")] = 2,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of each text.")] = 64,
) -> None:
    """Vary fused drafts and the datastore, and write tables and pictures.

    A run that was stopped goes on where it was, with the same command; with the default sizes it
    takes about four minutes on an idle core.
    """
    torch.set_num_threads(1)
    measured = next(
        one for one in json.loads(results.read_text())["models"] if one["model"] == "trained"
    )
    costs = measured["costs"]
    curve = CostCurve(tuple(map(int, costs)), tuple(costs.values()), measured["pass_s"])
    settings = {"requests": requests, "tokens": tokens, "seed": SEED, "costs": costs}
    journal = Journal(out / "ablations.jsonl", settings)
    models = opened(cache)
    ways = Ways.of(models["target"], Greedy(), curve)
    documents = [encode(ways.loaded.tokenizer, text, literal=True) for text in text_corpus(data)]
    texts = written_texts(ways, requests, tokens, data)
    whole = TokenCorpus.of(documents)
    found: dict[str, Any] = {"surroundings": journal.of("surroundings", surroundings)}
    found["settings"] = settings
    found["fused"] = [
        row
        for name, varied in _VARIED.items()
        for row in journal.of(
            name,
            partial(
                ablated,
                name,
                fused(models["drafter"], whole, varied),
                texts,
                ways,
                bounds.SIZES if name == "default" else (_DRAFTS,),
            ),
        )
    ]
    found["datastore"] = [
        {**row, "tokens_held": held}
        for part in _PARTS
        for held, rows in [
            journal.of(f"part {part}", partial(_with_part, documents, part, texts, ways))
        ]
        for row in rows
    ]
    found["simulated"] = simulated(measured["expected"])
    write_whole(out / "ablations.json", json.dumps(found, indent=1).encode())
    write_whole(out / "datastore.svg", datastore_picture(found["datastore"]))
    write_whole(out / "drafts.svg", drafts_picture(found["fused"]))
    page = report(found)
    write_whole(out / "ablations.md", page.encode())
    typer.echo(page)


def _with_part(
    documents: Sequence[Sequence[int]],
    part: float,
    texts: Sequence[tuple[str, WrittenText]],
    ways: Ways,
) -> tuple[int, list[Row]]:
    """Count with every n-th document in the datastore."""
    chosen = list(documents)[:: round(1 / part)]
    corpus = TokenCorpus.of(chosen)
    rows = ablated(f"{part:g}", lambda: (CorpusDrafter(corpus),), texts, ways, (_DRAFTS,))
    return sum(map(len, chosen)), rows


def report(found: Mapping[str, Any]) -> str:
    """Write the tables of what was found."""
    about = found["surroundings"]
    kinds = list(dict.fromkeys(row["task"] for row in found["fused"]))
    parts = [
        (
            f"Measured on {about['machine']}, commit {about['commit']}, load "
            f"{about['load_before']:.1f} before it began. Tokens a pass are counted.\n"
        )
    ]
    parts.append(f"## Fused drafts, {_DRAFTS} a pass: tokens a pass\n")
    names = list(dict.fromkeys(row["name"] for row in found["fused"]))
    rows = []
    for name in names:
        mine = [r for r in found["fused"] if r["name"] == name and r["drafts"] == _DRAFTS]
        by = {row["task"]: row for row in mine}
        rows.append(
            [
                name,
                *(f"{by[kind]['tokens_a_pass']:.2f}" for kind in kinds),
                f"{fmean(row['tokens_a_pass'] for row in mine):.2f}",
                f"{1000 * fmean(row['drafting_s'] for row in mine):.2f}",
                f"{1000 * fmean(row['wall_s'] for row in mine):.2f}" if name != "default" else "",
            ]
        )
    parts.append(table(["setting", *kinds, "mean", "drafting ms", "wall ms"], rows))
    parts.append("\n## Fused drafts by number: speed without and with what drafting takes\n")
    sizes = sorted({row["drafts"] for row in found["fused"] if row["name"] == "default"})
    default = [row for row in found["fused"] if row["name"] == "default"]
    parts.append(
        table(
            ["drafts", *kinds],
            [
                [
                    str(size),
                    *(
                        f"{row['tokens_a_pass']:.2f}; {row['speed']:.2f}; "
                        f"{row['speed_drafting']:.2f}"
                        for kind in kinds
                        for row in default
                        if row["task"] == kind and row["drafts"] == size
                    ),
                ]
                for size in sizes
            ],
        )
    )
    parts.append("\n## REST's datastore: tokens a pass by its tokens\n")
    held = list(dict.fromkeys(row["tokens_held"] for row in found["datastore"]))
    parts.append(
        table(
            ["tokens", *kinds],
            [
                [
                    f"{count:,}",
                    *(
                        f"{row['tokens_a_pass']:.2f}"
                        for kind in kinds
                        for row in found["datastore"]
                        if row["task"] == kind and row["tokens_held"] == count
                    ),
                ]
                for count in held
            ],
        )
    )
    parts.append("\n## Simulated: acceptance as measured here, costs of a GPU as published\n")
    for device, ways in PUBLISHED.items():
        mine = [row for row in found["simulated"] if row["device"] == device]
        rows = [
            [f"{way} (published, Vicuna-7B, Spec-Bench)", f"{accepted:.2f}", f"{speed:.2f}"]
            for way, (_, accepted, speed) in ways.items()
        ]
        for way in dict.fromkeys(row["way"] for row in mine):
            own = [row for row in mine if row["way"] == way]
            rows.append(
                [
                    f"{way} (simulated)",
                    f"{fmean(row['tokens_a_pass'] for row in own):.2f}",
                    f"{fmean(row['speed'] for row in own):.2f}",
                ]
            )
        parts.append(table([device, "tokens a pass", "speed"], rows))
        parts.append("")
    return "\n".join(parts)


def datastore_picture(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw tokens a pass over the datastore's size, a line for each kind of text: an SVG."""
    return _picture(rows, "tokens_held", "tokens in the datastore", log=True)


def drafts_picture(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw tokens a pass over the number of fused drafts: an SVG."""
    default = [row for row in rows if row["name"] == "default"]
    return _picture(default, "drafts", "drafts a pass", log=False)


def _picture(rows: Sequence[Mapping[str, Any]], x: str, label: str, *, log: bool) -> bytes:
    figure = figure_class()(figsize=(6.0, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for kind in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == kind]
        values = [row["tokens_a_pass"] for row in mine]
        axes.plot([row[x] for row in mine], values, marker=".", label=kind)
    if log:
        axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.set_ylabel("tokens a pass")
    axes.spines[["right", "top"]].set_visible(False)
    axes.legend(fontsize=8)
    return svg(figure)


if __name__ == "__main__":
    typer.run(ablations)
