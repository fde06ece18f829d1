"""Drafts of a small language model, as a chain or as a best-first tree of its probabilities."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ralmspec_plugins.decoding.calibration import pass_clock
from ralmspec_plugins.decoding.draft_reader import draft_runner
from ralmspec_plugins.decoding.drafters.followers import Followers
from ralmspec_plugins.decoding.drafters.protocol import Accepted, DraftContext, DraftTarget
from ralmspec_plugins.decoding.token_tree import EMPTY, ROOT, Evidence, TokenTree
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.lm.fingerprint import tokenizer_fingerprint
from ralmspec_plugins.lm.huggingface import context_length, load, vocabulary_size
from ralmspec_plugins.lm.kv_cache import ModelRunner, Rows, Run, common_length

_FRONTS: Final = 2  # kept prompts of one request: with its passages, and with guessed ones
_SURE: Final = 8  # the match length in the evidence of a model's tokens
_RECENT: Final = 16.0  # time constant of the running mean, in passes
_UNKNOWN: Final = 0.1  # assumed cost of a drafter's pass until measured, in target passes


class ModelDrafter:
    """Drafts with a small model that has the target's vocabulary.

    A pass of the small model reads the most valued drafts so far, `breadth` at a time, and adds
    the likeliest followers of each. A draft's value is the product of the probabilities on its
    path, and the most valued are proposed, as EAGLE-2 (2406.16858) expands and ranks its tree.
    Expansion stops when the next pass would cost more than it is expected to save.
    With `breadth` 1, or a model that reads no trees, the draft is a chain.

    If the target samples, the random number of a token depends on seed and position alone. The
    drafter draws with the same number, so two models that agree draw the same token.

    The small model has its own key-value cache. With `prompt` it also has its own tokens before
    the text, for example a shorter context.
    """

    source: Final = "model"  # in the evidence of its drafts

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        depth: int = 8,
        breadth: int = 4,
        prompt: Callable[[DraftContext], Sequence[int]] | None = None,
        requests: int = 8,
    ) -> None:
        """Create a drafter of a loaded model; this is switched to evaluation mode.

        Args:
            model: a causal model with full attention, much cheaper than the target.
            tokenizer: its tokenizer, compared with the target's; unset, only the sizes of the
                vocabularies are compared.
            depth: the maximum number of tokens on a path.
            breadth: the followers of a token, and the tokens that one pass reads.
            prompt: returns the tokens before the text; the target's by default.
            requests: the maximum number of requests whose caches are kept.

        Raises:
            ConfigError: a number is below 1.
            ModelError: the model's cache cannot be cropped (sliding windows, recurrent states).
        """
        for name, value in (("depth", depth), ("breadth", breadth), ("requests", requests)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        self.depth = depth
        self.breadth = breadth
        self._tokenizer = tokenizer
        self._prompt = prompt if prompt is not None else _target_front
        self._most = requests
        self._runner = draft_runner(model)
        self._context = context_length(model)
        self._vocabulary = vocabulary_size(model)
        self._trees = self._runner.takes_trees and breadth > 1
        self._followers = Followers(breadth)
        self._own_pass_s: float | None = None
        self._requests: OrderedDict[Hashable, list[_Reading]] = OrderedDict()  # oldest use first
        self._lock = threading.RLock()  # garbage collection may call `release` under the lock

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        **settings: Any,
    ) -> "ModelDrafter":
        """Load a saved model, or one from the hub; code that comes with it is never executed.

        Raises:
            ModelError: there is no causal model.
        """
        model, tokenizer = load(path, dtype, device)
        return cls(model, tokenizer, **settings)

    def bind(self, target: DraftTarget) -> None:
        """Check that the target has the same tokens.

        Raises:
            ConfigError: its tokenizer or the size of its vocabulary differs.
        """
        same = self._tokenizer is None or (
            tokenizer_fingerprint(self._tokenizer) == tokenizer_fingerprint(target.tokenizer)
        )
        if not same or self._vocabulary != target.vocabulary:
            raise ConfigError(
                "a draft model must have the target's tokenizer and vocabulary; here "
                + (
                    "the tokenizers differ"
                    if not same
                    else f"it has {self._vocabulary} tokens, the target {target.vocabulary}"
                )
            )

    def propose(self, context: DraftContext, budget: int) -> TokenTree:
        """Return at most `budget` drafted tokens."""
        with self._lock:
            reading = self._reading(context)
            if reading is None or budget < 1:
                return EMPTY
            if reading.rows is None:  # this text was drafted for before
                reading.read(self._runner, context.text)
            growth = _Growth(context, reading.behind, self, budget)
            if self._trees:
                self._grow_tree(reading, growth)
            else:
                self._grow_chain(reading, growth)
            return growth.tree()

    def update(self, accepted: Accepted) -> None:
        """Do nothing: the target's acceptance rates are counted where drafts are chosen."""

    def likeliest(self, context: DraftContext, count: int) -> list[int]:
        """Return the tokens that are likeliest after a text by the small model."""
        with self._lock:
            reading = self._reading(context)
            if reading is None:
                return []
            tokens: list[int] = reading.behind.topk(min(count, self._vocabulary)).indices.tolist()
            return tokens

    def release(self, request: Hashable) -> None:
        """Release a request's caches."""
        with self._lock:
            self._requests.pop(request, None)

    def followers(
        self, context: DraftContext, path: Sequence[int], logits: Tensor
    ) -> list[tuple[int, float]]:
        """Return the likeliest tokens after a path of drafts, with estimated probabilities."""
        return self._followers.of(context, path, logits)

    def least_gain(self, context: DraftContext) -> float:
        """Return the cost of a pass in target passes: the gain from which it pays off."""
        if context.pass_s is None or self._own_pass_s is None:
            return _UNKNOWN
        return self._own_pass_s / context.pass_s

    def _grow_tree(self, reading: "_Reading", growth: "_Growth") -> None:
        """Read the most valued drafts, `breadth` per pass, as long as that pays off."""
        rows, clock = reading.rows, pass_clock(self._runner.device)
        while rows is not None and (chosen := growth.worth_reading(self.breadth)):
            first = len(rows.tokens)
            tokens, parents = growth.as_rows(chosen, len(reading.text_rows) - 1, first)
            began_s = clock()
            rows = self._runner.read_more_rows(reading.run, rows, tokens, parents)
            self._timed(clock() - began_s)
            growth.read(chosen, rows.logits[first:])
        reading.keep_text(self._runner, rows)

    def _grow_chain(self, reading: "_Reading", growth: "_Growth") -> None:
        """Read the most valued draft after the last one, as long as that pays off."""
        reading.keep_text(self._runner, reading.rows)
        length, clock = len(reading.run.tokens), pass_clock(self._runner.device)
        while chosen := growth.worth_reading(1, chain=True):
            began_s = clock()
            self._runner.feed(reading.run, growth.nodes[chosen[0]].token)
            self._timed(clock() - began_s)
            growth.read(chosen, reading.run.logits)
        self._runner.crop(reading.run, length)

    def _timed(self, took_s: float) -> None:
        before = took_s if self._own_pass_s is None else self._own_pass_s
        self._own_pass_s = before + (took_s - before) / _RECENT

    def _reading(self, context: DraftContext) -> "_Reading | None":
        """Read the text after its prompt; return `None` if it is too long for the model."""
        front = tuple(self._prompt(context))
        length = len(front) + len(context.text) + self.depth
        if not front or not context.text:
            return None
        if self._context is not None and length > self._context:
            return None
        readings = self._requests.setdefault(context.request, [])
        self._requests.move_to_end(context.request)
        if len(self._requests) > self._most:
            self._requests.popitem(last=False)
        found = next((one for one in readings if one.front == front), None)
        if found is None:
            found = _Reading(front, self._runner.start(front))
        else:
            readings.remove(found)
        if found.text != context.text:
            found.read(self._runner, context.text)
        readings.append(found)
        del readings[:-_FRONTS]
        return found


