"""The texts of KNN-LM's benchmarks: what a datastore is made of, and what is held out."""

import json
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from ralmspec_plugins.bench.python_docs import library_passages
from ralmspec_plugins.errors import InputError

WIKIPEDIA: Final = "Wikipedia"
PYTHON: Final = "Python's documentation"
QUESTIONS: Final = "questions"
IN_DOMAIN: Final = (WIKIPEDIA, PYTHON)
HELD_OUT: Final = 12  # articles, a tenth of them all
PROMPT_WORDS: Final = 24
_EVERY: Final = 10  # module of Python's that is held out
_HELD_OUT_WORDS: Final = 200  # at least, of a module that is
_NO_TITLE: Final = "<unk>"  # WikiText's word for rare words, and so the title of many articles


@dataclass(frozen=True, slots=True)
class Domain:
    """Texts of one kind.

    Attributes:
        name: of the kind.
        documents: what a datastore may be made of, and a model learn from.
        held_out: what neither has seen.
    """

    name: str
    documents: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is to be continued; `source` is a domain, or "questions", which are of none."""

    text: str
    source: str

    @property
    def place(self) -> str:
        """Say whether texts of its kind are in the datastore."""
        return "in domain" if self.source in IN_DOMAIN else "out of domain"


def wikipedia(data: Path) -> Domain:
    """Read the shared articles; some of the whole ones are held out, with all their passages.

    Raises:
        InputError: there are too few.
    """
    passages = list(_rows(data / "wikipedia_passages.jsonl"))
    articles = [
        one for one in _rows(data / "wikipedia_articles.jsonl") if _NO_TITLE not in one["title"]
    ]
    chosen = articles[:: max(1, len(articles) // HELD_OUT)][:HELD_OUT]
    titles = {one["title"] for one in chosen}
    documents = [
        " ".join(one["text"] for one in of_title)
        for title, of_title in groupby(passages, key=lambda one: str(one["title"]))
        if title not in titles
    ]
    return _domain(WIKIPEDIA, documents, [one["text"] for one in chosen], data)


def python_docs() -> Domain:
    """Read the standard library's documentation, a document for each module.

    Raises:
        InputError: its sources are not on this machine.
    """
    library = Path(sysconfig.get_path("stdlib"))
    modules: dict[str, list[str]] = {}
    for passage in library_passages(library):
        titled = f"{passage.title}\n{passage.text}"
        modules.setdefault(passage.id.partition(".")[0].partition("#")[0], []).append(titled)
    texts = ["\n\n".join(modules[name]) for name in sorted(modules)]
    long = [text for text in texts if len(text.split()) >= _HELD_OUT_WORDS]
    held_out = long[::_EVERY]
    documents = [text for text in texts if text not in held_out]
    return _domain(PYTHON, documents, held_out, library)


def prompts(domains: Sequence[Domain], data: Path, each: int, outside: int) -> list[Prompt]:
    """Take the starts of held-out documents, so many of each domain, and of questions.

    Questions stand for what a datastore knows little of: the paper's prompts were
    those of Wiki-QA over WikiText (PAPERS 1.8).

    Raises:
        InputError: there are not so many.
    """
    asked = [
        Prompt(beginning(text, PROMPT_WORDS), domain.name)
        for number in range(each)
        for domain in domains
        for text in domain.held_out[number : number + 1]
    ]
    questions = list(_rows(data / "nq_questions.jsonl"))[:outside]
    asked += [Prompt(f"{one['question'].capitalize()}?", QUESTIONS) for one in questions]
    if len(asked) != each * len(domains) + outside:
        raise InputError(
            f"there are {len(asked)} prompts, but {each} of each of {len(domains)} domains and "
            f"{outside} questions are needed; ask for fewer"
        )
    return asked


def beginning(text: str, words: int) -> str:
    r"""Give the first words of a text, with what stands between them.

    >>> beginning("one  two\nthree", 2)
    'one  two'
    """
    found = re.match(rf"(?:\s*\S+){{0,{words}}}", text)
    assert found is not None
    return found[0]


def _domain(name: str, documents: list[str], held_out: list[str], place: Path) -> Domain:
    if not documents or not held_out:
        raise InputError(
            f"{place} gives {len(documents)} documents and {len(held_out)} to hold out; "
            "at least one of each is needed"
        )
    return Domain(name, tuple(documents), tuple(held_out))


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines if line.strip())
