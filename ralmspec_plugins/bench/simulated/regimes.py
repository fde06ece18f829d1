"""The paper's regimes and settings, ours, and what is demanded of ours."""

from collections.abc import Callable
from dataclasses import dataclass

from ralmspec_plugins.bench.cases import Arm
from ralmspec_plugins.bench.published import GPT2, LLAMA
from ralmspec_plugins.bench.suites import PAPER


@dataclass(frozen=True, slots=True)
class Regime:
    """A retriever and a model by what they cost.

    A step takes 1; `curve` gives a search by its batch size in steps (DESIGN 5). `step_s`
    makes seconds of it: what a step of 4 tokens took in the paper (PAPERS 1.11).
    """

    name: str
    curve: Callable[[int], float]
    step_s: float
    model: str  # whose published numbers belong to it


GPT2_STEP_S = 0.105
LLAMA_STEP_S = 0.22

REGIMES = (
    Regime("exact dense, R/G 40", lambda n: 39 + n, GPT2_STEP_S, GPT2),
    Regime("exact dense, R/G 20", lambda n: 19.5 + 0.5 * n, LLAMA_STEP_S, LLAMA),
    Regime("sparse, R/G 1.4", lambda n: 1.2 + 0.2 * n, GPT2_STEP_S, GPT2),
    Regime("sparse, R/G 0.65", lambda n: 0.5 + 0.15 * n, LLAMA_STEP_S, LLAMA),
    Regime("approximate, R/G 0.2", lambda n: 0.05 + 0.15 * n, GPT2_STEP_S, GPT2),
)

PAPER_ARMS = (*PAPER, Arm(name="+P(256)SA", kind="os3", prefetch=256, overlap=True))

ONE_LANE = "continuous, P(256)"  # our best one-lane setting without anything beside it
WITH_REPLICA = "32 lanes, replica"

OUR_ARMS = (
    Arm(name="continuous, P(20)", prefetch=20),
    Arm(name=ONE_LANE, prefetch=256),
    Arm(name="shared pool", prefetch=256, shared=True),
    Arm(name="one lane, replica", prefetch=256, replica=True),
    Arm(name="32 lanes", prefetch=256, lanes=32),
    Arm(name=WITH_REPLICA, prefetch=256, lanes=32, replica=True),
)

ARMS = (*PAPER_ARMS, *OUR_ARMS)


@dataclass(frozen=True, slots=True)
class Demand:
    """What one arm must reach in a regime: times plain, or times another arm's best."""

    regime: str
    arm: str
    least: float
    over: tuple[str, ...] = ()  # arms whose best speed-up it is held against; none: plain


PSA = ("+PSA", "+P(256)SA")  # the paper's own best, whichever prefetch is better

DEMANDS = (
    *(
        Demand(regime.name, ONE_LANE, least)
        for regime, least in zip(REGIMES, (6.5, 4.5, 1.8, 1.5, 1.15), strict=True)
    ),
    *(Demand(regime.name, ONE_LANE, 1.5, PSA) for regime in REGIMES[:2]),
    Demand(REGIMES[0].name, WITH_REPLICA, 14.0),
    Demand(REGIMES[1].name, WITH_REPLICA, 10.0),
)


def regime(name: str) -> Regime:
    """Give the regime of this name."""
    return next(one for one in REGIMES if one.name == name)
