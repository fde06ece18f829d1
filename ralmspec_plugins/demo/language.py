"""The language of the invented world: its names, its words and its sentences.

Two registers say the same facts in different words. *Passages* (the knowledge base) say each fact
in a sentence of its own, in one of two wordings and in any order. *Articles* (what the model
writes) have one wording for everything, so that `statements` can read the facts back out of a
written text. Nearly every sentence names its subject: a query made of the last 32 tokens then
points to the passage that the next sentence needs.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from string import Formatter

KINDS = ("person", "work", "place", "event")
"""The kinds of entity, in the order in which `next` leads from one to another."""

_WORD_LISTS = {
    "trade": (
        "weaver baker miller tanner potter smith mason carver glazier cooper chandler fisher "
        "shepherd beekeeper brewer cobbler tailor dyer thatcher joiner printer scribe surgeon "
        "ferryman falconer gardener hunter jeweller locksmith minstrel painter pilot ropemaker "
        "saddler sailor salter tinker vintner wheelwright woodcutter"
    ),
    "theme": (
        "storms wolves orphans comets famine treason dragons islands dreams winters rivers ghosts "
        "gardens thieves pilgrims mirrors giants harvests whales exile ravens widows lanterns "
        "plague deserts bells twins shadows oaths witches fools hermits tides kings masks riddles "
        "roads spiders stars weddings"
    ),
    "goods": (
        "salt wool amber copper honey silk tin pepper glass timber wine iron leather paper pearls "
        "saffron barley marble indigo ivory cheese linen oil sugar tea silver cotton furs herring "
        "candles garlic ginger ink lead olives rice soap tar walnuts wax"
    ),
    "prize": (
        "horses cattle bridges mines wells forests taxes tolls crowns relics orchards harbours "
        "ships quarries meadows castles mills pastures vineyards swords letters coins maps fords "
        "barns ovens drums flags gates hostages jewels ladders nets ports saddles slaves statues "
        "tents towers wagons"
    ),
    "sign": (
        "badger bear beaver boar bull camel carp cat cock crab crane crow deer dolphin dove duck "
        "finch fox frog goat goose hare hawk hen heron horse hound lark lion lizard lynx magpie "
        "mole moth mouse newt pigeon pike rat raven"
    ),
}
WORDS: Mapping[str, Sequence[str]] = {name: text.split() for name, text in _WORD_LISTS.items()}
"""The words that an attribute's value is drawn from; years and invented names are the others."""

ATTRIBUTES: Mapping[str, Sequence[str]] = {
    "person": ("trade", "born", "sign", "home"),
    "work": ("theme", "made", "sign", "praise"),
    "place": ("river", "goods", "sign", "near"),
    "event": ("prize", "year", "sign", "song"),
}
"""The attributes of each kind, in addition to its neighbours `next` and `previous`."""

YEARS = ("born", "made", "year")
"""The attributes that are years, by a calendar of the world's own."""

REFERS: Mapping[str, str] = {
    "home": "place",
    "praise": "person",
    "near": "place",
    "song": "work",
}
"""The attributes that name another entity, and its kind."""

