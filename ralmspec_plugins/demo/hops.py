"""Questions about the invented world that are answered from several passages, read in turn.

"Where is the book kept that Osk wrote?" takes two: that of Osk names the book, that of the book
names the place. The model asks for them in Search-R1's tags (`workloads.SearchTags`):

    <search> the person Osk</search> ... The person Osk wrote the book Ulm. Where is the book Ulm
    kept? <search> the book Ulm</search> ... The book Ulm is kept in Brek. <answer> Brek</answer>

Behind each passage the answer states what was read and the question that is left (Self-Ask's
decomposition), so that whether to search or to answer depends on the last question alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ralmspec_plugins.demo import language
from ralmspec_plugins.demo.language import Piece, fill
from ralmspec_plugins.demo.world import Entity, World
from ralmspec_plugins.workloads.hops import SearchTags

MOST_HOPS = 3
"""The number of passages that the longest question takes."""


@dataclass(frozen=True, slots=True)
class HopQuestion:
    """A question, the entities whose passages it takes, and the one that answers it."""

    prompt: str
    chain: tuple[Entity, ...]
    answer: str

    @property
    def hops(self) -> int:
        """The number of passages that the question takes."""
        return len(self.chain)


@dataclass(frozen=True, slots=True)
class HopCount:
    """What a written answer to a question states.

    Attributes:
        answered: whether its final answer is right.
        right: the number of right links that it states.
        asked: the number of the question's links.
    """

    answered: bool
    right: int
    asked: int


def hop_question(world: World, name: str, hops: int) -> HopQuestion:
    """Return the question that begins at one entity and takes `hops` passages.

    Raises:
        ValueError: there are no questions of so many passages.
    """
    if not 1 <= hops <= MOST_HOPS:
        raise ValueError(f"hops must be between 1 and {MOST_HOPS}, got {hops}")
    chain = [world.entity(name)]
    while len(chain) < hops:
        chain.append(world.entity(chain[-1].facts["next"]))
    prompt = language.HOP_QUESTIONS[chain[0].kind][hops - 1].format(name=name)
    return HopQuestion(prompt, tuple(chain), chain[-1].facts["next"])


def hop_questions(world: World, n: int, hops: int, seed: int) -> list[HopQuestion]:
    """Return questions of `hops` passages about `n` entities, as `World.questions` draws them."""
    return [hop_question(world, asked.subject, hops) for asked in world.questions(n, seed)]


def hop_turns(question: HopQuestion) -> list[list[Piece]]:
    """Return the turns of the right answer: each states what was read and what is left to ask.

    Names have the attribute `next`, whether copied from a passage or from the text before, the
    other words of a question that is left the attribute `question`.
    """
    turns: list[list[Piece]] = [[]]
    for left, entity in zip(range(question.hops, 0, -1), question.chain, strict=True):
        if turns[-1]:
            turns[-1] += _left(entity, left)
        turns[-1] += _tagged("search", language.SOUGHT[entity.kind], entity.name)
        turns.append(_named(language.LINKS[entity.kind], entity.name, entity.facts["next"]))
        turns[-1].append(Piece(" "))
    turns[-1] += _tagged("answer", "{name}", question.answer)
    return turns


def count_hops(text: str, question: HopQuestion) -> HopCount:
    """Return what a text states of the question's links, and whether it answers rightly."""
    links = ["".join(one.text for one in _link(entity)) for entity in question.chain]
    answer = SearchTags().answer(text)
    return HopCount(answer == question.answer, sum(link in text for link in links), len(links))


def _link(entity: Entity) -> Sequence[Piece]:
    return _named(language.LINKS[entity.kind], entity.name, entity.facts["next"])


def _left(entity: Entity, hops: int) -> list[Piece]:
    """Return the question about an entity that takes `hops` passages, as a part of an answer."""
    template = language.HOP_QUESTIONS[entity.kind][hops - 1].replace("\n", " ")
    pieces = _named(template, entity.name, entity.name)
    return [Piece(one.text, one.attribute or "question") for one in pieces]


def _named(template: str, name: str, following: str) -> list[Piece]:
    """Fill a template in, each name as a piece of its own."""
    pieces = fill(template, {"name": name, "next": following})
    return [Piece(one.text, "next") if one.text in (name, following) else one for one in pieces]


def _tagged(tag: str, template: str, name: str) -> list[Piece]:
    return [Piece(f"<{tag}> "), *_named(template, name, name), Piece(f"</{tag}>")]
