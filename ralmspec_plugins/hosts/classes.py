"""Knows classes of hosts by their qualified names, so that none has to be imported."""

from functools import partial
from types import FunctionType
from typing import Any


def qualified_name(kind: type) -> str:
    """Name a class by its module and its own name.

    >>> qualified_name(FunctionType)
    'builtins.function'
    """
    return f"{kind.__module__}.{kind.__qualname__}"


def class_names(instance: object) -> frozenset[str]:
    """Name an instance's class and all classes that it comes from."""
    return frozenset(qualified_name(kind) for kind in type(instance).__mro__)


def overridden(instance: object) -> bool:
    """Whether a method of the class is hidden by an attribute of the instance."""
    own = getattr(instance, "__dict__", {})
    return any(isinstance(getattr(type(instance), name, None), FunctionType) for name in own)


def package_of(thing: Any) -> str:
    """Name the top-level package whose code this is: a function's own, or of an object's class.

    >>> package_of(package_of), package_of([])
    ('ralmspec_plugins', 'builtins')
    """
    while isinstance(thing, partial):
        thing = thing.func
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return str(named.__module__).partition(".")[0]
