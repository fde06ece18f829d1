"""Approximate searches: the same in any batch and after being saved, and refused where wrong."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ralmspec_plugins.errors import ConfigError, IndexFileError, InputError
from ralmspec_plugins.knn.ann_index import (
    HnswRecipe,
    IvfPqRecipe,
    build_index,
    open_index,
    save_index,
)
from ralmspec_plugins.knn.ann_search import ApproximateSearch, hnsw_search
from ralmspec_plugins.knn.datastore import Datastore
from ralmspec_plugins.knn.search import ExactSearch, Neighbours, open_search
from ralmspec_plugins.protocols import WideRetriever
from ralmspec_plugins.retrieval.faiss_ann import AnnIndex, IndexRecipe
from ralmspec_plugins.types import Query
from tests.knn.neighbour_worlds import asking, nearest_by_hand

faiss = pytest.importorskip("faiss")

SIZE, DIMENSION = 3000, 16
MADE: dict[str, IndexRecipe] = {
    "hnsw": HnswRecipe(links=8),
    "hnsw-8bit": HnswRecipe(links=8, storage="8bit"),
    "ivfpq": IvfPqRecipe(lists=40, probes=4, pieces=8),
}


def clustered(seed: int, count: int) -> Any:
    """Keys around centres of unequal weight, as hidden states lie."""
    centres = np.random.default_rng(7).standard_normal((30, DIMENSION))
    dice = np.random.default_rng(seed)
    chosen = np.minimum(dice.geometric(0.1, count) - 1, 29)
    return centres[chosen] + 0.4 * dice.standard_normal((count, DIMENSION))


@pytest.fixture(scope="module")
def store() -> Datastore:
    return Datastore.of(clustered(0, SIZE), np.arange(SIZE) % 50)


@pytest.fixture(scope="module")
def built(store: Datastore) -> dict[str, AnnIndex]:
    return {name: build_index(store, recipe) for name, recipe in MADE.items()}


@pytest.fixture(scope="module")
def queries() -> list[Query]:
    return [asking(hidden) for hidden in clustered(1, 60).astype(np.float32)]


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
@pytest.mark.parametrize("rerank", [0, None])
@pytest.mark.parametrize("name", MADE)
def test_neighbours_do_not_depend_on_the_batch(
    name: str,
    rerank: int | None,
    store: Datastore,
    built: dict[str, AnnIndex],
    queries: list[Query],
) -> None:
    """Ids and distances to the bit, in batches of any size, while the ways are tried."""
    search = ApproximateSearch(store, built[name], k=20, rerank=rerank)
    expected = [search.search([query])[0] for query in queries]
    for size in (2, 7, 7, 7, 7, 60):
        found: list[Neighbours] = []
        for start in range(0, len(queries), size):
            found += search.search(queries[start : start + size])

        assert expected == found


@pytest.mark.parametrize("rerank", [0, None])
@pytest.mark.parametrize("name", MADE)
def test_a_saved_index_answers_as_before(
    name: str,
    rerank: int | None,
    store: Datastore,
    built: dict[str, AnnIndex],
    queries: list[Query],
    tmp_path: Path,
) -> None:
    """Opened again it finds the same to the bit, under the same signature."""
    save_index(built[name], tmp_path / "index")
    again = open_index(tmp_path / "index", store, verify="digests")
    before = ApproximateSearch(store, built[name], k=9, rerank=rerank)
    after = ApproximateSearch(store, again, k=9, rerank=rerank)

    assert before.signature == after.signature
    assert before.search(queries) == after.search(queries)
    assert ["index.faiss", "index.json"] == sorted(f.name for f in (tmp_path / "index").iterdir())
    assert ["index"] == [entry.name for entry in tmp_path.iterdir()]


@pytest.mark.parametrize("name", MADE)
def test_a_build_is_the_same_each_time(
    name: str, store: Datastore, built: dict[str, AnnIndex]
) -> None:
    """The same keys and settings give the same index, byte for byte."""
    assert built[name].digest == build_index(store, MADE[name]).digest


@pytest.mark.parametrize("threads", [1, 2])
def test_a_build_uses_as_many_threads_as_it_is_told(store: Datastore, threads: int) -> None:
    """One is the default: the order in which several insert keys is another each time."""
    seen = []

    class Watched(HnswRecipe):
        def learns_from(self, entries: int) -> NDArray[np.int64]:
            seen.append(faiss.omp_get_max_threads())
            return np.empty(0, dtype=np.int64)

    before = faiss.omp_get_max_threads()
    build_index(store, Watched(links=4), threads=threads)

    assert [threads] == seen
    assert before == faiss.omp_get_max_threads()


def test_another_sample_is_another_index(store: Datastore) -> None:
    """What is learned depends on the sample, whose choice depends on the seed alone."""
    digests = [
        build_index(store, IvfPqRecipe(lists=8, pieces=4, sample=1000, seed=seed)).digest
        for seed in (0, 1, 0)
    ]

    assert digests[0] == digests[2]
    assert digests[0] != digests[1]


@pytest.mark.parametrize("name", MADE)
def test_candidates_are_measured_exactly(
    name: str, store: Datastore, built: dict[str, AnnIndex], queries: list[Query]
) -> None:
    """Of the `rerank` entries that FAISS finds, the best k by exact distance, ties by id."""
    search = ApproximateSearch(store, built[name], k=5, rerank=30)
    for query, found in zip(queries, search.search(queries), strict=True):
        rows = built[name].index.search(query.encoding[None], 30)[1][0]

        assert nearest_by_hand(store, query.encoding, 5, rows[rows >= 0]) == found


def test_without_measuring_the_distances_are_the_index_s(
    store: Datastore, built: dict[str, AnnIndex], queries: list[Query]
) -> None:
    """`rerank=0` takes FAISS's distances; those of quantised keys are not the true ones."""
    search = ApproximateSearch(store, built["ivfpq"], k=5, rerank=0)
    exact = ApproximateSearch(store, built["ivfpq"], k=5)
    off = 0
    for query, found in zip(queries, search.search(queries), strict=True):
        distances, rows = built["ivfpq"].index.search(query.encoding[None], 5)

        assert sorted(distances[0].astype(np.float64).tolist()) == found.distances.tolist()
        assert set(rows[0].tolist()) == set(found.ids.tolist())
        assert store.values[found.ids].tolist() == found.values.tolist()
        off += found.distances.tolist() != exact.search([query])[0].distances.tolist()
    assert off > 50


