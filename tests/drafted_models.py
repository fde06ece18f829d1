"""Two models of a host on the same weights: one decodes plainly, one with drafts of every kind."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from transformers import PreTrainedTokenizerFast

from ralmspec_plugins.adapters.writing_options import options_of
from ralmspec_plugins.decoding import Accepted, Decoding, DraftContext, TokenTree
from ralmspec_plugins.testing.models import tiny_tokenizer
from tests.decoding.drafters import FREE, RULES, ScriptedDrafter
from tests.decoding.pairs import integers

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
PROMPTS = ("The keeper counted the ships that", "A storm sells", "the island é")
STOPS: tuple[Any, ...] = ((), (), ["the"], [" pa", "é"], ", s")
CHOICES: tuple[dict[str, Any], ...] = (
    {},
    {"repetition_penalty": 1.2},
    {"temperature": 1.0},
    {"temperature": 0.6, "top_k": 5},
    {"temperature": 1.4, "top_p": 0.8},
    {"temperature": 0.9, "top_k": 8, "top_p": 0.9, "repetition_penalty": 1.1},
)
SEEDS = 4  # cases of each way of choosing tokens by default; all of them are `slow`
ALL = 200


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer with a chat template."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def drafting(drafter: Any) -> Decoding:
    """Have every draft be tried, however many choices that leaves open."""
    return Decoding(drafter=drafter, costs=FREE, most_retakes=1.0, calibration_s=0.01)


@dataclass
class HostPair:
    """Models of a host's, and the drafter that knows what the plain one writes."""

    plain: Any
    fast: Any
    drafter: ScriptedDrafter

    @classmethod
    def of(cls, kind: Any, model: Any = None, tokenizer: Any = None, **settings: Any) -> "HostPair":
        tokenizer = tokenizer or chat_tokenizer()
        model = model or integers(tokenizer)
        drafter = ScriptedDrafter()
        plain = kind(model=model, tokenizer=tokenizer, drafter=None, **settings)
        fast = kind(model=model, tokenizer=tokenizer, decoding=drafting(drafter), **settings)
        return cls(plain, fast, drafter)

    def teach(self, prompt: str, options: dict[str, Any], rng: Random) -> None:
        """Tell the drafter what follows, and by which rule to draft."""
        self.drafter.forget()
        self.drafter.rule, self.drafter.rng = rng.choice(RULES), rng
        asked = options_of(self.plain, {**options, "stop": ()})
        [answer] = self.plain.loaded().answers([prompt], asked)
        self.drafter.know(self.plain.loaded().lm, answer.state.draft)


def cases(number: int, seeds: range) -> Iterator[tuple[str, dict[str, Any], Random]]:
    """Draw prompts and arguments of calls."""
    for seed in seeds:
        rng = Random(f"{number} {seed}")
        options = {
            **CHOICES[number],
            "seed": seed,
            "max_tokens": rng.choice([1, 2, 9, 30, 30]),
            "stop": rng.choice(STOPS),
        }
        yield rng.choice(PROMPTS), options, rng


class Repeating:
    """Drafts what it saw written behind the same front before: right from the second time on."""

    def __init__(self) -> None:
        self._texts: dict[tuple[int, ...], tuple[int, ...]] = {}

    def propose(self, context: DraftContext, budget: int) -> TokenTree:
        known, text = self._texts.get(context.front, ()), context.text
        if known[: len(text)] == text and len(known) > len(text):
            return TokenTree.of([known[len(text) :][:budget]])
        self._texts[context.front] = text
        return TokenTree()

    def update(self, accepted: Accepted) -> None:
        """Learn nothing."""
