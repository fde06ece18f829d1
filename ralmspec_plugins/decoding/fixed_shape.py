"""Passes of one fixed shape, in which a token's logits do not depend on the other rows.

A pass over several tokens differs in the last bits from passes over one, because sizes of
matrix products and reductions differ. Where every pass has the same number of rows and the
same length of cache, all sizes are equal; where the machine then computes rows independently
of each other, which `probe` tests, the logits of tokens read together equal those of tokens read
one by one to the bit, in any precision.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from ralmspec_plugins.errors import ModelError
from ralmspec_plugins.lm.kv_cache import Last, ModelRunner, is_croppable

FIRST_BUCKET: Final = 256  # positions; each further bucket is twice as long
PREFILL_ROWS: Final = 128  # rows of a pass over prompt or passages
_PADDING: Final = 0  # the token in unused rows


class FixedShapeLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, in buffers of a fixed length; `length` columns are in use."""

    keeps_all_tokens = True
    is_croppable = True

    def __init__(self, size: int) -> None:
        """Create a layer of at most `size` columns."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.size = size
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Create the buffers, in the shape and precision of the first states."""
        self.keys = self._buffer(key_states)
        self.values = self._buffer(value_states)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write states after the columns in use, and return the whole buffers."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        stop = self.length + key_states.shape[-2]
        self.keys[..., self.length : stop, :] = key_states
        self.values[..., self.length : stop, :] = value_states
        self.length = stop
        return self.keys, self.values

    def resize(self, size: int) -> None:
        """Change the buffers' length, and keep the columns in use."""
        if size != self.size and self.is_initialized:
            keys, values = self.keys, self.values
            assert keys is not None
            assert values is not None
            self.size = size
            self.keys, self.values = self._buffer(keys), self._buffer(values)
            self.keys[..., : self.length, :] = keys[..., : self.length, :]
            self.values[..., : self.length, :] = values[..., : self.length, :]
        self.size = size

    def crop(self, tokens_to_remove: int) -> None:
        """Release the last columns in use."""
        self.length -= abs(tokens_to_remove)

    def get_seq_length(self) -> int:
        """Return the number of columns in use."""
        return self.length

    def get_max_length(self) -> int:
        """Return the buffers' length."""
        return self.size

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the length and the offset of what attention sees."""
        return self.size, 0

    def _buffer(self, like: Tensor) -> Tensor:
        shape = (*like.shape[:-2], self.size, like.shape[-1])
        return torch.zeros(shape, dtype=like.dtype, device=like.device)


class FixedShapeRunner(ModelRunner):
    """Runs a model in passes of `rows` rows over caches of a fixed length.

    A position belongs to one bucket of cache lengths (256, 512, 1024, ...), and no pass
    has rows in two. Rows without a token are masked, and their keys and values are overwritten.
    So a token's keys, values and logits depend on the tokens before it and on the compute
    schedule's prefill, but not on how tokens are divided into passes.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache_bytes: int,
        *,
        rows: int,
        first_bucket: int = FIRST_BUCKET,
    ) -> None:
        """Create a runner of a model.

        Args:
            model: a model with full attention, "sdpa" or "eager".
            cache_bytes: as for `ModelRunner`.
            rows: the rows of a pass over tokens of a text.
            first_bucket: the length of the shortest cache, in positions.

        Raises:
            ModelError: the model does not accept a custom mask, its caches discard tokens, or
                its position embeddings depend on the length of a pass.
        """
        super().__init__(model, cache_bytes)
        if not self.takes_trees or not is_croppable(super().empty_cache()):
            raise ModelError("passes of a fixed shape need full attention, 'sdpa' or 'eager'")
        if self.scale_change is not None:
            raise ModelError(
                "the position embeddings of this model ('longrope') depend on the length of a "
                "pass, so a prompt cannot be divided into passes of a fixed shape"
            )
        self.takes_trees = False  # only chains have the columns of plain decoding
        self.rows = rows
        self._first_bucket = first_bucket
        config = model.config.get_text_config(decoder=True)
        self._layers = int(config.num_hidden_layers)
        self._positions = getattr(config, "max_position_embeddings", None)

    def empty_cache(self) -> Cache:
        """Return an empty cache."""
        size = self._first_bucket + self.rows
        return Cache(layers=[FixedShapeLayer(size) for _ in range(self._layers)])

    def prefill_pass(self, cache: Cache, tokens: Sequence[int], keep: int = 1) -> Last:
        """Read tokens in passes of 128 rows; return the output of the last `keep` positions."""
        return self._in_passes(cache, tokens, keep, PREFILL_ROWS)

    def _pass(self, cache: Cache, tokens: Sequence[int], keep: int = 1, **more: Any) -> Last:
        return self._in_passes(cache, tokens, keep, self.rows)

    def _in_passes(self, cache: Cache, tokens: Sequence[int], keep: int, rows: int) -> Last:
        parts = self._parts(cache.get_seq_length(), tokens, rows)
        found = [self._fixed_pass(cache, part, rows) for part in parts]
        return Last(torch.cat(found)[-keep:], None)

    def bucket(self, position: int) -> int:
        """Return the length of the cache over which a position is computed.

        Args:
            position: from 0.
        """
        length = self._first_bucket
        while position >= length:
            length *= 2
        return length

    def _parts(self, position: int, tokens: Sequence[int], rows: int) -> Iterator[Sequence[int]]:
        """Divide tokens into passes of at most `rows`, none of them in two buckets."""
        at = 0
        while at < len(tokens):
            most = min(rows, self.bucket(position + at) - (position + at))
            yield tokens[at : at + most]
            at += most

    def _fixed_pass(self, cache: Cache, tokens: Sequence[int], rows: int) -> Tensor:
        """Run one pass; return the logits after each token: [tokens, vocabulary], float32."""
        past, count = cache.get_seq_length(), len(tokens)
        size = self.bucket(past) + max(self.rows, PREFILL_ROWS)
        layers: list[Any] = cache.layers
        for layer in layers:
            layer.resize(size)
        padded = [*tokens, *[_PADDING] * (rows - count)]
        places = _numbers(past, past + rows)
        mask = torch.zeros((rows, size), dtype=self.model.dtype, device="cpu")
        mask.masked_fill_(_numbers(0, size) > places[:, None], torch.finfo(mask.dtype).min)
        if self._positions is not None:  # unused rows may exceed the last position
            places = places.clamp(max=self._positions - 1)
        arguments: dict[str, Any] = {
            "attention_mask": mask[None, None].to(self.device),
            "position_ids": places[None].to(self.device),
            self._cache_argument: cache,
            "use_cache": True,
        }
        first = 0
        if self._keeps:  # in a prefill only of the last tokens, a fixed number
            first = max(0, count - self.rows)
            arguments["logits_to_keep"] = _numbers(first, first + self.rows)

        def logits() -> Tensor:
            ids = torch.tensor([padded], dtype=torch.long, device=self.device)
            output = self.model(input_ids=ids, **arguments)
            cache.crop(count - rows)
            kept: Tensor = output.logits[0, : count - first].to(torch.float32, copy=True)
            return kept

        return self._computed(logits, count)


