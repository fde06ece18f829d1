"""The corpora of the demo: the invented world, or the documentation of the standard library."""

import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ralmspec_plugins.demo.python_docs import library_passages
from ralmspec_plugins.demo.world import DEMO_SEED, count_facts, make_world
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.types import Passage

QUESTIONS_SEED = 1
_FAVOURITES = (
    "textwrap.wrap",
    "heapq.merge",
    "json.dumps",
    "shutil.copytree",
    "difflib.get_close_matches",
    "bisect.bisect_left",
    "statistics.median",
    "string.capwords",
    "glob.glob",
    "random.shuffle",
)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Passages, questions about them, and the scoring of answers."""

    about: str
    passages: Sequence[Passage]
    prompts: Sequence[str]
    max_tokens: int
    facts: (
        Callable[[int, str], tuple[int, int]] | None
    )  # question and text -> right facts, all facts


def world_corpus(questions: int) -> Corpus:
    """Return the corpus of the demo's invented world."""
    world = make_world(DEMO_SEED)
    asked = world.questions(questions, QUESTIONS_SEED)

    def facts(number: int, text: str) -> tuple[int, int]:
        question = asked[number]
        count = count_facts(question.prompt + text, question, world)
        return count.right, count.asked

    passages = [Passage(told.id, told.text, told.title) for told in world.passages()]
    about = (
        f"An invented world of {len(passages):,} passages. Nothing in it can be known from "
        "elsewhere: every right fact was read from a passage that a search found."
    )
    return Corpus(about, passages, [question.prompt for question in asked], 192, facts)


def docs_corpus(questions: int) -> Corpus:
    """Return the corpus of the installed Python's standard library.

    Raises:
        InputError: its sources are not on this machine.
    """
    library = Path(sysconfig.get_path("stdlib"))
    passages = list(library_passages(library))
    if not passages:
        raise InputError(f"the standard library's sources are not in {library}")
    there = {passage.id.partition("#")[0] for passage in passages}
    names = [name for name in _FAVOURITES if name in there] + sorted(there)
    prompts = [f"Explain {name}.\n" for name in dict.fromkeys(names)]
    about = (
        f"The documentation of this Python's standard library: {len(passages):,} passages. The "
        "demo's own model knows the invented world's language only, so its texts "
        "here are not reliable; the demo shows that both runs return equal texts."
    )
    return Corpus(about, passages, prompts[:questions], 128, None)
