"""An invented world: people, their works, places and events, described in passages.

It is generated from one seed, so it is equal on all machines, and its facts are not part of
any model's training data: a text about it must use its passages.

The entities form one large ring: a person *wrote* a work, which is *kept in* a place, which *saw*
an event, which *was won by* another person. Each passage names both neighbours (`next` and
`previous`) and one more entity. An article starts anywhere, follows `next` through `CHAIN`
entities, and comes back to the first for a last fact.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random

from ralmspec_plugins.demo import language
from ralmspec_plugins.demo.language import KINDS, Piece, Statement

DEMO_SEED = 7
"""The seed of the demo's own world; the language model was trained on others."""

CHAIN = 4
"""The number of entities of an article."""


@dataclass(frozen=True, slots=True)
class Entity:
    """An entity of the world, with its facts."""

    id: str
    kind: str
    name: str
    facts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class WorldPassage:
    """The passage of one entity."""

    id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, and the statements that a complete and right article makes."""

    prompt: str
    subject: str
    facts: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class ArticlePiece:
    """A piece of an article, and the id of the entity whose passage it is written from."""

    piece: Piece
    source: str


@dataclass(frozen=True, slots=True)
class FactCount:
    """The number of true statements of a text.

    Attributes:
        right: the question's facts that the text states, each counted once.
        asked: the question's facts.
        true: the text's different statements that are true in the world.
        stated: the text's different statements, true or not.
    """

    right: int
    asked: int
    true: int
    stated: int


@dataclass(frozen=True, slots=True)
class World:
    """All facts, and the questions about them."""

    seed: int
    entities: tuple[Entity, ...]
    _by_name: dict[str, Entity] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Index the entities by name."""
        object.__setattr__(self, "_by_name", {entity.name: entity for entity in self.entities})

    def entity(self, name: str) -> Entity:
        """Return the entity of that name.

        Raises:
            KeyError: there is no entity of that name.
        """
        return self._by_name[name]

    def is_true(self, statement: Statement) -> bool:
        """Return whether the statement's subject exists and has that value."""
        entity = self._by_name.get(statement.subject)
        return entity is not None and entity.facts.get(statement.attribute) == statement.value

    def passages(self) -> list[WorldPassage]:
        """Return one passage for each entity, in the order of `entities`."""
        return [self.passage(entity) for entity in self.entities]

    def passage(self, entity: Entity) -> WorldPassage:
        """Return an entity's passage: all of its facts, in a random order and wording."""
        rng = _draws(self.seed, "passage", entity.id)
        wordings = language.PASSAGE[entity.kind]
        sentences = [
            language.pick(rng, wordings[attribute]).format(name=entity.name, **entity.facts)
            for attribute in _shuffled(rng, list(wordings))
        ]
        return WorldPassage(entity.id, entity.name, " ".join(sentences))

    def questions(self, n: int, seed: int) -> list[Question]:
        """Return questions about `n` entities, all different if the world has enough."""
        rng = _draws(self.seed, "questions", str(seed))
        names = [entity.name for entity in self.entities]
        while len(names) < n:
            names += names
        return [self.question(name) for name in _shuffled(rng, names)[:n]]

    def question(self, name: str) -> Question:
        """Return the question about one entity."""
        facts = tuple(language.statements(self._write(name)))
        return Question(language.PROMPT.format(name=name), name, facts)

    def article(self, question: Question) -> str:
        """Return the complete and correct article for a question."""
        return self._write(question.subject)

    def article_pieces(self, name: str) -> list[ArticlePiece]:
        """Return an article in pieces, each with the entity of its passage."""
        first = entity = self.entity(name)
        told = [ArticlePiece(p, first.id) for p in _sentence(language.OPENING, first)[1:]]
        for step in range(CHAIN):
            if step:
                told += [ArticlePiece(p, entity.id) for p in _sentence(language.BRIDGE, entity)]
            sentence = _sentence(language.TOLD[entity.kind], entity)
            told += [ArticlePiece(p, entity.id) for p in sentence]
            entity = self.entity(entity.facts["next"])
        for template in (language.RETURN, language.CLOSING[first.kind]):
            told += [ArticlePiece(p, first.id) for p in _sentence(template, first)]
        return told

    def _write(self, name: str) -> str:
        return "".join(told.piece.text for told in self.article_pieces(name))


def make_world(seed: int, passages: int = 5000) -> World:
    """Return a generated world; the same seed and size give the same world on every machine.

    Raises:
        ValueError: `passages` is not a multiple of the number of kinds, or gives one of each.
    """
    if passages < 2 * len(KINDS) or passages % len(KINDS):
        raise ValueError(
            f"passages must be a multiple of {len(KINDS)}, at least {2 * len(KINDS)}, "
            f"got {passages}"
        )
    rng = _draws(seed, "world")
    invented = dict.fromkeys(language.invent_name(rng) for _ in range(passages))
    while len(invented) < passages:
        invented[language.invent_name(rng)] = None
    names = {kind: list(invented)[at :: len(KINDS)] for at, kind in enumerate(KINDS)}
    neighbours = _ring(names)
    entities = [
        Entity(f"{kind}-{at:05d}", kind, name, neighbours[name] | _facts(rng, kind, name, names))
        for kind in KINDS
        for at, name in enumerate(names[kind])
    ]
    return World(seed, tuple(entities))


def count_facts(text: str, question: Question, world: World) -> FactCount:
    """Return the number of right statements of a text.

    A statement is one attribute of one subject: "Osk was a baker, born in 1200, and wrote the
    book Ulm." makes three, "Now let us hear of Ulm." none. Statements are read only from whole
    sentences in the article's wording, and a repeated one counts once. What is wrong counts in
    `stated` alone, what is missing in `asked` alone.
    """
    told = set(language.statements(text))
    return FactCount(
        right=len(told & set(question.facts)),
        asked=len(question.facts),
        true=sum(world.is_true(statement) for statement in told),
        stated=len(told),
    )


def _draws(seed: int, *purpose: str) -> Random:
    """Return a separate generator for each purpose."""
    return Random("/".join([str(seed), *purpose]))  # noqa: S311 - nothing here is secret


def _sentence(template: str, entity: Entity) -> list[Piece]:
    """Return a filled template, with the space that separates it from the sentence before."""
    return [Piece(" "), *language.fill(template, {"name": entity.name, **entity.facts})]


def _ring(names: Mapping[str, list[str]]) -> dict[str, dict[str, str]]:
    """Return the neighbours of each entity in the ring of entities.

    Names were drawn at random, so the order of the names is already a random one.
    """
    ring = [name for group in zip(*names.values(), strict=True) for name in group]
    return {
        name: {"next": ring[(at + 1) % len(ring)], "previous": ring[at - 1]}
        for at, name in enumerate(ring)
    }


def _facts(rng: Random, kind: str, name: str, names: Mapping[str, list[str]]) -> dict[str, str]:
    """Return an entity's own facts, each drawn independently."""
    facts = {}
    for attribute in language.ATTRIBUTES[kind]:
        if attribute in language.REFERS:
            others = names[language.REFERS[attribute]]
            facts[attribute] = language.pick(rng, [one for one in others if one != name])
        else:
            facts[attribute] = language.invent_value(rng, attribute)
    return facts


def _shuffled(rng: Random, items: list[str]) -> list[str]:
    """Return the items in random order, drawn by `rng.random()` alone."""
    return [item for _, item in sorted((rng.random(), item) for item in items)]
