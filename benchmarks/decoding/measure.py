"""Times ways of decoding side by side: plain, drafted, and transformers' own; all equal."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import geometric_mean, median
from typing import Any, Final

import torch

from benchmarks.decoding import bounds
from benchmarks.decoding.bounds import WrittenText
from benchmarks.decoding.journal import Journal
from benchmarks.decoding.tasks import Task
from benchmarks.harness.inputs import LoadedModel
from ralmspec_plugins.decoding import (
    CorpusDrafter,
    CostCurve,
    Decoding,
    Drafter,
    DraftTarget,
    FusedDrafter,
    ModelDrafter,
    PassageDrafter,
    RecyclingDrafter,
    SuffixDrafter,
    TokenCorpus,
)
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.lm.prompts import encode
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.lm.state import Draft
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Request

Row = dict[str, Any]
_LOOKED_UP: Final = 10  # tokens that transformers' prompt lookup drafts, as its authors do
_FREE: Final = Greedy(repetition_penalty=1.5)  # so that nothing repeats
PREFILL: Final = "prefill"  # of what stands before a text, and its first token
_THEIRS: Final = ("generate, prompt lookup", "generate, assistant model")
_SHARE: Final = 0.85  # of the bound, at least
_LEAST: Final = 0.98  # as fast as plain, at least, where nothing repeats


class UnequalTextError(AssertionError):
    """A speculative text is not the plain one."""


def makers(
    corpus: TokenCorpus | None, small: LoadedModel | None, only: Sequence[str] = ()
) -> dict[str, Callable[[], tuple[Drafter, ...]]]:
    """Return by name what makes a way's drafters.

    Drafting is not in parallel to itself here: all of a way's work counts, by one thread's time.

    Args:
        corpus: what REST's drafts are copied from.
        small: a model that drafts.
        only: the names of ways; without any, all.

    Raises:
        InputError: there is no way of such a name.
    """
    made: dict[str, Callable[[], tuple[Drafter, ...]]] = {
        "suffix": lambda: (SuffixDrafter(),),
        "suffix + passages": lambda: (SuffixDrafter(), PassageDrafter()),
        "recycling": lambda: (RecyclingDrafter(),),
        "suffix + recycling": lambda: (_fused(RecyclingDrafter(), SuffixDrafter()),),
    }
    if corpus is not None:
        made["corpus (REST)"] = lambda: (CorpusDrafter(corpus),)
        made["suffix + recycling + corpus"] = lambda: (
            _fused(RecyclingDrafter(), SuffixDrafter(), CorpusDrafter(corpus)),
        )
    if small is not None:
        made["model"] = lambda: (_small(small),)
        made["RASD(PLD)"] = lambda: (_fused(_small(small), SuffixDrafter(), **RASD),)
    if small is not None and corpus is not None:
        made["RASD(REST)"] = lambda: (_fused(_small(small), CorpusDrafter(corpus), **RASD),)
        made["fused"] = lambda: (
            _fused(_small(small), SuffixDrafter(), RecyclingDrafter(), CorpusDrafter(corpus)),
        )
    unknown = sorted(set(only) - set(made))
    if unknown:
        raise InputError(f"there is no way {unknown[0]!r}; there are {', '.join(made)}")
    return {name: make for name, make in made.items() if not only or name in only}


RASD: Final[Mapping[str, Any]] = {"top_tokens": 20, "trusted_match": 5, "weight": 1.0}


def _fused(model: Drafter, *retrieval: Drafter, **settings: Any) -> FusedDrafter:
    return FusedDrafter(model, *retrieval, parallel=False, **settings)


def _small(loaded: LoadedModel) -> ModelDrafter:
    return ModelDrafter(loaded.model, loaded.tokenizer)


@dataclass(frozen=True, slots=True)
class Ways:
    """All ways to write, on the same weights."""

    loaded: LoadedModel
    plain: HuggingFaceLM
    fast: Mapping[str, HuggingFaceLM]
    small: LoadedModel | None = None

    @classmethod
    def of(
        cls,
        loaded: LoadedModel,
        sampling: Greedy | Sampling,
        costs: CostCurve | None,
        corpus: TokenCorpus | None = None,
        small: LoadedModel | None = None,
        only: Sequence[str] = (),
    ) -> "Ways":
        """Make them; those that copy from a corpus, or draft by a model, where there is one."""

        def made(decoding: Decoding | None) -> HuggingFaceLM:
            return HuggingFaceLM(
                loaded.model,
                loaded.tokenizer,
                template=loaded.template,
                sampling=sampling,
                cache_bytes=0,  # each way reads the passages anew, as `generate` does
                decoding=decoding,
            )

        fast: dict[str, HuggingFaceLM] = {}
        for name, make in makers(corpus, small, only).items():
            fast[name] = made(Decoding(drafter=make(), costs=costs))
            known: Any = fast[name].decoder
            costs = known.budget.costs
        return cls(loaded, made(None), fast, small)

    @property
    def costs(self) -> CostCurve:
        """c(rows), as it was measured."""
        known: Any = next(iter(self.fast.values())).decoder
        curve: CostCurve = known.budget.costs
        return curve

    @property
    def target(self) -> DraftTarget:
        """What drafters are told of the model."""
        known: Any = next(iter(self.fast.values())).decoder
        return DraftTarget(known.model.encode, known.model.vocabulary, self.loaded.tokenizer)


def measure(
    loaded: LoadedModel,
    tasks: Sequence[Task],
    tokens: int,
    repetitions: int,
    journal: Journal,
    watch: Callable[[Row], None],
    corpus: Sequence[str] = (),
    small: LoadedModel | None = None,
    only: Sequence[str] = (),
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
        small: a model that drafts.
        only: the names of the ways with drafts; without any, all.

    Raises:
        InputError: there is no way of such a name.
        UnequalTextError: one of our ways wrote another text than plain decoding.
    """
    known = journal.of(f"{loaded.name} costs", lambda: _curve_of(loaded))
    curve = CostCurve(tuple(known["rows"]), tuple(known["costs"]), known["pass_s"])
    documents = [encode(loaded.tokenizer, text, literal=True) for text in corpus]
    held = TokenCorpus.of(documents) if documents else None
    samplings = (Greedy(), _FREE) if any(task.free for task in tasks) else (Greedy(),)
    greedy, *free = (Ways.of(loaded, one, curve, held, small, only) for one in samplings)
    for ways in (greedy, *free):  # to warm up
        for lm in (ways.plain, *ways.fast.values()):
            _written(lm, tasks[0], 8, 0)
    drafting = makers(held, small, only)

    def one_task(number: int, task: Task) -> dict[str, Any]:
        rows: list[Row] = []
        for repetition in range(repetitions):
            ways = free[0] if task.free else greedy
            found, plain = _round(ways, task, tokens, number, repetition)
            rows += found
            for row in found:
                watch(row)
        if task.free:
            return {"rows": rows, "passes": {}}
        text = WrittenText.of(next(iter(greedy.fast.values())), plain)
        assert curve.pass_s is not None
        passes = bounds.counted(drafting, greedy.target, text, bounds.SIZES, curve.pass_s)
        return {"rows": rows, "passes": passes}

    done = [
        journal.of(f"{loaded.name} {number}", partial(one_task, number, task))
        for number, task in enumerate(tasks)
    ]
    return {
        "model": loaded.name,
        "parameters": loaded.parameters,
        "costs": {str(k): c for k, c in zip(curve.rows, curve.costs, strict=True)},
        "pass_s": curve.pass_s,
        "rows": [row for one in done for row in one["rows"]],
        "expected": expected(
            [(task.kind, one["passes"]) for task, one in zip(tasks, done, strict=True)]
        ),
    }


