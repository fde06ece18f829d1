"""KNN-LM: a language model that retrieves neighbours for each token, speculatively.

`build_datastore` builds the datastore, `KNNLanguageModel` generates with it. Torch is
imported on first use of one of them. The modules:

- `datastore`: keys (hidden states) and values (next tokens) on disk;
- `build`, `windows`: build a datastore from texts with a causal Hugging Face model;
- `hidden_states`: finds the hidden state that is the key of a position;
- `search`, `ann_search`, `ann_index`: the neighbours of a hidden state, exact or approximate;
- `cache`: guesses them from the entries that follow earlier neighbours;
- `interpolation`: mixes the neighbours' distribution with the model's;
- `model`: drives the model one token at a time;
- `state`: a draft and the model's output at its last position;
- `workload`: one step per token on the speculative loop;
- `perplexity`: perplexity of held-out texts;
- `language_model`: the combination of all parts.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ralmspec_plugins.knn.cache import NeighbourCache
from ralmspec_plugins.knn.datastore import Datastore, DatastoreInfo
from ralmspec_plugins.knn.interpolation import Mixing
from ralmspec_plugins.knn.search import Neighbours, open_search

if TYPE_CHECKING:
    from ralmspec_plugins.knn.build import build_datastore
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

_WITH_TORCH = {"KNNLanguageModel": "language_model", "build_datastore": "build"}


def __getattr__(name: str) -> Any:
    """Import what needs torch on first use."""
    if name in _WITH_TORCH:
        return getattr(import_module(f"{__name__}.{_WITH_TORCH[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
