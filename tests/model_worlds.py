"""Small random worlds of workloads over a model: FLARE, Iter-RetGen, multi-hop.

The model writes tokens by a stable die over the text, the passages in front and the history of
its cache: pieces of sentences, of tags, of stop strings. So sentences are sure and unsure, tags
come in pieces, are left open and hold stop strings, and guesses that are wrong change what is
asked later.
"""

import math
import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

from ralmspec_plugins.lm.text import sentence_end, settled_length, stop_at, stop_position
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Hits, Passage, Request, TokenLogprob
from ralmspec_plugins.workloads import Flare, IterRetGen, MultiHop
from ralmspec_plugins.workloads.multi_hop import HopStyle
from tests.worlds import World, WorldError, roll

KINDS = ("flare", "iter_retgen", "multi_hop")
STYLES: tuple[HopStyle, ...] = ("search_r1", "ircot", "self_ask")
_WORDS = ("a", "b", "ab", " a", " b", "é", " x")
_SENTENCES = (*_WORDS * 2, " a", " b", " x", *[". "] * 2, *["."] * 5, " 3.5", "!")
# What is written in each style where nothing is asked, and where a question was begun.
_STYLED: dict[HopStyle, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "search_r1": (
        "<search>",
        (*_WORDS, *["<search>"] * 8, "<answer>", "</answer>", "</search>"),
        (*_WORDS, *["</search>"] * 6, "<search>", "</answer>"),
    ),
    "ircot": (" answer is:", (*_WORDS * 3, *[". "] * 6, ".", *[" answer is:"] * 2), _SENTENCES),
    "self_ask": (
        "Follow up:",
        (*_WORDS, *["Follow up:"] * 8, "#", "So the final answer is:"),
        (*_WORDS, *["Intermediate answer:"] * 5, "#", "\n", "Context:", "Follow up:"),
    ),
}


@dataclass(frozen=True)
class ModelWorld(World):
    """A world whose workload is one of the library's, over a model."""

    kind: str = "flare"
    style: HopStyle = "search_r1"
    sure: float = 0.5  # share of tokens that the model is sure of
    theta: float = 0.8
    beta: float = 0.4
    query_by: Any = "masking"
    keep_unchanged: bool = True
    rounds: int = 3  # iterations, or hops
    question_first: bool = False
    answer_only: bool = False
    says_stop: bool = True  # whether the model says which stop string ended it
    resumes: bool = True  # whether it begins behind a text

    def tokens_behind(self, text: str) -> tuple[str, ...]:
        if self.kind != "multi_hop":
            return _SENTENCES
        opening, outside, inside = _STYLED[self.style]
        return inside if opening in text else outside

    @property
    def lm(self) -> "WorldLM":
        kinds: dict[tuple[bool, bool], type[WorldLM]] = {
            (False, False): WorldLM,
            (True, False): StoppingLM,
            (False, True): ResumingLM,
            (True, True): WholeLM,
        }
        return kinds[self.says_stop, self.resumes](self)

    @property
    def workload(self) -> Any:
        if self.kind == "flare":
            return Flare(
                self.lm,
                theta=self.theta,
                beta=self.beta,
                look_ahead=8,
                query_by=self.query_by,
                question_tokens=3,
                keep_unchanged=self.keep_unchanged,
            )
        if self.kind == "iter_retgen":
            return IterRetGen(
                self.lm,
                iterations=self.rounds,
                query_order="question_first" if self.question_first else "answer_first",
                keep_unchanged=self.keep_unchanged,
            )
        return MultiHop(
            self.lm, hops=self.style, max_hops=self.rounds, answer_only=self.answer_only
        )

    @property
    def request(self) -> Request:
        return Request(prompt="go", max_tokens=self.length, stop=(self.stop,) if self.stop else ())


@dataclass(frozen=True)
class WorldDraft:
    """What was written, and what a real model's cache would remember of how."""

    prompt: str
    stop: tuple[str, ...]
    seed: int
    max_tokens: int
    tokens: tuple[TokenLogprob, ...] = ()
    front: tuple[tuple[str, str], ...] | None = None  # passages that the cache stands on
    prefilled_at: int = 0
    cut: str | None = None  # the text, where a stop string was cut off
    stopped_by: str = ""
    finished: bool = False

    @property
    def text(self) -> str:
        return "".join(one.text for one in self.tokens) if self.cut is None else self.cut


