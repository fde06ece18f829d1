"""Token corpora to draft from: texts as tokens on disk, with a suffix array over them."""

import hashlib
import json
import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import (
    IndexFileError,
    InputError,
    MissingExtraError,
    ModelError,
)
from ralmspec_plugins.lm.fingerprint import tokenizer_fingerprint
from ralmspec_plugins.lm.prompts import check_text, encode
from ralmspec_plugins.retrieval.storage.files import DAMAGE, open_array, write_array
from ralmspec_plugins.retrieval.storage.format import (
    RecordKind,
    Verify,
    check_file,
    check_target,
    check_verify,
    file_record,
    opened_whole,
    read_record,
)
from ralmspec_plugins.retrieval.storage.journal import ResumableBuild, building, link

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS: Final = "tokens.npy"
SUFFIXES: Final = "suffixes.npy"
FILES: Final = (TOKENS, SUFFIXES)
ABOUT: Final = "about.json"
_KIND: Final = RecordKind(
    missing=f"is no token corpus: it has no {ABOUT}; make one with ralmspec draft build",
    file=ABOUT,
    format="ralmspec-token-corpus",
    version=1,
    again="build the corpus again",
)
_PORTION: Final = 1 << 16  # minimum number of tokens that are flushed to the disk at a time

Stage: TypeAlias = Literal["checking", "encoding", "sorting", "finishing"]
Watcher: TypeAlias = Callable[[Stage, int], None]
Tokens: TypeAlias = NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusInfo:
    """What a token corpus was made of.

    Attributes:
        tokens: the number of tokens of all documents, each with its boundary.
        documents: the number of documents.
        boundary: the number after each document, which is not a token.
        tokenizer: `tokenizer_fingerprint(...)`.
        tokenizer_name: the tokenizer's name, for messages.
        source: a description of where the texts are from.
    """

    tokens: int
    documents: int
    boundary: int
    tokenizer: str
    tokenizer_name: str = ""
    source: str = ""


