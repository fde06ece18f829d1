"""Speculative decoding of a local model: drafts are verified in one pass, the text is unchanged."""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

from torch import Tensor, get_num_threads

from ralmspec_plugins.decoding.budget import Budget, CostCurve
from ralmspec_plugins.decoding.calibration import (
    Calibration,
    ErrorBound,
    differences,
    measure_costs,
    measure_costs_on,
    measure_errors,
    measure_fixed_cost,
    pass_clock,
)
from ralmspec_plugins.decoding.certification import is_certain
from ralmspec_plugins.decoding.drafters.protocol import (
    Accepted,
    DraftContext,
    Drafter,
    DraftTarget,
)
from ralmspec_plugins.decoding.drafters.suffix import SuffixDrafter
from ralmspec_plugins.decoding.fixed_shape import PREFILL_ROWS, FixedShapeRunner, probe
from ralmspec_plugins.decoding.token_tree import EMPTY, ROOT, TokenTree, checked_tree, merged
from ralmspec_plugins.decoding.transfer import KnowledgeTransfer, TransferDecoder
from ralmspec_plugins.decoding.verification import TreePass
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.lm.decoder import (
    Decoder,
    HostedModel,
    PlainDecoder,
    SegmentDecoder,
    SegmentText,
)
from ralmspec_plugins.lm.kv_cache import ModelRunner, Run, is_croppable
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.protocols import Progress

_log = logging.getLogger(__name__)

