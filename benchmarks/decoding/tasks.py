"""What is continued: passages in front, and a prompt. Seeds were fixed before any tuning."""

import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from benchmarks.knn.inputs import Domain, python_docs, wikipedia
from ralmspec_plugins.demo.world import DEMO_SEED, make_world
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.types import Passage

SEED: Final = 2311  # of all drawing
_WORDS: Final = 70  # in a passage
_PASSAGES: Final = 3


@dataclass(frozen=True, slots=True)
class Task:
    """One text to continue.

    Attributes:
        kind: "docqa", "extraction", "code", "in-domain QA" or "no repetition".
        passages: in front.
        prompt: behind them.
        sampled: whether tokens are drawn, at a temperature at which nothing repeats.
    """

    kind: str
    passages: tuple[Passage, ...]
    prompt: str
    sampled: bool = False


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
    free = [Task("no repetition", (), task.prompt, sampled=True) for task in tasks]
    return tasks + free


def world_corpus() -> list[str]:
    """Return the passages of the demo's world: no story that is written is among them."""
    return [passage.text for passage in make_world(DEMO_SEED).passages()]


def text_corpus(data: Path) -> list[str]:
    """Return the documents of the domains that `text_tasks` draws from: none that is continued."""
    return [text for domain in (wikipedia(data), python_docs()) for text in domain.documents]


def text_tasks(count: int, data: Path) -> list[Task]:
    """Continue held-out texts: in neither the training nor a datastore.

    Raises:
        InputError: there are too few.
    """
    tasks: list[Task] = []
    for domain in (wikipedia(data), python_docs()):
        tasks += [task for text in _texts(domain, count) for task in _of_text(text)]
    tasks += [_of_code(text) for text in _sources(count)]
    return tasks


def _texts(domain: Domain, count: int) -> Sequence[str]:
    long = [text for text in domain.held_out if len(text.split()) >= _PASSAGES * _WORDS]
    if len(long) < count:
        raise InputError(f"{domain.name} has {len(long)} long held-out texts, not {count}")
    return long[:count]


def _of_text(text: str) -> Iterator[Task]:
    pieces = list(_pieces(text))
    front = tuple(pieces[:_PASSAGES])
    last = front[-1].text.split()
    yield Task("docqa", front, f"Question: {' '.join(last[:8])}? Answer: {' '.join(last[:3])}")
    yield Task("extraction", front, " ".join(front[0].text.split()[:12]))
    yield Task("in-domain QA", (), " ".join(text.split()[:24]))
    yield Task("no repetition", (), " ".join(text.split()[:24]), sampled=True)


def _of_code(text: str) -> Task:
    lines = text.splitlines()
    front = tuple(
        Passage(str(at), "\n".join(lines[at * 20 : at * 20 + 20])) for at in range(_PASSAGES)
    )
    return Task("code", front, "\n".join(lines[_PASSAGES * 20 : _PASSAGES * 20 + 6]) + "\n")


def _sources(count: int) -> list[str]:
    """Give sources of the standard library, from the first class or function on."""
    found = []
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text = file.read_text(encoding="utf-8", errors="replace")
        begins = re.search(r"^(class|def) ", text, flags=re.MULTILINE)
        if begins is not None and text.count("\n", begins.start()) > 200:
            found.append(text[begins.start() :])
    return Random(SEED).sample(found, count)


def _pieces(text: str) -> Iterator[Passage]:
    words = text.split()
    for at in range(0, len(words), _WORDS):
        yield Passage(str(at), " ".join(words[at : at + _WORDS]))
