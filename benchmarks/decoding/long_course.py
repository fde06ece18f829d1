"""Trains a target with 16,896 positions, and a drafter of about a tenth of its work.

    python -m benchmarks.decoding.long_course --data DATA --cache CACHE

As in the shorter course, both models *begin* with copying heads, here with ones that also compare
the last ten tokens or so. Windows of a few hundred tokens stand for long contexts: between the
passages, and between them and the question, positions are left out, so that all distances come.
A last lesson has longer windows, with the passages of many questions in front of all of them.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Annotated, Any, Final

import torch
import typer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from benchmarks.decoding.copying import CopyingShape
from benchmarks.decoding.course import Lesson, taught
from benchmarks.decoding.exercises import Sources, sources, training_texts
from benchmarks.harness.inputs import LoadedModel, vocabulary
from benchmarks.knn.train import Course, Draw
from ralmspec_plugins.lm.prompts import PassageTemplate, encode

POSITIONS: Final = 16384 + 512
_TURN: Final = 0.5  # radians that a pair which compares turns in all positions, at most
TARGET: Final = CopyingShape(
    layers=4,
    width=256,
    heads=4,
    before=2,
    stretch=True,
    block=24,
    part=40,
    vocabulary=4096,
    context=POSITIONS,
    theta=1e13,
    steady=_TURN / POSITIONS,
    sharp=3.5,
    signs=True,
)
DRAFTER: Final = CopyingShape(
    layers=2,
    width=128,
    heads=4,
    before=2,
    stretch=True,
    block=12,
    part=20,
    vocabulary=4096,
    context=POSITIONS,
    theta=1e13,
    steady=3 * _TURN / POSITIONS,  # its heads are narrower, so that they need more of their pairs
    sharp=5.0,
    signs=True,
)
COURSES: Final = (
    Course(steps=600, batch=1, window=512, rate=6e-4, half=False, every=50, seed=2313),
    Course(steps=60, batch=1, window=2560, rate=2e-4, half=False, every=10, seed=2314),
)
DRAFTERS_COURSES: Final = (
    Course(steps=1200, batch=1, window=512, rate=1e-3, half=False, every=100, seed=2315),
    Course(steps=40, batch=1, window=2560, rate=3e-4, half=False, every=20, seed=2316),
)
_EXERCISES: Final = 5000  # texts that the vocabulary is learned from
_KINDS: Final = {"docqa": 3, "extraction": 3, "code": 2, "in-domain QA": 2}  # and their shares
_UNLEARNED: Final = -100  # the label of tokens whose loss does not count
_UNBROKEN: Final = 0.2  # share of windows in which no position is left out


class Windows:
    """Windows of exercises: a piece of text, all passages, then all questions with answers.

    Only questions and answers are learned.
    """

    def __init__(self, learned: Sources, tokenizer: Any, course: Course, positions: int) -> None:
        """Make exercises of what is learned from, with that many positions at most."""
        self._learned, self._tokenizer = learned, tokenizer
        self._course, self._positions = course, positions

    def __call__(self, step: int) -> dict[str, Tensor]:
        """Return a step's inputs.

        The mask says that all tokens are one text; without it, transformers takes each place
        where positions are left out for the end of a text.
        """
        dice = Random(f"{self._course.seed} {step}")
        drawn = [self.window(dice) for _ in range(self._course.batch)]
        ids, places, labels = (torch.tensor(rows) for rows in zip(*drawn, strict=True))
        return {
            "input_ids": ids,
            "position_ids": places,
            "attention_mask": torch.ones_like(ids),
            "labels": labels,
        }

    def window(self, dice: Random) -> tuple[list[int], list[int], list[int]]:
        """Return a window's tokens, their positions, and those of questions and answers."""
        size, template = self._course.window, PassageTemplate()
        fronts: list[list[int]] = []
        questions: list[list[int]] = []
        room = size - 1
        while True:
            kind = dice.choices(list(_KINDS), list(_KINDS.values()))[0]
            made = self._learned.exercise(kind, dice)
            front = self._encoded("".join(map(template.show, made.passages)))
            question = self._encoded(made.prompt + made.answer)
            if fronts and len(front) + len(question) > room:
                break
            fronts.append(front)
            questions.append(question)
            room -= len(front) + len(question)
        filling: list[int] = []
        while len(filling) < room:
            filling += self._encoded(self._learned.plain(dice, room) + "\n\n")
        dice.shuffle(fronts)
        dice.shuffle(questions)
        pieces = [[int(self._tokenizer.bos_token_id)], filling[: max(0, room)], *fronts, *questions]
        places = _places([len(piece) for piece in pieces], self._positions, dice)
        tokens = [token for piece in pieces for token in piece]
        read = len(tokens) - sum(map(len, questions))
        labels = [_UNLEARNED] * read + tokens[read:]
        return tokens[:size], places[:size], labels[:size]

    def _encoded(self, text: str) -> list[int]:
        return list(encode(self._tokenizer, text, literal=True))


