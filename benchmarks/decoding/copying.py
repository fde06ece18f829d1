"""Llamas that begin with heads that copy, as every larger model has them (2209.11895).

Heads of the first layer write what stood before each place into columns of their own. Heads of the
second layer look for where the same stood earlier, and copy what followed.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

_FAST: Final = 10  # pairs that find a place
_SPREAD: Final = 0.04  # of embeddings of 384 columns; of fewer ones, more
_WIDTH: Final = 384
_QUIET: Final = 0.002  # of what else writes into the stream
_POINTED: Final = 9.0  # of looking at a place
_COPIED: Final = 2.5  # weight of a copied token, in embeddings
_OTHER: Final = 24  # places by which the parts that two heads compare differ
_BROAD: Final = 2  # of the fastest pairs, left out to look at a stretch of places
_STRETCH: Final = 5  # places back to its middle
_STRETCH_POINTED: Final = 5.5
_STRETCH_WEIGHT: Final = 3.0  # the mean of about nine names is a third of one


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyingShape:
    """The size of a model, and what its copying heads compare.

    Attributes:
        layers: of the model.
        width: of the stream.
        heads: of a layer.
        before: 1 to compare the last token, 2 to compare the last two.
        stretch: also compare the mean of the last ten tokens or so: in a long context, many places
            have the same last two.
        block: columns for each of the things that stood before; a head's width unless given.
        part: columns of the names that each head copies; a head's width unless given.
        vocabulary: number of tokens.
        context: number of positions.
        theta: of the rotary positions: most pairs of a head hardly turn in a text.
        steady: radians a position, at most, of pairs that compare.
        sharp: weight of comparisons.
        signs: tokens are told apart by signs, so that all are compared alike, not by normal
            numbers.
    """

    layers: int
    width: int
    heads: int
    before: int
    stretch: bool = False
    block: int = 0
    part: int = 0
    vocabulary: int = 8192
    context: int = 2048
    theta: float = 1e7
    steady: float = 1e-3
    sharp: float = 2.5
    signs: bool = False

    @property
    def size(self) -> int:
        """Columns of a head."""
        return self.width // self.heads

    @property
    def columns(self) -> int:
        """Columns of a block."""
        return self.block or self.size

    @property
    def names(self) -> int:
        """The first so many columns are drawn, and tell tokens apart."""
        return self.width - (self.before + 2 * self.stretch) * self.columns

    def start(self, number: int) -> int:
        """Return the first column of a block behind the names."""
        return self.names + number * self.columns

    def config(self) -> LlamaConfig:
        """Return what a Llama of this shape is made of."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.width * 8 // 3,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=self.context,
            rope_parameters={"rope_type": "default", "rope_theta": self.theta},
            attention_bias=True,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=None,
            pad_token_id=None,
        )

    def turns(self) -> Tensor:
        """Return by how much each pair of a head's columns turns in a position, in radians."""
        half = self.size // 2
        return self.theta ** -(torch.arange(half) / half)


