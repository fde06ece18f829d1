"""Runs a suite: case by case, each result on the disk before the next one begins."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from ralmspec_plugins.bench.cases import Case
from ralmspec_plugins.bench.measuring import measure
from ralmspec_plugins.bench.models import LoadedModel, load_model
from ralmspec_plugins.bench.reading import read_results
from ralmspec_plugins.bench.rows import Row
from ralmspec_plugins.bench.stores import Shelves
from ralmspec_plugins.bench.surroundings import surroundings
from ralmspec_plugins.bench.texts import Library, world_library
from ralmspec_plugins.retrieval import Encoder
from ralmspec_plugins.whole_file import write_whole

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

    Args:
        suite: its name.
        cases: what is measured, in order.
        library: the texts of traces; free texts are about the demo's world.
        encoder: of queries and passages.
        target: the file for the results, written anew after each case.
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
    for case in cases:
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


def read(path: Path) -> dict[str, Any]:
    """Read results.

    Raises:
        InputError: the file holds something else.
    """
    return read_results(path, FORMAT, "ralmspec bench")
