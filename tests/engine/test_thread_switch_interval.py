"""The interpreter's switch interval: left alone unless it is set, and put back."""

import asyncio
import sys
import threading
from collections.abc import Iterator

import pytest

from ralmspec_plugins import AsyncEngine, Engine, Settings
from ralmspec_plugins.engine.switch_interval import thread_switch_interval
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing import EchoWorkload, Lines, WordRetriever
from ralmspec_plugins.types import Hits

TEXTS = ["red fox", "blue whale"]
SHORT = Settings(switch_interval_s=0.0005)


@pytest.fixture(autouse=True)
def usual() -> Iterator[float]:
    """Python's own interval, whatever a test leaves behind."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(0.005)
    yield 0.005
    sys.setswitchinterval(before_s)


class Looking(EchoWorkload):
    """Notes the interval while it writes."""

    def __init__(self) -> None:
        self.seen_s: set[float] = set()

    def extend(self, state: Lines, hits: Hits, progress: Progress) -> Lines:
        self.seen_s.add(round(sys.getswitchinterval(), 6))
        return super().extend(state, hits, progress)


@pytest.mark.parametrize(
    ("settings", "seen_s"),
    [
        (Settings(), 0.005),
        (Settings(switch_interval_s=0.0005), 0.0005),
        (Settings(switch_interval_s=0.002), 0.002),
        (Settings(switch_interval_s=0.1), 0.005),  # never longer than it was
        (Settings(switch_interval_s=0.0005, speculate=False), 0.005),
    ],
)
def test_the_interval_is_what_was_set(settings: Settings, seen_s: float, usual: float) -> None:
    """Python's own by default and in plain runs; what was before is there again afterwards."""
    workload = Looking()
    with Engine(workload, WordRetriever(TEXTS), settings) as engine:
        engine.run("whale fox")

    assert {seen_s} == workload.seen_s
    assert usual == pytest.approx(sys.getswitchinterval())


def test_an_asynchronous_request_has_it_too(usual: float) -> None:
    """Its model writes in a thread beside the event loop."""
    workload = Looking()

    async def main() -> None:
        async with AsyncEngine(workload, WordRetriever(TEXTS), SHORT) as engine:
            await engine.run("whale fox")

    asyncio.run(main())

    assert {0.0005} == workload.seen_s
    assert usual == pytest.approx(sys.getswitchinterval())


def test_a_failed_request_puts_it_back(usual: float) -> None:
    """Whatever ends a request ends its interval."""

    class Failing(EchoWorkload):
        def extend(self, state: Lines, hits: Hits, progress: Progress) -> Lines:
            raise OSError("no")

    with (
        Engine(Failing(), WordRetriever(TEXTS), SHORT) as engine,
        pytest.raises(OSError, match="no"),
    ):
        engine.run("whale")

    assert usual == pytest.approx(sys.getswitchinterval())


def test_the_shortest_of_all_requests_counts(usual: float) -> None:
    """Each may end first; what is left is what the others want."""
    with thread_switch_interval(0.001):
        with thread_switch_interval(0.0002):
            assert sys.getswitchinterval() == pytest.approx(0.0002)
        assert sys.getswitchinterval() == pytest.approx(0.001)
    assert usual == pytest.approx(sys.getswitchinterval())


def test_what_somebody_else_sets_meanwhile_stays() -> None:
    """It is his process, too."""
    with thread_switch_interval(0.001):
        sys.setswitchinterval(0.003)

    assert sys.getswitchinterval() == pytest.approx(0.003)


def test_many_threads_put_it_back(usual: float) -> None:
    """However requests begin and end beside each other."""

    def often() -> None:
        for number in range(200):
            with thread_switch_interval(0.0001 * (1 + number % 7)):
                pass

    threads = [threading.Thread(target=often) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert usual == pytest.approx(sys.getswitchinterval())


def test_an_interval_that_cannot_be_is_refused() -> None:
    """The message says what may stand there."""
    with pytest.raises(ConfigError, match="above 0, or None, got 0"):
        Settings(switch_interval_s=0.0)
