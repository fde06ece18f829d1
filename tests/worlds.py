"""Small random worlds: every workload shape, retriever trait and failure that the loop must bear.

Everything in a world follows from its seed by a stable hash, so that a function
of a state is a function. A world's text is made of few letters and its queries
are few, so that texts reconverge, queries repeat, and scores tie.
"""

import contextlib
import functools
import hashlib
import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

from ralmspec_plugins.plain import plain
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import (
    NO_RETRIEVAL,
    Formed,
    Hit,
    Hits,
    NoRetrieval,
    Passage,
    Query,
    Request,
)

END = "."
LETTERS = "abé\N{GRINNING FACE}"
MOST_TOKENS = 6  # that a call is charged with; a letter is a token


class WorldError(Exception):
    """A failure that belongs to the world: it happens whenever the same thing is done."""


def roll(*parts: Any) -> float:
    """Throw a stable die: a number in [0, 1) that only the parts decide."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


class Spelled:
    """A value that is thrown for again and again, with its repr made once."""

    def __init__(self, value: Any) -> None:
        self._repr = repr(value)

    def __repr__(self) -> str:
        return self._repr


@functools.lru_cache(maxsize=1 << 16)
def roll_by_name(seed: int, *names: str) -> float:
    """Throw the same die where only names decide; what was thrown is remembered."""
    return roll(seed, *names)


@dataclass(frozen=True)
class World:
    """The settings of one world; its workload and retriever are made from them."""

    seed: int
    shape: str  # "interval", "written query", "rewrite", "one shot"
    k: int
    passages: int
    queries: int  # how many different queries there can be
    length: int  # letters after which an answer is full
    heeds: float  # share of segments that depend on the passages
    reads_scores: bool
    search_errors: float
    ask_errors: float
    extend_errors: float
    long_passages: float
    stop: str  # "" for none
    encoder: str = "inline"  # "slow": in a worker; "keyed": as well, with keys that are no texts
    encode_lanes: int = 1
    encode_errors: float = 0.0
    dropped_encode_errors: float = 0.0  # share of the texts that the plain loop never encodes
    unretrieved: float = 0.0  # share of steps that need no search
    carries: float = 0.0  # share of queries that are formed with a look-ahead

    def too_long(self, passage: Passage) -> bool:
        """Say whether a passage breaks the writing; such a passage never scores."""
        return roll_by_name(self.seed, "too long", passage.id) < self.long_passages

    @property
    def workload(self) -> "WorldWorkload":
        return CarryingWorkload(self) if self.carries else WorldWorkload(self)

    @functools.cached_property
    def retriever(self) -> "WorldRetriever":
        return WorldRetriever(self)

    @property
    def request(self) -> Request:
        return Request(prompt="go")


@dataclass(frozen=True)
class WorldState:
    """What was written, and what a real model's cache would remember of how."""

    text: str = ""
    rounds: int = 0  # "rewrite": how often the whole answer was written
    front: Hits | None = None  # the passages that the cache stands on
    prefilled_at: int = 0  # the length at which it was last prefilled
    whole: bool = False