def test_most_of_the_true_neighbours_are_found(
    store: Datastore, built: dict[str, AnnIndex], queries: list[Query]
) -> None:
    """A graph finds 90 of 100 at least, quantised lists 70; distances of those are exact."""
    truths = ExactSearch(store, k=10).search(queries)
    for name, least in (("hnsw", 0.9), ("hnsw-8bit", 0.9), ("ivfpq", 0.7)):
        found = ApproximateSearch(store, built[name], k=10).search(queries)
        right = 0
        for truth, near in zip(truths, found, strict=True):
            distances = dict(zip(truth.ids.tolist(), truth.distances.tolist(), strict=True))
            for entry, distance in zip(near.ids.tolist(), near.distances.tolist(), strict=True):
                if entry in distances:
                    right += 1
                    assert distances[entry] == distance

        assert right >= least * 600


def test_half_precision_loses_nothing(store: Datastore, queries: list[Query]) -> None:
    """The keys are halves, so a graph over halves finds what one over floats finds."""
    halves = ApproximateSearch(store, build_index(store, HnswRecipe(links=8)), k=10)
    wide = HnswRecipe(links=8, storage="float32")
    floats = ApproximateSearch(store, build_index(store, wide), k=10)
    pairs = zip(halves.search(queries), floats.search(queries), strict=True)

    assert sum(one == other for one, other in pairs) >= 57


def test_more_is_asked_for_more(
    store: Datastore, built: dict[str, AnnIndex], queries: list[Query]
) -> None:
    """k may exceed what the nearest lists hold, and the datastore: then there are fewer."""
    few = ApproximateSearch(
        store, built["ivfpq"].tuned(IvfPqRecipe(lists=40, pieces=8, probes=1)), k=2000
    )
    for found in few.search(queries):
        assert 0 < len(found) < 2000
        assert found.ids.min() >= 0
    built["ivfpq"].tuned(MADE["ivfpq"])
    small = Datastore.of(clustered(3, 40), np.arange(40))

    assert 40 == len(open_search("hnsw", small).search(queries[:1])[0])


