"""What wrong guesses may cost all runs of an agent together."""

import random
import threading

import pytest

from ralmspec_plugins.adapters.agent_limits import AgentCounters, AgentLimits, AgentStats
from ralmspec_plugins.errors import ConfigError


def share(stats: AgentStats) -> float:
    """Return the share of dropped calls among all calls of the model."""
    return stats.dropped / max(1, stats.model_calls - stats.committed + stats.calls_ahead)


@pytest.mark.parametrize(
    ("most", "first"), [(None, 0), (1.0, 0), (0.5, 1), (0.25, 3), (0.1, 9), (0.0, None)]
)
def test_the_first_speculative_call(most: float | None, first: int | None) -> None:
    """It is made when its drop would not exceed the share."""
    counters, made = AgentCounters(), 0
    while not counters.began_ahead(most) and made < 100:
        counters.add(model_calls=1)
        made += 1

    assert (100 if first is None else first) == made


def test_the_share_is_not_exceeded_at_any_time() -> None:
    """Whatever becomes of the calls, in whatever order; and it is used up, nearly."""
    for seed in range(200):
        draw = random.Random(seed)
        most, right = draw.choice([0.05, 0.2, 0.5, 0.9]), draw.random()
        counters, undecided = AgentCounters(), 0
        for _ in range(200):
            if draw.random() < 0.5:
                undecided += counters.began_ahead(most)
            elif undecided and draw.random() < 0.5:
                undecided -= 1
                if draw.random() < right:
                    counters.add(committed=1, model_calls=1)
                else:
                    counters.add(dropped=1)
            else:
                counters.add(model_calls=1)
            assert share(counters.stats) <= most, seed
        assert counters.stats.calls_ahead > 0


def test_threads_do_not_exceed_it_together() -> None:
    """A call is counted in one step with the check."""
    counters = AgentCounters()
    counters.add(model_calls=100)
    threads = [
        threading.Thread(target=lambda: [counters.began_ahead(0.5) for _ in range(100)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 100 == counters.stats.calls_ahead


@pytest.mark.parametrize("wrong", [-0.1, 1.1, "0.5", True, float("nan")])
def test_other_shares_are_refused(wrong: object) -> None:
    """When the limits are given."""
    with pytest.raises(ConfigError, match="max_wasted_share"):
        AgentLimits(max_wasted_share=wrong)  # type: ignore[arg-type]