def _numbers(start: int, stop: int) -> Tensor:
    """Return a range on the CPU, whatever torch's default device is."""
    return torch.arange(start, stop, device="cpu")


def probe(runner: FixedShapeRunner, vocabulary: int, *, rounds: int = 3) -> int:
    """Return the number of rows whose logits depend on how tokens are divided into passes.

    The same tokens are read one by one and in chains of all lengths, followed by rejected drafts,
    before and across the border between the first two buckets.

    Args:
        runner: the runner of the model.
        vocabulary: the size of the model's vocabulary.
        rounds: the number of repetitions, with other tokens each time.
    """
    differing = 0
    border = runner.bucket(0)
    for number, start in itertools.product(range(rounds), (5, border - runner.rows)):
        tokens = [
            (31 + number * 17 + at * 29) % vocabulary for at in range(start + 3 * runner.rows)
        ]
        singly, chains = (runner.start(tokens[:start]) for _ in range(2))
        lengths = itertools.cycle(range(runner.rows, 0, -1))
        while len(chains.tokens) < len(tokens) - start - runner.rows:
            at = start + len(chains.tokens)
            real = min(next(lengths), len(tokens) - at)
            junk = tokens[: runner.rows - real]
            chain = [*tokens[at : at + real], *junk]
            rows = runner.read_rows(chains, chain, range(-1, len(chain) - 1))
            for row in range(real):
                runner.feed(singly, tokens[at + row])
                differing += not torch.equal(rows.logits[row], singly.logits[0])
            runner.keep_rows(chains, rows, range(real))
    return differing