class WorldWorkload:
    """Writes letters that depend on the text, the passages, and the cache's history."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.reads_scores = world.reads_scores
        self.inline_query = world.shape != "written query"

    def start(self, request: Request) -> WorldState:
        return WorldState()

    def query(self, state: WorldState) -> Any:
        return self._query(state)

    def _query(self, state: WorldState) -> str | NoRetrieval | None:
        world = self.world
        if state.whole:
            return None
        asked = Spelled(self.query_key(state))
        if roll(world.seed, "ask fails", asked) < world.ask_errors:
            raise WorldError(f"no question after {asked}")
        if roll(world.seed, "unretrieved", asked) < world.unretrieved:
            return NO_RETRIEVAL
        return f"q{int(roll(world.seed, 'query', asked) * world.queries)}"

    def query_key(self, state: WorldState) -> Hashable:
        return state.rounds, state.text[-6:] or "start", state.whole

    def extend(self, state: WorldState, hits: Hits, progress: Progress) -> WorldState:
        return self._extend(state, hits, progress, "")

    def _extend(self, state: WorldState, hits: Hits, progress: Progress, ahead: str) -> WorldState:
        progress.check()
        progress.charge(MOST_TOKENS)
        key = Spelled(self.extend_key(state, hits))
        if roll(self.world.seed, "extend fails", key) < self.world.extend_errors:
            raise WorldError(f"cannot write after {state.text!r}")
        if any(self.world.too_long(hit.passage) for hit in hits):
            raise WorldError(f"{hits[0].passage.id} is too long for the context")
        if self.world.shape == "rewrite":
            return self._rewritten(state, key)
        kept = self._kept(state, hits)
        segment = ahead + self._segment(state, key)
        progress.charge(min(0, len(segment) - MOST_TOKENS))
        for count in range(1, len(segment)):
            partial = self._ended(kept, state.text + segment[:count])
            if not partial.whole:
                progress.report(partial)
        return self._ended(kept, state.text + segment)

    def _kept(self, state: WorldState, hits: Hits) -> WorldState:
        """Note which cache the segment is written with."""
        if state.front == hits:
            return state
        return replace(state, front=hits, prefilled_at=len(state.text))

    def _segment(self, state: WorldState, key: Spelled) -> str:
        """Write 1 to 3 letters, or all that is left in one shot."""
        world = self.world
        heeds = roll(world.seed, "heeds", state.text) < world.heeds
        seen = key if heeds else Spelled(state.text)
        count = world.length if world.shape == "one shot" else 1 + int(roll(seen, "count") * 3)
        letters = ""
        for place in range(count):
            die = roll(world.seed, "letter", seen, place)
            letters += END if die > 0.997 else LETTERS[int(die / 0.997 * len(LETTERS))]
            if letters.endswith(END):
                break
        return letters

    def _rewritten(self, state: WorldState, key: Spelled) -> WorldState:
        text = self._segment(replace(state, text=f"{state.rounds}{state.text}"), key)
        return WorldState(text, state.rounds + 1, whole=state.rounds + 1 >= 4)

    def _ended(self, state: WorldState, text: str) -> WorldState:
        """End at the stop string, at an end inside the segment, or at full length."""
        stop = text.find(self.world.stop) if self.world.stop else -1
        if stop >= 0:
            return replace(state, text=text[:stop], whole=True)
        text = text[: self.world.length]
        whole = text.endswith(END) or len(text) == self.world.length
        return replace(state, text=text, whole=whole)

    def extend_key(self, state: WorldState, hits: Hits) -> Hashable:
        history = state.prefilled_at if state.front == hits else None
        return state.rounds, state.text, hits, history

    def text(self, state: WorldState) -> str:
        return state.text

    def settled(self, state: WorldState) -> str:
        if state.whole:
            return state.text
        if self.world.shape == "rewrite":
            return ""
        return state.text[: len(state.text) - held_back(state.text, self.world.stop)]

    def release(self, state: WorldState) -> None:
        """Nothing is kept."""


class CarryingWorkload(WorldWorkload):
    """Forms queries as a model would: cancelled and reported, with a look-ahead that is kept."""

    def query(self, state: WorldState, progress: Progress) -> Any:
        progress.check()
        asked = self._query(state)
        key = self.query_key(state)
        if asked is None or roll(self.world.seed, "carries", key) >= self.world.carries:
            return asked
        ahead = self._ahead(key)
        progress.charge(len(ahead))
        for count in range(1, len(ahead) + 1):
            partial = self._ended(state, state.text + ahead[:count])
            if not partial.whole and self.world.shape != "rewrite":
                progress.report(partial)
        progress.check()
        return Formed(asked, ahead)

    def _ahead(self, key: Hashable) -> str:
        die = roll(self.world.seed, "ahead", key)
        return LETTERS[int(die * len(LETTERS))] * (1 + int(die * 10) % 2)

    def extend(
        self, state: WorldState, hits: Hits, progress: Progress, carried: str | None = None
    ) -> WorldState:
        return self._extend(state, hits, progress, carried or "")


def held_back(text: str, stop: str) -> int:
    """Count the last letters that may be the beginning of the stop string."""
    most = min(len(stop) - 1, len(text))
    return next((n for n in range(most, 0, -1) if stop.startswith(text[-n:])), 0)


class WorldRetriever:
    """Ranks by a die with few faces, so that scores tie; some queries find nothing, or fail."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.inline_encode = world.encoder == "inline"
        self.encodings = 0
        self.k = world.k
        self.signature = ("world", world)
        # Every third passage is a duplicate in text of the one before it.
        self.passages = [
            Passage(f"p{n}", f"text {n - 1 if n % 3 == 2 else n}") for n in range(world.passages)
        ]
        self.texts = [passage.text for passage in self.passages]
        self._known: dict[str, Hits] = {}  # all passages, ranked, by query

    @property
    def encode_lanes(self) -> int:
        """Some encoders are known to bear several calls after a few."""
        lanes = self.world.encode_lanes
        return 1 if lanes == 5 and self.encodings < 3 else lanes

    def encode(self, text: str) -> Query:
        self.encodings += 1
        if self._fails(text):
            raise WorldError(f"no encoding of {text}")
        if self.world.encoder == "inline":
            return Query(text)
        key = ("key", text) if self.world.encoder == "keyed" else None
        return Query(text, ("of", text), key)

    def _fails(self, text: str) -> bool:
        world, die = self.world, roll(self.world.seed, "encode fails", text)
        if die < max(world.encode_errors, world.dropped_encode_errors):
            return die < world.encode_errors or text not in plainly_encoded(world)
        return False

    def score(self, query: Query, passage: Passage) -> float:
        if self.world.too_long(passage):
            return -1.0
        return float(int(roll_by_name(self.world.seed, "score", query.text, passage.id) * 6))

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        return self.search_wide(queries, self.k)

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        return [self._ranked(query)[:width] for query in queries]

    def _ranked(self, query: Query) -> Hits:
        if self.world.encoder != "inline":
            assert query.encoding == ("of", query.text)
        if roll_by_name(self.world.seed, "search fails", query.text) < self.world.search_errors:
            raise WorldError(f"no search for {query.text}")
        if roll_by_name(self.world.seed, "empty", query.text) < 0.05:
            return ()
        if query.text not in self._known:
            hits = [Hit(passage, self.score(query, passage)) for passage in self.passages]
            hits.sort(key=lambda hit: (-(hit.score or 0.0), hit.passage.id))
            self._known[query.text] = tuple(hits)
        return self._known[query.text]

    def table(self, capacity: int) -> "WorldTable":
        return WorldTable(self, capacity)