def _target_front(context: DraftContext) -> Sequence[int]:
    return context.front


@dataclass(slots=True, eq=False)
class _Reading:
    """A prompt and a text that the small model has read."""

    front: tuple[int, ...]
    run: Run
    text: tuple[int, ...] = ()  # the last rows are its end
    rows: Rows | None = None  # of the end of the text; not kept in the run yet
    text_rows: tuple[int, ...] = ()
    behind: Tensor = field(
        default_factory=lambda: torch.empty(0, device="cpu")
    )  # logits after the text

    def read(self, runner: ModelRunner, text: tuple[int, ...]) -> None:
        """Read the missing tokens of a text in one pass; its last token is always read."""
        self.keep_text(runner, self.rows)
        runner.crop(self.run, min(common_length(self.run.tokens, text), len(text) - 1))
        missing = text[len(self.run.tokens) :]
        self.rows = runner.read_rows(self.run, missing, range(-1, len(missing) - 1))
        self.text, self.text_rows, self.behind = text, missing, self.rows.logits[-1]

    def keep_text(self, runner: ModelRunner, rows: Rows | None) -> None:
        """Keep the text's rows in the run, and discard those of drafts."""
        if rows is not None:
            runner.keep_rows(self.run, rows, range(len(self.text_rows)))
        self.rows, self.text_rows = None, ()


