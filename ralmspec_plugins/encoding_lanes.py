"""Which queries of a request are encoded next, in lanes of their own."""

from collections.abc import Mapping
from typing import NamedTuple

from ralmspec_plugins.effects import Completed, Encode, InFlight, Work
from ralmspec_plugins.parts import Parts
from ralmspec_plugins.scheduling.policy import Policy
from ralmspec_plugins.types import Query


class EncodingWanted(NamedTuple):
    """A query to encode, and whether the first step that asks it follows an unverified guess."""

    query: Query
    depends: bool


class EncodingLanes:
    """The encodings of one request that run in parallel, at most one for each lane.

    One that no step waits for is cancelled if its lane is needed, not before: after a rollback the
    same query is often formed again.
    """

    def __init__(self, in_flight: InFlight, parts: Parts, policy: Policy | None) -> None:
        """Begin with free lanes.

        Args:
            in_flight: the work of the request.
            parts: say how many encodings may run in parallel, which may change.
            policy: decides whether a query that depends on a guess may take the last free lane.
        """
        self._encoding = in_flight.encoding  # by text
        self._parts = parts
        self._policy = policy
        self._cancelled: set[Work] = set()

    def to_cancel(self, waiting: Mapping[str, EncodingWanted]) -> list[Encode]:
        """Return the encodings to cancel, so that these queries can be encoded."""
        missing = len(self._encoding) + len(waiting.keys() - self._encoding.keys())
        missing -= self._parts.encode_lanes
        unneeded = [need for text, need in self._encoding.items() if text not in waiting]
        found = [need for need in unneeded[: max(0, missing)] if need not in self._cancelled]
        self._cancelled.update(found)
        return found

    def to_start(self, waiting: Mapping[str, EncodingWanted]) -> list[Query]:
        """Return the first of these queries that are not being encoded, up to the free lanes.

        Args:
            waiting: the queries to encode by their texts, in the order of their steps.
        """
        started: list[Query] = []
        free = self._parts.encode_lanes - len(self._encoding)
        for text, (query, depends) in waiting.items():
            if text in self._encoding or free < 1 or (free == 1 and depends and self._is_kept()):
                continue
            started.append(query)
            free -= 1
        return started

    def _is_kept(self) -> bool:
        """Return whether the last free lane is kept for the right query, if a guess is wrong."""
        stop_s = self._parts.stop_encode_s
        return self._policy is not None and not self._policy.worth_encoding_ahead(stop_s)

    def ended(self, done: Completed) -> bool:
        """Record an encoding that has ended; return whether it was cancelled."""
        if self._policy is not None and done.error is None:
            self._policy.encoded(done.took_s, self._parts.encode_lanes)
        cancelled = done.need in self._cancelled
        self._cancelled.discard(done.need)
        return cancelled
