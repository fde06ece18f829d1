"""Trains the benchmark's two models: a target of 13.8 million weights, and a small drafter.

    python -m benchmarks.decoding.course --data DATA --cache CACHE

A course that was stopped is gone on with. A training of a few hundred thousand tokens, which is
what two busy cores give in half an hour, does not bring forth heads that copy, as every larger
model has them. So both models *begin* with such heads: they look for where the last tokens stood
earlier, and copy what followed (Olsson et al., 2209.11895). All weights are trained from there.
"""

import json
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.decoding.copying import CopyingShape, copying_model
from benchmarks.decoding.exercises import sources, training_texts
from benchmarks.harness.inputs import LoadedModel, load_model, vocabulary
from benchmarks.knn.train import Course, Draw, learn, token_stream
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.retrieval.storage.files import write_whole

TARGET: Final = CopyingShape(layers=6, width=384, heads=6, before=2)  # 13.8 million weights
DRAFTER: Final = CopyingShape(layers=2, width=128, heads=4, before=1)
COURSE: Final = Course(steps=480, batch=1, window=384, rate=6e-4, half=False, every=40, seed=2311)
DRAFTERS_COURSE: Final = Course(
    steps=600, batch=1, window=384, rate=1e-3, half=False, every=100, seed=2312
)
_EXERCISES: Final = 5000
_WIDE: Final = 0.1  # of all weights of a model whose texts repeat nothing


@dataclass(frozen=True, slots=True)
class Lesson:
    """A course, and the tokens to learn from: of all texts, or what returns a step's inputs."""

    course: Course
    texts: NDArray[np.int32] | Draw


class TimeIsUpError(Exception):
    """A course is left before its end."""


def trained(
    cache: Path, data: Path, threads: int, minutes: float = math.inf
) -> dict[str, LoadedModel]:
    """Return both models by name, trained before or now; what was begun is gone on with.

    Args:
        cache: the folder of the weights.
        data: the folder of the texts.
        threads: of torch.
        minutes: after which a model is taken as it is.
    """
    torch.set_num_threads(threads)
    tokenizer, stream = _material(cache, data)
    return {
        name: taught(name, shape, [Lesson(course, stream)], cache, tokenizer, minutes)
        for name, shape, course in (
            ("target", TARGET, COURSE),
            ("drafter", DRAFTER, DRAFTERS_COURSE),
        )
    }


def opened(cache: Path) -> dict[str, LoadedModel]:
    """Open both models.

    Raises:
        ConfigError: they were not trained.
    """
    missing = [name for name in ("target", "drafter") if not (cache / name / "model").exists()]
    if missing:
        raise ConfigError(
            f"{cache} has no trained {' and '.join(missing)}; run "
            "`python -m benchmarks.decoding.course` with the same --cache first"
        )
    return {name: load_model(str(cache / name / "model"), ()) for name in ("target", "drafter")}


def drawn(cache: Path) -> LoadedModel:
    """Return a model of the target's shape that was never trained: its texts repeat nothing.

    Its weights are drawn so wide that each token depends on all before it.

    Raises:
        ConfigError: the target, whose tokenizer it takes, was not trained.
    """
    target = opened(cache)["target"]
    config = TARGET.config()
    config.tie_word_embeddings, config.initializer_range = False, _WIDE
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    return LoadedModel("drawn", model.train(False), target.tokenizer, target.template)


def _material(cache: Path, data: Path) -> tuple[Any, NDArray[np.int32]]:
    """Return the tokenizer and the tokens to learn from; made once, and kept."""
    place, file = cache / "tokenizer", cache / "stream.npy"
    if not file.exists():
        learned, _ = sources(data)
        texts = list(training_texts(learned, _EXERCISES, COURSE.seed))
        tokenizer = vocabulary([*texts, *learned.articles, *learned.files], TARGET.vocabulary)
        tokenizer.save_pretrained(place)
        np.save(file, token_stream(texts, tokenizer))
    fast: Any = PreTrainedTokenizerFast  # its methods are untyped
    return fast.from_pretrained(place), np.load(file)


def taught(
    name: str,
    shape: CopyingShape,
    lessons: Sequence[Lesson],
    cache: Path,
    tokenizer: Any,
    minutes: float,
    factor: Callable[[str], float] | None = None,
) -> LoadedModel:
    """Return a model that took lessons in turn, now or before; what was begun is gone on with."""
    place = cache / name / "model"
    if place.exists():
        return load_model(str(place), ())
    model: Any = copying_model(shape)
    end_s = time.perf_counter() + 60.0 * minutes
    facts = []
    for number, lesson in enumerate(lessons):
        folder = cache / name / ("course" if number == 0 else f"course {number + 1}")
        facts.append(_given(model, lesson, folder, name, end_s, factor or _factor))
        if facts[-1]["steps"] < lesson.course.steps:
            break
    write_whole(cache / name / "facts.json", json.dumps(facts, indent=1).encode())
    fresh = place.with_name("model.new")
    tokenizer.save_pretrained(fresh)
    model.save_pretrained(fresh)
    fresh.rename(place)
    return load_model(str(place), ())


def _given(
    model: Any,
    lesson: Lesson,
    folder: Path,
    name: str,
    end_s: float,
    factor: Callable[[str], float],
) -> dict[str, Any]:
    """Give a model a lesson until it, or the time, is over; return what it was."""
    course, losses = lesson.course, dict[int, float]()

    def told(step: int, loss: float) -> None:
        losses[step] = loss
        typer.echo(f"{name}: step {step + 1} of {course.steps}, loss {loss:.3f}")
        if time.perf_counter() > end_s:
            raise TimeIsUpError

    try:
        losses = dict(enumerate(learn(model, lesson.texts, course, folder, told, factor).losses))
    except TimeIsUpError:
        model.train(False)
    steps = 1 + max(losses)
    return {
        "course": asdict(course),
        "steps": steps,
        "tokens": steps * course.batch * course.window,
        "last_losses": list(losses.values())[-20:],
    }


def _factor(name: str) -> float:
    """Return how fast a weight is learned: what holds the copying heads changes slowly."""
    if "embed_tokens" in name:
        return 0.1
    return 0.05 if re.search(r"layers\.[01]\.self_attn", name) else 1.0


def main(
    data: Annotated[Path, typer.Option(help="The folder with *articles.jsonl, *passages.jsonl.")],
    cache: Annotated[Path, typer.Option(help="The folder for the weights.")],
    threads: Annotated[int, typer.Option(min=1)] = 2,
    minutes: Annotated[
        float | None, typer.Option(help="Take each model as it is after so long.")
    ] = None,
) -> None:
    """Train both models, or go on with it: the target takes about 15 minutes of an idle core."""
    limit = math.inf if minutes is None else minutes
    for name, one in trained(cache, data, threads, limit).items():
        typer.echo(f"{name}: {one.parameters:,} weights in {cache / name / 'model'}")


if __name__ == "__main__":
    typer.run(main)
