"""Training a model of the benchmarks: the same weights, whether it was stopped or not."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch

from benchmarks.harness.inputs import LoadedModel, load_model
from benchmarks.knn.train import (
    Course,
    held_out_perplexity,
    learn,
    token_stream,
)
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.knn.model import KNNModel
from tests.benchmarks.knn_world import COURSE, MODEL, TALES, text

TEXTS = [text(TALES, seed) for seed in range(4)]


class StoppedError(Exception):
    """Somebody pressed Ctrl-C."""


@pytest.fixture(scope="module")
def drawn() -> LoadedModel:
    """A drawn model of one layer."""
    return load_model(MODEL, TEXTS)


def weights(model: Any) -> dict[str, torch.Tensor]:
    """Copy a model's weights."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def test_a_stopped_course_ends_with_the_same_weights(drawn: LoadedModel, tmp_path: Path) -> None:
    """StoppedError behind a checkpoint and gone on with in a fresh model: equal to the last bit."""
    stream = token_stream(TEXTS, drawn.tokenizer)
    whole, first, again = (copy.deepcopy(drawn.model) for _ in range(3))
    straight = learn(whole, stream, COURSE, tmp_path / "whole")

    def stop(step: int, loss: float) -> None:
        if step == COURSE.every:  # one step further than the checkpoint
            raise StoppedError

    with pytest.raises(StoppedError):
        learn(first, stream, COURSE, tmp_path / "stopped", stop)
    resumed = learn(again, stream, COURSE, tmp_path / "stopped")

    assert straight.losses == resumed.losses
    expected, actual = weights(whole), weights(again)
    assert [name for name in expected if not torch.equal(expected[name], actual[name])] == []
    assert any(not torch.equal(one, actual[name]) for name, one in weights(drawn.model).items())


def test_a_finished_course_is_not_run_again(drawn: LoadedModel, tmp_path: Path) -> None:
    """Its weights are there; no step is taken."""
    stream = token_stream(TEXTS, drawn.tokenizer)
    before, after = copy.deepcopy(drawn.model), copy.deepcopy(drawn.model)
    learn(before, stream, COURSE, tmp_path)
    steps: list[int] = []

    learn(after, stream, COURSE, tmp_path, lambda step, _: steps.append(step))

    assert steps == []
    assert all(torch.equal(one, weights(after)[name]) for name, one in weights(before).items())


def test_another_course_is_refused(drawn: LoadedModel, tmp_path: Path) -> None:
    """A checkpoint of other settings is not gone on with."""
    stream = token_stream(TEXTS, drawn.tokenizer)
    learn(copy.deepcopy(drawn.model), stream, COURSE, tmp_path)

    with pytest.raises(ConfigError, match="another course"):
        learn(copy.deepcopy(drawn.model), stream, replace(COURSE, rate=0.1), tmp_path)


def test_what_cannot_teach_is_refused(drawn: LoadedModel, tmp_path: Path) -> None:
    """No steps, and less text than a window."""
    with pytest.raises(ConfigError, match="steps must be at least 1"):
        Course(steps=0)
    with pytest.raises(ConfigError, match="give more text"):
        learn(drawn.model, token_stream(["a"], drawn.tokenizer), COURSE, tmp_path)


def test_learning_lowers_the_perplexity(drawn: LoadedModel, tmp_path: Path) -> None:
    """Of a held-out text of the same kind, within a second."""
    model = copy.deepcopy(drawn.model)
    held_out = [text(TALES, 99)]
    before = held_out_perplexity(KNNModel(model, drawn.tokenizer, bos=True), held_out, 50)

    course = Course(steps=20, batch=4, window=32, rate=5e-3, every=20, half=False)
    texts = [text(TALES, seed) for seed in range(50)]
    learn(model, token_stream(texts, drawn.tokenizer), course, tmp_path)

    after = held_out_perplexity(KNNModel(model, drawn.tokenizer, bos=True), held_out, 50)
    assert after < before / 2


def test_each_text_begins_with_bos(drawn: LoadedModel) -> None:
    """So that documents are told apart."""
    stream = token_stream(["ships", "storms"], drawn.tokenizer)

    assert stream.tolist().count(drawn.tokenizer.bos_token_id) == 2
    assert stream[0] == drawn.tokenizer.bos_token_id
