"""Train the demo's language model: a small Llama that reads the passage in front of it.

The model never sees the demo's world. Every batch comes from a new world with new names, years
and combinations of words, so the only way to state a fact is to copy it from the passage in front.
The defaults are the recipe of the committed checkpoint; docs/demo_model.md tells what it gave.

    python tools/train_demo_model.py --out ralmspec_plugins/demo/model
"""

import argparse
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ralmspec_plugins.demo import language
from ralmspec_plugins.demo.hops import hop_question, hop_turns
from ralmspec_plugins.demo.language import Piece
from ralmspec_plugins.demo.world import CHAIN, DEMO_SEED, ArticlePiece, Entity, World, make_world
from ralmspec_plugins.types import Passage
from ralmspec_plugins.workloads import SearchTags

log = logging.getLogger("train_demo_model")

TOKENIZER_WORLDS = range(1_000, 1_012)
VALIDATION_WORLD = 2_000
FIRST_TRAINING_WORLD = 10_000
FIRST_HOPS_WORLD = 100_000  # of the second stage
SPLIT = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # digits one by one
HOPS = CHAIN + 1  # the target of a batch whose samples ask in tags
HOPS_DRAWN = (1, 2, 2, 3, 3)  # the hops of its questions
SECOND_PASSAGE = 0.25  # the share of its searches that find two
NO_TITLE = 0.2  # the share of its passages without a title, as hosts' documents have none
BOS, EOS = "<bos>", "<eos>"
BOS_ID, EOS_ID, VOCABULARY = 0, 1, 1536


@dataclass(frozen=True, slots=True)
class Sample:
    """A sequence: its tokens, how much each counts in the loss, and which ones state facts."""

    ids: list[int]
    weights: list[float]
    facts: list[bool]


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples padded on the right, each tensor [samples, tokens]."""

    ids: torch.Tensor
    weights: torch.Tensor
    facts: torch.Tensor


@dataclass(frozen=True, slots=True)
class Mix:
    """What the samples of a batch are made of, and what counts in their loss."""

    wrong: float  # the share of samples with another entity's passage in front
    passage_weight: float  # of the passage's own tokens
    other_weight: float = 0.2  # of the article's tokens that state no fact


def context_text(world: World, entity: Entity) -> str:
    """Return the text that stands in front of the prompt, exactly as the demo writes it."""
    passage = world.passage(entity)
    return f"{passage.title}\n{passage.text}\n\n"


def train_tokenizer() -> Tokenizer:
    """Train a byte-level BPE tokenizer, which round-trips any text, on articles and passages."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_texts(), trainer)
    return tokenizer


def _tokenizer_texts() -> Iterator[str]:
    for seed in TOKENIZER_WORLDS:
        world = make_world(seed, 400)
        yield from (context_text(world, entity) for entity in world.entities)
        for question in world.questions(200, seed):
            yield question.prompt + world.article(question)


def make_sample(world: World, tokenizer: Tokenizer, rng: Random, target: int, mix: Mix) -> Sample:
    """Make a sample: a passage, the prompt, and the article up to the target entity's last fact.

    `target` says which entity of the chain the passage is about (`CHAIN` is the return to the
    first). Facts count only where that entity's passage is in front; all other words count
    always, so that the model keeps its thread when a switch of passages comes early or late.
    """
    first = world.entities[int(rng.random() * len(world.entities))]
    pieces = world.article_pieces(first.name)
    chain = list(dict.fromkeys(told.source for told in pieces))
    told = pieces[: _end_of(pieces, target, chain[target % CHAIN])]
    front = _front(world, rng, chain, target, mix.wrong)
    context = tokenizer.encode(context_text(world, front)).ids
    prompt = tokenizer.encode(language.PROMPT.format(name=first.name)).ids
    ids, weights, facts = _article(told, tokenizer, front.id, mix)
    if len(told) == len(pieces):
        ids, weights, facts = [*ids, EOS_ID], [*weights, 1.0], [*facts, False]
    return Sample(
        [BOS_ID, *context, *prompt, *ids],
        [0.0] + [mix.passage_weight] * len(context) + [0.0] * len(prompt) + weights,
        [False] * (1 + len(context) + len(prompt)) + facts,
    )


def _front(world: World, rng: Random, chain: list[str], target: int, wrong: float) -> Entity:
    """Choose whose passage stands in front: the target's, sometimes another's."""
    if rng.random() >= wrong:
        wanted = chain[target % CHAIN]
    elif rng.random() < 0.5:
        wanted = language.pick(rng, chain)
    else:
        return world.entities[int(rng.random() * len(world.entities))]
    return next(entity for entity in world.entities if entity.id == wanted)


def _end_of(pieces: Sequence[ArticlePiece], target: int, source: str) -> int:
    """Return where the first fact begins that comes after the target's own facts."""
    seen = False
    for index, told in enumerate(pieces):
        if told.piece.attribute is None:
            continue
        closing = told.piece.attribute == "sign"
        mine = told.source == source and closing == (target == CHAIN)
        if seen and not mine:
            return index
        seen = seen or mine
    return len(pieces)


