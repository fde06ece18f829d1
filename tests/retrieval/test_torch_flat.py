"""Exact search with torch: the same bits as numpy's, in any precision, on any device."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.retrieval import load, open_retriever, save, torch_flat, torch_kernel
from ralmspec_plugins.retrieval.dense import DenseCorpus
from ralmspec_plugins.retrieval.numpy_flat import NumpyFlat
from ralmspec_plugins.retrieval.optional import optional
from ralmspec_plugins.retrieval.ranking import LARGEST_NORM, Metric, Vectors, exact_scores
from ralmspec_plugins.retrieval.torch_flat import TorchFlat, narrowed
from ralmspec_plugins.testing.contracts import DenseContract, invented_passages, plain_hits
from ralmspec_plugins.types import Passage, Query

torch = pytest.importorskip("torch")

METRICS = list(Metric)
PRECISIONS = ["float32", "half"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(autouse=True)
def needs_its_device(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut a few hundred rows into as many tiles as a million rows."""
    monkeypatch.setattr(torch_kernel, "_FIRST_ROWS", 8)
    monkeypatch.setattr(torch_kernel, "_SECOND_ROWS", 40)
    monkeypatch.setattr(torch_kernel, "_TILE_SCORES", {"cpu": 64, "cuda": 64})
    monkeypatch.setattr(torch_kernel, "STAGE_BYTES", 4096)


def random_vectors(seed: int, *shape: int) -> Vectors:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def corpus_of(vectors: Vectors, metric: str = "ip", seed: int = 0) -> DenseCorpus:
    """Vectors under ids whose order is not that of the rows."""
    names = np.random.default_rng(seed).permutation(len(vectors))
    return DenseCorpus([Passage(f"p{name:06d}", "") for name in names], vectors, None, metric)


def queries_of(vectors: Vectors) -> list[Query]:
    return [Query(str(number), vector) for number, vector in enumerate(vectors)]


