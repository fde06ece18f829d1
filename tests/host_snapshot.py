"""What a host's classes and modules hold: compared before and after this package is used."""

import sys
import types
from collections.abc import Iterator
from typing import Any

# Python's and pydantic's own caches, which any use of a class fills.
CACHES = frozenset(
    {
        *("__abstractmethods__", "_abc_impl", "__annotations__", "__doc__"),
        *("__pydantic_core_schema__", "__pydantic_serializer__", "__pydantic_validator__"),
        *("__pydantic_complete__", "__pydantic_fields_complete__", "__pydantic_setattr_handlers__"),
        *("__pydantic_parent_namespace__", "__signature__", "__pydantic_generic_metadata__"),
        *("__pydantic_mock_validator__", "__annotations_cache__"),
    }
)

Snapshot = dict[tuple[str, str], Any]


def host_modules(packages: tuple[str, ...]) -> list[types.ModuleType]:
    """List the loaded modules of these packages."""
    return [
        module
        for name, module in sorted(sys.modules.items())
        if isinstance(module, types.ModuleType) and name.partition(".")[0] in packages
    ]


def _classes(module: types.ModuleType) -> Iterator[type]:
    for value in vars(module).values():
        if isinstance(value, type) and value.__module__ == module.__name__:
            yield value


def snapshot(packages: tuple[str, ...]) -> Snapshot:
    """Take the values of all names of all loaded modules and classes of these packages."""
    taken: Snapshot = {}
    for module in host_modules(packages):
        for name, value in vars(module).items():
            if name not in CACHES and not isinstance(value, types.ModuleType):
                taken[module.__name__, name] = value
        for kind in _classes(module):
            for name, value in vars(kind).items():
                if name not in CACHES:
                    taken[f"{module.__name__}.{kind.__qualname__}", name] = value
    return taken


def changes(before: Snapshot, after: Snapshot) -> list[tuple[str, str]]:
    """Name what is another object than before, or gone."""
    return [key for key, value in before.items() if after.get(key, changes) is not value]
