"""A model behind a long context, decoded token by token and with drafts of a retrieved part."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from ralmspec_plugins.decoding import Decoding, KnowledgeTransfer, RagDrafter
from ralmspec_plugins.decoding.decoder import SpeculativeDecoder
from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.lm.state import Draft
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Passage, Request
from tests.decoding.drafters import FREE, MOST, EveryDraft
from tests.lm.reference import Tokenizer

ETAS = (0.0, 5.0, 10.0, 20.0, 40.0)
SAMPLINGS = (Greedy(), Sampling(temperature=1.3, top_k=40))
PLACES = ("island", "storm", "café", "skyline", "ships", "lighthouse")


def small(model: Any = None, **settings: Any) -> RagDrafter:
    """Make a drafter that reads a few short chunks, whatever the question."""
    given = {"chunk_tokens": 16, "least_tokens": 48, "threshold": -1.0, "question_tokens": 24}
    return RagDrafter(model, **{**given, "depth": 6, **settings})


def log(rng: Random, lines: int = 9) -> Passage:
    """Draw a long context."""
    said = [
        f"On day {rng.randrange(99)} the keeper of the {rng.choice(PLACES)} counted "
        f"{rng.randrange(400)} ships."
        for _ in range(lines)
    ]
    return Passage(f"log {rng.randrange(10**9)}", " ".join(said))


def question(rng: Random) -> str:
    """Draw a question about it."""
    return f"How many ships passed the {rng.choice(PLACES)} before the storm?"


@dataclass
class LongPair:
    """Two models with one definition of their text: token by token, and with drafts."""

    plain: HuggingFaceLM
    fast: HuggingFaceLM

    @classmethod
    def of(
        cls,
        model: Any,
        tokenizer: Tokenizer,
        sampling: Greedy | Sampling,
        eta: float,
        *,
        guard: Any = "teacher",
        drafter: Any = None,
        **settings: Any,
    ) -> "LongPair":
        made = []
        for drafts in (False, True):
            rag = small()
            transfer = KnowledgeTransfer(teacher=rag, eta=eta, guard=guard) if eta else None
            decoding = Decoding(
                drafter=(drafter or rag) if drafts else (),
                transfer=transfer,
                costs=FREE,
                most_drafts=MOST - 1,
                most_retakes=1.0,
                **settings,
            )
            lm = HuggingFaceLM(
                model, tokenizer, sampling=sampling, passage_tokens=400, decoding=decoding
            )
            inner = inner_of(lm)
            inner.budget = EveryDraft(FREE)
            made.append(lm)
        return cls(*made)

    def check(self, request: Request, passages: Sequence[Passage], counts: Sequence[int]) -> Draft:
        """Write segments with both; return the draft."""
        plain, fast = self.plain.begin(request), self.fast.begin(request)
        for count in counts:
            plain = self.plain.write(plain, passages, count, Progress())
            fast = self.fast.write(fast, passages, count, Progress())

            assert plain.tokens == fast.tokens
            assert plain == fast
        self.plain.release(plain)
        self.fast.release(fast)
        return plain


def inner_of(lm: HuggingFaceLM) -> SpeculativeDecoder:
    """Return the decoder that runs the passes; it is not the plain one."""
    inner: Any = getattr(lm.decoder, "inner", lm.decoder)
    assert isinstance(inner, SpeculativeDecoder)
    return inner
