"""Key-value caches, and the compute schedule of passes that makes tokens bit-equal.

The same tokens in other passes give logits that differ in the last bits.
So the tokens of each pass are determined by a `PrefillSchedule`, independently of history:

1. the prefix (passages) in one pass;
2. the prompt, with the tokens generated before these passages, in one pass;
3. each later token in a separate pass.

A cache in memory saves passes; it never changes the passes that a result depends on.

If several tokens are read in one pass nevertheless (`read_rows`, for drafts), a
`Run` records how many of its tokens were read by the schedule, and can be rolled back to them.
"""

import copy
import inspect
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ralmspec_plugins.errors import ConfigError, DeviceMemoryError, ModelError
from ralmspec_plugins.retrieval.device_memory import within_memory
from ralmspec_plugins.retrieval.own_pass import own_pass

# The key-value caches of a model: one owner, one byte budget, least recently used evicted first.


@dataclass(frozen=True, slots=True)
class Prefix:
    """The key of a cache of passages, which requests share."""

    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PrefillSchedule:
    """The key of a cache of one text after one prefix, from its prefill on.

    It has all that the content depends on, so that a cache with this key
    differs from the required one only in its length.
    """

    owner: int
    prefix: Prefix
    prompt: tuple[int, ...]
    prefilled: tuple[int, ...]  # the generated tokens of the prefill pass


Name: TypeAlias = Prefix | PrefillSchedule


class Sized(Protocol):
    """A cache entry with a size."""

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        ...


EntryT = TypeVar("EntryT", bound=Sized)
ResultT = TypeVar("ResultT")


class CacheStore:
    """Caches that are not in use, of at most `budget_bytes`.

    A prefix is only read (`find`); a lineage is removed while it is
    extended (`take`) and stored again afterwards (`put`), so that no two extensions
    share one. Missing caches are rebuilt by the compute schedule: the
    budget affects the time, never the result. Thread-safe.
    """

    def __init__(self, budget_bytes: int) -> None:
        """Create a store of at most this many bytes."""
        if budget_bytes < 0:
            raise ConfigError(f"cache_bytes must be at least 0, got {budget_bytes}")
        self.budget_bytes = budget_bytes
        self._entries: OrderedDict[Name, tuple[Sized, int]] = OrderedDict()  # oldest first
        self._nbytes = 0
        self._lock = threading.RLock()  # garbage collection may call `release` under the lock

    @property
    def nbytes(self) -> int:
        """The total size in bytes."""
        return self._nbytes

    def __len__(self) -> int:
        """Return the number of caches."""
        return len(self._entries)

    def __contains__(self, name: Name) -> bool:
        """Return whether there is a cache of this key."""
        return name in self._entries

    def find(self, name: Name, kind: type[EntryT]) -> EntryT | None:
        """Return a cache for reading, and mark it as recently used."""
        with self._lock:
            if name not in self._entries:
                return None
            self._entries.move_to_end(name)
            entry, _ = self._entries[name]
        assert isinstance(entry, kind)
        return entry

    def take(self, name: Name, kind: type[EntryT]) -> EntryT | None:
        """Remove and return a cache, which the caller may change."""
        with self._lock:
            entry = self._remove(name)
        assert entry is None or isinstance(entry, kind)
        return entry

    def put(self, name: Name, entry: Sized) -> None:
        """Store a cache, and evict the oldest ones beyond the budget."""
        nbytes = entry.nbytes
        with self._lock:
            self._remove(name)
            self._entries[name] = (entry, nbytes)
            self._nbytes += nbytes
            while self._nbytes > self.budget_bytes:
                oldest = next(iter(self._entries), None)
                if oldest is not None:
                    self._remove(oldest)

    def release(self, owner: int) -> None:
        """Remove all lineages of a request."""
        with self._lock:
            for name in list(self._entries):
                if isinstance(name, PrefillSchedule) and name.owner == owner:
                    self._remove(name)

    def clear(self) -> None:
        """Remove all caches."""
        with self._lock:
            for name in list(self._entries):
                self._remove(name)

    def check(self) -> None:
        """Assert the invariants, for tests."""
        with self._lock:
            assert self._nbytes == sum(nbytes for _, nbytes in self._entries.values())
            assert self._nbytes <= self.budget_bytes

    def _remove(self, name: Name) -> Sized | None:
        entry, nbytes = self._entries.pop(name, (None, 0))
        self._nbytes -= nbytes
        return entry


