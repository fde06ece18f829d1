"""Every backend keeps the retrievers' contract, and survives being saved and loaded."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ralmspec_plugins.errors import ConfigError, IndexFileError, InputError, MissingExtraError
from ralmspec_plugins.protocols import PoolableRetriever, WideRetriever
from ralmspec_plugins.retrieval import BACKENDS, HashingEncoder, load, open_retriever, save
from ralmspec_plugins.retrieval.dense import DenseCorpus
from ralmspec_plugins.retrieval.numpy_flat import NumpyFlat
from ralmspec_plugins.retrieval.optional import optional
from ralmspec_plugins.retrieval.ranking import Vectors
from ralmspec_plugins.testing.contracts import (
    DenseContract,
    RetrieverContract,
    invented_passages,
    invented_queries,
    plain_hits,
)
from ralmspec_plugins.types import Passage, Query


def needed(name: str) -> None:
    """Skip where a backend's library is not installed."""
    for library in ("faiss", "bm25s", "torch"):
        if name.startswith(library):
            pytest.importorskip(library)


class BackendContract(RetrieverContract):
    """What our own backends keep to beyond the public contract."""

    name = ""
    settings: Mapping[str, Any] = MappingProxyType({})

    def make(self, passages: Sequence[Passage], k: int) -> Any:
        needed(self.name)
        return open_retriever(self.name, passages, k=k, **self.settings)

    def test_saved_and_loaded_it_answers_the_same(self, tmp_path: Path) -> None:
        """A saved knowledge base gives the same hits, under the same signature."""
        retriever, queries = self.made()
        save(retriever, tmp_path / "kb")  # type: ignore[arg-type]
        loaded = load(tmp_path / "kb")

        assert retriever.signature == loaded.signature
        assert retriever.search(queries) == loaded.search(queries)
        assert [entry.name for entry in tmp_path.iterdir()] == ["kb"]

    def test_damage_to_any_saved_file_is_found(self, tmp_path: Path) -> None:
        """Truncated, changed in one bit anywhere, or missing: an IndexFileError, never hits."""
        save(self.make(self.passages, 2), tmp_path / "kb")
        files = [file for file in (tmp_path / "kb").rglob("*") if file.is_file()]
        dice = random.Random(0)
        assert len(files) >= 3
        for file in files:
            whole = file.read_bytes()
            damaged: list[bytes | None] = [None, b"", whole[:-1], whole[: len(whole) // 2]]
            if file.name != "kb.json":  # a bit of it can turn one valid setting into another
                for place in (0, len(whole) - 1, *(dice.randrange(len(whole)) for _ in range(3))):
                    bit = bytes([whole[place] ^ 1 << dice.randrange(8)])
                    damaged.append(whole[:place] + bit + whole[place + 1 :])
            for content in damaged:
                file.unlink()
                if content is not None:
                    file.write_bytes(content)
                with pytest.raises(IndexFileError):
                    load(tmp_path / "kb")
                file.write_bytes(whole)
        loaded = load(tmp_path / "kb")

        assert len(loaded.search([loaded.encode(self.texts[0])])[0]) == 2

    def test_it_is_what_it_says(self) -> None:
        """Only exact retrievers can be searched wider; all can be pooled."""
        retriever = self.make(self.passages, 1)

        assert retriever.exact == self.exact
        assert retriever.pure
        assert isinstance(retriever, WideRetriever) == self.exact
        assert isinstance(retriever, PoolableRetriever)

    def test_a_query_without_encoding_is_refused(self) -> None:
        """Queries are made by `encode`."""
        retriever = self.make(self.passages, 1)
        with pytest.raises(InputError, match="encode"):
            retriever.search([Query("kora")])

    def test_two_passages_with_one_id_are_refused(self) -> None:
        """Ids are what hits are told apart by."""
        with pytest.raises(InputError, match="'x'"):
            self.make([Passage("x", "kora"), Passage("x", "korb")], 1)

    @pytest.mark.parametrize("k", [0, -1, 1.5, True])
    def test_a_k_that_asks_for_nothing_is_refused(self, k: Any) -> None:
        """A k is a whole number of at least 1."""
        with pytest.raises(ConfigError, match="k must be"):
            self.make(self.passages, k)

    def test_foreign_hits_are_refused_by_a_table(self) -> None:
        """A table ranks only what its own retriever found."""
        retriever = self.make(self.passages, 1)
        hit = retriever.search([retriever.encode(self.texts[0])])[0][0]
        with pytest.raises(InputError, match="its own"):
            retriever.table(1).put(0, hit.unscored())


class DenseBackendContract(BackendContract, DenseContract):
    """What our own exact dense backends keep to, also on vectors that are hard to rank."""

    def make(self, passages: Sequence[Passage], k: int) -> Any:
        return self.opened(passages, k)

    def make_of_vectors(self, passages: Sequence[Passage], vectors: Vectors, k: int) -> Any:
        return self.opened(passages, k, vectors=vectors)

    def opened(self, passages: Sequence[Passage], k: int, **vectors: Vectors) -> Any:
        needed(self.name)
        if self.settings.get("threads"):
            pytest.importorskip("threadpoolctl")
        settings = {"metric": self.metric, **self.settings, **vectors}
        return open_retriever(self.name, passages, k=k, **settings)


class TestNumpyFlat(DenseBackendContract):
    name = "numpy-flat"


class TestNumpyFlatCosine(DenseBackendContract):
    name = "numpy-flat"
    metric = "cosine"


class TestNumpyFlatL2(DenseBackendContract):
    name = "numpy-flat"
    metric = "l2"


class TestNumpyFlatOnTwoThreads(DenseBackendContract):
    name = "numpy-flat"
    settings = MappingProxyType({"threads": 2})


class TestNumpyFlatCosineOnTwoThreads(DenseBackendContract):
    name = "numpy-flat"
    metric = "cosine"
    settings = MappingProxyType({"threads": 2})


class TestNumpyFlatL2OnTwoThreads(DenseBackendContract):
    name = "numpy-flat"
    metric = "l2"
    settings = MappingProxyType({"threads": 2})


class TestTorchFlat(DenseBackendContract):
    name = "torch-flat"


class TestTorchFlatCosine(DenseBackendContract):
    name = "torch-flat"
    metric = "cosine"


class TestTorchFlatL2(DenseBackendContract):
    name = "torch-flat"
    metric = "l2"


class TestTorchFlatInHalfPrecision(DenseBackendContract):
    name = "torch-flat"
    settings = MappingProxyType({"precision": "half"})


class TestTorchFlatCosineInHalfPrecision(DenseBackendContract):
    name = "torch-flat"
    metric = "cosine"
    settings = MappingProxyType({"precision": "half"})


class TestTorchFlatL2InHalfPrecision(DenseBackendContract):
    name = "torch-flat"
    metric = "l2"
    settings = MappingProxyType({"precision": "half"})


class TestTorchFlatStreamed(DenseBackendContract):
    name = "torch-flat"
    settings = MappingProxyType({"device_bytes": 5000})


class TestFaissFlat(DenseBackendContract):
    name = "faiss-flat"


class TestFaissFlatCosine(DenseBackendContract):
    name = "faiss-flat"
    metric = "cosine"


class TestFaissFlatL2(DenseBackendContract):
    name = "faiss-flat"
    metric = "l2"


class TestFaissHnsw(BackendContract):
    name = "faiss-hnsw"
    exact = False
    settings = MappingProxyType({"search_list": 200})


class TestFaissIvf(BackendContract):
    name = "faiss-ivf"
    exact = False
    settings = MappingProxyType({"lists": 4, "probes": 4})


class TestBm25(BackendContract):
    name = "bm25s"


@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
def test_faiss_and_numpy_agree_to_the_bit(metric: str) -> None:
    """Two exact kernels, one ranking: the same hits with the same scores."""
    needed("faiss")
    passages, texts = invented_passages(300), invented_queries(10)
    ours = open_retriever("numpy-flat", passages, k=7, metric=metric)
    theirs = open_retriever("faiss-flat", passages, k=7, metric=metric)
    queries = [ours.encode(text) for text in texts]

    assert ours.search(queries) == theirs.search(queries)


_SCANS = given(
    seed=st.integers(0, 2**32),
    size=st.sampled_from([1, 2, 5, 1025, 2051, 9300]),
    count=st.sampled_from([1, 2, 7, 64, 70]),
    dimension=st.sampled_from([3, 64, 400]),
    k=st.sampled_from([1, 20, 2000]),
    metric=st.sampled_from(["ip", "cosine", "l2"]),
)


@settings(max_examples=12, deadline=None)
@_SCANS
def test_own_threads_change_no_bit(**scan: Any) -> None:
    """However the rows are shared and tiled, hits and scores are those of the plain scan."""
    _compare_threads(**scan)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@_SCANS
def test_own_threads_change_no_bit_of_many_scans(**scan: Any) -> None:
    """The same, more often."""
    _compare_threads(**scan)


def _compare_threads(seed: int, size: int, count: int, dimension: int, k: int, metric: Any) -> None:
    pytest.importorskip("threadpoolctl")
    dice = np.random.default_rng(seed)
    vectors = np.round(dice.standard_normal((size, dimension)), 1).astype(np.float32)
    corpus = DenseCorpus([Passage(f"{row:05d}", "") for row in range(size)], vectors, None, metric)
    asked = dice.standard_normal((count, dimension), dtype=np.float32)
    queries = [Query(str(number), vector) for number, vector in enumerate(asked)]
    expected = [plain_hits(hits) for hits in NumpyFlat(corpus, k=k).search(queries)]
    for threads in (1, 2, 3):
        found = NumpyFlat(corpus, k=k, threads=threads).search(queries)

        assert expected == [plain_hits(hits) for hits in found]


@pytest.mark.parametrize("threads", [0, -1, 1.5, True])
def test_threads_that_cannot_be_are_refused(threads: Any) -> None:
    """The number of threads is a whole number of at least 1, checked before encoding."""

    def encoder(text: str) -> Any:
        raise AssertionError("encoded too early")

    with pytest.raises(ConfigError, match="threads must be"):
        open_retriever("numpy-flat", invented_passages(3), encoder, threads=threads)


def test_blas_keeps_its_threads_unless_own_ones_are_asked_for() -> None:
    """The switch is the whole process's: only the argument sets it."""
    control = pytest.importorskip("threadpoolctl")

    def blas_threads() -> set[int]:
        pools = control.threadpool_info()
        return {pool["num_threads"] for pool in pools if pool["user_api"] == "blas"}

    with control.threadpool_limits(limits=2, user_api="blas"):
        before = blas_threads()
        plain = open_retriever("numpy-flat", invented_passages(10))
        kept = blas_threads()
        threaded = open_retriever("numpy-flat", invented_passages(10), threads=2)

        assert before == kept
        assert {1} >= blas_threads()
        assert plain.signature == threaded.signature


def test_ivfpq_saves_its_settings(tmp_path: Path) -> None:
    """The product-quantised index answers the same after a round trip."""
    needed("faiss")
    passages = invented_passages(400)
    made = open_retriever("faiss-ivfpq", passages, HashingEncoder(32), k=3, pieces=8, lists=2)
    save(made, tmp_path / "kb")
    loaded = load(tmp_path / "kb", k=2)
    queries = [made.encode(text) for text in invented_queries(5)]

    assert loaded.k == 2
    assert all(len(hits) == 2 for hits in loaded.search(queries))
    with pytest.raises(InputError, match="256"):
        open_retriever("faiss-ivfpq", passages[:50], HashingEncoder(32))
    with pytest.raises(ConfigError, match="pieces"):
        open_retriever("faiss-ivfpq", passages, HashingEncoder(32), pieces=7)


def test_an_unknown_backend_lists_the_known_ones() -> None:
    """The error says what there is."""
    with pytest.raises(ConfigError, match="numpy-flat") as caught:
        open_retriever("annoy", invented_passages(3))

    assert all(name in str(caught.value) for name in BACKENDS)


def test_an_unknown_setting_is_a_type_error() -> None:
    """A setting that nobody reads is not swallowed."""
    for name in BACKENDS:
        needed(name)
        with pytest.raises(TypeError):
            open_retriever(name, invented_passages(300), nonsense=1)


def test_an_unknown_metric_lists_the_known_ones() -> None:
    """The error says what there is, before anything is encoded."""
    with pytest.raises(ConfigError, match="ip, cosine, l2"):
        open_retriever("numpy-flat", invented_passages(3), metric="dot")


def test_a_missing_extra_is_named() -> None:
    """The error names the command that installs what is missing."""
    with pytest.raises(MissingExtraError, match=r"ralmspec-plugins\[faiss\]"):
        optional("no_such_module_here", "faiss", "faiss-cpu")


def test_an_hnsw_index_built_twice_has_its_own_signature() -> None:
    """Settings that change the answers change the signature."""
    needed("faiss")
    passages = invented_passages(100)
    signatures = {
        open_retriever("faiss-hnsw", passages, links=links).signature for links in (4, 32)
    }

    assert len(signatures) == 2


def test_the_blas_switch_is_left_alone_unless_asked_for() -> None:
    """FAISS's threshold is the whole process's: only an argument changes it."""
    faiss = pytest.importorskip("faiss")
    before = faiss.cvar.distance_compute_blas_threshold
    try:
        open_retriever("faiss-flat", invented_passages(10))
        assert before == faiss.cvar.distance_compute_blas_threshold
        open_retriever("faiss-flat", invented_passages(10), lower_blas_threshold=True)

        assert faiss.cvar.distance_compute_blas_threshold == 3 * 512
    finally:
        faiss.cvar.distance_compute_blas_threshold = before


def test_bm25_scores_are_those_of_bm25s() -> None:
    """Every passage's score is what bm25s itself gives, to the bit."""
    bm25s = pytest.importorskip("bm25s")
    passages, texts = invented_passages(100), invented_queries(5)
    retriever = open_retriever("bm25s", passages, k=100)
    engine = bm25s.BM25(k1=0.9, b=0.4, method="lucene")
    words = bm25s.tokenize([p.text for p in passages], return_ids=False, show_progress=False)
    engine.index(words, show_progress=False)
    for text in texts:
        theirs = engine.get_scores(bm25s.tokenize([text], return_ids=False, show_progress=False)[0])
        ours = {h.passage.id: h.score for h in retriever.search([retriever.encode(text)])[0]}

        assert ours == {p.id: float(s) for p, s in zip(passages, theirs, strict=True)}


def test_bm25_without_a_known_word_falls_back_to_ids() -> None:
    """A query of unknown words scores 0 everywhere, so the smallest ids come."""
    needed("bm25s")
    retriever = open_retriever("bm25s", invented_passages(20), k=2)
    hits = retriever.search([retriever.encode("unheard of")])[0]

    assert [(h.passage.id, h.score) for h in hits] == [("p00000", 0.0), ("p00001", 0.0)]


def test_bm25_settings_are_checked_and_kept(tmp_path: Path) -> None:
    """Tokenizer settings travel with the index; impossible ones are refused."""
    needed("bm25s")
    passages = [Passage("a", "The Fox"), Passage("b", "the dog")]
    made = open_retriever("bm25s", passages, lower=False, stopwords=None, k1=1.2)
    save(made, tmp_path / "kb")
    loaded = load(tmp_path / "kb")

    assert made.signature == loaded.signature
    assert made.encode("The fox").encoding == loaded.encode("The fox").encoding
    assert len(loaded.encode("The fox").encoding) == 1
    with pytest.raises(ConfigError, match="k1"):
        open_retriever("bm25s", passages, b=2.0)
    with pytest.raises(InputError, match="word"):
        open_retriever("bm25s", [Passage("a", "..."), Passage("b", "")])


def test_vectors_may_be_given() -> None:
    """A knowledge base of vectors needs no encoder, as long as queries come encoded."""
    vectors = np.eye(3, dtype=np.float32)
    passages = [Passage(name, "") for name in "abc"]
    retriever = open_retriever("numpy-flat", passages, vectors=vectors)
    hits = retriever.search([Query("second", vectors[1])])[0]

    assert [(hit.passage.id, hit.score) for hit in hits] == [("b", 1.0)]
    with pytest.raises(InputError, match="no encoder"):
        retriever.encode("text")
