"""A local model with a drafter in virtual time: segment durations by given rates and costs."""

from collections.abc import Callable
from typing import Final

from ralmspec_plugins.decoding.budget import FILLING, Budget, CostCurve
from ralmspec_plugins.decoding.token_tree import EMPTY, Evidence, TokenTree
from ralmspec_plugins.effects import Extend
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.lm.sampling import uniform

_EVIDENCE: Final = Evidence("simulated", 4)
_RIGHT, _WRONG = 1, 0  # tokens: every draft is `_RIGHT`


class SimulatedDecoder:
    """Durations of segments for `Simulation`, as of a model with a drafter.

    The drafter proposes a chain before each pass. A draft whose parent is right is right
    with a given probability. A `Budget`, as used by real models, learns from this how many
    drafts to verify, possibly none. A pass yields at most the remaining tokens of the
    segment. Passes, tokens and accepted drafts are counted in the statistics.

    Worked: every draft is right and additional rows cost nothing, so 8 tokens take one pass.

    >>> from ralmspec_plugins.protocols import Progress
    >>> free = CostCurve((1, 32), (1.0, 1.0))
    >>> decoder = SimulatedDecoder(free, acceptance=1.0, pass_s=0.01, tokens=8)
    >>> progress = Progress()
    >>> took_s = decoder(Extend(None, (), progress=progress))
    >>> took_s, progress.model_passes, progress.drafts_accepted
    (0.01, 1, 7)
    """

    def __init__(
        self,
        costs: CostCurve,
        *,
        acceptance: float,
        pass_s: float,
        tokens: int | Callable[[Extend], int],
        most_drafts: int = 31,
        seed: int = 0,
    ) -> None:
        """Create a decoder with given rates and costs.

        Args:
            costs: the cost of a pass by its rows, in passes of one row.
            acceptance: the probability that a draft is right if its parent is.
            pass_s: the duration of a pass of one row.
            tokens: the number of tokens in a segment, or a function of the segment.
            most_drafts: the maximum number of drafts in a pass.
            seed: the seed of the draws that decide which drafts are right.

        Raises:
            ConfigError: a number is out of range.
        """
        if not 0 <= acceptance <= 1:
            raise ConfigError(f"acceptance must be from 0 to 1, got {acceptance}")
        if not pass_s > 0:
            raise ConfigError(f"pass_s must be above 0, got {pass_s}")
        if most_drafts < 0:
            raise ConfigError(f"most_drafts must be at least 0, got {most_drafts}")
        self.costs = costs
        self.acceptance = acceptance
        self.pass_s = pass_s
        self.tokens = tokens
        self.most_drafts = most_drafts
        self.seed = seed
        self.budget = Budget(costs)
        self._drawn = 0

    def __call__(self, need: Extend) -> float:
        """Return the seconds that a segment takes, and count its passes in its `progress`."""
        tokens = self.tokens(need) if callable(self.tokens) else self.tokens
        left, passes, accepted, cost = tokens, 0, 0, 0.0
        while left > 0:
            right, rows = self._pass(left - 1)
            left -= 1 + right
            passes += 1
            accepted += right
            cost += self.costs.of(rows)
        need.progress.count(
            model_passes=passes, tokens=tokens, drafts_accepted=accepted, decisions_retaken=0
        )
        return self.pass_s * cost

    def _pass(self, depth: int) -> tuple[int, int]:
        """Return how many drafts of a pass are accepted, and how many rows it has."""
        asked = min(depth, self.budget.ask(self.most_drafts)) if depth > 0 else 0
        drafted = EMPTY if asked < 1 else _chain(asked)
        chosen = self.budget.choose(drafted, depth, trees=False)
        verified = sum(one is not FILLING for one in chosen.evidence)
        right = 0
        while right < len(drafted) and self._draw() < self.acceptance:
            right += 1
        accepted = min(right, verified)
        text = [_RIGHT] * right + [_WRONG]  # learned from as far as the pass yields it
        self.budget.learn(drafted, text[: accepted + 1])
        return accepted, 1 + len(chosen)

    def _draw(self) -> float:
        self._drawn += 1
        return uniform(self.seed, self._drawn)


def _chain(length: int) -> TokenTree:
    parents = tuple(range(-1, length - 1))
    return TokenTree((_RIGHT,) * length, parents, evidence=(_EVIDENCE,) * length)
