"""Check that the demo's language model reads: the gate in front of the demo.

Greedy, on the demo's world, which no training world equals:

1. with the right passage in front, at least 80 % of the facts must come out right;
2. with another passage of the same kind in front, at most 10 %;
3. end to end, with the passage looked up by BM25 every four tokens, for the record;
4. with `--hop-questions`, questions that take two or three passages, asked for in tags: at least
   80 % right with the right passages, at most 10 % with others of the same kinds.

    python tools/check_demo_model.py

Writes benchmarks/results/demo_model.json; exits with 1 below the gate.
"""

import argparse
import json
import logging
import platform
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import bm25s
import tokenizers
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from ralmspec_plugins import plain
from ralmspec_plugins.demo import language
from ralmspec_plugins.demo.hops import count_hops, hop_questions
from ralmspec_plugins.demo.world import (
    DEMO_SEED,
    Entity,
    World,
    WorldPassage,
    count_facts,
    make_world,
)
from ralmspec_plugins.lm import HuggingFaceLM
from ralmspec_plugins.lm.kv_cache import cache_argument
from ralmspec_plugins.types import Hit, Hits, Passage, Query, Request
from ralmspec_plugins.workloads import MultiHop

log = logging.getLogger("check_demo_model")

ROOT = Path(__file__).resolve().parent.parent
RIGHT_AT_LEAST, WRONG_AT_MOST = 0.80, 0.10
INTERVAL, QUERY_TOKENS, MAX_TOKENS = 4, 32, 192
SENTENCE_TOKENS = 48  # enough for one entity's sentence
TURN_TOKENS = 64  # enough for one turn of an answer


class Reader:
    """The model and its tokenizer, writing on greedily with one passage in front."""

    def __init__(self, path: Path) -> None:
        """Load a checkpoint in float32."""
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self.model.requires_grad_(False)
        self.decode_s: list[float] = []

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def context(self, passage: WorldPassage) -> list[int]:
        """Return what stands in front of the prompt."""
        text = f"{passage.title}\n{passage.text}\n\n"
        return [self.tokenizer.bos_token_id, *self.encode(text)]

    @torch.inference_mode()
    def write(self, context: Sequence[int], text: Sequence[int], n: int) -> list[int]:
        """Write up to `n` tokens after context and text; stop behind the end token."""
        written: list[int] = []
        ids, cache = torch.tensor([[*context, *text]]), DynamicCache(config=self.model.config)
        given = {cache_argument(self.model): cache}
        while len(written) < n:
            started = time.perf_counter()
            ids = self.model(input_ids=ids, use_cache=True, **given).logits[:, -1:].argmax(-1)
            if written:  # the first call is the prefill
                self.decode_s.append(time.perf_counter() - started)
            written.append(int(ids))
            if written[-1] == self.tokenizer.eos_token_id:
                break
        return written

    def answer(self, prompt: str, look_up: Callable[[str], WorldPassage]) -> str:
        """Answer a prompt by the plain loop: look a passage up every four tokens."""
        written: list[int] = []
        text = self.encode(prompt)
        while len(written) < MAX_TOKENS:
            query = self.decode([*text, *written][-QUERY_TOKENS:])
            context = self.context(look_up(query))
            written += self.write(context, [*text, *written], INTERVAL)
            if written[-1] == self.tokenizer.eos_token_id:
                break
        return self.decode(written)


def first_sentences(
    reader: Reader, world: World, subjects: Sequence[Entity], wrong: bool
) -> dict[str, float]:
    """Count right facts in the first entity's sentence, with one passage in front throughout."""
    rng, right, asked, stated = Random("check"), 0, 0, 0
    for entity in subjects:
        passage = world.passage(_another(rng, world, entity) if wrong else entity)
        question = world.question(entity.name)
        prompt = reader.encode(question.prompt)
        tokens = reader.write(reader.context(passage), prompt, SENTENCE_TOKENS)
        facts = set(question.facts[:3])
        told = set(language.statements(reader.decode(tokens)))
        told = {one for one in told if one.subject == entity.name and one.attribute != "sign"}
        right += len(told & facts)
        stated += len(told)
        asked += len(facts)
    return {"right": right, "asked": asked, "stated": stated, "share": right / asked}


def _another(rng: Random, world: World, entity: Entity) -> Entity:
    """Draw another entity of the same kind."""
    others = [one for one in world.entities if one.kind == entity.kind and one != entity]
    return others[int(rng.random() * len(others))]


def end_to_end(reader: Reader, world: World, questions: int) -> dict[str, Any]:
    """Answer questions by the plain loop over BM25, and count."""
    found: list[str] = []
    best = by_words(world)

    def look_up(query: str) -> WorldPassage:
        passage = best(query)
        found.append(passage.id)
        return passage

    right = asked = true = stated = 0
    texts = []
    for question in world.questions(questions, seed=0):
        texts.append(question.prompt + reader.answer(question.prompt, look_up))
        count = count_facts(texts[-1], question, world)
        right, asked = right + count.right, asked + count.asked
        true, stated = true + count.true, stated + count.stated
    return {
        "right": right,
        "asked": asked,
        "share": right / asked,
        "true": true,
        "stated": stated,
        "steps": len(found),
        "switches": sum(a != b for a, b in pairwise(found)) - questions + 1,
        "example": texts[0],
    }


