"""Write the tables of the docs and of the result pages from the result files.

    python benchmarks/write_tables.py

Each table stands between `<!-- name -->` and `<!-- /name -->`; the text around
them is written by hand. A table whose result file is missing stays as it is.
"""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import tables
from benchmarks.harness.report import surroundings, table
from benchmarks.harness.tables import ablation_picture
from benchmarks.knn.tables import TABLES as KNN_TABLES
from benchmarks.simulated.tables import (
    ablation_tables,
    crowd_tables,
    demand_table,
    detail_tables,
    speed_up_tables,
)
from ralmspec_plugins.retrieval.storage.files import write_whole

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
PAGES = [
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("benchmarks", "langchain", "knn_lm")),
    *(RESULTS / f"{name}.md" for name in ("simulated", "knn_lm")),  # results alone
]
ABLATIONS = ("stride", "cache", "prefetch", "interval", "window", "lanes", "latency", "passages",
             "batching")  # fmt: skip
PAPER, MEASURED = "paper/results.json", "ablations/results.json"  # of `python -m benchmarks`
AT_ONCE = "at_once/results.json"  # `paper --only "at once"`, measured again later
PARITY = "parity/results.json"  # `ablations --only ...` for what the paper varied, too
OF_PAPER = ("stride", "prefetch")
SLOWER = "slower/results.json"
LABELS = {
    "stride": "guesses per verification",
    "cache": "passages in the shared pool",
    "prefetch": "hits that a verification brings to the pool",
    "interval": "tokens between two retrievals",
    "window": "unverified steps at once",
    "lanes": "searches that may be out at a time",
    "latency": "milliseconds of a search",
    "passages": "passages",
    "turns": "microseconds between turns of Python's threads",
}
SHOWN = ("1", "2", "4", "8", "16", "32")  # batch sizes


def overhead(result: dict[str, Any]) -> str:
    """Write microseconds a step, by schedule and engine."""
    engines = list(dict.fromkeys(row["engine"] for row in result["rows"]))
    found: dict[str, dict[str, str]] = {}
    for row in result["rows"]:
        name = row["schedule"].split("(window")[0].split(", overlap")[0].split("(overlap")[0]
        name = name + ")" if name.count("(") > name.count(")") else name
        found.setdefault(name, {})[row["engine"]] = f"{row['us_per_step']['median']:.0f}"
    return table(
        ["schedule", *engines],
        [[name, *(row[engine] for engine in engines)] for name, row in found.items()],
    )


def curves(result: dict[str, Any]) -> str:
    """Write b(n), a table for each size."""
    parts = []
    for size, measured in result.items():
        rows = []
        for name, curve in measured["curves"].items():
            points = curve["points"]
            cells = [f"{points[n]['median_ms']:.1f}" if n in points else "-" for n in SHOWN]
            rows.append([name, f"{curve['passages']:,}", *cells])
        head = ["ms for a batch of", "passages", *SHOWN]
        parts.append(f"**{size.replace('x', ' x ')}**\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def merged(result: dict[str, Any]) -> str:
    """Write searches and requests a second, merged and not."""
    parts = []
    for what in ("searches", "requests"):
        measured = result[what]
        ways = list(next(iter(measured.values())))
        rows = [
            [callers, *(f"{row[way]['per_second']:.2f}" for way in ways)]
            + ([f"{row['merged']['mean_batch']:.1f}", f"{row['merged']['times_best_alone']:.1f}"]
               if what == "searches" else [])
            for callers, row in measured.items()
        ]  # fmt: skip
        extra = ["mean batch", "merged : best alone"] if what == "searches" else []
        parts.append(table([f"callers, {what} a second", *ways, *extra], rows))
    return "\n\n".join(parts)


def round_trips(result: dict[str, Any]) -> str:
    """Write what reached a host's store and model, by how ours was set up."""
    head = ["k", "", "round trips", "queries in them", "times fewer round trips"]
    head += ["model calls", "of them discarded", "guesses right"]
    plain = {row["k"]: row["round_trips"] for row in result["rows"] if row["row"] == "plain"}
    rows = []
    for row in result["rows"]:
        trips, guesses = row["round_trips"], row["guesses"]
        rows.append(
            [
                str(row["k"]),
                row["row"],
                f"{trips:,}",
                f"{row['queries']:,}",
                f"{plain[row['k']] / trips:.1f}" if trips else "-",
                f"{row['model_calls']:,}",
                f"{row['wasted_calls']:,}",
                f"{100 * row['accepted'] / guesses:.0f} %" if guesses else "-",
            ]
        )
    return table(head, rows)


def _measured(name: str) -> str:
    return PARITY if name in OF_PAPER else MEASURED


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "overhead": ("overhead.json", overhead),
    "table 1": (PAPER, tables.table_1),
    "first page": (PAPER, tables.first_page),
    "beside": (PAPER, partial(tables.against_bound, begins=("scan beside",))),
    "remote": (PAPER, partial(tables.against_bound, begins=("remote",))),
    "at once": (AT_ONCE, tables.at_once),
    "slower": (PAPER, tables.slower),
    "intervals": (SLOWER, tables.intervals),
    "predicted": (PAPER, tables.predicted),
    "surroundings": (PAPER, surroundings),
    **{
        f"measured {name}": (_measured(name), partial(tables.ablation, name=name))
        for name in tables.ABLATIONS
    },
    "sim": ("simulate_traces.json", speed_up_tables),
    "sim detail": ("simulate_traces.json", detail_tables),
    "sim demands": ("simulate_traces.json", demand_table),
    **{
        f"sim {name}": ("simulate_ablations.json", partial(ablation_tables, ablation=name))
        for name in ABLATIONS
    },
    "sim crowds": ("simulate_crowds.json", crowd_tables),
    "curves": ("batch_curves.json", curves),
    "merged": ("verifier.json", merged),
    "round trips": ("langchain_round_trips.json", round_trips),
    "llama_index round trips": ("llama_index_round_trips.json", round_trips),
    **{name: ("knn_lm.json", write) for name, write in KNN_TABLES.items()},
}


def main() -> None:
    """Write every table whose results are there, and draw the measured ablations."""
    for page in PAGES:
        page.write_text(filled(page.read_text()))
    for name, label in LABELS.items():
        if (RESULTS / _measured(name)).exists():
            result = json.loads((RESULTS / _measured(name)).read_text())
            picture = ablation_picture(tables.points(result, name), label)
            write_whole(RESULTS / f"ablations_{name}.svg", picture)


def filled(page: str) -> str:
    """Fill the places of a page."""
    for name, (file, write) in TABLES.items():
        marks = f"<!-- {name} -->", f"<!-- /{name} -->"
        if marks[0] not in page:
            continue
        if not (RESULTS / file).exists():
            print(f"{name}: no {file}")
            continue
        fresh = f"{marks[0]}\n{write(json.loads((RESULTS / file).read_text()))}\n{marks[1]}"
        page = re.sub(
            f"{re.escape(marks[0])}.*?{re.escape(marks[1])}", lambda _, t=fresh: t, page, flags=re.S
        )
        print(f"{name}: written")
    return page


if __name__ == "__main__":
    main()
