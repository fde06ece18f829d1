"""Runs a model's passes by the one compute schedule that makes tokens bit-equal.

The same tokens fed in other portions give logits that differ in the last bits.
So which tokens share a pass is fixed by a `PrefillSchedule` and never by what happened:

1. the prefix (passages) alone in one pass;
2. the prompt, with the tokens generated before these passages came, in one pass;
3. each later token in a pass of its own.

A cache in memory saves passes; it never changes which ones a result rests on.
"""

import copy
import inspect
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from ralmspec_plugins.errors import ConfigError

# Keeps the key-value caches of a model: one owner, one byte budget, oldest out first.


@dataclass(frozen=True, slots=True)
class Prefix:
    """Names the cache of some passages alone, which any request may share."""

    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PrefillSchedule:
    """Names the cache of one text behind one prefix, from its prefill on.

    All that its content depends on is in the name, so a cache found under it
    differs from the one wanted only in how far it has come.
    """

    owner: int
    prefix: Prefix
    prompt: tuple[int, ...]
    prefilled: tuple[int, ...]  # the generated tokens that went into the prefill pass


Name: TypeAlias = Prefix | PrefillSchedule


class Sized(Protocol):
    """What can be kept: it knows how much memory it holds."""

    @property
    def nbytes(self) -> int:
        """The bytes held."""
        ...


EntryT = TypeVar("EntryT", bound=Sized)


class CacheStore:
    """Caches that are not in use at the moment, at most `budget_bytes` of them.

    A prefix is only ever looked at (`find`); a lineage is taken out while it is
    extended (`take`) and put back when that is over, so no two extensions ever
    share one. Whatever is not here is rebuilt by the compute schedule: the
    budget changes the time, never the result. Thread-safe.
    """

    def __init__(self, budget_bytes: int) -> None:
        """Keep at most this many bytes."""
        if budget_bytes < 0:
            raise ConfigError(f"cache_bytes must be at least 0, got {budget_bytes}")
        self.budget_bytes = budget_bytes
        self._entries: OrderedDict[Name, tuple[Sized, int]] = OrderedDict()  # oldest first
        self._nbytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """The bytes kept."""
        return self._nbytes

    def __len__(self) -> int:
        """Count the caches kept."""
        return len(self._entries)

    def __contains__(self, name: Name) -> bool:
        """Say whether a cache is kept under this name."""
        return name in self._entries

    def find(self, name: Name, kind: type[EntryT]) -> EntryT | None:
        """Give a cache to look at, and count it as just used."""
        with self._lock:
            if name not in self._entries:
                return None
            self._entries.move_to_end(name)
            entry, _ = self._entries[name]
        assert isinstance(entry, kind)
        return entry

    def take(self, name: Name, kind: type[EntryT]) -> EntryT | None:
        """Hand a cache over to the caller, who may change it."""
        with self._lock:
            entry = self._remove(name)
        assert entry is None or isinstance(entry, kind)
        return entry

    def put(self, name: Name, entry: Sized) -> None:
        """Keep a cache, in place of the oldest ones where the budget is short."""
        nbytes = entry.nbytes
        with self._lock:
            self._remove(name)
            self._entries[name] = (entry, nbytes)
            self._nbytes += nbytes
            while self._nbytes > self.budget_bytes:
                self._remove(next(iter(self._entries)))

    def release(self, owner: int) -> None:
        """Drop every lineage of a request."""
        with self._lock:
            for name in list(self._entries):
                if isinstance(name, PrefillSchedule) and name.owner == owner:
                    self._remove(name)

    def check(self) -> None:
        """Raise `AssertionError` if the books are wrong (for tests)."""
        with self._lock:
            assert self._nbytes == sum(nbytes for _, nbytes in self._entries.values())
            assert self._nbytes <= self.budget_bytes

    def _remove(self, name: Name) -> Sized | None:
        entry, nbytes = self._entries.pop(name, (None, 0))
        self._nbytes -= nbytes
        return entry


class HiddenStateHook(Protocol):
    """Shows a hidden state of a model's last pass, for those who want more than logits."""

    def taken(self) -> Tensor:
        """Give the states of the last pass in this thread: [batch, positions, dimension]."""
        ...


@dataclass(slots=True)
class Last:
    """What a pass leaves behind of its last positions (one, as a rule), in float32."""

    logits: Tensor  # [positions, vocabulary]
    hidden: Tensor | None  # [positions, dimension], where a tap shows it

    @property
    def nbytes(self) -> int:
        """The bytes of both."""
        return self.logits.nbytes + (0 if self.hidden is None else self.hidden.nbytes)


@dataclass(slots=True)
class Run:
    """A key-value cache, the generated tokens that it holds, and what the last pass left."""

    cache: DynamicCache
    tokens: list[int]
    last: Last

    @property
    def logits(self) -> Tensor:
        """The logits behind the tokens: [1, vocabulary], float32."""
        return self.last.logits

    @property
    def nbytes(self) -> int:
        """The bytes of cache, logits and hidden state."""
        return self.last.nbytes + sum(tensor.nbytes for tensor in _tensors(self.cache))