PASSAGE: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "person": {
        "trade": ("{name} had the trade of a {trade}.", "{name} lived by trade as a {trade}."),
        "born": ("{name} came into the world in {born}.", "{name} first saw the light in {born}."),
        "sign": ("{name} rests under a carved {sign}.", "{name} had a seal with a {sign}."),
        "home": ("{name} had a house at {home}.", "{name} lived most years at {home}."),
        "next": ("{name} is the author of {next}.", "{name} is read because of {next}."),
        "previous": ("{name} was victor at {previous}.", "{name} had the day at {previous}."),
    },
    "work": {
        "theme": ("{name} has chapters about {theme}.", "{name} is mostly about {theme}."),
        "made": ("{name} was completed in {made}.", "{name} got its last line in {made}."),
        "sign": ("{name} shows on its cover a {sign}.", "{name} is bound with a golden {sign}."),
        "praise": ("{name} was praised by {praise}.", "{name} was loved by {praise}."),
        "next": ("{name} is on a shelf at {next}.", "{name} stays in the library at {next}."),
        "previous": ("{name} is by the pen of {previous}.", "{name} is the work of {previous}."),
    },
    "place": {
        "river": ("{name} stands by the river {river}.", "{name} drinks the river {river}."),
        "goods": ("{name} is known for {goods}.", "{name} has long sold {goods}."),
        "sign": ("{name} has on its gate a stone {sign}.", "{name} bears in its arms a {sign}."),
        "near": ("{name} is a day from {near}.", "{name} has a road from {near}."),
        "next": ("{name} was the field of {next}.", "{name} heard the swords of {next}."),
        "previous": ("{name} owns a copy of {previous}.", "{name} is proud of {previous}."),
    },
    "event": {
        "prize": ("{name} was fought about {prize}.", "{name} began with {prize}."),
        "year": ("{name} happened in {year}.", "{name} has the date {year}."),
        "sign": ("{name} is marked by a bronze {sign}.", "{name} has as its omen a {sign}."),
        "song": ("{name} is sung in {song}.", "{name} has a verse in {song}."),
        "next": ("{name} brought glory to {next}.", "{name} made the name of {next}."),
        "previous": ("{name} shook the walls of {previous}.", "{name} took place at {previous}."),
    },
}
"""How a passage says an attribute: two wordings, neither of them the article's."""

TOLD: Mapping[str, str] = {
    "person": "{name} was by trade a {trade}, born in {born}, and wrote the book {next}.",
    "work": "{name} is a tale of {theme}, was finished in {made}, and is kept in {next}.",
    "place": "{name} lies on the river {river}, sells {goods}, and saw the battle of {next}.",
    "event": "{name} was fought over {prize} in {year} and was won by the hero {next}.",
}
CLOSING: Mapping[str, str] = {
    "person": "{name} is remembered as the painted {sign}.",
    "work": "{name} is remembered for the painted {sign}.",
    "place": "{name} is remembered by the painted {sign}.",
    "event": "{name} is remembered with the painted {sign}.",
}
OPENING = "Hear of {name}."
BRIDGE = "Now let us hear of {name}."
RETURN = "Now back to where we began, to {name}."
PROMPT = "Tell the story of {name}.\n"

HOP_QUESTIONS: Mapping[str, tuple[str, str, str]] = {
    "person": (
        "Which book did {name} write?\n",
        "Where is the book kept that {name} wrote?\n",
        "Which battle was seen by the place that keeps the book that {name} wrote?\n",
    ),
    "work": (
        "Where is the book {name} kept?\n",
        "Which battle was seen by the place that keeps the book {name}?\n",
        "Who won the battle seen by the place that keeps the book {name}?\n",
    ),
    "place": (
        "Which battle was seen by the place {name}?\n",
        "Who won the battle seen by the place {name}?\n",
        "Which book did the hero write who won the battle seen by the place {name}?\n",
    ),
    "event": (
        "Who won the battle of {name}?\n",
        "Which book did the hero write who won the battle of {name}?\n",
        "Where is the book kept that the hero who won the battle of {name} wrote?\n",
    ),
}
"""Questions by the kind of entity that they name: answered from one, two and three passages."""

SOUGHT: Mapping[str, str] = {
    "person": "the person {name}",
    "work": "the book {name}",
    "place": "the place {name}",
    "event": "the battle of {name}",
}
"""How a search names an entity."""

LINKS: Mapping[str, str] = {
    "person": "The person {name} wrote the book {next}.",
    "work": "The book {name} is kept in {next}.",
    "place": "The place {name} saw the battle of {next}.",
    "event": "The battle of {name} was won by the hero {next}.",
}
"""How an answer that took several passages states what it read in each."""

