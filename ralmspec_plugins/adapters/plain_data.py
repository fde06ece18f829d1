"""Values that are data and nothing else: told from code, and copied quickly."""

import datetime as dt
import decimal
import enum
import fractions
import pathlib
import uuid
import zoneinfo
from collections.abc import Container, Iterable
from contextlib import suppress
from copy import deepcopy
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any, Final

import numpy as np

# Immutable; the repr of all but texts and numbers says all that there is to them.
_ATOMS: Final = frozenset(
    {
        str, bytes, float, int, bool, complex, range, type(None), type(...),
        dt.date, dt.datetime, dt.time, dt.timedelta, dt.timezone,
        decimal.Decimal, fractions.Fraction, uuid.UUID,
        pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath, pathlib.WindowsPath,
    }
)  # fmt: skip
LISTS: Final = frozenset({list, tuple, set, frozenset})
_ZONES: Final = frozenset({type(None), dt.timezone, zoneinfo.ZoneInfo})  # whose repr is all


def is_atom(value: Any) -> bool:
    """Return whether a value is immutable data that holds no other object."""
    kind = type(value)
    return kind in _ATOMS and (kind not in (dt.datetime, dt.time) or type(value.tzinfo) in _ZONES)


def is_array(value: Any) -> bool:
    """Return whether a value is numpy's own array or scalar, and holds nothing else besides."""
    kind = type(value)
    own = kind is np.ndarray or (issubclass(kind, np.generic) and kind.__module__ == "numpy")
    return own and value.dtype.metadata is None


def state(value: object) -> dict[str, Any]:
    """Return what an instance holds in its dictionary and its slots, as it is.

    Raises:
        TypeError: its class hides the dictionary.
    """
    own: dict[str, Any] = {}
    for base in reversed(type(value).__mro__):
        attributes = vars(base)
        if not isinstance(attributes.get("__dict__", _DICTIONARY), GetSetDescriptorType):
            raise TypeError(f"{base.__qualname__} hides what its instances hold")
        for name, slot in attributes.items() if "__slots__" in attributes else ():
            if type(slot) is MemberDescriptorType and not name.startswith("__pydantic_"):
                with suppress(AttributeError):  # it was never set
                    unique = f"{base.__qualname__}.{name}" if name in own else name
                    own[unique] = slot.__get__(value)
    with suppress(AttributeError):
        own |= object.__getattribute__(value, "__dict__")
    return own


_DICTIONARY: Final = vars(type("_Plain", (), {}))["__dict__"]


class _OtherError(Exception):
    """A value holds something that only its own class can copy."""


def package_name(module: str) -> str:
    """Name the package that ships a module; of a namespace that many share, the part of one.

    >>> package_name("faiss.swigfaiss"), package_name("llama_index.core.schema")
    ('faiss', 'llama_index.core')
    >>> package_name("llama_index.vector_stores.chroma.base")
    'llama_index.vector_stores.chroma'
    """
    parts = module.split(".")
    if parts[0] != "llama_index":
        return parts[0]
    return ".".join(parts[: 2 if parts[1:2] == ["core"] else 3])


def is_data(value: object, packages: Container[str] = ()) -> bool:
    """Return whether a value holds nothing that could do something, however deeply.

    What is not data (a function, an object of an unknown class) may read whose turn it
    is, in a `ContextVar`: it must be run in its caller's own context.

    >>> is_data({"user": ["ada", 1]}), is_data({"user": lambda: "ada"})
    (True, False)

    Args:
        value: any; one that contains itself, or is nested too deep to be read, is not data.
        packages: packages, by `package_name`, whose enums and records (pydantic models) are data.
    """
    try:
        return _is_data(value, packages, {})
    except Exception:  # noqa: BLE001 a class's own code raised, or the stack ended
        return False


def _is_data(value: Any, packages: Container[str], met: dict[int, bool]) -> bool:
    kind = type(value)
    if is_atom(value):
        return True
    if (
        id(value) not in met
    ):  # `met`: containers, and whether they are data; not while they are read
        met[id(value)] = False
        met[id(value)] = all(
            _is_data(one, packages, met) for one in _data_in(value, kind, packages)
        )
    return met[id(value)]


def _data_in(value: Any, kind: type, packages: Container[str]) -> Iterable[Any]:
    """List what must be data for this value to be data; a function if nothing makes it data."""
    if kind in LISTS:
        return list(value)
    if kind is dict:
        return [*value, *value.values()]
    if is_array(value) and not value.dtype.hasobject:
        return ()
    if package_name(kind.__module__) not in packages or callable(value):
        return (_data_in,)
    if issubclass(kind, enum.Enum):
        return ()
    if not hasattr(kind, "__pydantic_fields__") or getattr(value, "__pydantic_private__", None):
        return (_data_in,)
    return [*state(value).values(), *(getattr(value, "__pydantic_extra__", None) or {}).values()]


def copied(value: Any) -> Any:
    """Copy what `deepcopy` copies, several times faster where it is plain values in containers.

    >>> ours = {"tags": ["a"]}
    >>> theirs = copied(ours)
    >>> theirs == ours, theirs["tags"] is ours["tags"]
    (True, False)

    Raises:
        Exception: what `deepcopy` raises.
    """
    if type(value) in _ATOMS:
        return value
    try:
        return _copied(value, {})
    except (_OtherError, RecursionError):
        return deepcopy(value)


def copied_where_possible(value: Any) -> Any:
    """Copy all of a value that can be copied; the rest (a lock, a client) is shared.

    >>> import threading
    >>> ours = {"tags": ["a"], "lock": threading.Lock()}
    >>> theirs = copied_where_possible(ours)
    >>> theirs["tags"] is ours["tags"], theirs["lock"] is ours["lock"]
    (False, True)
    """
    with suppress(Exception):  # whatever the classes inside raise
        return copied(value)
    with suppress(RecursionError):
        if type(value) is dict:
            return {key: copied_where_possible(one) for key, one in value.items()}
        if type(value) in (list, tuple):
            return type(value)(copied_where_possible(one) for one in value)
    return value


def _copied(value: Any, made: dict[int, Any]) -> Any:
    kind = type(value)
    known = made.get(id(value))
    if known is not None:
        return known
    if kind is dict:
        pairs = made[id(value)] = {}
        for key, one in value.items():
            if type(key) not in _ATOMS:
                raise _OtherError(type(key).__name__)
            pairs[key] = one if type(one) in _ATOMS else _copied(one, made)
        return pairs
    if kind is list:
        items: list[Any] = []
        made[id(value)] = items
        items += [one if type(one) in _ATOMS else _copied(one, made) for one in value]
        return items
    if kind is tuple:
        return tuple(one if type(one) in _ATOMS else _copied(one, made) for one in value)
    raise _OtherError(kind.__name__)
