"""Bounds of what speculation can gain, from the statistics of one plain request."""

import pytest

from ralmspec_plugins import Engine, Settings, Stats, plain
from ralmspec_plugins.diagnosis import Bounds
from ralmspec_plugins.engine.simulation import Latencies, Simulation
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.testing import EchoWorkload, WordRetriever
from ralmspec_plugins.types import Span

PLAIN = Settings(speculate=False)
STORE = WordRetriever(["red fox", "blue whale"])


def test_bounds_by_hand() -> None:
    """Two steps: queries of 0.05 and 0.05 s, searches of 0.4, texts of 0.1 and 0.2 s.

    A step takes (0.05 + 0.1 + 0.05 + 0.2) / 2 = 0.2 s. Plainly 2 (0.2 + 0.4) = 1.2 s, at best
    2 * 0.2 + 0.4 = 0.8 s: 1.5 times as fast.
    """
    spans = (
        Span("ask", 0.0, 0.05),
        Span("search", 0.05, 0.45),
        Span("extend", 0.45, 0.55),
        Span("ask", 0.55, 0.6),
        Span("search", 0.6, 1.0),
        Span("extend", 1.0, 1.2),
    )
    bounds = Bounds.of(Stats(segments=2, searches=2, timeline=spans))

    assert bounds.steps == 2
    assert bounds.step_s == pytest.approx(0.2)
    assert bounds.search_s == pytest.approx(0.4)
    assert bounds.speed_up == pytest.approx(1.5)


def test_the_bound_is_reached_in_virtual_time() -> None:
    """Where all guesses are right: 8 steps of 1 s, searches of 1 s, 16 against 9 s."""
    prompt = "fox whale " * 4
    latencies = Latencies()
    slow = Simulation(EchoWorkload(), STORE, latencies, PLAIN).run(prompt)
    fast = Simulation(EchoWorkload(), STORE, latencies).run(prompt)
    bounds = Bounds.of(slow.stats)

    assert (bounds.plain_s, bounds.best_s) == (slow.stats.wall_s, 9.0) == (16.0, 9.0)
    assert bounds.best_s <= fast.stats.wall_s < bounds.plain_s


@pytest.mark.parametrize(
    "stats",
    [
        Stats(),
        Stats(segments=1, timeline=(Span("extend", 0.0, 1.0),)),
        Stats(
            segments=1,
            searches=1,
            timeline=(Span("search", 0.0, 1.0), Span("extend", 0.0, 1.0, ahead=True)),
        ),
        plain(EchoWorkload(), STORE, "fox whale").stats,
    ],
    ids=["empty", "nothing searched", "speculative", "not measured"],
)
def test_other_statistics_are_refused(stats: Stats) -> None:
    """Their times are not those of a plain step."""
    with pytest.raises(InputError, match="speculate=False"):
        Bounds.of(stats)


def test_a_plain_engine_gives_such_statistics() -> None:
    """With the steps of the answer."""
    with Engine(EchoWorkload(), STORE, PLAIN) as engine:
        answer = engine.run("fox whale fox")

    assert answer.text == "red fox\nblue whale\nred fox"
    assert Bounds.of(answer.stats).steps == 3
