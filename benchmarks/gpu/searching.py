"""What a batch of searches costs on a device, and what many callers at once gain from it."""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any, Final

import numpy as np
import torch

from benchmarks.gpu.rows import Rows, in_turn
from ralmspec_plugins import Verifier
from ralmspec_plugins.errors import ConfigError, DeviceMemoryError, MissingExtraError
from ralmspec_plugins.retrieval import torch_kernel
from ralmspec_plugins.retrieval.dense import DenseCorpus, Measured
from ralmspec_plugins.retrieval.faiss_flat import FaissFlat
from ralmspec_plugins.retrieval.numpy_flat import NumpyFlat
from ralmspec_plugins.retrieval.torch_flat import TorchFlat
from ralmspec_plugins.types import Hits, Passage, Query

K: Final = 10
_BLOCK: Final = 1 << 16
_HALF_BYTES: Final = 2
_MOST_STREAMED: Final = 1_000_000  # passages; each search copies most of them
_CHECKED: Final = 4  # queries that are searched by numpy, too
_EACH: Final = 8  # searches of each caller, one after the other


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSizes:
    """The sizes of a part about searches."""

    passages: int
    dimension: int = 768
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    callers: tuple[int, ...] = (1, 4, 16, 64)
    tiles: tuple[int, ...] = (22, 24, 26, 28)  # scores of a tile, as powers of two
    repetitions: int = 7