class WorldLM:
    """Writes what the dice say."""

    def __init__(self, world: ModelWorld) -> None:
        self.world = world
        self.reads_scores = False

    def begin(self, request: Request) -> WorldDraft:
        return WorldDraft(request.prompt, request.stop, request.seed, request.max_tokens)

    def scored(self, thresholds: Sequence[float]) -> "WorldLM":
        assert all(thresholds)
        return self

    def logprobs(self, draft: WorldDraft) -> tuple[TokenLogprob, ...]:
        return draft.tokens

    def write(
        self, draft: WorldDraft, passages: Sequence[Passage], tokens: int, progress: Progress
    ) -> WorldDraft:
        return self._write(draft, passages, tokens, progress)[0]

    def write_sentence(
        self, draft: WorldDraft, passages: Sequence[Passage], tokens: int, progress: Progress
    ) -> WorldDraft:
        return self._write(draft, passages, tokens, progress, sentence=True)[0]

    def write_one_sentence(
        self, draft: WorldDraft, passages: Sequence[Passage], tokens: int, progress: Progress
    ) -> WorldDraft:
        return self._write(draft, passages, tokens, progress, sentence=True)[1]

    def _write(
        self,
        draft: WorldDraft,
        passages: Sequence[Passage],
        tokens: int,
        progress: Progress,
        *,
        sentence: bool = False,
    ) -> tuple[WorldDraft, WorldDraft]:
        """Return the draft with the token that shows the end of a sentence, and without."""
        progress.check()
        if draft.finished:
            return draft, draft
        draft = self._placed(draft, passages)
        key = self.write_key(draft, passages, tokens)
        if roll(self.world.seed, "extend fails", key) < self.world.extend_errors:
            raise WorldError(f"cannot write after {draft.text!r}")
        if any(self.world.too_long(passage) for passage in passages):
            raise WorldError(f"{passages[0].id} is too long for the context")
        start, alone = len(draft.text), draft
        for _ in range(min(tokens, draft.max_tokens - len(draft.tokens))):
            draft = _grown(self.world, draft)
            progress.report(draft)
            end = sentence_end(draft.text, start) if sentence else None
            if end is None or len(alone.text) < end:
                alone = draft
            if draft.finished or end is not None:
                break
        return draft, alone

    def _placed(self, draft: WorldDraft, passages: Sequence[Passage]) -> WorldDraft:
        front = tuple((passage.id, passage.text) for passage in passages)
        if front == draft.front:
            return draft
        return replace(draft, front=front, prefilled_at=len(draft.tokens))

    def finished(self, draft: WorldDraft) -> bool:
        return draft.finished

    def tail(self, draft: WorldDraft, tokens: int) -> str:
        return draft.text[-tokens:]

    def text(self, draft: WorldDraft) -> str:
        return draft.text

    def settled(self, draft: WorldDraft) -> str:
        text = draft.text
        return text if draft.finished else text[: settled_length(text, draft.stop)]

    def text_key(self, draft: WorldDraft) -> Hashable:
        return draft.prompt, draft.tokens, draft.finished

    def write_key(self, draft: WorldDraft, passages: Sequence[Passage], tokens: int) -> Hashable:
        return self._placed(draft, passages), tokens

    def release(self, draft: WorldDraft) -> None:
        """Nothing is kept."""


def _grown(world: ModelWorld, draft: WorldDraft) -> WorldDraft:
    key = world.seed, draft
    if key not in _KNOWN:
        if len(_KNOWN) > 100_000:
            _KNOWN.clear()
        _KNOWN[key] = _thrown(world, draft)
    return _KNOWN[key]


_KNOWN: dict[tuple[int, "WorldDraft"], "WorldDraft"] = {}


