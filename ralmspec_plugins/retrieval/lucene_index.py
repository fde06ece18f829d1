"""One Lucene index on the disk: built of texts, opened, searched and read, through Anserini.

Everything here is for Java's own threads: call it within `in_java`. A call into
Java costs tens of microseconds, so each brings back a whole result, as JSON.
"""

import json
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ralmspec_plugins.errors import ConfigError, IndexFileError, InputError
from ralmspec_plugins.records import Passage
from ralmspec_plugins.retrieval.corpus import batched
from ralmspec_plugins.retrieval.lucene_bm25 import Statistics
from ralmspec_plugins.retrieval.lucene_jvm import is_java_error, java_class, java_threads

_TEXTS_AT_ONCE = 2048
_INDEXING_MB = 256  # of Java's memory, before a segment is written; Anserini's 4096 passes -Xmx
_FIELD = "contents"


@dataclass(frozen=True, slots=True, kw_only=True)
class LuceneSettings:
    """How texts become terms and terms become scores; saved with the index."""

    k1: float = 0.9  # Anserini's defaults, which the paper's sparse retriever uses
    b: float = 0.4
    language: str = "en"

    def __post_init__(self) -> None:
        """Refuse values outside BM25's range."""
        if self.k1 < 0 or not 0 <= self.b <= 1:
            raise ConfigError(f"k1 must be at least 0 and b in [0, 1], got {self.k1} and {self.b}")

    def analyzer(self) -> Any:
        """Make what turns text into terms.

        Raises:
            ConfigError: Anserini has no analyzer of that language.
        """
        if self.language == "en":  # Porter's stems, without Lucene's stop words
            return java_class("io.anserini.analysis.DefaultEnglishAnalyzer").newDefaultInstance()
        languages = java_class("io.anserini.analysis.AnalyzerMap")
        known = set(_json(languages.analyzerMap))
        if self.language not in known:
            raise ConfigError(
                f"unknown language {self.language!r}; known are {', '.join(sorted(known | {'en'}))}"
            )
        return languages.getLanguageSpecificAnalyzer(self.language)


@dataclass(frozen=True, slots=True)
class Found:
    """A passage that a search found: its number in the index, its score, and its id."""

    number: int
    score: float
    key: Mapping[str, Any]  # the id as Lucene has it

    @property
    def id(self) -> str:
        """The passage's id; decoded only where it is needed, which costs as much as the rest."""
        start = self.key["offset"]
        return b64decode(self.key["bytes"])[start : start + self.key["length"]].decode("utf-8")


def build_index(folder: Path, texts: Iterable[tuple[str, str]], settings: LuceneSettings) -> int:
    """Index texts with their ids in an empty folder, as one segment; say how many.

    Lucene does not keep texts without a single visible character.

    Raises:
        InputError: Lucene did not take all texts, or there is none.
    """
    settings.analyzer()
    options = java_class("io.anserini.index.IndexCollection$Args")()
    options.collectionClass, options.input = "JsonCollection", ""
    options.generatorClass = "DefaultLuceneDocumentGenerator"
    options.index, options.language = str(folder), settings.language
    options.threads, options.memoryBuffer = java_threads(), _INDEXING_MB
    count = taken = 0
    lines = (
        json.dumps({"id": identity, _FIELD: text})
        for identity, text in texts
        if any(char > " " for char in text)  # as Java's trim() has it
    )
    with _told(f"index passages in {folder}", InputError):
        indexer = java_class("io.anserini.index.SimpleIndexer")(options)
        for some in batched(lines, _TEXTS_AT_ONCE):
            count += len(some)
            taken += indexer.addRawDocuments(some)
        indexer.close(True)  # merged: one segment is searched faster than many
    if taken != count:
        raise InputError(f"Lucene took only {taken} of {count} passages; are some ids very long?")
    return count


