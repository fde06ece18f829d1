"""Where work is done that nothing goes on beside: in the thread that asks, if nobody looks up."""

import threading
from collections.abc import Sequence

import pytest

from ralmspec_plugins import Engine, FixedStride, Settings
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing import EchoWorkload, Lines, WordRetriever
from ralmspec_plugins.types import Hits, Query, Request


class Noting(WordRetriever):
    """Notes the threads of its searches."""

    def __init__(self, *, pure: bool = True) -> None:
        super().__init__(["red fox", "blue whale"])
        self.pure = pure
        self.threads: set[int] = set()

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        self.threads.add(threading.get_ident())
        return super().search(queries)


class NotingEcho(EchoWorkload):
    """Notes the threads of its segments."""

    threads: set[int]

    def extend(self, state: Lines, hits: Hits, progress: Progress) -> Lines:
        self.threads.add(threading.get_ident())
        return super().extend(state, hits, progress)


@pytest.fixture
def workload() -> NotingEcho:
    made = NotingEcho()
    made.threads = set()
    return made


@pytest.mark.parametrize("pure", [True, False])
def test_all_of_it_is_done_in_the_callers_thread(workload: NotingEcho, pure: bool) -> None:
    """Also of a retriever that is not pure, whose requests are always plain."""
    retriever, here = Noting(pure=pure), {threading.get_ident()}
    with Engine(workload, retriever, Settings(speculate=not pure)) as engine:
        engine.run("whale")

    assert here == retriever.threads
    assert here == workload.threads


def test_a_stream_is_written_elsewhere(workload: NotingEcho) -> None:
    """So that its pieces are read while it is written; its searches stay here."""
    retriever, here = Noting(), {threading.get_ident()}
    with Engine(workload, retriever, Settings(speculate=False)) as engine:
        pieces = list(engine.stream("whale"))

    assert pieces
    assert here == retriever.threads
    assert not here & workload.threads


def test_a_deadline_is_kept_from_here(workload: NotingEcho) -> None:
    """What is done in this thread could not be broken off by it."""
    retriever, here = Noting(), {threading.get_ident()}
    with Engine(workload, retriever, Settings(speculate=False)) as engine:
        engine.run(Request(prompt="whale", deadline_s=60))

    assert not here & (retriever.threads | workload.threads)


def test_speculation_leaves_the_callers_thread_only_for_what_runs_beside(
    workload: NotingEcho,
) -> None:
    """Rounds without overlap never do two things at once, so they never leave it."""
    here = {threading.get_ident()}
    retriever = Noting()
    with Engine(workload, retriever, Settings(schedule=FixedStride(stride=2))) as engine:
        engine.run("whale fox red blue")

    assert here == workload.threads

    workload.threads = set()
    with Engine(workload, retriever, Settings(schedule=FixedStride(overlap=True))) as engine:
        engine.run("whale fox red blue")

    assert here < workload.threads


def test_what_another_thread_may_give_up_is_done_elsewhere(workload: NotingEcho) -> None:
    """A stream of events can be closed from anywhere, and a batch gives up what is behind."""
    here = {threading.get_ident()}
    settings = Settings(schedule=FixedStride(stride=2))
    with Engine(workload, Noting(), settings) as engine:
        assert list(engine.events("whale fox", reports=False))
        assert not here & workload.threads

        engine.batch(["whale", "fox"], max_concurrency=1)

    assert not here & workload.threads
