"""A kernel in torch that selects candidates with one product and one comparison per batch.

The error of its scores has three parts:

1. *Copies.* In half precision a row x is multiplied by a power of two and
   rounded to x'; a query q to q'. The distances |x - x'| and |q - q'| are
   measured, in float64, not estimated: then |x.q - x'.q'| is at most
   |x - x'| |q| + |x'| |q - q'|, which includes subnormal numbers.
   The power of two puts the largest entry below 2^15, so nothing overflows.
2. *Operands.* If torch or cuBLAS may round float32 operands (TF32, bfloat16),
   each loses a relative 2^-10 or 2^-8 at most; the settings are read at each search.
3. *Sums.* `kernel_error`, with u = 2^-24 on the CPU, 2^-22 on a GPU's float32
   units, and 2^-21 on its tensor cores: these truncate each product and partial
   sum to 24 bits or more of the largest of a block, which costs at most 2^-23 of
   it per term, twice.

Products of halves are summed and returned in float32: on the CPU a tile is
converted first; on a GPU `torch.mm(..., out_dtype=torch.float32)` is used, and
with an older torch, or where torch is set to sum halves in half precision, the tile
is converted there, too.
"""

import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ralmspec_plugins.retrieval.dense import DenseCorpus, norm_of
from ralmspec_plugins.retrieval.device_memory import within_memory
from ralmspec_plugins.retrieval.numpy_flat import cut
from ralmspec_plugins.retrieval.ranking import (
    IntArray,
    Metric,
    Shortlist,
    Vectors,
    deal,
    kernel_error,
)

# The rows that torch multiplies: resident on the device as far as they fit, the rest streamed.


STAGE_BYTES = 1 << 26  # of each staging buffer; a search that streams has four on a GPU
_STREAMED = 2  # searches that stream in parallel; more would only compete for the same bus
_LOAD_ROWS = 16_384


@dataclass(frozen=True, slots=True)
class Form:
    """The form of rows on the device: their type, and the power of two of their scale."""

    dtype: Any
    exponent: int

    def of(self, rows: Any) -> Any:
        """Return float32 rows in this form, rounded to nearest."""
        return rows.mul(2.0**self.exponent).to(self.dtype) if self.exponent else rows.to(self.dtype)


