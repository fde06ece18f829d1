"""How long a piece of work ran beside work of the other kind: a search, or the model's writing."""

from collections import deque

from ralmspec_plugins.needs import Done, Extend, Search, Work

_KEPT = 64  # intervals of each kind: a long search overlaps many short segments


class Meanwhile:
    """Remembers when searches and segments ran.

    >>> from ralmspec_plugins.records import Query
    >>> from ralmspec_plugins.protocols import Progress
    >>> search, extend = Search((Query("a"),)), Extend(None, (), Progress())
    >>> meanwhile = Meanwhile()
    >>> meanwhile.began(search, 0.0), meanwhile.began(extend, 1.0)
    (None, None)
    >>> meanwhile.ended(Done(extend, None, started_s=1.0, ended_s=3.0))  # the search is still out
    2.0
    >>> meanwhile.ended(Done(search, None, started_s=0.0, ended_s=8.0))
    2.0
    """

    def __init__(self) -> None:
        """Start with nothing running."""
        self._running: dict[Work, float] = {}
        self._over: dict[bool, deque[tuple[float, float]]] = {
            kind: deque(maxlen=_KEPT) for kind in (True, False)
        }

    def began(self, need: Work, at_s: float) -> None:
        """Note that a search or a segment begins."""
        if isinstance(need, Search | Extend):
            self._running[need] = at_s

    def ended(self, done: Done) -> float:
        """Give the seconds that a search or a segment ran beside the other kind, at most all."""
        need = done.need
        if not isinstance(need, Search | Extend):
            return 0.0
        self._running.pop(need, None)
        search, beside_s = isinstance(need, Search), 0.0
        for other, began_s in self._running.items():
            if isinstance(other, Search) != search:
                beside_s += done.ended_s - max(began_s, done.started_s)
        for began_s, ended_s in reversed(self._over[not search]):
            if ended_s <= done.started_s:
                break  # those before have ended earlier still
            beside_s += max(0.0, min(ended_s, done.ended_s) - max(began_s, done.started_s))
        self._over[search].append((done.started_s, done.ended_s))
        return min(beside_s, done.took_s)
