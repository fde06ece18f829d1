"""RaLMSpec's optimal speculation stride (OS3) as pure functions (PAPERS 1.6)."""

from collections.abc import Callable

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
