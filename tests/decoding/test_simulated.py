"""Token-level speculation in virtual time: the budget's choices, counted and bounded."""

import pytest

from ralmspec_plugins.config import Settings
from ralmspec_plugins.decoding import CostCurve, SimulatedDecoder
from ralmspec_plugins.effects import Extend
from ralmspec_plugins.engine.simulation import Latencies, Simulation
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.plain import plain
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing import EchoWorkload, WordRetriever

FREE = CostCurve((1, 33), (1.0, 1.0))
RISING = CostCurve((1, 2, 4, 8, 32), (1.0, 1.3, 1.9, 3.1, 10.0))
TEXT = 2000  # tokens


def _written(costs: CostCurve, acceptance: float, tokens: int = TEXT) -> tuple[float, Progress]:
    """Give the seconds of a text, at a second a pass, and what was counted."""
    decoder = SimulatedDecoder(costs, acceptance=acceptance, pass_s=1.0, tokens=tokens)
    progress = Progress()
    return decoder(Extend(None, (), progress=progress)), progress


def test_no_draft_is_a_choice() -> None:
    """Where drafts are never right the model reads a token a pass, after a few tries."""
    seconds, progress = _written(RISING, 0.0)

    assert (TEXT, TEXT, 0) == (progress.model_passes, progress.tokens, progress.drafts_accepted)
    assert TEXT < seconds < 1.03 * TEXT


def test_costs_that_no_draft_is_worth() -> None:
    """Where a row costs a pass, sure drafts gain nothing, and none is verified."""
    line = CostCurve((1, 2, 32), (1.0, 2.0, 32.0))

    assert (float(TEXT), TEXT) == (_written(line, 0.9)[0], _written(line, 0.9)[1].model_passes)


@pytest.mark.parametrize("acceptance", [0.5, 0.8, 0.95])
def test_the_best_constant_number_of_drafts_is_nearly_reached(acceptance: float) -> None:
    """Worked: k drafts give (1 - p^(k+1)) / (1 - p) tokens at c(1 + k); the best k is the bound."""
    best = max((1 - acceptance ** (k + 1)) / (1 - acceptance) / RISING.of(1 + k) for k in range(32))
    speed = TEXT / _written(RISING, acceptance)[0]

    assert 1.0 < best
    assert 0.85 * best < speed < 1.1 * best


def test_a_pass_yields_at_most_a_segment() -> None:
    """With segments of 4 tokens and free, right drafts a segment is one pass."""
    decoder = SimulatedDecoder(FREE, acceptance=1.0, pass_s=0.5, tokens=4)
    took = [decoder(Extend(None, ())) for _ in range(6)]

    assert [0.5] * 6 == took


def test_both_speculations_in_virtual_time() -> None:
    """The answer is the plain loop's; passes are counted, and both speculations save time."""
    store = WordRetriever(["ships pass", "storms rise", "tides turn"])
    request = "ships storms tides ships storms tides"
    expected = plain(EchoWorkload(), store, request)
    took = {}
    for acceptance in (0.0, 0.9):
        for speculate in (False, True):
            model = SimulatedDecoder(FREE, acceptance=acceptance, pass_s=0.01, tokens=16)
            latencies = Latencies(extend_s=model, search_s=lambda _: 0.1)
            settings = Settings(speculate=speculate)
            answer = Simulation(EchoWorkload(), store, latencies, settings).run(request)
            took[acceptance, speculate] = answer.stats.wall_s

            assert expected == answer
            assert answer.text
            assert answer.stats.tokens_written == 16 * sum(
                span.kind == "extend" for span in answer.stats.timeline
            )
            assert (answer.stats.drafts_accepted > 0) == (acceptance > 0)
    assert took[0.9, True] < min(took[0.9, False], took[0.0, True]) <= took[0.0, False]


@pytest.mark.parametrize("name", ["acceptance", "pass_s", "most_drafts"])
def test_numbers_out_of_range_are_refused(name: str) -> None:
    """Each message names the setting."""
    settings: dict[str, float] = {"acceptance": 0.5, "pass_s": 1.0, name: -1}
    with pytest.raises(ConfigError, match=name):
        SimulatedDecoder(FREE, tokens=4, **settings)  # type: ignore[arg-type]
