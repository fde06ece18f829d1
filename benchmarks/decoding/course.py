"""Trains the benchmark's two models: a target of 13.8 million weights, and a small drafter.

    python -m benchmarks.decoding.course --data DATA --cache CACHE

A course that was stopped is gone on with. A training of a few hundred thousand tokens, which is
what two busy cores give in half an hour, does not bring forth heads that copy, as every larger
model has them. So both models *begin* with such heads: they look for where the last tokens stood
earlier, and copy what followed (Olsson et al., 2209.11895). All weights are trained from there.
"""

import json
import math
import re
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.decoding.exercises import sources, training_texts
from benchmarks.harness.inputs import LoadedModel, load_model, vocabulary
from benchmarks.knn.train import Course, learn, token_stream
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.retrieval.storage.files import write_whole

TARGET: Final = (6, 384, 6)  # layers, width, heads: 13.8 million weights
DRAFTER: Final = (2, 128, 4)
COURSE: Final = Course(steps=480, batch=1, window=384, rate=6e-4, half=False, every=40, seed=2311)
DRAFTERS_COURSE: Final = Course(
    steps=600, batch=1, window=384, rate=1e-3, half=False, every=100, seed=2312
)
_EXERCISES: Final = 5000
_VOCABULARY: Final = 8192
_CONTEXT: Final = 2048
_THETA: Final = 1e7  # of the rotary positions: most pairs of a head hardly turn in a text
_STEADY: Final = 1e-3  # radians a position, at most, of pairs that compare tokens
_FAST: Final = 10  # pairs that find a place
_SPREAD: Final = 0.04  # of embeddings of 384 columns; of fewer ones, more
_QUIET: Final = 0.002  # of what else writes into the stream
_SHARP: Final = 2.5  # of comparisons
_POINTED: Final = 9.0  # of looking at a place
_COPIED: Final = 2.5  # weight of a copied token, in embeddings
_WIDE: Final = 0.1  # of all weights of a model whose texts repeat nothing