@functools.lru_cache(maxsize=64)
def plainly_encoded(world: World) -> frozenset[str]:
    """Give the texts that the plain loop encodes for the world's request."""
    retriever = _NotingRetriever(replace(world, dropped_encode_errors=0.0))
    with contextlib.suppress(WorldError):
        plain(world.workload, retriever, world.request)
    return frozenset(retriever.encoded)


class _NotingRetriever(WorldRetriever):
    """Notes what is encoded."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.encoded: set[str] = set()

    def encode(self, text: str) -> Query:
        self.encoded.add(text)
        return super().encode(text)


class WorldTable:
    """Ranks a pool with the world's metric."""

    def __init__(self, retriever: WorldRetriever, capacity: int) -> None:
        self._retriever = retriever
        self._passages: dict[int, Passage] = {}

    def put(self, slot: int, hit: Hit) -> None:
        self._passages[slot] = hit.passage

    def rank(self, query: Query, slots: Sequence[int], k: int) -> list[tuple[int, float]]:
        ranked = sorted(
            (-self._retriever.score(query, self._passages[slot]), self._passages[slot].id, slot)
            for slot in slots
        )
        return [(slot, -score) for score, _, slot in ranked[:k]]


class Oracle:
    """Guesses right as often as it is told, and is wrong in every way there is otherwise."""

    def __init__(self, world: World, right: float, *, inline: bool, by_text: bool = False) -> None:
        self._retriever = WorldRetriever(replace(world, search_errors=0.0, encoder="inline"))
        self._right = right
        self._encodes = world.encoder != "inline"
        self.inline = inline
        self.by_text = by_text
        self.signature = ("world", world)
        self._asked = 0

    def guess(self, query: Query) -> Hits | None:
        self._asked += 1
        assert self.by_text or not self._encodes or query.encoding is not None
        truth = self._retriever.search([query])[0]
        die = roll("guess", self._asked, query.text)
        if die < self._right:
            return truth
        wrong = int(roll("wrong", self._asked, query.text) * 10)
        if wrong == 0:
            return None
        if wrong == 1:
            raise WorldError("the speculator broke")
        if wrong == 2:  # the right passages, other scores
            return tuple(replace(hit, score=(hit.score or 0.0) + 1.0) for hit in truth)
        if wrong == 3:  # the right ids, another edition of the text
            stale = [replace(hit.passage, text=hit.passage.text + " (old)") for hit in truth]
            return tuple(Hit(passage, 0.0) for passage in stale)
        return tuple(reversed(self._retriever._ranked(query)))[: self._retriever.k]

    def learn(self, query: Query, hits: Hits) -> None:
        if roll("learn", query.text) < 0.05:
            raise WorldError("the speculator broke")