def _places(lengths: Sequence[int], positions: int, dice: Random) -> list[int]:
    """Return positions of all tokens of pieces, with some left out between pieces.

    Few are left out more often than many.
    """
    spare = max(0, positions - sum(lengths))
    out = 0 if dice.random() < _UNBROKEN else int(spare * dice.random() ** 3)
    cuts = sorted(dice.randrange(out + 1) for _ in lengths[1:])
    places: list[int] = []
    start = 0
    for before, length in zip([0, *cuts], lengths, strict=True):
        places.extend(range(start + before, start + before + length))
        start += length
    return places


def trained(
    cache: Path, data: Path, threads: int, minutes: float = math.inf
) -> dict[str, LoadedModel]:
    """Return both models by name, trained before or now; what was begun is gone on with."""
    torch.set_num_threads(threads)
    learned, _ = sources(data)
    tokenizer = _tokenizer(cache, learned)

    def lessons(courses: Sequence[Course]) -> list[Lesson]:
        draws: list[Draw] = [Windows(learned, tokenizer, one, POSITIONS) for one in courses]
        return [Lesson(course, draw) for course, draw in zip(courses, draws, strict=True)]

    return {
        name: taught(name, shape, lessons(courses), cache, tokenizer, minutes, _factor)
        for name, shape, courses in (
            ("target", TARGET, COURSES),
            ("drafter", DRAFTER, DRAFTERS_COURSES),
        )
    }


def _factor(name: str) -> float:
    """Return how fast a weight is learned: all that comparisons read changes slowly."""
    if "embed_tokens" in name:
        return 0.02
    return 0.05 if re.search(r"layers\.0\.|layers\.1\.(self_attn|input)", name) else 1.0


def _tokenizer(cache: Path, learned: Sources) -> Any:
    """Return the tokenizer, made once and kept."""
    place = cache / "tokenizer"
    if not place.exists():
        texts = training_texts(learned, _EXERCISES, COURSES[0].seed)
        made = vocabulary([*texts, *learned.articles, *learned.files], TARGET.vocabulary)
        fresh = place.with_name("tokenizer.new")
        made.save_pretrained(fresh)
        fresh.rename(place)
    fast: Any = PreTrainedTokenizerFast  # its methods are untyped
    return fast.from_pretrained(place)


def main(
    data: Annotated[Path, typer.Option(help="The folder with *articles.jsonl, *passages.jsonl.")],
    cache: Annotated[Path, typer.Option(help="The folder for the weights.")],
    threads: Annotated[int, typer.Option(min=1)] = 1,
    minutes: Annotated[
        float | None, typer.Option(help="Take each model as it is after so long.")
    ] = None,
) -> None:
    """Train both models, or go on with it: about ten minutes of an idle core."""
    limit = math.inf if minutes is None else minutes
    for name, one in trained(cache, data, threads, limit).items():
        typer.echo(f"{name}: {one.parameters:,} weights in {cache / name / 'model'}")


if __name__ == "__main__":
    typer.run(main)
