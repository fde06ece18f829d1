"""RaLMSpec's optimal speculation stride (OS3) and batch sizes as pure functions (PAPERS 1.6)."""

from collections.abc import Callable
from itertools import accumulate, repeat
from operator import mul

GAMMA_LIMIT = 0.6  # the paper's cap on the estimated guess rate (PAPERS 1.6)
MAX_STRIDE = 64  # the paper's search for a stride has no bound (PAPERS 1.6)
LEAST_SECONDS = 1e-9  # a free model or retriever: keeps ratios finite


def optimal_stride(
    a: float,
    b: float | Callable[[int], float],
    gamma: float,
    *,
    overlap: bool = False,
    speed: float = 1.0,
    limit: int = MAX_STRIDE,
    slack: float = 0.0,
) -> int:
    """Find the stride with the most verified steps a second (RaLMSpec's OS3, PAPERS 1.6).

    A round of stride s verifies (1 - gamma^s) / (1 - gamma) steps on average and
    takes s a + b(s), or with overlap, if all of its guesses are right,
    (s - 1) a + max(a, b(s)). Where writing and searching slow each other down to a
    share v of their speed (the paper has v = 1), the shorter of a and b(s) takes 1 / v
    times as long, and the longer one goes on alone.

    Args:
        a: Seconds to write one step.
        b: Seconds to verify one batch: a constant, or a function of its size.
        gamma: Probability that one guess is right.
        overlap: Whether one more step is written during the verification.
        speed: Of writing and searching while both are going on, as a share of their own.
        limit: The largest stride to consider.
        slack: Share of the best rate that may be given up for a longer stride.

    >>> [optimal_stride(1, 40, gamma) for gamma in (0.2, 0.4, 0.6, 0.8, 0.9)]
    [3, 4, 6, 11, 19]
    """
    a = max(a, LEAST_SECONDS)
    gamma = min(max(gamma, 0.0), 1.0 - 1e-9)

    rates: list[float] = []
    best = 0.0
    for stride in range(1, limit + 1):
        verify = max(b(stride) if callable(b) else b, LEAST_SECONDS)
        latency = stride * a + verify
        right = gamma**stride
        if overlap:
            both = max(a, verify) + min(a, verify) * (1 / speed - 1)
            latency = right * ((stride - 1) * a + both) + (1 - right) * latency
        rates.append((1 - right) / ((1 - gamma) * latency))
        best = max(best, rates[-1])
        if 1 / ((1 - gamma) * latency) < best * (1 - slack):
            break  # no longer round can verify enough: its latency is higher still
    enough = best * (1 - slack)
    return max(stride for stride, rate in enumerate(rates, start=1) if rate >= enough)


def estimate_gamma(matches: list[int], strides: list[int], limit: float = GAMMA_LIMIT) -> float:
    """Estimate how often a guess is right from whole rounds (PAPERS 1.6).

    The maximum-likelihood estimate of a geometric stop: right guesses over right
    guesses plus rounds that had a wrong one, at most `limit`.

    >>> round(estimate_gamma([3, 4, 3, 2], [4, 4, 4, 4], limit=0.9), 3)
    0.8
    """
    right = sum(matches)
    wrong = sum(match < stride for match, stride in zip(matches, strides, strict=True))
    return min(right / (right + wrong), limit) if right + wrong else limit


def best_part(pending: int, b: Callable[[int], float], gamma: float, *, worth: float = 1.0) -> int:
    """Choose in parts of which size to search `pending` queries, one part after the other.

    A part is searched only if all guesses before it were right, so parts of m take
    b(m) + gamma^m b(m) + gamma^2m b(m) + ... seconds, the last one less. One search for
    all saves most where batches are nearly free; single ones find a wrong guess soonest.

    Args:
        pending: how many there are.
        b: seconds of a search by its size.
        gamma: probability that one guess is right.
        worth: how many times single searches must take, so that parts are preferred to them:
            a part's first query waits for its last one.

    >>> best_part(31, lambda n: 39 + n, 0.95)
    31
    >>> best_part(31, lambda n: 39 + n, 0.7)
    8
    >>> best_part(31, lambda n: n, 0.95)
    1
    """
    seconds = [max(b(size), LEAST_SECONDS) for size in range(1, pending + 1)]
    right = list(accumulate(repeat(min(max(gamma, 0.0), 1.0), pending), mul, initial=1.0))

    def takes(part: int) -> float:
        whole, rest = divmod(pending, part)
        total = seconds[part - 1] * sum(right[: whole * part : part])
        return total + (right[whole * part] * seconds[rest - 1] if rest else 0.0)

    best = min(range(1, pending + 1), key=lambda part: (takes(part), -part))
    return best if takes(1) > worth * takes(best) else 1


def worth_gathering(a: float, b: Callable[[int], float], gamma: float, *, lanes: int = 1) -> int:
    """Choose how many queries a search should have, where the model goes on writing meanwhile.

    While a search of b(1) is out, b(1) / a steps are written. So one that starts with fewer
    keeps its lane from what comes next, at every start and after every wrong guess. More than
    OS3's stride is never worth it: then a wrong guess is found too late.

    >>> [worth_gathering(1.0, lambda n: 39 + n, gamma) for gamma in (0.6, 0.9, 0.99)]
    [5, 14, 40]
    """
    written = round(b(1) / max(a, LEAST_SECONDS) / lanes)
    if written <= 1:
        return 1
    return optimal_stride(a, b, gamma, limit=min(written, MAX_STRIDE))