def assert_same(corpus: DenseCorpus, queries: list[Query], k: int, **options: Any) -> None:
    """The hits of NumpyFlat, in one batch and singly."""
    expected = [plain_hits(hits) for hits in NumpyFlat(corpus, k=k).search(queries)]
    flat = TorchFlat(corpus, k=k, **options)

    assert expected == [plain_hits(hits) for hits in flat.search(queries)]
    assert expected == [plain_hits(flat.search([query])[0]) for query in queries]


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    size=st.sampled_from([1, 2, 7, 41, 300]),
    count=st.sampled_from([1, 2, 7, 70]),
    dimension=st.sampled_from([1, 3, 64]),
    k=st.sampled_from([1, 5, 400]),
    metric=st.sampled_from(METRICS),
    precision=st.sampled_from(PRECISIONS),
    digits=st.sampled_from([0, 1, 7]),
    row_scale=st.sampled_from([1e-30, 1e-6, 1.0, 1e4, 1e12]),
    query_scale=st.sampled_from([1e-30, 1.0, 1e12]),
    kept=st.sampled_from([None, 0, 0.4]),
)
def test_hits_scores_and_order_are_those_of_numpy(
    device: str,
    seed: int,
    size: int,
    count: int,
    dimension: int,
    k: int,
    metric: str,
    precision: Any,
    digits: int,
    row_scale: float,
    query_scale: float,
    kept: float | None,
) -> None:
    """With ties, zero rows, any scale, k beyond the size, kept or streamed: the same bits."""
    dice = np.random.default_rng(seed)
    rows = np.round(dice.standard_normal((size, dimension)), digits) * row_scale
    rows[dice.random(size) < 0.1] = 0
    asked = np.round(dice.standard_normal((count, dimension)), digits) * query_scale
    assert_same(
        corpus_of(rows.astype(np.float32), metric, seed),
        queries_of(asked.astype(np.float32)),
        k,
        device=device,
        precision=precision,
        device_bytes=None if kept is None else int(kept * 2 * rows.size),
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("gap", [2**-23, 2**-13, 2**-10])
def test_near_ties_inside_the_kernels_error_are_ranked_by_the_truth(
    device: str, precision: Any, metric: str, gap: float
) -> None:
    """5,000 rows that float32, or half precision, cannot tell apart: the exact top k."""
    dice = np.random.default_rng(3)
    base = random_vectors(4, 64)
    near = np.repeat(base[None], 5000, axis=0)
    near[np.arange(5000), dice.integers(0, 64, 5000)] *= np.float32(1 + gap)
    vectors = np.concatenate([random_vectors(5, 15_000, 64), near])[dice.permutation(20_000)]
    corpus = corpus_of(vectors, metric)
    query = Query("near", corpus.vectors[0] if metric == "cosine" else base)
    truth = exact_scores(corpus.vectors, np.asarray(query.encoding), corpus.metric)
    best = np.lexsort((corpus.places, -truth))[:50]
    flat = TorchFlat(corpus, k=50, device=device, precision=precision)
    batch = [query, *queries_of(random_vectors(6, 5, 64))]

    assert [(corpus.passages[row].id, truth[row]) for row in best] == plain_hits(
        flat.search([query])[0]
    )
    assert flat.search(batch)[0] == flat.search([query])[0]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("metric", METRICS)
def test_five_thousand_duplicates_come_in_order_of_id(metric: str, precision: Any) -> None:
    """Rows that are the same, whatever tile they fall in, come by id."""
    one = random_vectors(0, 1, 48)
    vectors = np.concatenate([random_vectors(1, 20_000, 48), np.repeat(one, 5000, axis=0)])
    vectors = vectors[np.random.default_rng(2).permutation(25_000)]
    assert_same(corpus_of(vectors, metric), queries_of(one), 300, precision=precision)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("size", [1e-37, 1e-20, LARGEST_NORM / 10])
def test_the_longest_and_the_shortest_vectors_neither_overflow_nor_vanish(
    device: str, precision: Any, metric: str, size: float
) -> None:
    """Lengths at the ends of what is allowed, next to ordinary ones and zero."""
    vectors = random_vectors(0, 200, 4)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[::3] *= np.float32(size)
    vectors[::7] = 0
    asked = np.concatenate([vectors[:3] * np.float32(0.01), random_vectors(1, 3, 4)])
    assert_same(
        corpus_of(vectors, metric), queries_of(asked), 20, device=device, precision=precision
    )


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    dimension=st.sampled_from([1, 2, 33, 300, 2000]),
    one_sign=st.booleans(),  # so that what is cut off adds up
    row_scale=st.sampled_from([1e-30, 1e-5, 1.0, 1e5, 1e9]),
    spread=st.sampled_from([0.0, 4.0]),
    query_scale=st.sampled_from([1e-20, 1.0, 1e10]),
    metric=st.sampled_from(["ip", "l2"]),
    half=st.booleans(),
)
def test_a_score_lies_within_its_stated_error(
    device: str,
    seed: int,
    dimension: int,
    one_sign: bool,
    row_scale: float,
    spread: float,
    query_scale: float,
    metric: str,
    half: bool,
) -> None:
    """The kernel's scores, brought to the true scale, are as near to the truth as it says."""
    dice = np.random.default_rng(seed)
    lengths = row_scale * np.exp(spread * dice.standard_normal((60, 1)))
    lengths = np.minimum(lengths, LARGEST_NORM / 1e3)  # longer vectors are refused
    vectors = (dice.standard_normal((60, dimension)) * lengths).astype(np.float32)
    asked = (dice.standard_normal((4, dimension)) * query_scale).astype(np.float32)
    if one_sign:
        vectors, asked = np.abs(vectors), np.abs(asked)
    corpus = corpus_of(vectors, metric)
    kernel = torch_kernel.TorchKernel(
        torch, corpus, torch.device(device), half=half, limit=vectors.nbytes
    )
    batch = kernel._asked(asked)
    rows, tile = next(kernel.rows.tiles([range(60)]))
    fast = kernel._scores(rows, tile, batch).cpu().double().numpy()
    for column, query in enumerate(asked):
        image = batch.columns[:, column].cpu().double().numpy()
        at = int(np.abs(query).argmax())  # products are in units of 2^(a + b)
        scale = 2.0 ** (kernel._copy.form.exponent + np.round(np.log2(image[at] / query[at])))
        truth = exact_scores(vectors, query, corpus.metric)
        if metric == "l2":
            truth = truth + float(query.astype(np.float64) @ query.astype(np.float64))
        slack = 1e-12 * float(np.abs(truth).max()) * scale

        assert np.abs(fast[:, column] - truth * scale).max() <= batch.errors[column] + slack


@pytest.fixture
def precision_setting() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("precision_setting")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
def test_torch_may_round_operands_and_the_answer_stays(device: str, setting: str) -> None:
    """The bound covers what torch is allowed to do at the time of the search."""
    corpus = corpus_of(random_vectors(0, 3000, 32), "ip")
    flat = TorchFlat(corpus, k=5, device=device)
    kernel = flat._kernel
    careful = kernel._error(1.0, 0.0, 0, mixed=False)
    torch.set_float32_matmul_precision(setting)
    now = kernel._error(1.0, 0.0, 0, mixed=False)
    least = {"highest": 0.0, "high": 2.0**-10, "medium": 2.0**-8}[setting]

    assert now - careful >= least * corpus.largest_norm
    assert_same(corpus, queries_of(random_vectors(1, 8, 32)), 5, device=device)


