"""Data is told from code, and copied as `deepcopy` does."""

import copy
import datetime as dt
import enum
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

from ralmspec_plugins.adapters.plain_data import copied, is_data


class Record(BaseModel):
    """A record of this package."""

    value: Any = None


class Callable(Record):
    """One that is code as well."""

    def __call__(self) -> bool:
        """Do something."""
        return True


class Kind(enum.Enum):
    """An enum of this package."""

    ONE = 1


class Text(str):
    """A text that may do something."""

    __slots__ = ()


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"k": 4, "filter": {"$in": [1, 2.0, None, ("a", b"b")]}}, True),
        ({1, 2}, True),
        (dt.date(2026, 1, 1), True),
        (np.zeros(3), True),
        (Record(value=[Kind.ONE, Record()]), True),
        (lambda: 1, False),
        ([[{"a": len}]], False),
        ({"a": object()}, False),
        (Text("a"), False),
        (str, False),
        (np.array([len], dtype=object), False),
        (Record(value=len), False),
        (Callable(), False),
        (CYCLE, False),
    ],
    ids=range(14),
)
def test_data_is_told_from_code(value: Any, expected: bool) -> None:
    """However deeply a function, or an object that may do something, is nested."""
    assert expected == is_data(value, {"tests"})


def test_records_of_unknown_packages_are_not_data() -> None:
    """Nobody knows what their methods do."""
    assert [False, False] == [is_data(one) for one in (Record(), Kind.ONE)]


@pytest.mark.parametrize(
    "value",
    [1, "a", {"a": [1, {"b": (1, [2])}]}, [CYCLE], {"a": {1, 2}}, {(1, 2): [3]}, [np.zeros(2)]],
    ids=range(7),
)
def test_copies_are_deep(value: Any) -> None:
    """Equal, and no container is shared with the original."""
    expected = copy.deepcopy(value)
    made = copied(value)

    assert repr(expected) == repr(made)
    assert type(value) in (int, str) or made is not value


def test_what_was_one_object_stays_one() -> None:
    """As `deepcopy` has it, in lists that stand in two places and in themselves."""
    shared = [1]
    first, second = copied([shared, shared])
    cycle = copied(CYCLE)

    assert (first is second, first is shared, cycle[0] is cycle) == (True, False, True)
