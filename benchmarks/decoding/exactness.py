"""`python -m benchmarks.decoding.exactness`: long texts with drafts and without, token by token.

In float32 the texts have to be equal; how many choices were taken again is counted, by model.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import torch
import transformers
import typer

from benchmarks.harness.inputs import load_model
from benchmarks.harness.results import surroundings
from ralmspec_plugins.decoding import (
    Accepted,
    CostCurve,
    Decoding,
    DraftContext,
    PassageDrafter,
    SuffixDrafter,
    TokenTree,
)
from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.lm.prompts import PassageTemplate
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.retrieval.storage.files import write_whole
from ralmspec_plugins.testing.models import tiny_gpt2, tiny_tokenizer
from ralmspec_plugins.types import Passage, Request

FREE: Final = CostCurve((1, 64), (1.0, 1.0))  # every draft that may be right is verified
SAMPLINGS: Final = (Greedy(), Sampling(temperature=0.6), Sampling(temperature=0.8, top_p=0.9))
SEED: Final = 23
_PASSAGES: Final = (
    Passage("ships", "the ships that passed the island", "Lighthouse"),
    Passage("storm", "a storm sells the ships that passed the storm"),
)
_SIZES: Final = {
    "vocab_size": 384, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3,
    "eos_token_id": None, "bos_token_id": None,
}  # fmt: skip
_SHAPES: Final = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {}),
    "mistral": ("Mistral", {"sliding_window": None}),
}
SHAPES: Final = ("gpt2", *_SHAPES)


class Rereader:
    """Drafts the text itself, in pieces behind which, and beside which, stand wrong tokens.

    So nearly every choice rests on a pass over several rows.
    """

    def __init__(self) -> None:
        self.text: tuple[int, ...] = ()

    def propose(self, context: DraftContext, budget: int) -> TokenTree:
        at = len(context.text)
        right = self.text[at : at + 1 + at % 11]
        wrong = [[*right[:cut], 7 * at % 300] for cut in (0, at % 5, len(right))]
        return TokenTree.of([right, *wrong])

    def update(self, accepted: Accepted) -> None:
        """Learn nothing."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model whose texts are compared."""

    name: str
    model: Any
    tokenizer: Any
    template: PassageTemplate | None = None


def subject(name: str, context: int = 512) -> Subject:
    """Return a model: of a shape, randomly initialised; the demo's; or one that was saved.

    Args:
        name: of `SHAPES`, "demo", or a model's folder.
        context: positions of a model that is randomly initialised.
    """
    if name == "gpt2":
        return Subject(name, tiny_gpt2(context=context), tiny_tokenizer())
    if name in _SHAPES:
        kind, settings = _SHAPES[name]
        torch.manual_seed(SEED)
        sizes = {**_SIZES, "max_position_embeddings": context, **settings}
        config = getattr(transformers, f"{kind}Config")(**sizes)
        return Subject(name, getattr(transformers, f"{kind}ForCausalLM")(config), tiny_tokenizer())
    loaded = load_model(name, ())
    return Subject(name, loaded.model, loaded.tokenizer, loaded.template)


def compare(one: Subject, tokens: int, length: int) -> dict[str, Any]:
    """Write at least this many tokens both ways, in texts of a length, and count.

    Sampled and greedy texts take turns; all caches of a text are freed at its end.
    """
    rereader = Rereader()
    pairs = [_pair(one, sampling, rereader) for sampling in SAMPLINGS]
    written = different = 0
    number = 0
    while written < tokens:
        request = Request(prompt=f"The keeper of {number}", max_tokens=length, seed=number)
        plain, fast = pairs[number % len(pairs)]
        rereader.text = expected = _text(plain, request)
        found = _text(fast, request)
        written += len(expected)
        different += sum(left != right for left, right in zip(expected, found, strict=False))
        different += abs(len(expected) - len(found))
        number += 1
    counts: list[Any] = [fast.decoder.counts for _, fast in pairs]  # type: ignore[attr-defined]
    retaken = sum(count.retaken for count in counts)
    return {
        "model": one.name,
        "parameters": sum(weights.numel() for weights in one.model.parameters()),
        "dtype": str(one.model.dtype).removeprefix("torch."),
        "texts": number,
        "tokens": written,
        "different": different,
        "passes": sum(count.passes for count in counts),
        "accepted": sum(count.accepted for count in counts),
        "retaken": retaken,
        "retake_rate": retaken / written,
    }


def _pair(
    one: Subject, sampling: Greedy | Sampling, rereader: Rereader
) -> tuple[HuggingFaceLM, HuggingFaceLM]:
    drafters = (rereader, SuffixDrafter(), PassageDrafter())
    speculative = Decoding(drafter=drafters, costs=FREE, most_retakes=1.0)
    made = [
        HuggingFaceLM(
            one.model, one.tokenizer, sampling=sampling, template=one.template, decoding=decoding
        )
        for decoding in (None, speculative)
    ]
    return made[0], made[1]


def _text(lm: HuggingFaceLM, request: Request) -> tuple[int, ...]:
    draft = lm.begin(request)
    draft = lm.write(draft, _PASSAGES, request.max_tokens, Progress())
    lm.release(draft)
    return draft.tokens


def main(
    out: Annotated[Path, typer.Option(help="Where the counts go.")] = Path(
        "benchmarks/results/decoding_exactness.json"
    ),
    model: Annotated[
        list[str] | None, typer.Option(help="More models: folders of trained ones.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Of each model, at least.")] = 11_000,
    length: Annotated[int, typer.Option(min=1, help="Tokens of a text.")] = 300,
) -> None:
    """Compare texts of random GPT-2, Llama, Qwen and Mistral shapes, and of the demo's model."""
    torch.set_num_threads(1)
    rows = []
    for name in (*SHAPES, "demo", *(model or ())):
        rows.append(compare(subject(name), tokens, length))
        typer.echo(json.dumps(rows[-1]), err=True)
        result = {"surroundings": surroundings(), "models": rows}
        result["tokens"] = sum(row["tokens"] for row in rows)
        result["different"] = sum(row["different"] for row in rows)
        result["retaken"] = sum(row["retaken"] for row in rows)
        write_whole(out, (json.dumps(result, indent=1) + "\n").encode())
    if any(row["different"] for row in rows):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
