"""Ids that occur twice are found, and ids are ordered, whatever the amount."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ralmspec_plugins.errors import InputError
from ralmspec_plugins.retrieval.storage import corpus
from ralmspec_plugins.retrieval.storage.corpus import SeenIds, places_by_merging, places_of
from ralmspec_plugins.types import Passage

some_ids = st.text(st.characters(), max_size=3)


@given(batches=st.lists(st.lists(some_ids, max_size=6), max_size=30))
def test_each_repetition_is_suspected_when_it_comes(batches: list[list[str]]) -> None:
    """Of a batch, exactly those that came before, or stand in it twice, are named."""
    seen = SeenIds()
    before: set[str] = set()
    for ids in batches:
        expected = {name for name in ids if name in before or ids.count(name) > 1}

        assert expected == seen.add(ids)
        before.update(ids)


def test_ids_that_share_a_hash_are_both_suspected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Suspects are looked up by the caller, so too many are no harm, and one missed would be."""
    monkeypatch.setattr(corpus, "hash", len, raising=False)
    seen = SeenIds()

    assert set() == seen.add(["a", "bb"])
    assert {"cc"} == seen.add(["cc", "ddd"])


@given(ids=st.lists(some_ids, min_size=1, max_size=40, unique=True), run=st.integers(1, 50))
def test_sorting_on_the_disk_gives_the_same_places(ids: list[str], run: int) -> None:
    """However many parts there are, lone surrogates and line ends in ids included."""
    expected = places_of([Passage(name, "") for name in ids]).tolist()
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        patch.setattr(corpus, "_RUN", run)

        assert expected == places_by_merging(iter(ids), Path(folder)).tolist()
        assert [] == list(Path(folder).iterdir())


@pytest.mark.parametrize("run", [1, 2, 10])
def test_sorting_finds_two_equal_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: int
) -> None:
    """In one part or in two."""
    monkeypatch.setattr(corpus, "_RUN", run)
    with pytest.raises(InputError, match=r"the id 'x' \(rows 1 and 3\)"):
        places_by_merging(["b", "x", "a", "x"], tmp_path)
