"""Lists of node ids: a retriever carries along those of its whole index.

`index.as_retriever()` lists the ids of all nodes that the index holds. To read twenty
thousand of them at each call, as other settings are read, would take longer than a search.
"""

import itertools
import threading
from collections import OrderedDict
from dataclasses import dataclass
from operator import is_
from typing import Any, Final

_KEPT: Final = 64


@dataclass(frozen=True, slots=True, eq=False)
class Ids:
    """A list of ids as it was: a copy that nobody changes, and a name for its value."""

    name: int
    values: list[str]
    listed: list[str]  # the list itself, kept so that no other one gets its place in memory


class _Known:
    """The lists that were seen last, by place and by value. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._by_place: OrderedDict[int, Ids] = OrderedDict()
        self._by_value: OrderedDict[tuple[str, ...], int] = OrderedDict()

    def ids(self, listed: list[str]) -> Ids | None:
        with self._lock:
            known = self._by_place.get(id(listed))
            if known is not None and known.listed is listed and _same(known.values, listed):
                self._by_place.move_to_end(id(listed))
                return known
        values = list(listed)
        if set(map(type, values)) - {str}:
            return None
        with self._lock:
            name = self._by_value.setdefault(tuple(values), next(self._numbers))
            found = self._by_place[id(listed)] = Ids(name, values, listed)
            for kept in (self._by_place, self._by_value):
                if len(kept) > _KEPT:
                    kept.popitem(last=False)
        return found


_node_ids = _Known()


def ids_of(listed: Any) -> Ids | None:
    """Name a list of ids by its value as it is now; `None` for anything else.

    A list that is still what it was is named in the time that it takes to see that. One that
    was not seen for long may get a new name: a cache misses, no more.
    """
    return _node_ids.ids(listed) if type(listed) is list else None


def _same(ours: list[str], theirs: list[str]) -> bool:
    return len(ours) == len(theirs) and all(map(is_, ours, theirs))
