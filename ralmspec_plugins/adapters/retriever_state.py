"""State shared by all calls of one host's retriever: snapshots, failed probes, counts."""

import asyncio
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeVar

from ralmspec_plugins.adapters.batch_search import BatchSearch, Scored, Vector
from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.scheduling.encoder_time import EncoderTime
from ralmspec_plugins.types import Hit, Hits, Query

# Payloads of queries and hits: vectors, and call settings.


@dataclass(frozen=True, slots=True)
class QueryPayload:
    """The payload of a query: its vector, and the settings of calls for it.

    So a batch may contain the queries of many callers, and each caller's handlers
    receive only that caller's calls.

    Args:
        vector: the query's vector, from the host's own embedder.
        calls: the settings with which the host is called for this query.
        recording: the recorded events of the embedding, if they are kept.
    """

    vector: Vector | None = None
    calls: Any = None
    recording: Any = None


@dataclass(frozen=True, slots=True)
class HitPayload:
    """The payload of a hit: the document's vector, and the recording of its search."""

    vector: Vector | None = None
    recording: Any = None


def payload_of(query: Query) -> QueryPayload:
    """Return the payload of a query; an empty one if a workload created it from a text.

    Raises:
        InputError: it was not created for a host's retriever.
    """
    if query.encoding is None:
        return QueryPayload()
    if not isinstance(query.encoding, QueryPayload):
        raise InputError(
            f"a host's retriever searches texts, but the query {query.text!r} has an "
            "encoding of its own; make it with the retriever's encode(text)"
        )
    return query.encoding


def query_vector(query: Query) -> Vector | None:
    """Return a query's vector, if it has one."""
    return payload_of(query).vector


def hit_vector(hit: Hit) -> Vector | None:
    """Return the vector of a hit's document, if it is known."""
    return hit.features.vector if isinstance(hit.features, HitPayload) else None


def unrecorded(hit: Hit) -> Hit:
    """Return a hit without the recording of its search, which guesses do not need."""
    origin = hit.features
    if not isinstance(origin, HitPayload) or origin.recording is None:
        return hit
    return Hit(hit.passage, hit.score, HitPayload(origin.vector))


def filled(hits: Sequence[Hits | None], rest: Sequence[Hits]) -> list[Hits]:
    """Return hits with the missing ones filled in order."""
    singles = iter(rest)
    return [next(singles) if own is None else own for own in hits]


# A store's batch search, with the results of the host's retriever.


BatchMode: TypeAlias = Literal["exact", "probed", "off"]
BATCH_MODES: Final = ("exact", "probed", "off")

# Filters each query's documents as the retriever does; `None` if only the retriever can decide.
# Documents beyond its k are kept up to the first one that is not, so that a wider search still
# starts with the retriever's own hits.
Cut: TypeAlias = Callable[[Sequence[list[Scored]]], list[list[Scored] | None]]


class Embedder(Protocol):
    """Embeds queries by the methods that the host's own search calls."""

    def embed(self, text: str) -> QueryPayload:
        """Embed a query; return its vector, and the recording of the call."""
        ...

    async def aembed(self, text: str) -> QueryPayload:
        """Embed a query as the host's asynchronous search does, without blocking the event loop."""
        ...


def all_of(found: Sequence[list[Scored]]) -> list[list[Scored] | None]:
    """Return all documents."""
    return list(found)


@dataclass(frozen=True, slots=True)
class Native:
    """The batch search of one retriever's settings."""

    search: BatchSearch
    embedder: Embedder
    cut: Cut = all_of
    leads_on: bool = False  # a found document may refer to several documents

    @property
    def wide(self) -> bool:
        """Whether a wider search may replace the retriever's own."""
        return self.search.exact and self.search.wide and not self.leads_on

    def find(self, vectors: Sequence[Vector], width: int | None) -> list[list[Scored]]:
        """Search many vectors in one call, by default with the retriever's width."""
        return self.search.search(vectors, max(self.search.k, width or 0))

    async def afind(self, vectors: Sequence[Vector], width: int | None) -> list[list[Scored]]:
        """Search many vectors in one call without blocking the event loop."""
        asearch = getattr(self.search, "asearch", None)
        if asearch is None:
            return await asyncio.to_thread(self.find, vectors, width)
        found: list[list[Scored]] = await asearch(vectors, max(self.search.k, width or 0))
        return found


@dataclass(frozen=True, slots=True)
class RetrieverSnapshot:
    """A snapshot of a host's retriever.

    Args:
        signature: a key of all that its answers depend on.
        native: its batch search; `None`: it is opaque.
        k: the number of documents of a search, if it is known.
        pure: whether equal queries return equal documents, without side effects.
        fixed: the retriever with copies of these settings, for a whole call; `None` if it
            cannot be copied.
        hosts_own: whether the signature is complete: only code of the host and of supported
            stores determines the documents.
        passing: whether these settings belong to one call, and are not cached.
    """

    signature: Hashable
    native: Native | None
    k: int | None
    pure: bool
    fixed: Any = None
    hosts_own: bool = True
    passing: bool = False

    def fitting(self, vectors: Sequence[Vector | None]) -> Native | None:
        """Return the batch search for these queries, or `None` if they are searched one by one."""
        native = self.native
        if native is None or not vectors or any(vector is None for vector in vectors):
            return None
        return native if native.search.exact or len(vectors) > 1 else None

    def beginning(self, singles: list[Hits], width: int | None) -> list[Hits]:
        """Return the host's own results as the start of a wider search.

        Raises:
            InputError: the host returns more than k, so that a wider search cannot start with them.
        """
        longest = max(map(len, singles), default=0)
        if width is not None and self.k is not None and longest > self.k:
            raise InputError(
                f"a search for {self.k} documents gave {longest}: some stand for others, "
                "so a wider search would not begin with its result"
            )
        return singles


