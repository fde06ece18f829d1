"""Which combinations of parameters a test has by default; all others are `slow`."""

import itertools
from collections.abc import Iterable
from typing import Any

import pytest


def covering(*axes: Iterable[Any], strength: int = 1) -> list[Any]:
    """Give all combinations of some values, for `parametrize`; those not needed are slow.

    By default as few are run as a covering array of this strength has, or a little more: each
    value occurs; with strength 2, each two values of two parameters occur together.
    """
    values = [list(axis) for axis in axes]
    cases = list(itertools.product(*(range(len(axis)) for axis in values)))
    parts = {case: set(itertools.combinations(enumerate(case), strength)) for case in cases}
    missing, default = set[Any]().union(*parts.values()), set[Any]()
    while missing:
        best = max(cases, key=lambda case: len(parts[case] & missing))
        missing -= parts[best]
        default.add(best)
    return [
        pytest.param(
            *(axis[at] for axis, at in zip(values, case, strict=True)),
            marks=[] if case in default else [pytest.mark.slow],
        )
        for case in cases
    ]
