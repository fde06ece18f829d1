"""Writes results as a page of Markdown: a table for each case, and what falls short."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from ralmspec_plugins.bench.cases import PLAIN_NAME, Store
from ralmspec_plugins.bench.foretelling import errors
from ralmspec_plugins.bench.published import published
from ralmspec_plugins.bench.summary import NOT_SLOWER, Summary, regime, summaries

_HEAD: Final = (
    "",
    "seconds (quartiles)",
    "as fast as plain",
    "95 % of the mean ratio",
    "of the bound",
    "saved, s",
    "guesses right",
    "round trips",
    "batch",
    "thrown away",
    "a second",
    "published",
    "n",
)


def report(result: Mapping[str, Any], pictures: Mapping[str, str] | None = None) -> str:
    """Write the whole page.

    Args:
        result: of `ralmspec bench`.
        pictures: the file that shows a case, by the case's name.
    """
    shown = pictures or {}
    parts = [f"# Benchmark: {result['suite']}", surroundings(result), _reading()]
    for record in result["cases"]:
        parts += _case(record, shown)
    parts += [*_foretold(result), "## What falls short", *_short(result)]
    return "\n\n".join(parts) + "\n"


def surroundings(result: Mapping[str, Any]) -> str:
    """Say when, on what and with what it was measured."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    models = ", ".join(f"{name} ({count:,} weights)" for name, count in result["models"].items())
    return (
        f"{result['date']}, commit {result['commit'] or 'unknown'}, on {result['machine']}; "
        f"load before: {result['load_before']}. {versions}. Texts: {result['texts']}; "
        f"encoder: {result['encoder']}; models: {models}."
    )


def _reading() -> str:
    return (
        "Every answer was asserted equal to the plain loop's in the same run: text, queries, "
        'sources and scores. All ways take turns, request by request. "As fast as plain" is '
        "the sum of the plain runs' seconds to the sum of the way's own; the bound is N a + b(1), "
        "with a replica (N - 1) a + max(a, b(1)), from the plain run of the same round. "
        '"Published" is RaLMSpec\'s number for GPT2 / LLaMA-2-7B at another ratio of '
        "searching to writing, on other machines."
    )


def _case(record: Mapping[str, Any], pictures: Mapping[str, str]) -> Iterator[str]:
    case = record["case"]
    store = Store(**{**case["store"], "settings": tuple(map(tuple, case["store"]["settings"]))})
    step_s, search_s = regime(record)
    ratio = search_s / step_s if step_s else float("inf")
    yield f"## {case['name']}"
    written = "real text" if case["text"] == "trace" else "the model's own text"
    at_once = f", {case['concurrency']} requests at once" if case["concurrency"] > 1 else ""
    yield (
        f"{case['about']} {store.told}. Model {case['model']}, {written}, {case['workload']}; "
        f"{case['steps']} steps of {case['interval']} tokens{at_once}: "
        f"one step {1000 * step_s:.1f} ms, "
        f"one search {1000 * search_s:.1f} ms, R/G {ratio:.2f}."
    ).strip()
    yield table(_HEAD, [_row(one, case["name"]) for one in summaries(record)])
    if case["name"] in pictures:
        yield f"![where the time goes]({pictures[case['name']]})"


def _row(one: Summary, case: str) -> list[str]:
    wall, rate = one.wall_s, one.guess_rate
    return [
        one.arm,
        f"{wall.median:.2f} ({wall.low:.2f} to {wall.high:.2f})",
        f"{one.speed_up:.2f}",
        f"{one.interval[0]:.2f} to {one.interval[1]:.2f}",
        "-" if one.of_bound is None else f"{100 * one.of_bound:.0f} %",
        f"{one.saved_s:.2f}",
        "-" if rate is None else f"{100 * rate:.0f} %",
        f"{one.round_trips:.1f}",
        "-" if one.batch is None else f"{one.batch:.1f}",
        f"{one.wasted:.1f}",
        "-" if one.per_s is None else f"{one.per_s:.2f}",
        published(case, one.arm),
        str(one.runs),
    ]


def _foretold(result: Mapping[str, Any]) -> Iterator[str]:
    """Say how well the runs were predicted in virtual time."""
    found = errors(result)
    if found is not None:
        yield "## Predicted against measured"
        yield (
            f"{found[1]} first requests, each predicted by `Simulation` from the plain run beside "
            f"it and the measured b(n): the median error is {found[0]:.1%}."
        )


def _short(result: Mapping[str, Any]) -> Iterator[str]:
    """List every cell in which an adaptive schedule may be slower than the plain loop."""
    slow = [
        f"- {record['case']['name']}, {one.arm}: {one.interval[0]:.2f} to {one.interval[1]:.2f}"
        for record in result["cases"]
        for one in summaries(record)
        if one.arm not in _exempt(record) and not one.as_fast
    ]
    if slow:
        yield f"Slower than {NOT_SLOWER} times plain, as far as can be told:"
        yield "\n".join(slow)
    else:
        yield (
            f"No adaptive schedule is slower than plain: every interval lies above {NOT_SLOWER}. "
            "The paper's fixed settings are reproductions, and exempt."
        )


def _exempt(record: Mapping[str, Any]) -> set[str]:
    arms = record["case"]["arms"]
    return {PLAIN_NAME, *(arm["name"] for arm in arms if arm["kind"] in ("fixed", "plain"))}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown.

    >>> print(table(["a", "b"], [["1", "2"]]))
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