def check_way(batch: str, side_by_side: object) -> None:
    """Check the settings of batch search.

    Raises:
        ConfigError: `batch` is unknown, or `side_by_side` is below 1.
    """
    if batch not in BATCH_MODES:
        raise ConfigError(f"batching must be one of {', '.join(BATCH_MODES)}, got {batch!r}")
    if isinstance(side_by_side, bool) or not isinstance(side_by_side, int) or side_by_side < 1:
        raise ConfigError(f"side_by_side must be at least 1, got {side_by_side!r}")


# Detects an opaque retriever that changes with each call, whose results are never cached.


_log = logging.getLogger(__name__)

_WATCHED: Final = 3  # watched calls; an attribute that is created by the first one is ignored


class ChangeDetector:
    """Compares an opaque retriever before and after its first calls. Thread-safe.

    All its attributes are part of its signature, since its answers may depend on any of
    them. One that counts its calls in an attribute is safe, but its results are never cached.
    """

    def __init__(self) -> None:
        """Create a detector."""
        self._lock = threading.Lock()
        self._changes: list[bool] = []

    @contextmanager
    def watched(self, signature: Callable[[], Hashable], retriever: object) -> Iterator[None]:
        """Watch one of the first calls; log if each of them changed an attribute."""
        if len(self._changes) >= _WATCHED:
            yield
            return
        before = signature()
        yield
        self._note(retriever, changed=signature() != before)

    def _note(self, retriever: object, *, changed: bool) -> None:
        with self._lock:
            self._changes.append(changed)
            last = len(self._changes) == _WATCHED
        if last and all(self._changes):
            _log.warning(
                "each call of %s changes one of its attributes, so that its results are "
                "not cached for later requests; if that is a counter, keep it in a separate "
                "object, such as itertools.count()",
                type(retriever).__name__,
            )


_KEPT: Final = 64  # cached snapshots of settings (users, filters)
_STEP: Final = 7919  # a prime, so that probes reach all positions in a batch
ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True)
class HostStats:
    """Counts of the host's calls: batches of the store, the queries in them, and single calls."""

    batches: int = 0
    batched_queries: int = 0
    single_calls: int = 0

    @property
    def round_trips(self) -> int:
        """The number of calls of the store or the retriever."""
        return self.batches + self.single_calls

    @property
    def queries(self) -> int:
        """The number of queries in these calls."""
        return self.batched_queries + self.single_calls


class RetrieverState:
    """The state of a host's retriever, for all its users and settings. Thread-safe."""

    def __init__(self, prepare: Callable[[Hashable, Any], RetrieverSnapshot]) -> None:
        """Create an empty state.

        Args:
            prepare: inspects the host's retriever, given its signature; the returned snapshot
                is cached while the signature is in use, unless it is `passing`.
        """
        self._prepare = prepare
        self._lock = threading.Lock()
        self._looks: OrderedDict[Hashable, RetrieverSnapshot] = (
            OrderedDict()
        )  # the last used at the end
        self._sizes: OrderedDict[Hashable, int] = OrderedDict()  # of the latest results
        self._probes = 0
        self._stats = HostStats()
        self.steadiness = ChangeDetector()
        self.embedding_time = EncoderTime()  # of queries

    def look(self, signature: Hashable, at: Any) -> RetrieverSnapshot:
        """Return the current snapshot of a retriever."""
        with self._lock:
            known = self._looks.get(signature)
            if known is not None:
                self._looks.move_to_end(signature)
                return known
        look = self._prepare(signature, at)
        self._keep(self._looks, look, look)
        return look

    def trusted(self, look: RetrieverSnapshot) -> RetrieverSnapshot:
        """Return the current snapshot of these settings, since a batch may have differed."""
        with self._lock:
            return self._looks.get(look.signature, look)

    def distrust(self, look: RetrieverSnapshot) -> None:
        """Disable batches for these settings, after a batch differed."""
        _log.warning(
            "batches of %s differ from single searches; it is searched query by query from now on",
            "a store" if look.native is None else look.native.search.name,
        )
        self._keep(self._looks, look, replace(look, native=None))

    def probe(self, size: int) -> int:
        """Return the position of the query that is compared with a single search."""
        with self._lock:
            self._probes += 1
            return self._probes * _STEP % size

    def latest_size(self, look: RetrieverSnapshot) -> int | None:
        """Return the number of documents of the latest result with any."""
        with self._lock:
            return self._sizes.get(look.signature)

    def note_single(self, look: RetrieverSnapshot, found: int) -> None:
        """Count a single call."""
        with self._lock:
            old = self._stats
            self._stats = HostStats(old.batches, old.batched_queries, old.single_calls + 1)
        if found and look.k is None:
            self._keep(self._sizes, look, found)

    def note_batch(self, queries: int) -> None:
        """Count a batch."""
        with self._lock:
            old = self._stats
            self._stats = HostStats(
                old.batches + 1, old.batched_queries + queries, old.single_calls
            )

    @property
    def stats(self) -> HostStats:
        """The counts so far."""
        with self._lock:
            return self._stats

    def _keep(
        self, where: OrderedDict[Hashable, ValueT], look: RetrieverSnapshot, value: ValueT
    ) -> None:
        if look.passing:
            return
        with self._lock:
            where[look.signature] = value
            where.move_to_end(look.signature)
            if len(where) > _KEPT:
                where.popitem(last=False)
