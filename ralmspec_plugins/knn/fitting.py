"""Puts a model and a search beside a datastore, and refuses those that do not fit it."""

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


def fitting_search(store: Datastore, search: str | NeighbourSearch, k: int) -> NeighbourSearch:
    """Open a search of a datastore by its name, or take one that is open.

    Raises:
        ConfigError: an unknown name, k below 1, or a search of another datastore.
    """
    if isinstance(search, str):
        return open_search(search, store, k=k)
    if search.datastore.signature != store.signature:
        raise ConfigError("the search that was given is of another datastore; open one of this")
    return search
