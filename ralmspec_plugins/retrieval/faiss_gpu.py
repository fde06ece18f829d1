"""FAISS's exact scan on a GPU, which only Meta's `faiss-gpu` builds have."""

import threading
from typing import Any

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.retrieval.dense import DenseCorpus
from ralmspec_plugins.retrieval.ranking import IntArray, Metric, Vectors, kernel_error
from ralmspec_plugins.retrieval.vectors import norm_of

MOST_ON_GPU = 2048  # FAISS's limit for k on a GPU; beyond it the CPU searches
_ROUNDOFF = 2.0**-22  # of sums in float32 on a GPU, four times that of a CPU for good measure
_ROWS_AT_ONCE = 1 << 18


def on_gpu(faiss: Any, device: str | None) -> bool:
    """Decide where to search, and refuse a GPU that FAISS cannot use.

    Raises:
        ConfigError: an unknown device, FAISS's CPU build, or no GPU.
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
            "device='gpu' was asked for, and FAISS is built for it, but it sees no GPU; check "
            "the driver (nvidia-smi), or give device='cpu'"
        )
    return device != "cpu" and there > 0


class GpuScan:
    """All vectors on the first GPU, in float32. One search at a time: FAISS's is not thread-safe.

    FAISS leaves TensorFloat-32 off, and float16 is not asked for, so the scores are
    sums of float32 products, as `kernel_error` supposes.
    """

    def __init__(self, faiss: Any, corpus: DenseCorpus) -> None:
        """Copy the vectors to the GPU."""
        self._corpus = corpus
        self._lock = threading.Lock()
        self._resources = faiss.StandardGpuResources()
        config = faiss.GpuIndexFlatConfig()
        config.useFloat16 = False
        by_distance = corpus.metric is Metric.L2
        kind = faiss.GpuIndexFlatL2 if by_distance else faiss.GpuIndexFlatIP
        self._index = kind(self._resources, corpus.dimension, config)
        for start in range(0, corpus.size, _ROWS_AT_ONCE):
            self._index.add(corpus.vectors[start : start + _ROWS_AT_ONCE])

    def nearest(self, queries: Vectors, count: int) -> tuple[Vectors, IntArray]:
        """Give each query's best rows with their fast scores, best first.  # [queries, count]."""
        with self._lock:
            fast, rows = self._index.search(queries, count)
        return (-fast if self._corpus.metric is Metric.L2 else fast), rows

    def error(self, query: Vectors) -> float:
        """Bound the scan's error for this query, over all rows."""
        corpus = self._corpus
        norms = corpus.largest_norm, norm_of(query)
        return kernel_error(corpus.metric, corpus.dimension, *norms, _ROUNDOFF)
