"""What passes of a large model cost on a device: by rows, by context, and in a fixed shape."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Final

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from benchmarks.gpu.rows import Rows, in_turn
from ralmspec_plugins.decoding.fixed_shape import FixedShapeRunner, probe
from ralmspec_plugins.errors import DeviceMemoryError
from ralmspec_plugins.lm.kv_cache import Last, ModelRunner, Run
from ralmspec_plugins.retrieval.device_memory import within_memory

_TOKEN: Final = 7  # any


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The shape of a Llama whose weights are drawn."""

    name: str
    layers: int
    width: int
    inner: int
    heads: int
    key_value_heads: int
    vocabulary: int


LLAMA_8B: Final = Shape(
    name="Llama-3.1-8B's shape",
    layers=32,
    width=4096,
    inner=14336,
    heads=32,
    key_value_heads=8,
    vocabulary=128_256,
)
SMALL: Final = Shape(
    name="a tiny Llama's shape",
    layers=2,
    width=64,
    inner=128,
    heads=4,
    key_value_heads=2,
    vocabulary=512,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PassSizes:
    """The sizes of a part about passes."""

    shape: Shape = LLAMA_8B
    rows: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
    contexts: tuple[int, ...] = (512, 4096, 16_384)
    fixed_rows: tuple[int, ...] = (8, 16)
    repetitions: int = 15


def drawn_model(shape: Shape, device: torch.device, positions: int) -> Any:
    """Return a model of this shape in bfloat16, whose weights are drawn on the device."""
    config: Any = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=positions,
        bos_token_id=0,
        eos_token_id=None,
    )
    usual = torch.get_default_dtype()
    torch.manual_seed(0)
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(device):
            model = within_memory(
                lambda: LlamaForCausalLM(config),
                f"{device} has no memory left for the weights of {shape.name}",
            )
    finally:
        torch.set_default_dtype(usual)
    return model.train(False)


def run_over(runner: ModelRunner, context: int) -> Run:
    """Return a run whose cache has so many columns of random keys and values.

    What a pass costs depends on their number alone, and reading so many tokens takes long.
    """
    config = runner.model.config
    cache: Any = DynamicCache(config=config)
    head = config.hidden_size // config.num_attention_heads
    shape = 1, config.num_key_value_heads, context, head
    for layer in range(config.num_hidden_layers):
        states = torch.randn(shape, dtype=runner.model.dtype, device=runner.device)
        cache.update(states, states, layer)
    logits = torch.zeros((1, config.vocab_size), device=runner.device)
    return Run(cache, [_TOKEN] * context, Last(logits, None))


def one_pass(runner: ModelRunner, run: Run, rows: int) -> None:
    """Read so many rows, choose their tokens, and keep one row: what a verification does."""
    if rows == 1:
        runner.feed(run, _TOKEN)
        run.logits.argmax().item()
        return
    read = runner.read_rows(run, [_TOKEN] * rows, range(-1, rows - 1))
    read.logits.argmax(dim=-1).tolist()
    runner.keep_rows(run, read, (0,))


def passes(rows: Rows, part: str, sizes: PassSizes) -> None:
    """Measure c(k) over caches of several lengths, in a fixed shape, and whether rows differ."""
    names = [f"{part}: context {context}" for context in sizes.contexts]
    names += [f"{part}: {wide} rows of a fixed shape" for wide in sizes.fixed_rows]
    if rows.complete(names):
        return
    with _model(sizes, rows.device) as model:
        for context in sizes.contexts:
            rows.of(f"{part}: context {context}", partial(_curve, model, context, sizes))
        for wide in sizes.fixed_rows:
            name = f"{part}: {wide} rows of a fixed shape"
            rows.of(name, partial(_fixed, model, wide, sizes))


@contextmanager
def _model(sizes: PassSizes, device: torch.device) -> Iterator[Any]:
    room = max(sizes.rows) * 64
    model = drawn_model(sizes.shape, device, max(sizes.contexts) + room)
    yield model
    del model
    gc.collect()
    torch.cuda.empty_cache()


def _curve(model: Any, context: int, sizes: PassSizes) -> dict[str, Any]:
    """Time passes of each number of rows over one cache, in turn."""
    about = {"model": sizes.shape.name, "dtype": str(model.dtype), "context": context}
    runner = ModelRunner(model, 0)
    try:
        run = within_memory(
            partial(run_over, runner, context), f"no memory is left for a cache of {context} tokens"
        )
        calls = {str(count): partial(one_pass, runner, run, count) for count in sizes.rows}
        times = in_turn(calls, sizes.repetitions, runner.device)
    except DeviceMemoryError as full:
        return {**about, "left_out": str(full)}
    least = {count: min(took) for count, took in times.items()}
    costs = {count: round(ms / least["1"], 3) for count, ms in least.items()}
    return {**about, "ms": times, "least_ms": least, "c": costs}


def _fixed(model: Any, wide: int, sizes: PassSizes) -> dict[str, Any]:
    """Time passes of a fixed shape beside ordinary ones, and count rows that depend on others."""
    plain = ModelRunner(model, 0)
    fixed = FixedShapeRunner(model, 0, rows=wide)
    runs = {"one row": (plain, plain.start([_TOKEN] * 64)), "fixed": (fixed, fixed.start([_TOKEN]))}
    calls = {name: partial(one_pass, *pair, 1) for name, pair in runs.items()}
    times = in_turn(calls, sizes.repetitions, plain.device)
    differing = probe(fixed, sizes.shape.vocabulary, rounds=1)
    cost = median(times["fixed"]) / median(times["one row"])
    return {
        "model": sizes.shape.name,
        "ms": times,
        "cost": round(cost, 3),
        "rows_that_differ": differing,
    }
