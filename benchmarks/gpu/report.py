"""The page of a run on a GPU: tables of all rows, and the goals."""

from collections.abc import Mapping
from statistics import median
from typing import Any

from benchmarks.harness.report import table

_BATCH, _MOST_RATIO = "64", 1.5
_LEAST_GAIN, _LEAST_SPEED = 20.0, 1.8
_PASSAGES = 20_000_000

Values = Mapping[str, dict[str, Any]]


def report(about: Mapping[str, Any], rows: Values) -> str:
    """Return the page, in Markdown."""
    where = about.get("gpu") or about["device"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    parts = [f"# Measured on {where}", f"{about['machine']}; {versions}."]
    if about.get("gpu") is None:
        parts.append("**Not a GPU: these numbers only show that the script runs.**")
    for title, found in (
        ("Milliseconds of a batch", _curves(rows)),
        ("Searches a second of many callers", _callers(rows)),
        ("Passes over k rows, in passes over one", _passes(rows)),
        ("Passes of a fixed shape", _fixed(rows)),
        ("Decoding of texts that copy their prompts", _copying(rows)),
        ("Whole requests: times faster than the plain loop", _regimes(rows)),
    ):
        if found:
            parts += [f"## {title}", found]
    missing = [f"- {name}: {row['left_out']}" for name, row in rows.items() if "left_out" in row]
    if missing:
        parts += ["## Left out", "\n".join(missing)]
    parts += ["## Goals", "\n".join(f"- {line}" for line in goals(rows))]
    return "\n\n".join(parts) + "\n"


def goals(rows: Values) -> list[str]:
    """Return a line for each goal: what was measured of it."""
    batch = [
        (row["median_ms"][_BATCH] / row["median_ms"]["1"], name)
        for name, row in rows.items()
        if row.get("passages", 0) >= _PASSAGES and _BATCH in row.get("median_ms", {})
    ]
    gain = [
        (row["times_single_searches"], name)
        for name, row in rows.items()
        if row.get("passages", 0) >= _PASSAGES and "times_single_searches" in row
    ]
    speed = [
        (row["decoding_speed"], name)
        for name, row in rows.items()
        if "decoding_speed" in row and "8B" in row["model"]
    ]
    return [
        _goal(f"a batch of 64 over 20M vectors costs at most {_MOST_RATIO} queries", batch, min),
        _goal(f"64 callers merged: at least {_LEAST_GAIN:g} times single searches", gain, max),
        _goal(f"copied text: at least {_LEAST_SPEED} times plain decoding", speed, max),
    ]


def _goal(told: str, found: list[tuple[float, str]], best: Any) -> str:
    if not found:
        return f"{told}: not measured"
    value, name = best(found)
    return f"{told}: {value:.2f} ({name})"


def _named(rows: Values, key: str) -> dict[str, dict[str, Any]]:
    return {name: row for name, row in rows.items() if key in row}


def _curves(rows: Values) -> str:
    found = _named(rows, "median_ms")
    if not found:
        return ""
    sizes = sorted({int(n) for row in found.values() for n in row["median_ms"]})
    lines = [
        [name, *(_shown(row["median_ms"].get(str(n))) for n in sizes)]
        for name, row in found.items()
    ]
    return table(["what", *map(str, sizes)], lines)


def _callers(rows: Values) -> str:
    lines = [
        [
            f"{name}, {way}",
            *(f"{count}: {median(rates):,.0f}" for count, rates in row["per_second"][way].items()),
        ]
        for name, row in _named(rows, "per_second").items()
        for way in ("alone", "merged")
    ]
    if not lines:
        return ""
    most = max(map(len, lines))
    filled = [[*line, *[""] * (most - len(line))] for line in lines]
    return table(["what", *["callers: searches"] * (most - 1)], filled)


def _passes(rows: Values) -> str:
    found = _named(rows, "c")
    if not found:
        return ""
    sizes = sorted({int(count) for row in found.values() for count in row["c"]})
    shortest: dict[str, float] = {}
    lines = []
    for name, row in found.items():
        part, one = name.partition(":")[0], row["least_ms"]["1"]
        beside = one / shortest.setdefault(part, one)  # of the shortest context of the part
        costs = [_shown(row["c"].get(str(count))) for count in sizes]
        lines.append([name, _shown(one), f"{beside:.2f}", *costs])
    return table(["what", "ms of one row", "beside the shortest", *map(str, sizes)], lines)


def _fixed(rows: Values) -> str:
    lines = [
        [name, f"{row['cost']:.2f}", str(row["rows_that_differ"])]
        for name, row in _named(rows, "rows_that_differ").items()
    ]
    return (
        table(["what", "passes over one row", "rows that depend on others"], lines) if lines else ""
    )


def _copying(rows: Values) -> str:
    lines = [
        [name, f"{row['decoding_speed']:.2f}", f"{row['tokens_a_pass']:.2f}"]
        for name, row in _named(rows, "decoding_speed").items()
    ]
    return table(["what", "times plain", "tokens a pass"], lines) if lines else ""


def _regimes(rows: Values) -> str:
    lines = [
        [
            name,
            _shown(row["step_ms"]),
            _shown(row["search_ms"]),
            ", ".join(f"{arm} {speed:.2f}" for arm, speed in row["speed"].items()),
        ]
        for name, row in _named(rows, "speed").items()
    ]
    return table(["what", "step, ms", "search, ms", "ways"], lines) if lines else ""


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
