"""Keys for live objects and settings: never the same for different things."""

import datetime as dt
import gc
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, PrivateAttr

from ralmspec_plugins.adapters.documents import digest_of
from ralmspec_plugins.adapters.fingerprint import (
    as_called,
    attributes,
    held,
    object_id,
    overridden,
    package_of,
    parts,
    value_fingerprint,
)
from ralmspec_plugins.adapters.plain_data import copied_where_possible, is_data


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


class Unbound:
    """As a context's proxy without a context: nothing of it can be asked, not even its class."""

    @property
    def __class__(self) -> Any:
        raise RuntimeError("outside of a context")


@dataclass
class Hiding:
    """Its class says that it holds something else than it does."""

    k: int = 4
    __pydantic_fields__: Any = field(default=None, init=False)

    def __setattr__(self, name: str, value: Any) -> None:
        """Hold nothing that a look finds."""

    @property
    def __dict__(self) -> Any:
        return {}


def _nested(depth: int, wrap: Callable[[Any], Any]) -> Any:
    value: Any = "user"
    for _ in range(depth):
        value = wrap(value)
    return value


def _shared(depth: int) -> Any:
    """A short value that takes 2 ** depth steps to be written out."""
    value: list[Any] = ["user"]
    for _ in range(depth):
        value = [value, value]
    return value


UNREADABLE: dict[str, Callable[[], Any]] = {
    "lists": lambda: _nested(5_000, lambda one: [one]),
    "dictionaries": lambda: _nested(5_000, lambda one: {"and": one}),
    "models": lambda: _nested(200, lambda one: Filter(must=[one])),
    "dataclasses": lambda: _nested(200, lambda one: Setting(1, {"or": one})),
    "shared": lambda: _shared(60),
    "a class that hides its state": lambda: {"filter": Hiding()},
    "digits and tuples": lambda: [10**5000, _nested(100, lambda one: (one,))],
}


@pytest.mark.parametrize("make", UNREADABLE.values(), ids=list(UNREADABLE))
def test_what_cannot_be_read_to_its_end_shares_nothing(make: Callable[[], Any]) -> None:
    """No exception, and another key each time, also for the same object."""
    value = make()
    began_s = time.perf_counter()
    keys = [key(value) for key in (value_fingerprint, as_called) for _ in range(3)]
    told = is_data(value, {"tests", "pydantic"})

    assert len(set(keys)) == len(keys)
    assert told in (True, False)
    assert time.perf_counter() - began_s < 10


@pytest.mark.parametrize("frames", [20, 60, 150])
def test_a_nearly_full_stack_raises_nothing(frames: int) -> None:
    """Wherever in the reading it ends: a key, and no other value's."""
    value = {"filter": {"must": [{"user": [["a"]]}]}}

    def called(depth: int) -> list[bytes]:
        if depth:
            return called(depth - 1)
        limit, used = sys.getrecursionlimit(), len(_frames())
        sys.setrecursionlimit(used + frames)
        try:
            return [value_fingerprint(value), value_fingerprint({"filter": 1})]
        finally:
            sys.setrecursionlimit(limit)

    one, other = called(50)

    assert one != other


def _frames() -> list[Any]:
    frame, found = sys._getframe(), []
    while frame is not None:
        found.append(frame)
        frame = frame.f_back  # type: ignore[assignment]
    return found


def test_cycles_are_values() -> None:
    """What contains itself ends, and is told from what contains another."""
    one: dict[str, Any] = {"user": "a"}
    one["self"] = one
    same: dict[str, Any] = {"user": "a"}
    same["self"] = same
    other: dict[str, Any] = {"user": "b"}
    other["self"] = other

    assert value_fingerprint(one) == value_fingerprint(same) != value_fingerprint(other)
    assert not is_data(one)


@dataclass
class Mapped(dict[str, Any]):
    """A record that is a dictionary as well."""

    k: int = 4


class Slots:
    __slots__ = ("user",)

    def __init__(self, user: str) -> None:
        self.user = user


@dataclass
class Based(Slots):
    """A record over a class with slots."""

    k: int = 4

    def __post_init__(self) -> None:
        self.user = "nobody"


class Zone(dt.tzinfo):
    """A time zone of one's own: all of them look alike."""

    def __repr__(self) -> str:
        return "Zone()"


def _made(kind: Any, **held: Any) -> Any:
    value = kind()
    value.update(held) if isinstance(value, dict) else [
        setattr(value, name, one) for name, one in held.items()
    ]
    return value


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (_made(Mapped, user="a"), _made(Mapped, user="b")),
        (_made(Based, user="a"), _made(Based, user="b")),
        (np.zeros((0, 3), dtype=object), np.zeros((0, 4), dtype=object)),
        (np.ma.array([1, 2], mask=[0, 1]), np.ma.array([1, 3], mask=[0, 1])),
        (
            np.zeros(2, dtype=np.dtype("f4", metadata={"user": "a"})),
            np.zeros(2, dtype=np.dtype("f4", metadata={"user": "b"})),
        ),
        (dt.datetime(2026, 1, 1, tzinfo=Zone()), dt.datetime(2026, 1, 1, tzinfo=Zone())),
        (Unbound(), Unbound()),
    ],
    ids=["dictionary", "slots", "shape", "mask", "metadata", "zone", "proxy"],
)
def test_what_differs_out_of_sight_has_another_key(one: Any, other: Any) -> None:
    """Also inside of containers, and where a call brings it."""
    for wrap in (lambda it: it, lambda it: [{"filter": it}], lambda it: Filter(must=[it])):
        assert value_fingerprint(wrap(one)) != value_fingerprint(wrap(other))
    assert as_called(one) != as_called(other)


def test_a_walk_goes_around_what_cannot_be_asked() -> None:
    """A proxy without a context is passed over, as are documents; the rest is met once."""
    thing = Thing()
    whole = [thing, Unbound(), {"again": thing}, "document"]

    assert list(parts(whole, held, (str,))) == [whole, thing, whole[2]]


def test_attributes_in_slots_count() -> None:
    """They are settings like any other; a method hidden by none of them is not overridden."""
    one, other = Slots("a"), Slots("b")

    assert {"user": "a"} == attributes(one)
    assert value_fingerprint(attributes(one)) != value_fingerprint(attributes(other))
    assert not overridden(one)


def test_a_class_that_hides_its_attributes_shares_nothing() -> None:
    """They are another thing at each look, and nobody knows which of its methods are called."""
    hiding = Hiding()

    assert value_fingerprint(attributes(hiding)) != value_fingerprint(attributes(hiding))
    assert overridden(hiding)
    assert held(hiding)
    assert not is_data(hiding, {"tests"})


def test_documents_with_odd_metadata_have_digests() -> None:
    """What cannot be read is compared by itself; id and text are read in any case."""
    deep = _nested(5_000, lambda one: [one])
    found = [digest_of(name, "text", {"deep": deep}) for name in "ab"]
    proxies = [digest_of(name, "text", {"user": Unbound()}) for name in "ab"]

    assert [False] * 4 == [digest.whole for digest in found + proxies]
    assert found[0].text != found[1].text
    assert proxies[0].text != proxies[1].text
    assert copied_where_possible({"deep": deep, "tags": ["a"]})["tags"] == ["a"]