def by_words(world: World) -> Callable[[str], WorldPassage]:
    """Return a function that gives the best passage for a query, by BM25."""
    passages = world.passages()
    index = bm25s.BM25(k1=0.9, b=0.4)
    texts = [f"{passage.title}\n{passage.text}" for passage in passages]
    index.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)

    def best(query: str) -> WorldPassage:
        words = bm25s.tokenize(query, show_progress=False)
        hits = index.retrieve(words, k=1, show_progress=False)
        return passages[int(hits.documents[0, 0])]

    return best


def by_name(world: World, *, wrong: bool) -> Callable[[str], WorldPassage]:
    """Return a function that gives the passage of the last name in a query, or a wrong one.

    A query without a name of this world gets the first passage.
    """
    rng = Random("hops")

    def named(query: str) -> WorldPassage:
        name = query.split()[-1] if query.split() else ""
        try:
            entity = world.entity(name)
        except KeyError:
            return world.passage(world.entities[0])
        return world.passage(_another(rng, world, entity) if wrong else entity)

    return named


class LookUp:
    """A retriever of one passage."""

    inline_encode = True
    k = 1

    def __init__(self, best: Callable[[str], WorldPassage]) -> None:
        """Find what this function returns."""
        self.best = best
        self.signature = id(best)

    def encode(self, text: str) -> Query:
        """Return the query of a text."""
        return Query(text)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """Return the passage for each query."""
        found = [self.best(query.text) for query in queries]
        return [(Hit(Passage(one.id, one.text, one.title), 1.0),) for one in found]


def hop_answers(
    lm: Any, world: World, best: Callable[[str], WorldPassage], hops: int, questions: int
) -> dict[str, Any]:
    """Answer questions of so many hops by the plain loop, and count right answers and links."""
    workload, store = MultiHop(lm, max_hops=hops), LookUp(best)
    right = links = asked = 0
    example = ""
    for question in hop_questions(world, questions, hops, seed=0):
        answer = plain(workload, store, Request(prompt=question.prompt, max_tokens=TURN_TOKENS))
        count = count_hops(answer.text, question)
        right, links, asked = right + count.answered, links + count.right, asked + count.asked
        example = example or question.prompt + answer.text
    return {
        "right": right,
        "asked": questions,
        "share": right / questions,
        "links_right": links,
        "links": asked,
        "example": example,
    }


def all_hops(path: Path, world: World, questions: int) -> dict[str, Any]:
    """Answer questions of two and three hops with right, wrong and looked-up passages."""
    lm = HuggingFaceLM.from_pretrained(str(path))
    ways = {
        "right_passages": by_name(world, wrong=False),
        "wrong_passages": by_name(world, wrong=True),
        "bm25": by_words(world),
    }
    return {
        f"{hops}_hops": {
            name: hop_answers(lm, world, best, hops, questions) for name, best in ways.items()
        }
        for hops in (2, 3)
    }


def check(path: Path, entities: int, questions: int, hop_count: int) -> dict[str, Any]:
    """Measure everything that the gate and the record need."""
    reader, world = Reader(path), make_world(DEMO_SEED)
    step = len(world.entities) // entities
    subjects = world.entities[::step][:entities]
    result = {
        "right_passage": first_sentences(reader, world, subjects, wrong=False),
        "wrong_passage": first_sentences(reader, world, subjects, wrong=True),
        "end_to_end": end_to_end(reader, world, questions),
        "hops": all_hops(path, world, hop_count) if hop_count else {},
    }
    times = sorted(reader.decode_s)
    return result | {
        "token_ms_median": round(1000 * times[len(times) // 2], 3),
        "parameters": reader.model.num_parameters(),
        "bytes": sum(file.stat().st_size for file in path.iterdir()),
        "world_seed": DEMO_SEED,
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, tokenizers, bm25s)},
    }


def main() -> int:
    """Run the check, record it, and say whether the model passes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, default=ROOT / "ralmspec_plugins/demo/model")
    parser.add_argument("--entities", type=int, default=200, help="three facts are asked of each")
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--hop-questions", type=int, default=0, help="of each length")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/demo_model.json")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    result = check(args.model, args.entities, args.questions, args.hop_questions)
    text = json.dumps(result, indent=2)
    log.info("%s", text)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text + "\n", encoding="utf-8")
    gates = {"one passage": (result["right_passage"], result["wrong_passage"])}
    for name, ways in result["hops"].items():
        gates[name] = ways["right_passages"], ways["wrong_passages"]
    passed = [passes(name, *shares) for name, shares in gates.items()]
    return 0 if all(passed) else 1


def passes(name: str, right: dict[str, Any], wrong: dict[str, Any]) -> bool:
    """Say whether the shares of right answers pass the gate."""
    passed = right["share"] >= RIGHT_AT_LEAST and wrong["share"] <= WRONG_AT_MOST
    shares = 100 * right["share"], 100 * wrong["share"]
    said = "passed" if passed else "FAILED"
    log.info("%s: right passages %.1f %%, wrong ones %.1f %%: %s", name, *shares, said)
    return bool(passed)


if __name__ == "__main__":
    sys.exit(main())
