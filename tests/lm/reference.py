"""The compute schedule written out plainly: no store, no rollback, every pass run anew."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers import PreTrainedTokenizerFast as Tokenizer

from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.lm.kv_cache import cache_argument
from ralmspec_plugins.lm.prompts import PassageTemplate
from ralmspec_plugins.lm.state import Draft, DraftOrigin
from ralmspec_plugins.lm.token_sampler import TokenSampler
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Passage

PASSAGES = (
    Passage("ships", "the ships that passed the island", "Lighthouse"),
    Passage("storm", "a storm sells crêpes 🙂"),
)
FRONTS: tuple[tuple[Passage, ...], ...] = (PASSAGES[:1], PASSAGES[1:], PASSAGES, ())


Models: TypeAlias = dict[tuple[str, str], PreTrainedModel]
Operations: TypeAlias = Sequence[tuple[int, int, int]]
History: TypeAlias = tuple[tuple[tuple[Passage, ...], int], ...]
Written: TypeAlias = tuple[tuple[int, ...], dict[int, torch.Tensor]]


class Recorder:
    """Stands around a model's chooser and keeps the logits that it saw, by position."""

    def __init__(self, lm: HuggingFaceLM) -> None:
        self._inner = lm._chooser
        self.needs_history = self._inner.needs_history
        self.seen: dict[int, torch.Tensor] = {}
        lm._chooser = self

    def choose(self, logits: torch.Tensor, history: Sequence[int], seed: int, position: int) -> int:
        self.seen[position] = logits.clone()
        return self._inner.choose(logits, history, seed, position)


class StraightRun:
    """Writes a history of segments from its start, holding only what it writes now."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        template: PassageTemplate,
        chooser: TokenSampler,
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._template, self._chooser = template, chooser

    def write(self, origin: DraftOrigin, tokens: Sequence[int], history: History) -> Written:
        """Continue `tokens` by the last segment of `history`: (passages, length) of each segment.

        Gives the tokens and the logits that each was chosen from.
        """
        front, goal = history[-1][0], sum(count for _, count in history)
        prefilled_at = _prefilled_at(history)
        tokens, seen = list(tokens), {}
        prefix = list(origin.head_tokens) + [t for p in front for t in self._passage(p)]
        cache = DynamicCache(config=self._model.config)
        self._run(cache, prefix)
        logits = self._run(cache, [*origin.prompt_tokens, *tokens[:prefilled_at]])
        for token in tokens[prefilled_at:]:
            logits = self._run(cache, [token])
        while len(tokens) < goal:
            past = prefix + list(origin.prompt_tokens) + tokens
            seen[len(tokens)] = logits
            tokens.append(self._chooser.choose(logits, past, origin.seed, len(tokens)))
            logits = self._run(cache, tokens[-1:])
        return tuple(tokens), seen

    def _passage(self, passage: Passage) -> list[int]:
        return self._tokenizer.encode(self._template.show(passage), add_special_tokens=False)

    @torch.inference_mode()
    def _run(self, cache: DynamicCache, ids: Sequence[int]) -> torch.Tensor:
        # The head's product over one row differs in the last bits from one over all rows.
        output = self._model(
            input_ids=torch.tensor([ids], device=self._model.device),
            use_cache=True,
            logits_to_keep=1,
            **{cache_argument(self._model): cache},
        )
        return output.logits[:, -1].float()


def check_against_straight_run(
    lm: HuggingFaceLM, origin_draft: Draft, operations: Operations
) -> None:
    """Write segments from older and newer drafts in turn; each must be as if it stood alone.

    An operation is (which earlier draft, which passages, how many tokens).
    """
    recorder = Recorder(lm)
    straight = StraightRun(lm.model, lm.tokenizer, lm.template, recorder._inner)
    drafts: list[tuple[Draft, History]] = [(origin_draft, ())]
    for which, front, count in operations:
        draft, history = drafts[which % len(drafts)]
        if draft.finished:
            continue
        count = draft.allowed(count)
        history = (*history, (FRONTS[front], count))
        recorder.seen = {}
        written = lm.write(draft, FRONTS[front], count, Progress())
        lm.caches.check()
        tokens, seen = straight.write(draft.origin, draft.tokens, history)

        assert tokens == written.tokens
        assert seen.keys() == recorder.seen.keys()
        assert all(torch.equal(seen[at], recorder.seen[at]) for at in seen)
        drafts.append((written, history))


def _prefilled_at(history: History) -> int:
    """Count the tokens written before the last change of passages."""
    segments = list(history)
    while len(segments) > 1 and segments[-2][0] == history[-1][0]:
        segments.pop()
    return sum(count for _, count in segments[:-1])
