"""Build a datastore of KNN-LM in bounded memory; an interrupted build is resumed."""

import os
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import ConfigError, IndexFileError, InputError, MissingExtraError

try:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
except ImportError as missing:
    raise MissingExtraError("hf", "transformers with torch") from missing

from ralmspec_plugins.knn.ann_index import is_saved
from ralmspec_plugins.knn.datastore import (
    ABOUT,
    DOCUMENT_ENDS,
    FILES,
    KEYS,
    VALUES,
    Datastore,
    DatastoreInfo,
    KeyKind,
    about_bytes,
    check_keys,
)
from ralmspec_plugins.knn.hidden_states import KeyHook
from ralmspec_plugins.knn.windows import Cutting, Window, digest_of, portions
from ralmspec_plugins.lm.fingerprint import model_fingerprint, tokenizer_fingerprint
from ralmspec_plugins.lm.huggingface import context_length, vocabulary_size
from ralmspec_plugins.retrieval.device_memory import within_memory
from ralmspec_plugins.retrieval.own_pass import own_pass
from ralmspec_plugins.retrieval.storage.corpus import batched
from ralmspec_plugins.retrieval.storage.files import write_array
from ralmspec_plugins.retrieval.storage.format import check_target
from ralmspec_plugins.retrieval.storage.journal import ResumableBuild, building, link

# Runs a model over windows of text, and reads the keys of a datastore from each pass.


