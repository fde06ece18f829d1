"""Trains a model briefly on a datastore's texts: seeded, checkpointed, gone on with after a stop.

A course that was stopped and gone on with ends with the weights of one that never was.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.knn.perplexity import windows
from ralmspec_plugins.lm.prompts import encode
from ralmspec_plugins.retrieval.storage.files import write_whole

_CHECKPOINT: Final = "course.safetensors"
_MODEL, _FIRST, _SECOND = "model.", "first.", "second."  # of the checkpoint's names
_PROGRESS: Final = "progress"
Draw = Callable[[int], Mapping[str, Tensor]]  # returns the model's inputs of a step


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How a model is trained."""

    steps: int = 700
    batch: int = 8  # windows in a step
    window: int = 256  # tokens in a window
    rate: float = 1.5e-3  # of learning, at its height
    warm_up: float = 0.05  # of the steps
    decay: float = 0.1  # of weights
    seed: int = 0
    every: int = 50  # steps between two checkpoints
    half: bool = True  # multiply in bfloat16

    def __post_init__(self) -> None:
        """Refuse what teaches nothing."""
        for name in ("steps", "batch", "window", "every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def tokens(self) -> int:
        """How many tokens are read."""
        return self.steps * self.batch * self.window

    def rate_at(self, step: int) -> float:
        """Give the rate of a step: up in a line, then down to a tenth in half a cosine.

        >>> course = Course(steps=100, warm_up=0.1, rate=1.0)
        >>> [round(course.rate_at(step), 2) for step in (0, 9, 55, 99)]
        [0.1, 1.0, 0.53, 0.1]
        """
        rising = max(1, round(self.steps * self.warm_up))
        if step < rising:
            return self.rate * (step + 1) / rising
        share = (step + 1 - rising) / max(1, self.steps - rising)
        return self.rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share)))


@dataclass(slots=True)
class Learned:
    """How far a course has come: the loss of each step, and the seconds that they took."""

    losses: list[float]
    seconds: float


def token_stream(texts: Sequence[str], tokenizer: Any) -> NDArray[np.int32]:
    """Encode texts one behind the other, each behind a BOS token if there is one."""
    begins = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    parts = [np.array([*begins, *encode(tokenizer, text, literal=True)]) for text in texts]
    return np.concatenate(parts).astype(np.int32)


def learn(
    model: Any,
    texts: NDArray[np.int32] | Draw,
    course: Course,
    folder: Path,
    watch: Callable[[int, float], None] | None = None,
    factor: Callable[[str], float] = lambda _: 1.0,
) -> Learned:
    """Train a model in place, and say how it went.

    Args:
        model: a causal Hugging Face model, as it was drawn.
        texts: the tokens of all texts; or a function that returns a step's inputs, which depend
            on the step alone. Without labels, all tokens are learned.
        course: how.
        folder: for the checkpoint; a course that was begun there is gone on with.
        watch: is shown each step and its loss.
        factor: of the rate, by the name of the weight.

    Raises:
        ConfigError: another course was begun there, or there are less tokens than in a window.
    """
    draw = texts if callable(texts) else _windows(texts, course)
    optimizer = torch.optim.AdamW(
        [{"params": [one], "factor": factor(name)} for name, one in model.named_parameters()],
        lr=course.rate,
        betas=(0.9, 0.95),
        weight_decay=course.decay,
    )
    learned = _gone_on_with(model, optimizer, course, folder)
    model.train()
    for step in range(len(learned.losses), course.steps):
        began_s = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = course.rate_at(step) * group["factor"]
        learned.losses.append(_step(model, optimizer, draw(step), course))
        learned.seconds += time.perf_counter() - began_s
        if watch is not None:
            watch(step, learned.losses[-1])
        if (step + 1) % course.every == 0 or step + 1 == course.steps:
            _save(model, optimizer, course, learned, folder)
    model.eval()
    return learned


def held_out_perplexity(model: Any, texts: Sequence[str], tokens: int, block: int = 256) -> float:
    """Give a model's own perplexity over the starts of texts.

    Args:
        model: a `KNNModel`.
        texts: held out.
        tokens: of each, at most.
        block: tokens in a window.
    """
    parts = []
    for text in texts:
        ids = model.encode(text)[:tokens]
        for start, first, end in windows(len(ids), block, block // 2):
            parts.append(model.read(ids[start : end - 1], ids[first:end]).log_probs)
    return math.exp(-float(np.concatenate(parts).mean()))


def _windows(stream: NDArray[np.int32], course: Course) -> Draw:
    """Return what cuts a step's windows, [batch, window], by seed and step alone."""
    if len(stream) <= course.window:
        raise ConfigError(
            f"there are {len(stream)} tokens to learn from, and a window has {course.window}; "
            "give more text"
        )

    def draw(step: int) -> dict[str, Tensor]:
        dice = np.random.default_rng([course.seed, step])
        starts = dice.integers(0, len(stream) - course.window, course.batch)
        rows = [stream[start : start + course.window] for start in starts]
        return {"input_ids": torch.from_numpy(np.stack(rows).astype(np.int64))}

    return draw


def _step(model: Any, optimizer: Any, inputs: Mapping[str, Tensor], course: Course) -> float:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=course.half):
        loss = model(**{"labels": inputs["input_ids"], **inputs}).loss
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def _save(model: Any, optimizer: Any, course: Course, learned: Learned, folder: Path) -> None:
    """Write weights and moments, in one file with what they belong to."""
    tensors = {}
    for name, weight in model.named_parameters():
        moments = optimizer.state[weight]
        tensors[_MODEL + name] = weight.detach().contiguous()
        tensors[_FIRST + name] = moments["exp_avg"]
        tensors[_SECOND + name] = moments["exp_avg_sq"]
    told = json.dumps({"course": asdict(course), **asdict(learned)})
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / _CHECKPOINT, save(tensors, {_PROGRESS: told}))


def _gone_on_with(model: Any, optimizer: Any, course: Course, folder: Path) -> Learned:
    """Take up a checkpoint, if there is one; say how far it has come."""
    file = folder / _CHECKPOINT
    if not file.exists():
        return Learned([], 0.0)
    told = json.loads(_header(file)[_PROGRESS])
    if told["course"] != asdict(course):
        raise ConfigError(
            f"another course was begun in {folder} ({told['course']}); remove it, or go on with it"
        )
    tensors = load_file(file)
    learned = Learned(told["losses"], told["seconds"])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(tensors[_MODEL + name])
            optimizer.state[weight] = {
                "step": torch.tensor(float(len(learned.losses))),
                "exp_avg": tensors[_FIRST + name],
                "exp_avg_sq": tensors[_SECOND + name],
            }
    return learned


def _header(file: Path) -> dict[str, str]:
    with safe_open(file, framework="numpy") as opened:
        header: dict[str, str] = opened.metadata()
    return header
