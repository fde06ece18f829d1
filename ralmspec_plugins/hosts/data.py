"""Values that are data and nothing else: told from code, and copied quickly."""

import datetime as dt
import decimal
import enum
import pathlib
import uuid
from collections.abc import Container
from contextlib import suppress
from copy import deepcopy
from typing import Any, Final

import numpy as np

# Immutable; which of their methods are called depends on nobody.
_ATOMS: Final = frozenset(
    {
        str, bytes, int, float, complex, bool, type(None), type(...), range,
        dt.date, dt.datetime, dt.time, dt.timedelta, dt.timezone,
        decimal.Decimal, uuid.UUID, pathlib.PurePosixPath, pathlib.PosixPath,
    }
)  # fmt: skip
_LISTS: Final = frozenset({list, tuple, set, frozenset})


class _OtherError(Exception):
    """A value holds something that only its own class can copy."""


def is_data(value: object, packages: Container[str] = ()) -> bool:
    """Say whether a value holds nothing that could do something, however deeply.

    What is not data (a function, an object of an unknown class) may read whose turn it
    is, in a `ContextVar`: it must be run in its caller's own context.

    >>> is_data({"user": ["ada", 1]}), is_data({"user": lambda: "ada"})
    (True, False)

    Args:
        value: any; one that contains itself is not data.
        packages: top-level packages whose enums and records (pydantic models) are data.
    """
    return _is_data(value, packages, ())


def _is_data(value: Any, packages: Container[str], inside: tuple[int, ...]) -> bool:
    kind = type(value)
    if kind in _ATOMS:
        return True
    if id(value) in inside:
        return False
    inside = (*inside, id(value))
    if kind in _LISTS:
        return all(_is_data(one, packages, inside) for one in value)
    if kind is dict:
        return all(
            _is_data(key, packages, inside) and _is_data(one, packages, inside)
            for key, one in value.items()
        )
    if kind is np.ndarray or isinstance(value, np.generic):
        return not value.dtype.hasobject
    if kind.__module__.partition(".")[0] not in packages or callable(value):
        return False
    if isinstance(value, enum.Enum):
        return True
    if not hasattr(kind, "__pydantic_fields__") or getattr(value, "__pydantic_private__", None):
        return False
    extra = getattr(value, "__pydantic_extra__", None) or {}
    return all(_is_data(one, packages, inside) for one in (*vars(value).values(), *extra.values()))


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
