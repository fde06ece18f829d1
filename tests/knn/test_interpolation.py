"""The mixture of a model's distribution with its neighbours' votes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.knn.interpolation import Mixing, interpolate, log_prob_of, mix, votes
from ralmspec_plugins.knn.search import Neighbours
from tests.knn.reference import dense_mixture


def near(values: list[int], distances: list[float]) -> Neighbours:
    return Neighbours(np.arange(len(values)), np.array(values), np.array(distances))


def uniform(vocabulary: int) -> np.ndarray:
    return np.full(vocabulary, -math.log(vocabulary), dtype=np.float32)


def test_a_hand_worked_mixture() -> None:
    """Distances 0, ln 2, ln 2 weigh 1, 1/2, 1/2: tokens 4 and 1 get 3/4 and 1/4 of the vote.

    With a model that is uniform over 8 tokens and a weight of 1/2, token 4 gets
    1/16 + 3/8 = 7/16, token 1 gets 1/16 + 1/8 = 3/16, and any other 1/16.
    """
    neighbours = near([4, 1, 4], [0.0, math.log(2), math.log(2)])
    mixed = np.exp(interpolate(uniform(8), neighbours, 0.5, 1.0))

    assert mixed == pytest.approx([1 / 16, 3 / 16, 1 / 16, 1 / 16, 7 / 16, *[1 / 16] * 3])


def test_temperature_divides_the_distance() -> None:
    """At temperature 2, a distance of 2 ln 3 weighs 1/3 of the nearest: votes of 3/4 and 1/4."""
    tokens, voted = votes(near([0, 1], [0.0, 2 * math.log(3)]), 2.0)

    assert tokens.tolist() == [0, 1]
    assert np.exp(voted) == pytest.approx([0.75, 0.25])


def test_one_neighbour_has_the_whole_vote() -> None:
    """With k = 1 the distance does not matter: token 2 gets 1/4 + 3/4 * 1/4."""
    mixed = np.exp(interpolate(uniform(4), near([2], [1e6]), 0.25, 1.0))

    assert mixed == pytest.approx([3 / 16, 3 / 16, 7 / 16, 3 / 16])


def test_a_weight_of_one_leaves_the_neighbours_alone() -> None:
    """Tokens without a neighbour are impossible, and the others' votes are all there is."""
    mixed = interpolate(uniform(4), near([3, 1], [0.0, 0.0]), 1.0, 1.0)

    assert mixed.tolist() == [-math.inf, math.log(0.5), -math.inf, math.log(0.5)]


def test_no_neighbours_leave_the_model_alone() -> None:
    """An empty list has no vote."""
    nobody = near([], [])

    assert interpolate(uniform(4), nobody, 0.5, 1.0).tolist() == uniform(4).tolist()
    assert log_prob_of(1, nobody, 1.0) == -math.inf


def test_far_neighbours_keep_their_vote() -> None:
    """A distance of 2000 behind the nearest is a weight of e^-2000, which no float holds."""
    tokens, voted = votes(near([5, 6], [1.0, 2001.0]), 1.0)

    assert tokens.tolist() == [5, 6]
    assert voted.tolist() == [0.0, -2000.0]


@given(
    data=st.lists(
        st.tuples(st.integers(0, 9), st.floats(0, 50, width=32)), min_size=1, max_size=40
    ),
    weight=st.sampled_from([0.1, 0.25, 0.65, 1.0]),
    temperature=st.sampled_from([0.5, 1.0, 10.0]),
    seed=st.integers(0, 2**32),
)
def test_mixtures_agree_with_the_direct_reference(
    data: list[tuple[int, float]], weight: float, temperature: float, seed: int
) -> None:
    """Against probabilities summed one neighbour at a time over the whole vocabulary."""
    logits = np.random.default_rng(seed).normal(scale=3, size=12)
    log_probs = (logits - np.log(np.exp(logits).sum())).astype(np.float32)
    data.sort(key=lambda one: one[1])
    neighbours = near([value for value, _ in data], [distance for _, distance in data])
    expected = dense_mixture(log_probs, neighbours, weight, temperature)
    mixed = interpolate(log_probs, neighbours, weight, temperature)

    assert np.exp(mixed) == pytest.approx(expected, rel=1e-9, abs=1e-300)
    assert np.exp(mixed).sum() == pytest.approx(1.0, rel=1e-6)


@given(seed=st.integers(0, 2**32))
def test_single_tokens_agree_with_the_whole(seed: int) -> None:
    """What perplexity reads of one token is what generation mixes for it, to the bit."""
    dice = np.random.default_rng(seed)
    neighbours = near(dice.integers(0, 6, 9).tolist(), np.sort(dice.exponential(3, 9)).tolist())
    log_probs = np.log(dice.dirichlet(np.ones(8)))
    voted = np.array([log_prob_of(token, neighbours, 2.0) for token in range(8)])

    assert (
        mix(log_probs, voted, 0.25).tolist()
        == interpolate(log_probs, neighbours, 0.25, 2.0).tolist()
    )


@pytest.mark.parametrize("weight", [0.0, -0.1, 1.1, math.nan])
def test_a_weight_that_is_no_share_is_refused(weight: float) -> None:
    """A weight of 0 needs no datastore; above 1 it is no probability."""
    with pytest.raises(ConfigError, match=f"weight must be above 0 and at most 1, got {weight}"):
        Mixing(weight=weight)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_without_a_meaning_is_refused(temperature: float) -> None:
    """Distances are divided by it."""
    with pytest.raises(ConfigError, match=f"temperature must be above 0.*got {temperature}"):
        Mixing(temperature=temperature)