class HiddenStateHook(Protocol):
    """Captures a hidden state of a model's last pass."""

    def taken(self) -> Tensor:
        """Return the states of the last pass in this thread: [batch, positions, dimension]."""
        ...


@dataclass(slots=True)
class Last:
    """The output of a pass at its last positions (usually one), in float32."""

    logits: Tensor  # [positions, vocabulary]
    hidden: Tensor | None  # [positions, dimension], with a hook

    @property
    def nbytes(self) -> int:
        """The size of both in bytes."""
        return self.logits.nbytes + (0 if self.hidden is None else self.hidden.nbytes)


@dataclass(slots=True)
class Run:
    """A key-value cache, its generated tokens, and the output of the last pass.

    The first `scheduled` of the tokens were read by the compute schedule; later
    ones, if any, in other passes. If a cache cannot be cropped,
    its state after the scheduled tokens is kept in `fallback`.
    """

    cache: Cache
    tokens: list[int]
    last: Last
    passes: int = 0  # since it was opened
    scheduled: int = field(init=False)
    fallback: Cache | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Mark all tokens as read by the schedule."""
        self.scheduled = len(self.tokens)

    @property
    def is_scheduled(self) -> bool:
        """Whether the last pass' logits are those of the compute schedule, to the last bit."""
        return self.scheduled == len(self.tokens)

    @property
    def logits(self) -> Tensor:
        """The logits after the tokens: [1, vocabulary], float32."""
        return self.last.logits

    @property
    def nbytes(self) -> int:
        """The size of caches, logits and hidden state in bytes."""
        caches = [self.cache] if self.fallback is None else [self.cache, self.fallback]
        return self.last.nbytes + sum(t.nbytes for cache in caches for t in _tensors(cache))