Exactness = Literal["certified", "invariant"]
_LONG: Final = 1024  # tokens of a context from which on passes are timed behind it
_TIMED_ROWS: Final = (1, 2, 3, 4, 6, 8, 12, 16)
_LEAST_CONTEXT: Final = 40  # positions
_MOST_COST: Final = 1.5  # maximum cost of a pass of fixed shape, in passes over one row


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """Settings of speculative decoding: `HuggingFaceLM(..., decoding=Decoding())`.

    In certified mode a text has the tokens that passes over one token each would give. The
    logits of a pass over several tokens differ in the last bits, by at most a measured bound. A
    choice that this bound leaves open is retaken from passes over one token. If that would
    happen too often (in 16 bit), a warning is logged and no tokens are drafted.

    In invariant mode every pass has `pass_rows` rows over a cache of fixed length, so
    that a token's logits are equal to the bit however many are read together; a probe at
    loading tests this. A text then has the tokens that passes of this shape give with one
    token each, which `Decoding(drafter=(), exactness="invariant")` generates. They may differ
    from those of passes over one row where two choices are nearly equal.

    Args:
        drafter: the drafter, or several whose drafts are merged; `()` drafts nothing.
        exactness: "certified" or "invariant". Unset: "certified" in float32; in 16 bit
            "invariant", if the probe succeeds and a pass costs at most 1.5 times one row.
        pass_rows: the rows of a pass in invariant mode, 2 to 64.
        most_drafts: the maximum number of drafts in a pass.
        error_factor: the ratio of the bounds to the largest differences seen.
        most_retakes: the maximum share of choices that may have to be retaken.
        transfer: the target's distribution is enriched by a teacher's: the text is that of
            another target, see `KnowledgeTransfer`.
        costs: the cost of passes by their rows; measured if not given, and again for each
            doubling of the context from 1,024 tokens on, in the first request of such a length.
        calibration_s: the approximate maximum duration of each of the two measurements.
    """

    drafter: Drafter | Sequence[Drafter] | None = None  # a SuffixDrafter
    exactness: Exactness | None = None
    pass_rows: int = 8
    most_drafts: int = 31
    error_factor: float = 8.0  # with twice as much no greedy choice in 1,840 was open in float32
    most_retakes: float = 0.01  # each costs a pass for every token since the last plain one
    transfer: KnowledgeTransfer | None = None
    costs: CostCurve | None = None
    calibration_s: float = 2.0

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: an unknown exactness, a number out of range, or no drafter.
        """
        for one in self.drafters:
            _check_drafter(one)
        for name in ("pass_rows", "most_drafts"):
            if not isinstance(getattr(self, name), int):
                raise ConfigError(f"{name} must be an integer, got {getattr(self, name)!r}")
        if self.exactness is not None and self.exactness not in get_args(Exactness):
            raise ConfigError(
                f"exactness must be one of {get_args(Exactness)}, got {self.exactness!r}"
            )
        if not 2 <= self.pass_rows <= PREFILL_ROWS // 2:
            raise ConfigError(
                f"pass_rows must be from 2 to {PREFILL_ROWS // 2}, got {self.pass_rows}"
            )
        if self.most_drafts < 1:
            raise ConfigError(f"most_drafts must be at least 1, got {self.most_drafts}")
        if not self.error_factor >= 1:
            raise ConfigError(f"error_factor must be at least 1, got {self.error_factor}")
        if not 0 <= self.most_retakes <= 1:
            raise ConfigError(f"most_retakes must be from 0 to 1, got {self.most_retakes}")
        if not self.calibration_s > 0:
            raise ConfigError(f"calibration_s must be above 0, got {self.calibration_s}")

    @property
    def drafters(self) -> tuple[Drafter, ...]:
        """The drafters, in order."""
        if self.drafter is None:
            return (SuffixDrafter(),)
        given: Any = self.drafter
        several = isinstance(given, Sequence) and not isinstance(given, str)
        return tuple(given) if several else (given,)

    def decoder(self, model: HostedModel) -> Decoder:
        """Return the decoder of a model: the plain one if speculation is not possible."""
        drafters = self.drafters
        target = DraftTarget(model.encode, model.vocabulary, model.tokenizer, model.runner.model)
        for drafter in drafters:
            bind = getattr(drafter, "bind", None)
            if bind is not None:
                bind(target)
        if self.transfer is None:
            return self._measured(model, drafters, self.costs)
        self.transfer.bind(target)
        return TransferDecoder(self._measured(model, drafters, self.costs), self.transfer, model)

    def _measured(
        self, model: HostedModel, drafters: tuple[Drafter, ...], costs: CostCurve | None
    ) -> Decoder:
        """Return a decoder after measuring what is not known yet."""
        if model.context is not None and model.context < _LEAST_CONTEXT:
            _log.warning(
                "No tokens are drafted: the model has %d positions, and %d are needed to measure "
                "its passes",
                model.context,
                _LEAST_CONTEXT,
            )
            return PlainDecoder(model.runner)
        exactness = self.exactness or ("invariant" if model.runner.in_16_bit else "certified")
        if exactness == "invariant":
            made = self._invariant(model, drafters)
            if made is not None:
                return made
            if self.exactness is not None:
                return PlainDecoder(model.runner)
        try:
            shift = None if self.transfer is None else self.transfer.smooth_shift(model.sampling)
            known = measure_errors(model, self.error_factor, self.calibration_s, shift)
        except Exception as problem:  # noqa: BLE001 after any error plain decoding still works
            _log.warning("No tokens are drafted: %s", problem)
            return PlainDecoder(model.runner)
        if known.near > self.most_retakes:
            _log.warning(
                "No tokens are drafted: the logits of passes over several tokens differ by "
                "%.2g, which leaves %.1f %% of the choices open, more than %.1f %%. "
                "Float32 has the smallest differences; a higher most_retakes allows more.",
                known.error.largest,
                100 * known.near,
                100 * self.most_retakes,
            )
            return PlainDecoder(model.runner)
        costs = costs or measure_costs(model, self.calibration_s)
        return SpeculativeDecoder(model, self, known, costs, drafters)

    def _invariant(
        self, model: HostedModel, drafters: tuple[Drafter, ...]
    ) -> "SpeculativeDecoder | None":
        """Return a decoder by passes of fixed shape; `None`, with a warning, if it is unusable."""
        usual = model.runner
        try:
            runner = FixedShapeRunner(usual.model, usual.store.budget_bytes, rows=self.pass_rows)
            differing = probe(runner, model.vocabulary)
        except Exception as problem:  # noqa: BLE001 after any error plain decoding still works
            _log.warning("Passes of a fixed shape are not possible: %s", problem)
            return None
        if differing:
            _log.warning(
                "Passes of a fixed shape are not invariant here: the logits of %d rows depend on "
                "the other rows.",
                differing,
            )
            return None
        fixed = replace(model, runner=runner)
        cost, pass_s = measure_fixed_cost(model, fixed, self.calibration_s)
        if self.exactness is None and cost > _MOST_COST:
            _log.warning(
                "A pass of %d rows costs %.2f times one of a single row, more than %.1f: passes of "
                'a fixed shape are not used. exactness="invariant" uses them anyway.',
                self.pass_rows,
                cost,
                _MOST_COST,
            )
            return None
        costs = self.costs or CostCurve((1, self.pass_rows), (1.0, 1.0), pass_s)
        known = Calibration(
            ErrorBound(1.0), 0.0, trees=False, threads=get_num_threads(), exact=True
        )
        return SpeculativeDecoder(fixed, self, known, costs, drafters)

    def decoder_beside(self, other: "SpeculativeDecoder", sampling: Greedy | Sampling) -> Decoder:
        """Return a decoder with another sampling, for the same model and drafters as `other`.

        The cost of passes is known already. The differences of their logits are measured again,
        and the share of choices that they leave open with this sampling.
        """
        model = replace(other.model, sampling=sampling)
        if other.known.exact:
            return SpeculativeDecoder(model, self, other.known, other.budget.costs, other.drafters)
        made = self._measured(model, other.drafters, other.budget.costs)
        if isinstance(made, SpeculativeDecoder):
            made.known.error.observe(other.known.error.largest, 0.0)
        return made


def _check_drafter(given: object) -> None:
    """Check that a drafter has the methods of one."""
    if isinstance(given, type):
        raise ConfigError(f"drafter must be an object, got a class; use {given.__name__}(...)")
    if not hasattr(given, "propose") or not hasattr(given, "update"):
        raise ConfigError(
            "drafter must be a Drafter (with propose and update), several of them, or () for none, "
            f"got {given!r:.80}"
        )


class SpeculativeDecoder:
    """Drafts, verifies and accepts for all requests of a model, and learns what pays off."""

    def __init__(
        self,
        model: HostedModel,
        settings: Decoding,
        known: Calibration,
        costs: CostCurve,
        drafters: tuple[Drafter, ...],
    ) -> None:
        """Create a decoder with these settings and measurements."""
        self.model = model
        self.settings = settings
        self.known = known
        self.budget = Budget(costs, self.most_drafts)
        self._budgets: dict[int, Budget] = {}  # for long contexts, by their length's order
        self.counts = DecodingCounts()
        self.clock = pass_clock(model.runner.device)
        self.drafters = drafters
        self._observers: list[Any] = [one for one in drafters if hasattr(one, "observe")]
        self._failed: set[int] = set()  # ids of drafters whose error was logged

    @property
    def runner(self) -> ModelRunner:
        """The runner of the passes."""
        return self.model.runner

    @property
    def most_drafts(self) -> int:
        """The maximum number of drafts in a pass."""
        rows = self.settings.pass_rows if self.known.exact else self.settings.most_drafts + 1
        return min(self.settings.most_drafts, rows - 1)

    def segment(self, run: Run, text: SegmentText) -> SegmentDecoder:
        """Return the decoder of a segment on a run."""
        return SpeculativeSegment(self, run, text, self.budget_for(run))

    def budget_for(self, run: Run) -> Budget:
        """Return the budget of drafts behind a context as long as a run's.

        The longer a context is, the longer a pass takes, and the less each further row adds to
        it. So passes behind long contexts are timed on the run itself, once for each doubling.
        """
        if self.settings.costs is not None or not self.drafters or not is_croppable(run.cache):
            return self.budget
        length = run.cache.get_seq_length()
        order = length.bit_length()
        if length < _LONG:
            return self.budget
        if order not in self._budgets:
            costs = self._costs_behind(run, length)
            known = None if costs is None else Budget(costs, self.most_drafts)
            self._budgets[order] = known or self.budget
        return self._budgets[order]

    def _costs_behind(self, run: Run, length: int) -> CostCurve | None:
        """Return the cost of passes behind a run; `None` if it has no room for them."""
        context = self.model.context
        most = 64 if context is None else context - length
        sizes = [size for size in _TIMED_ROWS if size <= min(most, 1 + self.most_drafts)]
        if self.known.exact:
            sizes = [1]
        if not sizes:
            return None
        measured = measure_costs_on(self.runner, run, sizes, self.settings.calibration_s)
        if self.known.exact:
            return CostCurve((1, self.settings.pass_rows), (1.0, 1.0), measured.pass_s)
        return measured

    def release(self, request: int) -> None:
        """Release what the drafters hold for a request."""
        for drafter in self.drafters:
            release = getattr(drafter, "release", None)
            if release is not None:
                try:
                    release(request)
                except Exception:  # noqa: BLE001 a drafter's error never changes the answer
                    self._report(drafter)

    def for_sampling(self, sampling: Greedy | Sampling) -> Decoder:
        """Return a decoder with the same drafters and another sampling."""
        return self.settings.decoder_beside(self, sampling)

    def drafters_for(self, context: DraftContext, budget: Budget) -> list[Drafter]:
        """Return the drafters that are expected to pay off in a segment, ready to draft."""
        found = []
        for drafter in self.drafters:
            effort: Any = getattr(drafter, "effort", None)
            try:
                if effort is not None and (expected := effort(context)) is not None:
                    source = getattr(drafter, "source", "")
                    if not budget.pays(source, expected, context.left, self.most_drafts):
                        continue
                    begin: Any = getattr(drafter, "begin", None)
                    if begin is not None:
                        begin(context)
                found.append(drafter)
            except Exception:  # noqa: BLE001 a drafter's error never changes the answer
                self._report(drafter)
        return found

    def draft(
        self,
        context: DraftContext,
        depth: int,
        most: int,
        drafters: Sequence[Drafter],
        budget: Budget,
    ) -> TokenTree:
        """Return the merged drafts of several drafters; one that raises drafts nothing."""
        found, took_s = [], 0.0
        for drafter in drafters:
            began_s = self.clock()
            try:
                tree = checked_tree(drafter.propose(context, most))
                found.append(tree.within(self.model.vocabulary, depth))
            except Exception:  # noqa: BLE001 as above
                self._report(drafter)
            if not getattr(drafter, "steady", False):  # a teacher reads the text in any case
                took_s += self.clock() - began_s
        budget.note_draft(took_s)
        return merged(found)

    def accept(self, accepted: Accepted) -> None:
        """Notify the drafters of the outcome of a draft."""
        for drafter in self.drafters:
            try:
                drafter.update(accepted)
            except Exception:  # noqa: BLE001 as above
                self._report(drafter)

    @property
    def observed(self) -> bool:
        """Whether a drafter observes the model's passes."""
        return bool(self._observers)

    def observe(
        self, context: DraftContext, tokens: Sequence[int], parents: Sequence[int], logits: Tensor
    ) -> None:
        """Pass the logits of a pass to the drafters that observe."""
        for drafter in self._observers:
            try:
                drafter.observe(context, tokens, parents, logits)
            except Exception:  # noqa: BLE001 as above
                self._report(drafter)

    def _report(self, drafter: Drafter) -> None:
        if id(drafter) not in self._failed:
            self._failed.add(id(drafter))
            _log.warning(
                "%s failed; its drafts are left out", type(drafter).__name__, exc_info=True
            )


