"""Walks through what a host's object is made of: parts in parts, each once."""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, Final

MOST: Final = 64  # items of a container that is looked into: an object's parts, not its documents
_DEEPEST: Final = 12  # parts in parts


def parts(
    whole: object,
    inside: Callable[[object], Iterable[object]],
    besides: tuple[type, ...] = (),
) -> Iterator[object]:
    """Walk through the parts of an object, itself first.

    Args:
        whole: the object.
        inside: lists what a part holds, one level down.
        besides: classes of what is no part, such as documents.
    """
    seen: set[int] = set()

    def walk(part: object, depth: int) -> Iterator[object]:
        if depth > _DEEPEST or id(part) in seen or isinstance(part, besides):
            return
        seen.add(id(part))
        yield part
        for inner in inside(part):
            yield from walk(inner, depth + 1)

    return walk(whole, 0)


def held(part: object) -> list[Any]:
    """List what a container or a pydantic model holds; nothing of a long one, or of any other.

    >>> held([1, {2}]), held({"a": 3}), held("text"), held(range(3)), held([0] * 1000)
    ([1, {2}], [3], [], [], [])
    """
    if isinstance(part, list | tuple | set | frozenset):
        return list(part) if len(part) <= MOST else []
    if isinstance(part, dict):
        return list(part.values()) if len(part) <= MOST else []
    return list(attributes(part).values()) if hasattr(type(part), "__pydantic_fields__") else []


def attributes(part: object) -> dict[str, Any]:
    """Give all attributes that an object has for itself; a pydantic model's private ones too.

    Those that its class computes of the others, when they are first wanted, are left out.

    >>> class Part:
    ...     def __init__(self) -> None:
    ...         self._k = 4
    >>> attributes(Part()), attributes("text")
    ({'_k': 4}, {})
    """
    kind = type(part)
    own = {
        name: value
        for name, value in getattr(part, "__dict__", {}).items()
        if not isinstance(getattr(kind, name, None), cached_property)
    }
    own |= getattr(part, "__pydantic_extra__", None) or {}
    return own | (getattr(part, "__pydantic_private__", None) or {})
