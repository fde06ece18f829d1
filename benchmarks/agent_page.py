"""The page of the agents' benchmark, written from its rows."""

from collections.abc import Sequence
from statistics import fmean, median
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]

_COLUMNS = (
    *("tool, s", "model, s", "calls", "right", "plain, s", "depth 1, s", "of the gain"),
    *("depth k, s", "of the bound", "dropped calls, 1 / k"),
)
_NAMES = {"langchain": "LangChain", "llama_index": "LlamaIndex"}


def measured_rate(row: Row) -> float:
    """Return the share of right guesses in a row's runs."""
    return fmean(right for rights in row["rights"] for right in rights)


def share_of_gain(row: Row) -> float | None:
    """Return the seconds saved at depth 1, as a share of those that can be saved.

    These are the shorter of tool and model for each right guess.
    """
    shorter_s = min(row["tool_s"], row["reply_s"])
    hideable_s = shorter_s * sum(sum(rights) for rights in row["rights"])
    saved_s = sum(row["seconds"]["plain"]) - sum(row["seconds"]["depth 1"])
    return saved_s / hideable_s if hideable_s else None


def over_bound(row: Row) -> float:
    """Return the time of the deepest agent, divided by the bound of its runs."""
    return sum(row["seconds"][f"depth {row['calls']}"]) / sum(row["bound_s"])


def as_fast_as_plain(row: Row, way: str) -> float:
    """Return the plain agent's time divided by another's."""
    return sum(row["seconds"]["plain"]) / sum(row["seconds"][way])


def overhead_s(row: Row) -> float:
    """Return the plain agent's seconds for each model call, besides waiting."""
    waited_s = row["calls"] * row["tool_s"] + (row["calls"] + 1) * row["reply_s"]
    return (median(row["seconds"]["plain"]) - waited_s) / (row["calls"] + 1)


def page(rows: Sequence[Row]) -> str:
    """Return the page."""
    about = next(row for row in rows if row["kind"] == "surroundings")
    agents = [row for row in rows if row["kind"] == "agent"]
    crowds = [row for row in rows if row["kind"] == "crowd"]
    hosts = sorted({row["host"] for row in agents})
    parts = [_head(about, agents)]
    for host in hosts:
        own = [row for row in agents if row["host"] == host]
        parts += [f"## {_NAMES[host]}\n", _summary(own), _table(own)]
    return "\n".join([*parts, _crowds(crowds)])


def _head(about: Row, agents: Sequence[Row]) -> str:
    versions = ", ".join(f"{name} {one}" for name, one in about["versions"].items())
    runs = len(agents[0]["seconds"]["plain"])
    return f"""# Benchmark: agents ahead of their tools

{about["date"]}, commit {about["commit"]}, on {about["machine"]}; load before: \
{about["load_before"]}. {versions}.

**Real**: the agents of both hosts with their graphs and workflows, the streams, the guesses' \
verification, every call, the clock.
**Not real**: the model and the tool, which wait (the model streams in 5 pieces), and the guesses, \
which a function makes that is right so often.
Plain, one call ahead, and as many ahead as there are calls take turns; {runs} runs of each; \
{_at_once(agents)} settings are measured at the same time in one process. Every answer was \
asserted equal in the same run. "Depth k" is as deep as there are calls, and its tool is read-only.

"Of the gain" is the time saved at depth 1, divided by the number of right guesses times the \
shorter of tool and model. "Of the bound" is the time at depth k, divided by the least time of \
runs with these guesses: after a right guess, a step begins when its model call ends; after a \
wrong one, when the tool has returned.
"""


def _at_once(agents: Sequence[Row]) -> str:
    found = {_NAMES[row["host"]]: row["at_once"] for row in agents}
    if len(set(found.values())) == 1:
        return str(agents[0]["at_once"])
    return " and ".join(f"{number} ({host})" for host, number in sorted(found.items()))


def _summary(rows: Sequence[Row]) -> str:
    gains = sorted(one for row in rows if (one := share_of_gain(row)) is not None)
    bounds = sorted(over_bound(row) for row in rows)
    none = [row for row in rows if row["right"] == 0]
    one = sorted(as_fast_as_plain(row, "depth 1") for row in none)
    deep = sorted(as_fast_as_plain(row, f"depth {row['calls']}") for row in none)
    own_ms = 1000 * median(map(overhead_s, rows))
    return f"""The host's own time was {own_ms:.0f} ms for each model call (median).

| | median | worst | within the aim |
|---|---|---|---|
| depth 1, of the gain (aim: 0.90 or more) | {median(gains):.2f} | {gains[0]:.2f} | \
{_share(gains, lambda x: x >= 0.9)} |
| depth k, of the bound (aim: 1.10 or less) | {median(bounds):.2f} | {bounds[-1]:.2f} | \
{_share(bounds, lambda x: x <= 1.1)} |
| no guess right, depth 1, as fast as plain (aim: 0.98 or more) | {median(one):.3f} | {one[0]:.3f} \
| {_share(one, lambda x: x >= 0.98)} |
| no guess right, depth k, as fast as plain (aim: 0.98 or more) | {median(deep):.3f} \
| {deep[0]:.3f} | {_share(deep, lambda x: x >= 0.98)} |
"""


def _share(values: Sequence[float], fits: Any) -> str:
    return f"{sum(map(fits, values))} of {len(values)}"


def _table(rows: Sequence[Row]) -> str:
    lines = [
        f"| {' | '.join(_COLUMNS)} |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    order = ("tool_s", "reply_s", "calls", "right")
    for row in sorted(rows, key=lambda row: [row[name] for name in order]):
        deep = f"depth {row['calls']}"
        gain = share_of_gain(row)
        dropped = [row["counts"][way]["dropped"] for way in ("depth 1", deep)]
        cells = [
            *(row["tool_s"], row["reply_s"], row["calls"], f"{measured_rate(row):.0%}"),
            *(f"{median(row['seconds'][way]):.2f}" for way in ("plain", "depth 1")),
            "-" if gain is None else f"{gain:.2f}",
            f"{median(row['seconds'][deep]):.2f}",
            f"{over_bound(row):.2f}",
            f"{dropped[0]} / {dropped[1]}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def _crowds(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    first = rows[0]
    runs = max(map(len, first["rows"].values()), default=0)
    lines = [
        f"## {first['agents']} agents at once\n",
        f"Tool {first['tool_s']} s, model {first['reply_s']} s, {first['calls']} calls.",
        f"{first['right']:.0%} of the guesses are right; one agent object serves all.",
        f"{first['date']}, commit {first['commit']}; medians of {runs} rounds, ways in turn.\n",
        "| host | | all, s | median of one, s | CPU, s |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        for way, runs in row["rows"].items():
            cells = [median(run[name] for run in runs) for name in ("all_s", "median_s", "cpu_s")]
            numbers = " | ".join(f"{cell:.2f}" for cell in cells)
            lines.append(f"| {_NAMES[row['host']]} | {way} | {numbers} |")
    return "\n".join(lines) + "\n"