class KeyMaker:
    """Computes keys of several windows of similar length in one pass, padded at the end.

    A causal model ignores later padding. Padding may change the last bits
    of a result, as other windows of a pass do; so a portion of windows
    is always divided in the same way. The output matrix is not computed.
    """

    def __init__(self, model: PreTrainedModel, kind: KeyKind, together: int) -> None:
        """Compute keys with this model and number of windows per pass; sets evaluation mode.

        Raises:
            ModelError: the hidden state cannot be located in this model.
        """
        whole: Any = model.train(False)  # its functions are untyped
        self._decoder = whole.get_decoder()
        self._embedding = whole.get_input_embeddings()  # its device is that of the input
        self._tap = KeyHook(model, kind)
        self.kind: KeyKind = kind
        self._together = together
        self._precision = str(model.dtype).removeprefix("torch.")
        self.dimension = self._tap.dimension

    @property
    def identity(self) -> Mapping[str, Any]:
        """Return all that the keys depend on besides the weights and the windows."""
        kind = self._embedding.weight.device.type
        return {"key_kind": self.kind, "precision": self._precision, "device": kind}

    def keys(self, windows: Sequence[Window]) -> NDArray[np.float16]:
        """Return the keys of all new positions, window after window.  # [entries, dimension].

        Values out of the range of float16 become infinity.

        Raises:
            DeviceMemoryError: the model's device has too little memory.
        """
        by_length = sorted(range(len(windows)), key=lambda row: len(windows[row].tokens))
        parts: dict[int, NDArray[np.float16]] = {}
        for rows in batched(by_length, self._together):
            some = [windows[row] for row in rows]
            keys = within_memory(
                partial(self._pass, some),
                f"the model's device has no memory left for {len(some)} windows; give a smaller "
                "batch_size, and build again: finished portions are kept",
            )
            parts.update(zip(rows, keys, strict=True))
        return np.concatenate([parts[row] for row in range(len(windows))])

    def _pass(self, windows: Sequence[Window]) -> list[NDArray[np.float16]]:
        """Return the keys of each window of one pass."""
        longest = max(len(window.tokens) for window in windows)
        padded = np.zeros((len(windows), longest), dtype=np.int64)
        for row, window in zip(padded, windows, strict=True):
            row[: len(window.tokens)] = window.tokens
        device = self._embedding.weight.device
        with own_pass(torch, device):
            ids = torch.from_numpy(padded).to(device)
            self._decoder(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
            states = self._tap.taken()
            rows = [
                state[len(window.tokens) - len(window.following) : len(window.tokens)]
                for state, window in zip(states, windows, strict=True)
            ]
            keys: NDArray[np.float16] = torch.cat(rows).to(torch.float16).cpu().numpy()
        ends = np.cumsum([len(window.following) for window in windows])
        return np.split(keys, ends[:-1])


Stage: TypeAlias = Literal["checking", "encoding", "finishing"]
Watcher: TypeAlias = Callable[[Stage, int], None]

_CONTEXT = 1024  # as in knn-transformers: windows of 1,024 tokens with a stride of 512


def build_datastore(
    texts: Iterable[str],
    target: str | os.PathLike[str],
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    key_kind: KeyKind = "ffn_input",
    context: int | None = None,
    stride: int | None = None,
    bos: bool | None = None,
    eos: bool = False,
    batch_size: int = 8,
    source: str = "",
    progress: Watcher | None = None,
    restart: bool = False,
) -> Datastore:
    """Build a datastore on the disk, in portions, and open it.

    Each token but the first of each text becomes an entry: the hidden state at the
    token before it is the key, the token the value. A text's first token has an entry
    only after a BOS token. Texts are read as a stream; one text and a portion are in
    memory, and eight bytes for each text. Each portion is written immediately to a
    hidden folder next to the target: after a crash, a full disk or Ctrl-C the same
    call on the same machine continues after the last complete portion, and returns the same
    files, to the byte, as an uninterrupted one (with the same number of torch threads;
    another number may change a key's last bit). The target is replaced atomically at the end,
    and search indexes of its previous content are removed.

    Args:
        texts: documents, read once, from the start at each call.
        target: the folder of the datastore.
        model: any causal model, on any device and in any precision; put into evaluation mode.
        tokenizer: the model's tokenizer.
        key_kind: which hidden state is the key (`KeyHook`).
        context: tokens of a window; 1,024, or the model's context where that is less.
        stride: tokens between the windows of a long text; half the context. The rest of
            the window is context only.
        bos: whether each text begins with the BOS token; by default if the tokenizer has one.
        eos: whether each text ends with the EOS token, so that a neighbour can end an answer. Not
            by default: texts here are often parts of something longer.
        batch_size: windows in one pass. Short ones are grouped up to the same number of tokens,
            and share passes by length; a crash loses at most one such portion.
        source: the origin of the texts, for `about.json`.
        progress: called with a stage and the number of entries that it has processed: "checking"
            those of an earlier run, "encoding", "finishing".
        restart: discard an unfinished build of this target.

    Raises:
        ConfigError: a number is out of range, or an unfinished build has other settings, or
            another model or tokenizer.
        InputError: there are no entries, or a key is out of the range of float16.
        IndexFileError: the target is something else, another process is building it, or an
            unfinished build has other texts.
        ModelError: the model has no such hidden state.
    """
    place = Path(target).resolve()  # resolved, so that a link is preserved
    _check_target(place)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
    cutting = cutting_for(model, tokenizer, context=context, stride=stride, bos=bos, eos=eos)
    maker = KeyMaker(model, key_kind, batch_size)
    recipe = _Recipe(model, cutting, maker, batch_size, source)
    with building(place, recipe.identity, "entries", (KEYS, VALUES), restart=restart) as build:
        datastore = _DatastoreBuild(build, recipe, progress or _unwatched)
        datastore.fill(texts)
        datastore.publish(place)
    return Datastore.open(place)


def cutting_for(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    context: int | None = None,
    stride: int | None = None,
    bos: bool | None = None,
    eos: bool = False,
) -> Cutting:
    """Return the settings of windows, with the defaults of `build_datastore`.

    Raises:
        ConfigError: a number is out of range, or larger than the model's context.
    """
    most = context_length(model)
    if context is None:
        context = _CONTEXT if most is None else min(_CONTEXT, most)
    elif most is not None and context > most:
        raise ConfigError(f"context is {context}, but the model's is {most}; give at most that")
    return Cutting(
        tokenizer=tokenizer,
        context=context,
        stride=max(1, context // 2) if stride is None else stride,
        bos=tokenizer.bos_token_id is not None if bos is None else bos,
        eos=eos,
    )


def _check_target(place: Path) -> None:
    """Check that only a datastore and its indexes would be replaced."""
    check_target(place, kind="datastore", mark=ABOUT)
    if not place.is_dir():
        return
    others = [
        entry.name
        for entry in sorted(place.iterdir())
        if entry.name not in (*FILES, ABOUT) and not is_saved(entry)
    ]
    if others:
        raise IndexFileError(
            f"{place} would be replaced, but has files that belong to no datastore: "
            f"{', '.join(others)}; move them, or give another target"
        )


def _unwatched(stage: Stage, entries: int) -> None:
    """Report nothing."""


class _Recipe:
    """All that a datastore depends on but the texts."""

    def __init__(
        self,
        model: "PreTrainedModel",
        cutting: Cutting,
        maker: KeyMaker,
        batch_size: int,
        source: str,
    ) -> None:
        self.cutting = cutting
        self.maker = maker
        self.tokens = batch_size * cutting.context  # of a portion
        self._batch_size = batch_size
        self._kind = maker.kind
        self._vocabulary = vocabulary_size(model)
        self._tokenizer = tokenizer_fingerprint(cutting.tokenizer)
        self._model = model_fingerprint(model)
        self._model_name = str(model.config.name_or_path)
        self._source = source

    @property
    def identity(self) -> dict[str, Any]:
        """Return the identity, which is compared when a build is resumed."""
        return {
            "batch_size": self._batch_size,
            "tokenizer": self._tokenizer,
            "model": self._model,
            **self.cutting.identity,
            **self.maker.identity,
        }

    def about(self, entries: int, documents: int) -> DatastoreInfo:
        """Return the description of the result."""
        return DatastoreInfo(
            dimension=self.maker.dimension,
            vocabulary=self._vocabulary,
            entries=entries,
            documents=documents,
            key_kind=self._kind,
            tokenizer=self._tokenizer,
            model=self._model,
            model_name=self._model_name,
            source=self._source,
            **self.cutting.identity,
        )


class _DatastoreBuild:
    """One attempt to build a datastore, in a locked folder."""

    def __init__(self, build: ResumableBuild, recipe: _Recipe, progress: Watcher) -> None:
        self._build = build
        self._recipe = recipe
        self._progress = progress
        self._document_ends = array("q")

    def fill(self, texts: Iterable[str]) -> None:
        """Write all missing keys and values to the disk."""
        build = self._build
        for some in portions(self._recipe.cutting.windows(texts), self._recipe.tokens):
            first, source = build.rows, digest_of(some)
            there = build.recorded(source, sum(len(window.following) for window in some))
            if there is None:
                keys = self._recipe.maker.keys(some)
                check_keys(keys, first)
                values = np.concatenate([window.following for window in some])
                build.append(source, len(keys), [keys.astype("<f2"), values.astype("<i4")])
                del keys  # the largest object in memory
            for window in some:
                first += len(window.following)
                if window.ends_document:
                    self._document_ends.append(first)
            self._progress("checking" if there else "encoding", build.rows)
        if not build.rows:
            raise InputError(
                "there is nothing to store: no text has two tokens or more; give at least one"
            )
        build.end()

    def publish(self, target: Path) -> None:
        """Move the finished files to the target; large files are not copied."""
        build = self._build
        self._progress("finishing", 0)
        about = self._recipe.about(build.rows, len(self._document_ends))
        build.finish_array(KEYS, "<f2", (about.dimension,))
        build.finish_array(VALUES, "<i4")
        write_array(build.folder / DOCUMENT_ENDS, np.asarray(self._document_ends, dtype="<i8"))

        def write(fresh: Path) -> None:
            for name in FILES:
                link(build.folder / name, fresh / name)
            with (fresh / ABOUT).open("wb") as file:
                file.write(about_bytes(about, fresh))
                file.flush()
                os.fsync(file.fileno())

        build.publish(target, write, _check_target)
        self._progress("finishing", build.rows)