def test_what_the_caller_has_switched_on_is_kept_out() -> None:
    """Autocast to bfloat16 in the calling thread does not reach the search."""
    corpus = corpus_of(random_vectors(0, 3000, 32))
    queries = queries_of(random_vectors(1, 8, 32))
    flat = TorchFlat(corpus, k=5, device="cpu")
    expected = NumpyFlat(corpus, k=5).search(queries)
    nominated = [len(rows) for rows in flat._kernel.nominate(random_vectors(1, 8, 32), 5)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert expected == flat.search(queries)
        assert nominated == [
            len(rows) for rows in flat._kernel.nominate(random_vectors(1, 8, 32), 5)
        ]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("device_bytes", [None, 1000])
def test_mapped_vectors_are_searched_where_they_are(
    tmp_path: Path, precision: Any, device_bytes: int | None
) -> None:
    """Read-only and on the disk: the same answers; on the CPU in float32 nothing is copied."""
    vectors = random_vectors(0, 500, 16)
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.asarray(np.load(tmp_path / "vectors.npy", mmap_mode="r"))
    corpus = corpus_of(mapped)
    assert_same(
        corpus,
        queries_of(random_vectors(1, 3, 16)),
        4,
        device="cpu",
        precision=precision,
        device_bytes=device_bytes,
    )
    flat = TorchFlat(corpus, device="cpu")

    assert flat._kernel.rows._kept.data_ptr() == mapped.__array_interface__["data"][0]


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_searches_do_not_share_their_staging(device: str, precision: Any) -> None:
    """Eight threads streaming different queries at once get what each gets alone."""
    corpus = corpus_of(random_vectors(0, 2000, 16))
    flat = TorchFlat(corpus, k=5, device=device, precision=precision, device_bytes=0)
    batches = [queries_of(random_vectors(seed, 3, 16)) for seed in range(40)]
    expected = [NumpyFlat(corpus, k=5).search(batch) for batch in batches]
    with ThreadPoolExecutor(8) as threads:
        assert expected == list(threads.map(flat.search, batches))
    assert 1 <= len(flat._kernel.rows._free) <= torch_kernel._STREAMED


def test_a_float32_look_drops_most_nominees_and_no_true_one() -> None:
    """Of hundreds of nominees only those within float32's error of the k-th stay."""
    corpus = corpus_of(random_vectors(0, 1000, 32), "l2")
    query = random_vectors(1, 32)
    everything = np.arange(1000)
    near = narrowed(corpus, everything, query, 10)
    truth = np.lexsort((corpus.places, -corpus.exact(everything, query)))[:10]

    assert {*truth.tolist()} <= {*near.tolist()}
    assert len(near) < 20
    assert narrowed(corpus, everything[:30], query, 10).tolist() == everything[:30].tolist()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"device": "tpu0"}, "device 'tpu0'"),
        ({"device": "meta"}, "got the device 'meta'"),
        ({"device": "cuda:99"}, "'cuda:99' was requested.*finds"),
        ({"precision": "int8"}, "known are float32, half"),
        ({"device_bytes": -1}, "device_bytes"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_encoding(
    wrong: dict[str, Any], reason: str
) -> None:
    """The error says what was wrong and what there is."""

    def encoder(text: str) -> Any:
        raise AssertionError("encoded too early")

    with pytest.raises(ConfigError, match=reason):
        open_retriever("torch-flat", invented_passages(3), encoder, **wrong)


def test_torch_is_not_asked_for_by_importing_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch is missing, the error names the extra that brings it."""
    import sys

    assert optional("torch", "hf", "torch") is torch
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"ralmspec-plugins\[hf\]|torch"):
        open_retriever("torch-flat", invented_passages(3))


def test_a_loaded_knowledge_base_can_change_its_device(tmp_path: Path) -> None:
    """Device and precision are no part of what is saved, or of the signature."""
    made = open_retriever("torch-flat", invented_passages(50), k=3, precision="half", device="cpu")
    save(made, tmp_path / "kb")
    loaded: Any = load(tmp_path / "kb")
    again = TorchFlat(loaded.corpus, k=3, precision="half", device="cpu")
    queries = [made.encode("kora malb tisc"), made.encode("vend")]

    assert made.signature == loaded.signature == again.signature
    assert "float32" == loaded.precision
    assert made.search(queries) == loaded.search(queries) == again.search(queries)


def test_a_query_that_cannot_be_searched_is_refused() -> None:
    """NaN and wrong dimensions are found before the device sees them."""
    flat = TorchFlat(corpus_of(random_vectors(0, 3, 2)), device="cpu")
    for bad in (np.array([np.nan, 0]), np.zeros(3)):
        with pytest.raises(InputError):
            flat.search([Query("q", bad)])


class FakeCuda:
    """Streams and events that note what was asked of them; copies are done at once."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.now = "computing"
        self.names = iter(["copied 0", "copied 1", "used 0", "used 1"])

    def Stream(self, device: Any) -> Any:  # noqa: N802 torch's name
        return SimpleNamespace(name="copying", wait_event=self._waiting("copying"))

    def current_stream(self, device: Any) -> Any:
        return SimpleNamespace(name="computing", wait_event=self._waiting("computing"))

    def Event(self) -> Any:  # noqa: N802 torch's name
        name = next(self.names)
        return SimpleNamespace(
            name=name,
            record=lambda stream: self.log.append(f"{stream.name} records {name}"),
            synchronize=lambda: self.log.append(f"host waits for {name}"),
        )

    def stream(self, stream: Any) -> Any:
        return nullcontext()

    def _waiting(self, stream: str) -> Any:
        return lambda event: self.log.append(f"{stream} waits for {event.name}")


def test_a_stage_is_filled_only_when_nobody_uses_it() -> None:
    """Three tiles through two stages: copied while the one before is multiplied, never over it.

    There is no GPU here, so this holds the order of waiting, with a fake one.
    """
    cuda = FakeCuda()
    fake = SimpleNamespace(cuda=cuda, empty=lambda shape, **_named: torch.empty(shape))
    host = torch.arange(30, dtype=torch.float32).view(10, 3)
    form = torch_kernel.Form(torch.float32, 1)
    stages = torch_kernel._CudaStages(fake, host, form, torch.device("cuda"), (4, 3))
    for rows, tile in stages.tiles([range(4), range(4, 8), range(8, 10)]):
        cuda.log.append(f"multiply {rows.start}")
        assert torch.equal(tile, 2 * host[rows.start : rows.stop])

    def sent(slot: int) -> list[str]:
        return [
            f"host waits for copied {slot}",
            f"copying waits for used {slot}",
            f"copying records copied {slot}",
        ]

    def used(slot: int, row: int) -> list[str]:
        return [
            f"computing waits for copied {slot}",
            f"multiply {row}",
            f"computing records used {slot}",
        ]

    assert cuda.log == [
        "computing records used 0",
        "computing records used 1",
        *sent(0),
        *sent(1),
        *used(0, 0),
        *sent(0),
        *used(1, 4),
        *used(0, 8),
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_search_does_not_wait_for_the_models_stream(precision: Any) -> None:
    """While another stream is busy for a second, a search on its own stream ends."""
    corpus = corpus_of(random_vectors(0, 20_000, 64))
    queries = queries_of(random_vectors(1, 4, 64))
    flat = TorchFlat(corpus, k=5, device="cuda", precision=precision)
    expected = flat.search(queries)
    done = torch.cuda.Event()
    torch.cuda._sleep(2_000_000_000)  # cycles: about a second on the model's stream
    done.record()

    assert expected == flat.search(queries)
    assert not done.query()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "claim", sorted(name for name in vars(DenseContract) if name.startswith("test_"))
)
def test_a_gpu_keeps_the_dense_contract(claim: str, metric: str, precision: Any) -> None:
    """Everything that is hard to rank, in both precisions, kept and streamed."""

    class OnCuda(DenseContract):
        device_bytes: int | None = None

        def make_of_vectors(self, passages: Any, vectors: Vectors, k: int) -> TorchFlat:
            corpus = DenseCorpus(passages, vectors, None, self.metric)
            return TorchFlat(
                corpus,
                k=k,
                device="cuda",
                precision=precision,
                device_bytes=self.device_bytes,
            )

    contract = OnCuda()
    contract.metric = metric
    for contract.device_bytes in (None, 100_000):
        getattr(contract, claim)()


def test_all_threads_search_in_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch keeps memory for each pair of a thread and a stream: many of both would fill a GPU."""
    flat = TorchFlat(corpus_of(random_vectors(0, 50, 8)), k=2, device="cpu")
    queries = queries_of(random_vectors(1, 2, 8))
    used: list[Any] = []
    expected = flat.search(queries)

    def entered(stream: Any) -> Any:
        used.append(stream)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(flat._kernel, "_stream", "the stream")
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: flat.search(queries), range(8)))

    assert [expected] * 8 == found
    assert ["the stream"] * 8 == used


def test_memory_that_torch_keeps_unused_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a retriever which was dropped, for one."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 200)

    assert 600 == torch_flat._free_bytes(torch, "cuda")
