"""Predictions of measured requests, from timelines whose times are worked out by hand."""

from dataclasses import replace

import pytest

from benchmarks.simulated.predict import (
    Prediction,
    Setting,
    StepTime,
    curve_through,
    median_error,
    predict,
    step_times,
)
from ralmspec_plugins import Continuous, Latencies, Settings, Simulation
from ralmspec_plugins.effects import Extend
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.testing import EchoWorkload, WordRetriever
from ralmspec_plugins.types import Answer, Hits, Span, Stats

TEXTS = ["red fox", "blue whale", "green tree"]
ASKED = "red fox red whale blue tree green tree red"
PLAINLY = Settings(speculate=False)


def b(queries: int) -> float:
    return 5.0 + 0.25 * queries


class Cached(EchoWorkload):
    """Asks outside the loop, and remembers which passage it wrote behind last."""

    inline_query = False

    def __init__(self) -> None:
        self.front: dict[tuple[str, ...], Hits] = {}

    def extend_s(self, need: Extend) -> float:
        """Take 1 second behind the passage of the line before, and 3 behind another."""
        _, lines = need.state
        text = need.hits[0].passage.text
        return 1.0 if lines and lines[-1] == text else 3.0


def run(settings: Settings) -> Answer:
    workload = Cached()
    latencies = Latencies(extend_s=workload.extend_s, search_s=b, ask_s=0.5, contention=0.2)
    return Simulation(workload, WordRetriever(TEXTS), latencies, settings).run(ASKED)


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_request_is_predicted_from_its_plain_run(lanes: int) -> None:
    """What takes exactly its time, plainly and with guesses, is predicted exactly."""
    settings = Settings(schedule=Continuous(lanes=lanes))
    setting = Setting(search_s=b, contention=0.2)
    expected = run(settings).stats
    actual = predict(run(PLAINLY), WordRetriever(TEXTS), settings, setting)

    assert expected.wall_s == pytest.approx(actual.wall_s)
    assert expected.batch_sizes == actual.batch_sizes
    assert expected.wall_s < run(PLAINLY).stats.wall_s


def test_the_plain_run_is_predicted_from_itself() -> None:
    """Nine steps of 0.5, 5.25 and 1 or 3 seconds, and the question that ends it."""
    actual = predict(run(PLAINLY), WordRetriever(TEXTS), PLAINLY, Setting(search_s=b))

    assert run(PLAINLY).stats.wall_s == pytest.approx(actual.wall_s)


def test_steps_take_what_they_took_and_what_others_took() -> None:
    """The first step reads passages; what it would take without is what the second took."""
    times = step_times(run(PLAINLY))

    assert times[:4] == [StepTime(0.5, 1.0, 3.0)] * 4


def test_where_no_passage_changed_twice_both_take_the_same() -> None:
    """One step only: nothing is known of a step behind the same passages."""
    answer = run(PLAINLY)
    spans = (Span("search", 0.0, 2.0, 1), Span("extend", 2.0, 9.0))
    one = replace(answer, retrieved=answer.retrieved[:1], stats=Stats(timeline=spans))

    assert step_times(one) == [StepTime(0.0, 7.0, 7.0)]


def test_a_speculative_timeline_is_refused() -> None:
    """Its segments are not one for each step."""
    answer = run(Settings())
    cut = replace(answer.stats, timeline=answer.stats.timeline[:3])
    with pytest.raises(InputError, match="plain run"):
        step_times(replace(answer, stats=cut))


def test_curves_go_on_beyond_what_was_measured() -> None:
    """From 1: 2 and 5: 4 the slope is 1/2; from one size alone it is 0; from none, nothing."""
    curve = curve_through({5: 4.0, 1: 2.0})

    assert [curve(n) for n in (1, 3, 5, 9)] == [2.0, 3.0, 4.0, 6.0]
    assert curve_through({4: 1.5})(64) == 1.5
    with pytest.raises(InputError, match="at least one"):
        curve_through({})


def test_errors_are_shares_of_what_was_measured() -> None:
    """9 for 10 is 10 %, 15 for 10 50 %, 21 for 20 5 %: the middle one is 10 %."""
    predictions = [Prediction(9.0, 10.0), Prediction(15.0, 10.0), Prediction(21.0, 20.0)]

    assert median_error(predictions) == pytest.approx(0.1)
