"""What all calls of one host's retriever share: prepared settings, what failed a probe, counts."""

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
from ralmspec_plugins.types import Hit, Hits, Query

# What the queries and hits of a host's retriever carry: vectors, and whose call it is.


@dataclass(frozen=True, slots=True)
class QueryPayload:
    """What a query carries: its vector, and how calls of the host are made for it.

    So a batch may hold the queries of many callers, and each caller's handlers
    hear of his own calls only.

    Args:
        vector: the query's, as the host's own embedder made it.
        calls: whatever the host needs to make a call in its caller's name.
        recording: what the host told of the embedding, where that is kept.
    """

    vector: Vector | None = None
    calls: Any = None
    recording: Any = None


@dataclass(frozen=True, slots=True)
class HitPayload:
    """What a hit carries: the document's vector, and what recorded the call that found it."""

    vector: Vector | None = None
    recording: Any = None


def payload_of(query: Query) -> QueryPayload:
    """Give what a query carries; nothing, for one that a workload has made of a text.

    Raises:
        InputError: it was not made for a host's retriever.
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
    """Give a query's vector, if it has one."""
    return payload_of(query).vector


def hit_vector(hit: Hit) -> Vector | None:
    """Give the vector of a hit's document, if it is known."""
    return hit.features.vector if isinstance(hit.features, HitPayload) else None


def unrecorded(hit: Hit) -> Hit:
    """Give a hit without what recorded its search: that may be long, and a guess is never told."""
    origin = hit.features
    if not isinstance(origin, HitPayload) or origin.recording is None:
        return hit
    return Hit(hit.passage, hit.score, HitPayload(origin.vector))


def filled(hits: Sequence[Hits | None], rest: Sequence[Hits]) -> list[Hits]:
    """Put the hits that were asked for one by one into their places."""
    singles = iter(rest)
    return [next(singles) if own is None else own for own in hits]


# A store's batch search, made to give what the host's retriever itself gives.


BatchMode: TypeAlias = Literal["exact", "probed", "off"]
BATCH_MODES: Final = ("exact", "probed", "off")

# Keeps of each query's documents what the retriever would; `None` for what only the
# retriever itself can say. Documents beyond its k are kept as far as all those before
# them are, so that a wider search still begins with its own.
Cut: TypeAlias = Callable[[Sequence[list[Scored]]], list[list[Scored] | None]]


class Embedder(Protocol):
    """Embeds queries by the methods that the host's own search calls."""

    def embed(self, text: str) -> QueryPayload:
        """Embed a query; what it carries is its vector, and what was recorded of the call."""
        ...

    async def aembed(self, text: str) -> QueryPayload:
        """Do it as the host's own asynchronous search does, without holding up the event loop."""
        ...


def all_of(found: Sequence[list[Scored]]) -> list[list[Scored] | None]:
    """Keep everything that was found."""
    return list(found)


@dataclass(frozen=True, slots=True)
class Native:
    """How one retriever's settings are searched in batches."""

    search: BatchSearch
    embedder: Embedder
    cut: Cut = all_of
    leads_on: bool = False  # what is found may stand for more than one document

    @property
    def wide(self) -> bool:
        """Whether a wider search may stand for the retriever's own."""
        return self.search.exact and self.search.wide and not self.leads_on

    def find(self, vectors: Sequence[Vector], width: int | None) -> list[list[Scored]]:
        """Search many vectors at once, by default as wide as the retriever does."""
        return self.search.search(vectors, max(self.search.k, width or 0))

    async def afind(self, vectors: Sequence[Vector], width: int | None) -> list[list[Scored]]:
        """Do the same without holding up the event loop."""
        asearch = getattr(self.search, "asearch", None)
        if asearch is None:
            return await asyncio.to_thread(self.find, vectors, width)
        found: list[list[Scored]] = await asearch(vectors, max(self.search.k, width or 0))
        return found


