"""RAPID's own rule of acceptance, reproduced for comparison, and how far it is from p.

This is a reproduction of the rule in the paper (2502.20330) and its code, not of what this package
does: a draft x ~ q is accepted with probability min(1, p^(x) / q(x)); otherwise the token is drawn
from the normalised max(0, p - p^, p - q); behind drafts that are all accepted it is drawn from p.
The paper states that texts are then distributed as p. Here their distribution is enumerated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Text: TypeAlias = tuple[int, ...]
ETAS: Final = (0.0, 5.0, 10.0, 20.0, 40.0)


def enriched(
    p: Floats, q: Floats, eta: float, guard: Literal["teacher", "target"] = "teacher"
) -> Floats:
    """Return p^ at temperature 1, from p itself.

    >>> p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.7, 0.1])
    >>> enriched(p, q, 0.0).round(3).tolist()
    [0.5, 0.3, 0.2]
    >>> enriched(p, q, 5.0).round(3).tolist()
    [0.046, 0.905, 0.05]
    """
    moved = np.log(p) + eta * (q - p)
    by = q if guard == "teacher" else _softmax(moved)
    return _softmax(np.where(by >= 0.1 * by.max(), moved, np.log(p)))


@dataclass(frozen=True, slots=True)
class Pair:
    """Two random language models over a small vocabulary: of a target and of a drafter."""

    vocabulary: int
    seed: int
    agreement: float  # from 0, unrelated, to 1, equal

    def both(self, text: Text) -> tuple[Floats, Floats]:
        """Return p and q behind a text."""
        return _both(self, text)


@lru_cache(maxsize=4096)
def _both(pair: Pair, text: Text) -> tuple[Floats, Floats]:
    rng = np.random.default_rng([pair.seed, *text, len(text)])
    z, other = rng.normal(0, 1.5, (2, pair.vocabulary))
    return _softmax(z), _softmax(pair.agreement * z + (1 - pair.agreement) * other)


def distribution(
    pair: Pair, length: int, drafts: int, eta: float, guard: Any = "teacher"
) -> dict[Text, float]:
    """Return the distribution of texts of a length by RAPID's rule, by enumerating all drafts."""

    @cache
    def behind(text: Text) -> dict[Text, float]:
        if len(text) >= length:
            return {text[:length]: 1.0}
        found: dict[Text, float] = {}
        for chain in product(range(pair.vocabulary), repeat=drafts):
            reached, now = 1.0, text
            for draft in chain:
                reached *= float(pair.both(now)[1][draft])
                now += (draft,)
            for chance, longer in _outcomes(pair, text, chain, eta, guard):
                for whole, part in behind(longer).items():
                    found[whole] = found.get(whole, 0.0) + reached * chance * part
        return found

    return behind(())


def _outcomes(
    pair: Pair, text: Text, chain: Sequence[int], eta: float, guard: Any
) -> list[tuple[float, Text]]:
    """Return the texts to which a chain of drafts may lead, with their probabilities."""
    found, reached = [], 1.0
    for draft in chain:
        p, q = pair.both(text)
        p_hat = enriched(p, q, eta, guard)
        accepted = min(1.0, float(p_hat[draft] / q[draft]))
        rest = np.maximum(0.0, np.maximum(p - p_hat, p - q))
        if accepted < 1.0:
            rest = rest / rest.sum()
            lost = reached * (1.0 - accepted)
            found += [(lost * float(one), (*text, token)) for token, one in enumerate(rest)]
        reached *= accepted
        text = (*text, draft)
    found += [(reached * float(one), (*text, at)) for at, one in enumerate(pair.both(text)[0])]
    return found


def token_by_token(
    pair: Pair, length: int, eta: float, guard: Any = "teacher"
) -> dict[Text, float]:
    """Return the distribution of texts of p^, which keyed draws have whatever is drafted."""
    found: dict[Text, float] = {}
    for text in product(range(pair.vocabulary), repeat=length):
        chance = 1.0
        for at, token in enumerate(text):
            chance *= float(enriched(*pair.both(text[:at]), eta, guard)[token])
        found[text] = chance
    return found


def total_variation(one: dict[Text, float], other: dict[Text, float]) -> float:
    """Return half of the summed differences of two distributions.

    >>> total_variation({(0,): 1.0}, {(0,): 0.25, (1,): 0.75})
    0.75
    """
    texts = one.keys() | other.keys()
    return sum(abs(one.get(text, 0.0) - other.get(text, 0.0)) for text in texts) / 2.0


def deviations(
    *,
    vocabulary: int = 4,
    length: int = 3,
    drafts: int = 2,
    seeds: int = 20,
    agreement: float = 0.7,
) -> list[dict[str, float]]:
    """Return for each eta the mean and the largest total variation over random pairs of models."""
    rows = []
    for eta in ETAS:
        far: dict[str, list[float]] = {"rule_p": [], "rule_p_hat": [], "p_hat_p": []}
        for seed in range(seeds):
            pair = Pair(vocabulary, seed, agreement)
            rule = distribution(pair, length, drafts, eta)
            p, p_hat = (token_by_token(pair, length, one) for one in (0.0, eta))
            far["rule_p"].append(total_variation(rule, p))
            far["rule_p_hat"].append(total_variation(rule, p_hat))
            far["p_hat_p"].append(total_variation(p_hat, p))
        row = {"eta": eta}
        for name, values in far.items():
            row |= {name: float(np.mean(values)), f"{name}_most": max(values)}
        rows.append(row)
    return rows


def _softmax(logits: Floats) -> Floats:
    weights = np.exp(logits - logits.max())
    shares: Floats = weights / weights.sum()
    return shares
