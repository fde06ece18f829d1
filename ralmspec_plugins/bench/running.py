"""Runs a suite: case by case, each result on the disk before the next one begins."""

import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import torch

from ralmspec_plugins.bench.cases import Case
from ralmspec_plugins.bench.measuring import measure
from ralmspec_plugins.bench.models import LoadedModel, load_model
from ralmspec_plugins.bench.rows import Row
from ralmspec_plugins.bench.stores import Shelves
from ralmspec_plugins.bench.texts import Library, world_library
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.retrieval import Encoder

FORMAT: Final = "ralmspec-bench"
_PACKAGES: Final = ("ralmspec-plugins", "numpy", "torch", "transformers", "faiss-cpu", "bm25s")


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
    torch.set_num_threads(1)  # a step's cost does not depend on who else is at work
    libraries = {"trace": library, "free": world_library()}
    shelves: dict[str, Shelves] = {}
    models: dict[str, LoadedModel] = {}
    result: dict[str, Any] = {
        "format": FORMAT,
        "suite": suite,
        **surroundings(),
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
        write(target, json.dumps(result).encode())
    return result


def read(path: Path) -> dict[str, Any]:
    """Read results.

    Raises:
        InputError: the file holds something else.
    """
    try:
        result = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} holds no results of ralmspec bench: {error}") from error
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise InputError(f"{path} holds no results of ralmspec bench")
    return result


def write(path: Path, content: bytes) -> None:
    """Write a file as a whole: what was there stays until then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, fresh = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(fresh).replace(path)
    except BaseException:
        Path(fresh).unlink(missing_ok=True)
        raise


def surroundings() -> dict[str, Any]:
    """Say where the numbers come from: date, commit, machine, versions, seeds."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {_memory()}",
        "system": platform.platform(),
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": {"python": platform.python_version(), **_versions()},
        "seeds": {"padding": 0, "weights": 0, "bootstrap": 0},
    }


def _commit() -> str | None:
    """Name the commit of a checkout; nothing for an installed package."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607 whichever git there is
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (ValueError, OSError, AttributeError):
        return "memory unknown"


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
