"""The speedups that RaLMSpec published, to stand beside ours."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from benchmarks.harness.cases import PAPER, Arm

GPT2, LLAMA = "GPT-2 medium", "LLaMA-2-7B"
Pair: TypeAlias = tuple[float | None, float]  # for these two models

# Tables 1 and 2: the average of four datasets; of what table 4 alone has (one model, one
# dataset) the ratio of its seconds; +P(256)SA: the ratio of summed seconds of tables 6 to 8.
PUBLISHED: Final[Mapping[str, Mapping[str, Pair]]] = {
    "exact dense": {
        "base (fixed 3)": (2.04, 1.70),
        "+P(20)": (2.10, 1.75),
        "+P(256)": (2.15, 1.63),
        "+S": (2.26, 1.69),
        "+A": (2.03, 1.74),
        "+PS": (None, 1.77),
        "+SA": (None, 1.70),
        "+PA": (None, 1.77),
        "+PSA": (2.39, 1.75),
        "+P(256)SA": (2.60, 1.75),
    },
    "approximate": {
        "base (fixed 3)": (0.62, 0.58),
        "+P(20)": (0.59, 0.58),
        "+P(256)": (0.67, 0.34),
        "+S": (0.92, 1.01),
        "+A": (0.66, 0.55),
        "+PS": (None, 0.99),
        "+SA": (None, 1.03),
        "+PA": (None, 0.63),
        "+PSA": (1.05, 1.04),
        "+P(256)SA": (1.14, 0.58),
    },
    "sparse": {
        "base (fixed 3)": (1.34, 0.97),
        "+P(20)": (1.39, 0.98),
        "+P(256)": (1.02, 0.84),
        "+S": (1.32, 1.05),
        "+A": (1.41, 1.01),
        "+PS": (None, 1.05),
        "+SA": (None, 1.30),
        "+PA": (None, 1.01),
        "+PSA": (1.53, 1.31),
        "+P(256)SA": (1.16, 1.11),
    },
}


def pair_of(case: str, arm: str) -> Pair | None:
    """Give what was published for a way over the kind of store that a case begins with."""
    tables = (table for kind, table in PUBLISHED.items() if case.startswith(kind))
    return next(tables, {}).get(arm)


def published(case: str, arm: str) -> str:
    """Write it, for GPT-2 and LLaMA-2-7B.

    >>> published("sparse, random:4x256", "+PSA"), published("remote, 5 ms", "continuous")
    ('1.53 / 1.31', '')
    """
    pair = pair_of(case, arm)
    return "" if pair is None else " / ".join("-" if one is None else f"{one:.2f}" for one in pair)


def published_for(case: str, arm: str, model: str) -> float | None:
    """Give the number of one of the two models.

    >>> published_for("exact dense, R/G 40", "+PSA", GPT2)
    2.39
    """
    pair = pair_of(case, arm)
    return None if pair is None else pair[(GPT2, LLAMA).index(model)]


# The paper's regimes and settings, ours, and what is demanded of ours.


@dataclass(frozen=True, slots=True)
class Regime:
    """A retriever and a model by what they cost.

    A step takes 1; `curve` gives a search by its batch size in steps. `step_s`
    makes seconds of it: what a step of 4 tokens took in the paper.
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
