"""Measurements when a model is loaded: the cost of passes, and the differences of their logits."""

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor

from ralmspec_plugins.decoding.budget import CostCurve
from ralmspec_plugins.decoding.certification import is_certain, share_difference
from ralmspec_plugins.lm.decoder import HostedModel
from ralmspec_plugins.lm.kv_cache import ModelRunner, Run, is_croppable

SIZES: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # rows of a pass that is timed
_PROMPT: Final = 16  # arbitrary tokens that the model's own text follows
_TEXT: Final = 96  # tokens of that text, at most
_BLOCKS: Final = (2, 5, 3, 9, 4, 13)  # rows of the passes in which the text is read again
_WIDER: Final = 8.0  # near decisions are rare: they are counted with bounds this much wider
_ROUNDS: Final = 5


class ErrorBound:
    """An upper bound on how far logits of speculative passes differ from the schedule's.

    It is a factor times the largest difference seen: when the model was loaded, and whenever
    a decision was retaken. Thread-safe.
    """

    def __init__(self, factor: float) -> None:
        """Create a bound of this factor times the largest difference seen."""
        self.factor = factor
        self.largest = 0.0
        self.largest_share = 0.0  # difference of a cumulative probability
        self._lock = threading.Lock()

    @property
    def value(self) -> float:
        """The bound on the difference of a logit."""
        return self.factor * self.largest

    @property
    def share(self) -> float:
        """The bound on the difference of a cumulative probability, over the tokens in order."""
        return self.factor * self.largest_share

    def observe(self, difference: float, share: float) -> None:
        """Record differences; NaN makes its bound infinite."""
        with self._lock:
            if not difference <= self.largest:
                self.largest = difference if difference == difference else float("inf")
            if not share <= self.largest_share:
                self.largest_share = share if share == share else float("inf")


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured of a model, for its device, precision and number of threads.

    Attributes:
        error: how far logits of speculative passes differ.
        near: the share of decisions that would have to be retaken.
        trees: whether drafts may be trees; otherwise they are chains.
        threads: the number of torch threads when this was measured.
        exact: whether logits do not differ at all, because all passes have one shape.
        growth: the largest factor by which a transfer enlarged errors of logits meanwhile.
    """

    error: ErrorBound
    near: float
    trees: bool
    threads: int
    exact: bool = False
    growth: float = 1.0


class Shift(Protocol):
    """Moves logits by those of a teacher."""

    largest: float  # factor by which it enlarged errors of logits

    def __call__(self, logits: Tensor, teachers: Tensor) -> Tensor:
        """Return the moved logits."""
        ...


def measure_errors(
    model: HostedModel, factor: float, budget_s: float, shift: Shift | None = None
) -> Calibration:
    """Measure how logits differ when a text is read token by token, in chains, and in trees.

    The text is the model's own. Differences accumulate over the blocks, as they do in use: each
    block is read with the cache that the blocks before it left. With a `shift`, the differences
    are those of shifted logits, where the logits of the token before stand for a teacher's.
    """
    length = _TEXT if model.context is None else min(_TEXT, model.context - _PROMPT - 1)
    prompt = _prompt(model)
    began_s = time.perf_counter()
    run = model.runner.start(prompt)
    text: list[int] = []
    truth = [run.logits]
    while len(text) < length and (len(text) < 16 or time.perf_counter() - began_s < budget_s):
        text.append(int(run.logits.argmax()))
        model.runner.feed(run, text[-1])
        truth.append(run.logits)
    shifted = _shifted_by(shift, truth)
    truth = [shifted(place, logits) for place, logits in enumerate(truth)]
    error = ErrorBound(factor)
    chains, share = _largest_differences(model, prompt, text, truth, shifted, trees=False)
    error.observe(chains, share)
    trees = False
    if model.runner.takes_trees and is_croppable(run.cache):
        branched, share = _largest_differences(model, prompt, text, truth, shifted, trees=True)
        trees = branched <= _WIDER * chains + 1e-6 * float(truth[0].abs().max())
        if trees:
            error.observe(branched, share)
    near = _near(model, prompt, text, truth, error)
    growth = 1.0 if shift is None else shift.largest
    return Calibration(error, near, trees, torch.get_num_threads(), growth=growth)


def measure_costs(model: HostedModel, budget_s: float) -> CostCurve:
    """Measure the time of passes over several rows, run alternately as in use.

    The shortest time of each size counts, since other processes share the machine. The cost of
    a size is limited to the cost of its rows one by one, and is at least that of one row.
    """
    clock = pass_clock(model.runner.device)
    room = 1024 if model.context is None else model.context
    sizes = [size for size in SIZES if size + _PROMPT < room // 2]
    front = list(itertools.islice(itertools.cycle(_prompt(model)), min(128, room // 4)))
    run = model.runner.start(front)
    token = int(run.logits.argmax())
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    began_s = time.perf_counter()
    for number in range(_ROUNDS + 1):  # the first is a warm-up
        for size in sizes:
            if len(front) + len(run.tokens) + size > room:
                run = model.runner.start(front)
            took_s = _timed(model.runner, run, token, size, clock)
            if number or time.perf_counter() - began_s > budget_s:
                seconds[size].append(took_s)
        if all(seconds.values()) and time.perf_counter() - began_s > budget_s:
            break
    return _curve(seconds)


def _curve(seconds: Mapping[int, Sequence[float]]) -> CostCurve:
    """Return the costs of passes by the shortest time of each size, which begin with 1."""
    least = {size: min(took) for size, took in seconds.items()}
    costs = (min(size, max(1.0, least[size] / least[1])) for size in seconds)
    return CostCurve(tuple(seconds), tuple(costs), least[1])


def measure_costs_on(
    runner: ModelRunner, run: Run, sizes: Sequence[int], budget_s: float
) -> CostCurve:
    """Measure the time of passes over several rows behind what a run has read.

    The longer a context is, the longer a pass takes, and the less each further row adds. The rows
    are removed again.

    Args:
        runner: the runner.
        run: a run whose cache can be cropped.
        sizes: the numbers of rows, rising from 1.
        budget_s: the approximate maximum duration.
    """
    clock, passes = pass_clock(runner.device), run.passes
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    started_s = time.perf_counter()
    for number in range(_ROUNDS + 1):  # the first is a warm-up
        for size in sizes:
            began_s = clock()
            rows = runner.read_rows(run, [0] * size, range(-1, size - 1))
            rows.logits.argmax(dim=-1).tolist()
            runner.drop_rows(run, rows)
            took_s = clock() - began_s
            if number or time.perf_counter() - started_s > budget_s:
                seconds[size].append(took_s)
        if all(seconds.values()) and time.perf_counter() - started_s > budget_s:
            break
    run.passes = passes
    return _curve(seconds)


def measure_fixed_cost(
    model: HostedModel, fixed: HostedModel, budget_s: float
) -> tuple[float, float]:
    """Measure the time of a pass of fixed shape and of one over a single row, alternately.

    Returns:
        The cost of a pass of fixed shape, in passes over one row, and its seconds.
    """
    clock, prompt = pass_clock(model.runner.device), _prompt(model)
    runs = [(one.runner, one.runner.start(prompt)) for one in (model, fixed)]
    room = _TEXT if model.context is None else min(_TEXT, model.context - _PROMPT)
    seconds: list[list[float]] = [[], []]
    began_s = time.perf_counter()
    for number in range(room):
        for took, (runner, run) in zip(seconds, runs, strict=True):
            started_s = clock()
            runner.feed(run, prompt[0])
            run.logits.argmax().item()
            if number:  # the first is a warm-up
                took.append(clock() - started_s)
        if number >= _ROUNDS and time.perf_counter() - began_s > budget_s:
            break
    least = [min(took) for took in seconds]
    return least[1] / least[0], least[1]


def pass_clock(device: torch.device) -> Callable[[], float]:
    """Return the clock that times passes on a device, and the drafting between them.

    Where a pass runs in one thread on a CPU this is the thread's CPU time, which does not
    advance while other threads have the processor. A CUDA device computes after the call that
    asks for it: there the clock waits for the thread's stream, so that a pass is not counted
    as a part of what reads its result.
    """
    if device.type == "cuda":
        return lambda: _time_after(device)
    alone = torch.get_num_threads() == 1 and device.type == "cpu"
    return time.thread_time if alone else time.perf_counter


def _time_after(device: torch.device) -> float:
    """Return the time after all that this thread asked a CUDA device for."""
    torch.cuda.current_stream(device).synchronize()
    return time.perf_counter()


def _timed(
    runner: ModelRunner, run: Run, token: int, size: int, clock: Callable[[], float]
) -> float:
    """Return the seconds of one pass, of choosing its tokens, and of keeping one of them."""
    began_s = clock()
    if size == 1:
        runner.feed(run, token)
        run.logits.argmax().item()
    else:
        rows = runner.read_rows(run, [token] * size, range(-1, size - 1))
        rows.logits.argmax(dim=-1).tolist()
        runner.keep_rows(run, rows, (0,))
    return clock() - began_s


def _prompt(model: HostedModel) -> list[int]:
    """Return arbitrary tokens, the same ones each time."""
    step = max(1, model.vocabulary // 61)
    return [(7 + at * step * 13) % model.vocabulary for at in range(_PROMPT)]


def _largest_differences(
    model: HostedModel,
    prompt: Sequence[int],
    text: Sequence[int],
    truth: Sequence[Tensor],
    shifted: Callable[[int, Tensor], Tensor],
    *,
    trees: bool,
) -> tuple[float, float]:
    """Return the largest differences when a text is read in blocks, with rejected drafts.

    The first is of a logit, the second of a share as in `share_difference`.
    """
    run = model.runner.start(prompt)
    largest = ErrorBound(1.0)
    for size in itertools.cycle(_BLOCKS):
        at = len(run.tokens)
        block = list(text[at : at + size])
        if not block:
            break
        tokens, parents, path = _rows_of(block, trees)
        rows = model.runner.read_rows(run, tokens, parents)
        for place, row in enumerate(path, at + 1):
            found = shifted(place, rows.logits[row : row + 1])
            largest.observe(*differences(model, truth[place], found, prompt, text[:place]))
        model.runner.keep_rows(run, rows, path)
    return largest.largest, largest.largest_share


def _shifted_by(shift: Shift | None, truth: Sequence[Tensor]) -> Callable[[int, Tensor], Tensor]:
    """Return what shifts the logits at a place of the text by those of the place before."""

    def shifted(place: int, logits: Tensor) -> Tensor:
        return logits if shift is None else shift(logits, truth[place - 1])

    return shifted


def differences(
    model: HostedModel,
    logits: Tensor,
    others: Tensor,
    front: Sequence[int],
    text: Sequence[int],
) -> tuple[float, float]:
    """Return how far logits of the compute schedule differ from others of the same position."""
    with torch.inference_mode():
        difference = float((logits.reshape(-1) - others.reshape(-1)).abs().max())
        share = share_difference(logits, others, model.sampling, (*front, *text))
    return difference, share


def _rows_of(block: list[int], trees: bool) -> tuple[list[int], list[int], list[int]]:
    """Return rows with a block and rejected drafts, their parents, and the block's own path."""
    if not trees:  # a draft that is rejected, after the block
        return [*block, block[0]], list(range(-1, len(block))), list(range(len(block)))
    tokens, parents, path = [block[0]], [-1], [0]
    for token in block[1:]:
        tokens += [block[0], token]
        parents += [path[-1], path[-1]]
        path.append(len(tokens) - 1)
    return tokens, parents, path


def _near(
    model: HostedModel,
    prompt: Sequence[int],
    text: Sequence[int],
    truth: Sequence[Tensor],
    error: ErrorBound,
) -> float:
    """Estimate the share of decisions that the bounds leave open."""

    def share(wider: float) -> float:
        uncertain = sum(
            not is_certain(
                logits,
                model.sampling,
                error.value * wider,
                share_bound=error.share * wider,
                history=(*prompt, *text[:position]),
                position=position,
            )
            for position, logits in enumerate(truth)
        )
        return uncertain / len(truth)

    return max(share(1.0), share(_WIDER) / _WIDER)