@dataclass(slots=True)
class _Node:
    """A draft, and where it was read."""

    token: int
    parent: int  # its node, or ROOT
    value: float
    evidence: Evidence
    depth: int
    row: int | None = None
    children: bool = False  # whether it was read


class _Growth:
    """A tree of drafts while it grows."""

    def __init__(
        self, context: DraftContext, behind: Tensor, drafter: ModelDrafter, budget: int
    ) -> None:
        """Create a tree of the likeliest tokens after the text."""
        self.nodes: list[_Node] = []
        self._context = context
        self._drafter = drafter
        self._budget = budget
        self._add(ROOT, behind)

    def worth_reading(self, most: int, *, chain: bool = False) -> list[int]:
        """Return the nodes to read next, the most valued first; none if that does not pay off."""
        nodes = self.nodes
        order = sorted(range(len(nodes)), key=lambda node: (-nodes[node].value, node))
        chosen = [
            node
            for node in order[: self._budget]
            if not nodes[node].children and nodes[node].depth < self._drafter.depth
        ]
        if chain:  # only after the last one that was read
            last = max((node for node, one in enumerate(nodes) if one.children), default=ROOT)
            chosen = [node for node in chosen if nodes[node].parent == last]
        chosen = chosen[:most]
        gain = sum(nodes[node].value for node in chosen)
        return chosen if gain > self._drafter.least_gain(self._context) else []

    def as_rows(self, chosen: Sequence[int], root: int, first: int) -> tuple[list[int], list[int]]:
        """Return the tokens of nodes and their parents' rows; they become rows from `first`."""
        tokens, parents = [], []
        for row, node in enumerate(chosen, first):
            one = self.nodes[node]
            before = root if one.parent == ROOT else self.nodes[one.parent].row
            assert before is not None
            one.row = row
            tokens.append(one.token)
            parents.append(before)
        return tokens, parents

    def read(self, chosen: Sequence[int], logits: Tensor) -> None:
        """Add the followers of nodes, from the logits after each: [nodes, vocabulary]."""
        for node, row in zip(chosen, logits, strict=True):
            self.nodes[node].children = True
            self._add(node, row)

    def tree(self) -> TokenTree:
        """Return the most valued drafts."""
        return TokenTree(
            tuple(one.token for one in self.nodes),
            tuple(one.parent for one in self.nodes),
            tuple(one.value for one in self.nodes),
            tuple(one.evidence for one in self.nodes),
        ).most_valued(self._budget)

    def _add(self, parent: int, logits: Tensor) -> None:
        before = None if parent == ROOT else self.nodes[parent]
        depth = 1 if before is None else before.depth + 1
        value = 1.0 if before is None else before.value
        for token, chance in self._drafter.followers(self._context, self._path(parent), logits):
            evidence = Evidence(self._drafter.source, _SURE, min(1.0, chance))
            self.nodes.append(_Node(token, parent, value * chance, evidence, depth))

    def _path(self, node: int) -> list[int]:
        way = []
        while node != ROOT:
            way.append(self.nodes[node].token)
            node = self.nodes[node].parent
        return way[::-1]
