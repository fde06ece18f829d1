"""A Lucene index on the disk: built from texts, opened, searched and read by Anserini.

All functions are for Java's own threads: call them within `in_java`. A call of
Java takes tens of microseconds, so each returns a complete result, as JSON.

pyjnius keeps one method object for each class, and reading `thing.method` writes
`thing` into it: of two threads that call one method on two objects at once, both
can reach the same object (its issues 287 and 563). So a search could be answered
by another index, without any error. Here each object's method gets a separate method
object (`method`), in a private class, and is
looked up once. No other method of a Java object is called, so that
threads that use pyserini at the same time cannot interfere. Static methods,
constructors and fields have no such fault.
"""

import json
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ralmspec_plugins.errors import ConfigError, IndexFileError, InputError
from ralmspec_plugins.retrieval.bm25 import check_bm25
from ralmspec_plugins.retrieval.lucene.bm25 import Statistics
from ralmspec_plugins.retrieval.lucene.jvm import classes, java_class, java_threads
from ralmspec_plugins.retrieval.optional import optional
from ralmspec_plugins.retrieval.storage.corpus import batched
from ralmspec_plugins.types import Passage

_PRIVATE = "ralmspec_plugins"  # not used by autoclass
_TEXTS_AT_ONCE = 2048
_INDEXING_MB = 256  # of Java's memory, before a segment is written; Anserini's 4096 passes -Xmx
_FIELD = "contents"

# Names and, as class files write them, types of Java's.
_LUCENE = "org.apache.lucene"
_SEARCHER = f"{_LUCENE}.search.IndexSearcher"
_QUERIES = "io.anserini.search.query.BagOfWordsQueryGenerator"
_LANGUAGES = "io.anserini.analysis.AnalyzerMap"
_ENGLISH = "io.anserini.analysis.DefaultEnglishAnalyzer"
_TOOLS = "io.anserini.analysis.AnalyzerUtils"
_READING = "io.anserini.index.IndexReaderUtils"
_TEXT, _LIST, _MAP = "Ljava/lang/String;", "Ljava/util/List;", "Ljava/util/Map;"
_ANALYZER = f"L{_LUCENE.replace('.', '/')}/analysis/Analyzer;"
_READER, _CONTEXT = (
    f"L{_LUCENE.replace('.', '/')}/index/{kind};" for kind in ("IndexReader", "IndexReaderContext")
)
_QUERY, _SORT, _TOP, _SIMILARITY = (
    f"L{_LUCENE.replace('.', '/')}/search/{kind};"
    for kind in ("Query", "Sort", "TopFieldDocs", "similarities/Similarity")
)


class _Bound:
    """A method with a reference to its class, without which pyjnius would use freed memory."""

    __slots__ = ("_call", "_own")

    def __init__(self, call: Callable[..., Any], own: Any) -> None:
        self._call = call
        self._own = own

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)


def method(target: Any, kind: str, name: str, signature: str) -> Callable[..., Any]:
    """Return a method that is bound to its object.

    Args:
        target: the object.
        kind: the class that declares the method.
        name: the method's.
        signature: arguments and result in the notation of class files: it selects the overloaded
            method, so that pyjnius need not search it at each call.
    """
    jnius = _jnius()
    with classes:
        own = _private(kind, name, jnius.JavaMethod(signature), signature)
        return _Bound(getattr(jnius.cast(own, target), name), own)


@cache
def function(kind: str, name: str, signature: str) -> Callable[..., Any]:
    """Return a static method."""
    with classes:
        own = _private(kind, name, _jnius().JavaStaticMethod(signature), signature)
        return _Bound(getattr(own, name), own)


def _private(kind: str, name: str, member: Any, signature: str) -> Any:
    """Return a class with one method, and load its result's class before threads need it."""
    result = signature.rpartition(")")[2]
    if result.startswith("L"):
        java_class(result[1:-1].replace("/", "."))
    jnius = _jnius()
    about = {"__javaclass__": kind.replace(".", "/"), "__javaconstructor__": [], name: member}
    meta = jnius.MetaJavaClass
    return meta.__new__(meta, kind, (jnius.JavaClass,), about, classparams=_PRIVATE)


def _jnius() -> Any:
    return optional("jnius", "lucene", "pyjnius")


@contextmanager
def _java_errors(what: str, error: type[Exception] = IndexFileError) -> Iterator[None]:
    """Convert Java's exceptions to errors of this package."""
    try:
        yield
    except Exception as problem:
        if type(problem).__name__ != "JavaException":
            raise
        raise error(f"Lucene could not {what}: {problem}") from problem