@dataclass(frozen=True, slots=True)
class Rows:
    """The result of one pass over several rows: the logits after each, and the cache before it.

    Row 0 is the token after the run's last; every other one follows its parent.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]  # for each token the row that it stands behind; -1 for the first
    logits: Tensor  # [rows, vocabulary], float32
    before: Cache | None  # if the cache cannot be cropped


class ModelRunner:
    """Owns a model and its caches.

    The lock is held for one pass at a time, so that several requests alternate
    by token, and the next one starts immediately after a cancellation.
    """

    def __init__(
        self, model: PreTrainedModel, cache_bytes: int, tap: HiddenStateHook | None = None
    ) -> None:
        """Create a runner with at most `cache_bytes` of caches between segments.

        Raises:
            ModelError: the model keeps a state in its modules.
        """
        if any(hasattr(module, "recurrent_states") for module in model.modules()):
            raise ModelError(
                f"{type(model).__name__} keeps the state of the text in its modules, not in its "
                "cache, so that texts would mix; use a model whose state is in the cache"
            )
        parameters = inspect.signature(model.forward).parameters
        self.model: Any = model  # its call is untyped
        self._embedding: Any = model.get_input_embeddings()  # its device is that of the input
        self._tap = tap
        self._lock = threading.Lock()
        self._cache_argument = cache_argument(model)
        self._keeps = "logits_to_keep" in parameters
        attention = getattr(model.config, "_attn_implementation", None)
        self.scale_change = scale_change(model)
        # Other kinds of attention do not support this mask.
        self.takes_trees = "position_ids" in parameters and attention in ("sdpa", "eager")
        self.store = CacheStore(cache_bytes)

    @property
    def device(self) -> torch.device:
        """The device of the input."""
        device: torch.device = self._embedding.weight.device
        return device

    @property
    def in_16_bit(self) -> bool:
        """Whether the model computes in bfloat16 or float16."""
        return self.model.dtype in (torch.bfloat16, torch.float16)

    def open(self, lineage: PrefillSchedule, tokens: Sequence[int]) -> Run:
        """Return a run of a lineage with a prefix of these tokens, from the cache or a new prefill.

        The caller feeds the missing tokens, and returns the run with `close`.
        """
        run = self.store.take(lineage, Run)
        if run is not None:
            run.passes = 0
        if run is not None and self._roll_back(run, tokens, len(lineage.prefilled)):
            return run
        return self._prefill(lineage)

    def feed(self, run: Run, token: int) -> None:
        """Run one token's pass."""
        run.last = self._pass(run.cache, (token,))
        run.passes += 1
        if run.is_scheduled:
            run.scheduled += 1
        run.tokens.append(token)

    def rows_left(self, position: int, most: int) -> int:
        """Return how many of `most` rows from a position on may be read in one pass.

        They are as many as are on one side of `scale_change`.
        """
        change = self.scale_change
        return most if change is None or position >= change else min(most, change - position)

    def start(self, tokens: Sequence[int]) -> Run:
        """Read tokens in one pass, and return a run without a request."""
        cache = self.empty_cache()
        return Run(cache, [], self.prefill_pass(cache, tokens))

    def read_rows(self, run: Run, tokens: Sequence[int], parents: Sequence[int]) -> Rows:
        """Read a token and its drafts in one pass, each attending to its ancestors only.

        The cache then has all rows: `keep_rows` must be the next call for this run.

        Args:
            run: the run that the first token continues.
            tokens: the first one, then drafts.
            parents: for each token the row of its parent; -1 for the first.

        Raises:
            ModelError: the rows are not a chain, and the cache or the model supports only chains.
        """
        chain = all(parent == row - 1 for row, parent in enumerate(parents))
        more: dict[str, Any] = {}
        if not chain:
            if not (self.takes_trees and is_croppable(run.cache)):
                raise ModelError("this model reads chains of drafts, not trees")
            more = _tree_arguments(run.cache.get_seq_length(), parents, self.model)
        before = None if is_croppable(run.cache) else _copied(run.cache)
        if before is not None and run.is_scheduled:
            run.fallback = before
        last = self._pass(run.cache, tokens, len(tokens), **more)
        run.passes += 1
        return Rows(tuple(tokens), tuple(parents), last.logits, before)

    def read_more_rows(
        self, run: Run, rows: Rows, tokens: Sequence[int], parents: Sequence[int]
    ) -> Rows:
        """Read more drafts behind rows that are read and not kept yet; give all of them.

        Args:
            run: as for `read_rows`.
            rows: what the last call gave.
            tokens: those to add.
            parents: for each of them its row, counted from row 0 of all.

        Raises:
            ModelError: the cache or the model takes no trees.
        """
        if not (self.takes_trees and is_croppable(run.cache)):
            raise ModelError("this model reads chains of drafts, not trees")
        every = (*rows.parents, *parents)
        past = run.cache.get_seq_length() - len(rows.tokens)
        more = _tree_arguments(past, every, self.model, first=len(rows.tokens))
        last = self._pass(run.cache, tokens, len(tokens), **more)
        run.passes += 1
        logits = torch.cat([rows.logits, last.logits])
        return Rows((*rows.tokens, *tokens), every, logits, None)

    def crop(self, run: Run, length: int) -> None:
        """Keep the first `length` tokens of a run whose cache can be cropped."""
        if length < len(run.tokens):
            run.cache.crop(length - len(run.tokens))
            del run.tokens[length:]
            run.scheduled = min(run.scheduled, length)

    def keep_rows(self, run: Run, rows: Rows, path: Sequence[int]) -> None:
        """Keep the rows of one path, row 0 first, and remove the others."""
        kept, rejected = [rows.tokens[row] for row in path], len(rows.tokens) - len(path)
        if rejected and rows.before is None:
            _keep_columns(run.cache, len(rows.tokens), path)
        elif rejected:
            assert rows.before is not None
            run.cache = _copied(rows.before)
            self._pass(run.cache, kept)
            run.passes += 1
        run.tokens.extend(kept)
        run.last = Last(rows.logits[path[-1] : path[-1] + 1], None)

    def drop_rows(self, run: Run, rows: Rows) -> None:
        """Remove all rows from a cache that can be cropped, as if they had not been read."""
        _keep_columns(run.cache, len(rows.tokens), ())

    def reschedule(self, run: Run) -> None:
        """Roll back to the tokens that were read by the schedule."""
        if is_croppable(run.cache):
            run.cache.crop(run.scheduled - len(run.tokens))
        elif not run.is_scheduled:
            assert run.fallback is not None
            run.cache, run.fallback = run.fallback, None
        del run.tokens[run.scheduled :]

    def close(self, lineage: PrefillSchedule, run: Run) -> None:
        """Store a run, whose last pass must be complete."""
        self.store.put(lineage, run)

    def read(self, tokens: Sequence[int], keep: int) -> Last:
        """Run tokens in one pass, and return the output of the last `keep` positions."""
        return self.prefill_pass(self.empty_cache(), tokens, keep)

    def _roll_back(self, run: Run, tokens: Sequence[int], prefilled: int) -> bool:
        """Crop a run to its common prefix with `tokens`; return whether that is possible."""
        keep = common_length(run.tokens, tokens)
        if keep == len(run.tokens):
            return True
        keep = min(keep, len(tokens) - 1)  # the last token's pass computes the logits again
        if keep < prefilled or not is_croppable(run.cache):
            return False
        run.cache.crop(keep - len(run.tokens))
        del run.tokens[keep:]
        run.scheduled = min(run.scheduled, keep)
        return True

    def _prefill(self, lineage: PrefillSchedule) -> Run:
        behind = lineage.prompt + lineage.prefilled
        if not lineage.prefix.tokens:
            cache = self.empty_cache()
            return Run(cache, list(lineage.prefilled), self.prefill_pass(cache, behind), 1)
        prefix, passes = self._prefix(lineage.prefix)
        cache = _copied(prefix.cache)
        last = self.prefill_pass(cache, behind) if behind else prefix.last
        return Run(cache, list(lineage.prefilled), last, passes + bool(behind))

    def _prefix(self, name: Prefix) -> tuple[Run, int]:
        """Return the cache of a prefix, and the number of passes."""
        run = self.store.find(name, Run)
        if run is not None:
            return run, 0
        cache = self.empty_cache()
        run = Run(cache, [], self.prefill_pass(cache, name.tokens))
        self.store.put(name, run)
        return run, 1

    def empty_cache(self) -> Cache:
        """Return an empty cache."""
        return DynamicCache(config=self.model.config)

    def prefill_pass(self, cache: Cache, tokens: Sequence[int], keep: int = 1) -> Last:
        """Read tokens of passages or prompt; return the output of the last `keep` positions."""
        return self._pass(cache, tokens, keep)

    def _pass(self, cache: Cache, tokens: Sequence[int], keep: int = 1, **more: Any) -> Last:
        arguments: dict[str, Any] = {self._cache_argument: cache, "use_cache": True, **more}
        if self._keeps:
            arguments["logits_to_keep"] = keep

        def last() -> Last:
            ids = torch.tensor([tokens], dtype=torch.long, device=self.device)
            output = self.model(input_ids=ids, **arguments)
            hidden = None if self._tap is None else self._tap.taken()[0, -keep:, :]
            # Copies in float32, as `generate` copies the logits before sampling.
            logits: Tensor = output.logits[0, -keep:, :].to(torch.float32, copy=True)
            return Last(logits, None if hidden is None else hidden.to(torch.float32, copy=True))

        return self._computed(last, len(tokens))

    def _computed(self, compute: Callable[[], ResultT], tokens: int) -> ResultT:
        """Return the result of a pass, the only one at a time.

        Raises:
            DeviceMemoryError: the device has too little memory; caches not in use are freed.
        """

        def computed() -> ResultT:
            with self._lock, own_pass(torch, self.device):
                return compute()

        try:
            return within_memory(
                computed,
                f"{self.device} has no memory left for a pass over {tokens} tokens; use shorter "
                "texts, fewer requests at once, or a model in 16 bit. Caches that were not in use "
                "have been freed, so the same call may succeed now",
            )
        except DeviceMemoryError:
            self.store.clear()
            raise


