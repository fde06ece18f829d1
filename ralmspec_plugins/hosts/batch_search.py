"""Native batch search of vector stores: what an adapter offers, and which one fits a store.

Hosts' own batch methods do not batch (they run single calls in threads, where they
have any), so each store is reached by a small adapter for exactly known classes and
settings. What no adapter knows is searched through the host, query by query.
"""

import logging
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.hosts.classes import overridden, qualified_name
from ralmspec_plugins.hosts.tables import Metric

_log = logging.getLogger(__name__)

Vector: TypeAlias = Any  # as the embedder gave it: a list of floats, or an array [dim]


@dataclass(frozen=True, slots=True)
class Scored:
    """A document that a batch search found.

    `document` is the host's own object, perhaps the store's very own: whoever makes
    hits of it copies it. `vector` is the document's own, where the store gives it
    cheaply: pools rank with it. `score` is, to the bit, the one that the host gives
    for the same search alone; `None` where that cannot be had.
    """

    document: Any
    vector: Vector | None = None
    score: float | None = None


class BatchSearch(Protocol):
    """Searches many query vectors in one call, with the settings of one retriever.

    The documents are exactly those of the retriever's own single calls: order,
    content, metadata, ids. They may be the store's own objects; callers copy.

    `name`: the store, for logs and the exactness table.
    `exact`: by construction a query's result does not depend on the batch; others
    are used with `batch="probed"` only.
    `wide`: the first k of a wider search are exactly the search for k.
    `metric`: how a pool ranks by the documents' vectors; `None` if it cannot.
    `k`: how many documents the retriever's settings ask for.
    `signature`: store, collection, filter, parameters: all that the answers depend on,
    besides k and the embedder (`ralmspec_plugins.hosts.signatures` makes tokens of objects).

    An adapter whose store has an asynchronous batch call also has `asearch`, with
    the same arguments; otherwise `search` runs in a thread.
    """

    @property
    def name(self) -> str:
        """Name the store."""
        ...

    @property
    def exact(self) -> bool:
        """Whether a query's result is independent of its batch by construction."""
        ...

    @property
    def wide(self) -> bool:
        """Whether the first k of a wider search are exactly the search for k."""
        ...

    @property
    def metric(self) -> Metric | None:
        """How a pool ranks by vectors."""
        ...

    @property
    def k(self) -> int:
        """How many documents the retriever's settings ask for."""
        ...

    @property
    def signature(self) -> Hashable:
        """All that the answers depend on, besides k and the embedder."""
        ...

    def search(self, vectors: Sequence[Vector], k: int) -> list[list[Scored]]:
        """Find the best k documents of each query vector, best first."""
        ...


SearchT = TypeVar("SearchT")
Factory: TypeAlias = Callable[[Any], SearchT | None]


class Registry(Generic[SearchT]):
    """Which function makes the batch search of which store class, for one host. Thread-safe.

    Known are those that were registered, those that come with the integration, and
    those that other packages offer as entry points, in this order.
    """

    def __init__(self, group: str, own: Mapping[str, str]) -> None:
        """Load nothing yet.

        Args:
            group: the entry points' group, where other packages offer batch searches.
            own: "module:function", by the qualified names of the stores' classes.
        """
        self._group = group
        self._own = own
        self._lock = threading.RLock()
        self._factories: dict[str, Factory[SearchT] | None] = {}  # None: there is none

    def register(self, class_name: str, factory: Factory[SearchT]) -> None:
        """Have a store class searched by what this factory makes.

        Args:
            class_name: "package.module.ClassName", so that no store has to be imported.
                Subclasses are not meant: they may have changed anything.
            factory: makes the batch search of a retriever; gives `None` for settings that
                it does not know, so that they are searched through the host.

        Raises:
            ConfigError: the name is not a qualified one.
        """
        if "." not in class_name.strip("."):
            raise ConfigError(
                f"class_name must be a qualified name such as 'package.module.ClassName', "
                f"got {class_name!r}"
            )
        with self._lock:
            self._factories[class_name] = factory

    def search_of(self, retriever: Any, store: object) -> SearchT | None:
        """Give the batch search that is exactly a retriever's own search, or `None`.

        `None` too where somebody has put his own methods on the retriever or its
        store: what they do cannot be known.

        Args:
            retriever: the host's, as the store's factory wants it.
            store: the vector store that it searches.
        """
        if overridden(retriever) or overridden(store):
            return None
        name = qualified_name(type(store))
        factory = self._factory_of(name)
        if factory is None:
            return None
        try:
            return factory(retriever)
        except Exception:  # noqa: BLE001 the host's own way is always there
            _log.warning("the batch search of %s failed; it is not used again", name, exc_info=True)
            with self._lock:
                self._factories[name] = None
            return None

    def _factory_of(self, name: str) -> Factory[SearchT] | None:
        with self._lock:
            if name not in self._factories:
                loaded = map(self._loaded, self._sources(name))
                self._factories[name] = next(filter(None, loaded), None)
            return self._factories[name]

    def _sources(self, name: str) -> list[EntryPoint]:
        """List who offers a batch search for a class, the integration itself first."""
        own = [EntryPoint(name, self._own[name], self._group)] if name in self._own else []
        return [*own, *entry_points(group=self._group, name=name)]

    def _loaded(self, source: EntryPoint) -> Factory[SearchT] | None:
        try:
            factory: Factory[SearchT] = source.load()
        except Exception:  # noqa: BLE001 as above
            _log.warning("%s cannot be loaded; it is passed over", source, exc_info=True)
            return None
        return factory
