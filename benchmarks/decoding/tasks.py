"""What is continued: passages in front, and a prompt. Seeds were fixed before any tuning."""

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from benchmarks.decoding.exercises import KINDS, sources
from ralmspec_plugins.demo.world import DEMO_SEED, make_world
from ralmspec_plugins.types import Passage

SEED: Final = 2311  # of all drawing
_WORDS: Final = 24  # of a text's beginning


@dataclass(frozen=True, slots=True)
class Task:
    """One text to continue.

    Attributes:
        kind: "docqa", "extraction", "code", "in-domain QA" or "no repetition".
        passages: in front.
        prompt: behind them.
        free: whether repetition is penalised, so that there is none.
    """

    kind: str
    passages: tuple[Passage, ...]
    prompt: str
    free: bool = False


def world_tasks(count: int) -> list[Task]:
    """Ask the demo's model for the stories of its world, with the passages that they need."""
    world = make_world(DEMO_SEED)
    named = {passage.title: passage for passage in world.passages()}
    rng = Random(SEED)
    tasks = []
    for question in world.questions(count, SEED):
        told = [named[fact.subject] for fact in question.facts if fact.subject in named]
        front = list({one.id: Passage(one.id, one.text, one.title) for one in told}.values())
        rng.shuffle(front)
        tasks.append(Task("in-domain QA", tuple(front[:4]), question.prompt))
    free = [Task("no repetition", (), task.prompt, free=True) for task in tasks]
    return tasks + free


def world_corpus() -> list[str]:
    """Return the passages of the demo's world: no story that is written is among them."""
    return [passage.text for passage in make_world(DEMO_SEED).passages()]


def text_corpus(data: Path) -> list[str]:
    """Return what is learned from, as a datastore: nothing of it is continued."""
    learned, _ = sources(data)
    return [*learned.articles, *learned.files]


def text_tasks(count: int, data: Path) -> list[Task]:
    """Continue exercises of held-out texts, which are in neither the training nor a datastore.

    Raises:
        InputError: there are too few texts.
    """
    _, held_out = sources(data)
    dice = {kind: Random(f"{SEED} {kind}") for kind in (*KINDS, "no repetition")}
    tasks: list[Task] = []
    for _ in range(count):  # of each kind in turn, so that a part of a run tells of all
        for kind in KINDS:
            made = held_out.exercise(kind, dice[kind])
            tasks.append(Task(kind, made.passages, made.prompt))
        words = dice["no repetition"].choice(held_out.articles).split()[:_WORDS]
        tasks.append(Task("no repetition", (), " ".join(words), free=True))
    return tasks


def mixed_tasks(count: int, data: Path) -> list[Task]:
    """Continue words of all articles in disorder, behind passages of such words."""
    _, held_out = sources(data)
    words = " ".join(held_out.articles).split()
    dice = Random(f"{SEED} mixed")
    tasks = []
    for _ in range(count):
        front = tuple(Passage(str(at), " ".join(dice.sample(words, 45))) for at in range(2))
        tasks.append(Task("no repetition", front, " ".join(dice.sample(words, _WORDS))))
    return tasks
