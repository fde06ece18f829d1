"""Keys for live objects and settings: never the same for different things."""

import gc
import threading
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import pytest
from pydantic import BaseModel, PrivateAttr

from ralmspec_plugins.adapters.fingerprint import (
    attributes,
    object_id,
    package_of,
    value_fingerprint,
)


class Thing:
    """Takes weak references."""

    def method(self) -> None:
        """Do nothing."""


class Slotted:
    """Takes none."""

    __slots__ = ()


class Filter(BaseModel):
    must: list[Any]


@dataclass
class Setting:
    k: int
    also: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SlottedSetting:
    k: int


def test_a_token_is_one_objects_alone() -> None:
    """An object keeps its token; one that took its place in memory gets another."""
    kept = Thing()
    first = object_id(kept)
    tokens = set()
    for _ in range(1000):
        tokens.add(object_id(Thing()))
    gc.collect()

    assert object_id(kept) == first
    assert len(tokens) == 1000
    assert first not in tokens


@pytest.mark.parametrize("make", [Slotted, list, dict, object])
def test_objects_without_weak_references_have_tokens_too(make: Any) -> None:
    """They are kept alive for it, so that nothing else is taken for them."""
    tokens = {object_id(make()) for _ in range(100)}

    assert len(tokens) == 100


def test_bound_methods_are_named_by_their_objects() -> None:
    """A method is made anew at each look, and is the same nevertheless."""
    one, other = Thing(), Thing()

    assert object_id(one.method) == object_id(one.method)
    assert object_id(one.method) != object_id(other.method)


def test_threads_agree_on_a_token() -> None:
    """Asked by many threads at once, an object has one token."""
    for _ in range(50):
        thing, tokens = Thing(), []
        threads = [
            threading.Thread(target=lambda: tokens.append(object_id(thing)))  # noqa: B023
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len(set(tokens)) == 1


def test_settings_are_keys_by_value() -> None:
    """Order does not count; types, names and every nested value do."""
    different: list[Any] = [
        {"k": 4},
        {"k": 4.0},
        {"k": True},
        {"k": 1},
        {"k": "4"},
        {"k": 4, "filter": {"user": "a"}},
        {"k": 4, "filter": {"user": "b"}},
        {"filter": lambda _: True},
        {"filter": lambda _: True},
        {"filter": Filter(must=[{"key": "a"}])},
        {"filter": Filter(must=[{"key": "b"}])},
        {"filter": Setting(1)},
        {"filter": Setting(2)},
        {"filter": Setting(1, {"more": 1})},
        {"filter": SlottedSetting(1)},
        {"filter": SlottedSetting(2)},
        {"filter": {"must": [{"key": "a"}]}},
    ]

    assert len({value_fingerprint(value) for value in different}) == len(different)
    assert value_fingerprint({"k": 4, "a": {1, 2}}) == value_fingerprint({"a": {2, 1}, "k": 4})
    assert value_fingerprint(Filter(must=[1])) == value_fingerprint(Filter(must=[1]))
    assert value_fingerprint(Setting(1)) == value_fingerprint(Setting(1))
    assert value_fingerprint(SlottedSetting(1)) == value_fingerprint(SlottedSetting(1))


def test_a_change_in_place_is_another_key() -> None:
    """What is mutated is not what it was."""
    settings = {"filter": Filter(must=[1])}
    before = value_fingerprint(settings)
    settings["filter"].must.append(2)

    assert value_fingerprint(settings) != before


def test_what_a_model_keeps_in_private_is_not_looked_at() -> None:
    """A model that counts its calls keeps its key; another one like it has another."""

    class Counting(BaseModel):
        k: int = 4
        _calls: int = PrivateAttr(default=0)

    one, other = Counting(), Counting()
    before = value_fingerprint(one)
    one._calls += 1

    assert value_fingerprint(one) == before
    assert value_fingerprint(other) != before


def test_the_caller_may_know_better_what_counts() -> None:
    """Of an object that is read: itself, and what the reader gives of it; also deep inside."""

    class Counting(BaseModel):
        k: int = 4
        _calls: int = PrivateAttr(default=0)

    def read(value: object) -> dict[str, Any] | None:
        if isinstance(value, Counting):
            return attributes(value)
        return {} if isinstance(value, Filter) else None

    one, whole = Counting(), Filter(must=[1])
    values: list[Any] = [one, {"in": [Setting(1, {"it": one})]}]
    before = [value_fingerprint(value, read=read) for value in values]
    closed = value_fingerprint([whole], read=read)
    one._calls += 1
    whole.must.append(2)

    assert not set(before) & {value_fingerprint(value, read=read) for value in values}
    assert closed == value_fingerprint([whole], read=read)
    assert closed != value_fingerprint([Filter(must=[1])], read=read)


def test_attributes_are_all_that_an_object_has_for_itself() -> None:
    """Private ones too; what its class computes of them on demand is left out."""

    class Lazy:
        def __init__(self) -> None:
            self._k = 4

        @cached_property
        def double(self) -> int:
            return 2 * self._k

    class Model(BaseModel, extra="allow"):
        k: int = 4
        _calls: int = PrivateAttr(default=0)

    lazy = Lazy()

    assert (8, {"_k": 4}) == (lazy.double, attributes(lazy))
    assert {"k": 4, "more": 1, "_calls": 0} == attributes(Model.model_validate({"more": 1}))


def test_the_package_of_code() -> None:
    """Of a function, a method, a class' instance, and what is wrapped in partials."""
    given: list[Any] = [
        package_of,
        Thing().method,
        Thing(),
        partial(partial(value_fingerprint), most=3),
        [],
    ]

    assert ["ralmspec_plugins", "tests", "tests", "ralmspec_plugins", "builtins"] == [
        package_of(one) for one in given
    ]


def test_large_containers_may_be_left_closed() -> None:
    """Beyond the bound a container is only itself."""
    large = list(range(100))

    assert value_fingerprint(large) == value_fingerprint(list(large))
    assert value_fingerprint(large, 64) == value_fingerprint(large, 64)
    assert value_fingerprint(large, 64) != value_fingerprint(list(large), 64)
