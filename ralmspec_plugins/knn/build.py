"""Build a datastore of KNN-LM: bounded memory, and after a crash it goes on where it was."""

import os
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from ralmspec_plugins.retrieval.storage.corpus import batched
from ralmspec_plugins.retrieval.storage.files import write_array
from ralmspec_plugins.retrieval.storage.format import check_target
from ralmspec_plugins.retrieval.storage.journal import ResumableBuild, building, link

# Runs a model over windows of text, and takes the keys of a datastore from each pass.


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
        self._tap = KeyHook(model, kind)
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
        """Return the keys of all new positions, window after window.  # [entries, dimension].

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


Stage: TypeAlias = Literal["checking", "encoding", "finishing"]
Watcher: TypeAlias = Callable[[Stage, int], None]

_CONTEXT = 1024  # as in knn-transformers: windows of 1,024 tokens that go on by 512


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
    """Build a datastore on the disk, portion by portion, and open it.

    Each token but the first of each text becomes an entry: the hidden state at the
    token before it is the key, the token the value. A text's first token has an entry
    only behind a BOS token. Texts are taken as a stream; one text and a portion are in
    memory, and eight bytes for each text. What is encoded is safe at once, in a
    hidden folder beside the target: after a crash, a full disk or Ctrl-C the same
    call on the same machine goes on behind the last whole portion, and gives the same
    files, to the byte, as one that was never stopped (with as many threads of torch;
    another number may change a key's last bit). Until the last moment the target
    stays as it was; then it is replaced as a whole, and search indexes in it, which
    were the old one's, are removed.

    Args:
        texts: documents, read once, from the beginning each time.
        target: the folder of the datastore.
        model: any causal model, on any device and in any precision; put into evaluation mode.
        tokenizer: the model's tokenizer.
        key_kind: which hidden state is the key (`KeyHook`).
        context: tokens of a window; 1,024, or the model's context where that is less.
        stride: tokens that each window of a long text goes on by; half the context. The rest of
            the window is there to be looked back at.
        bos: whether each text begins with the BOS token; as soon as the tokenizer has one.
        eos: whether each text ends with the EOS token, so that a neighbour can end an answer. Not
            by default: texts here are often parts of something longer.
        batch_size: windows in one pass. Short ones are gathered until they hold as many tokens as
            so many full ones, and share passes by their lengths; such a portion is what a crash
            loses at most.
        source: where the texts are from, in words, for `about.json`.
        progress: called with a stage and how many entries are through it: "checking" those
            that an earlier run has encoded, "encoding", "finishing".
        restart: forget an unfinished build of this target.

    Raises:
        ConfigError: a number is out of range, or an unfinished build with other settings, or
            another model or tokenizer.
        InputError: no entries, or a key that float16 cannot hold.
        IndexFileError: something else is at the target, somebody else is building it, or an
            unfinished build was begun with other texts.
        ModelError: the model has no such hidden state.
    """
    place = Path(target).resolve()  # a link keeps leading to it
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
    """Return how a build cuts texts, with what is not given as `build_datastore` has it.

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
    """Refuse what must not be replaced; a datastore's indexes go with it, nothing else does."""
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
            f"{place} is to be replaced, but holds what belongs to no datastore: "
            f"{', '.join(others)}; move that away, or give another place"
        )


def _unwatched(stage: Stage, entries: int) -> None:
    """Tell nobody."""


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
        """Name it; compared when a build is gone on with."""
        return {
            "batch_size": self._batch_size,
            "tokenizer": self._tokenizer,
            "model": self._model,
            **self.cutting.identity,
            **self.maker.identity,
        }

    def about(self, entries: int, documents: int) -> DatastoreInfo:
        """Describe what came out."""
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
    """One attempt at a datastore, in a building folder that is held."""

    def __init__(self, build: ResumableBuild, recipe: _Recipe, progress: Watcher) -> None:
        self._build = build
        self._recipe = recipe
        self._progress = progress
        self._document_ends = array("q")

    def fill(self, texts: Iterable[str]) -> None:
        """Bring all keys and values to the disk, as far as they are not there."""
        build = self._build
        for some in portions(self._recipe.cutting.windows(texts), self._recipe.tokens):
            first, source = build.rows, digest_of(some)
            there = build.recorded(source, sum(len(window.following) for window in some))
            if there is None:
                keys = self._recipe.maker.keys(some)
                check_keys(keys, first)
                values = np.concatenate([window.following for window in some])
                build.append(source, len(keys), [keys.astype("<f2"), values.astype("<i4")])
                del keys  # of a portion, the largest thing in memory
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
        """Put what is on the disk at the target; nothing large is copied."""
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
