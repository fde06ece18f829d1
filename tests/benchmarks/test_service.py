"""A store in another process: the same hits, many at once, and nothing left behind."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness.process import ServedStore, service
from ralmspec_plugins.errors import RalmSpecError
from ralmspec_plugins.retrieval import HashingEncoder, NumpyFlat, save
from ralmspec_plugins.types import Hits, Passage

ENCODER = HashingEncoder(dimension=16)
TEXTS = [f"the {colour} {thing}" for colour in ("red", "blue") for thing in ("fox", "ship", "sky")]


@pytest.fixture(scope="module")
def here() -> NumpyFlat:
    """The store as it is here."""
    passages = [Passage(f"p{at}", text) for at, text in enumerate(TEXTS)]
    return NumpyFlat.build(passages, ENCODER, k=2)


@pytest.fixture(scope="module")
def served(here: NumpyFlat, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedStore]:
    """The same store in another process."""
    folder = tmp_path_factory.mktemp("served") / "kb"
    save(NumpyFlat.build(here.corpus.passages, vectors=here.corpus.vectors, k=2), folder)
    with service(folder, wait_s=0.0, threads=1, core=None) as address:
        yield ServedStore(address, here)


def test_hits_are_those_of_a_search_here(here: NumpyFlat, served: ServedStore) -> None:
    """Passages, scores to the bit, vectors for the pool; as wide as asked."""
    queries = [here.encode(text) for text in ("red ship", "blue", "the sky")]

    assert here.search(queries) == served.search(queries)
    assert served.search([]) == []
    [wide] = served.search_wide(queries[:1], 5)
    assert here.search_wide(queries[:1], 5) == [wide]
    assert all(
        np.array_equal(hit.features, here.corpus.vectors[int(hit.passage.id[1:])]) for hit in wide
    )


def test_many_ask_at_once(here: NumpyFlat, served: ServedStore) -> None:
    """Each thread has a connection of its own, and its own answers."""
    found: dict[int, list[Hits]] = {}

    def ask(number: int) -> None:
        query = here.encode(TEXTS[number])
        found[number] = [served.search([query])[0] for _ in range(20)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(TEXTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {
        number: here.search([here.encode(text)]) * 20 for number, text in enumerate(TEXTS)
    } == found


def test_a_closed_service_has_ended(here: NumpyFlat, tmp_path: Path) -> None:
    """It listened on a local socket, which never waits as TCP does; nobody answers there now."""
    save(here, tmp_path / "kb")
    with service(tmp_path / "kb", wait_s=0.0, threads=1, core=None) as address:
        assert Path(address).is_socket()

    assert not Path(address).parent.exists()
    with pytest.raises(OSError, match="No such file"):
        ServedStore(address, here).search([here.encode(TEXTS[0])])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_cannot_be_served_is_said(tmp_path: Path) -> None:
    """There is no store in an empty folder."""
    gone = service(tmp_path, wait_s=0.0, threads=1, core=None)
    with pytest.raises(RalmSpecError, match="could not be served"), gone:
        pass
