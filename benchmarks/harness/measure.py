"""Runs a case: all its ways in turn, request by request, with equal answers asserted."""

import gc
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch

from benchmarks.harness.cases import PLAIN_NAME, Arm, Case
from benchmarks.harness.inputs import Library, LoadedModel, Shelves, load_model, world_library
from benchmarks.harness.results import Row, read_results, row_of, surroundings
from benchmarks.simulated.predict import foretellable, foretold
from ralmspec_plugins.demo.world import DEMO_SEED, make_world
from ralmspec_plugins.diagnosis import check_equal
from ralmspec_plugins.engine.threads import Engine
from ralmspec_plugins.lm import HuggingFaceLM
from ralmspec_plugins.retrieval import Encoder
from ralmspec_plugins.retrieval.storage.files import write_whole
from ralmspec_plugins.types import Answer, Request
from ralmspec_plugins.workloads import Interval, OneShot, Sentences

_QUESTIONS_SEED: Final = 3
_WARM_UP_STEPS: Final = 4
Way: TypeAlias = Callable[[Sequence[Request]], list[Answer]]


@dataclass(frozen=True, slots=True)
class Measured:
    """A case with one row for each run, in the order in which they were made."""

    case: Case
    rows: list[Row]

    def record(self) -> dict[str, Any]:
        """Give it as JSON takes it."""
        return {"case": self.case.record(), "rows": self.rows}


def measure(
    case: Case,
    model: LoadedModel,
    shelves: Shelves,
    watch: Callable[[Row], None] | None = None,
) -> Measured:
    """Measure a case: plain, A, B, plain, A, B, and so on, for each request and repetition.

    One short round, which is not counted, warms up what is set up once. With each repetition
    everything that is learned (pools, costs) begins anew; model caches begin anew with each
    run, so that no way reads passages that another one has read.

    Args:
        case: what is measured.
        model: the one of the case.
        shelves: the passages.
        watch: is shown each row.

    Raises:
        UnequalError: an answer is not the plain loop's.
    """
    requests = requests_of(case, shelves)
    rows: list[Row] = []
    with shelves.opened(case.store) as retriever, at_rest():
        _round(_Ways(case, model, shelves, retriever), [_short(requests[0], case)], 1, [])
        for repetition in range(case.repetitions):
            found: list[Row] = []
            ways = _Ways(case, model, shelves, retriever)
            first = _round(ways, requests, case.concurrency, found)
            if foretellable(case):
                told = foretold(case, shelves, retriever, first, found)
                for row in found:
                    if row["request"] == 0 and row["arm"] in told:
                        row["predicted_s"] = told[row["arm"]]
            for row in found:
                rows.append({"repetition": repetition, **row})
                if watch is not None:
                    watch(rows[-1])
    return Measured(case, rows)


def requests_of(case: Case, shelves: Shelves) -> list[Request]:
    """Make the requests of a case.

    Raises:
        InputError: the articles are too short.
    """
    tokens = case.steps * case.interval
    if case.text == "free":
        asked = make_world(DEMO_SEED).questions(case.requests, _QUESTIONS_SEED)
        return [Request(prompt=one.prompt, max_tokens=tokens) for one in asked]
    scripts = shelves.library.scripts(case.requests, tokens)
    return [Request(prompt=one.prompt, max_tokens=tokens, context=one.text) for one in scripts]


@contextmanager
def at_rest() -> Iterator[None]:
    """Keep what there is already out of garbage collections, which then take no time."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _short(request: Request, case: Case) -> Request:
    """Give a request of a few steps."""
    return replace(request, max_tokens=min(_WARM_UP_STEPS, case.steps) * case.interval)


class _Ways:
    """The engines of one repetition, each with a model's caches of its own."""

    def __init__(self, case: Case, model: LoadedModel, shelves: Shelves, retriever: Any) -> None:
        self._case = case
        self._model = model
        self._shelves = shelves
        self._retriever = retriever

    def opened(self, stack: ExitStack) -> Iterator[tuple[str, "Way"]]:
        """Open an engine for each way, the plain one first."""
        for arm in (Arm(name=PLAIN_NAME, kind="plain"), *self._case.arms):
            speculators = self._shelves.speculators(arm, self._retriever)
            workload = self._workload()
            engine = stack.enter_context(
                Engine(workload, self._retriever, arm.settings(speculators))
            )
            yield arm.name, partial(self.run, engine, workload)

    def run(self, engine: Engine, workload: Any, requests: Sequence[Request]) -> list[Answer]:
        """Answer requests, at once if they are several, with caches that hold nothing."""
        workload.lm = self._writer()
        gc.collect()  # not in the middle of the run
        if len(requests) == 1:
            return [engine.run(requests[0])]
        return engine.batch(requests, max_concurrency=len(requests))

    def _workload(self) -> Any:
        case, lm = self._case, self._writer()
        if case.workload == "one_shot":
            return OneShot(lm)
        if case.workload == "sentences":
            return Sentences(lm, query_tokens=case.query_tokens, max_sentences=case.steps)
        return Interval(lm, interval=case.interval, query_tokens=case.query_tokens)

    def _writer(self) -> HuggingFaceLM:
        return self._model.writer(trace=self._case.text == "trace")


