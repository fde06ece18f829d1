"""One Lucene index on the disk: built of texts, opened, searched and read, through Anserini.

Everything here is for Java's own threads: call it within `in_java`. A call into
Java costs tens of microseconds, so each brings back a whole result, as JSON.
"""

import contextlib
import difflib
import json
import logging
import threading
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ralmspec_plugins.errors import ConfigError, IndexFileError, InputError, MissingExtraError
from ralmspec_plugins.retrieval.lucene.bm25 import Statistics
from ralmspec_plugins.retrieval.lucene.jvm import (
    classes,
    is_java_error,
    java_class,
    java_threads,
    start_java,
)
from ralmspec_plugins.retrieval.optional import optional
from ralmspec_plugins.retrieval.storage.corpus import batched
from ralmspec_plugins.types import Passage

# Java's methods as Python functions that threads can share.
#
# pyjnius keeps one method object for each class, and reading `thing.method` writes
# `thing` into it: of two threads that call one method on two objects at once, both
# can reach the same object (its issues 287 and 563). So a search could be answered
# by another index, without any error. Here each object's method gets a method
# object of its own, in a private class that nobody else can see, and is looked up
# once. No other method of a Java object is ever called, so that not even threads
# that use pyserini at the same time can interfere.
#
# Static methods, constructors and fields have no such fault, and come from
# `java_class` as they are.


_PRIVATE = "ralmspec_plugins"  # where autoclass never looks
_norms = threading.Lock()


class _Bound:
    """A method, and the class that it needs without holding it: pyjnius would use freed memory."""

    __slots__ = ("_call", "_own")

    def __init__(self, call: Callable[..., Any], own: Any) -> None:
        self._call = call
        self._own = own

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)


def method(target: Any, kind: str, name: str, signature: str) -> Callable[..., Any]:
    """Bind a method to its object for good.

    Args:
        target: the object.
        kind: the class that declares the method.
        name: the method's.
        signature: arguments and result in the notation of class files: it says which overloaded
            method is meant, so that pyjnius need not find out at each call.
    """
    jnius = _jnius()
    with classes:
        _look_up_result(signature)
        own = _private(kind, {name: jnius.JavaMethod(signature)})
        return _Bound(getattr(jnius.cast(own, target), name), own)


@cache
def function(kind: str, name: str, signature: str) -> Callable[..., Any]:
    """Find a static method."""
    with classes:
        _look_up_result(signature)
        own = _private(kind, {name: _jnius().JavaStaticMethod(signature)})
        return _Bound(getattr(own, name), own)


def norms_at(norms: Any, numbers: Sequence[int]) -> list[int | None]:
    """Read Lucene's norms of passages, numbers ascending: one object's methods, many times.

    Objects like this one live for one search only, so their class is shared, under the lock.
    """
    with _norms:
        own = _jnius().cast(_norms_class(), norms)
        return [own.longValue() & 255 if own.advanceExact(number) else None for number in numbers]


@cache
def _norms_class() -> Any:
    make = _jnius().JavaMethod
    members = {"advanceExact": make("(I)Z"), "longValue": make("()J")}
    with classes:
        return _private("org.apache.lucene.index.NumericDocValues", members)


def _look_up_result(signature: str) -> None:
    """Look up the class of a method's results now, before two threads get their first ones."""
    result = signature.rpartition(")")[2]
    if result.startswith("L"):
        java_class(result[1:-1].replace("/", "."))


def _private(kind: str, members: dict[str, Any]) -> Any:
    jnius = _jnius()
    about = {"__javaclass__": kind.replace(".", "/"), "__javaconstructor__": [], **members}
    meta = jnius.MetaJavaClass
    return meta.__new__(meta, kind, (jnius.JavaClass,), about, classparams=_PRIVATE)


def _jnius() -> Any:
    return optional("jnius", "lucene", "pyjnius")


_TEXTS_AT_ONCE = 2048
_INDEXING_MB = 256  # of Java's memory, before a segment is written; Anserini's 4096 passes -Xmx
_FIELD = "contents"

# Names and, as class files write them, types of Java's.
_LUCENE = "org.apache.lucene"
_LANGUAGES = "io.anserini.analysis.AnalyzerMap"
_ENGLISH = "io.anserini.analysis.DefaultEnglishAnalyzer"
_TOOLS = "io.anserini.analysis.AnalyzerUtils"
_READING = "io.anserini.index.IndexReaderUtils"
_READER_KIND = f"{_LUCENE}.index.IndexReader"
_TEXT, _LIST, _MAP = "Ljava/lang/String;", "Ljava/util/List;", "Ljava/util/Map;"
_ANALYZER = "Lorg/apache/lucene/analysis/Analyzer;"
_READER = "Lorg/apache/lucene/index/IndexReader;"
_QUERY = "Lorg/apache/lucene/search/Query;"
_SORT = "Lorg/apache/lucene/search/Sort;"
_TOP = "Lorg/apache/lucene/search/TopFieldDocs;"


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
            return function(_ENGLISH, "newDefaultInstance", f"()L{_ENGLISH.replace('.', '/')};")()
        known = set(_json(java_class(_LANGUAGES).analyzerMap))
        if self.language not in known:
            raise ConfigError(
                f"unknown language {self.language!r}; known are {', '.join(sorted(known | {'en'}))}"
            )
        return function(
            _LANGUAGES, "getLanguageSpecificAnalyzer", f"(Ljava/lang/String;){_ANALYZER}"
        )(self.language)