def random_world(seed: int) -> World:
    """Throw the dice for a world; one in five has failures on the true branch."""
    world, dice = simple_world(seed), random.Random(f"effects {seed}")
    errors = (*[0.0] * 13, 0.03, 0.06, 0.1)
    ahead = world.shape in ("interval", "written query")
    return replace(
        world,
        encoder=dice.choice((*["inline"] * 4, *["slow"] * 4, "keyed")),
        encode_lanes=dice.choice((1, 1, 2, 5)),
        encode_errors=dice.choice(errors),
        unretrieved=dice.choice((0.0, 0.0, 0.1, 0.3)),
        carries=dice.choice((0.0, 0.0, 0.3, 0.8)) if ahead else 0.0,
        dropped_encode_errors=dice.choice((0.0, 0.0, 0.0, 0.3, 0.6)),
    )


def simple_world(seed: int) -> World:
    """Throw the dice for a world that encodes in the loop, always searches and carries nothing."""
    dice = random.Random(seed)
    rare = (*[0.0] * 17, 0.02, 0.1)
    passages = dice.choice((1, 6, *[12] * 16))
    shapes = (*["interval"] * 9, *["written query"] * 7, "rewrite", "rewrite", "one shot")
    return World(
        seed=seed,
        shape=dice.choice(shapes),
        k=dice.choice((1, 1, 2, 3)),
        passages=passages,
        queries=dice.choice((3, 20, *[1000] * 10)),
        length=dice.choice((1, 20, *[60] * 16, 100)),
        heeds=dice.choice((0.4, *[1.0] * 5)),
        reads_scores=dice.random() < 0.4,
        search_errors=dice.choice(rare),
        ask_errors=dice.choice(rare),
        extend_errors=dice.choice(rare),
        long_passages=dice.choice((0.0, 0.2, 0.3)) if passages > 6 else 0.0,
        stop=dice.choice((*[""] * 6, "abab", "aaba", "é\N{GRINNING FACE}a")),
    )


# One number makes a world: drawn trait by trait, hypothesis' habit of small and
# repeated values made nine worlds in ten end before anything could go wrong.
worlds = st.integers(0, 2**63).map(random_world)