def _round(
    ways: _Ways, requests: Sequence[Request], at_once: int, rows: list[Row]
) -> dict[str, Answer]:
    """Run all requests in all ways, so many at once, and note what came of each run.

    Gives each way's answer to the first request.
    """
    first: dict[str, Answer] = {}
    with ExitStack() as stack:
        runs = list(ways.opened(stack))
        for start in range(0, len(requests), at_once):
            together = requests[start : start + at_once]
            plain: list[Answer] = []
            for name, run in runs:
                began_s = time.perf_counter()
                answers = run(together)
                took_s = time.perf_counter() - began_s
                plain = plain or answers
                first.setdefault(name, answers[0])
                for number, pair in enumerate(zip(answers, plain, strict=True), start=start):
                    check_equal(f"{name}: {requests[number].prompt}", pair[1], pair[0])
                    told = {"request": number, "arm": name, "together_s": took_s}
                    rows.append({**told, **row_of(*pair)})
    return first


# Runs a suite: case by case, each result on the disk before the next one begins.


FORMAT: Final = "ralmspec-bench"


def run(
    suite: str,
    cases: Sequence[Case],
    library: Library,
    encoder: Encoder,
    target: Path,
    watch: Callable[[Case, Row], None] | None = None,
) -> dict[str, Any]:
    """Measure cases, and write the results.

    Cases that the file has already, of the same commit, texts and encoder, are not measured again.

    Args:
        suite: its name.
        cases: what is measured, in order.
        library: the texts of traces; free texts are about the demo's world.
        encoder: of queries and passages.
        target: the file for the results, written after each case.
        watch: is shown each row.

    Raises:
        UnequalError: a speculative answer is not the plain one.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # a step's cost does not depend on who else is at work
    libraries = {"trace": library, "free": world_library()}
    shelves: dict[str, Shelves] = {}
    models: dict[str, LoadedModel] = {}
    result: dict[str, Any] = {
        "format": FORMAT,
        "suite": suite,
        **surroundings(),
        "seeds": {"padding": 0, "weights": 0, "bootstrap": 0},
        "texts": library.name,
        "encoder": getattr(encoder, "name", type(encoder).__name__),
        "models": {},
        "cases": [],
    }
    known = _measured_before(target, result)
    for case in cases:
        record = json.loads(json.dumps(case.record()))
        before = next((one for one in known["cases"] if one["case"] == record), None)
        if before is not None:
            result["models"][case.model] = known["models"][case.model]
            result["cases"].append(before)
            continue
        if case.model not in models:
            models[case.model] = load_model(case.model, library.articles)
            result["models"][case.model] = models[case.model].parameters
        if case.text not in shelves:
            shelves[case.text] = Shelves.of(libraries[case.text], encoder)
        measured = measure(
            case,
            models[case.model],
            shelves[case.text],
            None if watch is None else partial(watch, case),
        )
        result["cases"].append(measured.record())
        write_whole(target, json.dumps(result).encode())
    return result


def _measured_before(target: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Return the results of the same measurement that a former run has left; else none."""
    same = ("suite", "commit", "machine", "versions", "seeds", "texts", "encoder")
    if target.exists():
        known = read(target)
        if known["commit"] is not None and all(known[name] == result[name] for name in same):
            return known
    return {"cases": [], "models": {}}


def read(path: Path) -> dict[str, Any]:
    """Read results.

    Raises:
        InputError: the file holds something else.
    """
    return read_results(path, FORMAT, "python -m benchmarks")
