"""The course of long contexts: heads that copy from afar, windows with positions left out."""

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from benchmarks.decoding import long_course
from benchmarks.decoding.copying import copying_model
from benchmarks.decoding.course import opened
from benchmarks.decoding.exercises import Sources, sources
from benchmarks.decoding.long_course import DRAFTER, POSITIONS, TARGET, Windows, trained
from benchmarks.harness.inputs import vocabulary
from benchmarks.knn.train import Course
from tests.benchmarks.articles import write_articles


@pytest.fixture
def one_thread() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    folder = tmp_path_factory.mktemp("data")
    write_articles(folder, 14)
    return sources(folder)[0]


@pytest.mark.parametrize("shape", [TARGET, DRAFTER])
def test_heads_copy_over_all_positions(shape: Any) -> None:
    """Before any training, drawn tokens are continued as they were 16,000 positions before."""
    model: Any = copying_model(replace(shape, layers=2))
    once = torch.randint(1, 4000, (2, 80), generator=torch.Generator().manual_seed(3))
    places = torch.cat([torch.arange(80), torch.arange(POSITIONS - 80, POSITIONS)])
    twice = torch.cat([once, once], dim=1)
    with torch.no_grad():
        found = model(
            input_ids=twice,
            position_ids=places.expand(2, -1),
            attention_mask=torch.ones_like(twice),
        ).logits[:, 90:-1]

    assert (found.argmax(dim=-1) == twice[:, 91:]).float().mean() > 0.9


def test_a_stretch_is_told_from_others_with_the_same_two_tokens() -> None:
    """Two tokens come four times, each with others around; the copied one is of the same stretch.

    Without the comparison of stretches it is a mixture of all four.
    """
    dice = torch.Generator().manual_seed(5)
    parts = [torch.randint(3, 4000, (20,), generator=dice) for _ in range(4)]
    for one in parts:
        one[10:12] = torch.tensor([1, 2])
    right = {}
    for stretch in (True, False):
        part = TARGET.part if stretch else 52  # a quarter of the columns for names
        model: Any = copying_model(replace(TARGET, layers=2, stretch=stretch, part=part))
        found = 0
        for one in parts:
            with torch.no_grad():
                ids = torch.cat([*parts, one[:12]])[None]
                found += int(model(input_ids=ids).logits[0, -1].argmax()) == int(one[12])
        right[stretch] = found

    assert right[True] == 4
    assert right[False] < 4


def test_windows_are_whole_and_positions_rise(learned: Sources) -> None:
    """Each has the given length, all its questions at its end, and no position twice.

    What is learned is its end, which begins with a question, or with a function to write again.
    """
    tokenizer = vocabulary(learned.articles, 400)
    windows = Windows(learned, tokenizer, Course(batch=2, window=900, seed=3), 5000)
    gaps = []
    for number in range(8):
        tokens, places, labels = windows.window(Random(number))
        front = labels.count(-100)
        gaps.append(places[-1] - 899)

        assert len(tokens) == len(places) == len(labels) == 900
        assert places[0] == 0
        assert places[-1] < 5000
        assert all(left < right for left, right in pairwise(places))
        assert tokenizer.decode(tokens).startswith("<s>")
        assert labels == [-100] * front + tokens[front:]
        assert re.match(r"Question: |Summary: |def |class |@", tokenizer.decode(tokens[front:]))
    inputs, again = windows(7), windows(7)

    assert min(gaps) == 0
    assert max(gaps) > 1000
    assert (2, 900) == inputs["position_ids"].shape
    assert torch.equal(inputs["input_ids"], again["input_ids"])
    assert not torch.equal(inputs["input_ids"], windows(8)["input_ids"])


def test_a_place_left_out_hides_nothing(learned: Sources) -> None:
    """The last token depends on the first ones, though positions are missing between them."""
    tokenizer = vocabulary(learned.articles, 400)
    windows = Windows(learned, tokenizer, Course(batch=1, window=60, seed=3), 5000)
    model: Any = copying_model(DRAFTER).train(False)
    inputs = windows(next(at for at in range(99) if int(windows(at)["position_ids"][0, -1]) > 99))
    with torch.no_grad():
        before = model(**inputs).logits[0, -1]
        inputs["input_ids"][0, 1] += 1
        after = model(**inputs).logits[0, -1]

    assert not torch.equal(before, after)


@pytest.mark.usefixtures("one_thread")
def test_a_course_of_two_lessons_is_gone_on_with(
    learned: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in its second lesson, it ends with the weights of one that never was."""
    monkeypatch.setattr(long_course, "sources", lambda _: (learned, learned))
    small = {"layers": 2, "vocabulary": 400, "context": 600}
    monkeypatch.setattr(long_course, "TARGET", replace(DRAFTER, **small))
    monkeypatch.setattr(long_course, "DRAFTER", replace(DRAFTER, **small))
    monkeypatch.setattr(long_course, "POSITIONS", 600)
    monkeypatch.setattr(long_course, "_EXERCISES", 20)
    courses = tuple(
        Course(steps=3, batch=1, window=window, half=False, every=1, seed=window)
        for window in (64, 96)
    )
    monkeypatch.setattr(long_course, "COURSES", courses)
    monkeypatch.setattr(long_course, "DRAFTERS_COURSES", courses[:1])
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trained(whole, tmp_path, 1)
    call, calls = Windows.__call__, list[int]()

    def stopped(self: Windows, step: int) -> Any:
        calls.append(step)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return call(self, step)

    monkeypatch.setattr(Windows, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        trained(parts, tmp_path, 1)
    trained(parts, tmp_path, 1)
    expected, found = (opened(one)["target"].model.state_dict() for one in (whole, parts))
    facts = json.loads((parts / "target" / "facts.json").read_text())

    assert [0, 1, 2, 0, 1, 1, 2, 0, 1, 2] == calls
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert [(3, 192), (3, 288)] == [(one["steps"], one["tokens"]) for one in facts]