def _json(java_object: Any) -> Any:
    """Return a complete Java object in one call, instead of one for each of its parts."""
    return json.loads(_to_json()(java_object))


@cache
def _to_json() -> Any:
    kind = "com.fasterxml.jackson.databind.ObjectMapper"
    return method(java_class(kind)(), kind, "writeValueAsString", f"(Ljava/lang/Object;){_TEXT}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LuceneSettings:
    """The settings of analysis and scoring; saved with the index."""

    k1: float = 0.9  # Anserini's defaults, which the paper's sparse retriever uses
    b: float = 0.4
    language: str = "en"

    def __post_init__(self) -> None:
        """Check the parameters of BM25."""
        check_bm25(self.k1, self.b)

    def analyzer(self) -> Any:
        """Return the analyzer of texts.

        Raises:
            ConfigError: Anserini has no analyzer of that language.
        """
        if self.language == "en":  # Porter's stems, without Lucene's stop words
            return function(_ENGLISH, "newDefaultInstance", f"()L{_ENGLISH.replace('.', '/')};")()
        known = {*_json(java_class(_LANGUAGES).analyzerMap), "en"}
        if self.language not in known:
            raise ConfigError(
                f"unknown language {self.language!r}; known are {', '.join(sorted(known))}"
            )
        find = function(_LANGUAGES, "getLanguageSpecificAnalyzer", f"({_TEXT}){_ANALYZER}")
        return find(self.language)


def build_index(folder: Path, texts: Iterable[tuple[str, str]], settings: LuceneSettings) -> int:
    """Index texts with their ids in an empty folder, as one segment; return their number.

    Lucene does not store texts without a visible character.

    Raises:
        InputError: Lucene did not accept all texts, or there is none.
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
        if any(char > " " for char in text)  # as in Java's trim()
    )
    with _java_errors(f"index passages in {folder}", InputError):
        kind = "io.anserini.index.SimpleIndexer"
        indexer = java_class(kind)(options)
        add = method(indexer, kind, "addRawDocuments", f"([{_TEXT})I")
        for some in batched(lines, _TEXTS_AT_ONCE):
            count += len(some)
            taken += add(some)
        method(indexer, kind, "close", "(Z)V")(True)  # merged: faster to search than many segments
    if taken != count:
        raise InputError(
            f"Lucene accepted only {taken} of {count} passages; are some ids very long?"
        )
    return count


@dataclass(frozen=True, slots=True)
class LuceneHit:
    """A passage found by a search: its number in the index, its score, and its id."""

    number: int
    score: float
    key: Mapping[str, Any]  # Lucene's id

    @property
    def id(self) -> str:
        """The passage's id, decoded on access, which costs as much as the rest."""
        start = self.key["offset"]
        return b64decode(self.key["bytes"])[start : start + self.key["length"]].decode("utf-8")


class LuceneIndex:
    """An open index; thread-safe for reading."""

    def __init__(self, folder: Path, settings: LuceneSettings) -> None:
        """Open a folder.

        Raises:
            IndexFileError: it has no Lucene index, or not one of Anserini.
            ConfigError: the language is unknown.
        """
        self.folder = folder
        with _java_errors(f"open {folder}"):
            self._reader = function(_READING, "getReader", f"({_TEXT}){_READER}")(str(folder))
        self.close = self._reads("close", "()V")
        self.size: int = self._reads("numDocs", "()I")()
        self.statistics = Statistics(
            self._reads("getDocCount", f"({_TEXT})I")(_FIELD),
            self._reads("getSumTotalTermFreq", f"({_TEXT})J")(_FIELD),
        )
        about = f"({_READER}){_MAP}"
        fields = _json(function(_READING, "getFieldInfo", about)(self._reader))
        told = _json(function(_READING, "getFieldInfoDescription", about)(self._reader))
        if self.statistics.tokens < 1:  # also without such a field
            raise IndexFileError(f"{folder} holds no passage with an indexed '{_FIELD}' field")
        if fields.get("id", {}).get("docValuesType") != "BINARY":
            raise IndexFileError(
                f"{folder} keeps no ids to break ties by (doc values of 'id'); build it with "
                "an Anserini or pyserini of Lucene 9"
            )
        self._vectors = "hasVectors: true" in told[_FIELD]  # of terms
        self._analyzer = settings.analyzer()
        searcher = java_class(_SEARCHER)(self._reads("getContext", f"(){_CONTEXT}")())
        similarity = java_class(f"{_LUCENE}.search.similarities.BM25Similarity")
        weigh = method(searcher, _SEARCHER, "setSimilarity", f"({_SIMILARITY})V")
        weigh(similarity(settings.k1, settings.b))
        self._search = method(searcher, _SEARCHER, "search", f"({_QUERY}I{_SORT}Z){_TOP}")
        types = f"({_TEXT}{_ANALYZER}{_TEXT}){_QUERY}"
        self._query = method(java_class(_QUERIES)(), _QUERIES, "buildQuery", types)
        # Anserini's own order: score descending, id ascending.
        field, types_of = (java_class(f"{_LUCENE}.search.SortField{x}") for x in ("", "$Type"))
        by_id = field("id", types_of.STRING_VAL)
        self._order = java_class(f"{_LUCENE}.search.Sort")(field.FIELD_SCORE, by_id)

    def _reads(self, name: str, signature: str) -> Callable[..., Any]:
        return method(self._reader, f"{_LUCENE}.index.IndexReader", name, signature)

    def search(self, text: str, width: int) -> list[LuceneHit]:
        """Return the best passages that share a term with a text, best first, ties by id."""
        with _java_errors(f"search {self.folder}"):
            query = self._query(_FIELD, self._analyzer, cleaned(text))
            found = _json(self._search(query, width, self._order, True))["scoreDocs"]
        scores = np.array([one["score"] for one in found], dtype=np.float32).tolist()
        return [
            LuceneHit(one["doc"], score, one["fields"][1])
            for one, score in zip(found, scores, strict=True)
        ]

    def terms(self, text: str) -> list[str]:
        """Return the terms of a text."""
        analyze = function(_TOOLS, "analyze", f"({_ANALYZER}{_TEXT}){_LIST}")
        return list(_json(analyze(self._analyzer, cleaned(text))))

    def holding(self, term: str) -> int:
        """Return the number of passages that contain a term."""
        with _java_errors(f"read {self.folder}"):
            return int(function(_READING, "getDF", f"({_READER}{_TEXT})J")(self._reader, term))

    def term_counts(self, passages: Sequence[tuple[str, str]]) -> list[Mapping[str, int]]:
        """Return the term counts of passages, given as id and indexed text.

        They are from the index's term vectors if it has them; an analysis of the
        text has the same result and is faster, but needs the exact text.
        """
        with _java_errors(f"read {self.folder}"):
            if self._vectors:
                vector = function(_READING, "getDocumentVector", f"({_READER}{_TEXT}){_MAP}")
                counts = [vector(self._reader, identity) for identity, _ in passages]
            else:
                count = function(_TOOLS, "computeDocumentVector", f"({_ANALYZER}{_TEXT}){_MAP}")
                counts = [count(self._analyzer, cleaned(text)) for _, text in passages]
            together = function("java.util.Arrays", "asList", f"([Ljava/lang/Object;){_LIST}")
            return [one or {} for one in _json(together(counts))]

    def passage(self, identity: str) -> Passage:
        """Return a passage from the index.

        Raises:
            IndexFileError: the index does not store texts.
        """
        types = f"({_READER}{_TEXT}){_TEXT}"
        with _java_errors(f"read {self.folder}"):
            text = function(_READING, "documentContents", types)(self._reader, identity)
            raw = function(_READING, "documentRaw", types)(self._reader, identity)
        if text is None and raw is None:
            raise IndexFileError(
                f"{self.folder} does not store its texts; build it with -storeContents or -storeRaw"
            )
        return Passage(identity, _text_of(raw) if text is None else text)

    def check_texts(self) -> None:
        """Check that the index stores its texts.

        Raises:
            IndexFileError: it does not, or in an unsupported way.
        """
        first = function(_READING, "convertLuceneDocidToDocid", f"({_READER}I){_TEXT}")
        with _java_errors(f"read {self.folder}"):
            identity = first(self._reader, 0)
        self.passage(identity)


def cleaned(text: str) -> str:
    """Return a text with lone surrogates replaced, which Java does not support."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _text_of(raw: str) -> str:
    try:
        record = json.loads(raw)
    except ValueError:
        return raw
    text = record.get(_FIELD) if isinstance(record, dict) else None
    return text if isinstance(text, str) else raw
