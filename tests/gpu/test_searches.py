"""Searches on a device: NumpyFlat's bits for many callers, and a clear error without memory."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ralmspec_plugins import Verifier  # noqa: E402
from ralmspec_plugins.errors import DeviceMemoryError, InputError  # noqa: E402
from ralmspec_plugins.retrieval import torch_kernel  # noqa: E402
from ralmspec_plugins.retrieval.dense import DenseCorpus  # noqa: E402
from ralmspec_plugins.retrieval.device_memory import within_memory  # noqa: E402
from ralmspec_plugins.retrieval.faiss_flat import FaissFlat  # noqa: E402
from ralmspec_plugins.retrieval.numpy_flat import NumpyFlat  # noqa: E402
from ralmspec_plugins.retrieval.torch_flat import TorchFlat  # noqa: E402
from ralmspec_plugins.types import Hits, Passage, Query  # noqa: E402

CALLERS = 64
SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {},
    "half": {"precision": "half"},
    "half, streamed": {"precision": "half", "device_bytes": 10_000},
}


def corpus_of(size: int, dimension: int, metric: str = "ip") -> DenseCorpus:
    """Random vectors, a tenth of which stand there twice; ids are in another order."""
    dice = np.random.default_rng(0)
    vectors = dice.standard_normal((size, dimension), dtype=np.float32)
    vectors[: size // 10] = vectors[-(size // 10) :]
    passages = [Passage(f"p{name:06d}", "") for name in dice.permutation(size)]
    return DenseCorpus(passages, vectors, None, metric)


def queries_of(count: int, dimension: int) -> list[Query]:
    rows = np.random.default_rng(1).standard_normal((count, dimension), dtype=np.float32)
    return [Query(str(number), row) for number, row in enumerate(rows)]


def opened(backend: str, corpus: DenseCorpus, device: str) -> Any:
    if backend != "faiss":
        return TorchFlat(corpus, k=5, device=device, **SETTINGS[backend])
    faiss = pytest.importorskip("faiss")
    there = hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus()
    if device == "cuda" and not there:
        pytest.skip("no GPU build of FAISS, or no GPU")
    return FaissFlat(corpus, k=5, device="cpu" if device == "cpu" else "gpu")


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("backend", [*SETTINGS, "faiss"])
def test_64_callers_at_once_find_what_numpy_finds(device: str, backend: str, metric: str) -> None:
    """Merged by the verifier in whatever batches they form."""
    corpus, queries = corpus_of(2000, 32, metric), queries_of(4 * CALLERS, 32)
    expected = NumpyFlat(corpus, k=5).search(queries)
    together = Barrier(CALLERS)

    def ask(caller: int) -> list[Hits]:
        together.wait()
        return [verifier.search([query])[0] for query in queries[caller::CALLERS]]

    with (
        Verifier(opened(backend, corpus, device)) as verifier,
        ThreadPoolExecutor(CALLERS) as pool,
    ):
        found = list(pool.map(ask, range(CALLERS)))

    assert len(found) == CALLERS
    for caller, hits in enumerate(found):
        assert expected[caller::CALLERS] == hits
        assert all(len(one) == 5 for one in hits)


@pytest.mark.parametrize("backend", [*SETTINGS, "faiss"])
def test_nan_is_refused(device: str, backend: str) -> None:
    retriever = opened(backend, corpus_of(50, 8), device)
    with pytest.raises(InputError, match="NaN"):
        retriever.search([Query("q", np.full(8, np.nan, dtype=np.float32))])


@pytest.mark.parametrize("precision", ["float32", "half"])
def test_torchs_default_device_is_not_the_searchs(device: str, precision: Any) -> None:
    """No tensor is made where the caller's thread would have it made."""
    corpus, queries = corpus_of(300, 8, "l2"), queries_of(3, 8)
    expected = NumpyFlat(corpus, k=4).search(queries)
    with torch.device("meta"):  # whose tensors have no data
        flat = TorchFlat(corpus, k=4, device=device, precision=precision, device_bytes=3000)

        assert expected == flat.search(queries)


