"""Hooks that capture the hidden state of a causal model that is a KNN-LM key."""

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

# Names of the feed-forward part, or of its first matrix, in layers of causal models.
_FEED_FORWARD = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "fc1")


class KeyHook:
    """Captures a hidden state of a model's passes, without changing its results.

    Two kinds of keys:

    - `"ffn_input"`: the input of the last layer's feed-forward part, after its norm
      (Khandelwal et al. 2020). In a layer with norms after its parts (OPT
      with `do_layer_norm_before=False`) that is after the attention's norm.
    - `"output"`: the last hidden state, which is the input of the output matrix.

    The location is found by the model's structure, not by its name: GPT-2, Llama, Mistral,
    Qwen2, Qwen3, OPT, GPT-NeoX and any other model with one stack of layers with a
    feed-forward part in each. Passes of different threads are separate. The hook is removed
    with the last reference to it.

    Attributes:
        kind: the kind of key.
        dimension: the dimension of a key.
    """

    def __init__(self, model: PreTrainedModel, kind: KeyKind = "ffn_input") -> None:
        """Install the hooks in a model.

        Raises:
            ConfigError: the kind is unknown.
            ModelError: the location is missing in this model, or ambiguous.
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
                "There is no hidden state: the model made no pass in this thread "
                "since the last call. Run the model first"
            )
        return states


class _Caught:
    """The states of each thread's last pass, and the hooks that store them.

    Hooks may be added or removed during another thread's pass. Torch then calls one of the
    hooks without the other, or without the keywords: the states of that pass are not used.
    """

    def __init__(self) -> None:
        self._of_thread = threading.local()

    def __reduce__(self) -> tuple[type["_Caught"], tuple[()]]:
        """Copy as an empty object: a copied or pickled model has no hooks."""
        return type(self), ()

    def taken(self) -> Tensor | None:
        """Return the states and remove them."""
        states: Tensor | None = self._of_thread.__dict__.pop("states", None)
        return states

    def ffn_input(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> None:
        """Store the input of a feed-forward part, its first argument."""
        if kwargs is not None:
            self._of_thread.states = args[0] if args else next(iter(kwargs.values()))

    def unflatten(self, module: Any, args: tuple[Any, ...], output: Any) -> None:
        """Restore the shape of a state that a layer (of OPT) flattened to one row per position."""
        states: Tensor | None = self._of_thread.__dict__.get("states")
        if states is not None and states.dim() == 2:
            whole = output[0] if isinstance(output, tuple) else output
            self._of_thread.states = states.view(*whole.shape[:2], -1)

    def output(self, module: Any, args: tuple[Any, ...], output: Any) -> None:
        """Store the first output of a decoder, its last hidden state."""
        self._of_thread.states = output[0]


def _last_layer(model: PreTrainedModel) -> nn.Module:
    """Return the last layer of the model's stack of layers.

    Raises:
        ModelError: there is no stack with feed-forward parts, or more than one.
    """
    count = _text_config(model).num_hidden_layers
    stacks = [
        stack
        for stack in _decoder(model).modules()
        if isinstance(stack, nn.ModuleList) and len(stack) == count and _names(stack[-1])
    ]
    if len(stacks) != 1:
        raise ModelError(
            f"It is unknown which hidden state of a {type(model).__name__} is the input of "
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
    """Return the part below the output matrix; the function that returns it is untyped."""
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