def _curve_of(loaded: LoadedModel) -> dict[str, Any]:
    curve = Ways.of(loaded, Greedy(), None, only=("suffix",)).costs
    return {"rows": curve.rows, "costs": curve.costs, "pass_s": curve.pass_s}


def _round(
    ways: Ways, task: Task, tokens: int, number: int, repetition: int
) -> tuple[list[Row], Draft]:
    about = {"task": task.kind, "request": number, "repetition": repetition}
    _, prefill = _timed(partial(_written, ways.plain, task, 1, number))
    rows = [{**about, "way": PREFILL, **prefill, "tokens": 1, "passes": 1}]
    written: dict[str, Draft] = {}
    lms = {"plain": ways.plain, **ways.fast}
    first = repetition % len(lms)  # no way has the same place in every repetition
    for name in [*lms, *lms][first : first + len(lms)]:
        counts = getattr(lms[name].decoder, "counts", None)
        before = _spent(counts)
        draft, took = _timed(partial(_written, lms[name], task, tokens, number))
        spent = {key: value - before[key] for key, value in _spent(counts).items()}
        # A pass of drafts, or a token; and the prefill, which gives the first token.
        passes = spent.get("passes", len(draft.tokens) - 1) + 1
        rows.append(
            {**about, "way": name, **took, "tokens": len(draft.tokens), **spent, "passes": passes}
        )
        written[name] = draft
    plain = written["plain"]
    for name, draft in written.items():
        if draft != plain:
            texts = f"{draft.text!r} is not {plain.text!r}"
            raise UnequalTextError(f"{task.kind} {number}, {name}: {texts}")
    if not task.free:
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
    """Return a decoder's counts; nothing of plain decoding, which has none."""
    names = ("passes", "drafts", "accepted", "retaken")
    return {} if counts is None else {name: getattr(counts, name) for name in names}


