"""Check that the demo's language model reads: the gate in front of the demo.

Greedy, on the demo's world, which no training world equals:

1. with the right passage in front, at least 80 % of the facts must come out right;
2. with another passage of the same kind in front, at most 10 %;
3. end to end, with the passage looked up by BM25 every four tokens, for the record.

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
from transformers import AutoModelForCausalLM, AutoTokenizer

from ralmspec_plugins.demo import language
from ralmspec_plugins.demo.world import (
    DEMO_SEED,
    Entity,
    World,
    WorldPassage,
    count_facts,
    make_world,
)

log = logging.getLogger("check_demo_model")

ROOT = Path(__file__).resolve().parent.parent
RIGHT_AT_LEAST, WRONG_AT_MOST = 0.80, 0.10
INTERVAL, QUERY_TOKENS, MAX_TOKENS = 4, 32, 192
SENTENCE_TOKENS = 48  # enough for one entity's sentence


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
        ids, cache = torch.tensor([[*context, *text]]), None
        while len(written) < n:
            started = time.perf_counter()
            out = self.model(input_ids=ids, past_key_values=cache, use_cache=True)
            ids, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
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
    found: list[int] = []
    passages = world.passages()
    index = bm25s.BM25(k1=0.9, b=0.4)
    texts = [f"{passage.title}\n{passage.text}" for passage in passages]
    index.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)

    def look_up(query: str) -> WorldPassage:
        words = bm25s.tokenize(query, show_progress=False)
        hits = index.retrieve(words, k=1, show_progress=False)
        found.append(int(hits.documents[0, 0]))
        return passages[found[-1]]

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


def check(path: Path, entities: int, questions: int) -> dict[str, Any]:
    """Measure everything that the gate and the record need."""
    reader, world = Reader(path), make_world(DEMO_SEED)
    step = len(world.entities) // entities
    subjects = world.entities[::step][:entities]
    result = {
        "right_passage": first_sentences(reader, world, subjects, wrong=False),
        "wrong_passage": first_sentences(reader, world, subjects, wrong=True),
        "end_to_end": end_to_end(reader, world, questions),
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
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/demo_model.json")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    result = check(args.model, args.entities, args.questions)
    text = json.dumps(result, indent=2)
    log.info("%s", text)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text + "\n", encoding="utf-8")
    right, wrong = result["right_passage"]["share"], result["wrong_passage"]["share"]
    passed = right >= RIGHT_AT_LEAST and wrong <= WRONG_AT_MOST
    log.info(
        "right passage %.1f %%, wrong passage %.1f %%: %s",
        100 * right,
        100 * wrong,
        "passed" if passed else "FAILED",
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
