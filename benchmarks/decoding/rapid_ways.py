"""The ways in which texts behind a long context are written and timed: plainly, and with drafts."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import torch

from benchmarks.decoding.measure import UnequalTextError
from ralmspec_plugins.decoding import CostCurve, Decoding, DraftContext, Effort, RagDrafter
from ralmspec_plugins.decoding.budget import Budget
from ralmspec_plugins.decoding.calibration import pass_clock
from ralmspec_plugins.decoding.decoder import SpeculativeDecoder
from ralmspec_plugins.decoding.drafters.protocol import Accepted
from ralmspec_plugins.decoding.prompt_reading import PromptReading
from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.lm.kv_cache import ModelRunner, Run
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Passage, Request

LENGTHS: Final = (1024, 4096, 8192, 16384)
RETRIEVED: Final = 1024  # tokens that a drafter reads of a longer context
ROOM: Final = 512  # positions for question and text
UNCUT: Final = 2**30
WHOLE: Final = "small, all of it"  # the small drafter behind the whole context
WAYS: Final = ("self", "small", WHOLE)
_CACHES: Final = 16 * 2**30
_MOST_DRAFTS: Final = 15  # in a pass, of the bound


class WatchedDrafter(RagDrafter):
    """Tells what it took to begin, and what became of the drafts, since it was last asked."""

    begun_s = 0.0
    prompt_tokens = 0
    proposed = 0
    accepted = 0
    seen: DraftContext | None = None  # the last text that might have been drafted for

    def effort(self, context: DraftContext) -> Effort | None:
        """Return what it is expected to take."""
        self.seen = context
        return super().effort(context)

    def begin(self, context: DraftContext) -> None:
        """Retrieve and read, and take the time."""
        clock = self.reader.clock
        began_s = clock()
        super().begin(context)
        self.begun_s += clock() - began_s
        self.prompt_tokens = len(self._request(context).prompt)

    def update(self, accepted: Accepted) -> None:
        """Count the drafts that were read by the target, and those that became text."""
        super().update(accepted)
        self.proposed += len(accepted.tree)
        self.accepted += len(accepted.nodes)

    def told(self) -> tuple[float, int, int]:
        """Return the seconds to begin, and drafts accepted and proposed; start again at 0."""
        found = self.begun_s, self.accepted, self.proposed
        self.begun_s, self.accepted, self.proposed = 0.0, 0, 0
        return found

    def agreed(self, context: DraftContext, text: Sequence[int]) -> int:
        """Return how many tokens of a text, but the first, would have been drafted.

        Each would be drafted behind the text before it, whether drafts pay or not.

        Raises:
            RalmSpecError: it cannot draft, since nothing is retrieved for example.
        """
        fronts = [replace(context, text=tuple(text[:at])) for at in range(1, len(text))]
        drafted = [int(self.logits(one).argmax()) for one in fronts]
        return sum(one == token for one, token in zip(drafted, text[1:], strict=True))


class PlainWay:
    """Plain decoding of a model, our own and transformers', and what its texts took."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """Start without texts."""
        self.lm = HuggingFaceLM(model, tokenizer, passage_tokens=UNCUT, cache_bytes=_CACHES)
        self._model = model
        self.truth: Any = None

    def read(self, request: Request, passages: list[Passage]) -> tuple[Any, Run]:
        """Write a text for the first time; return its front, and the cache of the context."""
        self.truth = self._written(request, passages)
        prefix = self.lm._lineage(self.truth).prefix
        read = self.lm.caches.find(prefix, Run)
        assert read is not None
        return prefix, read

    def own_s(self, request: Request, passages: list[Passage]) -> float:
        """Return what our own plain decoding takes."""
        clock = pass_clock(self.lm._passes.device)
        began_s = clock()
        draft = self._written(request, passages)
        took_s = clock() - began_s
        if draft.tokens != self.truth.tokens:
            raise UnequalTextError("plain decoding wrote another text than before")
        return took_s

    def theirs_s(self, tokens: int) -> float:
        """Return what transformers' own takes, from a copy of the same cache."""
        lineage = self.lm._lineage(self.truth)
        prefix = self.lm.caches.find(lineage.prefix, Run)
        assert prefix is not None
        ids = torch.tensor([[*lineage.prefix.tokens, *lineage.prompt]])
        cache, clock = copy.deepcopy(prefix.cache), pass_clock(self.lm._passes.device)
        began_s = clock()
        found = self._model.generate(
            ids, attention_mask=torch.ones_like(ids), past_key_values=cache,
            max_new_tokens=tokens, do_sample=False,
        )  # fmt: skip
        took_s = clock() - began_s
        if tuple(found[0, ids.shape[1] :].tolist()) != self.truth.tokens:
            raise UnequalTextError("generate wrote another text")
        return took_s

    def _written(self, request: Request, passages: list[Passage]) -> Any:
        return self.lm.write(self.lm.begin(request), passages, request.max_tokens, Progress())


