"""Finds in a causal model the hidden state that is a KNN-LM key, and shows it after each pass."""

import threading
import weakref
from typing import Any

from ralmspec_plugins.errors import ConfigError, MissingExtraError, ModelError
from ralmspec_plugins.knn.datastore import KEY_KINDS, KeyKind

try:
    from torch import Tensor, nn
    from transformers import PreTrainedModel
except ImportError as missing:
    raise MissingExtraError("hf", "transformers with torch") from missing

# What the layers of causal models call their feed-forward part, or the first matrix of it.
_FEED_FORWARD = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "fc1")


class KeyHook:
    """Shows a hidden state of a model's passes; the model computes what it would without.

    Two kinds of keys:

    - `"ffn_input"`: what goes into the last layer's feed-forward part, behind its norm
      (Khandelwal et al. 2020). In a layer that puts its norms behind its parts (OPT
      with `do_layer_norm_before=False`) that is behind the attention's norm.
    - `"output"`: the last hidden state, as the matrix that makes logits sees it.

    The place is found by the model's shape, not by its name: GPT-2, Llama, Mistral,
    Qwen2, Qwen3, OPT, GPT-NeoX and whatever else has one stack of layers with a
    feed-forward part in each. Passes of several threads do not meet here. The model
    forgets a tap that is dropped.

    Attributes:
        kind: the kind of key.
        dimension: how many numbers a key has.
    """

    def __init__(self, model: PreTrainedModel, kind: KeyKind = "ffn_input") -> None:
        """Tap a model from its next pass on.

        Raises:
            ConfigError: an unknown kind.
            ModelError: there is no such place in this model, or more than one.
        """
        if kind not in KEY_KINDS:
            raise ConfigError(f"a kind of keys must be one of {', '.join(KEY_KINDS)}, got {kind!r}")
        self.kind = kind
        self._caught = _Caught()
        if kind == "output":
            self.dimension = _output_dimension(model)
            handles = [_decoder(model).register_forward_hook(self._caught.output)]
        else:
            self.dimension = int(_text_config(model).hidden_size)
            layer = _last_layer(model)
            handles = [
                _feed_forward(layer).register_forward_pre_hook(
                    self._caught.ffn_input, with_kwargs=True
                ),
                layer.register_forward_hook(self._caught.unflatten),
            ]
        for handle in handles:
            weakref.finalize(self, handle.remove)

    def taken(self) -> Tensor:
        """Return the states of this thread's last pass, once: [batch, positions, dimension].

        They are in the model's precision and on its device.

        Raises:
            ModelError: the model made no pass in this thread since the last call.
        """
        states = self._caught.taken()
        if states is None:
            raise ModelError(
                "There is no hidden state to take: the tapped model made no pass in this thread "
                "since the last one was taken. Run the model first"
            )
        return states


class _Caught:
    """The states of each thread's last pass, and the hooks that bring them here.

    A tap may come or go in the middle of another thread's pass. Torch then calls one of the
    hooks without the other, or without the keywords: nobody asks for the states of that pass.
    """

    def __init__(self) -> None:
        self._of_thread = threading.local()

    def __reduce__(self) -> tuple[type["_Caught"], tuple[()]]:
        """Copy nothing: a copied or pickled model is another one, and nobody's tap."""
        return type(self), ()

    def taken(self) -> Tensor | None:
        """Return the states and forget them."""
        states: Tensor | None = self._of_thread.__dict__.pop("states", None)
        return states

    def ffn_input(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> None:
        """Keep what goes into a feed-forward part, which comes first whatever else does."""
        if kwargs is not None:
            self._of_thread.states = args[0] if args else next(iter(kwargs.values()))

    def unflatten(self, module: Any, args: tuple[Any, ...], output: Any) -> None:
        """Give back its shape to what a layer (OPT's) made one row for each position of."""
        states: Tensor | None = self._of_thread.__dict__.get("states")
        if states is not None and states.dim() == 2:
            whole = output[0] if isinstance(output, tuple) else output
            self._of_thread.states = states.view(*whole.shape[:2], -1)

    def output(self, module: Any, args: tuple[Any, ...], output: Any) -> None:
        """Keep what a decoder gives first, its last hidden state."""
        self._of_thread.states = output[0]


def _last_layer(model: PreTrainedModel) -> nn.Module:
    """Find the stack of as many layers as the model has, and give its last.

    Raises:
        ModelError: there is none with feed-forward parts, or more than one.
    """
    count = _text_config(model).num_hidden_layers
    stacks = [
        stack
        for stack in _decoder(model).modules()
        if isinstance(stack, nn.ModuleList) and len(stack) == count and _names(stack[-1])
    ]
    if len(stacks) != 1:
        raise ModelError(
            f"It cannot be said which hidden state of a {type(model).__name__} is the input of "
            f"the last feed-forward part: {len(stacks)} of its parts are lists of {count} layers "
            f"with one of {', '.join(_FEED_FORWARD)}, and one must be. Use the keys 'output'"
        )
    return stacks[0][-1]


def _feed_forward(layer: nn.Module) -> nn.Module:
    return layer.get_submodule(_names(layer)[0])


def _names(layer: nn.Module) -> list[str]:
    children = dict(layer.named_children())
    return [name for name in _FEED_FORWARD if name in children]


def _decoder(model: Any) -> nn.Module:
    """Return the part below the matrix that makes logits; the function that does is untyped."""
    decoder: nn.Module = model.get_decoder()
    return decoder


def _text_config(model: PreTrainedModel) -> Any:
    return model.config.get_text_config(decoder=True)


def _output_dimension(model: Any) -> int:
    matrix = model.get_output_embeddings()
    if matrix is None:
        raise ModelError(
            f"A {type(model).__name__} makes no logits, so it has no output to take keys from; "
            "load it as a causal model"
        )
    return int(matrix.weight.shape[-1])