@dataclass(frozen=True, slots=True)
class Blocks:
    """How the stream is divided: names of tokens, and what stood before.

    Attributes:
        names: the first so many columns are drawn, and tell tokens apart.
        size: of each of the other blocks, a head's width.
        before: blocks of what stood one place before, and two.
    """

    names: int
    size: int
    before: int

    @classmethod
    def of(cls, width: int, heads: int) -> "Blocks":
        """Divide a width: two blocks of tokens before where there is room."""
        before = 2 if heads >= 6 else 1
        return cls(width - before * (width // heads), width // heads, before)

    def start(self, number: int) -> int:
        """Return the first column of a block behind the names."""
        return self.names + number * self.size


def copying_model(layers: int, width: int, heads: int) -> LlamaForCausalLM:
    """Draw a Llama that copies from the beginning.

    Heads of the first layer write the names of the tokens one and two places before into blocks
    of their own. Heads of the second layer compare the last token with the first of these blocks
    at all places, and the one before it with the second; each adds its part of the name that it
    finds to the stream.
    """
    torch.manual_seed(0)
    model = LlamaForCausalLM(_config(layers, width, heads))
    blocks = Blocks.of(width, heads)
    draw = torch.Generator().manual_seed(1)
    square = torch.linalg.qr(torch.randn(blocks.names, blocks.names, generator=draw))[0]
    view = square[: blocks.size]  # [size, names]: for comparisons
    spread = _SPREAD * TARGET[1] / width
    with torch.no_grad():
        inner: Any = model.model
        weights = inner.embed_tokens.weight
        weights.normal_(0.0, spread, generator=draw)
        weights[:, blocks.names :] = 0.0
        for layer in inner.layers:
            layer.self_attn.o_proj.weight.normal_(0.0, _QUIET, generator=draw)
            layer.mlp.down_proj.weight.normal_(0.0, _QUIET, generator=draw)
        first, second = (layer.self_attn for layer in inner.layers[:2])
        for head in range(blocks.before):
            _pass_on(first, head, blocks.size, head + 1)
            _write(first, head, blocks, view, 0, blocks.start(head), spread)
        for head in range(blocks.names // blocks.size):
            _compare(second, head, blocks, view)
            part = torch.eye(blocks.size)
            at = head * blocks.size
            _write(second, head, blocks, part, at, at, spread * _COPIED)
    return model


def _config(layers: int, width: int, heads: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=_CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": _THETA},
        attention_bias=True,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=None,
    )


def _turns(size: int) -> Tensor:
    half = size // 2
    return _THETA ** -(torch.arange(half) / half)


def _pass_on(attention: Any, head: int, size: int, back: int) -> None:
    """Make a head look so many places back."""
    rows = slice(head * size, (head + 1) * size)
    turn = _turns(size)
    shown = (torch.arange(size // 2) < _FAST) * _POINTED
    for one in (attention.q_proj, attention.k_proj):
        one.weight[rows].mul_(0.1)
    attention.q_proj.bias[rows] = torch.cat([shown, torch.zeros(size // 2)])
    attention.k_proj.bias[rows] = torch.cat(
        [shown * torch.cos(turn * back), shown * torch.sin(turn * back)]
    )


def _write(
    attention: Any, head: int, blocks: Blocks, view: Tensor, source: int, to: int, weight: float
) -> None:
    """Make a head read columns through a view, and add them to a block."""
    rows = slice(head * blocks.size, (head + 1) * blocks.size)
    attention.v_proj.weight[rows] = 0.0
    attention.v_proj.weight[rows, source : source + view.shape[1]] = view
    attention.o_proj.weight[:, rows] = 0.0
    attention.o_proj.weight[to : to + blocks.size, rows] = torch.eye(blocks.size) * weight


def _compare(attention: Any, head: int, blocks: Blocks, view: Tensor) -> None:
    """Make a head look at places behind earlier ones of the last token, or of the last two."""
    first, half = head * blocks.size, blocks.size // 2
    steady = [at for at, turn in enumerate(_turns(blocks.size)) if turn < _STEADY]
    places = [*steady, *(at + half for at in steady)]
    for one in (attention.q_proj, attention.k_proj):
        one.weight[first : first + blocks.size] = 0.0
    split = len(places) if blocks.before == 1 else 2 * len(places) // 3
    for number, place in enumerate(places):
        part = (number + 24 * head) % blocks.size  # other heads compare other parts
        asks, has = attention.q_proj.weight[first + place], attention.k_proj.weight[first + place]
        if number < split:  # the last token, and the one before each place
            asks[: blocks.names] = view[part] * _SHARP
            has[blocks.start(0) + part] = _SHARP
        else:  # the one before the last, and the one two before each place
            asks[blocks.start(0) + part] = _SHARP
            has[blocks.start(1) + part] = _SHARP


class TimeIsUpError(Exception):
    """A course is left before its end."""


def trained(
    cache: Path, data: Path, threads: int, minutes: float = math.inf
) -> dict[str, LoadedModel]:
    """Return both models by name, trained before or now; what was begun is gone on with.

    Args:
        cache: the folder of the weights.
        data: the folder of the texts.
        threads: of torch.
        minutes: after which a model is taken as it is.
    """
    torch.set_num_threads(threads)
    tokenizer, stream = _material(cache, data)
    return {
        name: _trained(name, shape, course, cache, stream, tokenizer, minutes)
        for name, shape, course in (
            ("target", TARGET, COURSE),
            ("drafter", DRAFTER, DRAFTERS_COURSE),
        )
    }


def opened(cache: Path) -> dict[str, LoadedModel]:
    """Open both models.

    Raises:
        ConfigError: they were not trained.
    """
    missing = [name for name in ("target", "drafter") if not (cache / name / "model").exists()]
    if missing:
        raise ConfigError(
            f"{cache} has no trained {' and '.join(missing)}; run "
            "`python -m benchmarks.decoding.course` with the same --cache first"
        )
    return {name: load_model(str(cache / name / "model"), ()) for name in ("target", "drafter")}


def drawn(cache: Path) -> LoadedModel:
    """Return a model of the target's shape that was never trained: its texts repeat nothing.

    Its weights are drawn so wide that each token depends on all before it.

    Raises:
        ConfigError: the target, whose tokenizer it takes, was not trained.
    """
    target = opened(cache)["target"]
    config = _config(*TARGET)
    config.tie_word_embeddings, config.initializer_range = False, _WIDE
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    return LoadedModel("drawn", model.train(False), target.tokenizer, target.template)


def _material(cache: Path, data: Path) -> tuple[Any, NDArray[np.int32]]:
    """Return the tokenizer and the tokens to learn from; made once, and kept."""
    place, file = cache / "tokenizer", cache / "stream.npy"
    if not file.exists():
        learned, _ = sources(data)
        texts = list(training_texts(learned, _EXERCISES, COURSE.seed))
        tokenizer = vocabulary([*texts, *learned.articles, *learned.files], _VOCABULARY)
        tokenizer.save_pretrained(place)
        np.save(file, token_stream(texts, tokenizer))
    fast: Any = PreTrainedTokenizerFast  # its methods are untyped
    return fast.from_pretrained(place), np.load(file)


def _trained(
    name: str,
    shape: tuple[int, int, int],
    course: Course,
    cache: Path,
    stream: NDArray[np.int32],
    tokenizer: Any,
    minutes: float,
) -> LoadedModel:
    place = cache / name / "model"
    if place.exists():
        return load_model(str(place), ())
    model: Any = copying_model(*shape)
    began_s = time.perf_counter()
    losses: dict[int, float] = {}

    def told(step: int, loss: float) -> None:
        spent_s = time.perf_counter() - began_s
        losses[step] = loss
        typer.echo(f"{name}: step {step + 1} of {course.steps}, loss {loss:.3f}, {spent_s:.0f} s")
        if spent_s > 60.0 * minutes:
            raise TimeIsUpError

    with suppress(TimeIsUpError):
        learn(model, stream, course, cache / name / "course", told, _factor)
    steps = 1 + max(losses, default=course.steps - 1)
    facts = {
        "course": asdict(course),
        "steps": steps,
        "tokens": steps * course.batch * course.window,
        "last_losses": list(losses.values())[-20:],
    }
    write_whole(cache / name / "facts.json", json.dumps(facts, indent=1).encode())
    fresh = place.with_name("model.new")
    tokenizer.save_pretrained(fresh)
    model.save_pretrained(fresh)
    fresh.rename(place)
    return load_model(str(place), ())


def _factor(name: str) -> float:
    """Return how fast a weight is learned: what holds the copying heads changes slowly."""
    if "embed_tokens" in name:
        return 0.1
    return 0.05 if re.search(r"layers\.[01]\.self_attn", name) else 1.0


def main(
    data: Annotated[Path, typer.Option(help="The folder with *articles.jsonl, *passages.jsonl.")],
    cache: Annotated[Path, typer.Option(help="The folder for the weights.")],
    threads: Annotated[int, typer.Option(min=1)] = 2,
    minutes: Annotated[
        float | None, typer.Option(help="Take each model as it is after so long.")
    ] = None,
) -> None:
    """Train both models, or go on with it: the target takes about 15 minutes of an idle core."""
    limit = math.inf if minutes is None else minutes
    for name, one in trained(cache, data, threads, limit).items():
        typer.echo(f"{name}: {one.parameters:,} weights in {cache / name / 'model'}")


if __name__ == "__main__":
    typer.run(main)
