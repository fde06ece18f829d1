"""The numbers that RaLMSpec published, to stand beside ours (PAPERS 1.11)."""

from collections.abc import Mapping
from typing import Final

# Speed-ups over the baseline, averages of four datasets: GPT2-medium, LLaMA-2-7B. Tables 1
# and 2; what table 4 alone has is LLaMA-2-7B on Wiki-QA.
_DENSE: Final = {
    "base (fixed 3)": "2.04 / 1.70",
    "+P(20)": "2.10 / 1.75",
    "+P(256)": "2.15 / 1.63",
    "+S": "2.26 / 1.69",
    "+A": "2.03 / 1.74",
    "+PS": "- / 1.77",
    "+SA": "- / 1.70",
    "+PA": "- / 1.77",
    "+PSA": "2.39 / 1.75",
}
_APPROXIMATE: Final = {
    "base (fixed 3)": "0.62 / 0.58",
    "+P(20)": "0.59 / 0.58",
    "+P(256)": "0.67 / 0.34",
    "+S": "0.92 / 1.01",
    "+A": "0.66 / 0.55",
    "+PS": "- / 0.99",
    "+SA": "- / 1.03",
    "+PA": "- / 0.63",
    "+PSA": "1.05 / 1.04",
}
_SPARSE: Final = {
    "base (fixed 3)": "1.34 / 0.97",
    "+P(20)": "1.39 / 0.98",
    "+P(256)": "1.02 / 0.84",
    "+S": "1.32 / 1.05",
    "+A": "1.41 / 1.01",
    "+PS": "- / 1.05",
    "+SA": "- / 1.30",
    "+PA": "- / 1.01",
    "+PSA": "1.53 / 1.31",
}
_TABLES: Final[Mapping[str, Mapping[str, str]]] = {
    "exact dense": _DENSE,
    "approximate dense": _APPROXIMATE,
    "sparse": _SPARSE,
}


def published(case: str, arm: str) -> str:
    """Give the published speed-up for a way over a kind of store, for GPT2 / LLaMA-2-7B.

    >>> published("sparse, random:4x256", "+PSA"), published("remote, 5 ms", "continuous")
    ('1.53 / 1.31', '')
    """
    return next(
        (table.get(arm, "") for kind, table in _TABLES.items() if case.startswith(kind)), ""
    )
