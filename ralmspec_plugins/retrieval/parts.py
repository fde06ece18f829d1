"""What a retriever hands to storage, and gets back: nothing but passages, arrays and settings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import IndexFileError
from ralmspec_plugins.retrieval.dense import DenseCorpus, Measured
from ralmspec_plugins.retrieval.encoders import Encoder, encoder_from, encoder_name
from ralmspec_plugins.retrieval.ranking import LARGEST_NORM, Metric
from ralmspec_plugins.types import Passage

WriteTo: TypeAlias = Callable[[Callable[[bytes], Any]], None]


@dataclass(frozen=True, slots=True)
class Parts:
    """A retriever taken apart. Settings are plain JSON values.

    `files` are for what is too large for memory, or is opened by a library of
    its own: the names say where they shall lie in the saved folder ("index.bin",
    or "lucene/segments_1" in a folder of theirs), the values where they lie now.
    They are copied when saved, and when loaded given back as checked paths.
    `written` are such files that do not lie anywhere yet: each value is called
    with a function, and writes the file to it piece by piece.
    """

    backend: str
    settings: Mapping[str, Any]
    passages: Sequence[Passage]
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    blobs: Mapping[str, bytes] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    written: Mapping[str, WriteTo] = field(default_factory=dict)

    @classmethod
    def of_dense(cls, backend: str, corpus: DenseCorpus, k: int, **extra: Any) -> "Parts":
        """Take a dense corpus apart."""
        settings = {
            "k": k,
            "metric": corpus.metric.value,
            "dimension": corpus.dimension,
            "fingerprint": corpus.print,
            "largest_norm": corpus.largest_norm,
            "encoder": encoder_name(corpus.encoder),
            "encoder_settings": getattr(corpus.encoder, "settings", None),
            **extra,
        }
        arrays = {"vectors": corpus.vectors}
        if corpus.squares is not None:
            arrays["squares"] = corpus.squares
        return cls(backend, settings, corpus.passages, arrays)

    def dense(self, encoder: Encoder | None) -> DenseCorpus:
        """Put a dense corpus together again, its encoder made anew where that is possible.

        Raises:
            IndexFileError: another encoder than the saved one, or vectors that do not fit.
        """
        vectors = self.array("vectors")
        dimension = self.setting("dimension")
        if vectors.shape != (len(self.passages), dimension):
            raise IndexFileError(
                f"vectors.npy has shape {vectors.shape}, but kb.json says "
                f"{(len(self.passages), dimension)}; build the knowledge base again"
            )
        metric = self.setting("metric")
        return DenseCorpus(
            self.passages,
            vectors,
            self._encoder(encoder),
            metric,
            measured=self._measured(metric),
        )

    def _measured(self, metric: str) -> Measured:
        largest = self.setting("largest_norm")
        if not isinstance(largest, float) or not 0 <= largest < LARGEST_NORM:
            raise IndexFileError(
                f"kb.json says that the longest vector has the length {largest!r}; build it again"
            )
        squares = self.array("squares") if metric == Metric.L2 else None
        if squares is not None and (
            squares.shape != (len(self.passages),) or squares.dtype != np.float32
        ):
            raise IndexFileError(
                f"squares.npy is a {squares.dtype} array of shape {squares.shape}, but there are "
                f"{len(self.passages)} passages; build the knowledge base again"
            )
        return Measured(self.setting("fingerprint"), largest, squares)

    def _encoder(self, given: Encoder | None) -> Encoder | None:
        saved = self.setting("encoder")
        settings = self.settings.get("encoder_settings")
        if given is None:
            return encoder_from(settings) if settings else None
        name = encoder_name(given)
        if settings and name != saved:
            raise IndexFileError(
                f"this knowledge base was encoded by {saved!r}, got the encoder {name!r}; "
                "give the same encoder, or build it again"
            )
        return given

    def setting(self, name: str) -> Any:
        """Give a setting.

        Raises:
            IndexFileError: kb.json lacks it.
        """
        if name not in self.settings:
            raise IndexFileError(f"kb.json lacks the setting {name!r}; build the index again")
        return self.settings[name]

    def array(self, name: str) -> NDArray[Any]:
        """Give an array.

        Raises:
            IndexFileError: it was not saved.
        """
        if name not in self.arrays:
            raise IndexFileError(f"the knowledge base lacks {name}.npy; build it again")
        return self.arrays[name]

    def blob(self, name: str) -> bytes:
        """Give a file's bytes.

        Raises:
            IndexFileError: it was not saved.
        """
        if name not in self.blobs:
            raise IndexFileError(f"the knowledge base lacks {name}; build it again")
        return self.blobs[name]

    def file(self, name: str) -> Path:
        """Give the place of a file, which is not read.

        Raises:
            IndexFileError: it was not saved.
        """
        if name not in self.files:
            raise IndexFileError(f"the knowledge base lacks {name}; build it again")
        return self.files[name]
