"""What is watched of a model never gets in the way of its call."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from ralmspec_plugins.adapters.side_effects import SideEffects


class Model:
    """Has one attribute, and a call that may change it."""

    def __init__(self, attribute: Any) -> None:
        self.attribute = attribute

    def call(self, change: Any = None) -> str:
        if change is not None:
            self.attribute = change(self.attribute)
        return "reply"


def drawn(dice: Any) -> Any:
    dice.random()
    return dice


def seeded(generator: torch.Generator) -> torch.Generator:
    torch.randint(9, (1,), generator=generator)
    return generator


def taken(answers: Any) -> Any:
    answers.pop(next(iter(answers)))
    return answers


def logged(calls: list[int]) -> list[int]:
    return [*calls, 3]


def counted(number: int) -> int:
    return number + 1


def made_anew(arrays: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(array + 1 for array in arrays)


@pytest.mark.parametrize(
    ("attribute", "change", "found"),
    [
        (random.SystemRandom(), drawn, False),  # it has no state that a call could change
        (random.Random(0), drawn, True),
        (random.Random(0), None, False),
        (np.random.RandomState(0), drawn, True),
        (np.random.RandomState(0), None, False),
        (np.random.default_rng(0), drawn, True),
        (np.random.default_rng(0), None, False),
        (torch.Generator(), seeded, True),
        (torch.Generator(), None, False),
        ([1, 2], taken, True),
        ({"a": 1}, taken, True),
        ([1, 2], logged, False),
        ((np.zeros(3), np.zeros(2)), None, False),
        ((np.zeros(3), np.zeros(2)), made_anew, True),  # arrays have no truth value
        (3, counted, True),
        (3, None, False),
        (iter("ab"), None, True),
    ],
)
def test_a_call_returns_what_the_model_says(attribute: Any, change: Any, found: bool) -> None:
    model = Model(attribute)
    effects = SideEffects(model)

    with effects.watched():
        reply = model.call(change)

    assert reply == "reply"
    assert effects.observed
    assert (effects.found is not None) is found
    assert effects.may_guess() is not found


def test_an_error_of_the_model_stays_its_own() -> None:
    def failing(arrays: tuple[Any, ...]) -> Iterator[Any]:
        raise KeyError("the model's")

    model = Model((np.zeros(3),))
    with pytest.raises(KeyError, match="the model's"), SideEffects(model).watched():
        model.call(failing)