class LuceneIndex:
    """An open index; reading it is safe from many threads at once."""

    def __init__(self, folder: Path, settings: LuceneSettings) -> None:
        """Open a folder.

        Raises:
            IndexFileError: it holds no Lucene index, or not one of Anserini's.
            ConfigError: an unknown language.
        """
        self.folder = folder
        with _told(f"open {folder}"):
            place = java_class("java.io.File")(str(folder)).toPath()
            directory = java_class("org.apache.lucene.store.FSDirectory").open(place)
            self.reader = java_class("org.apache.lucene.index.DirectoryReader").open(directory)
        self.size = int(self.reader.numDocs())
        self._fields = self._checked_fields()
        self.statistics = Statistics(
            self.reader.getDocCount(_FIELD), self.reader.getSumTotalTermFreq(_FIELD)
        )
        similarity = java_class("org.apache.lucene.search.similarities.BM25Similarity")
        self._searcher = java_class("org.apache.lucene.search.IndexSearcher")(
            self.reader.getContext()
        )
        self._searcher.setSimilarity(similarity(settings.k1, settings.b))
        self._analyzer = settings.analyzer()
        self._analyze = java_class("io.anserini.analysis.AnalyzerUtils").analyze
        self._queries = java_class("io.anserini.search.query.BagOfWordsQueryGenerator")()
        self._term = java_class("org.apache.lucene.index.Term")
        # Anserini's own order: score descending, id ascending, so ties need no care of ours.
        field, kind = (java_class(f"org.apache.lucene.search.SortField{x}") for x in ("", "$Type"))
        sort = java_class("org.apache.lucene.search.Sort")
        self._order = sort(field.FIELD_SCORE, field("id", kind.STRING_VAL))

    def _checked_fields(self) -> Any:
        infos = java_class("org.apache.lucene.index.FieldInfos").getMergedFieldInfos(self.reader)
        text, identity = infos.fieldInfo(_FIELD), infos.fieldInfo("id")
        if not self.size or text is None or self.reader.getSumTotalTermFreq(_FIELD) < 1:
            raise IndexFileError(f"{self.folder} holds no passage with an indexed '{_FIELD}' field")
        if identity is None or identity.getDocValuesType().toString() != "BINARY":
            raise IndexFileError(
                f"{self.folder} keeps no ids to break ties by (doc values of 'id'); build it with "
                "Anserini or pyserini 0.14 or later"
            )
        return text

    def search(self, text: str, width: int) -> list[Found]:
        """Find the best passages that share a term with a text, best first, ties by id."""
        with _told(f"search {self.folder}"):
            query = self._queries.buildQuery(_FIELD, self._analyzer, cleaned(text))
            found = _json(self._searcher.search(query, width, self._order, True))["scoreDocs"]
        scores = np.array([one["score"] for one in found], dtype=np.float32).tolist()
        return [
            Found(one["doc"], score, one["fields"][1])
            for one, score in zip(found, scores, strict=True)
        ]

    def terms(self, text: str) -> list[str]:
        """Turn a text into terms."""
        return list(_json(self._analyze(self._analyzer, cleaned(text))))

    def holding(self, term: str) -> int:
        """Count the passages that hold a term."""
        return int(self.reader.docFreq(self._term(_FIELD, term)))

    def lengths(self, numbers: Sequence[int]) -> list[int]:
        """Give passages' lengths, as the bytes that Lucene keeps; numbers in ascending order."""
        values = java_class("org.apache.lucene.index.MultiDocValues")
        norms = values.getNormValues(self.reader, _FIELD)
        if norms is None:
            return [1] * len(numbers)
        return [norms.longValue() & 255 if norms.advanceExact(n) else 1 for n in numbers]

    def term_counts(self, passages: Sequence[tuple[str, str]]) -> list[Mapping[str, int]]:
        """Count the terms of passages, given as id and indexed text.

        From the index's own term vectors where it has them; an analysis of the
        text gives the same and is faster, but needs to know the very text.
        """
        counts = java_class("java.util.ArrayList")()
        if self._fields.hasVectors():
            vector = java_class("io.anserini.index.IndexReaderUtils").getDocumentVector
            for identity, _ in passages:
                counts.add(vector(self.reader, identity))
        else:
            count = java_class("io.anserini.analysis.AnalyzerUtils").computeDocumentVector
            for _, text in passages:
                counts.add(count(self._analyzer, cleaned(text)))
        return [one or {} for one in _json(counts)]

    def passage(self, number: int, identity: str) -> Passage:
        """Read a passage from the index by its number.

        Raises:
            IndexFileError: the index does not store texts.
        """
        with _told(f"read {self.folder}"):
            stored = self.reader.storedFields().document(number)
            text, raw = stored.get(_FIELD), stored.get("raw")
        if text is None and raw is None:
            raise IndexFileError(
                f"{self.folder} does not store its texts; build it with -storeContents or -storeRaw"
            )
        return Passage(identity, _text_of(raw) if text is None else text)


def cleaned(text: str) -> str:
    """Replace what is no character (a lone half of a surrogate pair): Java cannot take it."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _text_of(raw: str) -> str:
    try:
        record = json.loads(raw)
    except ValueError:
        return raw
    text = record.get(_FIELD) if isinstance(record, dict) else None
    return text if isinstance(text, str) else raw


def _json(java_object: Any) -> Any:
    """Bring a whole Java object over in one call, instead of one for each of its parts."""
    return json.loads(_mapper().writeValueAsString(java_object))


@cache
def _mapper() -> Any:
    return java_class("com.fasterxml.jackson.databind.ObjectMapper")()


@contextmanager
def _told(what: str, error: type[Exception] = IndexFileError) -> Iterator[None]:
    """Turn Java's exceptions into ours."""
    try:
        yield
    except Exception as problem:
        if not is_java_error(problem):
            raise
        raise error(f"Lucene could not {what}: {problem}") from problem