def _thrown(world: ModelWorld, draft: WorldDraft) -> WorldDraft:
    """Throw the dice for the next token."""
    before = draft.text
    seen: tuple[Any, ...] = (draft.prompt, draft.seed, before)
    if roll(world.seed, "heeds", before) < world.heeds:
        seen = (*seen, draft.front, draft.prefilled_at)
    tokens = world.tokens_behind(before)
    token = tokens[int(roll(world.seed, "token", *seen) * len(tokens))]
    if len(token) > 3 and roll(world.seed, "whole", before) < 0.5:  # the rest comes next
        token = token[: len(token) // 2]
    for whole in tokens:
        half = whole[: len(whole) // 2]
        if len(whole) > 3 and before.endswith(half) and not before.endswith(whole):
            token = whole[len(half) :] if roll(world.seed, "rest", *seen) < 0.9 else token
    die = roll(world.seed, "probability", *seen)
    sure = roll(world.seed, "sure", before[-8:]) < world.sure
    logprob = math.log(0.81 + 0.18 * die if sure else 0.01 + 0.98 * die)
    grown = replace(draft, tokens=(*draft.tokens, TokenLogprob(token, logprob)))
    ended = roll(world.seed, "ends", *seen) < 0.01 or len(grown.tokens) == draft.max_tokens
    stop = stop_position(grown.text, len(before), draft.stop)
    if stop is None:
        return replace(grown, finished=ended)
    by = stop_at(grown.text, stop, draft.stop)
    return replace(grown, cut=grown.text[:stop], stopped_by=by, finished=True)


class StoppingLM(WorldLM):
    """Says which stop string ended a text."""

    def stop_of(self, draft: WorldDraft) -> str:
        return draft.stopped_by


class ResumingLM(WorldLM):
    """Begins behind a text."""

    def resume(self, draft: WorldDraft, request: Request, text: str) -> WorldDraft:
        return self.begin(replace(request, prompt=f"{request.prompt}|{text}"))


class WholeLM(StoppingLM, ResumingLM):
    """Does both."""


def random_model_world(seed: int) -> ModelWorld:
    """Throw the dice for a world; one in five has failures on the true branch."""
    dice = random.Random(f"models {seed}")
    kind = dice.choice(KINDS)
    passages = dice.choice((1, 6, *[12] * 16))
    rare = (*[0.0] * 15, 0.02, 0.1)
    return ModelWorld(
        seed=seed,
        shape="interval",
        k=dice.choice((1, 1, 2, 3)),
        passages=passages,
        queries=0,
        length=dice.choice((1, *[24] * 4, 40)) if kind != "flare" else dice.choice((20, 40, 60)),
        heeds=dice.choice((0.05, 0.4, *[1.0] * 3)),
        reads_scores=False,
        search_errors=dice.choice(rare),
        ask_errors=0.0,
        extend_errors=dice.choice(rare),
        long_passages=dice.choice((0.0, 0.0, 0.2)) if passages > 6 else 0.0,
        stop=dice.choice((*[""] * 4, "abab", "b a", "ab", "éb")),
        encoder=dice.choice(("inline", "inline", "slow", "keyed")),
        encode_lanes=dice.choice((1, 2)),
        encode_errors=dice.choice(rare),
        unretrieved=1.0,
        dropped_encode_errors=dice.choice((0.0, 0.0, 0.0, 0.3)),
        kind=kind,
        style=dice.choice(STYLES),
        sure=dice.choice((0.5, 0.8, 0.95, 1.0)),
        theta=dice.choice((0.8, 0.8, 0.8, 0.8, 0.0, 1.0)),
        beta=dice.choice((0.4, 0.4, 0.4, 0.0, 1.0)),
        query_by=dice.choice(("masking", "masking", "question")),
        keep_unchanged=dice.random() < 0.8,
        rounds=dice.choice((1, 3, 3, 5)) if kind == "iter_retgen" else dice.choice((1, 2, 5, 5, 8)),
        question_first=dice.random() < 0.5,
        answer_only=dice.random() < 0.2,
        says_stop=dice.random() < 0.7,
        resumes=dice.random() < 0.7,
    )


model_worlds = st.integers(0, 2**63).map(random_model_world)


def features(world: ModelWorld) -> set[str]:
    """Give what happens when the plain loop answers, by the workload's own states."""
    workload, retriever, seen = world.workload, world.retriever, set[str]()
    try:
        state = workload.start(world.request)
        while True:
            formed = workload.query(state)
            query, carried = getattr(formed, "query", formed), getattr(formed, "carried", None)
            if query is None:
                break
            hits: Hits = ()
            if isinstance(query, str):
                found = retriever.search([retriever.encode(query)])[0]
                hits = tuple(hit.unscored() for hit in found)
            seen |= _of_step(state, query, carried, hits)
            given = {} if carried is None else {"carried": carried}
            state = workload.extend(state, hits, Progress(), **given)
        seen |= _of_end(world, state)
    except WorldError:
        seen.add("error")
    return seen


def _of_step(state: Any, query: Any, carried: Any, hits: Hits) -> set[str]:
    seen = set()
    if carried is not None:
        seen.add("sure sentence" if carried.sure else "unsure sentence")
        if carried.sure and any(math.exp(one.logprob) <= 0.8 for one in carried.draft.tokens[-1:]):
            seen.add("empty query")
    last = getattr(state, "hits", None)
    if isinstance(query, str) and last is not None:
        seen.add("passages unchanged" if tuple(last) == hits else "rewritten")
    if getattr(state, "query", None) == "":
        seen.add("empty query")
    if getattr(state, "turns", 0) and isinstance(query, str):
        seen.add("hop")
    return seen


def _of_end(world: ModelWorld, state: Any) -> set[str]:
    if world.kind != "multi_hop" or world.style != "search_r1" or not state.ended:
        return set()
    written = state.written
    if written.rfind("<search>") <= written.rfind("</search>"):
        return {"answer tag"} if written.endswith("</answer>") else set()
    return {
        "stop string in a tag" if state.draft.stopped_by == world.stop != "" else "unclosed tag"
    }