class ModelRunner:
    """Owns a model and its caches.

    The lock is held for one pass at a time, so several requests take turns
    token by token, and a cancelled one lets the next begin at once.
    """

    def __init__(
        self, model: PreTrainedModel, cache_bytes: int, tap: HiddenStateHook | None = None
    ) -> None:
        """Run this model; keep at most `cache_bytes` of caches between segments."""
        parameters = inspect.signature(model.forward).parameters
        self._model: Any = model  # its call is untyped
        self._embedding: Any = model.get_input_embeddings()  # where tokens go in: its device
        self._tap = tap
        self._lock = threading.Lock()
        self._cache_argument = "cache_params" if "cache_params" in parameters else "past_key_values"
        self._keeps = "logits_to_keep" in parameters
        self.store = CacheStore(cache_bytes)

    def open(self, lineage: PrefillSchedule, tokens: Sequence[int]) -> Run:
        """Take out a lineage's cache with at most these tokens in it, or make it anew.

        The caller feeds the tokens that are missing, and gives the run back with `close`.
        """
        run = self.store.take(lineage, Run)
        if run is not None and self._roll_back(run, tokens, len(lineage.prefilled)):
            return run
        return self._prefill(lineage)

    def feed(self, run: Run, token: int) -> None:
        """Run one token's pass."""
        run.last = self._pass(run.cache, (token,))
        run.tokens.append(token)

    def close(self, lineage: PrefillSchedule, run: Run) -> None:
        """Keep a run for later; only one whose last pass was completed."""
        self.store.put(lineage, run)

    def read(self, tokens: Sequence[int], keep: int) -> Last:
        """Run some tokens in one pass, and give what it leaves of the last `keep` positions."""
        return self._pass(self._empty(), tokens, keep)

    def _roll_back(self, run: Run, tokens: Sequence[int], prefilled: int) -> bool:
        """Crop a run to what it has in common with `tokens`; say whether that was possible."""
        keep = _common_length(run.tokens, tokens)
        if keep == len(run.tokens):
            return True
        keep = min(keep, len(tokens) - 1)  # the last token's pass gives the logits again
        if keep < prefilled or not _is_plain(run.cache):
            return False
        run.cache.crop(keep - len(run.tokens))
        del run.tokens[keep:]
        return True

    def _prefill(self, lineage: PrefillSchedule) -> Run:
        behind = lineage.prompt + lineage.prefilled
        if not lineage.prefix.tokens:
            cache = self._empty()
            return Run(cache, list(lineage.prefilled), self._pass(cache, behind))
        prefix = self._prefix(lineage.prefix)
        cache = _copied(prefix.cache)
        last = self._pass(cache, behind) if behind else prefix.last
        return Run(cache, list(lineage.prefilled), last)

    def _prefix(self, name: Prefix) -> Run:
        run = self.store.find(name, Run)
        if run is None:
            cache = self._empty()
            run = Run(cache, [], self._pass(cache, name.tokens))
            self.store.put(name, run)
        return run

    def _empty(self) -> DynamicCache:
        return DynamicCache(config=self._model.config)

    def _pass(self, cache: DynamicCache, tokens: Sequence[int], keep: int = 1) -> Last:
        arguments: dict[str, Any] = {self._cache_argument: cache, "use_cache": True}
        if self._keeps:
            arguments["logits_to_keep"] = keep
        with self._lock, torch.inference_mode():
            ids = torch.tensor([tokens], dtype=torch.long, device=self._embedding.weight.device)
            output = self._model(input_ids=ids, **arguments)
            hidden = None if self._tap is None else self._tap.taken()[0, -keep:, :]
            # Copies in float32, as `generate` makes one of the logits before it chooses.
            logits: Tensor = output.logits[0, -keep:, :].to(torch.float32, copy=True)
            return Last(logits, None if hidden is None else hidden.to(torch.float32, copy=True))


def _common_length(left: Sequence[int], right: Sequence[int]) -> int:
    for length, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return length
    return min(len(left), len(right))


def _is_plain(cache: DynamicCache) -> bool:
    # Sliding windows and recurrent states forget what a rollback would need.
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def _copied(cache: DynamicCache) -> DynamicCache:
    """Copy a cache so that extending the copy leaves the original as it is.

    A plain layer grows by concatenation into a new tensor, so its copy may share
    the old ones; other layers may write in place.
    """
    if not _is_plain(cache):
        with torch.inference_mode():
            return copy.deepcopy(cache)
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin


def _tensors(cache: DynamicCache) -> Iterator[Tensor]:
    for layer in cache.layers:
        for value in vars(layer).values():
            parts = value.values() if isinstance(value, dict) else (value,)
            yield from (part for part in parts if isinstance(part, Tensor))
