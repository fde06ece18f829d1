"""The benchmark of trained models behind long contexts: rows of every way, resumed, and a page."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from benchmarks.decoding import rapid, rapid_trained
from benchmarks.decoding.copying import copying_model
from benchmarks.decoding.exercises import Sources, sources
from benchmarks.decoding.long_course import DRAFTER
from benchmarks.decoding.measure import UnequalTextError
from benchmarks.decoding.rapid_trained import (
    Plan,
    is_right,
    measure_trained,
    trained_page,
    trained_summary,
)
from benchmarks.decoding.rapid_ways import WAYS, DraftedWay
from benchmarks.harness.inputs import vocabulary
from ralmspec_plugins.errors import ConfigError
from tests.benchmarks.articles import write_articles

PLAN = Plan(lengths=(400, 1100), questions=2, tokens=6, repetitions=1, threads=1, quick=True)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    folder = tmp_path_factory.mktemp("data")
    write_articles(folder, 14)
    return sources(folder)[1]


@pytest.fixture(scope="module")
def cache(held_out: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models as they are before any training."""
    folder = tmp_path_factory.mktemp("cache")
    tokenizer = vocabulary(held_out.articles, 400)
    for name in ("target", "drafter"):
        model = copying_model(replace(DRAFTER, layers=2, vocabulary=400, context=2048))
        model.save_pretrained(folder / name / "model")
        tokenizer.save_pretrained(folder / name / "model")
        (folder / name / "facts.json").write_text(json.dumps([{"tokens": 100}, {"tokens": 20}]))
    return folder


@pytest.fixture(autouse=True)
def texts_read_once(held_out: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rapid_trained, "sources", lambda _: (held_out, held_out))


def test_every_question_is_answered_in_every_way(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raw rows, their summary and the page; what is in the journal is not measured again."""
    page = measure_trained(cache, tmp_path, tmp_path, PLAN)
    first = json.loads((tmp_path / "trained.json").read_text())
    monkeypatch.setattr(rapid_trained.TrainedBench, "_measured", None)  # nothing is left
    told = trained_summary(first)

    assert page == measure_trained(cache, tmp_path, tmp_path, PLAN)
    assert page == (tmp_path / "trained.md").read_text()
    assert [400, 400, 1100, 1100] == [one["length"] for one in first["questions"]]
    assert ["docqa", "extraction"] * 2 == [one["kind"] for one in first["questions"]]
    assert [(n, way) for n in PLAN.lengths for way in WAYS] == [
        (row["length"], row["way"]) for row in told
    ]
    assert all(row["speed"] > 0 and 0 <= row["rate"] <= 1 <= row["bound"] for row in told)
    assert first["training"]["target"] == [{"tokens": 100}, {"tokens": 20}]
    assert "on 120 tokens" in page
    for one in first["questions"]:
        assert one["length"] * 0.8 < one["context_tokens"] <= one["length"] + 3
        assert one["text"].strip()
        assert len(one["plain_s"]) == len(one["generate_s"]) == 1
        whole = one["ways"][2]
        assert whole["finds"]
        assert whole["chunk_tokens"] >= one["context_tokens"] - 3


def test_it_is_an_option_of_the_suite(cache: Path, tmp_path: Path) -> None:
    """The journal is another one than that of forced acceptance; without models it says so."""
    with pytest.raises(ConfigError, match="has no trained target"):
        rapid.rapid(out=tmp_path, trained=tmp_path, data=tmp_path, threads=1, quick=True)

    assert (tmp_path / "trained_journal.jsonl").exists()
    assert not (tmp_path / "journal.jsonl").exists()


def test_another_text_stops_the_run(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A way that leads to another text, or a text that is empty, is no result."""
    row = DraftedWay.row
    monkeypatch.setattr(
        DraftedWay, "row", lambda self, request, front, truth: row(self, request, front, truth[1:])
    )
    with pytest.raises(UnequalTextError, match="led to another text"):
        measure_trained(cache, tmp_path, tmp_path, PLAN)
    monkeypatch.setattr(rapid_trained, "decode", lambda *_: " \n")
    shutil.rmtree(tmp_path)
    with pytest.raises(UnequalTextError, match="is empty"):
        measure_trained(cache, tmp_path, tmp_path, PLAN)


def test_an_exercise_is_buried_in_other_articles(held_out: Sources) -> None:
    """The context holds its sentence, words of other articles, and as many tokens as asked for."""
    places = []
    for number in range(6):
        made = held_out.buried("docqa", Random(number), 900, lambda text: len(text.split()))
        [context] = made.passages
        words = context.text.split()
        places.append(context.text.index(made.sentence))

        assert " ".join(made.prompt.split()[-3:]) in context.text
        assert 800 < len(words) <= 900
        assert len({words[at + 3] for at, word in enumerate(words) if word == "place"}) > 1
        assert made == held_out.buried("docqa", Random(number), 900, lambda text: len(text.split()))

    assert len(set(places)) == 6


def _question(text: str, speed: float, agreed: int | None) -> dict[str, Any]:
    way = {
        "way": "small",
        "rows": [[1.0 / speed, 0.1, 26, 38, 0 if agreed is None else 50]],
        "pass_s": 0.01,
        "costs": {"1": 1.0, "3": 1.0, "4": 100.0},
        "step_s": None,
        "prompt_tokens": 0,
        "agreed": agreed,
        "finds": True,
    }
    return {
        "length": 1024,
        "kind": "docqa",
        "context_tokens": 1024,
        "right": is_right(text, "of stone."),
        "plain_s": [1.2],
        "generate_s": [1.0],
        "defaults_find": agreed is None,
        "ways": [way],
    }


def test_acceptance_and_speed_are_summed_up() -> None:
    """Worked: of 2 * 4 tokens 6 agree, so two free drafts give 1 + 3/4 + 9/16 tokens a pass.

    38 of 50 drafts are accepted; of three questions one never drafts, and counts in the speed.
    """
    steps = [{"length": 1024, "self_step_s": 1.0, "small_step_s": 0.0}]
    asked = [_question("of stone. It", 2.0, 4), _question("of wood", 3.0, 2)]
    result = {
        "settings": {"lengths": [1024], "tokens": 5},
        "steps": [one | {"self_prefill_s": 0.0, "small_prefill_s": 0.0} for one in steps],
        "questions": [*asked, _question("of stone", 0.9, None)],
    }
    [row] = trained_summary(result)
    result["surroundings"] = {"machine": "here", "load_before": 0.0}
    result["weights"] = {"target": 10, "drafter": 1}
    result["training"] = {name: [{"tokens": 7}] for name in result["weights"]}
    result["settings"] |= {"threads": 1, "questions": 3, "repetitions": 1}
    result["settings"] |= {"chunk_tokens": 128, "threshold": 0.1, "retrieved": 1024}
    page = trained_page(result)

    assert row["rate"] == row["rate_found"] == pytest.approx(0.75)
    assert row["bound"] == pytest.approx(2.3125)
    assert (row["speed"], row["least"], row["most"]) == pytest.approx((2.0, 0.9, 3.0))
    assert row["begins"] == "2 of 3"
    assert row["accepted"] == pytest.approx(3 * 38 / 100)
    assert "| 1024 | 2 of 3 |  | 1200.00 | 1000.00 | 1 of 3 |" in page


def test_a_text_is_right_as_far_as_it_goes() -> None:
    """A text that was cut within the sentence is right; an empty sentence is none."""
    assert is_right(" of stone. It", "of stone.")
    assert is_right(" of st", "of stone.")
    assert not is_right(" of wood", "of stone.")
    assert not is_right(" of", "")