class TokenCorpus:
    """The tokens of documents and their suffix array; immutable and thread-safe.

    Both are memory-mapped if opened from disk: a look-up reads a few pages of each.

    >>> corpus = TokenCorpus.of([[1, 2, 3], [1, 2, 4]])
    >>> start, stop = corpus.find([1, 2])
    >>> sorted(corpus.following(start, stop, 2, 8))
    [(3,), (4,)]

    Attributes:
        tokens: int32.  # [tokens]
        suffixes: the position at which each suffix begins, in sorted order.  # [tokens]
        about: what it was made of.
    """

    def __init__(self, tokens: Tokens, suffixes: NDArray[Any], about: CorpusInfo) -> None:
        """Create a corpus of checked arrays; use `open` or `of` instead."""
        self.tokens = tokens
        self.suffixes = suffixes
        self.about = about

    @classmethod
    def of(cls, documents: Iterable[Sequence[int]], tokenizer: str = "") -> Self:
        """Return a corpus in memory, of documents given as tokens.

        Args:
            documents: each a sequence of tokens.
            tokenizer: the fingerprint of the tokenizer that made them; "" is not compared.

        Raises:
            InputError: there is no token.
            MissingExtraError: pydivsufsort is not installed.
        """
        held = [np.asarray(document, dtype=np.int32) for document in documents]
        held = [document for document in held if len(document)]
        if not held:
            raise InputError("there is nothing to draft from: no document has a token")
        boundary = int(max(document.max() for document in held)) + 1
        mark = np.array([boundary], dtype=np.int32)
        tokens = np.concatenate([part for document in held for part in (document, mark)])
        about = CorpusInfo(
            tokens=len(tokens), documents=len(held), boundary=boundary, tokenizer=tokenizer
        )
        return cls(tokens, suffix_array(tokens), about)

    @classmethod
    def open(cls, path: str | os.PathLike[str], verify: Verify = "sizes") -> Self:
        """Open a folder that `build_corpus` wrote.

        Args:
            path: the folder.
            verify: "sizes" compares lengths and shapes, "digests" reads all data and detects any
                changed byte.

        Raises:
            ConfigError: `verify` has another value.
            IndexFileError: the folder is missing, damaged, of another version, or no corpus.
        """
        check_verify(verify)
        return opened_whole(Path(path), lambda folder: cls._open_once(folder, verify))

    @classmethod
    def _open_once(cls, folder: Path, verify: Verify) -> Self:
        record = read_record(folder, _KIND)
        try:
            about, files = CorpusInfo(**record["about"]), record["files"]
            for name in FILES:
                check_file(folder / name, files[name], verify, _KIND.again)
        except IndexFileError:
            raise
        except DAMAGE as error:
            raise IndexFileError(
                f"{folder / ABOUT} is damaged ({error!r}); {_KIND.again}"
            ) from error
        tokens, suffixes = (open_array(folder / name) for name in FILES)
        problem = _problem(tokens, suffixes, about)
        if problem:
            raise IndexFileError(f"{folder} is damaged: {problem}; {_KIND.again}")
        return cls(tokens, suffixes, about)

    def __len__(self) -> int:
        """Return the number of tokens, boundaries included."""
        return len(self.tokens)

    def check_tokenizer(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Check that a tokenizer is the one that made the corpus.

        Raises:
            ModelError: it is not the one that made the corpus.
        """
        got = tokenizer_fingerprint(tokenizer)
        if self.about.tokenizer and got != self.about.tokenizer:
            made_with = f" ({self.about.tokenizer_name})" if self.about.tokenizer_name else ""
            raise ModelError(
                f"The token corpus was built with another tokenizer{made_with}: its fingerprint "
                f"is {self.about.tokenizer}, and the model's {got}. Build one with yours: "
                "ralmspec draft build TEXTS OUT --model MODEL"
            )

    def find(self, pattern: Sequence[int]) -> tuple[int, int]:
        """Return the range of the suffix array whose suffixes begin with a pattern."""
        start, found = self._first(pattern)
        return start, self._behind(pattern, start) if found else start

    def longest(self, text: Sequence[int], most: int) -> tuple[int, int, int]:
        """Return the longest suffix of a text, of at most `most` tokens, that occurs here.

        Returns:
            Its length, and its range of the suffix array; length 0 if the last token does not
            occur.
        """
        length, first, low, high = 0, 0, 1, min(most, len(text))
        while low <= high:  # if a suffix of the text occurs, all shorter ones do
            middle = (low + high) // 2
            start, found = self._first(text[len(text) - middle :])
            if found:
                length, first, low = middle, start, middle + 1
            else:
                high = middle - 1
        if not length:
            return 0, 0, 0
        return length, first, self._behind(text[len(text) - length :], first)

    def following(
        self, start: int, stop: int, skip: int, most: int, places: int | None = None
    ) -> list[tuple[int, ...]]:
        """Return the tokens that follow a pattern, up to `most` at each of its occurrences.

        Args:
            start: the start of the pattern's range of the suffix array.
            stop: the end of that range.
            skip: the pattern's length.
            most: the maximum number of tokens; fewer are given at a document's end.
            places: the maximum number of occurrences, spread over all of them; unset, all.
        """
        count = stop - start if places is None else min(places, stop - start)
        if count < 1:
            return []
        chosen = start + np.arange(count) * (stop - start) // count
        begins = self.suffixes[chosen].astype(np.int64) + skip
        read = np.minimum(begins[:, None] + np.arange(most), len(self.tokens) - 1)
        found = []
        for window in self.tokens[read].tolist():
            if self.about.boundary in window:  # the last token is one, too
                window = window[: window.index(self.about.boundary)]
            found.append(tuple(window))
        return found

    def _first(self, pattern: Sequence[int]) -> tuple[int, bool]:
        """Return where suffixes with a pattern begin, or would, and whether there is one."""
        wanted, read = list(pattern), self._reader(len(pattern))
        start = bisect_left(range(len(self.suffixes)), wanted, key=read)
        return start, start < len(self.suffixes) and read(start) == wanted

    def _behind(self, pattern: Sequence[int], start: int) -> int:
        """Return where the suffixes with a pattern end, which begin at `start`."""
        places = range(len(self.suffixes))
        return bisect_right(places, list(pattern), lo=start, key=self._reader(len(pattern)))

    def _reader(self, size: int) -> Callable[[int], list[int]]:
        """Return what reads the first tokens of a suffix; a shorter one precedes longer ones."""
        tokens, suffixes = self.tokens, self.suffixes

        def read(at: int) -> list[int]:
            place = int(suffixes[at])
            first: list[int] = tokens[place : place + size].tolist()
            return first

        return read


def suffix_array(tokens: Tokens) -> NDArray[Any]:
    """Return the positions at which the suffixes begin, in sorted order.

    Raises:
        MissingExtraError: pydivsufsort is not installed.
    """
    try:
        from pydivsufsort import divsufsort
    except ImportError as missing:
        raise MissingExtraError("decoding", "pydivsufsort") from missing
    found: NDArray[Any] = np.asarray(divsufsort(np.ascontiguousarray(tokens)))
    return found


def build_corpus(
    texts: Iterable[str],
    target: str | os.PathLike[str],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    source: str = "",
    progress: Watcher | None = None,
    restart: bool = False,
) -> TokenCorpus:
    """Build a token corpus on disk, and return it opened.

    Tokens are flushed in portions to a hidden folder next to the target: after a crash, a full
    disk or Ctrl-C the same call continues after the last portion. The suffix array is built of
    all tokens at the end, in memory (about 13 bytes per token). The target is unchanged until
    it is replaced as a whole at the end.

    Args:
        texts: documents; a draft never continues from one into the next.
        target: the folder of the corpus.
        tokenizer: the tokenizer of the model whose text is drafted.
        source: a description of where the texts are from.
        progress: called with a stage and the number of tokens that have passed it.
        restart: whether to discard an unfinished build of this target.

    Raises:
        ConfigError: there is an unfinished build with another tokenizer.
        InputError: there are no tokens, or a text cannot be tokenized.
        IndexFileError: something else is at the target, another process is building it, or an
            unfinished build was begun with other texts.
        MissingExtraError: pydivsufsort is not installed.
    """
    place = Path(target).resolve()  # a symbolic link stays valid
    _check_target(place)
    suffix_array(np.array([0], dtype=np.int32))  # a missing extra is reported before the work
    boundary = len(tokenizer)
    fingerprint = tokenizer_fingerprint(tokenizer)
    watch = progress or _unwatched
    settings = {"tokenizer": fingerprint, "boundary": boundary}
    with building(place, settings, "tokens", (TOKENS,), restart=restart) as build:
        documents = 0
        for part, count in _portions(texts, tokenizer, boundary):
            documents += count
            content = hashlib.sha256(part.tobytes()).hexdigest()
            there = build.recorded(content, len(part))
            if there is None:
                build.append(content, len(part), [part.astype("<i4")])
            watch("checking" if there else "encoding", build.rows)
        if not documents:
            raise InputError("there is nothing to draft from: no text has a token; give one")
        build.end()
        about = CorpusInfo(
            tokens=build.rows,
            documents=documents,
            boundary=boundary,
            tokenizer=fingerprint,
            tokenizer_name=str(tokenizer.name_or_path),
            source=source,
        )
        _publish(build, place, about, watch)
    return TokenCorpus.open(place)


def _portions(
    texts: Iterable[str], tokenizer: "PreTrainedTokenizerBase", boundary: int
) -> Iterator[tuple[Tokens, int]]:
    """Yield the tokens of several documents at a time, each followed by the boundary."""
    held: list[int] = []
    documents = 0
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {number} must be a string, got {type(text).__name__}")
        check_text(text)
        tokens = encode(tokenizer, text, literal=True)
        if not tokens:
            continue
        held += [*tokens, boundary]
        documents += 1
        if len(held) >= _PORTION:
            yield np.array(held, dtype=np.int32), documents
            held, documents = [], 0
    if held:
        yield np.array(held, dtype=np.int32), documents


def _publish(build: ResumableBuild, target: Path, about: CorpusInfo, watch: Watcher) -> None:
    build.finish_array(TOKENS, "<i4")
    watch("sorting", 0)
    write_array(build.folder / SUFFIXES, suffix_array(open_array(build.folder / TOKENS)))
    watch("sorting", build.rows)

    def write(fresh: Path) -> None:
        for name in FILES:
            link(build.folder / name, fresh / name)
        files = {name: file_record(fresh / name) for name in FILES}
        head = {"format": _KIND.format, "version": _KIND.version}
        record = {**head, "about": asdict(about), "files": files}
        with (fresh / ABOUT).open("wb") as file:
            file.write(json.dumps(record, indent=2).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    build.publish(target, write, _check_target)
    watch("finishing", build.rows)


def _check_target(target: Path) -> None:
    check_target(target, kind="token corpus", mark=ABOUT)


def _problem(tokens: NDArray[Any], suffixes: NDArray[Any], about: CorpusInfo) -> str:
    """Return a description of what is inconsistent, or "" if nothing is."""
    if tokens.dtype != np.int32 or tokens.shape != (about.tokens,):
        return f"{TOKENS} holds {tokens.dtype} of shape {tokens.shape}"
    if suffixes.dtype.kind != "i" or suffixes.shape != tokens.shape:
        return f"{SUFFIXES} holds {suffixes.dtype} of shape {suffixes.shape}"
    if not about.tokens or int(tokens[-1]) != about.boundary:
        return f"{TOKENS} does not end with a document's end"
    return ""


def _unwatched(stage: Stage, tokens: int) -> None:
    """Do nothing: no progress was requested."""
