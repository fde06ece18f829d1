"""The rows that torch multiplies: kept on the device as far as they fit, the rest streamed."""

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ralmspec_plugins.retrieval.ranking import Vectors

STAGE_BYTES = 1 << 26  # of each staging buffer; a search that streams has four on a GPU
_STREAMED = 2  # searches that stream at once; more would only wait for the same bus
_LOAD_ROWS = 16_384


@dataclass(frozen=True, slots=True)
class Form:
    """How rows lie on the device: their type, and the power of two they are multiplied by."""

    dtype: Any
    exponent: int

    def of(self, rows: Any) -> Any:
        """Bring float32 rows into this form, rounding to nearest."""
        return rows.mul(2.0**self.exponent).to(self.dtype) if self.exponent else rows.to(self.dtype)


class Rows:
    """All rows in one form, as tiles on the device.

    The first `resident` rows stay there. The others come through two staging
    buffers, so that one is filled from the host's memory (which may be a mapped
    file) while the other is copied to the device and multiplied. A search borrows
    its buffers, and waits where two others have them.
    """

    def __init__(self, torch: Any, vectors: Vectors, form: Form, device: Any, limit: int) -> None:
        """Put as many rows on the device as `limit` bytes hold."""
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
            return whole  # where it is, without a copy
        kept = self._torch.empty(whole.shape, dtype=self._form.dtype, device=self._device)
        for start in range(0, self.resident, _LOAD_ROWS):
            kept[start : start + _LOAD_ROWS] = self._form.of(whole[start : start + _LOAD_ROWS])
        if self._device.type == "cuda":
            self._torch.cuda.current_stream(self._device).synchronize()
        return kept

    @property
    def stage_rows(self) -> int:
        """How many rows a staging buffer holds."""
        return max(1, STAGE_BYTES // int(self._row_bytes))

    def tiles(self, ranges: Sequence[range]) -> Iterator[tuple[range, Any]]:
        """Give the rows of each range, in order; a range is resident, or fits a stage.

        A tile's memory may be used again as soon as the next one is asked for.
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
    """Give an array to torch where it is; only read, so it may be a read-only mapping."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(vectors))


class _Stages:
    """Staging buffers where the device is the CPU: nothing can be overlapped."""

    def __init__(
        self, torch: Any, host: Any, form: Form, device: Any, shape: tuple[int, int]
    ) -> None:
        self._host, self._form = host, form
        self._buffers = [torch.empty(shape, dtype=form.dtype, device=device) for _ in range(2)]

    def tiles(self, ranges: Sequence[range]) -> Iterator[tuple[range, Any]]:
        """Give the rows of each range."""
        for number, rows in enumerate(ranges):
            stage = self._buffers[number % 2][: len(rows)]
            stage.copy_(self._form.of(self._host[rows.start : rows.stop]))
            yield rows, stage


class _CudaStages:
    """Two staging buffers in pinned memory, two on the device, and a stream that copies.

    Whoever used them before has read his results, so his work on them is done.
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
        """Give the rows of each range, the next one being copied meanwhile."""
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
