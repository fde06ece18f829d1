"""How fast decoding can be at a drafter's acceptance: the best fixed number of drafts a pass.

A known text is gone through with the drafts that a drafter proposes for it. So the tokens a pass
are counted, not timed, for every number of drafts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import thread_time
from typing import Any, Final

from torch import Tensor

from ralmspec_plugins.decoding import CostCurve, DraftContext, DraftTarget
from ralmspec_plugins.decoding.drafters import Accepted, Drafter
from ralmspec_plugins.decoding.token_tree import ROOT, merged
from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.lm.state import Draft

SIZES: Final = (3, 7, 15)  # drafts a pass
Makers = Mapping[str, Callable[[], Sequence[Drafter]]]


@dataclass(frozen=True, slots=True)
class WrittenText:
    """A text that a model wrote, with what stood before it and the logits behind its tokens."""

    passages: tuple[tuple[int, ...], ...]
    front: tuple[int, ...]
    tokens: tuple[int, ...]
    logits: Tensor  # [tokens, vocabulary]: behind each token

    @classmethod
    def of(cls, lm: HuggingFaceLM, draft: Draft) -> "WrittenText":
        """Read a draft again in one pass."""
        lineage = lm._lineage(draft)
        front = lineage.prefix.tokens + lineage.prompt
        runner: Any = lm.decoder.runner
        run = runner.start(front)
        rows = runner.read_rows(run, draft.tokens, range(-1, len(draft.tokens) - 1))
        passages = tuple(lm._passage_ids(one.title, one.text) for one in draft.passages or ())
        return cls(passages, front, draft.tokens, rows.logits.clone())


def counted(
    makers: Makers, target: DraftTarget, text: WrittenText, sizes: Sequence[int], pass_s: float
) -> dict[str, dict[str, list[float]]]:
    """Return by drafter and number of drafts: tokens, passes, and seconds of all drafting."""
    return {
        name: {
            str(size): [float(len(text.tokens)), *_replayed(make(), target, text, size, pass_s)]
            for size in sizes
        }
        for name, make in makers.items()
    }


def bound(
    counts: Mapping[str, Sequence[float]], curve: CostCurve, *, drafting: bool = False
) -> float:
    """Return the largest quotient of tokens a pass and the cost of the pass.

    Args:
        counts: by number of drafts: tokens, passes, seconds of drafting.
        curve: the cost of passes.
        drafting: whether drafting, as long as it took here, is a part of the cost.

    >>> curve = CostCurve((1, 4), (1.0, 1.5), 0.01)
    >>> counts = {"3": (30.0, 10.0, 0.05)}
    >>> bound(counts, curve), bound(counts, curve, drafting=True)
    (2.0, 1.5)
    """
    assert curve.pass_s is not None
    found = [1.0]
    for size, (tokens, passes, drafting_s) in counts.items():
        cost = curve.cheapest(1 + int(size))[1]
        if drafting:
            cost += drafting_s / passes / curve.pass_s
        found.append(tokens / passes / cost)
    return max(found)


def summed(texts: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    """Add the counts of several texts."""
    return {size: [sum(one[size][at] for one in texts) for at in range(3)] for size in texts[0]}


def _replayed(
    drafters: Sequence[Drafter], target: DraftTarget, text: WrittenText, size: int, pass_s: float
) -> tuple[float, float]:
    """Count the passes that a text takes with so many drafts in each, and time the drafting."""
    for drafter in drafters:
        getattr(drafter, "bind", lambda _: None)(target)
    at, passes, drafting_s = 1, 1, 0.0  # the first token comes with the prefill
    while at < len(text.tokens):
        context = DraftContext(0, text.passages, text.front, text.tokens[:at], pass_s=pass_s)
        began_s = thread_time()
        trees = [drafter.propose(context, size) for drafter in drafters]
        tree = merged(trees).most_valued(size)
        drafting_s += thread_time() - began_s
        way = tree.followed(text.tokens[at : len(text.tokens) - 1])
        read = text.tokens[at - 1 : at + len(way)]
        logits = text.logits[at - 1 : at + len(way)]
        for drafter in drafters:
            drafter.update(Accepted(context, tree, way))
            if hasattr(drafter, "observe"):
                drafter.observe(context, read, range(ROOT, len(read) - 1), logits)
        at += len(way) + 1
        passes += 1
    for drafter in drafters:
        getattr(drafter, "release", lambda _: None)(0)
    return float(passes), drafting_s
