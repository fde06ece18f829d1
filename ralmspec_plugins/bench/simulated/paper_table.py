"""RaLMSpec's Table 1 in virtual time, with ours beside it, and what is demanded of ours."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ralmspec_plugins.bench.cases import Arm
from ralmspec_plugins.bench.published import published_for
from ralmspec_plugins.bench.simulated.regimes import (
    ARMS,
    DEMANDS,
    REGIMES,
    Demand,
    Regime,
)
from ralmspec_plugins.bench.simulated.running import Ran, World, run_arm
from ralmspec_plugins.bench.simulated.traces import Follows, Traces

STEPS = 32  # 128 tokens by 4 (PAPERS 1.11)
HELD_TO = Follows.REWRITING  # what DESIGN 5's table assumes, and the demands are made for


@dataclass(frozen=True, slots=True)
class Both:
    """Traces whose article is in the knowledge base, and the same ones without it."""

    inside: Traces
    left_out: Traces


def paper_cells(
    both: Both,
    *,
    arms: Sequence[Arm] = ARMS,
    regimes: Sequence[Regime] = REGIMES,
    follows: Sequence[Follows] = (Follows.RECONVERGING, Follows.REWRITING, Follows.STRAYING),
    steps: int = STEPS,
    told: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Run every cell of the table; `told` hears of each as it is done."""
    cells = []
    for regime in regimes:
        for arm in arms:
            for mode in follows:
                cells.append(_cell(both, regime, arm, mode, steps))
                told(_cell_line(cells[-1]))
    return cells


def _cell(both: Both, regime: Regime, arm: Arm, mode: Follows, steps: int) -> dict[str, Any]:
    def ran(traces: Traces) -> Ran:
        world = World(traces=traces, follows=mode, search_s=regime.curve, steps=steps)
        return run_arm(world, arm)

    def seconds(found: Ran) -> dict[str, Any]:
        return {**found.record(), "saved_s": found.saved * regime.step_s}

    return {
        "regime": regime.name,
        "column": arm.name,
        "mode": mode.value,
        "published": published_for(regime.name, arm.name, regime.model),
        "in_knowledge_base": seconds(ran(both.inside)),
        "left_out": None if arm.shared else seconds(ran(both.left_out)),
    }


def _cell_line(cell: dict[str, Any]) -> str:
    places = [cell[place] for place in ("in_knowledge_base", "left_out") if cell[place]]
    shown = " / ".join(f"{place['speed_up']:.2f}" for place in places)
    published = "" if cell["published"] is None else f"published {cell['published']:.2f}"
    return f"{cell['regime']:21} {cell['column']:18} {cell['mode']:13} {shown:14} {published}"


def verdicts(
    cells: Sequence[dict[str, Any]], demands: Sequence[Demand] = DEMANDS
) -> list[dict[str, Any]]:
    """Hold the cells to the demands, in every mode and with the article in and left out.

    Those that count (`held`) are the ones in the mode that the demands were made for.
    """
    found = {
        (cell["regime"], cell["column"], cell["mode"], place): cell[place]["speed_up"]
        for cell in cells
        for place in ("in_knowledge_base", "left_out")
        if cell[place] is not None
    }
    said = []
    for demand in demands:
        for (regime, arm, mode, place), speed_up in found.items():
            if (regime, arm) != (demand.regime, demand.arm):
                continue
            others = [found[regime, other, mode, place] for other in demand.over]
            reached = speed_up / max(others, default=1.0)
            said.append(
                {
                    "regime": regime,
                    "column": arm,
                    "over": "the best of " + ", ".join(demand.over) if demand.over else "plain",
                    "mode": mode,
                    "place": place,
                    "least": demand.least,
                    "reached": reached,
                    "met": reached >= demand.least,
                    "held": mode == HELD_TO,
                }
            )
    return said