@dataclass(frozen=True, slots=True)
class Way:
    """A backend with its settings."""

    name: str
    backend: type[Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    share: float | None = None  # of the vectors that stay on the device; None: as many as fit

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is measured: where vectors are streamed, many single searches take too long."""
        return ("b(n)", "callers") if self.share is None else ("b(n)",)

    def opened(self, corpus: DenseCorpus) -> Any:
        """Return the retriever."""
        more = {}
        if self.share is not None:
            more["device_bytes"] = int(self.share * corpus.size * corpus.dimension * _HALF_BYTES)
        return self.backend(corpus, k=K, **self.settings, **more)


def ways(device: torch.device, passages: int) -> list[Way]:
    """Return all ways to search so many passages on a device, the one in half precision first."""
    place = {"device": str(device)}
    half = {**place, "precision": "half"}
    faiss = {"device": "gpu" if device.type == "cuda" else "cpu"}
    streamed = Way("torch-flat, half, three quarters streamed", TorchFlat, half, share=0.25)
    return [
        Way("torch-flat, half", TorchFlat, half),
        Way("torch-flat, float32", TorchFlat, place),
        Way("faiss-flat", FaissFlat, faiss),
        *([streamed] if passages <= _MOST_STREAMED else []),
    ]


def drawn_corpus(size: int, dimension: int, device: torch.device) -> DenseCorpus:
    """Return random vectors of length 1, drawn on the device, under numbered passages.

    Their largest norm is measured there; a fingerprint of tens of gigabytes is left out.
    """
    vectors = np.empty((size, dimension), dtype=np.float32)
    largest = 0.0
    for start, rows in drawn_rows(size, dimension, device, seed=0):
        vectors[start : start + len(rows)] = rows.cpu().numpy()
        largest = max(largest, float(rows.double().norm(dim=1).max()))
    gc.disable()  # so many new objects would be searched for garbage again and again
    try:
        passages = [Passage(f"p{row:08d}", "") for row in range(size)]
        measured = Measured(f"drawn {size}x{dimension}", largest * (1 + 1e-9))
        return DenseCorpus(passages, vectors, None, "ip", own=True, measured=measured)
    finally:
        gc.freeze()
        gc.enable()


def drawn_rows(
    size: int, dimension: int, device: torch.device, seed: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield blocks of random vectors of length 1, with the number of their first."""
    dice = torch.Generator(device).manual_seed(seed)
    for start in range(0, size, _BLOCK):
        shape = min(_BLOCK, size - start), dimension
        rows = torch.randn(shape, generator=dice, device=device)
        yield start, rows / rows.norm(dim=1, keepdim=True)


@dataclass(frozen=True, slots=True)
class Task:
    """One corpus, what is asked of it, and what numpy finds for the first queries."""

    part: str
    sizes: SearchSizes
    corpus: DenseCorpus
    asked: Sequence[Query]
    truth: Sequence[Hits]

    @classmethod
    def drawn(cls, part: str, sizes: SearchSizes, device: torch.device) -> "Task":
        """Draw a corpus and its queries."""
        corpus = drawn_corpus(sizes.passages, sizes.dimension, device)
        count = max(*sizes.batches, sizes.callers[-1] * _EACH)
        blocks = drawn_rows(count, sizes.dimension, device, seed=1)
        vectors = np.concatenate([rows.cpu().numpy() for _, rows in blocks])
        asked = [Query(str(number), vector) for number, vector in enumerate(vectors)]
        truth = NumpyFlat(corpus, k=K).search(asked[:_CHECKED])
        return cls(part, sizes, corpus, asked, truth)


def search(rows: Rows, part: str, sizes: SearchSizes) -> None:
    """Measure all ways to search one corpus, which is drawn only if something is missing."""
    known = ways(rows.device, sizes.passages)
    names = [name for way in known for name in _names(part, way)] + _tile_names(part, sizes)
    if rows.complete(names):
        return
    task = Task.drawn(part, sizes, rows.device)
    for way in known:
        _measure_way(rows, task, way)
        _free()
    _measure_tiles(rows, task, known[0])
    _free()


def _names(part: str, way: Way) -> list[str]:
    return [f"{part}: {kind}, {way.name}" for kind in way.kinds]


def _tile_names(part: str, sizes: SearchSizes) -> list[str]:
    return [f"{part}: tiles of 2^{power}" for power in sizes.tiles]


def _free() -> None:
    """Free the device's memory of a retriever that is no longer referred to."""
    gc.collect()
    torch.cuda.empty_cache()


def _measure_way(rows: Rows, task: Task, way: Way) -> None:
    names = _names(task.part, way)
    if rows.complete(names):
        return
    retriever = _opened(way, task.corpus)
    for name, measure in zip(names, (batches, callers), strict=False):
        rows.of(name, partial(_told, retriever, measure, task, rows.device))


def _measure_tiles(rows: Rows, task: Task, way: Way) -> None:
    names = _tile_names(task.part, task.sizes)
    if rows.complete(names):
        return
    retriever = _opened(way, task.corpus)
    for name, power in zip(names, task.sizes.tiles, strict=True):
        rows.of(name, partial(_tiled, retriever, power, task, rows.device))


def _opened(way: Way, corpus: DenseCorpus) -> Any:
    """Return a retriever, or the reason why there is none."""
    try:
        return way.opened(corpus)
    except (ConfigError, DeviceMemoryError, MissingExtraError) as missing:
        return str(missing)


def _told(
    retriever: Any, measure: Callable[..., dict[str, Any]], task: Task, device: torch.device
) -> dict[str, Any]:
    """Return a row: what was measured with equal hits, or why nothing was."""
    if isinstance(retriever, str):
        return {"left_out": retriever}
    if measure is callers and _streams(retriever):
        return {"left_out": "vectors are streamed: so many single searches would take too long"}
    found = retriever.search(task.asked[:_CHECKED])
    assert found == task.truth, f"{retriever.backend} finds something else than numpy"
    about = {"passages": task.sizes.passages, "dimension": task.sizes.dimension, "equal": True}
    return {**about, **measure(retriever, task, device)}


def _streams(retriever: Any) -> bool:
    """Return whether vectors did not fit on the device, so that each search copies them."""
    kernel = getattr(retriever, "_kernel", None)
    return kernel is not None and kernel.rows.resident < retriever.size


def batches(retriever: Any, task: Task, device: torch.device) -> dict[str, Any]:
    """Time whole searches of each batch size, ranking in float64 and hits included."""
    calls = {str(n): partial(retriever.search, task.asked[:n]) for n in task.sizes.batches}
    times = in_turn(calls, task.sizes.repetitions, device)
    return {"ms": times, "median_ms": {n: median(took) for n, took in times.items()}}


def callers(retriever: Any, task: Task, device: torch.device) -> dict[str, Any]:
    """Time callers in threads, each asking one query after the other, alone and merged."""
    result: dict[str, Any] = {"alone": {}, "merged": {}, "mean_batch": {}}
    for count in task.sizes.callers:
        queries = task.asked[: count * _EACH]
        with Verifier(retriever) as verifier:
            both = {"alone": retriever, "merged": verifier}
            calls = {name: partial(_in_threads, one, queries, count) for name, one in both.items()}
            assert calls["alone"]() == calls["merged"]()
            times = in_turn(calls, task.sizes.repetitions, device)
            result["mean_batch"][str(count)] = round(verifier.stats.mean_batch or 0.0, 2)
        for name, took in times.items():
            result[name][str(count)] = [round(1000 * len(queries) / ms, 1) for ms in took]
    most = str(task.sizes.callers[-1])
    first = str(task.sizes.callers[0])
    gain = median(result["merged"][most]) / median(result["alone"][first])
    return {"per_second": result, "times_single_searches": round(gain, 2)}


def _in_threads(retriever: Any, queries: Sequence[Query], count: int) -> list[list[Hits]]:
    def ask(caller: int) -> list[Hits]:
        return [retriever.search([query])[0] for query in queries[caller::count]]

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(ask, range(count)))


def _tiled(retriever: Any, power: int, task: Task, device: torch.device) -> dict[str, Any]:
    """Time batches with tiles of another size than the usual one."""
    usual = dict(torch_kernel._TILE_SCORES)
    torch_kernel._TILE_SCORES[device.type] = 1 << power
    try:
        return _told(retriever, batches, task, device)
    finally:
        torch_kernel._TILE_SCORES.update(usual)
