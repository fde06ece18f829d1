"""What a retriever hands to storage, and gets back: nothing but passages, arrays and settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ralmspec_plugins.errors import IndexFileError
from ralmspec_plugins.records import Passage
from ralmspec_plugins.retrieval.dense import DenseCorpus
from ralmspec_plugins.retrieval.encoders import Encoder, encoder_from, encoder_name


@dataclass(frozen=True, slots=True)
class Parts:
    """A retriever taken apart. Settings are plain JSON values.

    `files` are for what is too large for memory, or is opened by a library of
    its own: the values are where they lie now, the names where they shall lie in
    the saved folder ("index.bin", or "lucene/segments_1" in a folder of theirs).
    They are copied when saved, and when loaded given back as checked paths.
    """

    backend: str
    settings: Mapping[str, Any]
    passages: Sequence[Passage]
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    blobs: Mapping[str, bytes] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def of_dense(cls, backend: str, corpus: DenseCorpus, k: int, **extra: Any) -> "Parts":
        """Take a dense corpus apart."""
        settings = {
            "k": k,
            "metric": corpus.metric.value,
            "dimension": corpus.dimension,
            "fingerprint": corpus.print,
            "encoder": encoder_name(corpus.encoder),
            "encoder_settings": getattr(corpus.encoder, "settings", None),
            **extra,
        }
        return cls(backend, settings, corpus.passages, {"vectors": corpus.vectors})

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
        return DenseCorpus(
            self.passages,
            vectors,
            self._encoder(encoder),
            self.setting("metric"),
            print_of_files=self.setting("fingerprint"),
        )

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
