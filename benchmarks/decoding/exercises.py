"""Four kinds of texts that copy from what is in front of them: to train on, and to continue.

Wikipedia's articles and the standard library's sources are split once: what is held out is in
neither the training nor a datastore. Seeds were fixed before any tuning.
"""

import keyword
import re
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Final

from benchmarks.knn.inputs import wikipedia
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.lm.prompts import PassageTemplate
from ralmspec_plugins.types import Passage

KINDS: Final = ("docqa", "extraction", "code", "in-domain QA")
_SHARES: Final = (3, 2, 3, 2, 2)  # of the kinds and of continuous text, when training
_WORDS: Final = 45  # in a passage
_EVERY: Final = 5  # source file that is held out
_LINES: Final = (8, 36)  # of a function that is taken
_LEADS: Final = ("", "", "It is said that ", "The passage says: ", "As far as is known, ")
_DEFINITION: Final = re.compile(r"^([ ]*)def (\w+)\(.*\n(?:\1[ ]+.*\n|[ ]*\n)+", re.MULTILINE)
_SENTENCE_ENDS: Final = re.compile(r"(?<=[.!?]) +")
_NAME: Final = re.compile(r"\b[a-z_]{4,}\b")


@dataclass(frozen=True, slots=True)
class Exercise:
    """Passages, what stands behind them, and the text that follows."""

    kind: str
    passages: tuple[Passage, ...]
    prompt: str
    answer: str

    @property
    def text(self) -> str:
        """The whole text, as a model reads it."""
        template = PassageTemplate()
        return "".join(map(template.show, self.passages)) + self.prompt + self.answer

    @property
    def sentence(self) -> str:
        """What is missing of the sentence in which the prompt ends."""
        return _SENTENCE_ENDS.split(self.answer.split("\n")[0].strip())[0]


@dataclass(frozen=True, slots=True)
class Sources:
    """What exercises are made of: articles, and functions with the lines around them."""

    articles: tuple[str, ...]
    files: tuple[str, ...]
    functions: tuple[str, ...]

    def exercise(self, kind: str, dice: Random) -> Exercise:
        """Make an exercise of a kind; which one depends on the dice alone."""
        if kind == "code":
            return _of_code(dice.choice(self.functions), dice)
        article = dice.choice(self.articles)
        return {"docqa": _docqa, "extraction": _extraction, "in-domain QA": _about}[kind](
            article, dice
        )

    def buried(self, kind: str, dice: Random, tokens: int, count: Callable[[str], int]) -> Exercise:
        """Make an exercise whose passages stand somewhere in a long context of other articles.

        Its prompt ends within a sentence of the passages, not in words of its own before it.

        Args:
            kind: but "code".
            dice: choose article, place, and other articles.
            tokens: of the context, at most; the exercise's own passages are there in any case.
            count: returns the tokens of a text.
        """
        begun, own = "", list[str]()
        while not begun or begun not in " ".join(own):
            article = dice.choice(self.articles)
            made = replace(self, articles=(article,)).exercise(kind, dice)
            own = [one.text for one in made.passages]
            begun = " ".join(made.prompt.split()[-3:])
        others = [one for one in self.articles if one is not article]
        room, around = tokens - count("\n\n".join(own)), list[str]()
        for other in dice.sample(others, len(others)):
            for passage in _passages(other, dice, len(other)):
                room -= count("\n\n" + passage.text)
                if room < 0:
                    break
                around.append(passage.text)
        at = dice.randrange(len(around) + 1)
        text = "\n\n".join([*around[:at], *own, *around[at:]])
        return replace(made, passages=(Passage("context", text),))

    def plain(self, dice: Random, words: int) -> str:
        """Cut a piece of an article, or of a file."""
        text = dice.choice(self.articles if dice.random() < 0.6 else self.files)
        pieces = re.findall(r"\s*\S+", text)
        start = dice.randrange(max(1, len(pieces) - words))
        return "".join(pieces[start : start + words]).strip()


def sources(data: Path) -> tuple[Sources, Sources]:
    """Return what is learned from, and what is held out.

    Raises:
        InputError: the folder has too few articles, or the standard library has no sources.
    """
    domain = wikipedia(data)
    files = _files()
    held_out = files[::_EVERY]
    learned = [text for number, text in enumerate(files) if number % _EVERY]
    found = (
        _of(domain.documents, learned),
        _of(domain.held_out, held_out),
    )
    for one in found:
        if not one.articles or not one.functions:
            raise InputError(
                f"{data} and the standard library give too few texts to make exercises"
            )
    return found