def _written(lm: HuggingFaceLM, task: Task, tokens: int, seed: int) -> Draft:
    draft = lm.begin(Request(prompt=task.prompt, max_tokens=tokens, seed=seed))
    written = lm.write(draft, task.passages, tokens, Progress())
    lm.release(written)
    return written


def _generated(ways: Ways, plain: Draft) -> list[Row]:
    """Write with transformers' `generate`, alone, with its prompt lookup and with a small model."""
    lineage = ways.plain._lineage(plain)
    front = list(lineage.prefix.tokens + lineage.prompt)
    ids = torch.tensor([front])
    settings: dict[str, dict[str, Any]] = {
        "generate": {},
        _THEIRS[0]: {"prompt_lookup_num_tokens": _LOOKED_UP},
    }
    if ways.small is not None:
        settings[_THEIRS[1]] = {"assistant_model": ways.small.model}
    rows = []
    for name, more in settings.items():
        counter = _PassCounter()
        hook = ways.loaded.model.register_forward_pre_hook(counter)
        found, took = _timed(
            partial(
                ways.loaded.model.generate,
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=len(plain.tokens),
                pad_token_id=0,
                **more,
            )
        )
        hook.remove()
        tokens = found[0, len(front) :].tolist()
        row = {"way": name, **took, "tokens": len(tokens), "passes": counter.passes}
        rows.append({**row, "equal": tokens == list(plain.tokens)})
    return rows


class _PassCounter:
    def __init__(self) -> None:
        self.passes = 0

    def __call__(self, module: Any, arguments: Any) -> None:
        self.passes += 1


