"""A datastore of KNN-LM: for each token of a text, a hidden state and the token that came next.

A folder holds `keys.npy` (float16), `values.npy` (int32), `document_ends.npy`
(int64) and `about.json`. Entries are in the order of the text, so the ones
after an entry are the continuation of its text. Nothing is pickled.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, TypeVar, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ralmspec_plugins.errors import ConfigError, IndexFileError, InputError, ModelError
from ralmspec_plugins.retrieval.storage.files import DAMAGE, open_array
from ralmspec_plugins.retrieval.storage.format import (
    RecordKind,
    Verify,
    check_file,
    check_verify,
    file_record,
    opened_whole,
    read_record,
)
from ralmspec_plugins.retrieval.storage.journal import npy_header

# The description of a datastore, and the check of a model against it.


KeyKind: TypeAlias = Literal["ffn_input", "output"]
KEY_KINDS: tuple[KeyKind, ...] = get_args(KeyKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatastoreInfo:
    """The contents of a datastore's `about.json`; an empty text means unknown."""

    dimension: int  # of a key
    vocabulary: int  # values are below this
    entries: int
    documents: int  # those with at least one entry
    key_kind: KeyKind = "ffn_input"
    tokenizer: str = ""  # fingerprint
    model: str = ""  # fingerprint
    model_name: str = ""
    context: int = 0  # tokens of a window when it was built
    stride: int = 0  # tokens between the starts of windows
    bos: bool = False  # whether each document began with the tokenizer's BOS token
    eos: bool = False  # whether each document ended with the tokenizer's EOS token
    source: str = ""  # where the texts came from, in words

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InputError: a number is out of range, or the kind of keys is unknown.
        """
        for name in ("dimension", "vocabulary", "entries", "documents"):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise InputError(f"{name} must be a whole number of at least 1, got {number!r}")
        if self.key_kind not in KEY_KINDS:
            raise InputError(f"key_kind must be one of {', '.join(KEY_KINDS)}: {self.key_kind!r}")

    def check_fits(
        self,
        *,
        dimension: int,
        vocabulary: int,
        key_kind: str,
        tokenizer: str = "",
        model: str = "",
    ) -> None:
        """Check that a model's hidden states and tokens are compatible with the entries.

        An empty fingerprint on either side is not compared: omit
        `model` to use another precision or a fine-tuned model deliberately.

        Args:
            dimension: of the model's keys.
            vocabulary: the number of tokens in the model's distribution.
            key_kind: the hidden state of the queries.
            tokenizer: `tokenizer_fingerprint(...)`.
            model: `model_fingerprint(...)`.

        Raises:
            ModelError: it does not fit; the message names every field that differs.
        """
        problems = [
            f"{name} is {got!r} and must be {expected!r}"
            for name, got, expected in (
                ("the dimension of the model's keys", dimension, self.dimension),
                ("the model's vocabulary", vocabulary, self.vocabulary),
                ("the kind of keys", key_kind, self.key_kind),
            )
            if got != expected
        ]
        problems += [
            f"the {name}'s fingerprint is {got} and must be {expected}"
            for name, got, expected in (
                ("tokenizer", tokenizer, self.tokenizer),
                ("model", model, self.model),
            )
            if got and expected and got != expected
        ]
        if problems:
            made_with = f" ({self.model_name})" if self.model_name else ""
            raise ModelError(
                f"The datastore does not fit: {'; '.join(problems)}. Use the model and tokenizer "
                f"that it was built with{made_with}, or build one with yours: ralmspec knn build"
            )


# The files of a datastore's folder: their names, and the checks before they are used.


KEYS = "keys.npy"
VALUES = "values.npy"
DOCUMENT_ENDS = "document_ends.npy"
FILES = (KEYS, VALUES, DOCUMENT_ENDS)
ABOUT = "about.json"
_KIND = RecordKind(
    missing=f"is no datastore: it has no {ABOUT}; make one with ralmspec knn build",
    file=ABOUT,
    format="ralmspec-knn-datastore",
    version=1,
    again="build the datastore again",
)


def array_digest(array: NDArray[Any]) -> str:
    """Return the SHA-256 of an array's .npy file."""
    digest = hashlib.sha256(npy_header(array.dtype.str, array.shape))
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def about_bytes(info: DatastoreInfo, folder: Path) -> bytes:
    """Return the content of `about.json` for the files in a folder, reading each once."""
    files = {name: file_record(folder / name) for name in FILES}
    head = {"format": _KIND.format, "version": _KIND.version}
    record = {**head, "about": asdict(info), "files": files}
    return json.dumps(record, indent=2).encode() + b"\n"