class DeviceRows:
    """All rows in one form, as tiles on the device.

    The first `resident` rows are kept there. The others are streamed with two staging
    buffers, so that one is filled from the host's memory (which may be a mapped
    file) while the other is copied to the device and multiplied. A search acquires
    its buffers, and waits if two others use them.
    """

    def __init__(self, torch: Any, vectors: Vectors, form: Form, device: Any, limit: int) -> None:
        """Copy as many rows to the device as fit into `limit` bytes."""
        self._torch, self._form, self._device = torch, form, device
        self._host = _shared(torch, vectors)
        self._row_bytes = self._host.shape[1] * form.dtype.itemsize
        self.resident = min(len(vectors), limit // self._row_bytes)
        self._kept = self._load()
        self._room = threading.Semaphore(_STREAMED)
        self._free: list[Any] = []

    def _load(self) -> Any:
        whole = self._host[: self.resident]
        if self._device.type == "cpu" and self._form.dtype is self._torch.float32:
            return whole  # without a copy
        kept = self._torch.empty(whole.shape, dtype=self._form.dtype, device=self._device)
        for start in range(0, self.resident, _LOAD_ROWS):
            rows = whole[start : start + _LOAD_ROWS].to(self._device)
            kept[start : start + _LOAD_ROWS] = self._form.of(rows)
        if self._device.type == "cuda":
            self._torch.cuda.current_stream(self._device).synchronize()
        return kept

    @property
    def stage_rows(self) -> int:
        """The number of rows of a staging buffer."""
        return max(1, STAGE_BYTES // int(self._row_bytes))

    def tiles(self, ranges: Sequence[range]) -> Iterator[tuple[range, Any]]:
        """Yield the rows of each range, in order; a range is resident, or fits a stage.

        A tile's memory is reused for the next one.
        """
        here = [rows for rows in ranges if rows.stop <= self.resident]
        for rows in here:
            yield rows, self._kept[rows.start : rows.stop]
        elsewhere = ranges[len(here) :]
        if elsewhere:
            with self._borrowed() as stages:
                yield from stages.tiles(elsewhere)

    @contextmanager
    def _borrowed(self) -> Iterator[Any]:
        with self._room:
            try:
                stages = self._free.pop()
            except IndexError:
                kind = _CudaStages if self._device.type == "cuda" else _Stages
                shape = min(self.stage_rows, len(self._host)), self._host.shape[1]
                stages = kind(self._torch, self._host, self._form, self._device, shape)
            try:
                yield stages
            finally:
                self._free.append(stages)


def _shared(torch: Any, vectors: Vectors) -> Any:
    """Return a tensor of an array without a copy; it is only read, so it may be read-only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(vectors))


class _Stages:
    """Staging buffers for the CPU, without overlap."""

    def __init__(
        self, torch: Any, host: Any, form: Form, device: Any, shape: tuple[int, int]
    ) -> None:
        self._host, self._form = host, form
        self._buffers = [torch.empty(shape, dtype=form.dtype, device=device) for _ in range(2)]

    def tiles(self, ranges: Sequence[range]) -> Iterator[tuple[range, Any]]:
        """Yield the rows of each range."""
        for number, rows in enumerate(ranges):
            stage = self._buffers[number % 2][: len(rows)]
            stage.copy_(self._form.of(self._host[rows.start : rows.stop]))
            yield rows, stage


class _CudaStages:
    """Two staging buffers in pinned memory, two on the device, and a stream that copies.

    The previous user has read its results, so its work on them is complete.
    """

    def __init__(
        self, torch: Any, host: Any, form: Form, device: Any, shape: tuple[int, int]
    ) -> None:
        self._torch, self._host, self._form, self._device = torch, host, form, device
        self._copying = torch.cuda.Stream(device)
        self._pinned = [
            torch.empty(shape, dtype=form.dtype, device="cpu", pin_memory=True) for _ in range(2)
        ]
        self._there = [torch.empty(shape, dtype=form.dtype, device=device) for _ in range(2)]
        self._copied = [torch.cuda.Event() for _ in range(2)]
        self._used = [torch.cuda.Event() for _ in range(2)]

    def tiles(self, ranges: Sequence[range]) -> Iterator[tuple[range, Any]]:
        """Yield the rows of each range, while the next one is copied."""
        computing = self._torch.cuda.current_stream(self._device)
        for slot in range(2):
            self._used[slot].record(computing)
        for number, rows in enumerate(ranges):
            if number == 0:
                self._send(0, rows)
            if number + 1 < len(ranges):
                self._send((number + 1) % 2, ranges[number + 1])
            slot = number % 2
            computing.wait_event(self._copied[slot])
            yield rows, self._there[slot][: len(rows)]
            self._used[slot].record(computing)

    def _send(self, slot: int, rows: range) -> None:
        """Fill a pinned buffer once its last copy is done, and start copying it."""
        self._copied[slot].synchronize()
        pinned = self._pinned[slot][: len(rows)]
        pinned.copy_(self._form.of(self._host[rows.start : rows.stop]))
        with self._torch.cuda.stream(self._copying):
            self._copying.wait_event(self._used[slot])
            self._there[slot][: len(rows)].copy_(pinned, non_blocking=True)
            self._copied[slot].record(self._copying)


_FIRST_ROWS = 1024  # sets the bar; all later rows are only compared with it
_SECOND_ROWS = 16_384  # raises it
_TILE_SCORES = {"cpu": 1 << 20, "cuda": 1 << 24}  # 4 and 64 MB
_WIDENED_ROWS = 2048  # on the CPU, where a converted tile of halves should stay in the cache
_ROWS_AT_ONCE = 16_384
_HALF_TOP = 15  # halves end at 65504; scaled entries stay below 2^15
_LARGEST_EXPONENT = 100
_LARGEST_ERROR = 2.0**120  # far above any score, and still a float32
_OPERAND = {"tf32": 2.0**-10, "high": 2.0**-10, "bf16": 2.0**-8, "medium": 2.0**-8}
# Variables by which cuBLAS rounds operands whatever torch is set to.
_OVERRIDES = ("NVIDIA_TF32_OVERRIDE", "CUBLAS_EMULATE_SINGLE_PRECISION")


@dataclass(frozen=True, slots=True)
class Copy:
    """The error of the rows on the device, in their own scale."""

    form: Form
    longest: float  # |x|, of the longest row
    error: float  # |x - x'|, of the worst row


@dataclass(frozen=True, slots=True)
class QueryColumns:
    """A batch of queries in the form of the kernel."""

    columns: Any  # [dim, queries], of contiguous queries: on CPUs up to four times as fast
    factors: Any  # [queries]; scale squared norms to the products
    errors: list[float]  # bounds, in the scale of the products


class TorchKernel:
    """Selects the rows that may belong to the true top k. Thread-safe.

    On CUDA searches have a stream of their own, so that they run in parallel with a model's
    work, and wait for that stream only. All threads share it: one scan uses the whole device, and
    torch keeps a workspace of up to 32 MiB for each pair of a thread's cuBLAS handle and a stream,
    and memory that was freed for each stream.
    """

    def __init__(
        self, torch: Any, corpus: DenseCorpus, device: Any, *, half: bool, limit: int
    ) -> None:
        """Copy as many rows to the device as fit into `limit` bytes."""
        self._torch, self._corpus, self._device = torch, corpus, device
        self._cuda = device.type == "cuda"
        self._mixed = half and self._cuda and _mixed_products(torch, device)
        self._copy = _half_copy(torch, corpus, device) if half else _plain_copy(torch, corpus)
        form = self._copy.form
        self.rows = DeviceRows(torch, corpus.vectors, form, device, limit)
        self._squares: Any = None
        if corpus.metric is Metric.L2:
            squares = _scaled_squares(corpus, form.exponent)
            self._squares = torch.from_numpy(squares).to(device)
        self._widen = half and not self._mixed
        self._stream = torch.cuda.Stream(device) if self._cuda else None

    def nominate(self, queries: Vectors, k: int) -> list[IntArray]:
        """Return, for each query, all rows that may belong to its true top k.

        Raises:
            DeviceMemoryError: the device has too little memory for a tile of scores.
        """
        return within_memory(
            lambda: self._nominated(queries, k),
            f"{self._device} has no memory left for a search of {len(queries)} queries; "
            "the retriever can still be used: give it less with device_bytes=..., or free some",
        )

    def _nominated(self, queries: Vectors, k: int) -> list[IntArray]:
        with self._prepared():
            asked = self._asked(queries)
            shortlists = [Shortlist(k, error) for error in asked.errors]
            for rows, tile in self.rows.tiles(self._ranges(len(queries))):
                self._share(rows, self._scores(rows, tile, asked), shortlists)
        return [shortlist.rows for shortlist in shortlists]

    @contextmanager
    def _prepared(self) -> Iterator[None]:
        """Disable settings of the caller's thread, and use the stream of searches."""
        torch = self._torch
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(torch.autocast(self._device.type, enabled=False))
            if self._stream is not None:
                stack.enter_context(torch.cuda.stream(self._stream))
            yield

    def _ranges(self, queries: int) -> list[range]:
        """Return the tiles of all rows, the first ones short, none across the end of residents."""
        size, kept = self._corpus.size, self.rows.resident
        rows = max(1, _TILE_SCORES[self._device.type] // queries)
        if self._widen and not self._cuda:
            rows = min(rows, _WIDENED_ROWS)
        bounds = sorted({0, min(_FIRST_ROWS, size), min(_SECOND_ROWS, size), kept, size})
        ranges: list[range] = []
        for start, stop in pairwise(bounds):
            most = rows if stop <= kept else min(rows, self.rows.stage_rows)
            ranges += [range(part.start, part.stop) for part in cut(range(start, stop), most)]
        return ranges

    def _scores(self, rows: range, tile: Any, asked: QueryColumns) -> Any:
        """Return the scores of a tile in float32; for L2 as 2 x.q - |x|^2, with the same order."""
        torch = self._torch
        if asked.columns.dtype is torch.float16:
            fast = torch.mm(tile, asked.columns, out_dtype=torch.float32)
        else:
            fast = _product(torch, tile.float(), asked.columns)  # a copy only of halves
        if self._squares is not None:
            squares = self._squares[rows.start : rows.stop]
            fast.addr_(squares, asked.factors, beta=2, alpha=-1)
        return fast  # [rows, queries]

    def _share(self, rows: range, fast: Any, shortlists: list[Shortlist]) -> None:
        """Add the rows of a tile that pass a query's bar to its shortlist."""
        torch = self._torch
        bars = torch.tensor([float(s.bar) for s in shortlists], dtype=torch.float32, device="cpu")
        passed = (fast >= bars.to(self._device)).reshape(-1).nonzero()[:, 0]
        if not len(passed):
            return
        scores = fast.reshape(-1)[passed].cpu().numpy()
        deal(passed.cpu().numpy() + rows.start * len(shortlists), scores, shortlists)

    def _asked(self, queries: Vectors) -> QueryColumns:
        """Return queries in the form of the rows, with an upper bound of each one's error."""
        torch, copy, metric = self._torch, self._copy, self._corpus.metric
        mixed = self._mixed and not _sums_in_half(torch)
        exponents = np.zeros(len(queries), dtype=np.int64)
        if copy.form.dtype is torch.float16:
            exponents = np.array([_exponent(float(np.abs(query).max())) for query in queries])
            if metric is Metric.L2:  # so that no squared norm is scaled up
                exponents = np.minimum(exponents, copy.form.exponent)
        scaled = np.ldexp(queries.astype(np.float64), exponents[:, None])
        columns = torch.from_numpy(scaled).to(torch.float16 if mixed else torch.float32)
        rounded = columns.double().numpy()
        errors = [
            self._error(norm_of(query), norm_of(query - image), int(exponent), mixed=mixed)
            for query, image, exponent in zip(scaled, rounded, exponents, strict=True)
        ]
        factors = np.ones(len(queries), dtype=np.float32)
        if metric is Metric.L2:
            factors = np.ldexp(factors, exponents - copy.form.exponent)
        return QueryColumns(
            columns.to(self._device).T,
            torch.from_numpy(factors).to(self._device),
            errors,
        )

    def _error(self, query_norm: float, query_error: float, exponent: int, *, mixed: bool) -> float:
        """Return the error bound for one query, in the scale of the products."""
        copy, corpus = self._copy, self._corpus
        rows, query = copy.longest + copy.error, query_norm + query_error
        operand = 0.0 if mixed else _operand_roundoff(self._torch, self._device.type)
        products = copy.error * query_norm + rows * query_error
        products += ((1 + operand) ** 2 - 1) * rows * query
        products *= (2 if corpus.metric is Metric.L2 else 1) * (1 + 1e-9)
        roundoff = 2.0**-24
        if self._cuda:
            roundoff = 2.0**-21 if mixed or operand else 2.0**-22
        # In the true scale: for L2, |q|^2 is not part of the products, but of the true scores.
        up = copy.form.exponent
        true = float(np.ldexp(rows, -up)), float(np.ldexp(query, -exponent))
        sums = kernel_error(corpus.metric, corpus.dimension, *true, roundoff)
        flushed = corpus.dimension * 2.0**-120
        return min(products + float(np.ldexp(sums, up + exponent)) + flushed, _LARGEST_ERROR)


def _product(torch: Any, tile: Any, columns: Any) -> Any:
    """Return the product in float32; one column as two, which is three times as fast on a CPU."""
    if columns.shape[1] > 1 or tile.device.type != "cpu":
        return torch.mm(tile, columns)
    return torch.mm(tile, columns.expand(-1, 2).T.contiguous().T)[:, :1].contiguous()


def _plain_copy(torch: Any, corpus: DenseCorpus) -> Copy:
    return Copy(Form(torch.float32, 0), corpus.largest_norm, 0.0)


def _half_copy(torch: Any, corpus: DenseCorpus, device: Any) -> Copy:
    """Return the copy's power of two, and the measured rounding errors of half precision.

    The device measures: in float64, which is exact but for the sum of a row's squares.
    """
    vectors = corpus.vectors

    def blocks() -> Iterator[Any]:
        for at in range(0, len(vectors), _ROWS_AT_ONCE):
            yield _shared(torch, vectors[at : at + _ROWS_AT_ONCE]).to(device)

    form = Form(torch.float16, _exponent(max(float(rows.abs().max()) for rows in blocks())))
    worst = 0.0
    for rows in blocks():
        lost = form.of(rows).double().sub_(rows.double().mul_(2.0**form.exponent))
        worst = max(worst, float(lost.square_().sum(dim=1).max()))
    longest = float(np.ldexp(corpus.largest_norm, form.exponent))
    return Copy(form, longest * (1 + 1e-9), float(np.sqrt(worst)) * (1 + 1e-9))


def _exponent(largest: float) -> int:
    """Return the power of two that brings this number just below 2^15.

    >>> _exponent(1.0), _exponent(0.0)
    (14, 0)
    """
    if largest == 0:
        return 0
    return min(_LARGEST_EXPONENT, _HALF_TOP - int(np.frexp(largest)[1]))


def _scaled_squares(corpus: DenseCorpus, exponent: int) -> Vectors:
    """Return the squared norm of each row, in the scale of the rows.  # [rows]."""
    if not exponent and corpus.squares is not None:
        return np.array(corpus.squares)
    squares = np.empty(corpus.size, dtype=np.float32)
    for at in range(0, corpus.size, _ROWS_AT_ONCE):
        wide = np.ldexp(corpus.vectors[at : at + _ROWS_AT_ONCE].astype(np.float64), exponent)
        squares[at : at + _ROWS_AT_ONCE] = np.einsum("ij,ij->i", wide, wide)
    return squares


def _sums_in_half(torch: Any) -> bool:
    """Return whether torch is set to sum products of halves in half precision."""
    return bool(getattr(torch.backends.cuda.matmul, "allow_fp16_accumulation", False))


def _mixed_products(torch: Any, device: Any) -> bool:
    """Return whether torch multiplies halves to float32 (`out_dtype`, torch 2.8 or later)."""
    halves = torch.ones((8, 8), dtype=torch.float16, device=device)
    try:
        torch.mm(halves, halves, out_dtype=torch.float32)
    except (TypeError, RuntimeError, NotImplementedError):
        return False
    return True


def _operand_roundoff(torch: Any, device: str) -> float:
    """Return the relative rounding of float32 operands by the current settings.

    Newer releases of torch have a setting per library and a general one; the
    older common setting raises an error if the newer ones were used.
    """
    library = torch.backends.cuda if device == "cuda" else torch.backends.mkldnn
    places = (getattr(library, "matmul", None), library, torch.backends)
    settings = [getattr(place, "fp32_precision", None) for place in places]
    try:
        settings.append(torch.get_float32_matmul_precision())
    except RuntimeError:
        if settings[0] is None:
            settings.append("medium")
    if device == "cuda" and any(os.environ.get(name, "0") not in ("", "0") for name in _OVERRIDES):
        settings.append("tf32")
    return max(_OPERAND.get(str(setting), 0.0) for setting in settings)