_ONSETS = (
    *("b", "br", "d", "dr", "f", "g", "gr", "h", "j", "k", "kr", "l", "m"),
    *("n", "p", "r", "s", "sh", "st", "t", "th", "tr", "v", "vr", "z"),
)
_VOWELS = ("a", "a", "e", "e", "i", "i", "o", "o", "u", "u", "ai", "ou")
_CODAS = ("", "", "", "n", "l", "r", "s", "m", "k", "th")
_VALUE = dict.fromkeys(YEARS, r"\d+") | dict.fromkeys(WORDS, "[a-z]+")


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text; `attribute` names the fact that it states, if it states one."""

    text: str
    attribute: str | None = None


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of a text: an attribute of a subject, and its value."""

    subject: str
    attribute: str
    value: str


def pick(rng: Random, options: Sequence[str]) -> str:
    """Draw one option by `rng.random()` alone, whose sequence Python promises never to change."""
    return options[int(rng.random() * len(options))]


def invent_name(rng: Random) -> str:
    """Invent a name of two or three syllables."""
    syllables = 2 + int(rng.random() * 2)
    parts = [pick(rng, _ONSETS) + pick(rng, _VOWELS) for _ in range(syllables)]
    return ("".join(parts) + pick(rng, _CODAS)).capitalize()


def invent_value(rng: Random, attribute: str) -> str:
    """Draw the value of an attribute that is a word, a year or a name of its own."""
    if attribute in WORDS:
        return pick(rng, WORDS[attribute])
    if attribute == "river":
        return invent_name(rng)
    return str(1000 + int(rng.random() * 9000))


def fill(template: str, values: Mapping[str, str]) -> list[Piece]:
    """Fill a template in, keeping apart what states a fact (every field but the name).

    >>> fill("{name} is {sign}.", {"name": "Osk", "sign": "a cat"})[2]
    Piece(text='a cat', attribute='sign')
    """
    pieces = []
    for literal, field, _, _ in Formatter().parse(template):
        pieces.append(Piece(literal))
        if field is not None:
            pieces.append(Piece(values[field], None if field == "name" else field))
    return [piece for piece in pieces if piece.text]


def statements(text: str) -> Iterator[Statement]:
    """Read every statement that an article makes, whether true or not.

    Only whole sentences in the article's wording count: a broken sentence states nothing.

    >>> list(statements("Osk is the painted dog. Osk is remembered as the painted cat."))
    [Statement(subject='Osk', attribute='sign', value='cat')]
    """
    for found in _SENTENCE.finditer(text):
        groups = {key: value for key, value in found.groupdict().items() if value is not None}
        subject = next(value for key, value in groups.items() if key.startswith("name"))
        for key, value in groups.items():
            if not key.startswith("name"):
                yield Statement(subject, key.rstrip("0123456789"), value)


def speaks(text: str) -> bool:
    """Return whether most of a text is of the world's own sentences, in either register.

    >>> speaks("Osk had the trade of a baker. Osk rests under a carved cat."), speaks("A red fox.")
    (True, False)
    """
    return 2 * sum(len(one.group()) for one in _ANY_SENTENCE.finditer(text)) > len(text.strip())


def _pattern(template: str, number: int) -> str:
    """Turn a template into a regular expression; the number keeps its groups' names apart."""
    parts = []
    for literal, field, _, _ in Formatter().parse(template):
        parts.append(re.escape(literal))
        if field is not None:
            parts.append(f"(?P<{field}{number}>{_VALUE.get(field, '[A-Z][a-z]+')})")
    return "".join(parts)


_SENTENCE = re.compile(
    "|".join(_pattern(t, n) for n, t in enumerate([*TOLD.values(), *CLOSING.values()]))
)
_ANY_SENTENCE = re.compile(
    "|".join(
        _pattern(template.strip(), number)
        for number, template in enumerate(
            [
                *(
                    wording
                    for kind in PASSAGE.values()
                    for both in kind.values()
                    for wording in both
                ),
                *(question for kind in HOP_QUESTIONS.values() for question in kind),
                *(*TOLD.values(), *CLOSING.values(), *LINKS.values()),
                *(OPENING, BRIDGE, RETURN, PROMPT),
            ]
        )
    )
)