def test_tuning_shows_in_the_signature(store: Datastore, built: dict[str, AnnIndex]) -> None:
    """A search whose index is tuned answers otherwise from then on, and says so."""
    search = ApproximateSearch(store, built["ivfpq"], k=5)
    before = search.signature
    built["ivfpq"].tuned(IvfPqRecipe(lists=40, pieces=8, probes=1))
    tuned = search.signature
    built["ivfpq"].tuned(MADE["ivfpq"])

    assert before == search.signature != tuned


def test_an_index_is_tuned_as_it_was_built(built: dict[str, AnnIndex]) -> None:
    """Another kind, or other lists, would have to be built."""
    with pytest.raises(ConfigError, match="this is an ivfpq index, and hnsw was requested"):
        built["ivfpq"].tuned(MADE["hnsw"])
    with pytest.raises(ConfigError, match=r"built with lists = .*only probes, refine can"):
        built["ivfpq"].tuned(IvfPqRecipe(lists=3, probes=1))


def test_an_index_is_built_once(store: Datastore, queries: list[Query], tmp_path: Path) -> None:
    """With a place it is built and saved, then opened; without one it is built in memory."""
    place = tmp_path / "stores" / "hnsw"
    place.mkdir(parents=True)  # an empty folder is free
    first = open_search("hnsw", store, k=4, links=8, index=place)
    written = (place / "index.faiss").stat().st_mtime_ns
    second = open_search("hnsw", store, k=4, index=place)
    third = open_search("hnsw", store, k=4, links=8)

    assert written == (place / "index.faiss").stat().st_mtime_ns
    assert first.signature == second.signature == third.signature
    assert first.search(queries) == second.search(queries) == third.search(queries)


def test_how_it_is_asked_may_change_how_it_was_built_may_not(
    store: Datastore, tmp_path: Path
) -> None:
    """`search_list` is taken as given; other `links` than the saved index's are refused."""
    place = tmp_path / "hnsw"
    first = hnsw_search(store, k=4, links=8, index=place)
    wider = hnsw_search(store, k=4, search_list=200, index=place)

    assert 200 == wider.built.index.hnsw.efSearch
    assert first.signature != wider.signature
    with pytest.raises(ConfigError, match="built with links = 8, and 16 was requested"):
        hnsw_search(store, k=4, links=16, index=place)
    with pytest.raises(ConfigError, match="is an hnsw index, and ivfpq was requested"):
        open_search("ivfpq", store, k=4, index=place)


def test_a_graph_is_searched_as_far_as_is_looked_for(
    store: Datastore, queries: list[Query]
) -> None:
    """Of 600 with a list of 16, FAISS itself would stop early and find far fewer."""
    near = hnsw_search(store, k=600, links=8, search_list=16).search(queries)
    true = ExactSearch(store, k=600).search(queries)
    pairs = zip(near, true, strict=True)
    found = sum(len({*a.ids.tolist()} & {*b.ids.tolist()}) for a, b in pairs)

    assert found >= 0.95 * 600 * len(queries)


def test_it_is_no_wide_retriever(store: Datastore, built: dict[str, AnnIndex]) -> None:
    """A wider search may start otherwise, so none is offered; the exact one offers it."""
    assert not isinstance(ApproximateSearch(store, built["hnsw"]), WideRetriever)
    assert isinstance(ExactSearch(store), WideRetriever)


def test_signatures_tell_what_answers_depend_on(
    store: Datastore, built: dict[str, AnnIndex]
) -> None:
    """k, rerank and the index make signatures of their own."""
    searches = [
        ApproximateSearch(store, built["hnsw"], k=4),
        ApproximateSearch(store, built["hnsw"], k=5),
        ApproximateSearch(store, built["hnsw"], k=4, rerank=0),
        ApproximateSearch(store, built["hnsw-8bit"], k=4),
        ApproximateSearch(store, built["ivfpq"], k=4),
    ]

    assert 5 == len({search.signature for search in searches})


def _truncated(folder: Path) -> None:
    file = folder / "index.faiss"
    file.write_bytes(file.read_bytes()[:-1])