def copying_model(shape: CopyingShape) -> LlamaForCausalLM:
    """Draw a Llama that copies from the beginning.

    Heads of the first layer write the names of the tokens one and two places before into blocks
    of their own; with a stretch, two more write the mean name of the last ten tokens or so, up to
    the place itself and up to the one before it. Heads of the second layer compare the last token
    with the first of these blocks at all places, the one before it with the second, and the two
    means; each adds its part of the name that it finds to the stream.
    """
    torch.manual_seed(0)
    model = LlamaForCausalLM(shape.config())
    draw = torch.Generator().manual_seed(1)
    square = torch.linalg.qr(torch.randn(shape.names, shape.names, generator=draw))[0]
    view = square[: shape.columns]  # [columns, names]: for comparisons
    spread = _SPREAD * _WIDTH / shape.width
    with torch.no_grad():
        inner: Any = model.model
        weights = inner.embed_tokens.weight
        weights.normal_(0.0, spread, generator=draw)
        weights[:, shape.names :] = 0.0
        if shape.signs:
            weights[:, : shape.names] = weights[:, : shape.names].sign() @ square * spread
        for layer in inner.layers:
            layer.self_attn.o_proj.weight.normal_(0.0, _QUIET, generator=draw)
            layer.mlp.down_proj.weight.normal_(0.0, _QUIET, generator=draw)
        first, second = (layer.self_attn for layer in inner.layers[:2])
        for head in range(shape.before):
            _look_back(first, head, shape, head + 1)
            _write(first, head, shape, view, 0, shape.start(head), spread)
        if shape.stretch:
            for number in range(2):
                head = shape.before + number
                _look_back(first, head, shape, _STRETCH + number, _BROAD, _STRETCH_POINTED)
                weight = spread * _STRETCH_WEIGHT
                _write(first, head, shape, view, 0, shape.start(head), weight)
        part = torch.eye(shape.part or shape.size)
        for head in range(shape.names // len(part)):
            _compare(second, head, shape, view)
            at = head * len(part)
            _write(second, head, shape, part, at, at, spread * _COPIED)
    return model


def _look_back(
    attention: Any,
    head: int,
    shape: CopyingShape,
    back: int,
    skipped: int = 0,
    pointed: float = _POINTED,
) -> None:
    """Make a head look so many places back; with the fastest pairs skipped, around that place."""
    size, turn = shape.size, shape.turns()
    rows = slice(head * size, (head + 1) * size)
    pairs = torch.arange(size // 2)
    shown = ((skipped <= pairs) & (pairs < _FAST)) * pointed
    for one in (attention.q_proj, attention.k_proj):
        one.weight[rows].mul_(0.1)
    attention.q_proj.bias[rows] = torch.cat([shown, torch.zeros(size // 2)])
    attention.k_proj.bias[rows] = torch.cat(
        [shown * torch.cos(turn * back), shown * torch.sin(turn * back)]
    )


def _write(
    attention: Any,
    head: int,
    shape: CopyingShape,
    view: Tensor,
    source: int,
    to: int,
    weight: float,
) -> None:
    """Make a head read columns through a view, and add them to others."""
    rows = slice(head * shape.size, (head + 1) * shape.size)
    count, columns = view.shape
    first = head * shape.size
    attention.v_proj.weight[rows] = 0.0
    attention.v_proj.weight[first : first + count, source : source + columns] = view
    attention.o_proj.weight[:, rows] = 0.0
    attention.o_proj.weight[to : to + count, first : first + count] = torch.eye(count) * weight


def _compare(attention: Any, head: int, shape: CopyingShape, view: Tensor) -> None:
    """Make a head look at places behind what is the same as the last tokens."""
    first, half = head * shape.size, shape.size // 2
    steady = [at for at, turn in enumerate(shape.turns()) if turn < shape.steady]
    places = [*steady, *(at + half for at in steady)]
    for one in (attention.q_proj, attention.k_proj):
        one.weight[first : first + shape.size] = 0.0
    compared = _compared(shape)
    ends = [math.floor(share * len(places)) for share in _shares(shape)]
    for number, place in enumerate(places):
        part = (number + _OTHER * head) % shape.columns  # other heads compare other parts
        asks, has = attention.q_proj.weight[first + place], attention.k_proj.weight[first + place]
        ask, have = compared[sum(number >= end for end in ends)]
        if ask is None:
            asks[: shape.names] = view[part] * shape.sharp
        else:
            asks[shape.start(ask) + part] = shape.sharp
        has[shape.start(have) + part] = shape.sharp


def _compared(shape: CopyingShape) -> list[tuple[int | None, int]]:
    """Return which block at the last place is compared with which one at all; None: the name."""
    pairs: list[tuple[int | None, int]] = [(None, 0)]
    if shape.before == 2:
        pairs.append((0, 1))
    if shape.stretch:
        pairs.append((shape.before, shape.before + 1))
    return pairs


def _shares(shape: CopyingShape) -> list[float]:
    """Return up to which share of a head's places each thing is compared."""
    if shape.stretch:
        return [0.3, 0.5][: shape.before] if shape.before == 2 else [0.5]
    return [2 / 3] if shape.before == 2 else []
