"""Draw the pictures of docs/pictures.md from the tables of the reports.

    python -m benchmarks.pictures

Each picture shows the numbers of a table as it is committed, so a table that is written again
needs this command again; `tests/benchmarks/test_pictures.py` notices.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from benchmarks.harness.tables import figure_class, svg
from ralmspec_plugins.retrieval.storage.files import write_whole

ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = ROOT / "benchmarks" / "results"
FOLDER: Final = RESULTS / "pictures"
COLOURS: Final = ("#9aa1a9", "#e08a00", "#7fb2dd", "#1f6fb4", "#0b3d66")
PAPER_ROWS: Final = ("base (fixed 3)", "+PSA", "continuous", "continuous, replica")
DRAFT_ROWS: Final = ("suffix", "suffix + recycling", "fused", "generate, prompt lookup")
_NUMBER: Final = re.compile(r"\d+(?:\.\d+)?")

Bars: TypeAlias = Mapping[str, Sequence[float | None]]  # a series by its name, a bar a group
Numbers: TypeAlias = tuple[list[str], Bars]


def tables_of(page: Path) -> list[list[list[str]]]:
    """Return the tables of a Markdown page, as rows of cells, headings first."""
    found: list[list[list[str]]] = [[]]
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if not all(set(cell) <= set("-: ") and cell for cell in cells):
                found[-1].append(cells)
        elif found[-1]:
            found.append([])
    return [rows for rows in found if rows]


def table_with(page: Path, first: str) -> list[list[str]]:
    """Return the first table with a row that begins with this cell."""
    return next(rows for rows in tables_of(page) if any(row[0] == first for row in rows))


def paper() -> Numbers:
    """Return the speeds of the paper's table, a group for each of its columns."""
    head, *rows = table_with(ROOT / "docs" / "benchmarks.md", PAPER_ROWS[0])
    groups = []
    for column in head[1:]:
        name, _, about = column.rpartition(": ")
        retriever = re.sub(r"(?:, R/G above 10)?, random:", "\n", name).replace(" dense", "\ndense")
        groups.append(f"{retriever}\nR/G {about.split()[1].rstrip(',')}")
    return groups, {
        row[0]: [_first_number(cell) for cell in row[1:]] for row in rows if row[0] in PAPER_ROWS
    }


def drafts() -> Numbers:
    """Return the speeds of drafting with the trained model, a group for each kind of text."""
    head, *rows = table_with(RESULTS / "decoding" / "trained" / "report.md", "docqa")
    way, speed = head.index("way"), head.index("speed")
    groups = list(dict.fromkeys(row[0] for row in rows))
    speeds = {(row[0], row[way]): _first_number(row[speed]) for row in rows}
    return groups, {name: [speeds.get((group, name)) for group in groups] for name in DRAFT_ROWS}


def agents() -> Numbers:
    """Return the speeds of LangChain's agent with eight calls, a group for tool and model."""
    head, *rows = table_with(RESULTS / "agents.md", "0.2")
    at = {name: place for place, name in enumerate(head)}
    eight = [row for row in rows if row[at["calls"]] == "8"]
    groups = list(dict.fromkeys(_agent(row, at) for row in eight))
    bars: dict[str, list[float | None]] = {}
    for right in dict.fromkeys(row[at["right"]] for row in eight):
        for way in ("depth 1", "depth k"):
            bars[f"{way}, {right} right"] = [
                float(row[at["plain, s"]]) / float(row[at[f"{way}, s"]])
                for group in groups
                for row in eight
                if _agent(row, at) == group and row[at["right"]] == right
            ]
    return groups, bars


def load() -> Numbers:
    """Return requests a second of an exact scan, a group for each number of callers."""
    head, *rows = next(
        rows
        for rows in tables_of(ROOT / "docs" / "benchmarks.md")
        if rows[0][0] == "callers, requests a second"
    )
    return [f"{row[0]} callers" for row in rows], {
        name: [_first_number(row[place]) for row in rows]
        for place, name in enumerate(head[1:], start=1)
    }


def _agent(row: Sequence[str], at: Mapping[str, int]) -> str:
    return f"tool {row[at['tool, s']]} s\nmodel {row[at['model, s']]} s"


def _first_number(cell: str) -> float | None:
    found = _NUMBER.match(cell)
    return float(found[0]) if found else None


def bar_chart(groups: Sequence[str], bars: Bars, y_label: str, *, plain: bool = True) -> bytes:
    """Draw groups of bars; with `plain`, the plain loop is a line at 1."""
    figure = figure_class()(figsize=(8.0, 3.8), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(bars)
    for place, (name, heights) in enumerate(bars.items()):
        x = [group + (place - (len(bars) - 1) / 2) * width for group in range(len(groups))]
        drawn = [(at, height) for at, height in zip(x, heights, strict=True) if height is not None]
        colour = COLOURS[place % len(COLOURS)] if len(bars) <= len(COLOURS) else None
        axes.bar(
            [at for at, _ in drawn], [height for _, height in drawn], width, label=name,
            color=colour,
        )  # fmt: skip
    if plain:
        axes.axhline(1, color="#444444", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(groups)), groups, fontsize=7)
    axes.set_ylabel(y_label)
    axes.spines[["right", "top"]].set_visible(False)
    axes.legend(fontsize=8)
    return svg(figure)


FASTER: Final = "times as fast as plain"
PICTURES: Final[Mapping[str, tuple[Callable[[], Numbers], str]]] = {
    "paper.svg": (paper, FASTER),
    "drafts.svg": (drafts, FASTER),
    "agents.svg": (agents, FASTER),
    "load.svg": (load, "requests a second"),
}


def mark(numbers: Numbers) -> bytes:
    """Return a comment that names the numbers, which ends the picture of them."""
    digest = hashlib.sha256(json.dumps(numbers).encode()).hexdigest()
    return f"<!-- numbers: {digest} -->\n".encode()


def main() -> None:
    """Draw all pictures."""
    import matplotlib as mpl

    mpl.rcParams["svg.hashsalt"] = "ralmspec-plugins"  # the same file for the same numbers
    FOLDER.mkdir(exist_ok=True)
    for name, (numbers_of, label) in PICTURES.items():
        numbers = numbers_of()
        picture = bar_chart(*numbers, label, plain=label == FASTER)
        write_whole(FOLDER / name, picture + mark(numbers))


if __name__ == "__main__":
    main()
