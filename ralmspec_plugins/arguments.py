"""Errors of unknown arguments, with a suggestion."""

from collections.abc import Callable, Collection
from collections.abc import Set as AbstractSet
from difflib import get_close_matches
from functools import wraps
from inspect import signature
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def suggestion(name: str, known: Collection[str]) -> str:
    """Return a similar known name, or all known ones.

    >>> suggestion("workloda", ["schedule", "workload"])
    "did you mean 'workload'?"
    >>> suggestion("colour", ["schedule", "workload"])
    'known are schedule, workload'
    """
    near = get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"


def refuse_unknown(
    given: AbstractSet[str], known: Collection[str], *, beside: Collection[str] = ()
) -> None:
    """Check that all arguments are known.

    Args:
        given: the names.
        known: the names of supported arguments.
        beside: names that are supported elsewhere, for suggestions.

    Raises:
        TypeError: a name is unknown.
    """
    for name in sorted(given - set(known)):
        meant = {*known, *beside} - {"self", "args", "kwargs"}
        raise TypeError(f"unknown argument {name!r}; {suggestion(name, meant)}")


def suggests(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function with errors of unknown keyword arguments that suggest a known one."""
    known = signature(function).parameters.keys()

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        refuse_unknown(kwargs.keys(), known)
        return function(*args, **kwargs)

    return checked


def suggests_fields(kind: type[T]) -> type[T]:
    """Return the dataclass with errors of unknown fields that suggest a known one.

    >>> from dataclasses import dataclass
    >>> @suggests_fields
    ... @dataclass
    ... class Options:
    ...     workload: str
    >>> Options(workloda="sentences")
    Traceback (most recent call last):
        ...
    TypeError: unknown argument 'workloda'; did you mean 'workload'?
    """
    setattr(kind, "__init__", suggests(vars(kind)["__init__"]))  # noqa: B010 mypy forbids it
    return kind