@dataclass(frozen=True, slots=True)
class LuceneHit:
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
        kind = "io.anserini.index.SimpleIndexer"
        indexer = java_class(kind)(options)
        add = method(indexer, kind, "addRawDocuments", f"([{_TEXT})I")
        for some in batched(lines, _TEXTS_AT_ONCE):
            count += len(some)
            taken += add(some)
        method(indexer, kind, "close", "(Z)V")(True)  # merged: faster to search than many segments
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
            self._reader = function(_READING, "getReader", f"({_TEXT}){_READER}")(str(folder))
        self.close = method(self._reader, _READER_KIND, "close", "()V")
        self.size: int = method(self._reader, _READER_KIND, "numDocs", "()I")()
        self.statistics = Statistics(
            method(self._reader, _READER_KIND, "getDocCount", f"({_TEXT})I")(_FIELD),
            method(self._reader, _READER_KIND, "getSumTotalTermFreq", f"({_TEXT})J")(_FIELD),
        )
        self._vectors = self._check_fields()
        self._analyzer = settings.analyzer()
        self._prepare(settings)

    def _check_fields(self) -> bool:
        """See that the fields are Anserini's; say whether there are term vectors."""
        about = f"({_READER}){_MAP}"
        fields = _json(function(_READING, "getFieldInfo", about)(self._reader))
        told = _json(function(_READING, "getFieldInfoDescription", about)(self._reader))
        if self.statistics.tokens < 1:  # also where there is no such field
            raise IndexFileError(f"{self.folder} holds no passage with an indexed '{_FIELD}' field")
        if fields.get("id", {}).get("docValuesType") != "BINARY":
            raise IndexFileError(
                f"{self.folder} keeps no ids to break ties by (doc values of 'id'); build it with "
                "an Anserini or pyserini of Lucene 9"
            )
        return "hasVectors: true" in told[_FIELD]

    def _prepare(self, settings: LuceneSettings) -> None:
        """Bind what is called for each query."""
        searcher = java_class(f"{_LUCENE}.search.IndexSearcher")(
            method(self._reader, _READER_KIND, "getContext",
                   "()Lorg/apache/lucene/index/IndexReaderContext;")()
        )  # fmt: skip
        similarity = java_class(f"{_LUCENE}.search.similarities.BM25Similarity")
        kind = f"{_LUCENE}.search.IndexSearcher"
        method(searcher, kind, "setSimilarity",
               "(Lorg/apache/lucene/search/similarities/Similarity;)V")(
            similarity(settings.k1, settings.b)
        )  # fmt: skip
        self._search = method(searcher, kind, "search", f"({_QUERY}I{_SORT}Z){_TOP}")
        kind = "io.anserini.search.query.BagOfWordsQueryGenerator"
        types = f"({_TEXT}{_ANALYZER}{_TEXT}){_QUERY}"
        self._query = method(java_class(kind)(), kind, "buildQuery", types)
        self._analyze = function(_TOOLS, "analyze", f"({_ANALYZER}{_TEXT}){_LIST}")
        self._holding = function(_READING, "getDF", f"({_READER}{_TEXT})J")
        # Anserini's own order: score descending, id ascending, so ties need no care of ours.
        field, types_of = (java_class(f"{_LUCENE}.search.SortField{x}") for x in ("", "$Type"))
        by_id = field("id", types_of.STRING_VAL)
        self._order = java_class(f"{_LUCENE}.search.Sort")(field.FIELD_SCORE, by_id)

    def search(self, text: str, width: int) -> list[LuceneHit]:
        """Find the best passages that share a term with a text, best first, ties by id."""
        with _told(f"search {self.folder}"):
            query = self._query(_FIELD, self._analyzer, cleaned(text))
            found = _json(self._search(query, width, self._order, True))["scoreDocs"]
        scores = np.array([one["score"] for one in found], dtype=np.float32).tolist()
        return [
            LuceneHit(one["doc"], score, one["fields"][1])
            for one, score in zip(found, scores, strict=True)
        ]

    def terms(self, text: str) -> list[str]:
        """Turn a text into terms."""
        return list(_json(self._analyze(self._analyzer, cleaned(text))))

    def holding(self, term: str) -> int:
        """Count the passages that hold a term."""
        with _told(f"read {self.folder}"):
            return int(self._holding(self._reader, term))

    def lengths(self, numbers: Sequence[int]) -> list[int]:
        """Give passages' lengths, as the bytes that Lucene keeps; numbers in ascending order."""
        kind = f"{_LUCENE}.index.NumericDocValues"
        types = f"({_READER}{_TEXT})L{kind.replace('.', '/')};"
        with _told(f"read {self.folder}"):
            norms = function(f"{_LUCENE}.index.MultiDocValues", "getNormValues", types)
            found = norms(self._reader, _FIELD)
            kept = [None] * len(numbers) if found is None else norms_at(found, numbers)
        return [1 if one is None else one for one in kept]

    def term_counts(self, passages: Sequence[tuple[str, str]]) -> list[Mapping[str, int]]:
        """Count the terms of passages, given as id and indexed text.

        From the index's own term vectors where it has them; an analysis of the
        text gives the same and is faster, but needs to know the very text.
        """
        with _told(f"read {self.folder}"):
            if self._vectors:
                vector = function(_READING, "getDocumentVector", f"({_READER}{_TEXT}){_MAP}")
                counts = [vector(self._reader, identity) for identity, _ in passages]
            else:
                count = function(_TOOLS, "computeDocumentVector", f"({_ANALYZER}{_TEXT}){_MAP}")
                counts = [count(self._analyzer, cleaned(text)) for _, text in passages]
            together = function("java.util.Arrays", "asList", f"([Ljava/lang/Object;){_LIST}")
            return [one or {} for one in _json(together(counts))]

    def passage(self, identity: str) -> Passage:
        """Read a passage from the index.

        Raises:
            IndexFileError: the index does not store texts.
        """
        types = f"({_READER}{_TEXT}){_TEXT}"
        with _told(f"read {self.folder}"):
            text = function(_READING, "documentContents", types)(self._reader, identity)
            raw = function(_READING, "documentRaw", types)(self._reader, identity)
        if text is None and raw is None:
            raise IndexFileError(
                f"{self.folder} does not store its texts; build it with -storeContents or -storeRaw"
            )
        return Passage(identity, _text_of(raw) if text is None else text)

    def check_texts(self) -> None:
        """See that the index stores its texts.

        Raises:
            IndexFileError: it does not, or not in a way that Anserini knows.
        """
        first = function(_READING, "convertLuceneDocidToDocid", f"({_READER}I){_TEXT}")
        with _told(f"read {self.folder}"):
            identity = first(self._reader, 0)
        self.passage(identity)


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
    return json.loads(_to_json()(java_object))


