"""The speed-ups that RaLMSpec published, to stand beside ours (PAPERS 1.11)."""

from collections.abc import Mapping
from typing import Final, TypeAlias

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