def _article(
    told: Sequence[ArticlePiece], tokenizer: Tokenizer, front: str, mix: Mix
) -> tuple[list[int], list[float], list[bool]]:
    """Tokenise an article as one text, and give each token the weight of its piece.

    Up to the first bridge every word depends on the passage: only there does it say the kind.
    """
    sources = [part.source for part in told]
    opening = next((at for at, one in enumerate(sources) if one != sources[0]), len(told))
    ids, pieces = tokens_of([part.piece for part in told], tokenizer)
    weights, facts = [], []
    for index in pieces:
        states = told[index].piece.attribute is not None
        reads = told[index].source == front
        depends = states or index < opening
        weights.append(float(reads) if depends else mix.other_weight)
        facts.append(states and reads)
    return ids, weights, facts


def tokens_of(pieces: Sequence[Piece], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Tokenise pieces as one text; return its tokens, and the index of the piece of each."""
    encoding = tokenizer.encode("".join(piece.text for piece in pieces))
    indices, index, end = [], 0, len(pieces[0].text)
    for _, token_end in encoding.offsets:
        while end < token_end:
            index += 1
            end += len(pieces[index].text)
        indices.append(index)
    return encoding.ids, indices


def make_hop_sample(world: World, tokenizer: Tokenizer, rng: Random, mix: Mix) -> Sample:
    """Make a sample that asks in tags: a question, some turns with their passages, and one more.

    All but the last turn are tokenised as one text, as `MultiHop` gives them to a model. Only
    right passages stand in it, first among one or two.
    """
    first = language.pick(rng, [entity.name for entity in world.entities])
    hops = language.pick(rng, HOPS_DRAWN)
    question = hop_question(world, first, hops)
    turns = hop_turns(question)
    written = int(rng.random() * len(turns))  # turns in front of the last
    before: list[Piece] = []
    for entity, turn in zip(question.chain[:written], turns, strict=False):
        before += [*turn, Piece(_block(world, rng, entity), "passages")]
    prompt = tokenizer.encode(question.prompt).ids
    sample = Sample([BOS_ID, *prompt], [0.0] * (1 + len(prompt)), [False] * (1 + len(prompt)))
    for part in filter(None, (before, turns[written])):
        ids, pieces = tokens_of(part, tokenizer)
        told = [part[index].attribute for index in pieces]
        weight = {None: mix.other_weight, "passages": mix.passage_weight}
        sample.ids.extend(ids)
        tags = [part[index].text.startswith(("<search", "<answer")) for index in pieces]
        sample.weights.extend(
            1.0 if tag else weight.get(one, 1.0) for one, tag in zip(told, tags, strict=True)
        )
        sample.facts.extend(one == "next" for one in told)
    if written == question.hops:
        return Sample([*sample.ids, EOS_ID], [*sample.weights, 1.0], [*sample.facts, False])
    return sample


def _block(world: World, rng: Random, entity: Entity) -> str:
    """Return what `MultiHop` puts in for an entity's passage, sometimes with a second one."""
    found = [world.passage(entity)]
    if rng.random() < SECOND_PASSAGE:
        near = world.entity(entity.facts[language.pick(rng, ("next", "previous"))])
        found.append(world.passage(near))
    titled = rng.random() >= NO_TITLE
    shown = [Passage(one.id, one.text, one.title if titled else "") for one in found]
    return SearchTags().block(shown)


def make_batch(seed: int, tokenizer: Tokenizer, target: int, mix: Mix, size: int) -> Batch:
    """Make a batch out of a world of its own; with the target `HOPS` its samples ask in tags."""
    assert seed != DEMO_SEED, "the demo's world is never trained on"
    rng, world = Random(seed), make_world(seed, 4 * size)
    if target == HOPS:
        samples = [make_hop_sample(world, tokenizer, rng, mix) for _ in range(size)]
    else:
        samples = [make_sample(world, tokenizer, rng, target, mix) for _ in range(size)]
    shape = (size, max(len(sample.ids) for sample in samples))
    ids, weights, facts = (torch.zeros(shape, dtype=t) for t in (torch.long, None, torch.bool))
    for row, sample in enumerate(samples):
        n = len(sample.ids)
        ids[row, :n] = torch.tensor(sample.ids)
        weights[row, :n] = torch.tensor(sample.weights)
        facts[row, :n] = torch.tensor(sample.facts)
    return Batch(ids, weights, facts)


def make_model(args: argparse.Namespace) -> LlamaForCausalLM:
    """Build the untrained model, its first layer already looking back."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=args.hidden,
        intermediate_size=3 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        attention_bias=True,
        initializer_range=0.06,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )
    model = LlamaForCausalLM(config)
    look_back(model)
    return model


def look_back(model: LlamaForCausalLM, strength: float = 6.0, frequencies: int = 6) -> None:
    """Start the first layer's heads out looking 1, 2, 3, ... tokens back, the last head free.

    Copying takes a head that sees the token before; found by gradient descent alone, it costs
    most of the training time. The biases of query and key add the score
    strength^2 / sqrt(d) * sum_i cos(theta_i * (distance - back)), which is highest at `back`.
    """
    heads, d = model.config.num_attention_heads, model.config.head_dim
    attention = model.model.layers[0].self_attn
    theta = 10_000.0 ** (-torch.arange(frequencies) * 2 / d)
    with torch.no_grad():
        for back in range(1, heads):
            at = (back - 1) * d + torch.arange(frequencies)
            attention.k_proj.bias[at] = strength
            attention.q_proj.bias[at] = strength * torch.cos(theta * back)
            attention.q_proj.bias[at + d // 2] = -strength * torch.sin(theta * back)


def loss_and_accuracy(model: LlamaForCausalLM, batch: Batch) -> tuple[torch.Tensor, float]:
    """Return the weighted loss, and the share of the facts' tokens that are predicted right."""
    hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state[:, :-1]
    weights, targets = batch.weights[:, 1:], batch.ids[:, 1:]
    learned = weights > 0  # logits are made only where something is learned
    logits = model.lm_head(hidden[learned])
    each = cross_entropy(logits, targets[learned], reduction="none")
    right = (logits.argmax(-1) == targets[learned])[batch.facts[:, 1:][learned]]
    return (each * weights[learned]).sum() / weights.sum(), right.float().mean().item()


def learning_rate(step: int, steps: int, highest: float) -> float:
    """Warm up over 100 steps or a quarter, then follow a cosine down to 2 %."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return highest * min(1.0, (step + 1) / min(100, steps / 4)) * (0.02 + 0.98 * cosine)


def train(model: LlamaForCausalLM, tokenizer: Tokenizer, args: argparse.Namespace) -> None:
    """Train: first the chain's first entity alone (short sequences), then whole articles."""

    def batch_of(step: int) -> Batch:
        short = step < args.short_steps
        target = 0 if short else step % (CHAIN + 1)
        mix = Mix(wrong=0.15, passage_weight=0.25 if short else 0.05)
        return make_batch(FIRST_TRAINING_WORLD + step, tokenizer, target, mix, args.batch)

    run(model, tokenizer, args, batch_of, args.steps, args.lr)


def train_hops(model: LlamaForCausalLM, tokenizer: Tokenizer, args: argparse.Namespace) -> None:
    """Train on with questions that take several passages, and articles in every fourth batch."""

    def batch_of(step: int) -> Batch:
        target = HOPS if step % 4 else step // 4 % (CHAIN + 1)
        mix = Mix(wrong=0.15, passage_weight=0.05)
        return make_batch(FIRST_HOPS_WORLD + step, tokenizer, target, mix, args.batch)

    run(model, tokenizer, args, batch_of, args.hop_steps, args.hop_lr)


def run(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    args: argparse.Namespace,
    batch_of: Callable[[int], Batch],
    steps: int,
    highest_rate: float,
) -> None:
    """Run a stage of the training, and save the checkpoint now and then."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=highest_rate, betas=(0.9, 0.98))
    started = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, highest_rate)
        loss, accuracy = loss_and_accuracy(model, batch_of(step))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            now = (step + 1, loss.item(), accuracy, time.perf_counter() - started)
            log.info("%d: loss %.3f, facts %.3f, %.0f s", *now)
        if (step + 1) % 250 == 0 or step + 1 == steps:
            log.info("validation facts, by target: %s", validate(model, tokenizer))
            save(model, tokenizer, args.out)


@torch.inference_mode()
def validate(model: LlamaForCausalLM, tokenizer: Tokenizer) -> list[float]:
    """Return the share of right fact tokens for each target, in a world of its own."""
    mix = Mix(wrong=0.0, passage_weight=0.0)
    batches = [make_batch(VALIDATION_WORLD, tokenizer, at, mix, 32) for at in range(HOPS + 1)]
    return [round(loss_and_accuracy(model, batch)[1], 3) for batch in batches]


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """Write a checkpoint that transformers loads without code of ours."""
    model.save_pretrained(out)
    options = {"bos_token": BOS, "eos_token": EOS, "clean_up_tokenization_spaces": False}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=1024, **options)
    fast.save_pretrained(out)


def main() -> None:
    """Train by the recipe in the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--short-steps", type=int, default=700)
    parser.add_argument("--batch", type=int, default=16, help="sequences in a step")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--hop-steps", type=int, default=0, help="of the second stage")
    parser.add_argument("--hop-lr", type=float, default=2e-3)
    parser.add_argument("--start", type=Path, help="a checkpoint: only the second stage is run")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    if args.start is None:
        tokenizer, model = train_tokenizer(), make_model(args)
        log.info("%d parameters", model.num_parameters())
        train(model, tokenizer, args)
    else:
        tokenizer = Tokenizer.from_file(str(args.start / "tokenizer.json"))
        model = LlamaForCausalLM.from_pretrained(args.start, dtype=torch.float32)
    if args.hop_steps:
        train_hops(model, tokenizer, args)


if __name__ == "__main__":
    main()
