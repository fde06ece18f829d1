"""Writes what was counted or simulated of KNN-LM as Markdown tables."""

from collections.abc import Mapping
from typing import Any, Final

from ralmspec_plugins.bench.knn.simulating import GOALS, PUBLISHED
from ralmspec_plugins.bench.report import table

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
