"""Builds the store of a case, here or in another process, and the replica that guesses for it."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.bench.cases import DENSE, Store
from ralmspec_plugins.bench.far_away import far_away
from ralmspec_plugins.bench.process import core_for_another
from ralmspec_plugins.bench.service import ServedStore, service
from ralmspec_plugins.bench.texts import Library, padded, padded_texts
from ralmspec_plugins.protocols import PoolableRetriever, Speculator
from ralmspec_plugins.retrieval import Encoder, NumpyFlat, open_retriever, save
from ralmspec_plugins.retrieval.dense import DenseCorpus
from ralmspec_plugins.retrieval.encoding import encode_all
from ralmspec_plugins.speculation.pool import PassagePool
from ralmspec_plugins.speculation.replica import Replica

REPLICA: Final = "faiss-hnsw"


@dataclass(frozen=True, slots=True)
class Shelves:
    """The passages of a benchmark with their vectors, made once for all its stores."""

    library: Library
    encoder: Encoder
    vectors: NDArray[np.float32]  # of the real passages

    @classmethod
    def of(cls, library: Library, encoder: Encoder) -> "Shelves":
        """Encode the passages, unless vectors of this encoder's dimension came with them."""
        vectors = library.vectors
        if vectors is None or vectors.shape[1] != np.asarray(encoder("a")).shape[0]:
            vectors = encode_all(encoder, library.passages)
        return cls(library, encoder, vectors)

    def opened(self, store: Store) -> Any:
        """Give the store as `with` wants it: what is searched, while the case lasts."""
        return _opened(self, store)

    def speculators(self, retriever: Any, capacity: int, eviction: str) -> Sequence[Speculator]:
        """Give a pool, and behind it a replica of the real passages, which are all that count."""
        passages = self.library.passages
        index = open_retriever(
            REPLICA, passages, encoder=self.encoder, vectors=self.vectors, k=retriever.k
        )
        pool = PassagePool(retriever, capacity=capacity, eviction=eviction)
        return pool, Replica(index, of=retriever)


@contextmanager
def _opened(shelves: Shelves, store: Store) -> Iterator[PoolableRetriever]:
    settings = dict(store.settings)
    if store.backend not in DENSE:
        texts = padded_texts(shelves.library.passages, store.size)
        yield _at_distance(open_retriever(store.backend, texts, k=store.k, **settings), store)
        return
    passages, vectors = padded(shelves.library.passages, shelves.vectors, store.size)
    if store.backend != "numpy-flat":
        given = {"vectors": vectors, "k": store.k, **settings}
        built = open_retriever(store.backend, passages, encoder=shelves.encoder, **given)
        yield _at_distance(built, store)
        return
    here = NumpyFlat(
        DenseCorpus(passages, vectors, shelves.encoder),
        k=store.k,
        threads=store.threads if store.place == "here" else None,
    )
    if store.place == "here":
        yield _at_distance(here, store)
        return
    with tempfile.TemporaryDirectory(prefix="ralmspec-bench-") as work:
        folder = Path(work) / "kb"
        save(NumpyFlat(DenseCorpus(passages, vectors), k=store.k), folder)
        beside = store.place == "beside"
        with (
            core_for_another() if beside else nullcontext() as core,
            service(folder, wait_s=store.wait_s, threads=store.threads, core=core) as address,
        ):
            yield ServedStore(address, here)


def _at_distance(built: Any, store: Store) -> Any:
    return far_away(built, store.wait_s) if store.wait_s else built
