"""Drafts of a small model and of retrieval, merged into one tree."""

import logging
import threading
import time
from collections.abc import Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from ralmspec_plugins.decoding.drafters.protocol import Accepted, DraftContext, Drafter, DraftTarget
from ralmspec_plugins.decoding.token_tree import EMPTY, ROOT, TokenTree, merged, scaled
from ralmspec_plugins.errors import ConfigError

_log = logging.getLogger(__name__)
_RECENT: Final = 64.0  # time constant of the learned calibration, in drafts
_SOON: Final = 16.0  # the same for what a source gains and costs
_SELDOM: Final = 7  # drafts without a source that does not pay


class FusedDrafter:
    """Fuses a model's draft tree with retrieved ones into one tree, after RASD (2503.03434).

    RASD prunes the retrieved tree by the draft model's distribution and merges both by their
    longest common prefixes. Its pruning rule is not published; the rule here is ours:

    - a retrieved child of the root stays if it is among the model's `top_tokens` likeliest
      (k_p), or if at least `trusted_match` tokens of the text's end were found (a long exact
      match overrules a small model);
    - a path in both trees is one path, with the larger of both values, where retrieved values
      are multiplied by `weight` (beta);
    - the most valued tokens fill the budget.

    Without these three numbers nothing needs tuning: every retrieved token may stay, and each
    source's values are multiplied by the recent ratio of accepted to expected drafts. A source
    whose accepted drafts are worth less than drafting takes is asked at every eighth draft only.

    Retrieval runs in a thread in parallel with the draft model; RASD does not specify this. With
    `parallel=False` it runs first, and a model that has `least_gain`, as `ModelDrafter`, is
    left out where the retrieved tokens leave less to gain than its pass costs.

    Worked, with drafters in place of a model and a datastore:

    >>> class Fixed:
    ...     def __init__(self, tree): self.tree = tree
    ...     def propose(self, context, budget): return self.tree
    ...     def update(self, accepted): pass
    >>> model = Fixed(TokenTree((5, 6), (-1, 0), (0.9, 0.5)))
    >>> store = Fixed(TokenTree((5, 7, 8), (-1, 0, -1), (0.8, 0.7, 0.1)))
    >>> drafter = FusedDrafter(model, store)
    >>> drafter.propose(DraftContext("request", (), (1,), (1,)), 3).tokens
    (5, 6, 7)
    """

    def __init__(
        self,
        model: Drafter,
        *retrieval: Drafter,
        top_tokens: int | None = None,
        trusted_match: int | None = None,
        weight: float | None = None,
        parallel: bool = True,
    ) -> None:
        """Create a drafter that fuses the drafts of others.

        Args:
            model: the small model's drafter.
            retrieval: drafters that retrieve: a `CorpusDrafter`, `SuffixDrafter` or another.
            top_tokens: k_p, for a model drafter that has `likeliest`; unset, none is pruned.
            trusted_match: the match length from which a token is kept regardless of the model.
            weight: the factor of retrieved values; unset, it is learned.
            parallel: whether retrieval runs in parallel with the model, or before it.

        Raises:
            ConfigError: no drafter retrieves, a number is out of range, or the model drafter has
                no `likeliest`.
        """
        if not retrieval:
            raise ConfigError("a FusedDrafter needs at least one drafter that retrieves")
        for name, value in (("top_tokens", top_tokens), ("trusted_match", trusted_match)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if weight is not None and not weight > 0:
            raise ConfigError(f"weight must be above 0, got {weight}")
        if top_tokens is not None and not hasattr(model, "likeliest"):
            raise ConfigError(
                "top_tokens needs a model drafter with likeliest(context, count), as ModelDrafter "
                f"has it; {type(model).__name__} has none"
            )
        self.top_tokens = top_tokens
        self.trusted_match = trusted_match
        self.weight = weight
        self.parallel = parallel
        self._model: Any = model
        self._retrieval = retrieval
        self._parts: tuple[Drafter, ...] = (model, *retrieval)
        if any(hasattr(part, "observe") for part in self._parts):
            self.observe = self._observe  # otherwise no pass needs to be observed
        self._weights = [_Weight() for _ in self._parts]
        self._worths = [_Worth() for _ in self._parts]
        self._failed: set[int] = set()
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def bind(self, target: DraftTarget) -> None:
        """Bind all drafters."""
        for part in self._parts:
            bind = getattr(part, "bind", None)
            if bind is not None:
                bind(target)

    def propose(self, context: DraftContext, budget: int) -> TokenTree:
        """Return at most `budget` drafted tokens, from all sources."""
        drafted = self._drafts(context, budget)
        trees = [drafted[0], *(self._pruned(context, tree) for tree in drafted[1:])]
        return merged(
            [scaled(tree, self._weight_of(part)) for part, tree in enumerate(trees)]
        ).most_valued(budget)

    def update(self, accepted: Accepted) -> None:
        """Record the outcome of a draft, and learn how reliable each source's values are."""
        right = set(accepted.nodes)
        reached = {ROOT, *right}
        for part, weight, worth in zip(self._parts, self._weights, self._worths, strict=True):
            part.update(accepted)
            source = getattr(part, "source", None)
            if source is not None:
                worth.learn(sum(accepted.tree.evidence[node].source == source for node in right))
            for node, evidence in enumerate(accepted.tree.evidence):
                if evidence.source == source and accepted.tree.parents[node] in reached:
                    with self._lock:
                        weight.learn(accepted.tree.step_value(node), node in right)

    def release(self, request: Hashable) -> None:
        """Release what all drafters hold for a request."""
        for part in self._parts:
            release = getattr(part, "release", None)
            if release is not None:
                release(request)

    def _observe(
        self, context: DraftContext, tokens: Sequence[int], parents: Sequence[int], logits: Any
    ) -> None:
        """Pass the logits of a pass to the drafters that observe."""
        for part in self._parts:
            observe = getattr(part, "observe", None)
            if observe is not None:
                observe(context, tokens, parents, logits)

    def _drafts(self, context: DraftContext, budget: int) -> list[TokenTree]:
        """Return the draft of each drafter."""
        if not self.parallel:
            retrieved = [
                self._draft(number, context, budget) for number in range(1, len(self._parts))
            ]
            if self._is_covered(context, retrieved):
                self._worths[0].skip()
                return [EMPTY, *retrieved]
            return [self._draft(0, context, budget), *retrieved]
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, thread_name_prefix="ralmspec-drafter")
            beside: list[Future[TokenTree]] = [
                self._pool.submit(self._draft, number, context, budget)
                for number in range(1, len(self._parts))
            ]
        return [self._draft(0, context, budget), *(one.result() for one in beside)]

    def _is_covered(self, context: DraftContext, retrieved: Sequence[TokenTree]) -> bool:
        """Return whether the model's draft would cost more than retrieval leaves to gain."""
        least_gain = getattr(self._model, "least_gain", None)
        if least_gain is None or self.top_tokens is not None:
            return False
        tree = merged(
            [scaled(tree, self._weight_of(part)) for part, tree in enumerate(retrieved, 1)]
        )
        next_token = sum(
            value for value, parent in zip(tree.values, tree.parents, strict=True) if parent == ROOT
        )
        needed: float = least_gain(context)
        return 1.0 - next_token < needed

    def _draft(self, number: int, context: DraftContext, budget: int) -> TokenTree:
        """Return the draft of one drafter; one that raises, or does not pay, drafts nothing."""
        part, worth = self._parts[number], self._worths[number]
        if self.weight is None and not worth.ask():
            return EMPTY
        began_s = time.thread_time()
        try:
            tree = part.propose(context, budget)
            if context.pass_s:
                worth.note((time.thread_time() - began_s) / context.pass_s)
            return tree
        except Exception:  # noqa: BLE001 a drafter's error never changes the answer
            if id(part) not in self._failed:
                self._failed.add(id(part))
                _log.warning(
                    "%s failed; its drafts are left out", type(part).__name__, exc_info=True
                )
            return EMPTY

    def _pruned(self, context: DraftContext, tree: TokenTree) -> TokenTree:
        """Return a retrieved tree pruned by the model: see the class."""
        if self.top_tokens is None or not tree.tokens:
            return tree
        likeliest = set(self._model.likeliest(context, self.top_tokens))
        trusted = self.trusted_match
        return tree.kept(
            node
            for node, parent in enumerate(tree.parents)
            if parent != ROOT
            or tree.tokens[node] in likeliest
            or (trusted is not None and tree.evidence[node].match >= trusted)
        )

    def _weight_of(self, part: int) -> float:
        if self.weight is not None:
            return self.weight if part else 1.0
        return self._weights[part].value


