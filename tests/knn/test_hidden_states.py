import copy
import gc
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from ralmspec_plugins.errors import ConfigError, ModelError
from ralmspec_plugins.knn.hidden_states import KeyHook, _feed_forward, _last_layer

_TOKENS = torch.tensor([[5, 7, 11, 13, 17], [19, 23, 29, 31, 37]])
_LLAMA_LIKE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
}
_OPT: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "init_std": 0.3,
    "word_embed_proj_dim": 32,
}
_GPT2: dict[str, Any] = {
    "vocab_size": 64,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 32,
    "initializer_range": 0.3,
}
_NEOX: dict[str, Any] = {
    key: value for key, value in _LLAMA_LIKE.items() if key != "num_key_value_heads"
}
_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", _GPT2),
    "llama": ("Llama", _LLAMA_LIKE),
    "mistral": ("Mistral", _LLAMA_LIKE),
    "qwen2": ("Qwen2", _LLAMA_LIKE),
    "qwen3": ("Qwen3", {**_LLAMA_LIKE, "head_dim": 8}),
    "opt": ("OPT", _OPT),
    "opt, norms behind": ("OPT", {**_OPT, "do_layer_norm_before": False}),
    "opt, projected": ("OPT", {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "neox": ("GPTNeoX", _NEOX),
    "neox, not parallel": ("GPTNeoX", {**_NEOX, "use_parallel_residual": False}),
}


def build(name: str) -> Any:
    """Make a tiny model with random weights, norms included."""
    family, settings = _KINDS[name]
    suffix = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
    config = getattr(transformers, f"{family}Config")(**settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}{suffix}")(config).train(False)
        for module in model.modules():  # a norm that does something
            if "Norm" in type(module).__name__:
                nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


@pytest.fixture(scope="module", params=_KINDS)
def named(request: pytest.FixtureRequest) -> tuple[str, Any]:
    return request.param, build(request.param)


def _run(model: Any, tokens: Tensor = _TOKENS) -> Any:
    with torch.inference_mode():
        return model(input_ids=tokens)


def _layer_states(model: Any, layer: Any, part: str) -> tuple[Tensor, Tensor, Tensor]:
    """Run the model; give what goes into the last layer, its attention's output, its output."""
    seen: dict[str, Any] = {}
    handles = [
        layer.register_forward_pre_hook(
            lambda _module, args, kwargs: seen.update(
                into=args[0] if args else kwargs["hidden_states"]
            ),
            with_kwargs=True,
        ),
        getattr(layer, part).register_forward_hook(
            lambda _module, _args, output: seen.update(attended=output[0])
        ),
        layer.register_forward_hook(lambda _module, _args, output: seen.update(out=output)),
    ]
    _run(model)
    for handle in handles:
        handle.remove()
    out = seen["out"]
    return seen["into"], seen["attended"], out[0] if isinstance(out, tuple) else out


def _expected(name: str, model: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Work out the feed-forward's input by hand, what it makes of it, and the layer's output."""
    with torch.inference_mode():
        if name == "gpt2":
            layer = model.transformer.h[-1]
            into, attended, out = _layer_states(model, layer, "attn")
            states = layer.ln_2(into + attended)
            return states, into + attended + layer.mlp(states), out
        if name.startswith("opt"):
            layer = model.model.decoder.layers[-1]
            into, attended, out = _layer_states(model, layer, "self_attn")
            if layer.do_layer_norm_before:
                states = layer.final_layer_norm(into + attended)
                made = into + attended + layer.fc2(layer.activation_fn(layer.fc1(states)))
                return states, made, out
            states = layer.self_attn_layer_norm(into + attended)
            made = states + layer.fc2(layer.activation_fn(layer.fc1(states)))
            return states, layer.final_layer_norm(made), out
        if name.startswith("neox"):
            layer = model.gpt_neox.layers[-1]
            into, attended, out = _layer_states(model, layer, "attention")
            before = into if layer.use_parallel_residual else into + attended
            states = layer.post_attention_layernorm(before)
            return states, into + attended + layer.mlp(states), out
        layer = model.model.layers[-1]
        into, attended, out = _layer_states(model, layer, "self_attn")
        states = layer.post_attention_layernorm(into + attended)
        return states, into + attended + layer.mlp(states), out


def test_ffn_input_is_what_the_last_layer_makes_its_output_of(named: tuple[str, Any]) -> None:
    """In each family the key is the normed input of the last feed-forward part, worked by hand."""
    name, model = named
    expected, made, out = _expected(name, model)
    tap = KeyHook(model)  # behind what was worked by hand, with the model's own parts
    _run(model)
    actual = tap.taken()

    torch.testing.assert_close(expected, actual)
    torch.testing.assert_close(made, out)
    assert (2, 5, tap.dimension) == tuple(actual.shape)


def test_output_is_what_the_logits_are_made_of(named: tuple[str, Any]) -> None:
    """The model's own matrix makes just its logits of the output keys."""
    _, model = named
    tap = KeyHook(model, "output")
    expected = _run(model).logits
    states = tap.taken()
    with torch.inference_mode():
        actual = model.get_output_embeddings()(states)

    torch.testing.assert_close(expected, actual)
    assert (2, 5, tap.dimension) == tuple(states.shape)


@pytest.mark.parametrize("kind", ["ffn_input", "output"])
def test_a_tap_changes_nothing(kind: Any, gpt2: PreTrainedModel) -> None:
    """Logits are bit-equal with and without a tap."""
    before = _run(gpt2).logits
    tap = KeyHook(gpt2, kind)
    after = _run(gpt2).logits

    assert torch.equal(before, after)
    assert tap.kind == kind


@pytest.mark.parametrize("kind", ["ffn_input", "output"])
def test_only_the_last_pass_is_given(kind: Any, llama: PreTrainedModel) -> None:
    """A pass over other tokens replaces what the one before it left."""
    tap = KeyHook(llama, kind)
    _run(llama)
    expected = tap.taken()
    _run(llama, _TOKENS + 1)
    _run(llama)
    actual = tap.taken()

    assert torch.equal(expected, actual)
    with pytest.raises(ModelError, match="no pass in this thread"):
        tap.taken()


def test_threads_do_not_see_each_others_passes(llama: PreTrainedModel) -> None:
    """Another thread's pass leaves this thread's states as they are."""
    tap = KeyHook(llama)
    _run(llama)
    with ThreadPoolExecutor(1) as other:
        other.submit(_run, llama, _TOKENS + 1).result()
        theirs = other.submit(tap.taken).result()
    ours = tap.taken()
    _run(llama)

    assert torch.equal(tap.taken(), ours)
    assert not torch.equal(theirs, ours)


def test_taps_of_both_kinds_stand_side_by_side(gpt2: PreTrainedModel) -> None:
    """Each tap of a model gives its own states."""
    first, second = KeyHook(gpt2), KeyHook(gpt2, "output")
    _run(gpt2)

    assert not torch.equal(first.taken(), second.taken())


def test_a_dropped_tap_leaves_the_model() -> None:
    """No hook stays behind when a tap is no longer used."""

    def hooks(model: Any) -> int:
        return sum(
            len(module._forward_hooks) + len(module._forward_pre_hooks)
            for module in model.modules()
        )

    model = build("llama")
    tap: KeyHook | None = KeyHook(model)
    tapped = hooks(model)
    del tap
    gc.collect()

    assert (2, 0) == (tapped, hooks(model))


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_tapped_model_can_be_copied(twin: Callable[[Any], Any]) -> None:
    """The copy works, and its passes are not seen by the original's tap."""
    model = build("opt")
    tap = KeyHook(model)
    expected = _run(model).logits
    tap.taken()
    actual = _run(twin(model)).logits

    assert torch.equal(expected, actual)
    with pytest.raises(ModelError, match="no pass"):
        tap.taken()


def test_a_model_without_feed_forward_parts_is_refused() -> None:
    """A Mamba has none; the message says so and names the other kind, which it does have."""
    config = transformers.MambaConfig(
        vocab_size=64, hidden_size=32, state_size=4, num_hidden_layers=2
    )
    model = transformers.MambaForCausalLM(config).train(False)

    with pytest.raises(ModelError, match=r"MambaForCausalLM .* 0 of its parts .* 'output'"):
        KeyHook(model)
    assert KeyHook(model, "output").dimension == 32


def test_bad_kinds_and_models_are_refused(llama: Any) -> None:
    """An unknown kind lists the known ones; a model without logits has no output keys."""
    with pytest.raises(ConfigError, match="ffn_input, output, got 'query'"):
        KeyHook(llama, "query")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="makes no logits"):
        KeyHook(llama.model, "output")


@pytest.mark.parametrize("name", ["llama", "opt", "opt, norms behind"])
def test_a_tap_may_go_in_the_middle_of_a_pass(name: str) -> None:
    """Torch still calls its hook, without the keywords that it was registered with."""
    model = build(name)
    expected = _run(model).logits
    taps: list[KeyHook] = []
    feed_forward = _feed_forward(_last_layer(model))
    feed_forward.register_forward_pre_hook(lambda *_: taps.clear())
    taps.append(KeyHook(model))

    assert torch.equal(expected, _run(model).logits)
    assert taps == []


@pytest.mark.parametrize("name", ["llama", "opt", "opt, norms behind"])
def test_a_tap_may_come_in_the_middle_of_a_pass(name: str) -> None:
    """Its layer's hook is called and the one before it was not: that pass has no states."""
    model = build(name)
    expected = _run(model).logits
    taps: list[KeyHook] = []
    layer = _last_layer(model)
    come = _feed_forward(layer).register_forward_hook(lambda *_: taps.append(KeyHook(model)))
    layer.register_forward_hook(lambda *_: None)  # without any, Torch looks for none

    assert torch.equal(expected, _run(model).logits)
    [tap] = taps
    with pytest.raises(ModelError, match="no pass"):
        tap.taken()
    come.remove()
    _run(model)
    assert tap.taken().shape == (*_TOKENS.shape, tap.dimension)
