"""The KNN-LM workload by itself: what it asks, chooses, agrees with, and computes once."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from ralmspec_plugins import Engine, FixedStride, Settings, plain
from ralmspec_plugins.errors import Cancelled, InputError
from ralmspec_plugins.knn.interpolation import Floats, Mixing, interpolate
from ralmspec_plugins.knn.search import Neighbours
from ralmspec_plugins.knn.state import KNNDraft
from ralmspec_plugins.knn.workload import KNNLM
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Hit, Passage
from tests.knn.worlds import (
    KNNWorld,
    PlainCache,
    PlainChooser,
    ScriptedModel,
    random_world,
)

WORLD = KNNWorld(
    seed=5,
    k=8,
    weight=0.65,
    temperature=1.0,
    sampled=False,
    entries=200,
    vocabulary=11,
    dimension=4,
    spread=6,
    length=24,
    stop="",
)


class CountingChooser(PlainChooser):
    """Counts how often it chooses."""

    def __init__(self) -> None:
        super().__init__(sampled=False)
        self.positions: list[int] = []

    def choose(self, log_probs: Floats, history: Sequence[int], seed: int, position: int) -> int:
        self.positions.append(position)
        return super().choose(log_probs, history, seed, position)


def counted(world: KNNWorld) -> tuple[KNNLM, CountingChooser, ScriptedModel]:
    chooser, model = CountingChooser(), ScriptedModel(world)
    return KNNLM(model, chooser, Mixing(weight=world.weight)), chooser, model


def near(workload: KNNLM, state: KNNDraft) -> Neighbours:
    """Search for a state that has not ended."""
    query = workload.query(state)
    assert query is not None
    return WORLD.retriever.search([query])[0]


def test_a_query_is_the_hidden_state() -> None:
    """Its key tells states apart by their bits, and says the same for the same ones."""
    workload = WORLD.workload
    state = workload.start(WORLD.request)
    query = workload.query(state)
    assert query is not None
    assert state.hidden is not None
    moved = replace(state, hidden=np.nextafter(state.hidden, np.float32(9)))

    assert query.encoding is state.hidden
    assert query == workload.query(state)
    assert query != workload.query(moved)


def test_it_writes_the_mixtures_likeliest_token() -> None:
    """Step by step against the mixture made here."""
    workload, retriever = WORLD.workload, WORLD.retriever
    state = workload.start(WORLD.request)
    while (query := workload.query(state)) is not None:
        [truth] = retriever.search([query])
        assert state.log_probs is not None
        expected = int(interpolate(state.log_probs, truth, 0.65, 1.0).argmax())
        state = workload.extend(state, truth, Progress())

        assert expected == state.tokens[-1]
    assert workload.text(state) == workload.settled(state) == state.text
    assert len(state.tokens) > 10


def test_a_guess_is_right_when_it_chooses_the_same_token() -> None:
    """Other neighbours may; the same neighbours with other tokens may not."""
    workload = WORLD.workload
    state = workload.start(WORLD.request)
    truth = near(workload, state)
    right = workload.chosen(state, truth)
    alone = Neighbours(np.array([199]), np.array([right]), np.array([7.5]))
    other = Neighbours(truth.ids, np.full(len(truth), (right + 1) % 11), truth.distances)

    assert workload.agree(state, alone, truth)
    assert not workload.agree(state, other, truth)


def test_each_choice_is_made_once() -> None:
    """Plainly one a token; agreeing and extending under the same hits ask no second time."""
    workload, chooser, _ = counted(WORLD)
    answer = plain(workload, WORLD.retriever, WORLD.request)
    assert chooser.positions == list(range(len(answer.state.tokens)))

    chooser.positions.clear()
    state = workload.start(WORLD.request)
    guess, truth = near(workload, state), near(workload, state)
    workload.extend(state, guess, Progress())
    workload.agree(state, guess, truth)
    workload.extend(state, truth, Progress())

    assert chooser.positions == [0, 0]


def test_a_wrong_guess_costs_only_the_passes_behind_it() -> None:
    """Speculating, there is a pass for each token of the answer, and one for each dropped one."""
    for seed in range(40):
        world = random_world(seed)
        workload, _, model = counted(world)
        expected = plain(workload, world.retriever, world.request)
        passes, model.passes = model.passes, 0
        cache = PlainCache(world.store, world.k, 10)
        settings = Settings(schedule=FixedStride(stride=4), speculators=(cache,))
        with Engine(workload, world.retriever, settings) as engine:
            answer = engine.run(world.request)

        assert expected.state == answer.state
        assert model.passes <= passes + answer.stats.wasted_segments


def test_nothing_dropped_is_kept() -> None:
    """Keys that say nothing: what stood behind a wrong token never comes again."""
    workload = WORLD.workload
    state = workload.start(WORLD.request)

    assert workload.query_key(state) is None
    assert workload.extend_key(state, Neighbours(np.arange(1), np.arange(1), np.zeros(1))) is None


def test_hits_that_are_no_neighbours_are_refused() -> None:
    """A retriever of passages says nothing about tokens."""
    workload = WORLD.workload
    state = workload.start(WORLD.request)
    with pytest.raises(InputError, match="returns Neighbours, got tuple"):
        workload.extend(state, (Hit(Passage("1", "text"), 1.0),), Progress())


def test_a_cancelled_step_is_not_written() -> None:
    """Not even chosen."""
    workload, chooser, model = counted(WORLD)
    state = workload.start(WORLD.request)
    given_up = Progress()
    given_up.cancel()
    with pytest.raises(Cancelled):
        workload.extend(state, near(workload, state), given_up)

    assert (chooser.positions, model.passes) == ([], 1)


def test_draws_are_keyed_by_position() -> None:
    """A sampled text is the same however often its tokens are drawn, and seeds differ."""
    world = replace(WORLD, sampled=True)
    texts = {
        seed: {
            plain(world.workload, world.retriever, replace(world.request, seed=seed)).text
            for _ in range(2)
        }
        for seed in range(5)
    }

    assert [len(one) for one in texts.values()] == [1] * 5
    assert len(set.union(*texts.values())) == 5


def test_a_weight_of_one_writes_only_what_neighbours_say() -> None:
    """With k = 1 each token is the nearest entry's value."""
    world = replace(WORLD, weight=1.0, k=1, sampled=True)
    answer = plain(world.workload, world.retriever, world.request)
    values = [int(step.hits[0].passage.text) for step in answer.retrieved]

    assert values == list(answer.state.tokens)