@dataclass(frozen=True, slots=True)
class RetrieverSnapshot:
    """A host's retriever as it is now.

    Args:
        signature: all that its answers depend on.
        native: its batch search; `None`: it is a black box.
        k: how many documents it gives, where it says so.
        pure: whether equal queries find equal documents, without side effects.
        fixed: the retriever with copies of these settings, where it is kept to them for a
            whole call; `None` where it cannot be.
        hosts_own: whether the signature surely names all: no code but the host's own, and
            what is known of stores, says what is found.
        passing: whether these settings are one call's alone, and nothing is kept for them.
    """

    signature: Hashable
    native: Native | None
    k: int | None
    pure: bool
    fixed: Any = None
    hosts_own: bool = True
    passing: bool = False

    def fitting(self, vectors: Sequence[Vector | None]) -> Native | None:
        """Give the batch search for such queries, or `None` if they are asked one by one."""
        native = self.native
        if native is None or not vectors or any(vector is None for vector in vectors):
            return None
        return native if native.search.exact or len(vectors) > 1 else None

    def beginning(self, singles: list[Hits], width: int | None) -> list[Hits]:
        """Give the host's own results back where a wider search can begin with them.

        Raises:
            InputError: the host gives more than k, so that k of them are not its result.
        """
        longest = max(map(len, singles), default=0)
        if width is not None and self.k is not None and longest > self.k:
            raise InputError(
                f"a search for {self.k} documents gave {longest}: some stand for others, "
                "so a wider search would not begin with its result"
            )
        return singles


def check_way(batch: str, side_by_side: object) -> None:
    """Refuse a way of searching that there is not.

    Raises:
        ConfigError: an unknown way, or no call at a time.
    """
    if batch not in BATCH_MODES:
        raise ConfigError(f"batching must be one of {', '.join(BATCH_MODES)}, got {batch!r}")
    if isinstance(side_by_side, bool) or not isinstance(side_by_side, int) or side_by_side < 1:
        raise ConfigError(f"side_by_side must be at least 1, got {side_by_side!r}")


# Notices a black box that is another one after each call, so that nothing of it is remembered.


_log = logging.getLogger(__name__)

_WATCHED: Final = 3  # calls; an attribute that the first one makes is no reason to complain


class ChangeDetector:
    """Compares what a black box was before and after its first calls. Thread-safe.

    All its attributes are part of its signature, since nobody knows on which of them its
    answers depend. One that counts its calls in one of them is safe, and never remembered.
    """

    def __init__(self) -> None:
        """Watch what comes."""
        self._lock = threading.Lock()
        self._changes: list[bool] = []

    @contextmanager
    def watched(self, signature: Callable[[], Hashable], retriever: object) -> Iterator[None]:
        """Watch one call, if it is one of the first; say so if each of them changed something."""
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
                "each call of %s changes one of its attributes, so that nothing it finds is "
                "remembered for later requests; if that is a counter, keep it in an object of "
                "its own, such as itertools.count()",
                type(retriever).__name__,
            )


_KEPT: Final = 64  # settings (users, filters) that are kept prepared
_STEP: Final = 7919  # a prime, so that the probes come to every place in a batch
ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True)
class HostStats:
    """What reached the host: batches of the store, the queries in them, and single calls."""

    batches: int = 0
    batched_queries: int = 0
    single_calls: int = 0

    @property
    def round_trips(self) -> int:
        """How often the store or the retriever was called."""
        return self.batches + self.single_calls

    @property
    def queries(self) -> int:
        """How many queries it was asked."""
        return self.batched_queries + self.single_calls


class RetrieverState:
    """The memory of a host retriever, for all its users and settings. Thread-safe."""

    def __init__(self, prepare: Callable[[Hashable, Any], RetrieverSnapshot]) -> None:
        """Know nothing yet.

        Args:
            prepare: looks closely at the host's retriever, given its signature and what
                goes with it; what it makes is kept for as long as the signature is in use, unless
                it says that it is one call's alone.
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

    def look(self, signature: Hashable, at: Any) -> RetrieverSnapshot:
        """Give what is known of a retriever as it is now."""
        with self._lock:
            known = self._looks.get(signature)
            if known is not None:
                self._looks.move_to_end(signature)
                return known
        look = self._prepare(signature, at)
        self._keep(self._looks, look, look)
        return look

    def trusted(self, look: RetrieverSnapshot) -> RetrieverSnapshot:
        """Give what is known now of these settings: a batch may have differed meanwhile."""
        with self._lock:
            return self._looks.get(look.signature, look)

    def distrust(self, look: RetrieverSnapshot) -> None:
        """Search these settings one by one from now on: a batch gave something else."""
        _log.warning(
            "batches of %s differ from single searches; it is searched query by query from now on",
            "a store" if look.native is None else look.native.search.name,
        )
        self._keep(self._looks, look, replace(look, native=None))

    def probe(self, size: int) -> int:
        """Choose the query of a batch that is compared with a single search."""
        with self._lock:
            self._probes += 1
            return self._probes * _STEP % size

    def latest_size(self, look: RetrieverSnapshot) -> int | None:
        """Say how many documents the latest result had that had any."""
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
        """What has reached the host so far."""
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
