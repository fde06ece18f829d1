"""Providers that ask to be called less often: nothing runs ahead for as long as they say."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import pytest

from ralmspec_plugins import AsyncEngine, Continuous, Engine, Settings, plain
from ralmspec_plugins.engine.session import Session
from ralmspec_plugins.protocols import Progress, speculative
from ralmspec_plugins.scheduling.rate_limit import LONGEST_S, WAIT_S, RateLimit, asked_wait_s
from ralmspec_plugins.testing import EchoWorkload, WordRetriever
from ralmspec_plugins.types import Hits, Query

TEXTS = ["red fox", "blue whale", "green frog"]
PROMPT = "fox whale frog fox whale frog"


class ProviderError(Exception):
    """An error as HTTP clients raise it."""

    def __init__(self, status: Any = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(f"status {status}")
        self.response = SimpleNamespace(status_code=status, headers=headers or {})


def in_a_while(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds))


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (ProviderError(429), WAIT_S),
        (ProviderError(429, {"retry-after": "7"}), 7.0),
        (ProviderError(503, {"Retry-After": "0.5"}), 0.5),
        (ProviderError(429, {"retry-after": "-3"}), 0.0),
        (ProviderError(429, {"retry-after": "1e9"}), LONGEST_S),
        (ProviderError(429, {"retry-after": "nan"}), WAIT_S),
        (ProviderError(429, {"retry-after": "soon"}), WAIT_S),
        (ProviderError(500), None),
        (ProviderError("429"), None),
        (ValueError("429"), None),
    ],
)
def test_what_an_answer_asks_for(error: Exception, seconds: float | None) -> None:
    """A status of 429, or a `Retry-After`; also of the error's cause."""
    assert seconds == asked_wait_s(error)
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = error
    assert seconds == asked_wait_s(wrapped)


def test_a_date_is_as_many_seconds_away() -> None:
    """Dates of HTTP have whole seconds."""
    seconds = asked_wait_s(ProviderError(429, {"retry-after": in_a_while(90)}))

    assert seconds is not None
    assert 80 < seconds <= 90


def test_errors_whose_attributes_cannot_be_read() -> None:
    """They ask for nothing; causes may go round in a circle."""

    class OddError(Exception):
        @property
        def response(self) -> Any:
            raise RuntimeError("closed")

    odd = OddError()
    odd.__cause__ = odd
    assert asked_wait_s(odd) is None


def test_a_later_answer_does_not_shorten_an_earlier_one() -> None:
    """The longest wait counts."""
    now_s = 0.0
    limit = RateLimit(lambda: now_s)
    limit.note(ProviderError(429, {"retry-after": "30"}))
    limit.note(ProviderError(429, {"retry-after": "1"}))
    limit.note(ValueError("another"))
    now_s = 29.0
    assert limit.active
    now_s = 30.0
    assert not limit.active


class Limited(EchoWorkload):
    """Fails with status 429 at the first segment that is written ahead."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead = 0

    def extend(self, state: Any, hits: Hits, progress: Progress) -> Any:
        if speculative.get():
            self.ahead += 1
            raise ProviderError(429)
        return super().extend(state, hits, progress)


class Knowing:
    """Guesses right."""

    inline = True

    def guess(self, query: Query) -> Hits:
        return WordRetriever(TEXTS).search([query])[0]

    def learn(self, query: Query, hits: Hits) -> None:
        """It knows."""


async def test_an_engine_writes_nothing_ahead_until_then() -> None:
    """In the same request, the next one and a batch; on threads and on asyncio."""
    settings = Settings(speculators=[Knowing()], schedule=Continuous())
    expected = plain(EchoWorkload(), WordRetriever(TEXTS), PROMPT).text
    workload = Limited()
    with Engine(workload, WordRetriever(TEXTS), settings) as engine:
        texts = [engine.run(PROMPT).text]
        assert 1 == workload.ahead
        second = engine.run(PROMPT)
        texts += [second.text, *(one.text for one in engine.batch([PROMPT, PROMPT]))]
    assert 1 == workload.ahead
    assert "a provider has asked to be called less often" == second.stats.unguessed
    other = Limited()
    async with AsyncEngine(other, WordRetriever(TEXTS), settings) as aengine:
        texts += [(await aengine.run(PROMPT)).text for _ in range(2)]
    assert 1 == other.ahead
    assert 6 * [expected] == texts


def test_an_engine_goes_on_when_the_time_is_over() -> None:
    """The limit ends by itself."""
    now_s = 0.0
    limit = RateLimit(lambda: now_s)
    session = Session(EchoWorkload(), WordRetriever(TEXTS), None)
    session.rate_limit = limit
    assert not session.guesses().held
    limit.note(ProviderError(429, {"retry-after": "5"}))
    assert session.guesses().held
    assert session.for_batch().guesses().held
    now_s = 5.0
    assert not session.guesses().held
