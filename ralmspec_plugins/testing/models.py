"""Tiny models with random weights, built in a fraction of a second, for tests.

They need the `hf` extra. Their weights are drawn wider than a trained model's
start, so that passages change what is written.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast

_CORPUS = (
    "The lighthouse keeper counted the ships that passed the island before the storm.",
    "A passage is put in front of the prompt, and the model continues the text.",
    "Naïve cafés sell crêpes; the señor pays 25 € and smiles 🙂 at the 東京 skyline 🌃.",
)
_VOCABULARY = 384


def tiny_tokenizer(*, bos: bool = True) -> "PreTrainedTokenizerFast":
    """Train a byte-level BPE tokenizer of 384 tokens; any text survives a round trip."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    bos_text, eos_text = "<s>", "</s>"
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[bos_text, eos_text],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS * 20, trainer)
    build: Any = PreTrainedTokenizerFast  # untyped
    wrapped: PreTrainedTokenizerFast = build(
        tokenizer_object=tokenizer,
        bos_token=bos_text if bos else None,
        eos_token=eos_text,
    )
    return wrapped


def tiny_llama(
    *,
    seed: int = 0,
    dtype: "torch.dtype | None" = None,
    hidden: int = 32,
    layers: int = 2,
    context: int = 512,
) -> "LlamaForCausalLM":
    """Build a Llama with random weights; `</s>` does not end its texts."""
    import torch
    from torch import nn
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: LlamaForCausalLM = LlamaForCausalLM(config).train(False)
    if dtype is not None:
        nn.Module.to(model, dtype)  # in place
    return model


def tiny_gpt2(
    *, seed: int = 0, dtype: "torch.dtype | None" = None, context: int = 512
) -> "GPT2LMHeadModel":
    """Build a GPT-2 with random weights; `</s>` does not end its texts."""
    import torch
    from torch import nn
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=_VOCABULARY,
        n_positions=context,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: GPT2LMHeadModel = GPT2LMHeadModel(config).train(False)
    if dtype is not None:
        nn.Module.to(model, dtype)  # in place
    return model