@pytest.mark.parametrize("precision", ["float32", "half"])
def test_callers_lose_nothing_when_the_memory_is_full(
    device: str, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of a batch that is too much says so, and the verifier searches its halves."""
    corpus, queries = corpus_of(500, 16), queries_of(24, 16)
    expected = NumpyFlat(corpus, k=5).search(queries)
    flat = TorchFlat(corpus, k=5, device=device, precision=precision)
    scores = flat._kernel._scores

    def limited(rows: range, tile: Any, asked: Any) -> Any:
        if asked.columns.shape[1] > 6:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 MiB.\nMore.")
        return scores(rows, tile, asked)

    monkeypatch.setattr(flat._kernel, "_scores", limited)
    with pytest.raises(DeviceMemoryError, match=r"search of 24 queries.*allocate 64.00 MiB.\)$"):
        flat.search(queries)
    assert expected[:6] == flat.search(queries[:6])

    gates = Barrier(4)

    def ask(part: int) -> list[Hits]:
        gates.wait()
        return verifier.search(queries[part * 6 : part * 6 + 6])

    with Verifier(flat) as verifier, ThreadPoolExecutor(4) as pool:
        assert expected == [hits for found in pool.map(ask, range(4)) for hits in found]


def test_an_error_of_memory_keeps_no_tensor_alive() -> None:
    """The library's own error, and with it the computation's frames, is not part of it."""
    with pytest.raises(DeviceMemoryError, match=r"^No room\. \(.*allocate.*\)$") as caught:
        within_memory(lambda: torch.empty(2**48), "No room.")  # a petabyte

    assert caught.value.__context__ is None
    assert isinstance(caught.value, MemoryError)


def test_vectors_that_do_not_fit_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> Any:
        raise RuntimeError("CUDA error: out of memory")  # as for pinned memory

    monkeypatch.setattr(torch_kernel.DeviceRows, "_load", full)
    with pytest.raises(DeviceMemoryError, match=r"vectors of 1,600 bytes; give fewer.*streamed"):
        TorchFlat(corpus_of(50, 8), device="cpu")


def test_another_error_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch_kernel.DeviceRows, "_load", broken)
    with pytest.raises(RuntimeError, match="illegal memory access") as caught:
        TorchFlat(corpus_of(50, 8), device="cpu")
    assert type(caught.value) is RuntimeError


@pytest.fixture
def little_memory() -> Iterator[None]:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**26) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.gpu
@pytest.mark.usefixtures("little_memory")
def test_a_full_gpu_is_a_clear_error_and_streaming_the_way_out() -> None:
    corpus, queries = corpus_of(200_000, 128), queries_of(8, 128)  # 100 MB of 64
    with pytest.raises(DeviceMemoryError, match="give fewer device_bytes"):
        TorchFlat(corpus, k=5, device="cuda", device_bytes=corpus.vectors.nbytes)

    torch.cuda.set_per_process_memory_fraction(1.0)
    flat = TorchFlat(corpus, k=5, device="cuda", device_bytes=10_000_000)
    assert NumpyFlat(corpus, k=5).search(queries) == flat.search(queries)


def test_sums_in_half_precision_are_not_relied_on() -> None:
    """Torch can be set to sum in half precision: products of halves are then made in float32."""
    kernel = TorchFlat(corpus_of(300, 8), device="cpu", precision="half")._kernel
    kernel._mixed = True  # as on a GPU
    settings, query = torch.backends.cuda.matmul, np.ones((1, 8), dtype=np.float32)
    assert kernel._asked(query).columns.dtype is torch.float16
    settings.allow_fp16_accumulation = True
    try:
        assert kernel._asked(query).columns.dtype is torch.float32
    finally:
        settings.allow_fp16_accumulation = False


@pytest.mark.parametrize("name", ["NVIDIA_TF32_OVERRIDE", "CUBLAS_EMULATE_SINGLE_PRECISION"])
def test_cublas_may_be_told_to_round_by_the_environment(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(name, raising=False)
    usual = torch_kernel._operand_roundoff(torch, "cuda")
    monkeypatch.setenv(name, "0")
    assert usual == torch_kernel._operand_roundoff(torch, "cuda") < 2.0**-10
    monkeypatch.setenv(name, "1")
    assert torch_kernel._operand_roundoff(torch, "cuda") == 2.0**-10
    assert torch_kernel._operand_roundoff(torch, "cpu") < 2.0**-10