@cache
def _to_json() -> Any:
    kind = "com.fasterxml.jackson.databind.ObjectMapper"
    mapper = java_class(kind)()
    return method(mapper, kind, "writeValueAsString", f"(Ljava/lang/Object;){_TEXT}")


@contextmanager
def _told(what: str, error: type[Exception] = IndexFileError) -> Iterator[None]:
    """Turn Java's exceptions into ours."""
    try:
        yield
    except Exception as problem:
        if not is_java_error(problem):
            raise
        raise error(f"Lucene could not {what}: {problem}") from problem


# The Lucene indexes that pyserini offers for download, by name.


_log = logging.getLogger(__name__)
_SHOWN = 5


def prebuilt_folder(name: str) -> Path:
    """Find a prebuilt index in pyserini's cache, or download it there with pyserini's own helper.

    Raises:
        ConfigError: there is none of that name; the message lists close ones.
        IndexFileError: the download failed.
        MissingExtraError: pyserini, or what it downloads with, is not installed.
    """
    start_java()  # before pyserini, which would start it in its own way
    try:
        with classes:  # pyserini looks up Java's while it is imported
            known: Mapping[str, Any] = import_module("pyserini.prebuilt_index_info").TF_INDEX_INFO
            download = import_module("pyserini.util").download_prebuilt_index
    except ModuleNotFoundError as error:
        raise MissingExtraError("lucene", str(error.name)) from error
    if name not in known:
        close = difflib.get_close_matches(name, known, n=_SHOWN, cutoff=0.4)
        raise ConfigError(
            f"pyserini has no prebuilt BM25 index {name!r}; close to it are "
            f"{', '.join(close or list(known)[:_SHOWN])}"
        )
    with contextlib.redirect_stdout(_Log()), contextlib.redirect_stderr(_Log()):
        try:
            return Path(download(name, verbose=False))
        except (OSError, ValueError, AssertionError, LookupError) as error:
            raise IndexFileError(
                f"the prebuilt index {name!r} could not be downloaded ({error}); check the "
                "network, or download it by hand and open its folder"
            ) from error


class _Log:
    """Takes what pyserini prints; a library is silent."""

    def write(self, text: str) -> int:
        if text.strip():
            _log.info("%s", text.strip())
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""
