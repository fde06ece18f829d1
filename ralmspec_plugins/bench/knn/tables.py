"""Writes what was measured of KNN-LM as Markdown tables, and lists all tables."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from ralmspec_plugins.bench.cases import PLAIN_NAME
from ralmspec_plugins.bench.knn.away import AWAY
from ralmspec_plugins.bench.knn.counted_tables import (
    PLACES,
    guess_rates,
    guesses_for_nothing,
    is_ours,
    percent,
    perplexity,
    recall,
    simulated,
    simulated_goals,
)
from ralmspec_plugins.bench.knn.results import SECTIONS
from ralmspec_plugins.bench.knn.running import GOAL
from ralmspec_plugins.bench.report import table
from ralmspec_plugins.bench.summary import Summary, regime, summary_of

Content: TypeAlias = Mapping[str, Any]
MEASURED_GOALS: Final[Mapping[str, tuple[tuple[int, float], ...]]] = {
    GOAL: ((1, 4.0), (8, 4.0), (1024, 2.5)),
    "exact beside": ((8, 4.0), (1024, 2.5)),
    f"hnsw, {AWAY}": ((8, 1.5), (1024, 1.5)),
    "hnsw": ((1, 1.5), (8, 1.5), (64, 1.5), (256, 1.5), (1024, 1.5)),
    "ivfpq": ((1, 1.5), (8, 1.5), (64, 1.5), (256, 1.5), (1024, 1.5)),
}
"""What issue 7 wants of our best setting, by search and k."""
_ENOUGH: Final = 3  # runs, below which there is no interval of their ratios
_SPANS: Final = ("wall_s", "writing_s", "wasted_s", "searching_s", "both_s")


def speed_ups(content: Content) -> str:
    """Write how many times as fast as plain each way is, by k: a table for each search and place.

    A cell has the ratio of summed seconds, and the 95 % interval of the mean ratio where
    there are more than two runs.
    """
    parts = []
    for model, search in _each(_cells(content), "model", "search"):
        for place in PLACES:
            cells = {
                cell["case"]["k"]: found
                for cell in _cells(content)
                if (cell["case"]["model"], cell["case"]["search"]) == (model, search)
                and (found := _summaries(cell, place))
            }
            if not cells:
                continue
            ways = dict.fromkeys(arm for found in cells.values() for arm in found)
            rows = [
                [way, *(_speed_up(found.get(way)) for found in cells.values())]
                for way in ways
                if way != PLAIN_NAME
            ]
            rows.append(["bound", *(_bound(found) for found in cells.values())])
            count = next(iter(cells.values()))[PLAIN_NAME].runs
            title = f"**{model}, {search}, {place}**, n = {count}"
            parts.append(f"{title}\n\n{table(['', *(f'k = {k}' for k in cells)], rows)}")
    return "\n\n".join(parts)


def details(content: Content) -> str:
    """Write all that was counted in each cell, one line for each way, over all prompts."""
    head = ["", "seconds (quartiles)", "as fast as plain", "95 % of the mean ratio"]
    head += ["of the bound", "tokens guessed right", "round trips", "batch", "thrown away", "n"]
    parts = []
    for cell in _cells(content):
        step_s, search_s = regime(cell)
        title = (
            f"**{cell['case']['name']}**: a token {1000 * step_s:.1f} ms, a search "
            f"{1000 * search_s:.1f} ms, R/G {search_s / step_s:.1f}"
        )
        rows = [_detail(one) for one in _summaries(cell).values()]
        parts.append(f"{title}\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def shares(content: Content) -> str:
    """Write where a token's time goes in the measured runs, in milliseconds of a kept token.

    "Only searching" is waiting for neighbours; "neither" is the loop itself, with guessing,
    learning and choosing as far as neither the model nor a search was at work meanwhile.
    """
    head = ["milliseconds a token", "", "writing", "thrown away", "only searching", "neither"]
    lines = []
    for cell in _cells(content):
        for arm in dict.fromkeys(row["arm"] for row in cell["rows"]):
            rows = [row for row in cell["rows"] if row["arm"] == arm]
            tokens = sum(row["steps"] for row in rows)
            sums = {name: sum(row[name] for row in rows) for name in _SPANS}
            both = sums["writing_s"] + sums["searching_s"] - sums["both_s"]
            parts = (
                sums["writing_s"] - sums["wasted_s"],
                sums["wasted_s"],
                sums["searching_s"] - sums["both_s"],
                sums["wall_s"] - both,
            )
            shown = [f"{1000 * part / tokens:.2f}" for part in parts]
            lines.append([cell["case"]["name"], arm, *shown])
    return table(head, lines)


def goals(content: Content) -> str:
    """Write what our best setting reaches where issue 7 names a number, over all prompts.

    A goal is reached where the whole 95 % interval of the mean ratio lies above it.
    """
    rows = []
    for cell in _cells(content):
        case = cell["case"]
        wanted = dict(MEASURED_GOALS.get(case["search"], ())).get(case["k"])
        if wanted is None:
            continue
        found = _summaries(cell)
        best = max(
            (one for name, one in found.items() if is_ours(name)),
            key=lambda one: one.speed_up,
        )
        said = "reached" if best.interval[0] >= wanted else "missed"
        if said == "missed" and best.speed_up >= wanted:
            said = "reached on average"
        rows.append([case["name"], f"{wanted:g}", _speed_up(best), best.arm, _bound(found), said])
    return table(["", "wanted", "our best", "which is", "bound", ""], rows)


def origins(content: Content) -> str:
    """Write which parts were measured or counted when, and by which commit of this project."""
    lines = []
    for section in SECTIONS:
        groups: dict[tuple[str, str], list[str]] = {}
        for name, part in content[section].items():
            told = part["surroundings"]
            groups.setdefault((told["date"][:10], told["commit"] or "-"), []).append(name)
        for (date, commit), names in groups.items():
            all_of_it = len(names) == len(content[section])
            lines.append([section, date, commit, "all" if all_of_it else "; ".join(names)])
    return table(["section", "date", "commit", "parts"], lines)


def profiles(content: Content) -> str:
    """Write what the parts of a token take, in microseconds."""
    lines: list[list[str]] = []
    sizes: list[str] = []
    for name, part in content["profiles"].items():
        found = part["found"]
        parts, loops, searches = found["parts_us"], found["loop_us"], found["search_us"]
        sizes = list(searches)
        numbers = [
            *(parts[what] for what in ("pass", "choosing", "guessing")),
            *(loops[what] for what in ("plain", "knowing all", "guessing")),
            *searches.values(),
        ]
        lines.append([name, *(f"{number:,.0f}" for number in numbers)])
    head = ["µs a token", "pass", "choosing", "guessing", "plain loop"]
    head += ["loop that knows all", "loop that guesses"]
    return table([*head, *(f"search of {size}" for size in sizes)], lines)


TABLES: Final[Mapping[str, Callable[[Content], str]]] = {
    "knn goals": goals,
    "knn": speed_ups,
    "knn details": details,
    "knn shares": shares,
    "knn guesses": guess_rates,
    "knn baselines": guesses_for_nothing,
    "knn recall": recall,
    "knn perplexity": perplexity,
    "knn simulated": simulated,
    "knn simulated goals": simulated_goals,
    "knn profile": profiles,
    "knn origins": origins,
}
"""The tables by the marks that they stand between."""


def _cells(content: Content) -> list[Mapping[str, Any]]:
    return [part["found"] for part in content["cells"].values()]


def _each(cells: Sequence[Mapping[str, Any]], *names: str) -> Iterator[tuple[str, ...]]:
    yield from dict.fromkeys(tuple(cell["case"][name] for name in names) for cell in cells)


def _summaries(cell: Mapping[str, Any], place: str | None = None) -> dict[str, Summary]:
    """Sum up each way of a cell, over the prompts of one place or of all."""
    rows = [row for row in cell["rows"] if place in (None, row["place"])]
    first = {arm["name"] for arm in cell["case"]["arms"] if arm["replica"]}
    return {
        arm: summary_of(
            arm, [row for row in rows if row["arm"] == arm], first_guessed=arm in first, at_once=1
        )
        for arm in dict.fromkeys(row["arm"] for row in rows)
    }


def _speed_up(one: Summary | None) -> str:
    if one is None:
        return "-"
    if one.runs < _ENOUGH:
        return f"{one.speed_up:.2f}"
    return f"{one.speed_up:.2f} ({one.interval[0]:.2f} to {one.interval[1]:.2f})"


def _bound(found: Mapping[str, Summary]) -> str:
    """Give the speed-up that nothing can exceed: N a + b(1) of the plain runs."""
    plain = found[PLAIN_NAME]
    assert plain.of_bound is not None
    return f"{1 / plain.of_bound:.2f}"


def _detail(one: Summary) -> list[str]:
    wall = one.wall_s
    return [
        one.arm,
        f"{wall.median:.2f} ({wall.low:.2f} to {wall.high:.2f})",
        f"{one.speed_up:.2f}",
        f"{one.interval[0]:.2f} to {one.interval[1]:.2f}",
        "-" if one.of_bound is None else f"{100 * one.of_bound:.0f} %",
        percent(one.guess_rate),
        f"{one.round_trips:.1f}",
        "-" if one.batch is None else f"{one.batch:.1f}",
        f"{one.wasted:.1f}",
        str(one.runs),
    ]