class DraftedWay:
    """One way to draft, and what its texts took."""

    def __init__(
        self, way: str, model: Any, tokenizer: Any, drafter: WatchedDrafter, seconds: float
    ) -> None:
        """Measure the model's passes for so many seconds; start without texts."""
        self.way, self.drafter = way, drafter
        decoding = Decoding(drafter=drafter, calibration_s=seconds, most_retakes=1.0)
        self.lm = HuggingFaceLM(
            model, tokenizer, passage_tokens=UNCUT, cache_bytes=_CACHES, decoding=decoding
        )
        self.rows: list[list[float]] = []
        self._front = 0

    def row(self, request: Request, passages: list[Passage], truth: Sequence[int]) -> list[float]:
        """Write a text once.

        Returns:
            The seconds of all and of beginning, passes, and drafts accepted and proposed.
        """
        lm, progress = self.lm, Progress()
        clock = pass_clock(lm._passes.device)
        self.drafter.told()
        began_s = clock()
        draft = lm.write(lm.begin(request), passages, request.max_tokens, progress)
        took_s = clock() - began_s
        if tuple(draft.tokens) != tuple(truth):
            raise UnequalTextError(f"the drafter {self.way!r} led to another text")
        self._front = len(lm._lineage(draft).prefix.tokens) + len(draft.prompt_tokens)
        lm.release(draft)
        begun_s, accepted, proposed = self.drafter.told()
        return [took_s, begun_s, progress.model_passes, accepted, proposed]

    def result(self) -> dict[str, Any]:
        """Return the rows, and the costs by which was decided how much to draft."""
        decoder: Any = self.lm.decoder
        assert isinstance(decoder, SpeculativeDecoder)
        costs = decoder._budgets.get(self._front.bit_length(), decoder.budget).costs
        read = self.drafter.prompt_tokens
        return {
            "way": self.way,
            "rows": self.rows,
            "pass_s": costs.pass_s,
            "costs": dict(zip(map(str, costs.rows), costs.costs, strict=True)),
            "prompt_tokens": read,
            "step_s": self.drafter.reader.step_s(read),
        }


def step_costs(models: dict[str, Any], lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Return the seconds of a step of each model behind prompts of several lengths."""
    rows = []
    for length in sorted({256, 512, 1024, 2048, 4096, *lengths}):
        if length > max(lengths):
            continue
        row: dict[str, Any] = {"length": length}
        for name, model in models.items():
            runner = ModelRunner(model, 0)
            clock = pass_clock(runner.device)
            began_s = clock()
            reading = PromptReading(runner, tuple(at % 300 + 2 for at in range(length)))
            row[f"{name}_prefill_s"] = clock() - began_s
            took: list[float] = []
            for count in range(1, 9):
                began_s = clock()
                reading.after((5,) * count, singly=True)
                took.append(clock() - began_s)
            row[f"{name}_step_s"] = min(took)
        rows.append(row)
    return rows


def bound(row: dict[str, Any], rate: float, context: int, steps: Sequence[dict[str, Any]]) -> float:
    """Return the best speed that costs of passes and steps leave at a rate of acceptance.

    It is that of the best fixed number of drafts.
    """
    curve = CostCurve(tuple(map(int, row["costs"])), tuple(row["costs"].values()), row["pass_s"])
    step_s = row["step_s"]
    if step_s is None:  # it never began: by the step behind as many tokens as it would read
        read = context if row["way"] == WHOLE else min(context, RETRIEVED)
        nearest = min(steps, key=lambda one: abs(one["length"] - read))
        step_s = nearest["self_step_s" if row["way"] == "self" else "small_step_s"]
    return 1.0 / Budget(curve).passes_per_token(rate, step_s / row["pass_s"], _MOST_DRAFTS)


def cells(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[str]:
    """Return the cells of a table's row."""
    return [_shown(row.get(name)) for name in columns]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return ""
    return f"{value:.2f}" if isinstance(value, float) else str(value)
