"""The next token is drawn from the model's distribution, by seed and position alone."""

from collections import Counter

import numpy as np
import pytest
import torch

from ralmspec_plugins.errors import ConfigError, ModelError
from ralmspec_plugins.lm.sampling import Greedy, Sampling, draw
from ralmspec_plugins.lm.token_sampler import TokenSampler

SCORES = np.array([1.5, 0.2, -np.inf, 0.9, -1.0, 2.1])


@pytest.mark.parametrize("keys", ["positions", "seeds"])
def test_draws_follow_the_distribution(keys: str) -> None:
    """Chi-square over 4,000 draws, over positions of one seed and seeds at one position."""
    pairs = [(7, i) if keys == "positions" else (i, 7) for i in range(4000)]
    counts = Counter(draw(SCORES, seed, position) for seed, position in pairs)
    chances = np.exp(SCORES) / np.exp(SCORES).sum()
    possible = np.flatnonzero(chances)
    observed = [counts[int(i)] for i in possible]

    assert counts.keys() <= {int(i) for i in possible}
    assert _chi_square(observed, 4000 * chances[possible]) < 18.47  # 4 degrees of freedom, 0.1 %


def test_a_draw_depends_on_seed_and_position_only() -> None:
    """Drawing again, in any order, gives the same; the neighbours draw independently."""
    forward = [draw(SCORES, 3, position) for position in range(50)]
    backward = [draw(SCORES, 3, position) for position in reversed(range(50))]

    assert forward == backward[::-1]
    assert forward != [draw(SCORES, 4, position) for position in range(50)]
    assert draw(SCORES, -1, 0) == draw(SCORES, 2**64 - 1, 0)


def test_settings_restrict_as_in_transformers() -> None:
    """With top_k=3 and then top_p, only the tokens that both leave are ever drawn."""
    logits = torch.from_numpy(SCORES).float()[None]
    three = {TokenSampler(Sampling(top_k=3)).choose(logits, (), 1, i) for i in range(200)}
    likely = {TokenSampler(Sampling(top_p=0.5)).choose(logits, (), 1, i) for i in range(200)}
    cold = {TokenSampler(Sampling(temperature=0.01)).choose(logits, (), 1, i) for i in range(200)}

    assert three == {0, 3, 5}
    assert likely == {0, 5}
    assert cold == {5}


def test_repetition_penalty_counts_the_history() -> None:
    """The most likely token, once seen, is divided by the penalty and loses its place."""
    logits = torch.tensor([[2.0, 1.5, 1.0]])
    chooser = TokenSampler(Greedy(repetition_penalty=1.5))

    assert chooser.choose(logits, (2,), 0, 0) == 0
    assert chooser.choose(logits, (0,), 0, 0) == 1
    assert chooser.needs_history
    assert not TokenSampler(Sampling()).needs_history


def test_a_model_that_returns_nan_is_named() -> None:
    """A draw from no distribution is an error, not a token."""
    with pytest.raises(ModelError, match="NaN"):
        draw(np.array([np.nan, 1.0]), 0, 0)


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.5}, {"repetition_penalty": 0}],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    """Each message names the setting."""
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Sampling(**settings)


def _chi_square(observed: list[int], expected: np.ndarray) -> float:
    """Worked: 12 and 8 where 10 and 10 are expected give 4/10 + 4/10 = 0.8."""
    return float(((np.array(observed) - expected) ** 2 / expected).sum())
