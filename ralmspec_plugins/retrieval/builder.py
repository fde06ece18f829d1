"""Build a knowledge base on the disk in bounded memory; an interrupted build is resumed."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.retrieval.artifacts import write
from ralmspec_plugins.retrieval.dense import norm_of, normalise, squared_norms
from ralmspec_plugins.retrieval.encoders import (
    BATCH,
    Encoder,
    HashingEncoder,
    check_batch,
    encode_batch,
    encoder_name,
)
from ralmspec_plugins.retrieval.ranking import Metric, Vectors, metric_of
from ralmspec_plugins.retrieval.registry import KnowledgeBase, load, needs_encoder, open_retriever
from ralmspec_plugins.retrieval.storage.corpus import (
    SeenIds,
    batched,
    check_k,
    passage_line,
    places_by_merging,
)
from ralmspec_plugins.retrieval.storage.files import (
    OFFSETS,
    PASSAGE_FILES,
    PASSAGES,
    PLACES,
    PassageFile,
    open_array,
    write_array,
)
from ralmspec_plugins.retrieval.storage.format import check_target
from ralmspec_plugins.retrieval.storage.journal import (
    ResumableBuild,
    building,
    digest,
    start_anew,
)
from ralmspec_plugins.types import Passage

# The source of a build's vectors: an encoder, or an existing array.


_SAME_ENCODER = 0.01  # relative; far above the differences of batches and devices


class Source(Protocol):
    """Returns the vectors of each batch, reproducibly."""

    encoder: Encoder | None

    @property
    def identity(self) -> Mapping[str, Any]:
        """Return all that the vectors depend on, which is compared when a build is resumed."""
        ...

    def rows(self, first: int, passages: Sequence[Passage]) -> Vectors:
        """Return the vectors of a batch.  # [passages, dim]."""
        ...

    def compare(self, first: int, passages: Sequence[Passage], recorded: Vectors) -> None:
        """Check that recorded vectors are those of this source."""
        ...

    def check_count(self, count: int) -> None:
        """Check the total number of passages."""
        ...


class Encoded:
    """Vectors by an encoder, one batch at a time."""

    def __init__(self, encoder: Encoder, metric: str) -> None:
        """Create the source for a metric."""
        self.encoder: Encoder | None = encoder
        self._encode = encoder
        self._metric = metric
        self._dimension: int | None = None

    @property
    def identity(self) -> Mapping[str, Any]:
        """Return encoder and metric; a nameless function has its qualified name."""
        encoder = self._encode
        name = getattr(encoder, "name", None) or getattr(encoder, "__qualname__", None)
        kind = type(encoder).__qualname__
        return {"encoder": name or kind, "metric": self._metric, "vectors": "encoded"}

    def rows(self, first: int, passages: Sequence[Passage]) -> Vectors:
        """Encode a batch.

        Raises:
            InputError: the vectors have NaN, or another shape than before.
        """
        rows = encode_batch(self._encode, passages)
        self._dimension = self._dimension or rows.shape[1]
        check_batch(self._encode, rows, (len(passages), self._dimension))
        return _ready(rows, self._metric, first)

    def compare(self, first: int, passages: Sequence[Passage], recorded: Vectors) -> None:
        """Encode the first passage again, since another model may have the same name.

        Raises:
            IndexFileError: the vector differs.
        """
        if first == 0:
            again = self.rows(0, passages[:1])[0]
            same = again.shape == recorded[0].shape
            if not same or norm_of(again - recorded[0]) > _SAME_ENCODER * norm_of(recorded[0]):
                raise start_anew(
                    f"the encoder {encoder_name(self._encode)} gives passage "
                    f"{passages[0].id!r} another vector than before",
                    "use the same to continue",
                )

    def check_count(self, count: int) -> None:
        """Do nothing: any number can be encoded."""


