"""Runs a model over windows of text, and takes the keys of a datastore from each pass."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import MissingExtraError
from ralmspec_plugins.knn.building_windows import Window
from ralmspec_plugins.knn.datastore_info import KeyKind

try:
    import torch
    from transformers import PreTrainedModel
except ImportError as missing:
    raise MissingExtraError("hf", "transformers with torch") from missing

from ralmspec_plugins.knn.hidden import KeyTap
from ralmspec_plugins.retrieval.corpus import batched


class KeyMaker:
    """Makes keys, some windows of similar length in one pass, padded behind.

    A causal model does not look ahead, so padding is never seen. It does change a
    number's last bits, as everything that shares a pass does; so a portion of windows
    is always shared out in the same way. The part that makes logits is not run.
    """

    def __init__(self, model: PreTrainedModel, kind: KeyKind, together: int) -> None:
        """Make keys with this model, so many windows in a pass; it is put into evaluation mode.

        Raises:
            ModelError: it cannot be said where in this model such a hidden state is.
        """
        whole: Any = model.train(False)  # its functions are untyped
        self._decoder = whole.get_decoder()
        self._embedding = whole.get_input_embeddings()  # where tokens go in: its device
        self._tap = KeyTap(model, kind)
        self.kind: KeyKind = kind
        self._together = together
        self._precision = str(model.dtype).removeprefix("torch.")
        self.dimension = self._tap.dimension

    @property
    def identity(self) -> Mapping[str, Any]:
        """Name what the keys' bits depend on besides the weights and the windows."""
        kind = self._embedding.weight.device.type
        return {"key_kind": self.kind, "precision": self._precision, "device": kind}

    def keys(self, windows: Sequence[Window]) -> NDArray[np.float16]:
        """Give the keys of all new positions, window after window.  # [entries, dimension].

        What float16 cannot hold becomes infinity.
        """
        by_length = sorted(range(len(windows)), key=lambda row: len(windows[row].tokens))
        parts: dict[int, NDArray[np.float16]] = {}
        for rows in batched(by_length, self._together):
            parts.update(zip(rows, self._pass([windows[row] for row in rows]), strict=True))
        return np.concatenate([parts[row] for row in range(len(windows))])

    def _pass(self, windows: Sequence[Window]) -> list[NDArray[np.float16]]:
        """Run some windows together, and give each one's keys."""
        longest = max(len(window.tokens) for window in windows)
        padded = np.zeros((len(windows), longest), dtype=np.int64)
        for row, window in zip(padded, windows, strict=True):
            row[: len(window.tokens)] = window.tokens
        with torch.inference_mode():
            ids = torch.from_numpy(padded).to(self._embedding.weight.device)
            self._decoder(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
            states = self._tap.taken()
            rows = [
                state[len(window.tokens) - len(window.following) : len(window.tokens)]
                for state, window in zip(states, windows, strict=True)
            ]
            keys: NDArray[np.float16] = torch.cat(rows).to(torch.float16).cpu().numpy()
        ends = np.cumsum([len(window.following) for window in windows])
        return np.split(keys, ends[:-1])