class SpeculativeSegment:
    """The passes of one segment, in which drafts are proposed, verified and accepted."""

    def __init__(
        self, decoder: SpeculativeDecoder, run: Run, text: SegmentText, budget: Budget
    ) -> None:
        """Create a segment that continues a run."""
        self._decoder = decoder
        self._budget = budget
        self._drafters: list[Drafter] | None = None  # chosen at the first draft
        self._runner = decoder.model.runner
        self._run = run
        self._text = text
        self._pass: TreePass | None = None
        self._context: DraftContext | None = None  # of the last draft
        self._drafted: TokenTree = EMPTY
        self._counted = len(run.tokens)
        self.drafts_accepted = 0
        self.decisions_retaken = 0

    def logits(self, tokens: Sequence[int], goal: int, progress: Progress) -> Tensor:
        """Return the logits after the text: from the pass that drafted it, or from a new one."""
        progress.check()
        if self._pass is not None:
            if len(tokens) == self._pass.length or self._pass.follow(tokens[-1]):
                return self._pass.here
            self._finish()
        missing = tokens[len(self._run.tokens) :]
        for token in missing[:-1]:
            self._feed(token)
            progress.check()
        if not missing:
            return self._run.logits
        tree = self._draft(tokens, self._depth(tokens, goal))
        if not tree.tokens:
            self._feed(missing[-1])
            return self._run.logits
        self._pass = TreePass(self._runner, self._run, missing[-1], tree)
        self._decoder.counts.add(passes=1, drafts=len(tree))
        if self._decoder.observed and self._context is not None:
            rows = self._pass.rows
            self._decoder.observe(self._context, rows.tokens, rows.parents, rows.logits)
        return self._pass.here

    def is_certain(self, tokens: Sequence[int], logits: Tensor, wider: float = 1.0) -> bool:
        """Return whether the schedule's logits would have led to the same choice as these."""
        if self._decoder.known.exact or (self._pass is None and self._run.is_scheduled):
            return True
        model, began_s = self._decoder.model, self._decoder.clock()
        history: Sequence[int] = ()
        if model.sampling.repetition_penalty != 1.0:
            history = (*self._text.front, *tokens)
        certain = is_certain(
            logits,
            model.sampling,
            self._decoder.known.error.value * wider,
            share_bound=self._decoder.known.error.share * wider,
            history=history,
            seed=self._text.seed,
            position=len(tokens),
        )
        self._budget.note_check(self._decoder.clock() - began_s)
        return certain

    def logprob_error(self) -> float:
        """Return the bound on a log-probability's error: twice that of a logit, 0 if exact."""
        if self._decoder.known.exact or (self._pass is None and self._run.is_scheduled):
            return 0.0
        return 2.0 * self._decoder.known.error.value

    def retake(self, tokens: Sequence[int], progress: Progress) -> Tensor:
        """Return to the last token that was read by the schedule; read the rest one by one."""
        self._finish()
        before = self._run.logits
        self._runner.reschedule(self._run)
        missing = tokens[len(self._run.tokens) :]
        for token in missing:
            progress.check()
            self._feed(token)
        found = differences(self._decoder.model, self._run.logits, before, self._text.front, tokens)
        self._decoder.known.error.observe(*found)
        self._budget.note_tokens(0, len(missing))
        self._decoder.counts.add(retaken=1)
        self.decisions_retaken += 1
        return self._run.logits

    def close(self) -> None:
        """Keep only tokens of the text in the cache, and learn from the last draft."""
        self._finish()
        self._judge(tuple(self._run.tokens))
        self._budget.note_tokens(max(0, len(self._run.tokens) - self._counted), 0)

    def _depth(self, tokens: Sequence[int], goal: int) -> int:
        """Return how deep drafts may be: up to the goal, and to what one pass can read."""
        last = len(self._text.front) + len(tokens) - 1  # the position of the text's last token
        return self._runner.rows_left(last, goal - len(tokens)) - 1

    def _feed(self, token: int) -> None:
        self._runner.feed(self._run, token)
        self._decoder.counts.add(passes=1)
        if self._decoder.observed:
            context = self._context_of(tuple(self._run.tokens))
            self._decoder.observe(context, (token,), (ROOT,), self._run.logits)

    def _context_of(self, tokens: tuple[int, ...], left: int = 0) -> DraftContext:
        text, decoder = self._text, self._decoder
        return DraftContext(
            text.request,
            text.passages,
            text.front,
            tokens,
            seed=text.seed,
            sampling=decoder.model.sampling,
            pass_s=self._budget.costs.pass_s,
            left=left,
        )

    def _draft(self, tokens: Sequence[int], depth: int) -> TokenTree:
        """Return the drafts that are worth verifying."""
        self._judge(tokens)
        decoder = self._decoder
        most = self._budget.ask(decoder.most_drafts) if depth > 0 else 0
        if not most:
            return EMPTY
        self._context = self._context_of(tuple(tokens), depth)
        if self._drafters is None:
            self._drafters = decoder.drafters_for(self._context, self._budget)
        tree = decoder.draft(self._context, depth, most, self._drafters, self._budget)
        trees = decoder.known.trees
        self._drafted = tree if trees else tree.chain()
        chosen = self._budget.choose(self._drafted, depth, trees=trees)
        return chosen.within(decoder.model.vocabulary, depth)

    def _judge(self, tokens: Sequence[int]) -> None:
        """Learn which of the last drafts, verified or not, agree with the text."""
        if self._context is not None:
            self._budget.learn(self._drafted, tokens[len(self._context.text) :])
        self._context, self._drafted = None, EMPTY

    def _finish(self) -> None:
        """Keep the followed tokens of the current pass, and report the accepted drafts."""
        if self._pass is None:
            return
        verified, self._pass = self._pass, None
        verified.finish()
        accepted = verified.accepted
        self._decoder.counts.add(accepted=len(accepted))
        self.drafts_accepted += len(accepted)
        if self._context is not None:
            self._decoder.accept(Accepted(self._context, verified.tree, accepted))


class DecodingCounts:
    """Counts of all requests of a model. Thread-safe."""

    def __init__(self) -> None:
        """Start at zero."""
        self.passes = 0  # passes over tokens of a text
        self.drafts = 0  # drafts in them
        self.accepted = 0  # drafts that became text
        self.retaken = 0  # choices retaken by the schedule
        self._lock = threading.Lock()

    def add(self, *, passes: int = 0, drafts: int = 0, accepted: int = 0, retaken: int = 0) -> None:
        """Add to the counts."""
        with self._lock:
            self.passes += passes
            self.drafts += drafts
            self.accepted += accepted
            self.retaken += retaken
