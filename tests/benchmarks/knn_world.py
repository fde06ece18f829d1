"""Two tiny domains of texts, for tests of KNN-LM's benchmarks."""

import random
from pathlib import Path

from benchmarks.knn.inputs import PYTHON, WIKIPEDIA, Domain, Prompt
from benchmarks.knn.train import Course

TALES = "the keeper of a lighthouse counted ships and storms by night and slept by day".split()  # noqa: SIM905
RULES = "a list holds items and a set holds each item once while a map holds pairs".split()  # noqa: SIM905
MODEL = "random:1x64"
COURSE = Course(steps=4, batch=2, window=16, every=2)


def text(words: list[str], seed: int, length: int = 60) -> str:
    """Draw a text."""
    dice = random.Random(seed)
    return " ".join(dice.choice(words) for _ in range(length))


def domains() -> tuple[Domain, Domain]:
    """Make two domains."""
    return tuple(
        Domain(name, tuple(text(words, seed) for seed in range(6)), (text(words, 99),))
        for name, words in ((WIKIPEDIA, TALES), (PYTHON, RULES))
    )


def prompts() -> tuple[Prompt, ...]:
    """Ask in the first domain, and in none."""
    return Prompt(text(TALES, 98, 6), WIKIPEDIA), Prompt("who counted the pairs?", "questions")


def questions(folder: Path) -> Path:
    """Write a file of questions."""
    file = folder / "nq_questions.jsonl"
    file.write_text('{"question": "who counted the ships"}\n{"question": "what is a set"}\n')
    return folder