def _changed(folder: Path) -> None:
    file = folder / "index.faiss"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _told(**facts: Any) -> Callable[[Path], None]:
    def tell(folder: Path) -> None:
        file = folder / "index.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **facts}))

    return tell


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncated, "is damaged: .* bytes were written"),
        (_changed, "content is not what was written"),
        (lambda folder: (folder / "index.faiss").unlink(), "index.faiss is missing"),
        (lambda folder: (folder / "index.json").unlink(), "no search index"),
        (lambda folder: (folder / "index.json").write_text("{"), "is damaged"),
        (_told(version=2), "has version 2, but this release reads version 1"),
        (_told(format="other"), "was not written by ralmspec_plugins"),
        (_told(recipe="other"), "is damaged"),
        (_told(settings={"links": 0}), "is damaged"),
        (_told(datastore="other"), "an index of another datastore"),
    ],
)
def test_a_damaged_index_is_refused(
    damage: Callable[[Path], None],
    message: str,
    store: Datastore,
    built: dict[str, AnnIndex],
    tmp_path: Path,
) -> None:
    """A missing, cut, changed or foreign file is an error that says what to do."""
    save_index(built["hnsw"], tmp_path / "index")
    damage(tmp_path / "index")
    with pytest.raises(IndexFileError, match=message):
        open_index(tmp_path / "index", store, verify="digests")


def test_an_index_of_another_datastore_is_refused(
    built: dict[str, AnnIndex], tmp_path: Path
) -> None:
    """The same shape is not enough: each index belongs to the content that it was built of."""
    other = Datastore.of(clustered(5, SIZE), np.arange(SIZE) % 50)
    save_index(built["hnsw"], tmp_path / "index")
    with pytest.raises(IndexFileError, match="built for another datastore"):
        ApproximateSearch(other, built["hnsw"])
    with pytest.raises(IndexFileError, match="an index of another datastore"):
        open_search("hnsw", other, index=tmp_path / "index")


def test_nothing_else_is_overwritten(store: Datastore, tmp_path: Path) -> None:
    """A folder that is no search index is left alone, and known before anything is built."""
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(IndexFileError):
        open_search("hnsw", store, index=tmp_path)

    assert ["mine.txt"] == [entry.name for entry in tmp_path.iterdir()]


def test_a_failed_save_leaves_the_old_index(
    store: Datastore,
    built: dict[str, AnnIndex],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A full disk on the way leaves what was there, and nothing else."""
    save_index(built["hnsw"], tmp_path / "index")

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(AnnIndex, "write_to", full)
    with pytest.raises(OSError, match="no space left"):
        save_index(built["ivfpq"], tmp_path / "index")

    assert "hnsw" == open_index(tmp_path / "index", store, verify="digests").recipe.name
    assert ["index"] == [entry.name for entry in tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda store: open_search("annoy", store), ConfigError, "known are exact, hnsw, ivfpq"),
        (lambda store: open_search("hnsw", store, links=0), ConfigError, "links must be"),
        (lambda store: open_search("hnsw", store, storage="4bit"), ConfigError, "float16, 8bit"),
        (lambda store: open_search("hnsw", store, k=8, rerank=7), ConfigError, "at least k = 8"),
        (lambda store: open_search("hnsw", store, k=0), ConfigError, "k must be"),
        (lambda store: open_search("hnsw", store, build_threads=0), ConfigError, "build_threads"),
        (lambda store: open_search("ivfpq", store, pieces=5), ConfigError, "divide the dimension"),
        (lambda store: open_search("ivfpq", store, probes=0), ConfigError, "probes must be"),
        (lambda store: open_search("ivfpq", store, sample=255), InputError, "at least 256 vectors"),
        (lambda store: open_search("hnsw", store, probes=3), TypeError, "probes"),
        (lambda store: open_search("exact", store, probes=3), TypeError, "probes"),
    ],
)
def test_settings_without_meaning_are_refused(
    make: Callable[[Datastore], object], error: type[Exception], message: str, store: Datastore
) -> None:
    """An unknown name or setting, or a number out of range, is an error that names it."""
    with pytest.raises(error, match=message):
        make(store)


def test_a_text_is_refused(store: Datastore, built: dict[str, AnnIndex]) -> None:
    """There is nothing that would encode a text."""
    with pytest.raises(InputError, match="not with texts, got 'what'"):
        ApproximateSearch(store, built["hnsw"]).encode("what")