def read_about(folder: Path, verify: Verify) -> tuple[DatastoreInfo, list[str]]:
    """Return `about.json`, and the digests of the files that it names, after checks.

    Raises:
        ConfigError: `verify` is unknown.
        IndexFileError: the folder is missing, damaged, or in another format.
    """
    check_verify(verify)
    record = read_record(folder, _KIND)
    try:
        info, files = DatastoreInfo(**record["about"]), record["files"]
        for name in FILES:
            check_file(folder / name, files[name], verify, _KIND.again)
        return info, [str(files[name]["sha256"]) for name in FILES]
    except IndexFileError:
        raise
    except DAMAGE as error:
        raise IndexFileError(f"{folder / ABOUT} is damaged ({error!r}); {_KIND.again}") from error


Ids: TypeAlias = NDArray[np.int64]
ScalarT = TypeVar("ScalarT", bound=np.generic)

_LARGEST = float(np.finfo(np.float16).max)  # 65504


class Datastore:
    """Keys and values by entry, an entry's id being its row; immutable, for any thread.

    Attributes:
        keys: float16, memory-mapped when opened from a folder.  # [entries, dimension]
        values: int32, the token that came next.  # [entries]
        document_ends: int64, ascending: where each document's entries end, exclusively.
            # [documents]
        about: its description.
        signature: a key of its content: equal for equal keys, values and document ends.
    """

    def __init__(
        self,
        keys: NDArray[np.float16],
        values: NDArray[np.int32],
        document_ends: Ids,
        about: DatastoreInfo,
        signature: str,
    ) -> None:
        """Store checked arrays; use `open` or `of`."""
        self.keys = keys
        self.values = values
        self.document_ends = document_ends
        self.about = about
        self.signature = signature

    @classmethod
    def open(cls, path: str | os.PathLike[str], verify: Verify = "sizes") -> Self:
        """Open a folder that `build_datastore` wrote; keys stay on the disk.

        Args:
            path: the folder.
            verify: "sizes" compares lengths and shapes, and reads values and document ends;
                "digests" reads the keys, too, and detects a changed byte.

        Raises:
            ConfigError: `verify` is unknown.
            IndexFileError: it is missing, damaged, or in another format.
        """
        check_verify(verify)
        folder = Path(path)
        return opened_whole(folder, lambda real: cls._open_once(real, verify))

    @classmethod
    def _open_once(cls, folder: Path, verify: Verify) -> Self:
        info, digests = read_about(folder, verify)
        keys, values, ends = (open_array(folder / name) for name in FILES)
        problem = _problem(keys, values, ends, info)
        if problem:
            raise IndexFileError(f"{folder} is damaged: {problem}; build the datastore again")
        return cls(keys, values, ends, info, _signature(digests))

    @classmethod
    def of(
        cls,
        keys: ArrayLike,
        values: ArrayLike,
        document_ends: ArrayLike | None = None,
        about: DatastoreInfo | None = None,
    ) -> Self:
        """Return a datastore in memory.

        Args:
            keys: any floating type; rounded to float16.  # [entries, dimension]
            values: tokens.  # [entries]
            document_ends: one document by default.
            about: the description; minimal by default.

        Raises:
            InputError: they are incompatible, or a key is not finite in float16.
        """
        with np.errstate(over="ignore"):  # becomes infinity, which is an error
            rounded = np.ascontiguousarray(keys, dtype=np.float16)
        tokens = np.ascontiguousarray(values, dtype=np.int32)
        ends = np.array([len(tokens)] if document_ends is None else document_ends, dtype=np.int64)
        if rounded.ndim != 2 or not tokens.size:
            raise InputError(
                "keys must be of shape (entries, dimension), with a value for each and at least "
                f"one, got keys of shape {rounded.shape} and values of shape {tokens.shape}"
            )
        check_keys(rounded)
        if about is None:
            about = DatastoreInfo(
                dimension=rounded.shape[1],
                vocabulary=int(tokens.max()) + 1,
                entries=len(tokens),
                documents=len(ends),
            )
        problem = _problem(rounded, tokens, ends, about)
        if problem:
            raise InputError(f"These arrays are no datastore: {problem}")
        digests = [array_digest(rounded), array_digest(tokens), array_digest(ends)]
        return cls(_fixed(rounded), _fixed(tokens), _fixed(ends), about, _signature(digests))

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self.values)

    def following(self, ids: Ids, n: int) -> Ids:
        """Return the ids of the next n entries after each of these, in the same document.

        They are ascending and unique. These are likely neighbours of the
        next tokens, since matches with a text often continue.

        >>> store = Datastore.of(np.eye(6), [1, 2, 3, 4, 5, 6], [4, 6])
        >>> store.following(np.array([4, 0, 1]), 2).tolist()
        [1, 2, 3, 5]

        Raises:
            ConfigError: n is negative.
            InputError: an id is out of range.
        """
        if n < 0:
            raise ConfigError(f"n must be at least 0, got {n}")
        known = np.unique(np.asarray(ids, dtype=np.int64))
        if not known.size or not n:
            return np.empty(0, dtype=np.int64)
        if known[0] < 0 or known[-1] >= len(self):
            raise InputError(
                f"ids must be between 0 and {len(self) - 1}, got {known[0]} to {known[-1]}"
            )
        document = np.searchsorted(self.document_ends, known, side="right")
        stops = np.minimum(known + 1 + n, self.document_ends[document])
        # Both ends of the runs ascend, so each one's new part starts at the end of the previous
        # one.
        starts = known + 1
        starts[1:] = np.maximum(starts[1:], stops[:-1])
        lengths = np.maximum(stops - starts, 0)
        offsets = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
        return offsets + np.arange(len(offsets), dtype=np.int64)


