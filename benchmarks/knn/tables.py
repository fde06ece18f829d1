"""Writes what was measured of KNN-LM as Markdown tables, and lists all tables."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from benchmarks.harness.cases import PLAIN_NAME
from benchmarks.harness.report import Summary, regime, summary_of, table
from benchmarks.harness.tables import figure_class, svg
from benchmarks.knn.run import GOAL, SECTIONS
from benchmarks.knn.simulate import GOALS, PUBLISHED
from benchmarks.knn.ways import AWAY

# Writes what was counted or simulated of KNN-LM as Markdown tables.


PLACES: Final = ("in domain", "out of domain")


def guess_rates(content: Mapping[str, Any]) -> str:
    """Write the share of tokens guessed right: schedules by n, for each model, k and place."""
    rows = _rows(content, "rates")
    parts = []
    for model, k, place in dict.fromkeys((row["model"], row["k"], row["place"]) for row in rows):
        ours = [row for row in rows if (row["model"], row["k"], row["place"]) == (model, k, place)]
        numbers = list(dict.fromkeys(row["following"] for row in ours))
        found = {(row["schedule"], row["following"]): row for row in ours}
        lines = [
            [schedule, *(percent(found[schedule, n]["rate"]) for n in numbers)]
            for schedule in dict.fromkeys(row["schedule"] for row in ours)
        ]
        title = f"**{model}, k = {k}, {place}**, n = {ours[0]['requests']} texts"
        parts.append(f"{title}\n\n{table(['', *(f'next {n}' for n in numbers)], lines)}")
    return "\n\n".join(parts)


def guesses_for_nothing(content: Mapping[str, Any]) -> str:
    """Write how often guesses are right beside those that no neighbours vote: for each weight."""
    rows = [row for row in _rows(content, "baselines") if row["place"] != "all"]
    guesses = list(dict.fromkeys(row["guess"] for row in rows))
    found = {
        tuple(row[name] for name in ("model", "k", "weight", "place", "guess")): row for row in rows
    }
    lines = [
        [key[0], str(key[1]), f"{key[2]:g}", key[3]]
        + [percent(found[*key, guess]["rate"]) for guess in guesses]
        for key in dict.fromkeys(key[:4] for key in found)
    ]
    return table(["", "k", "weight", "", *guesses], lines)


def recall(content: Mapping[str, Any]) -> str:
    """Write the share of true neighbours that the approximate searches find, by k."""
    rows = [row for row in _rows(content, "recalls") if row["place"] == "all"]
    ks = list(dict.fromkeys(row["k"] for row in rows))
    found = {(row["model"], row["search"], row["k"]): row for row in rows}
    lines = [
        [model, search, *(_recalled(found.get((model, search, k))) for k in ks)]
        for model, search in dict.fromkeys((row["model"], row["search"]) for row in rows)
    ]
    return table(["", "", *(f"k = {k}" for k in ks)], lines)


def perplexity(content: Mapping[str, Any]) -> str:
    """Write perplexities: the model alone, and with each datastore's neighbours by weight."""
    rows = _rows(content, "perplexities")
    weights = list(rows[0]["with"]) if rows else []
    lines = [
        [
            row["model"],
            row["texts"],
            row["datastore"] + (" (its own domain)" if row["in_domain"] else ""),
            f"{row['temperature']:g}",
            f"{row['alone']:.1f}",
            *(f"{row['with'][weight]:.1f}" for weight in weights),
            "{:.3f} ± {:.3f}".format(*row["saved_nats"]),
            f"{row['tokens']:,}",
        ]
        for row in rows
    ]
    head = ["", "held-out texts", "neighbours from", "temperature", "alone"]
    head += [f"weight {weight}" for weight in weights]
    return table([*head, "nats a token spared at 0.25", "tokens"], lines)


def simulated(content: Mapping[str, Any]) -> str:
    """Write simulated speed-ups: ways by k, for each regime; in domain / out of domain."""
    rows = _rows(content, "simulated")
    parts = []
    for model, name in dict.fromkeys((row["model"], row["regime"]) for row in rows):
        ours = [row for row in rows if (row["model"], row["regime"]) == (model, name)]
        ks = list(dict.fromkeys(row["k"] for row in ours))
        found = {(row["way"], row["k"], row["place"]): row for row in ours}
        lines = [
            [way, *(_places(found, way, k) for k in ks)]
            for way in dict.fromkeys(row["way"] for row in ours)
        ]
        bounds = [f"{next(row['bound'] for row in ours if row['k'] == k):.1f}" for k in ks]
        told = PUBLISHED[ours[0]["search"]]
        lines.append(["bound", *bounds])
        lines.append(["published (OS3)", *(f"{told['k = 1024']}" if k == 1024 else "" for k in ks)])
        title = (
            f"**{model}, {name}**, simulated ({ours[0]['basis']}); published: up to "
            f"{told['best k']} over all k"
        )
        parts.append(f"{title}\n\n{table(['', *(f'k = {k}' for k in ks)], lines)}")
    return "\n\n".join(parts)


