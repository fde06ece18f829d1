"""Times ways of decoding side by side: plain, drafted, and transformers' own; all equal."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Final

import torch

from benchmarks.decoding.journal import Journal
from benchmarks.decoding.tasks import Task
from benchmarks.harness.inputs import LoadedModel
from ralmspec_plugins.decoding import (
    CorpusDrafter,
    CostCurve,
    Decoding,
    DraftContext,
    FusedDrafter,
    PassageDrafter,
    RecyclingDrafter,
    SuffixDrafter,
    TokenCorpus,
)
from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.lm.prompts import encode
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.lm.state import Draft
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Request

Row = dict[str, Any]
OURS: Final = ("suffix", "suffix + passages")
LENGTHS: Final = (0, 1, 2, 3, 4, 5, 7, 9, 11, 15, 19, 23, 31)  # of drafts, for the bound
_LOOKED_UP: Final = 10  # tokens that transformers' prompt lookup drafts, as its authors do
_FREE: Final = Sampling(temperature=1.3)


class UnequalTextError(AssertionError):
    """A speculative text is not the plain one."""


@dataclass(frozen=True, slots=True)
class Ways:
    """All ways to write, on the same weights."""

    loaded: LoadedModel
    plain: HuggingFaceLM
    fast: Mapping[str, HuggingFaceLM]

    @classmethod
    def of(
        cls,
        loaded: LoadedModel,
        sampling: Greedy | Sampling,
        costs: CostCurve | None,
        corpus: TokenCorpus | None = None,
    ) -> "Ways":
        """Make them; those that copy from a corpus where there is one."""

        def made(decoding: Decoding | None) -> HuggingFaceLM:
            return HuggingFaceLM(
                loaded.model,
                loaded.tokenizer,
                template=loaded.template,
                sampling=sampling,
                cache_bytes=0,  # each way reads the passages anew, as `generate` does
                decoding=decoding,
            )

        first = made(Decoding(drafter=SuffixDrafter(), costs=costs))
        known: Any = first.decoder
        drafters: dict[str, Any] = {
            OURS[1]: (SuffixDrafter(), PassageDrafter()),
            "recycling": RecyclingDrafter(),
            "suffix + recycling": FusedDrafter(RecyclingDrafter(), SuffixDrafter(), parallel=False),
        }
        if corpus is not None:
            drafters["corpus (REST)"] = CorpusDrafter(corpus)
            fused = FusedDrafter(
                RecyclingDrafter(), SuffixDrafter(), CorpusDrafter(corpus), parallel=False
            )
            drafters["suffix + recycling + corpus"] = fused
        others = {
            name: made(Decoding(drafter=drafter, costs=known.budget.costs))
            for name, drafter in drafters.items()
        }
        return cls(loaded, made(None), {OURS[0]: first, **others})

    @property
    def costs(self) -> CostCurve:
        """c(rows), as it was measured."""
        known: Any = self.fast[OURS[0]].decoder
        curve: CostCurve = known.budget.costs
        return curve


def measure(
    loaded: LoadedModel,
    tasks: Sequence[Task],
    tokens: int,
    repetitions: int,
    journal: Journal,
    watch: Callable[[Row], None],
    corpus: Sequence[str] = (),
) -> dict[str, Any]:
    """Write every task in every way, in turn, and return what each took.

    Args:
        loaded: the model.
        tasks: what is written.
        tokens: of each text.
        repetitions: of each text in each way.
        journal: holds what an earlier run has measured.
        watch: is shown each new row.
        corpus: texts that REST's drafts are copied from.

    Raises:
        UnequalTextError: one of our ways wrote another text than plain decoding.
    """
    known = journal.of(f"{loaded.name} costs", lambda: _curve_of(loaded))
    curve = CostCurve(tuple(known["rows"]), tuple(known["costs"]), known["pass_s"])
    documents = [encode(loaded.tokenizer, text, literal=True) for text in corpus]
    held = TokenCorpus.of(documents) if documents else None
    greedy, free = (Ways.of(loaded, one, curve, held) for one in (Greedy(), _FREE))
    for ways in (greedy, free):  # to warm up
        _written(ways.plain, tasks[0], 8, 0)

    def one_task(number: int, task: Task) -> dict[str, Any]:
        rows: list[Row] = []
        for repetition in range(repetitions):
            ways = free if task.sampled else greedy
            found, plain = _round(ways, task, tokens, number, repetition)
            rows += found
            for row in found:
                watch(row)
        return {"rows": rows, "passes": {} if task.sampled else counted(greedy.plain, plain)}

    done = [
        journal.of(f"{loaded.name} {number}", partial(one_task, number, task))
        for number, task in enumerate(tasks)
    ]
    return {
        "model": loaded.name,
        "parameters": loaded.parameters,
        "costs": {str(k): c for k, c in zip(curve.rows, curve.costs, strict=True)},
        "rows": [row for one in done for row in one["rows"]],
        "expected": expected(
            [(task.kind, one["passes"]) for task, one in zip(tasks, done, strict=True)]
        ),
    }


def _curve_of(loaded: LoadedModel) -> dict[str, Any]:
    curve = Ways.of(loaded, Greedy(), None).costs
    return {"rows": curve.rows, "costs": curve.costs, "pass_s": curve.pass_s}


def _round(
    ways: Ways, task: Task, tokens: int, number: int, repetition: int
) -> tuple[list[Row], Draft]:
    plain, took = _timed(partial(_written, ways.plain, task, tokens, number))
    about = {"task": task.kind, "request": number, "repetition": repetition}
    written = len(plain.tokens)
    rows = [{**about, "way": "plain", **took, "tokens": written, "passes": written}]
    for name, lm in ways.fast.items():
        decoder: Any = lm.decoder
        before = _spent(decoder.counts)
        draft, took = _timed(partial(_written, lm, task, tokens, number))
        if draft != plain:
            raise UnequalTextError(f"{task.kind} {number}: {draft.text!r} is not {plain.text!r}")
        spent = {key: value - before[key] for key, value in _spent(decoder.counts).items()}
        spent["passes"] += 1  # the prefill, which gives the first token
        rows.append({**about, "way": name, **took, "tokens": written, **spent})
    if not task.sampled:
        rows += [{**about, **row} for row in _generated(ways, plain)]
    return rows, plain


def _timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Do some work, and give what it took: on the clock, and of this thread's own time."""
    began_s, own_began_s = time.perf_counter(), time.thread_time()
    result = work()
    return result, {
        "seconds": time.perf_counter() - began_s,
        "own_s": time.thread_time() - own_began_s,
    }


