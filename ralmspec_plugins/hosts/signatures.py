"""Names for live objects and values of any kind, fit to be parts of a retriever's signature.

Caches are partitioned by what answers depend on. Hosts hold that in mutable
dictionaries, filter objects, clients and functions; here it becomes a key.
"""

import itertools
import threading
import weakref
from collections import OrderedDict
from types import MethodType
from typing import Any, Final

from ralmspec_plugins.hosts.canonical import Read, as_any, encoded

_HELD: Final = 4096  # objects without weak references that are kept alive for their tokens


class _Tokens:
    """Numbers objects: one number each, and no number twice, however long the process lives."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()  # a garbage collection may come to `forget` under it
        self._seen: dict[int, tuple[weakref.ref[Any], int]] = {}  # by id()
        self._held: OrderedDict[int, tuple[object, int]] = OrderedDict()  # the last used at the end

    def number(self, value: object) -> int:
        """Give an object's number."""
        with self._lock:
            known = self._seen.get(id(value))
            if known is not None and known[0]() is value:
                return known[1]
            try:
                return self._watch(value, id(value))
            except TypeError:  # it takes no weak references
                return self._hold(value)

    def _watch(self, value: object, key: int) -> int:
        def forget(ref: weakref.ref[Any]) -> None:
            with self._lock:
                known = self._seen.get(key)
                if known is not None and known[0] is ref:
                    del self._seen[key]

        ref = weakref.ref(value, forget)
        number = next(self._numbers)
        self._seen[key] = ref, number
        return number

    def _hold(self, value: object) -> int:
        """Keep the object, so that no other one gets its place in memory.

        One that is let go and comes again gets a new number: a cache misses, no more.
        """
        known = self._held.get(id(value))
        number = next(self._numbers) if known is None else known[1]
        self._held[id(value)] = value, number
        self._held.move_to_end(id(value))
        if len(self._held) > _HELD:
            self._held.popitem(last=False)
        return number


_tokens = _Tokens()


def token_of(value: object) -> str:
    """Name a live object: itself and no other, as long as the process lives.

    What is inside the object is not looked at: a store that gets new documents
    keeps its name.

    >>> store, other = {1}, {1}
    >>> token_of(store) == token_of(store), token_of(store) == token_of(other)
    (True, False)
    """
    if isinstance(value, MethodType):  # made anew at each look
        return f"{token_of(value.__self__)}.{token_of(value.__func__)}"
    return f"{type(value).__name__}#{_tokens.number(value)}"


def frozen(value: object, most: int | None = None, read: Read = as_any) -> bytes:
    """Give a key for a value as it is now: equal values, equal keys, and never otherwise.

    The order of dictionaries and sets does not count, types do: 1, 1.0, True and
    "1" are four things. Plain values, containers, arrays, dataclasses and pydantic
    models are taken by value; functions and all other objects by `token_of`.

    >>> frozen({"k": 4, "filter": {"user": 1}}) == frozen({"filter": {"user": 1}, "k": 4})
    True
    >>> frozen(1) == frozen(True)
    False

    Args:
        value: any.
        most: containers of more items are taken by `token_of` too, where reading them all
            would take too long; `None`: all are read.
        read: says what counts of an object besides its token; `None` for what is read as above.
    """
    return encoded(value, _by_token, most, read=read)


def _by_token(value: object) -> bytes:
    return token_of(value).encode()
