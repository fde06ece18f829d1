"""Certified decisions: whether all logits within a bound lead to the same token."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ralmspec_plugins.lm.sampling import Greedy, Sampling, uniform

_ROUNDING = 2.0**-21  # relative error that a few float32 operations add to scores
_SUMMING = 2e-5  # error of a float32 sum of probabilities, as in top-p
_EDGE = 1e-9  # error of a float64 sum of probabilities, as in the draw
_HUGE = 700.0  # largest exponent of a float64

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def is_certain(
    logits: Tensor,
    settings: Greedy | Sampling,
    bound: float,
    *,
    share_bound: float = 1.0,
    history: Sequence[int] = (),
    seed: int = 0,
    position: int = 0,
) -> bool:
    """Return whether all logits within the bounds of these lead to the same token.

    Args:
        logits: after a position, [1, vocabulary] or [vocabulary], in float32.
        settings: how the token is chosen.
        bound: the maximum difference of each logit.
        share_bound: the maximum difference of the cumulative probability at any token, which
            decides a draw. Errors of logits mostly cancel out in it.
        history: the preceding tokens, for a repetition penalty.
        seed: the seed of the draw.
        position: the position of the draw.

    >>> row = torch.tensor([1.0, 3.0, 2.5])
    >>> is_certain(row, Greedy(), 0.2), is_certain(row, Greedy(), 0.3)
    (True, False)
    """
    with torch.inference_mode():
        row: Any = _penalised(logits.reshape(-1), settings.repetition_penalty, history)
        bound *= max(settings.repetition_penalty, 1.0 / settings.repetition_penalty)
        if isinstance(settings, Greedy):
            best, *others = row.topk(min(2, len(row))).values.tolist()
            slack = 2.0 * bound + _ROUNDING * abs(best)
            return all(other < best - slack for other in others)
        scores: Floats = row.double().cpu().numpy() / settings.temperature
    best, least = float(scores.max()), float(scores.min())
    if not math.isfinite(best):
        return False
    if not math.isfinite(least):
        least = float(scores[np.isfinite(scores)].min())
    bound = bound / settings.temperature + _ROUNDING * max(abs(best), abs(least))
    number = uniform(seed, position)
    return draw_is_certain(scores, settings.top_k, settings.top_p, bound, number, share_bound)


def draw_is_certain(
    scores: Floats,
    top_k: int,
    top_p: float,
    bound: float,
    number: float,
    share_bound: float = 1.0,
) -> bool:
    """Return whether a random number selects the same token for all scores within the bounds.

    Worked: two tokens of equal score share [0, 1) in halves. With a bound of 0.05 the
    odds of the first are at least exp(-0.1) to 1, so its end may lie from 0.475 to 0.525:

    >>> [draw_is_certain(np.zeros(2), 0, 1.0, 0.05, u) for u in (0.4, 0.47, 0.48, 0.53)]
    [True, True, False, True]
    """
    scores = scores - scores.max()
    surely, possibly = _candidates(scores, top_k, top_p, bound)
    if not possibly.all():
        scores, surely = scores[possibly], surely[possibly]
    weights = np.exp(scores)
    ends = weights.cumsum()
    same = bool(surely.all())
    sure_ends = ends if same else np.where(surely, weights, 0.0).cumsum()
    factor = math.exp(min(2.0 * bound, _HUGE))

    def earliest(token: int) -> float:
        """Return where a token's interval ends at the earliest."""
        end = _odds(sure_ends[token], ends[-1] - ends[token], factor)
        return max(end, ends[token] / ends[-1] - share_bound) if same else end

    def latest(token: int) -> float:
        """Return where it ends at the latest."""
        end = _odds(ends[token], sure_ends[-1] - sure_ends[token], 1.0 / factor)
        return min(end, ends[token] / ends[-1] + share_bound) if same else end

    # The first token whose interval surely ends behind the number.
    token = bisect_right(range(len(ends)), number + _EDGE, key=earliest)
    if token == len(ends) or not surely[token]:
        return False
    return token == 0 or latest(token - 1) < number - _EDGE


def _odds(part: float, rest: float, factor: float) -> float:
    """Return a part's share if the rest weighs so many times as much."""
    return float(part / (part + rest * factor)) if rest > 0.0 else 1.0