def _spent(counts: Any) -> dict[str, int]:
    names = ("passes", "drafts", "accepted", "retaken")
    return {name: getattr(counts, name) for name in names}


def _written(lm: HuggingFaceLM, task: Task, tokens: int, seed: int) -> Draft:
    draft = lm.begin(Request(prompt=task.prompt, max_tokens=tokens, seed=seed))
    written = lm.write(draft, task.passages, tokens, Progress())
    lm.release(written)
    return written


def _generated(ways: Ways, plain: Draft) -> list[Row]:
    """Write with transformers' `generate`, alone and with its own prompt lookup."""
    lineage = ways.plain._lineage(plain)
    front = list(lineage.prefix.tokens + lineage.prompt)
    ids = torch.tensor([front])
    rows = []
    lookup = {"prompt_lookup_num_tokens": _LOOKED_UP}
    for name, settings in (("generate", {}), ("generate, prompt lookup", lookup)):
        found, took = _timed(
            partial(
                ways.loaded.model.generate,
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=len(plain.tokens),
                pad_token_id=0,
                **settings,
            )
        )
        tokens = found[0, len(front) :].tolist()
        row = {"way": name, **took, "tokens": len(tokens)}
        rows.append({**row, "equal": tokens == list(plain.tokens)})
    return rows


def counted(lm: HuggingFaceLM, draft: Draft) -> dict[str, tuple[int, int]]:
    """Count a text's tokens, and the passes that the suffix drafter's chains of a length take.

    Counted, not timed: the text is gone through as it would be written.
    """
    lineage = lm._lineage(draft)
    front = lineage.prefix.tokens + lineage.prompt
    passes = {length: _passes(front, draft.tokens, length) for length in LENGTHS}
    return {str(length): (len(draft.tokens), count) for length, count in passes.items()}


def expected(
    texts: Sequence[tuple[str, Mapping[str, Sequence[int]]]],
) -> dict[str, dict[str, float]]:
    """Return, by task and length of draft, the tokens a pass."""
    totals: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for kind, by_length in texts:
        for length, (tokens, passes) in by_length.items():
            totals[kind][length][0] += tokens
            totals[kind][length][1] += passes
    return {
        kind: {length: tokens / passes for length, (tokens, passes) in by_length.items()}
        for kind, by_length in totals.items()
    }


def _passes(front: tuple[int, ...], tokens: tuple[int, ...], length: int) -> int:
    """Count the passes that a text takes with chains of this length."""
    drafter, at, passes = SuffixDrafter(), 1, 1  # the first token comes with the prefill
    while at < len(tokens):
        passes += 1
        right = 0
        if length:
            context = DraftContext(0, (front,), front, tokens[:at])
            chain = drafter.propose(context, 2 * length).chain().tokens[:length]
            for token, truth in zip(chain, tokens[at:], strict=False):
                if token != truth:
                    break
                right += 1
        at += right + 1
    return passes


def summary(result: Mapping[str, Any], clock: str) -> list[dict[str, Any]]:
    """Give, by task and way, the medians over requests of speed, passes and the bound's share.

    Args:
        result: of `measure`.
        clock: "seconds", or "own_s": of the one thread that works, whatever else runs here.
    """
    curve = CostCurve(tuple(int(rows) for rows in result["costs"]), tuple(result["costs"].values()))
    by: dict[tuple[str, int], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in result["rows"]:
        by[row["task"], row["request"]][row["way"]].append(row)
    found: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for (task, _), ways in by.items():
        least = {way: min(row[clock] for row in rows) for way, rows in ways.items()}
        fastest = min(least[way] for way in ("plain", "generate") if way in least)
        for way, rows in ways.items():
            passes = rows[-1].get("passes")
            gained = rows[-1]["tokens"] / passes if passes else float("nan")
            found[task, way].append({"speed": fastest / least[way], "tokens_a_pass": gained})
    summaries = []
    for (task, way), values in found.items():
        told: Row = {"task": task, "way": way, "requests": len(values)}
        told |= {name: median(value[name] for value in values) for name in values[0]}
        if way in OURS and task in result["expected"]:
            curves = result["expected"][task].items()
            told["bound"] = max(gain / curve.of(1 + int(length)) for length, gain in curves)
            told["share"] = told["speed"] / told["bound"]
        summaries.append(told)
    return summaries
