"""A choice that is called certain is never changed by logits within the bound."""

import numpy as np
import pytest
import torch

from ralmspec_plugins.decoding.certification import is_certain
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.lm.token_sampler import TokenSampler

CASES = 600
TRIES = 12


def _settings(rng: np.random.Generator) -> Greedy | Sampling:
    penalty = float(rng.choice([1.0, 1.3, 0.8]))
    if rng.random() < 0.3:
        return Greedy(repetition_penalty=penalty)
    return Sampling(
        temperature=float(rng.choice([0.5, 1.0, 1.7])),
        top_k=int(rng.choice([0, 2, 5])),
        top_p=float(rng.choice([1.0, 0.9, 0.5])),
        repetition_penalty=penalty,
    )


def test_no_logits_within_the_bound_change_a_certain_choice() -> None:
    """600 rows, also with equal logits, each disturbed 12 times; most choices are certain."""
    rng = np.random.default_rng(0)
    certain, changed = 0, 0
    for case in range(CASES):
        size = int(rng.choice([3, 8, 30]))
        row = torch.tensor(rng.normal(size=(1, size)) * rng.choice([0.3, 1.0, 4.0])).float()
        if rng.random() < 0.4:
            row = (row * 4).round() / 4
        settings, bound = _settings(rng), float(rng.choice([1e-3, 1e-2, 5e-2]))
        history, position = [int(t) for t in rng.integers(0, size, 4)], int(rng.integers(100))
        known = {"history": history, "seed": case, "position": position}
        sampler = TokenSampler(settings)
        token = sampler.choose(row, history, case, position)
        sure = is_certain(row, settings, bound, **known)  # type: ignore[arg-type]
        certain += sure
        for _ in range(TRIES):
            steps = rng.choice([-1.0, 0.0, 0.5, 1.0], size=(1, size)) * bound * 0.999
            other = sampler.choose(row + torch.tensor(steps).float(), history, case, position)
            changed += other != token
            assert not sure or other == token, settings
    assert certain > CASES // 2
    assert changed > 0


@pytest.mark.parametrize("settings", [Greedy(), Sampling(), Sampling(top_k=3, top_p=0.9)])
def test_what_is_no_number_is_not_certain(settings: Greedy | Sampling) -> None:
    """A row with NaN is left to the plain pass, which raises what plain decoding raises."""
    row = torch.tensor([[0.0, float("nan"), 1.0]])

    assert not is_certain(row, settings, 1e-3)


def test_a_wide_row_is_certain_in_float32() -> None:
    """50,000 tokens: nearly all draws are certain at float32's bound."""
    rng = np.random.default_rng(1)
    row = torch.tensor(rng.normal(size=(1, 50_000)) * 3.0).float()
    settings = Sampling(temperature=0.8, top_k=50, top_p=0.95)
    certain = [is_certain(row, settings, 3e-4, seed=seed) for seed in range(60)]

    assert sum(certain) > 50
