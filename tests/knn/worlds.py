"""Small random worlds for KNN-LM: ties, duplicate keys, document ends, wrong guesses.

The model is a function of the last tokens, made of a few small whole numbers, so
that distances tie, keys repeat, and thousands of worlds cost a second each.
"""

import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ralmspec_plugins.knn.datastore import Datastore
from ralmspec_plugins.knn.interpolation import Floats, Mixing
from ralmspec_plugins.knn.search import ExactSearch, Neighbours
from ralmspec_plugins.knn.state import KNNDraft
from ralmspec_plugins.knn.workload import KNNLM
from ralmspec_plugins.lm import text as lm_text
from ralmspec_plugins.lm.sampling import draw
from ralmspec_plugins.lm.state import Draft, DraftOrigin
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Query, Request
from tests.knn import reference
from tests.worlds import WorldError

EOS = 0
LETTERS = ".abcdéfghij"  # the vocabulary, in tokens; the first ends a text
ORDER = 4  # tokens that the model looks at


@dataclass(frozen=True)
class KNNWorld:
    """A datastore, a model, and how they are asked; all of it follows from the seed."""

    seed: int
    k: int
    weight: float
    temperature: float
    sampled: bool
    entries: int
    vocabulary: int
    dimension: int
    spread: int  # a key's numbers are below this: 2 makes nearly all of them tie
    length: int
    stop: str
    held: int | None = None  # bytes that the real search may hold; None is the reference
    reads_scores: bool = True

    @cached_property
    def store(self) -> Datastore:
        """Make documents of 1 to 12 entries, some of their keys being those of others."""
        dice = np.random.default_rng(self.seed)
        keys = dice.integers(0, self.spread, (self.entries, self.dimension)).astype(np.float16)
        keys[dice.random(self.entries) < 0.3] = keys[0]
        ends = np.flatnonzero(dice.random(self.entries) < 0.2) + 1
        ends = np.union1d(ends, [self.entries])
        values = dice.integers(1, self.vocabulary, self.entries)
        values[dice.random(self.entries) < 0.01] = EOS
        return Datastore.of(keys, values, ends)

    @cached_property
    def retriever(self) -> "ExactNeighbours | DrivenSearch":
        """Search it exhaustively, by the reference or by the real search."""
        if self.held is None:
            return ExactNeighbours(self.store, self.k)
        return DrivenSearch(self.store, k=self.k, memory_bytes=self.held)

    @property
    def workload(self) -> KNNLM:
        """Write with the scripted model."""
        return self.workload_of(ScriptedModel(self))

    def workload_of(self, model: "ScriptedModel") -> KNNLM:
        """Write with this model."""
        mixing = Mixing(weight=self.weight, temperature=self.temperature)
        return KNNLM(model, PlainChooser(self.sampled), mixing)

    @property
    def request(self) -> Request:
        """Ask for a text behind a prompt that the seed decides."""
        dice = random.Random(self.seed)
        prompt = "".join(dice.choice(LETTERS[1 : self.vocabulary]) for _ in range(4))
        stop = (self.stop,) if self.stop else ()
        return Request(prompt=prompt, max_tokens=self.length, seed=self.seed, stop=stop)


class PlainChooser:
    """Takes the first most likely token, or draws one."""

    needs_history = False

    def __init__(self, sampled: bool) -> None:
        self._sampled = sampled

    def choose(self, log_probs: Floats, history: Sequence[int], seed: int, position: int) -> int:
        return draw(log_probs, seed, position) if self._sampled else int(log_probs.argmax())


class ScriptedModel:
    """A model without a network: what it says is a table over the last tokens."""

    def __init__(self, world: KNNWorld) -> None:
        self._world = world
        self.passes = 0
        self.released = 0

    def begin(self, request: Request) -> KNNDraft:
        prompt = tuple(LETTERS.index(letter) for letter in request.prompt)
        origin = DraftOrigin(0, (), prompt, request.max_tokens, request.seed, request.stop)
        return self._shown(Draft(origin, lm_text.begin(prompt)))

    def feed(self, state: KNNDraft, token: int, progress: Progress) -> KNNDraft:
        draft = state.draft.grown(token, {EOS}, _decode)
        if draft.finished:
            return KNNDraft(draft)
        progress.check()
        return self._shown(draft)

    def release(self, state: KNNDraft) -> None:
        self.released += 1

    def _shown(self, draft: Draft) -> KNNDraft:
        self.passes += 1
        world = self._world
        last = (draft.prompt_tokens + draft.tokens)[-ORDER:]
        dice = np.random.default_rng([world.seed % 2**63, *last])
        hidden = dice.integers(0, world.spread, world.dimension).astype(np.float32)
        if dice.random() < 0.3:  # between the keys, and not always at the same distance
            hidden += dice.random(world.dimension, dtype=np.float32)
        logits = np.round(dice.normal(scale=1, size=world.vocabulary))  # so that some are equal
        logits[EOS] -= 6  # or texts would end before anything can go wrong
        log_probs = (logits - np.log(np.exp(logits).sum())).astype(np.float32)
        return KNNDraft(draft, hidden, log_probs)


