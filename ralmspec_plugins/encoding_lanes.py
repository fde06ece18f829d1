"""Which queries of a request are encoded next, in lanes of their own."""

from collections.abc import Callable, Sequence

from ralmspec_plugins.effects import Encode, InFlight
from ralmspec_plugins.types import Query


class EncodingLanes:
    """The encodings of one request that run in parallel, at most one for each lane.

    One that no step waits for is cancelled if its lane is needed, not before: after a rollback the
    same query is often formed again.
    """

    def __init__(self, in_flight: InFlight, lanes: Callable[[], int]) -> None:
        """Begin with free lanes.

        Args:
            in_flight: the work of the request.
            lanes: returns the maximum number of encodings in parallel, which may change.
        """
        self._encoding = in_flight.encoding  # by text
        self._lanes = lanes
        self._cancelled: set[Encode] = set()

    def to_cancel(self, waiting: Sequence[Query]) -> list[Encode]:
        """Return the encodings to cancel, so that these queries can be encoded."""
        texts = {query.text for query in waiting}
        missing = len(self._encoding) + len(texts - self._encoding.keys()) - self._lanes()
        unneeded = [need for text, need in self._encoding.items() if text not in texts]
        found = [need for need in unneeded[: max(0, missing)] if need not in self._cancelled]
        self._cancelled.update(found)
        return found

    def to_start(self, waiting: Sequence[Query]) -> list[Query]:
        """Return the first of these queries that are not being encoded, up to the free lanes."""
        missing: dict[str, Query] = {}
        for query in waiting:
            if query.text not in self._encoding:
                missing.setdefault(query.text, query)
        return list(missing.values())[: max(0, self._lanes() - len(self._encoding))]

    def ended(self, need: Encode) -> bool:
        """Record that an encoding has ended; return whether it was cancelled."""
        cancelled = need in self._cancelled
        self._cancelled.discard(need)
        return cancelled