class Given:
    """Existing vectors, in memory or in a .npy file, converted in blocks."""

    def __init__(
        self,
        vectors: NDArray[Any] | str | os.PathLike[str],
        encoder: Encoder | None,
        metric: str,
    ) -> None:
        """Check the shape of the vectors, without reading them.

        Raises:
            InputError: they are not a two-dimensional array of floating numbers, the file cannot
                be read, or the encoder returns vectors of another dimension.
        """
        self.encoder = encoder
        self._metric = metric
        self._vectors = vectors if isinstance(vectors, np.ndarray) else _opened(Path(vectors))
        shape, kind = self._vectors.shape, self._vectors.dtype
        if len(shape) != 2 or shape[1] < 1 or kind.kind != "f":
            raise InputError(
                "vectors must be an array of floating numbers of shape (passages, dimension), got "
                f"{kind} of shape {shape}"
            )
        if encoder is not None:
            made = np.asarray(encoder("Does the encoder fit the vectors?")).shape
            if made != shape[1:]:
                raise InputError(
                    f"the encoder {encoder_name(encoder)} gave a vector of shape {made}, but the "
                    f"passages' have {shape[1]} dimensions; use the encoder that encoded the "
                    "passages"
                )

    @property
    def identity(self) -> Mapping[str, Any]:
        """Return the metric: the blocks themselves are compared."""
        return {"encoder": None, "metric": self._metric, "vectors": "given"}

    def rows(self, first: int, passages: Sequence[Passage]) -> Vectors:
        """Convert a block.

        Raises:
            InputError: there are too few vectors, or NaN.
        """
        last = first + len(passages)
        if last > len(self._vectors):
            raise InputError(
                f"{last} passages, or more, need as many vectors, got an array of shape "
                f"{self._vectors.shape}"
            )
        with np.errstate(over="ignore"):  # becomes infinity, which is an error
            rows = self._vectors[first:last].astype(np.float32)
        return _ready(rows, self._metric, first)

    def compare(self, first: int, passages: Sequence[Passage], recorded: Vectors) -> None:
        """Convert the block again.

        Raises:
            IndexFileError: it differs.
        """
        if not np.array_equal(self.rows(first, passages), recorded):
            raise start_anew(
                f"the vectors of passages {first} to {first + len(passages) - 1} are not those "
                "that were given before",
                "use the same to continue",
            )

    def check_count(self, count: int) -> None:
        """Check that there are no more vectors than passages.

        Raises:
            InputError: there are more.
        """
        if count != len(self._vectors):
            raise InputError(
                f"{count} passages need as many vectors, got an array of shape "
                f"{self._vectors.shape}"
            )


def _ready(rows: Vectors, metric: str, first: int) -> Vectors:
    """Check rows, and normalise them for cosine, each separately."""
    squares = squared_norms(rows, first)
    return normalise(rows, squares, rows) if metric == Metric.COSINE else rows


def _opened(file: Path) -> NDArray[Any]:
    if not file.is_file():
        raise InputError(f"there is no file {file}; vectors are read from a .npy file")
    try:
        return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise InputError(f"{file} is not a plain numpy array: {error}") from error


VECTORS = "vectors.npy"
_GROWING = (PASSAGES, VECTORS)
Stage: TypeAlias = Literal["checking", "encoding", "indexing"]
Watcher: TypeAlias = Callable[[Stage, int], None]


def build_index(
    passages: Iterable[Passage],
    target: str | os.PathLike[str],
    encoder: Encoder | None = None,
    *,
    backend: str = "numpy-flat",
    vectors: NDArray[Any] | str | os.PathLike[str] | None = None,
    metric: str = Metric.IP,
    batch_size: int = BATCH,
    progress: Watcher | None = None,
    restart: bool = False,
    **settings: Any,
) -> KnowledgeBase:
    """Build a dense knowledge base on the disk, in batches, and open it.

    Passages are read as a stream, and neither they nor their vectors are kept
    in memory. Each batch is written immediately to a hidden folder next to the
    target: after a crash, a full disk or Ctrl-C the same call continues after the
    last complete batch, and returns the same files, to the byte, as an
    uninterrupted one. The target is replaced atomically at the end.

    Args:
        passages: read once, from the start at each call; see `stream_passages`.
        target: the folder of the knowledge base.
        encoder: converts texts to vectors; `HashingEncoder()` unless it or vectors are given.
        backend: a dense one.
        vectors: the passages' vectors in order, or their .npy file, of any
            floating type and any size; then the encoder is for queries only.
        metric: "ip", "cosine" or "l2".
        batch_size: passages encoded together; a crash loses at most one batch.
        progress: called with a stage and the number of passages that it has processed: "checking"
            those of an earlier run, "encoding", "indexing".
        restart: discard an unfinished build of this target.
        settings: other arguments of the backend's `build` (`k`, `search_list`, ...); they may
            change when an unfinished build is resumed. Settings that are not saved, such as
            `threads`, have no effect on the returned knowledge base.

    Raises:
        ConfigError: the backend is unknown or has no vectors, or an unfinished build has another
            encoder, metric or batch size.
        InputError: there are no passages, duplicate ids, or invalid vectors.
        IndexFileError: the target is something else, another process is building it, or an
            unfinished build has other passages.
    """
    place = Path(target).resolve()  # a link keeps leading to it
    check_target(place)
    _rehearse(backend, metric, batch_size, settings)
    source: Source = (
        Encoded(encoder or HashingEncoder(), metric)
        if vectors is None
        else Given(vectors, encoder, metric)
    )
    identity = {"batch_size": batch_size, **source.identity}
    cheap = isinstance(source, Given)
    with building(place, identity, "passages", _GROWING, restart=restart, cheap=cheap) as build:
        index = _IndexBuild(build, source, progress or _unwatched)
        index.fill(batched(passages, batch_size))
        index.publish(place, backend, metric, settings)
    return load(place, source.encoder, verify="sizes")


