"""An exact search in a process of its own: the same neighbours, and nothing left behind."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.knn.ways import AwaySearch, BesideSearch, served
from ralmspec_plugins.errors import InputError, RalmSpecError
from ralmspec_plugins.knn.datastore import ABOUT, FILES, Datastore, about_bytes
from ralmspec_plugins.knn.search import ExactSearch
from ralmspec_plugins.types import Query


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A datastore on the disk, with keys that tie."""
    dice = np.random.default_rng(0)
    keys = dice.integers(0, 3, (300, 4))
    store = Datastore.of(keys, dice.integers(0, 9, 300), [100, 300])
    for name, array in zip(FILES, (store.keys, store.values, store.document_ends), strict=True):
        np.save(tmp_path / name, array)
    (tmp_path / ABOUT).write_bytes(about_bytes(store.about, tmp_path))
    return tmp_path


def test_it_finds_what_an_exact_search_finds(folder: Path) -> None:
    """To the bit, ties included, for any width and batch; the cores are given back."""
    store = Datastore.open(folder)
    hidden = np.random.default_rng(1).random((5, 4), dtype=np.float32)
    queries = [Query("", one, key=one.tobytes()) for one in hidden]
    here = ExactSearch(store, k=7)
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None

    with served(folder) as address:
        beside = BesideSearch(address, store, 7)
        found = beside.search(queries), beside.search_wide(queries[:1], 300)
        assert beside.search([]) == []
        with pytest.raises(InputError):
            beside.encode("a text")

    assert found == (here.search(queries), here.search_wide(queries[:1], 300))
    assert cores is None or os.sched_getaffinity(0) == cores


def test_what_cannot_be_served_is_said(folder: Path) -> None:
    """A process that does not come up is no silence; its own message stands above ours."""
    (folder / ABOUT).unlink()

    with pytest.raises(RalmSpecError, match="could not be served"), served(folder):
        pass


def test_a_search_behind_a_delay_finds_the_same(folder: Path) -> None:
    """Each round trip waits, whatever its batch; all else is the inner search's."""
    store = Datastore.open(folder)
    inner = ExactSearch(store, k=7)
    away = AwaySearch(inner, delay_s=0.02)
    queries = [Query("", one) for one in np.eye(4, dtype=np.float32)]
    began_s = time.perf_counter()

    assert inner.search(queries) == away.search(queries)
    assert time.perf_counter() - began_s >= 0.02
    assert (inner.k, inner.exact, inner.signature) == (away.k, away.exact, away.signature)
    with pytest.raises(InputError):
        away.encode("a text")