def cache_argument(model: PreTrainedModel) -> str:
    """Return the name of a model's argument for its cache: `cache` since transformers 5.24."""
    parameters = inspect.signature(model.forward).parameters
    names = ("cache", "cache_params", "past_key_values")  # the newest first; others are aliases
    return next((name for name in names if name in parameters), names[-1])


def scale_change(model: Any) -> int | None:
    """Return the position from which on a model scales all positions of a pass otherwise.

    With "longrope" a pass that reaches beyond the original context has other position embeddings
    in all its rows, those before it included. `None` if there is no such position.
    """
    config = model.config.get_text_config(decoder=True)
    given: Any = getattr(config, "rope_parameters", None) or {}
    by_layer = [given, *(one for one in given.values() if isinstance(one, dict))]
    found = [
        int(one["original_max_position_embeddings"])
        for one in by_layer
        if one.get("rope_type") == "longrope"
    ]
    return min(found, default=None)


def common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Count the tokens with which both begin."""
    for length, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return length
    return min(len(left), len(right))


def is_croppable(cache: Cache) -> bool:
    """Return whether a cache can be cropped, and single rows of it kept.

    Sliding windows and recurrent states discard the data that this needs.
    """
    return all(
        type(layer) is DynamicLayer or getattr(layer, "keeps_all_tokens", False)
        for layer in cache.layers
    )


def _copied(cache: Cache) -> Cache:
    """Return a copy of a cache that can be extended without changing the original.

    Layers that grow by concatenation share their tensors with
    the copy; other layers may write in place, and are copied.
    """
    with torch.inference_mode():
        twin = copy.copy(cache)
        twin.layers = [
            copy.copy(layer) if type(layer) in _CONCATENATED else copy.deepcopy(layer)
            for layer in cache.layers
        ]
        return twin


_CONCATENATED = (DynamicLayer, DynamicSlidingWindowLayer)


def ancestors(parents: Sequence[int]) -> NDArray[np.bool_]:
    """Return the ancestors of each row of a tree, including itself, [rows, rows].

    >>> ancestors([-1, 0, 0, 2]).astype(int).tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]
    """
    seen = np.eye(len(parents), dtype=np.bool_)
    for row, parent in enumerate(parents):
        if parent >= 0:
            seen[row] |= seen[parent]
    return seen


def _tree_arguments(
    past: int, parents: Sequence[int], model: Any, first: int = 0
) -> dict[str, Tensor]:
    """Return the additive mask, [1, 1, rows, past + all rows], and the positions, by depth.

    They are those of a tree's rows from `first` on: the rows before it are in the cache.
    """
    seen = torch.from_numpy(ancestors(parents))
    positions = past + seen.sum(dim=1) - 1
    device = model.get_input_embeddings().weight.device
    shape = len(parents) - first, past + len(parents)
    mask = torch.zeros(shape, dtype=model.dtype, device="cpu")  # whatever the default device is
    mask[:, past:].masked_fill_(~seen[first:], torch.finfo(model.dtype).min)
    return {
        "attention_mask": mask[None, None].to(device),
        "position_ids": positions[None, first:].to(device),
    }


def _keep_columns(cache: Cache, rows: int, path: Sequence[int]) -> None:
    """Keep the columns of a path among a cache's last `rows` columns, in its order."""
    if list(path) != list(range(len(path))):
        with torch.inference_mode():
            layers: list[Any] = cache.layers  # each of them a DynamicLayer
            for layer in layers:
                for states in (layer.keys, layer.values):  # [batch, heads, columns, dimension]
                    first = states.shape[-2] - rows
                    chosen = torch.tensor([first + row for row in path], device=states.device)
                    states[..., first : first + len(path), :] = states.index_select(-2, chosen)
    if len(path) < rows:
        cache.crop(len(path) - rows)


def _tensors(cache: Cache) -> Iterator[Tensor]:
    for layer in cache.layers:
        for value in vars(layer).values():
            parts = value.values() if isinstance(value, dict) else (value,)
            yield from (part for part in parts if isinstance(part, Tensor))
