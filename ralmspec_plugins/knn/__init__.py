"""KNN-LM: a language model that looks its next token up in a datastore, speculatively.

Nothing here imports torch until a model is driven. The parts:

- `datastore`: keys (hidden states) and values (next tokens) on the disk;
- `building`: makes a datastore of any texts with any causal Hugging Face model;
- `hidden`: finds the hidden state that is the key;
- `fingerprints`: tell one tokenizer, and one model, from another.
"""

from ralmspec_plugins.knn.datastore import Datastore
from ralmspec_plugins.knn.datastore_info import DatastoreInfo

__all__ = ["Datastore", "DatastoreInfo"]
