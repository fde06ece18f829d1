"""A plain and a speculative model side by side: whatever is done to both, they agree."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from ralmspec_plugins.decoding import Decoding
from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.lm.kv_cache import Run
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.lm.state import Draft
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Request
from tests.decoding.drafters import FREE, MOST, EveryDraft, ScriptedDrafter
from tests.decoding.integers import IntegerModel
from tests.lm.reference import FRONTS, Tokenizer

SAMPLINGS = (
    Greedy(),
    Greedy(repetition_penalty=1.2),
    Sampling(),
    Sampling(temperature=0.6, top_k=5),
    Sampling(temperature=1.4, top_p=0.8),
    Sampling(temperature=0.9, top_k=8, top_p=0.9, repetition_penalty=1.1),
)


@dataclass
class Pair:
    """Two models on the same weights: one decodes plainly, one speculatively."""

    plain: HuggingFaceLM
    fast: HuggingFaceLM
    drafter: ScriptedDrafter

    @classmethod
    def of(
        cls,
        model: Any,
        tokenizer: Tokenizer,
        sampling: Greedy | Sampling,
        *,
        every: bool = True,
        **settings: Any,
    ) -> "Pair":
        drafter = ScriptedDrafter()
        decoding = Decoding(
            **{
                "drafter": drafter,
                "costs": FREE,
                "most_drafts": MOST - 1,
                "most_retakes": 1.0,
                **settings,
            }
        )
        plain = HuggingFaceLM(model, tokenizer, sampling=sampling)
        fast = HuggingFaceLM(model, tokenizer, sampling=sampling, decoding=decoding)
        if every:
            fast.decoder.budget = EveryDraft(FREE)
        return cls(plain, fast, drafter)

    def check(self, request: Request, operations: Sequence[tuple[int, int, int]]) -> None:
        """Write segments from older and newer drafts in turn with both."""
        self.drafter.forget()
        pairs: list[tuple[Draft, Draft]] = [(self.plain.begin(request), self.fast.begin(request))]
        for which, front, count in operations:
            before, same = pairs[which % len(pairs)]
            if before.finished:
                continue
            expected = self.plain.write(before, FRONTS[front], count, Progress())
            held = held_tokens(self.plain, expected)
            self.drafter.know(self.plain, self._longer(expected, front))
            actual = self.fast.write(same, FRONTS[front], count, Progress())

            assert expected == actual
            assert self.plain.settled(expected) == self.fast.settled(actual)
            assert held == held_tokens(self.fast, actual)
            self.fast.caches.check()
            pairs.append((expected, actual))
        self.plain.release(pairs[0][0])
        self.fast.release(pairs[0][1])

    def _longer(self, draft: Draft, front: int) -> Draft:
        """Write on a little, so that drafts reach beyond the segment."""
        if draft.finished or draft.allowed(8) < 1:
            return draft
        return self.plain.write(draft, FRONTS[front], draft.allowed(8), Progress())


def held_tokens(lm: HuggingFaceLM, draft: Draft) -> tuple[list[int], int]:
    """Give what the cache of a draft holds: the text's tokens, and how many there are in all."""
    run = lm.caches.find(lm._lineage(draft), Run)
    assert run is not None
    assert run.scheduled <= len(run.tokens)
    attends = any(hasattr(layer, "keys") for layer in run.cache.layers)
    return list(run.tokens), run.cache.get_seq_length() if attends else 0


def operations(rng: Random, most: int = 6) -> list[tuple[int, int, int]]:
    """Draw segments: which earlier draft, which passages, how many tokens."""
    return [
        (
            rng.choice([-1, -1, -2, 0, 3]),
            rng.choice([0, 0, 0, 1, 2]),
            rng.choice([1, 2, 3, 5, 9, 16]),
        )
        for _ in range(rng.randint(2, most))
    ]


def integers(tokenizer: Tokenizer, noise: float = 1e-3) -> IntegerModel:
    """Make a model that writes few different tokens, half of a character among them."""
    words = tokenizer.encode("the ships that passed . é, sells", add_special_tokens=False)
    half = tokenizer.encode("é", add_special_tokens=False)[:1]
    return IntegerModel(sorted({*words, *half})[:14], noise)