def simulated_goals(content: Mapping[str, Any]) -> str:
    """Write what the best of ours reaches at each ratio, beside issue 7's goals and the bound."""
    rows = [row for row in _rows(content, "simulated") if is_ours(row["way"])]
    lines = []
    groups = dict.fromkeys((row["model"], row["regime"], row["place"]) for row in rows)
    for model, name, place in groups:
        group = [
            row
            for row in rows
            if (row["model"], row["regime"], row["place"]) == (model, name, place)
        ]
        best = max(group, key=lambda row: row["speed_up"])
        at_most = [row["speed_up"] for row in group if row["k"] == 1024]
        large = f"{max(at_most):.2f}" if at_most else "-"
        shown = f"{best['speed_up']:.2f} (k = {best['k']}, {best['way']})"
        goal = GOALS[best["search"]]
        lines.append([model, name, place, f"{goal:g}", shown, large, f"{best['bound']:.1f}"])
    return table(["", "", "", "goal", "best k", "k = 1024", "bound"], lines)


def _rows(content: Mapping[str, Any], section: str) -> list[dict[str, Any]]:
    """List the rows of a section, each with its model: the first word of its part's name."""
    return [
        {"model": name.partition(",")[0], **row}
        for name, part in content[section].items()
        for row in part["found"]
    ]


def _places(found: Mapping[Any, Mapping[str, Any]], way: str, k: int) -> str:
    shown = [
        f"{found[way, k, place]['speed_up']:.2f}" for place in PLACES if (way, k, place) in found
    ]
    return " / ".join(shown) or "-"


def _recalled(row: Mapping[str, Any] | None) -> str:
    return "-" if row is None else f"{100 * row['recall']:.1f} %"


def is_ours(way: str) -> bool:
    """Say whether a way goes past the paper's.

    >>> [is_ours(way) for way in ("OS3", "fixed 8", "OS3, overlap", "OS3, replica", "continuous")]
    [False, False, True, True, True]
    """
    return way.startswith(("OS3, overlap", "continuous")) or way.endswith("replica")


def percent(rate: float | None) -> str:
    """Write a share."""
    return "-" if rate is None else f"{100 * rate:.0f} %"


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


# Draws how often tokens are guessed right, as SVG (extra `plots`).


_STYLES: Final = ("-", "--")  # in domain, out of domain
_FIXED: Final = "fixed "


def guess_rate_picture(content: Mapping[str, Any], model: str) -> bytes:
    """Draw the share of right guesses over the stride, a panel for each k and a line for each n.

    Solid lines are texts in the datastore's domain, dashed ones texts of none. What
    OS3 and Continuous come to stands beside, at the right.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    rows = [
        row
        for name, part in content["rates"].items()
        if name.startswith(f"{model},")
        for row in part["found"]
        if row["place"] != "all"
    ]
    ks = list(dict.fromkeys(row["k"] for row in rows))
    figure = figure_class()(figsize=(1.0 + 3.4 * len(ks), 3.8), layout="constrained")
    panels = figure.subplots(1, len(ks), sharey=True, squeeze=False)[0]
    for panel, k in zip(panels, ks, strict=True):
        _lines(panel, [row for row in rows if row["k"] == k])
        panel.set_title(f"k = {k}", fontsize=10)
        panel.set_xlabel("tokens between verifications")
        panel.spines[["right", "top"]].set_visible(False)
    panels[0].set_ylabel("tokens guessed right")
    panels[-1].legend(fontsize=7)
    return svg(figure)


def _lines(panel: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw fixed strides as lines, and what chooses its stride as points beside them."""
    names = list(dict.fromkeys(row["schedule"] for row in rows))
    places = list(dict.fromkeys(row["place"] for row in rows))
    for number, n in enumerate(dict.fromkeys(row["following"] for row in rows)):
        for place, style in zip(places, _STYLES, strict=False):
            rates = {
                row["schedule"]: row["rate"]
                for row in rows
                if (row["following"], row["place"]) == (n, place) and row["rate"] is not None
            }
            fixed = {name: rate for name, rate in rates.items() if name.startswith(_FIXED)}
            others = {name: rate for name, rate in rates.items() if name not in fixed}
            look = {"marker": ".", "color": f"C{number}"}
            x = [names.index(name) for name in fixed]
            panel.plot(x, list(fixed.values()), style, label=f"next {n}, {place}", **look)
            x = [names.index(name) for name in others]
            filled = {} if style == _STYLES[0] else {"markerfacecolor": "none"}
            panel.plot(
                x, list(others.values()), linestyle="none", **{**look, "marker": "o"}, **filled
            )
    ticks = [name.removeprefix(_FIXED) for name in names]
    panel.set_xticks(range(len(names)), ticks, fontsize=8)