def expected(
    texts: Sequence[tuple[str, Mapping[str, Mapping[str, Sequence[float]]]]],
) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Return by task and way, for each number of drafts: tokens, passes, seconds of drafting."""
    kinds: dict[str, list[Mapping[str, Mapping[str, Sequence[float]]]]] = defaultdict(list)
    for kind, by_way in texts:
        if by_way:
            kinds[kind].append(by_way)
    return {
        kind: {way: bounds.summed([one[way] for one in found]) for way in found[0]}
        for kind, found in kinds.items()
    }


def summary(result: Mapping[str, Any], clock: str) -> list[dict[str, Any]]:
    """Give, by task and way, the medians over requests of speed, passes and the bounds' shares.

    "speed" is of whole requests, "decoding" without the prefill, as the bounds are.

    Args:
        result: of `measure`.
        clock: "seconds", or "own_s": of the one thread that works, whatever else runs here.
    """
    rows, costs = result["costs"], tuple(result["costs"].values())
    curve = CostCurve(tuple(map(int, rows)), costs, result["pass_s"])
    by: dict[tuple[str, int], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in result["rows"]:
        by[row["task"], row["request"]][row["way"]].append(row)
    found: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for (task, _), ways in by.items():
        least = {way: min(row[clock] for row in rows) for way, rows in ways.items()}
        fastest = min(least[way] for way in ("plain", "generate") if way in least)
        prefill = least.pop(PREFILL, 0.0)
        for way, whole in least.items():
            found[task, way].append(
                {
                    "speed": fastest / whole,
                    "decoding": (fastest - prefill) / (whole - prefill),
                    "tokens_a_pass": ways[way][-1]["tokens"] / ways[way][-1]["passes"],
                }
            )
    summaries = []
    for (task, way), values in found.items():
        told: Row = {"task": task, "way": way, "requests": len(values)}
        told |= {name: median(value[name] for value in values) for name in values[0]}
        speeds = [value["speed"] for value in values]
        told["least"], told["most"] = min(speeds), max(speeds)
        if way in result["expected"].get(task, ()):
            counts = result["expected"][task][way]
            told["bound"] = bounds.bound(counts, curve)
            told["bound_drafting"] = bounds.bound(counts, curve, drafting=True)
            told["share"] = told["decoding"] / told["bound"]
            told["share_drafting"] = told["decoding"] / told["bound_drafting"]
        summaries.append(told)
    return summaries


def means(told: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return by way the geometric mean of its speeds over the tasks that have a bound."""
    tasks = {row["task"] for row in told if "bound" in row}
    speeds: dict[str, list[float]] = defaultdict(list)
    for row in told:
        if row["task"] in tasks:
            speeds[row["way"]].append(row["speed"])
    return {way: geometric_mean(found) for way, found in speeds.items()}


def goals(told: Sequence[Mapping[str, Any]]) -> dict[str, list[str] | None]:
    """Return by goal where it is missed: nowhere, if it is reached; `None` if nothing tells.

    The goals: ways that draft take 85 % of their bound; the fused one is faster than any of
    transformers' own in every task, and the fastest in the mean; where nothing repeats, no way
    is below 0.98 of plain decoding.
    """
    by = {(row["task"], row["way"]): row for row in told}
    theirs = {
        row["task"]: max(
            (by[row["task"], way]["speed"] for way in _THEIRS if (row["task"], way) in by),
            default=0.0,
        )
        for row in told
    }
    shares = [row for row in told if "share_drafting" in row]
    ours = [row for row in told if row["way"] in ("suffix", "fused") and theirs[row["task"]]]
    free = [
        row
        for row in told
        if row["task"] == "no repetition" and not row["way"].startswith("generate")
    ]
    return {
        f"{_SHARE:.0%} of the bound": [
            f"{row['task']}, {row['way']}: {row['share_drafting']:.2f}"
            for row in shares
            if row["share_drafting"] < _SHARE
        ]
        if shares
        else None,
        "above transformers' own": [
            f"{row['task']}, {row['way']}: {row['speed']:.2f} against {theirs[row['task']]:.2f}"
            for row in ours
            if row["speed"] <= theirs[row["task"]]
        ]
        if ours
        else None,
        "fused is the fastest in the mean": _missed_mean(means(told)),
        f"at least {_LEAST} where nothing repeats": [
            f"{row['way']}: {row['speed']:.2f}" for row in free if row["speed"] < _LEAST
        ]
        if free
        else None,
    }


def _missed_mean(mean: Mapping[str, float]) -> list[str] | None:
    if "fused" not in mean:
        return None
    best = max(mean, key=lambda way: mean[way])
    return [] if best == "fused" else [f"{best}: {mean[best]:.2f} against {mean['fused']:.2f}"]
