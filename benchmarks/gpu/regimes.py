"""Whole requests with a real scan and a real model on the device, plain and speculative."""

from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any, Final

from benchmarks.gpu.passing import LLAMA_8B, Shape, drawn_model
from benchmarks.gpu.rows import Rows
from benchmarks.harness.cases import PAPER, PLAIN_NAME, Arm, Case, Store
from benchmarks.harness.inputs import LoadedModel, Shelves, python_library, vocabulary
from benchmarks.harness.measure import measure
from ralmspec_plugins.retrieval import HashingEncoder

# The models of RaLMSpec's tables, by their shapes.
GPT2_MEDIUM: Final = Shape(
    name="GPT-2 medium's size",
    layers=24,
    width=1024,
    inner=2730,
    heads=16,
    key_value_heads=16,
    vocabulary=50_257,
)
LLAMA_7B: Final = Shape(
    name="Llama-2-7B's shape",
    layers=32,
    width=4096,
    inner=11_008,
    heads=32,
    key_value_heads=32,
    vocabulary=32_000,
)
_CONTEXT: Final = 2048
_ARMS: Final = (PAPER[1], PAPER[-1], Arm(name="continuous, P20", prefetch=20))


@dataclass(frozen=True, slots=True, kw_only=True)
class RegimeSizes:
    """The sizes of the part."""

    shapes: tuple[Shape, ...] = (GPT2_MEDIUM, LLAMA_7B, LLAMA_8B)
    passages: int = 1_000_000
    dimension: int = 768
    requests: int = 3
    repetitions: int = 2
    steps: int = 32


def regimes(rows: Rows, part: str, sizes: RegimeSizes) -> None:
    """Measure each model over one store; answers are asserted equal to the plain loop's."""
    cases = {f"{part}: {shape.name}": shape for shape in sizes.shapes}
    if rows.complete(list(cases)):
        return
    library = python_library()
    shelves = Shelves.of(library, HashingEncoder(sizes.dimension))
    words = vocabulary(library.articles[:50])
    for name, shape in cases.items():
        rows.of(name, partial(_measured, shape, shelves, words, sizes, rows))


def _measured(
    shape: Shape, shelves: Shelves, words: Any, sizes: RegimeSizes, rows: Rows
) -> dict[str, Any]:
    """Return all runs of one model."""
    settings = (("device", str(rows.device)), ("precision", "half"))
    case = Case(
        name=shape.name,
        store=Store(backend="torch-flat", size=sizes.passages, settings=settings),
        arms=_ARMS,
        requests=sizes.requests,
        repetitions=sizes.repetitions,
        steps=sizes.steps,
    )
    known = max(shape.vocabulary, len(words))
    model = drawn_model(replace(shape, vocabulary=known), rows.device, _CONTEXT)
    runs = measure(case, LoadedModel(shape.name, model, words), shelves).rows
    plain = [run for run in runs if run["arm"] == PLAIN_NAME]
    summary = {
        arm: round(median(run["plain_s"] / run["wall_s"] for run in runs if run["arm"] == arm), 3)
        for arm in dict.fromkeys(run["arm"] for run in runs)
    }
    return {
        "passages": sizes.passages,
        "step_ms": round(1000 * median(run["step_s"] for run in plain), 3),
        "search_ms": round(1000 * median(run["search_s"] for run in plain), 3),
        "speed": summary,
        "equal": True,
        "runs": runs,
    }
