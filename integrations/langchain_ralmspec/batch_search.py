"""Native batch search of vector stores: what an adapter offers, and which one fits a retriever.

LangChain's own batch methods do not batch (they run single calls in threads),
so each store is reached by a small adapter for exactly known classes and
settings. What no adapter knows is searched through the host, query by query.
"""

import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import FunctionType
from typing import Any, Literal, Protocol, TypeAlias

from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStoreRetriever

from langchain_ralmspec.stores import BATCH_SEARCHES
from ralmspec_plugins.errors import ConfigError

_log = logging.getLogger(__name__)

ENTRY_POINTS = "ralmspec_plugins.langchain_batch_search"
DEFAULT_K = 4  # of every search method in langchain_core.vectorstores.VectorStore

Vector: TypeAlias = Any  # as the embedder gave it: a list of floats, or an array [dim]
Metric: TypeAlias = Literal["cosine", "ip", "l2"]


@dataclass(frozen=True, slots=True)
class Scored:
    """A document that a batch search found.

    `vector` is the document's own, where the store gives it cheaply: pools rank
    with it. `score` is, to the bit, what the store's `similarity_search_with_score`
    gives for the same search; `None` where that cannot be had.
    """

    document: Document
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

    def relevance(self) -> Callable[[float], float] | None:
        """Give the function that makes relevances of scores, as the store's own search does.

        Asked for before each batch of `similarity_score_threshold`. `None`: the store's
        relevances cannot be had from `Scored.score`, and such searches go one by one.
        """
        ...

    def search(self, vectors: Sequence[Vector], k: int) -> list[list[Scored]]:
        """Find the best k documents of each query vector, best first."""
        ...


Factory: TypeAlias = Callable[[VectorStoreRetriever], BatchSearch | None]

_lock = threading.RLock()
_factories: dict[str, Factory | None] = {}  # by qualified class name; None: there is none


def register_batch_search(class_name: str, factory: Factory) -> None:
    """Have a vector store class searched in batches.

    Args:
        class_name: "package.module.ClassName", so that no store has to be imported.
            Subclasses are not meant: they may have changed anything.
        factory: gets a retriever of `search_type="similarity"` over a store of exactly this
            class, whose `search_kwargs` are those of the call (without `score_threshold`, which
            is applied behind it), and gives its batch search; `None` for settings that it does
            not know, so that they are searched through the host.

    Raises:
        ConfigError: the name is not a qualified one.
    """
    if "." not in class_name.strip("."):
        raise ConfigError(
            f"class_name must be a qualified name such as 'package.module.ClassName', "
            f"got {class_name!r}"
        )
    with _lock:
        _factories[class_name] = factory


def batch_search_of(retriever: VectorStoreRetriever) -> BatchSearch | None:
    """Give the batch search that is exactly a retriever's own search, or `None`.

    `None` too where somebody has put his own methods on the retriever or its
    store: what they do cannot be known.
    """
    if type(retriever) is not VectorStoreRetriever:
        return None
    store = retriever.vectorstore
    if _overridden(retriever) or _overridden(store):
        return None
    name = qualified_name(type(store))
    factory = _factory_of(name)
    if factory is None:
        return None
    try:
        return factory(retriever)
    except Exception:  # noqa: BLE001 the host's own way is always there
        _log.warning("the batch search of %s failed; it is not used again", name, exc_info=True)
        with _lock:
            _factories[name] = None
        return None


def qualified_name(kind: type) -> str:
    """Name a class as `register_batch_search` wants it."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _overridden(instance: object) -> bool:
    """Whether a method of the class is hidden by an attribute of the instance."""
    own = getattr(instance, "__dict__", {})
    return any(isinstance(getattr(type(instance), name, None), FunctionType) for name in own)


def _factory_of(name: str) -> Factory | None:
    with _lock:
        if name not in _factories:
            _factories[name] = next(filter(None, map(_loaded, _sources(name))), None)
        return _factories[name]


def _sources(name: str) -> list[EntryPoint]:
    """List who offers a batch search for a class, this package first."""
    own = [EntryPoint(name, BATCH_SEARCHES[name], ENTRY_POINTS)] if name in BATCH_SEARCHES else []
    return [*own, *entry_points(group=ENTRY_POINTS, name=name)]


def _loaded(source: EntryPoint) -> Factory | None:
    try:
        factory: Factory = source.load()
    except Exception:  # noqa: BLE001 as above
        _log.warning("%s cannot be loaded; it is passed over", source, exc_info=True)
        return None
    return factory
