"""Exact dense search with FAISS, over flat vectors, on the CPU or a GPU."""

import threading
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.retrieval.dense import DenseCorpus, ExactRetriever
from ralmspec_plugins.retrieval.device_memory import within_memory
from ralmspec_plugins.retrieval.encoders import Encoder
from ralmspec_plugins.retrieval.optional import optional
from ralmspec_plugins.retrieval.ranking import (
    IntArray,
    Metric,
    Vectors,
    certified_top_k,
)
from ralmspec_plugins.retrieval.storage.corpus import check_k
from ralmspec_plugins.types import Hits, Passage, Query

MOST_ON_GPU = 2048  # FAISS's limit for k on a GPU; larger ones run on the CPU
_ROUNDOFF = 2.0**-22  # of sums in float32 on a GPU: four times that of a CPU as a reserve


def on_gpu(faiss: Any, device: str | None) -> bool:
    """Return whether to search on a GPU.

    Raises:
        ConfigError: the device is unknown, FAISS is a CPU build, or there is no GPU.
    """
    if device not in ("cpu", "gpu", None):
        raise ConfigError(f"unknown device {device!r} for FAISS; known are 'cpu', 'gpu' and None")
    built = hasattr(faiss, "StandardGpuResources")
    there = faiss.get_num_gpus() if built else 0
    if device == "gpu" and not built:
        raise ConfigError(
            "device='gpu' needs a GPU build of FAISS, but the installed one is for the CPU; run "
            "pip uninstall faiss-cpu, then pip install 'ralmspec-plugins[faiss-gpu]'"
        )
    if device == "gpu" and not there:
        raise ConfigError(
            "device='gpu' was requested, and FAISS supports it, but finds no GPU; check "
            "the driver (nvidia-smi), or give device='cpu'"
        )
    return device != "cpu" and there > 0


def _faiss(device: str | None) -> Any:
    name = "faiss-gpu" if device == "gpu" else "faiss"
    return optional("faiss", name, "faiss-gpu" if device == "gpu" else "faiss-cpu")


class FaissFlat(ExactRetriever):
    """Exact search by FAISS's own scan, with the common ranking of exact retrievers.

    On the CPU the vectors are searched in place, also memory-mapped, without an
    index. On a GPU (the extra `faiss-gpu`) all of them are copied there, in
    float32; hits, scores and signature are the same. The device is not saved: a
    loaded knowledge base gets it by `FaissFlat(loaded.corpus, k=loaded.k, device="gpu")`.

    A batch has no advantage in FAISS below about 128,000 / dimension queries, unless
    `lower_blas_threshold` is set: it changes all of FAISS in this process, so
    it is off by default.
    """

    def __init__(
        self,
        corpus: DenseCorpus,
        *,
        k: int = 1,
        device: str | None = "cpu",
        lower_blas_threshold: bool = False,
    ) -> None:
        """Create a retriever of a corpus.

        Args:
            corpus: the passages and their vectors.
            k: the number of passages of a query.
            device: "cpu", "gpu", or None for the GPU if FAISS can use one.
            lower_blas_threshold: use BLAS for batches, in the whole process.

        Raises:
            ConfigError: k or device is invalid, or FAISS has no GPU.
            DeviceMemoryError: the GPU has too little memory for the vectors.
            MissingExtraError: FAISS is not installed.
        """
        super().__init__(corpus, "faiss-flat", k)
        self._faiss = _faiss(device)
        self._gpu: Any = None
        if on_gpu(self._faiss, device):
            self._resources = self._faiss.StandardGpuResources()  # must outlive the index
            self._gpu = within_memory(
                lambda: _copied(self._faiss, self._resources, corpus),
                f"the GPU has no memory left for {corpus.vectors.nbytes:,} bytes of vectors; "
                "torch-flat can keep them there in half precision, or stream them",
            )
        self._one_at_a_time = threading.Lock()  # FAISS's search on a GPU is not thread-safe
        if lower_blas_threshold:
            self._faiss.cvar.distance_compute_blas_threshold = 3 * corpus.dimension

    @classmethod
    def build(
        cls,
        passages: Sequence[Passage],
        encoder: Encoder | None = None,
        *,
        vectors: NDArray[np.float32] | None = None,
        k: int = 1,
        metric: str = Metric.IP,
        device: str | None = "cpu",
        lower_blas_threshold: bool = False,
    ) -> Self:
        """Return a retriever of passages, encoded unless their vectors are given."""
        on_gpu(_faiss(device), device)  # checked before the encoding
        corpus = DenseCorpus.encoded(passages, encoder, metric, vectors)
        return cls(corpus, k=k, device=device, lower_blas_threshold=lower_blas_threshold)

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        """Return the best `width` passages of each query."""
        if not queries:
            return []
        matrix = self.corpus.matrix(queries)
        first = min(self.size, check_k(width) + max(8, width // 4))
        fast, rows = self._nearest(matrix, first)
        return [self._certified(matrix[at], width, rows[at], fast[at]) for at in range(len(matrix))]

    def _certified(self, query: Vectors, width: int, rows: IntArray, fast: Vectors) -> Hits:
        def candidates(count: int) -> tuple[IntArray, Vectors]:
            if count == len(rows):
                return rows, fast
            more_fast, more_rows = self._nearest(query[None], count)
            return more_rows[0], more_fast[0]

        corpus = self.corpus
        best, scores = certified_top_k(
            candidates,
            lambda chosen: corpus.exact(chosen, query),
            corpus.places,
            width,
            corpus.error(query, _ROUNDOFF) if self._gpu else corpus.error(query),
        )
        return corpus.hits(best, scores)

    def _nearest(self, queries: Vectors, count: int) -> tuple[Vectors, IntArray]:
        """Return each query's best rows with their fast scores, best first.  # [queries, count]."""
        by_distance = self.corpus.metric is Metric.L2
        if self._gpu and count <= MOST_ON_GPU:
            with self._one_at_a_time:
                fast, rows = within_memory(
                    lambda: self._gpu.search(queries, count),
                    f"the GPU has no memory left for a search of {len(queries)} queries; "
                    "the retriever can still be used: search fewer at once, or free some",
                )
        elif by_distance:
            fast, rows = self._faiss.knn(queries, self.corpus.vectors, count)
        else:
            inner = self._faiss.METRIC_INNER_PRODUCT
            fast, rows = self._faiss.knn(queries, self.corpus.vectors, count, metric=inner)
        return (-fast if by_distance else fast), rows


def _copied(faiss: Any, resources: Any, corpus: DenseCorpus) -> Any:
    """Return an index of all vectors on the first GPU, in float32.

    FAISS's own kernels do not use TensorFloat-32, and float16 is not set, so the scores are
    sums of float32 products, as `kernel_error` assumes. Those of cuVS, which some builds
    prefer, may round their operands. The vectors are added at once: FAISS would copy those
    added before each time, and need twice the memory.
    """
    config = faiss.GpuIndexFlatConfig()
    config.useFloat16 = False
    config.use_cuvs = False
    kind = faiss.GpuIndexFlatL2 if corpus.metric is Metric.L2 else faiss.GpuIndexFlatIP
    index = kind(resources, corpus.dimension, config)
    index.add(corpus.vectors)
    return index
