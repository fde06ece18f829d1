"""Exact dense search with torch, on a GPU or the CPU; float64 scores decide."""

from collections.abc import Sequence
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.retrieval.dense import DenseCorpus, ExactRetriever
from ralmspec_plugins.retrieval.device_memory import within_memory
from ralmspec_plugins.retrieval.encoders import Encoder
from ralmspec_plugins.retrieval.optional import optional
from ralmspec_plugins.retrieval.ranking import IntArray, Metric, Vectors, nominees
from ralmspec_plugins.retrieval.torch_kernel import TorchKernel
from ralmspec_plugins.types import Passage

Precision = Literal["float32", "half"]

_SHARE = 0.8  # of a GPU's free memory; the rest is for tiles of scores, and the model's caches
_MANY = 64  # number of candidates from which a float32 filter saves time


class TorchFlat(ExactRetriever):
    """Scores every passage: the hits are the true top k, bit for bit, on any device.

    The vectors are on the device in float32 or half precision; vectors that do not
    fit are streamed from the host's memory at each search. Hits, scores
    and signature equal those of the other exact backends, for any device and
    precision, which are not saved. A loaded knowledge base
    runs on the GPU if there is one; for other settings use
    `TorchFlat(loaded.corpus, k=loaded.k, device=..., precision=...)`.

    Half precision halves memory and traffic on a GPU. On the CPU it only saves
    memory: tiles must be converted again, so it is slower than float32.
    """

    def __init__(
        self,
        corpus: DenseCorpus,
        *,
        k: int = 1,
        device: str | None = None,
        precision: Precision = "float32",
        device_bytes: int | None = None,
    ) -> None:
        """Copy a corpus, whose vectors may be memory-mapped, to a device.

        Args:
            corpus: the passages and their vectors.
            k: the number of passages of a query.
            device: "cpu", "cuda" or "cuda:<number>"; None uses a GPU if there is one.
            precision: of the vectors on the device.
            device_bytes: the maximum size of the resident vectors; None means all on the CPU (in
                float32 without a copy), and four fifths of the free memory on a GPU.

        Raises:
            ConfigError: k, device, precision or device_bytes is invalid.
            DeviceMemoryError: the device has too little memory for the vectors.
            MissingExtraError: torch is not installed.
        """
        super().__init__(corpus, "torch-flat", k)
        torch = _torch()
        place = _device(torch, device)
        _check(precision, device_bytes)
        if device_bytes is None:
            device_bytes = corpus.vectors.nbytes
            if place.type == "cuda":
                device_bytes = int(_SHARE * _free_bytes(torch, place))
        self.device = str(place)
        self.precision: Precision = precision
        self._kernel = within_memory(
            lambda: TorchKernel(torch, corpus, place, half=precision == "half", limit=device_bytes),
            f"{place} has no memory left for vectors of {device_bytes:,} bytes; give fewer "
            "device_bytes, so that the rest is streamed, or precision='half'",
        )

    @classmethod
    def build(
        cls,
        passages: Sequence[Passage],
        encoder: Encoder | None = None,
        *,
        vectors: NDArray[np.float32] | None = None,
        k: int = 1,
        metric: str = Metric.IP,
        device: str | None = None,
        precision: Precision = "float32",
        device_bytes: int | None = None,
    ) -> Self:
        """Return a retriever of passages, encoded unless their vectors are given."""
        _device(_torch(), device)  # checked before the encoding
        _check(precision, device_bytes)
        corpus = DenseCorpus.encoded(passages, encoder, metric, vectors)
        return cls(corpus, k=k, device=device, precision=precision, device_bytes=device_bytes)

    def _nominate(self, queries: Vectors, k: int) -> list[IntArray]:
        rows = self._kernel.nominate(queries, k)
        return [narrowed(self.corpus, *pair, k) for pair in zip(rows, queries, strict=True)]


def narrowed(corpus: DenseCorpus, rows: IntArray, query: Vectors, k: int) -> IntArray:
    """Return the candidates that a float32 product does not exclude.

    An imprecise kernel can return hundreds of candidates for one position, and scoring them in
    float64 would cost more than the scan.
    """
    if len(rows) <= k + _MANY:
        return rows
    near = corpus.vectors[rows]
    fast = near @ query
    if corpus.squares is not None:
        fast = 2 * fast - corpus.squares[rows]
    kept: IntArray = rows[nominees(fast, k, corpus.error(query))]
    return kept


def _torch() -> Any:
    return optional("torch", "hf", "torch")


def _device(torch: Any, name: str | None) -> Any:
    """Return an available device."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"no device {name!r} ({error}); give 'cpu', 'cuda', 'cuda:0' or None"
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"torch-flat runs on 'cpu' and 'cuda', got the device {name!r}")
    if device.type == "cuda":
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= there:
            raise ConfigError(
                f"the device {name!r} was requested, but torch {torch.__version__} finds {there} "
                "GPUs; give device='cpu', or install a CUDA build of torch and its driver"
            )
    return device


def _free_bytes(torch: Any, device: Any) -> int:
    """Return the memory that torch can still take: free memory, and what it keeps unused."""
    free, _ = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + kept)


def _check(precision: str, device_bytes: int | None) -> None:
    """Check the settings of the copy."""
    known = get_args(Precision)
    if precision not in known:
        raise ConfigError(f"unknown precision {precision!r}; known are {', '.join(known)}")
    if device_bytes is not None and (isinstance(device_bytes, bool) or device_bytes < 0):
        raise ConfigError(f"device_bytes must be at least 0, or None, got {device_bytes!r}")
