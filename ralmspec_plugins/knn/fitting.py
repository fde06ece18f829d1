"""Puts a model and a search beside a datastore, and refuses those that do not fit it."""

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.knn.datastore import Datastore
from ralmspec_plugins.knn.fingerprints import model_fingerprint, tokenizer_fingerprint
from ralmspec_plugins.knn.hidden import KeyTap
from ralmspec_plugins.knn.model import KNNModel
from ralmspec_plugins.knn.search import NeighbourSearch, open_search
from ralmspec_plugins.lm.limits import vocabulary_size

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GUESSED = 64  # neighbours that a replica looks for, unless it is given opened
_MOST_THREADS = 8  # more wait for memory, and for each other at Python's lock


def fitting_model(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    store: Datastore,
    cache_bytes: int,
    *,
    same_model: bool,
) -> KNNModel:
    """Drive a model as it was driven when it made a datastore's keys.

    Args:
        model: a causal model.
        tokenizer: its tokenizer.
        store: the datastore.
        cache_bytes: the most memory for key-value caches that are not in use.
        same_model: refuse weights that did not make the keys.

    Raises:
        ModelError: they do not fit each other; the message names what differs.
    """
    about = store.about
    store.check_fits(
        dimension=KeyTap(model, about.key_kind).dimension,
        vocabulary=vocabulary_size(model),
        key_kind=about.key_kind,
        tokenizer=tokenizer_fingerprint(tokenizer),
        model=model_fingerprint(model) if same_model else "",
    )
    return KNNModel(
        model, tokenizer, key_kind=about.key_kind, bos=about.bos, cache_bytes=cache_bytes
    )


def exact_threads() -> int | None:
    """Say on how many threads of its own an exact search should scan; `None` for BLAS's."""
    if find_spec("threadpoolctl") is None:
        return None
    known = hasattr(os, "sched_getaffinity")  # not on every system
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return min(cores, _MOST_THREADS)


def fitting_search(store: Datastore, search: str | NeighbourSearch, k: int) -> NeighbourSearch:
    """Open a search of a datastore by its name, or take one that is open.

    An exact one that is opened here scans on threads of its own, where threadpoolctl is
    installed: 16 queries then take half as long as on BLAS's (docs/knn_lm.md).

    Raises:
        ConfigError: an unknown name, k below 1, or a search of another datastore.
    """
    if search == "exact":
        return open_search(search, store, k=k, threads=exact_threads())
    if isinstance(search, str):
        return open_search(search, store, k=k)
    if search.datastore.signature != store.signature:
        raise ConfigError("the search that was given is of another datastore; open one of this")
    return search
