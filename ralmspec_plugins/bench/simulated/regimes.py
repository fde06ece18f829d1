"""The paper's regimes and settings, ours, what was published, and what is demanded of ours."""

from collections.abc import Callable
from dataclasses import dataclass

from ralmspec_plugins.bench.cases import Arm


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
GPT2, LLAMA = "GPT-2 medium", "LLaMA-2-7B"

REGIMES = (
    Regime("exact dense, R/G 40", lambda n: 39 + n, GPT2_STEP_S, GPT2),
    Regime("exact dense, R/G 20", lambda n: 19.5 + 0.5 * n, LLAMA_STEP_S, LLAMA),
    Regime("sparse, R/G 1.4", lambda n: 1.2 + 0.2 * n, GPT2_STEP_S, GPT2),
    Regime("sparse, R/G 0.65", lambda n: 0.5 + 0.15 * n, LLAMA_STEP_S, LLAMA),
    Regime("approximate, R/G 0.2", lambda n: 0.05 + 0.15 * n, GPT2_STEP_S, GPT2),
)

PAPER_ARMS = (
    Arm(name="base (fixed 3)", kind="fixed", prefetch=1, paper=True),
    Arm(name="+P(20)", kind="fixed", prefetch=20, paper=True),
    Arm(name="+P(256)", kind="fixed", prefetch=256, paper=True),
    Arm(name="+S", kind="os3", prefetch=1),
    Arm(name="+A", kind="fixed", prefetch=1, overlap=True, paper=True),
    Arm(name="+PS", kind="os3", prefetch=20),
    Arm(name="+SA", kind="os3", prefetch=1, overlap=True),
    Arm(name="+PA", kind="fixed", prefetch=20, overlap=True, paper=True),
    Arm(name="+PSA", kind="os3", prefetch=20, overlap=True),
    Arm(name="+P(256)SA", kind="os3", prefetch=256, overlap=True),
)

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

# PAPERS 1.11, tables 1 and 2: the average of four datasets; of the pairs that only table 4 has
# (one model, one dataset) the ratio of its seconds; +P(256)SA: the ratio of summed seconds of
# tables 6 to 8.
_EXACT_GPT2 = {"base (fixed 3)": 2.04, "+P(20)": 2.10, "+P(256)": 2.15, "+S": 2.26, "+A": 2.03}
_EXACT_LLAMA = {"base (fixed 3)": 1.70, "+P(20)": 1.75, "+P(256)": 1.63, "+S": 1.69, "+A": 1.74}
_SPARSE_GPT2 = {"base (fixed 3)": 1.34, "+P(20)": 1.39, "+P(256)": 1.02, "+S": 1.32, "+A": 1.41}
_SPARSE_LLAMA = {"base (fixed 3)": 0.97, "+P(20)": 0.98, "+P(256)": 0.84, "+S": 1.05, "+A": 1.01}
_APPROXIMATE = {"base (fixed 3)": 0.62, "+P(20)": 0.59, "+P(256)": 0.67, "+S": 0.92, "+A": 0.66}

PUBLISHED: dict[str, dict[str, float]] = {
    "exact dense, R/G 40": {**_EXACT_GPT2, "+PSA": 2.39, "+P(256)SA": 2.60},
    "exact dense, R/G 20": {
        **_EXACT_LLAMA,
        "+PS": 1.77,
        "+SA": 1.70,
        "+PA": 1.77,
        "+PSA": 1.75,
        "+P(256)SA": 1.75,
    },
    "sparse, R/G 1.4": {**_SPARSE_GPT2, "+PSA": 1.53, "+P(256)SA": 1.16},
    "sparse, R/G 0.65": {
        **_SPARSE_LLAMA,
        "+PS": 1.05,
        "+SA": 1.30,
        "+PA": 1.01,
        "+PSA": 1.31,
        "+P(256)SA": 1.11,
    },
    "approximate, R/G 0.2": {**_APPROXIMATE, "+PSA": 1.05, "+P(256)SA": 1.14},
}


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
