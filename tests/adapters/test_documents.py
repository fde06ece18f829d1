"""Documents of hosts as passages: equal by value, whatever their metadata hold."""

import copy
import datetime as dt
import math
from typing import Any

import numpy as np
import pytest

from ralmspec_plugins.adapters.documents import HostPassage, digest_of, host_passage


class Opaque:
    """Has no value that can be read."""


class Comparable:
    """Says itself what it equals."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Comparable) and self.value == other.value

    __hash__ = None  # type: ignore[assignment]


def made(metadata: dict[str, Any], identity: str | None = "p", text: str = "text") -> HostPassage:
    return host_passage(id=identity, text=text, metadata=metadata, source=None)


ONE_OF_EACH: list[dict[str, Any]] = [
    {},
    {"a": None},
    {"a": 1},
    {"a": True},
    {"a": 1.0},
    {"a": "1"},
    {"a": b"1"},
    {"a": -0.0},
    {"a": 0.0},
    {"a": math.nan},
    {"a": [1, 2]},
    {"a": (1, 2)},
    {"a": [[1], 2]},
    {"a": [1, [2]]},
    {"a": {1, 2}},
    {"a": {"b": {"c": 1}}},
    {"a": {"b": {"c": True}}},
    {1: "a"},
    {"1": "a"},
    {"a": np.array([1, 2])},
    {"a": np.array([1, 2], dtype=np.int32)},
    {"a": np.array([[1, 2]])},
    {"a": np.float32(1)},
    {"a": np.array([1, None], dtype=object)},
    {"a": dt.date(2026, 1, 1)},
    {"a": dt.datetime(2026, 1, 1)},
    {"a": "\ud800"},
    {"a": "ünïcode 🜲"},
    {"a": Comparable(1)},
    {"a": Comparable(2)},
    {"ab": "c"},
    {"a": "bc"},
]


@pytest.mark.parametrize("number", range(len(ONE_OF_EACH)))
def test_equal_by_value_and_by_nothing_else(number: int) -> None:
    """A copy equals its original, and no two different metadata are equal."""
    ours = made(ONE_OF_EACH[number])
    equal = [made(copy.deepcopy(metadata)) == ours for metadata in ONE_OF_EACH]

    assert [at == number for at in range(len(ONE_OF_EACH))] == equal


def test_what_cannot_be_compared_is_not_equal() -> None:
    """An object without a value equals itself only."""
    one = Opaque()

    assert made({"a": one}) == made({"a": one})
    assert made({"a": one}) != made({"a": Opaque()})
    assert made({"a": [np.array([1, 2]), one]}) != made({"a": [np.array([1, 2]), Opaque()]})


def test_keys_have_no_order() -> None:
    """The same metadata in another order are the same."""
    assert made({"a": 1, "b": [2]}) == made({"b": [2], "a": 1})


def test_id_and_text_count() -> None:
    """Another id or text is another passage."""
    assert made({}) != made({}, identity="q")
    assert made({}) != made({}, text="other")


def test_equal_passages_hash_alike() -> None:
    """Sets and dictionaries can hold them, whatever the metadata."""
    passages = {made(copy.deepcopy(metadata)) for metadata in ONE_OF_EACH * 2}

    assert len(passages) == len(ONE_OF_EACH)


def test_without_an_id_the_value_is_the_id() -> None:
    """The same document has the same id each time, another one has another."""
    once, again = made({"a": [1]}, identity=None), made({"a": [1]}, identity=None)
    other = made({"a": [2]}, identity=None)

    assert once.id == again.id
    assert once.id != other.id


def test_what_a_host_adds_counts() -> None:
    """The fields of a document's subclass are part of its value."""
    plain = host_passage(id="p", text="", metadata={}, source=None)
    more = [host_passage(id="p", text="", metadata={}, source=None, more=n) for n in (1, 1, 2)]

    assert more[0] == more[1]
    assert more[0] != more[2]
    assert plain != more[0]


def test_a_container_in_itself_has_a_digest() -> None:
    """What is nested in itself ends, and is told from what is not."""
    loop: list[Any] = [1]
    loop.append(loop)
    flat: list[Any] = [1, [1]]

    assert digest_of(loop) == digest_of(loop)
    assert digest_of(loop) != digest_of(flat)


def test_the_order_of_keys_counts_where_it_is_to() -> None:
    """An ordered passage is another one where a dictionary's keys stand otherwise."""

    def ordered(metadata: dict[str, Any]) -> HostPassage:
        return host_passage(id="p", text="t", metadata=metadata, source=None, ordered=True)

    one, other = {"a": 1, "b": {"c": 1, "d": {2}}}, {"a": 1, "b": {"d": {2}, "c": 1}}

    assert ordered(one) == ordered(copy.deepcopy(one))
    assert ordered(one) != ordered(other)
    assert made(one) == made(other)


def test_what_contains_itself_is_compared() -> None:
    """A list in itself equals its copy, and no other one."""
    ours: list[Any] = [1]
    ours.append(ours)
    other: list[Any] = [2]
    other.append(other)

    assert made({"a": ours}) == made({"a": copy.deepcopy(ours)})
    assert made({"a": ours}) != made({"a": other})
