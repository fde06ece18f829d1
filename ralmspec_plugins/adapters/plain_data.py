"""Detection and fast copies of values that are plain data."""

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
from typing import Any, Final, TypeAlias

import numpy as np

# Immutable; the repr of all but texts and numbers determines the value.
_ATOMS: Final = frozenset(
    {
        str, bytes, float, int, bool, complex, range, type(None), type(...),
        dt.date, dt.datetime, dt.time, dt.timedelta, dt.timezone,
        decimal.Decimal, fractions.Fraction, uuid.UUID,
        pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath, pathlib.WindowsPath,
    }
)  # fmt: skip
LISTS: Final = frozenset({list, tuple, set, frozenset})
_ZONES: Final = frozenset({type(None), dt.timezone, zoneinfo.ZoneInfo})  # determined by the repr


def is_atom(value: Any) -> bool:
    """Return whether a value is immutable data that holds no other object."""
    kind = type(value)
    return kind in _ATOMS and (kind not in (dt.datetime, dt.time) or type(value.tzinfo) in _ZONES)


def is_array(value: Any) -> bool:
    """Return whether a value is exactly a numpy array or scalar, without other objects."""
    kind = type(value)
    own = kind is np.ndarray or (issubclass(kind, np.generic) and kind.__module__ == "numpy")
    return own and value.dtype.metadata is None


Slots: TypeAlias = list[tuple[str, str, MemberDescriptorType]]  # of a class: base, name, descriptor


def state(value: object, slots: Slots | None = None) -> dict[str, Any]:
    """Return the attributes of an instance in its dictionary and slots.

    Args:
        value: any instance.
        slots: what `slots_of` returns for its class, if that is known.

    Raises:
        TypeError: its class hides the dictionary.
    """
    own: dict[str, Any] = {}
    for base, name, slot in slots_of(type(value)) if slots is None else slots:
        with suppress(AttributeError):  # it is not set
            unique = f"{base}.{name}" if name in own else name
            own[unique] = slot.__get__(value)
    with suppress(AttributeError):
        own |= object.__getattribute__(value, "__dict__")
    return own


def slots_of(kind: type) -> Slots:
    """Return the slots of a class and of its base classes, without those of pydantic.

    Raises:
        TypeError: the class hides the dictionary of its instances.
    """
    slots: Slots = []
    for base in reversed(kind.__mro__):
        attributes = vars(base)
        if not isinstance(attributes.get("__dict__", _DICTIONARY), GetSetDescriptorType):
            raise TypeError(f"{base.__qualname__} hides what its instances hold")
        if "__slots__" in attributes:
            slots += [
                (base.__qualname__, name, slot)
                for name, slot in attributes.items()
                if type(slot) is MemberDescriptorType and not name.startswith("__pydantic_")
            ]
    return slots


_DICTIONARY: Final = vars(type("_Plain", (), {}))["__dict__"]


class _OtherError(Exception):
    """A value contains an object that only its class can copy."""


def package_name(module: str) -> str:
    """Return the package of a module; for namespace packages, with the distinguishing part.

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
    """Return whether a value contains only data, recursively.

    Other values (a function, an object of an unknown class) may read the current user
    from a `ContextVar`: they must run in their caller's context.

    >>> is_data({"user": ["ada", 1]}), is_data({"user": lambda: "ada"})
    (True, False)

    Args:
        value: any value; a recursive or too deeply nested one is not data.
        packages: packages, by `package_name`, whose enums and records (pydantic models) are data.
    """
    try:
        return _is_data(value, packages, {})
    except Exception:  # noqa: BLE001 code of a class raised, or the recursion limit was reached
        return False


def _is_data(value: Any, packages: Container[str], met: dict[int, bool]) -> bool:
    kind = type(value)
    if is_atom(value):
        return True
    if id(value) not in met:  # `met`: containers, and whether they are data, after they are read
        met[id(value)] = False
        met[id(value)] = all(
            _is_data(one, packages, met) for one in _data_in(value, kind, packages)
        )
    return met[id(value)]


def _data_in(value: Any, kind: type, packages: Container[str]) -> Iterable[Any]:
    """Return the values that must be data for this value to be data; a function if it never is."""
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
    """Return a deep copy, several times faster than `deepcopy` for plain values in containers.

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
    """Return a copy of a value, in which parts that cannot be copied (a lock) are shared.

    >>> import threading
    >>> ours = {"tags": ["a"], "lock": threading.Lock()}
    >>> theirs = copied_where_possible(ours)
    >>> theirs["tags"] is ours["tags"], theirs["lock"] is ours["lock"]
    (False, True)
    """
    with suppress(Exception):  # any error of the contained classes
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