class _Weight:
    """The ratio of a source's accepted drafts to the values that it gave them."""

    def __init__(self) -> None:
        self._expected = self._accepted = 8.0  # a prior: the values are right

    @property
    def value(self) -> float:
        return self._accepted / self._expected

    def learn(self, weighted: float, accepted: bool) -> None:
        value = min(1.0, weighted / self.value)
        keep = 1.0 - 1.0 / _RECENT
        self._expected = keep * self._expected + value
        self._accepted = keep * self._accepted + accepted


class _Worth:
    """Whether a source's accepted drafts are worth what drafting takes. Thread-safe."""

    def __init__(self) -> None:
        self._gain = 1.0  # recent accepted drafts of a verified tree
        self._cost = 0.0  # recent cost of a draft, in passes of the target
        self._skipped = 0
        self._asked = True
        self._lock = threading.Lock()

    def ask(self) -> bool:
        """Return whether to draft now."""
        with self._lock:
            self._asked = self._gain >= self._cost or self._skipped >= _SELDOM
            self._skipped = 0 if self._asked else self._skipped + 1
            return self._asked

    def skip(self) -> None:
        """Record that there is no draft this time."""
        with self._lock:
            self._asked = False

    def note(self, cost: float) -> None:
        """Record what drafting took."""
        with self._lock:
            self._cost += (cost - self._cost) / _SOON

    def learn(self, accepted: int) -> None:
        """Record how many drafts of the source were accepted, if it drafted."""
        with self._lock:
            if self._asked:
                self._gain += (accepted - self._gain) / _SOON
