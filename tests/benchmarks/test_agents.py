"""The agents' benchmark: its bounds, worked out by hand, its page, and how it goes on."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks import agents as benchmark
from benchmarks.agent_hosts import Setting, contenders
from benchmarks.agent_page import (
    as_fast_as_plain,
    measured_rate,
    over_bound,
    overhead_s,
    page,
    share_of_gain,
)


def setting(right: float = 0.5, host: str = "langchain") -> Setting:
    return Setting(host, tool_s=2.0, reply_s=1.0, right=right, calls=2)


@pytest.mark.parametrize(
    ("rights", "expected"),
    [
        ([False, False], 1 + 2 + 1 + 2 + 1),  # nothing is hidden
        ([True, True], 1 + 1 + 2),  # the second reply begins at 1, its tool at 2
        ([True, False], 1 + 1 + 2 + 1),  # the second tool runs from 2 to 4, then the last reply
        ([False, True], 1 + 2 + 1 + 2),  # the second tool runs from 4 to 6, beside the last reply
    ],
)
def test_the_bound_is_the_least_time_of_a_run(rights: list[bool], expected: float) -> None:
    """A reply of 1 s, then a tool of 2 s, a reply, a tool, and a reply."""
    assert expected == benchmark.finite_bound_s(setting(), rights)


def row(host: str = "langchain", right: float = 0.5) -> dict[str, Any]:
    seconds = {"plain": [7.0, 7.4], "depth 1": [6.0, 6.6], "depth 2": [5.0, 6.0]}
    counts = {name: {"dropped": 1} for name in seconds}
    return {
        "kind": "agent",
        "at_once": 4,
        **asdict(setting(right, host)),
        "seconds": seconds,
        "rights": [[True, False], [False, False]] if right else 2 * [[False, False]],
        "bound_s": [5.0, 5.0],
        "counts": counts,
    }


def test_gains_are_shares_of_what_can_be_gained() -> None:
    """1.8 s were saved of the 1 s that one right guess can save; 11 s were taken instead of 10."""
    assert 0.25 == measured_rate(row())
    assert share_of_gain(row()) == pytest.approx(1.8)
    assert share_of_gain(row(right=0.0)) is None
    assert over_bound(row()) == pytest.approx(1.1)
    assert as_fast_as_plain(row(), "depth 2") == pytest.approx(14.4 / 11)
    assert overhead_s(row()) == pytest.approx(0.2 / 3)


def test_the_page_says_what_was_measured() -> None:
    """Of each host, with what was real, and of many agents at once."""
    about = {"date": "D", "commit": "C", "machine": "M", "load_before": 1, "versions": {"a": "1"}}
    runs = [{"all_s": 1.0, "median_s": 0.5, "cpu_s": 0.25}]
    when = {"date": "E", "commit": "F"}
    crowd = {"kind": "crowd", **when, **asdict(setting()), "agents": 50, "rows": {"plain": runs}}
    rows = [row(), row(right=0.0), row("llama_index"), row("llama_index", 0.0)]
    text = page([{"kind": "surroundings", **about}, *rows, crowd])

    assert "**Not real**: the model and the tool" in text
    assert "## LangChain" in text
    assert "## LlamaIndex" in text
    assert "| 2.0 | 1.0 | 2 | 25% | 7.20 | 6.30 | 1.80 | 5.50 | 1.10 | 1 / 1 |" in text
    assert "\nE, commit F; medians of 1 rounds, ways in turn.\n" in text
    assert "| LangChain | plain | 1.00 | 0.50 | 0.25 |" in text


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    """A run that was stopped goes on where it was."""
    out, shown = tmp_path / "rows.jsonl", tmp_path / "page.md"
    grid = [Setting(host, 0.05, 0.05, right, 2) for host in benchmark.HOSTS for right in (0.0, 0.9)]
    rows: list[Any] = [{"kind": "surroundings", **benchmark.surroundings()}]
    rows += [{**row(), **asdict(one)} for one in grid]
    crowd = {"kind": "crowd", "date": "E", "commit": "F", "agents": 5, "rows": {}}
    rows += [{**row(), **crowd, "host": host} for host in ("a", *benchmark.HOSTS)]
    out.write_text("".join(json.dumps(one) + "\n" for one in rows))
    before = out.read_text()
    benchmark.agents(out, shown, small=True)

    assert before == out.read_text()
    assert "# Benchmark: agents" in shown.read_text()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Skipping serialization")
@pytest.mark.parametrize("host", benchmark.HOSTS)
async def test_every_contender_gives_the_same_answer(host: str) -> None:
    """Plainly, one call ahead, and two ahead."""
    made = contenders(Setting(host, 0.02, 0.02, 0.9, 2), (1, 2))
    answers = [await one.run("question") for one in made.values() for _ in range(2)]

    assert 1 == len(set(answers))
    assert "facts on question 1" in answers[0]
    assert made["depth 2"].stats().calls_ahead >= 1
