"""Knows classes of hosts by their qualified names, so that none has to be imported."""

from types import FunctionType


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