def check_keys(keys: NDArray[np.float16], first: int = 0) -> None:
    """Check that keys are finite in float16: infinity has no meaningful distance.

    Args:
        keys: rounded to float16 already.  # [entries, dimension]
        first: the first row's entry, for the message.

    Raises:
        InputError: a key is not finite.
    """
    finite = np.isfinite(keys).all(axis=-1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise InputError(
            f"the key of entry {first + row} is not finite in float16, whose largest number is "
            f"{_LARGEST:.0f}; use another kind of key (ffn_input is normalised, and small), or "
            "a model whose hidden states are smaller"
        )


def _fixed(array: NDArray[ScalarT]) -> NDArray[ScalarT]:
    """Return a read-only view; the caller's array is not changed."""
    view = array.view()
    view.flags.writeable = False
    return view


def _problem(
    keys: NDArray[Any], values: NDArray[Any], ends: NDArray[Any], about: DatastoreInfo
) -> str:
    """Return a description of what is invalid, or an empty text."""
    shapes: Sequence[tuple[str, NDArray[Any], type, tuple[int, ...]]] = (
        ("keys", keys, np.float16, (about.entries, about.dimension)),
        ("values", values, np.int32, (about.entries,)),
        ("document_ends", ends, np.int64, (about.documents,)),
    )
    for name, array, kind, shape in shapes:
        if array.dtype != kind or array.shape != shape:
            expected = f"{np.dtype(kind)} of shape {shape}"
            return f"{name} must be {expected}, got {array.dtype} of shape {array.shape}"
    if ends[-1] != about.entries or ends[0] < 1 or bool(np.any(np.diff(ends) < 1)):
        return f"document_ends must ascend from at least 1 to {about.entries}, the last entry's end"
    least, greatest = int(values.min()), int(values.max())
    if least < 0 or greatest >= about.vocabulary:
        return f"values must be tokens below {about.vocabulary}, got {least} to {greatest}"
    return ""


def _signature(digests: Sequence[str]) -> str:
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()