def _decode(tokens: Sequence[int]) -> str:
    return "".join(LETTERS[token] for token in tokens if token != EOS)


class ExactNeighbours:
    """Ranks every entry for each query, by the reference."""

    inline_encode = True

    def __init__(self, store: Datastore, k: int) -> None:
        self._store = store
        self.k = k
        self.signature: Hashable = ("exact", store.signature, k)

    def encode(self, text: Any) -> Query:
        """Give back a query that has its encoding already."""
        assert isinstance(text, Query)
        return text

    def search(self, queries: Sequence[Query]) -> list[Neighbours]:
        return self.search_wide(queries, self.k)

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Neighbours]:
        return [reference.nearest(self._store, query.encoding, width) for query in queries]


class DrivenSearch(ExactSearch):
    """The real search, for a driver that encodes whatever is asked."""

    def encode(self, text: Any) -> Query:
        """Give back a query that has its encoding already."""
        assert isinstance(text, Query)
        return text


class PlainCache:
    """The paper's cache written out plainly: what was retrieved, and what follows it."""

    inline = True

    def __init__(self, store: Datastore, k: int, following: int) -> None:
        self._store = store
        self._k = k
        self._following = following
        self._known: set[int] = set()

    def guess(self, query: Query) -> Neighbours | None:
        if not self._known:
            return None
        ids = np.array(sorted(self._known), dtype=np.int64)
        return reference.ranked(self._store, query.encoding, ids, self._k)

    def learn(self, query: Query, hits: Neighbours) -> None:
        ids = hits.ids.tolist()
        self._known.update(ids, reference.following(self._store, ids, self._following))


class WrongNeighbours:
    """Guesses in every way there is, mostly wrong; never the same way twice."""

    def __init__(self, world: KNNWorld, seed: int, *, inline: bool) -> None:
        self._dice = np.random.default_rng(seed)
        self._world = world
        self.inline = inline

    def guess(self, query: Query) -> Neighbours | None:
        world, kind = self._world, self._dice.integers(0, 8)
        if kind == 0:
            return None
        if kind == 1:
            raise WorldError("the speculator broke")
        truth = world.retriever.search([query])[0]
        if kind == 2:
            return truth
        if kind == 3:  # the right entries, other distances
            return replace(truth, distances=truth.distances + 1.0)
        if kind == 4:  # the right distances, other tokens
            return replace(truth, values=(truth.values + 1) % world.vocabulary)
        ids = np.sort(self._dice.integers(0, world.entries, 1 + world.k % 7))
        return reference.ranked(world.store, query.encoding, np.unique(ids), world.k)

    def learn(self, query: Query, hits: Neighbours) -> None:
        if self._dice.random() < 0.05:
            raise WorldError("the speculator broke")


def random_world(seed: int) -> KNNWorld:
    """Throw the dice for a world."""
    dice = random.Random(seed)
    return KNNWorld(
        seed=seed,
        k=dice.choice((1, 8, 64, 1024)),
        weight=dice.choice((0.1, 0.25, 0.65, 1.0)),
        temperature=dice.choice((0.5, 1.0, 1.0, 10.0)),
        sampled=dice.random() < 0.5,
        entries=dice.choice((1, 7, 60, 200, 200, 200)),
        vocabulary=dice.choice((3, 6, 11, 11, 11)),
        dimension=dice.choice((1, 2, 4, 4)),
        spread=dice.choice((2, 3, 6, 6, 40)),
        length=dice.choice((1, 24, 24, 24)),
        stop=dice.choice(("", "", "", "ab", "éd")),
        held=dice.choice((None, 0, 2**20)),
    )
