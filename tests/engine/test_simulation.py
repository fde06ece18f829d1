"""Latencies: what each piece of work takes in virtual time, worked out by hand."""

import pytest

from ralmspec_plugins import Continuous, FixedStride, Latencies, Settings, Simulation
from ralmspec_plugins.effects import Extend
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.testing import EchoWorkload, WordRetriever
from ralmspec_plugins.types import Hit, Hits, Passage, Query

TEXTS = ["red fox", "blue whale", "green tree"]


class Fooled:
    """Guesses the green tree, always."""

    inline = True

    def guess(self, query: Query) -> Hits:
        return (Hit(Passage("p2", "green tree")),)

    def learn(self, query: Query, hits: Hits) -> None:
        """It does not."""


def seconds(latencies: Latencies, settings: Settings, asked: str = "red blue green") -> float:
    simulation = Simulation(EchoWorkload(), WordRetriever(TEXTS), latencies, settings)
    return simulation.run(asked).stats.wall_s


def test_a_segment_can_take_its_own_time() -> None:
    """Searches of 10 and segments of 3, 2 and 1 seconds, as many as there are words left: 36."""

    def words_left(need: Extend) -> float:
        return float(len(need.state[0]))

    latencies = Latencies(extend_s=words_left, search_s=lambda _: 10.0)

    assert seconds(latencies, Settings(speculate=False)) == 36.0


def test_the_engine_takes_its_share_of_each_piece_of_work() -> None:
    """3 searches and 3 segments, 0.25 seconds to hand out each: 1.5 more than 3 x (10 + 1)."""
    latencies = Latencies(search_s=lambda _: 10.0, overhead_s=0.25)

    assert seconds(latencies, Settings(speculate=False)) == 34.5


def test_a_segment_stops_when_it_can() -> None:
    """The first guess is wrong, which the search says after 2 seconds of a segment of 5.

    Plainly: 3 x (2 + 5) = 21, if the next segment starts at once. It starts when the first
    has stopped: 0.5 later with `stop_s` 0.5, and 3 later, when it is whole, with `stop_s` 9.
    From then on the guesses are wrong again, but for the last one.
    """
    settings = Settings(schedule=Continuous(), speculators=(Fooled(),))
    walls = [
        seconds(Latencies(extend_s=5.0, search_s=lambda _: 2.0, stop_s=stop_s), settings, "red")
        for stop_s in (0.0, 0.5, 9.0)
    ]

    assert walls == [7.0, 7.5, 10.0]


def test_searches_and_segments_can_slow_down_unequally() -> None:
    """A search of 4 seconds beside a segment of 4 that it slows to half its speed: 4, then 2 more.

    The search itself is not slowed, and the guess was right.
    """
    latencies = Latencies(
        extend_s=4.0, search_s=lambda _: 4.0, contention=1.0, search_contention=0.0
    )
    settings = Settings(schedule=FixedStride(stride=1, overlap=True), speculators=(Fooled(),))
    stats = Simulation(EchoWorkload(), WordRetriever(TEXTS), latencies, settings).run("green").stats
    spans = {span.kind: span for span in stats.timeline}

    assert (0.0, 4.0) == (spans["search"].started_s, spans["search"].ended_s)
    assert (0.0, 6.0) == (spans["extend"].started_s, spans["extend"].ended_s)


@pytest.mark.parametrize("name", ["contention", "search_contention", "stop_s", "overhead_s"])
@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_a_time_without_a_meaning_is_refused(name: str, value: float) -> None:
    """Work cannot take less than no time, nor be sped up by other work."""
    with pytest.raises(ConfigError, match=name):
        Latencies(**{name: value})