def _unwatched(stage: Stage, passages: int) -> None:
    """Report nothing."""


def _rehearse(backend: str, metric: str, batch_size: int, settings: dict[str, Any]) -> None:
    """Check the settings before passages are encoded."""
    if not needs_encoder(backend):
        raise ConfigError(
            f"the backend {backend!r} takes no vectors, so there is nothing to resume; build "
            "it with open_retriever, and save that"
        )
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
    metric_of(metric)
    check_k(settings.get("k", 1))
    try:  # all settings are read before the passages, of which there are none
        open_retriever(
            backend, [], vectors=np.empty((0, 1), dtype=np.float32), metric=metric, **settings
        )
    except InputError:
        return
    raise AssertionError(f"{backend} built a knowledge base without passages")


class _IndexBuild:
    """One attempt to build a knowledge base, in a locked folder."""

    def __init__(self, build: ResumableBuild, source: Source, progress: Watcher) -> None:
        self._build = build
        self._lines = build.folder / PASSAGES
        self._source = source
        self._progress = progress
        self._seen = SeenIds()
        self._lengths: list[NDArray[np.int64]] = []  # of lines
        self._dimension = 0

    def fill(self, batches: Iterable[Sequence[Passage]]) -> None:
        """Write all missing passages and vectors to the disk."""
        build, source = self._build, self._source
        for some in batches:
            lines = [passage_line(passage).encode() for passage in some]
            self._lengths.append(np.fromiter(map(len, lines), dtype=np.int64))
            first, content = build.rows, b"".join(lines)
            self._refuse_doubles(some, first)
            name = digest(content)
            there = build.recorded(name, len(some))
            if there is None:
                rows = source.rows(first, some)
                build.append(name, len(some), [content, rows])
            else:
                rows = np.frombuffer(there[1], "<f4").reshape(len(some), -1)
                source.compare(first, some, rows)
            self._dimension = rows.shape[1]
            self._progress("encoding" if there is None else "checking", build.rows)
        if not build.rows:
            raise InputError("the knowledge base is empty; give at least one passage")
        source.check_count(build.rows)
        build.end()

    def _refuse_doubles(self, some: Sequence[Passage], count: int) -> None:
        ids = [passage.id for passage in some]
        suspects = self._seen.add(ids)
        if not suspects:
            return
        rows: dict[str, int] = {}
        for row, name in enumerate(chain(self._ids(count), ids)):
            if name in suspects and rows.setdefault(name, row) != row:
                raise InputError(
                    f"two passages have the id {name!r} (rows {rows[name]} and {row}); "
                    "ids must be unique"
                )

    def _ids(self, count: int) -> Iterator[str]:
        """Read the ids of the first passages again."""
        if count:
            with self._lines.open("rb") as lines:
                for line in islice(lines, count):
                    yield json.loads(line)["id"]

    def publish(self, target: Path, backend: str, metric: str, settings: dict[str, Any]) -> None:
        """Index the files on the disk, and move them to the target; large files are not copied."""
        build, folder, count = self._build, self._build.folder, self._build.rows
        self._progress("indexing", 0)
        places = places_by_merging(self._ids(count), folder)
        build.finish_array(VECTORS, "<f4", (self._dimension,))
        offsets = np.concatenate([[0], np.concatenate(self._lengths).cumsum()])
        for name, array in ((OFFSETS, offsets), (PLACES, places)):
            write_array(folder / name, array)
        vectors = open_array(folder / VECTORS)
        passages = PassageFile.open(folder, count)
        given: dict[str, Any] = {"vectors": vectors, "metric": metric, **settings}
        parts = open_retriever(backend, passages, self._source.encoder, **given).parts()
        own = parts.arrays.get("vectors") is vectors
        there = {name: folder / name for name in (*PASSAGE_FILES, *([VECTORS] * own))}
        build.publish(target, lambda fresh: write(parts, fresh, there), check_target)
        self._progress("indexing", count)
