"""KNN-LM: a language model that looks its next token up in a datastore, speculatively.

`build_datastore` makes the datastore, `KNNLanguageModel` writes with it. Nothing here
imports torch until one of them is asked for. The parts:

- `datastore`: keys (hidden states) and values (next tokens) on the disk;
- `building`: makes a datastore of any texts with any causal Hugging Face model;
- `hidden`: finds the hidden state that is the key;
- `fingerprints`: tell one tokenizer, and one model, from another;
- `search`: finds a hidden state's neighbours, exactly or approximately;
- `cache`: guesses them from what follows the last ones;
- `distribution`: mixes what they vote for with what the model says;
- `model`: drives the model a token at a time;
- `perplexity`: measures how well held-out texts are foretold;
- `language_model`: all of it together.

The workload itself is `ralmspec_plugins.knn.workload.KNNLM`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ralmspec_plugins.knn.cache import NeighbourCache
from ralmspec_plugins.knn.datastore import Datastore
from ralmspec_plugins.knn.datastore_info import DatastoreInfo
from ralmspec_plugins.knn.distribution import Mixing
from ralmspec_plugins.knn.neighbours import Neighbours
from ralmspec_plugins.knn.search import open_search

if TYPE_CHECKING:
    from ralmspec_plugins.knn.building import build_datastore
    from ralmspec_plugins.knn.language_model import KNNLanguageModel

__all__ = [
    "Datastore",
    "DatastoreInfo",
    "KNNLanguageModel",
    "Mixing",
    "NeighbourCache",
    "Neighbours",
    "build_datastore",
    "open_search",
]

_WITH_TORCH = {"KNNLanguageModel": "language_model", "build_datastore": "building"}


def __getattr__(name: str) -> Any:
    """Import what needs torch on first use."""
    if name in _WITH_TORCH:
        return getattr(import_module(f"{__name__}.{_WITH_TORCH[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
