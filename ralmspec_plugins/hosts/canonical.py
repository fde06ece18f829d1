"""Values of any kind as bytes: one text for each value, whatever it is nested in."""

import dataclasses
import datetime as dt
import decimal
import fractions
import pathlib
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

Opaque: TypeAlias = Callable[[object], bytes]  # a name for an object whose value cannot be read
# What counts of an object, besides which one it is; `None` for one that is read as any other.
Read: TypeAlias = Callable[[object], Mapping[str, Any] | None]

# Immutable, and their repr says all that there is to them.
_BY_REPR = frozenset(
    {
        bool, int, complex, range, type(None), type(...),
        dt.date, dt.datetime, dt.time, dt.timedelta, dt.timezone,
        decimal.Decimal, fractions.Fraction, uuid.UUID,
        pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath, pathlib.WindowsPath,
    }
)  # fmt: skip
_CONTAINERS = frozenset({list, tuple, set, frozenset, dict})


@dataclasses.dataclass(frozen=True, slots=True)
class _Rules:
    opaque: Opaque
    most: int | None  # items of a container that is still looked into
    ordered: bool  # whether the order of a dictionary's keys counts
    read: Read


def as_any(value: object) -> None:
    """Read an object as any other."""


def encoded(
    value: object,
    opaque: Opaque,
    most: int | None = None,
    *,
    ordered: bool = False,
    read: Read = as_any,
) -> bytes:
    """Give the one text of a value: different values have different texts.

    Everything stands behind its type and its length, so nothing that one value
    contains can be taken for another one. Sets have no order, dictionaries only if asked.

    >>> encoded(["ab", "c"], lambda _: b"") == encoded(["a", "bc"], lambda _: b"")
    False

    Args:
        value: any.
        opaque: names what cannot be read.
        most: containers of more items are not looked into; `None`: all are.
        ordered: whether dictionaries of another order are other values.
        read: says what counts of objects that their caller knows better.
    """
    return _encoded(value, _Rules(opaque, most, ordered, read), ())


def _encoded(value: Any, rules: _Rules, inside: tuple[int, ...]) -> bytes:
    kind = type(value)
    if kind is str:
        return _part(b"str", [value.encode("utf-8", "surrogatepass")])
    if kind is bytes:
        return _part(b"bytes", [value])
    if kind is float:
        return _part(b"float", [value.hex().encode()])
    if kind in _BY_REPR:
        return _part(_name(kind), [repr(value).encode("utf-8", "surrogatepass")])
    if id(value) in inside:  # a container in itself: how far up says which
        return _part(b"cycle", [b"%d" % inside[::-1].index(id(value))])
    return _composite(value, rules, (*inside, id(value)))


def _composite(value: Any, rules: _Rules, inside: tuple[int, ...]) -> bytes:
    kind = type(value)
    if kind in _CONTAINERS and rules.most is not None and len(value) > rules.most:
        return _part(b"opaque " + _name(kind), [rules.opaque(value)])
    if kind in (list, tuple):
        return _part(_name(kind), (_encoded(item, rules, inside) for item in value))
    if kind in (set, frozenset):
        return _part(_name(kind), sorted(_encoded(item, rules, inside) for item in value))
    if kind is dict:
        return _part(b"dict", _pairs(value, rules, inside))
    if isinstance(value, np.ndarray | np.generic):
        return _array(value, rules, inside)
    known = rules.read(value)
    if known is not None:
        return _part(b"part " + _name(kind), [rules.opaque(value), *_pairs(known, rules, inside)])
    fields = _fields(value)
    if fields is not None:
        hidden = rules.opaque(value) if getattr(value, "__pydantic_private__", None) else b""
        parts = _pairs(fields, rules, inside)
        return _part(b"fields of " + rules.opaque(kind), [hidden, *parts])
    return _part(b"opaque " + _name(kind), [rules.opaque(value)])


def _pairs(mapping: Mapping[Any, Any], rules: _Rules, inside: tuple[int, ...]) -> list[bytes]:
    pairs = [
        _part(b"", [_encoded(key, rules, inside), _encoded(value, rules, inside)])
        for key, value in mapping.items()
    ]
    return pairs if rules.ordered else sorted(pairs)


def _array(value: Any, rules: _Rules, inside: tuple[int, ...]) -> bytes:
    kind = _name(type(value))
    if value.dtype.hasobject:
        return _part(kind, [b"object", _encoded(value.tolist(), rules, inside)])
    shape = repr(value.shape).encode()
    return _part(kind, [repr(value.dtype.descr).encode(), shape, value.tobytes()])


def _fields(value: Any) -> dict[str, Any] | None:
    """Read a record's content: a dataclass's, or a pydantic model's; `None` for other things.

    What a model keeps in private is its own affair (counters, caches, clients): with
    it, a model is named as an object besides.
    """
    if isinstance(value, type):
        return None
    own = dict(getattr(value, "__dict__", {}))
    if dataclasses.is_dataclass(value):
        listed = dataclasses.fields(value)
        own |= {one.name: getattr(value, one.name) for one in listed if hasattr(value, one.name)}
        return own
    if hasattr(type(value), "__pydantic_fields__"):
        if more := getattr(value, "__pydantic_extra__", None):
            own["__pydantic_extra__"] = more
        return own
    return None


def _name(kind: type) -> bytes:
    return f"{kind.__module__}.{kind.__qualname__}".encode()


def _part(kind: bytes, items: Iterable[bytes]) -> bytes:
    listed = list(items)
    lengths = b",".join(b"%d" % len(item) for item in listed)
    return b"%s(%s:%s)" % (kind, lengths, b"".join(listed))