def share_difference(
    logits: Tensor, others: Tensor, settings: Greedy | Sampling, history: Sequence[int]
) -> float:
    """Return the largest difference between two cumulative distributions over the tokens.

    Only the tokens count that top-k and top-p leave for the first logits.

    >>> one, other = torch.tensor([0.0, 0.0]), torch.tensor([0.0, 4.0]).log1p()
    >>> round(share_difference(one, other, Sampling(), ()), 3)
    0.333
    """
    if isinstance(settings, Greedy):
        return 0.0
    both = []
    for row in (logits, others):
        penalised = _penalised(row.reshape(-1), settings.repetition_penalty, history)
        both.append(penalised.double().cpu().numpy() / settings.temperature)
    scores = both[0] - both[0].max()
    left, _ = _candidates(scores, settings.top_k, settings.top_p, 0.0)
    shares = []
    for scores in both:
        with np.errstate(invalid="ignore"):  # where there is NaN, the difference is NaN
            weights = np.where(left, np.exp(scores - scores.max()), 0.0)
            shares.append(weights.cumsum() / weights.sum())
    return float(np.abs(shares[0] - shares[1]).max())


def _candidates(scores: Floats, top_k: int, top_p: float, bound: float) -> tuple[Bools, Bools]:
    """Return which tokens are surely, and which possibly, drawn from; the best score is 0."""
    surely, possibly = _top_k(scores, top_k, bound)
    if top_p < 1.0:
        surely, possibly = _top_p(scores, surely, possibly, top_p, bound)
    return surely, possibly


def _share(part: Floats, rest: Floats, bound: float) -> Floats:
    """Return a part's share, its weights times exp(bound), the rest's times exp(-bound)."""
    part, rest = np.maximum(part, 0.0), np.maximum(rest, 0.0)
    whole = part * np.exp(bound) + rest * np.exp(-bound)
    share: Floats = np.divide(
        part * np.exp(bound), whole, out=np.zeros_like(part), where=whole > 0.0
    )
    return share


def _top_k(scores: Floats, top_k: int, bound: float) -> tuple[Bools, Bools]:
    """Return which tokens are surely, and which possibly, among the `top_k` best."""
    if not 0 < top_k < len(scores):
        every = np.ones(len(scores), dtype=np.bool_)
        return every, every
    ordered = np.partition(scores, (len(scores) - top_k - 1, len(scores) - top_k))
    last, next_best = ordered[len(scores) - top_k], ordered[len(scores) - top_k - 1]
    possibly = scores >= last - 2.0 * bound
    return (scores > next_best + 2.0 * bound) & possibly, possibly


def _top_p(
    scores: Floats, surely: Bools, possibly: Bools, top_p: float, bound: float
) -> tuple[Bools, Bools]:
    """Return which tokens top-p surely, and which it possibly, keeps.

    It removes a token if this and all less likely ones together have at most 1 - top_p.
    """
    places = np.flatnonzero(possibly)
    weights, sure = np.exp(scores[places]), surely[places]
    # Tokens so unlikely that all of them together go in any case need not be sorted.
    share = 0.5 * (1.0 - top_p - _SUMMING) * math.exp(-min(6.0 * bound, _HUGE)) / len(places)
    tail = weights <= share * weights[sure].sum()
    lower, sure_lower = weights[tail].sum(), weights[tail & sure].sum()
    removed, places = places[tail], places[~tail]
    places = places[scores[places].argsort()]  # the least likely first
    ordered, weights = scores[places], np.exp(scores[places])
    all_below = lower + np.concatenate([[0.0], weights.cumsum()])
    sure = np.where(surely[places], weights, 0.0)
    sure_below = sure_lower + np.concatenate([[0.0], sure.cumsum()])
    first = ordered.searchsorted(ordered - 2.0 * bound, side="left")  # tokens surely below
    behind = ordered.searchsorted(ordered + 2.0 * bound, side="right")  # surely above from here
    least = _share(sure_below[first] + weights, all_below[-1] - all_below[first] - weights, -bound)
    most = _share(all_below[behind], sure_below[-1] - sure_below[behind], bound)
    stay, may_stay = surely.copy(), possibly.copy()
    stay[removed] = may_stay[removed] = False
    stay[places] &= least > 1.0 - top_p + _SUMMING
    may_stay[places] &= most > 1.0 - top_p - _SUMMING
    best = scores >= -2.0 * bound  # one of these is the best, which always stays
    may_stay |= best & possibly
    if best.sum() == 1:
        stay |= best
    return stay, may_stay


def _penalised(row: Tensor, penalty: float, history: Sequence[int]) -> Tensor:
    """Apply a repetition penalty, as transformers does."""
    if penalty == 1.0:
        return row
    seen = torch.tensor(list(set(history)), dtype=torch.long, device=row.device)
    if not len(seen):
        return row
    chosen = row[seen]
    row = row.clone()
    row[seen] = torch.where(chosen < 0, chosen * penalty, chosen / penalty)
    return row
