"""The models of benchmarks: the demo's, drawn ones of any size, any Hugging Face model by name."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ralmspec_plugins.demo import MODEL
from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.lm import HuggingFaceLM, PassageTemplate
from ralmspec_plugins.lm.caches import Lineage
from ralmspec_plugins.lm.draft import Draft
from ralmspec_plugins.records import Request

_DRAWN: Final = re.compile(r"random:(\d+)x(\d+)")
_HEAD: Final = 64  # the width of an attention head
_VOCABULARY: Final = 8192
_CONTEXT: Final = 2048
_KEPT: Final = 1000  # requests whose scripts are kept


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Weights and tokenizer, from which each engine gets a language model of its own."""

    name: str
    model: Any
    tokenizer: Any
    template: PassageTemplate = field(default_factory=PassageTemplate)

    @property
    def parameters(self) -> int:
        """How many there are."""
        return sum(one.numel() for one in self.model.parameters())

    def writer(self, *, trace: bool) -> HuggingFaceLM:
        """Give a language model with caches of its own; one that keeps to scripts, if asked."""
        kind = TraceLM if trace else HuggingFaceLM
        return kind(self.model, self.tokenizer, template=self.template)


def load_model(name: str, texts: Sequence[str]) -> LoadedModel:
    """Load a model, or draw one.

    Args:
        name: "demo"; "random:4x256", a Llama of 4 layers and width 256 whose weights are
            drawn and whose vocabulary is learned from the texts: its words mean nothing, its
            passes cost what they cost; or a folder or hub name.
        texts: what a drawn model's vocabulary is made of.

    Raises:
        ConfigError: a drawn model of a size that there cannot be.
        ModelError: there is none of this name.
    """
    drawn = _DRAWN.fullmatch(name)
    if drawn is None:
        path = str(MODEL) if name == "demo" else name
        loaded = HuggingFaceLM.from_pretrained(path)
        template = PassageTemplate(prompt="{prompt}\n") if name == "demo" else PassageTemplate()
        return LoadedModel(name, loaded.model, loaded.tokenizer, template)
    layers, width = map(int, drawn.groups())
    if layers < 1 or width < _HEAD or width % _HEAD:
        raise ConfigError(
            f"{name!r}: layers must be at least 1 and the width a multiple of {_HEAD}"
        )
    return LoadedModel(name, _drawn(layers, width), vocabulary(texts))


def vocabulary(texts: Sequence[str], size: int = _VOCABULARY) -> Any:
    """Learn byte pairs from texts: about four letters a token, as large models have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast: Any = PreTrainedTokenizerFast  # its constructor is untyped
    return fast(tokenizer_object=tokenizer, bos_token="<s>")  # noqa: S106


def _drawn(layers: int, width: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // _HEAD,
        num_key_value_heads=width // _HEAD,
        max_position_embeddings=_CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


class TraceLM(HuggingFaceLM):
    """Writes what `Request.context` says, a text, and does all the passes that writing takes.

    So the queries drift as those of a real article do, whatever the model is worth, and
    every pass over passages, prompt and tokens costs what it costs. What is written does not
    depend on the passages: behind a wrong guess the same questions come again, as they do
    where a text reconverges.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what a `HuggingFaceLM` takes."""
        super().__init__(*args, **kwargs)
        self._scripts: dict[int, list[int]] = {}  # by owner

    def begin(self, request: Request) -> Draft:
        """Tokenise the prompt, and what is to be written.

        Raises:
            InputError: there is no script, or it is shorter than the answer.
        """
        draft = super().begin(request)
        if not isinstance(request.context, str):
            raise InputError("a trace needs the text to write in Request.context")
        with self._tokenizer_lock:
            script = self.tokenizer.encode(f" {request.context}", add_special_tokens=False)
        if len(script) < request.max_tokens:
            raise InputError(
                f"the script has {len(script)} tokens, fewer than max_tokens={request.max_tokens}"
            )
        self._scripts[draft.origin.owner] = script
        self._scripts.pop(draft.origin.owner - _KEPT, None)
        return draft

    def _next_token(self, draft: Draft, lineage: Lineage, logits: torch.Tensor) -> int:
        super()._next_token(draft, lineage, logits)  # choosing is part of the cost
        return self._scripts[draft.origin.owner][len(draft.tokens)]