def training_texts(learned: Sources, count: int, seed: int) -> Iterator[str]:
    """Yield texts to train on, of all kinds and of continuous text."""
    dice = Random(seed)
    for _ in range(count):
        kind = dice.choices((*KINDS, ""), _SHARES)[0]
        yield learned.exercise(kind, dice).text if kind else learned.plain(dice, 150)


def _of(articles: Sequence[str], files: Sequence[str]) -> Sources:
    long = tuple(text for text in articles if len(text.split()) >= 4 * _WORDS)
    functions = tuple(
        found[0]
        for text in files
        for found in _DEFINITION.finditer(text)
        if _LINES[0] <= found[0].strip().count("\n") < _LINES[1]
    )
    return Sources(long, tuple(files), functions)


def _files() -> list[str]:
    found = []
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text = file.read_text(encoding="utf-8", errors="replace")
        if text.count("\n") > 100:
            found.append(text)
    return found


def _docqa(article: str, dice: Random) -> Exercise:
    """Ask for sentences of three passages, by how they begin."""
    passages = _passages(article, dice, 3)
    asked = dice.sample(_sentences(passages), 3)
    told = [_answered(" ".join(one.split()[:6]), one, dice) for one in asked]
    prompt, answer = _begun(told[0], 3)
    return Exercise("docqa", passages, prompt, answer + "\n" + "".join(f"{a}\n" for a in told[1:]))


def _extraction(article: str, dice: Random) -> Exercise:
    """Summarise three passages by some of their sentences, in their order."""
    passages = _passages(article, dice, 3)
    told = _sentences(passages)
    chosen = [one for number, one in enumerate(told) if number == 0 or dice.random() < 0.6]
    prompt, answer = _begun("Summary: " + " ".join(chosen), 4)
    return Exercise("extraction", passages, prompt, answer + "\n")


def _about(article: str, dice: Random) -> Exercise:
    """Say what two passages of different places tell about a thing, in turn."""
    passages = (*_passages(article, dice, 1), *_passages(article, dice, 1))
    name = " ".join(article.split()[:3])
    told = [
        dice.choice(_LEADS) + dice.choice(_sentences(passages[number % 2 :][:1]))
        for number in range(4)
    ]
    prompt, answer = _begun(f"Question: What is known about {name}? Answer: {' '.join(told)}", 9)
    return Exercise("in-domain QA", passages, prompt, answer + "\n")


def _of_code(function: str, dice: Random) -> Exercise:
    """Write a function again, with another name in the place of one of its own."""
    lines = function.strip("\n").splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    body = "\n".join(line[indent:] for line in lines)
    names = sorted(set(_NAME.findall(body)) - set(keyword.kwlist))
    name = dice.choice(names or ["self"])
    again = re.sub(rf"\b{re.escape(name)}\b", f"{name}_{dice.choice(['a', 'new', 'copy'])}", body)
    kept = again.splitlines(keepends=True)
    passage = Passage("0", body)
    return Exercise("code", (passage,), "".join(kept[:2]), "".join(kept[2:]) + "\n\n")


def _answered(words: str, sentence: str, dice: Random) -> str:
    return f"Question: {words.rstrip('.,;:')}? Answer: {dice.choice(_LEADS)}{sentence}"


def _begun(text: str, words: int) -> tuple[str, str]:
    """Cut a text behind the first words of what follows the last colon of its head."""
    head = re.match(r"(?:Question: [^?]*\? Answer:|Summary:)", text)
    assert head is not None
    given = re.match(rf"(?:\s*\S+){{0,{words}}}", text[head.end() :])
    assert given is not None
    at = head.end() + given.end()
    return text[:at], text[at:]


def _passages(article: str, dice: Random, count: int) -> tuple[Passage, ...]:
    """Cut neighbouring passages out of an article, each of whole sentences."""
    told = _SENTENCE_ENDS.split(article)
    start = dice.randrange(max(1, len(told) - 4 * count))
    made: list[Passage] = []
    held: list[str] = []
    for sentence in told[start:] + told[:start]:
        held.append(sentence)
        if sum(len(one.split()) for one in held) >= _WORDS:
            made.append(Passage(str(len(made)), " ".join(" ".join(held).split()[: 2 * _WORDS])))
            held = []
        if len(made) == count:
            break
    return tuple(made)


def _sentences(passages: Sequence[Passage]) -> list[str]:
    """Return sentences of at least five words; repeated, if there are few."""
    told = [
        one
        for passage in passages
        for one in _SENTENCE_ENDS.split(passage.text)
        if len(one.split()) >= 5
    ]
    return (told or [passages[0].text]) * (1 if len(told) >= 3 else 3)
