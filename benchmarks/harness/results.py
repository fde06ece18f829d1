"""Says where numbers come from: the date, the commit, the machine, the versions."""

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from typing import Any, Final, TypeAlias

from ralmspec_plugins.diagnosis import Bounds
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.types import Answer, Outcome, Span

_PACKAGES: Final = (
    *("ralmspec-plugins", "numpy", "torch", "transformers", "faiss-cpu", "faiss-gpu", "bm25s"),
    *("pyserini", "threadpoolctl"),
)


def surroundings() -> dict[str, Any]:
    """Say where numbers come from; of torch and faiss, if they are in use, their threads too."""
    torch: Any = sys.modules.get("torch")
    faiss: Any = sys.modules.get("faiss")
    gpu = torch is not None and torch.cuda.is_available() and torch.cuda.get_device_name()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {_memory()}"
        + (f", {gpu}" if gpu else ""),
        "system": platform.platform(),
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "torch_threads": None if torch is None else torch.get_num_threads(),
        "faiss_threads": None if faiss is None else faiss.omp_get_max_threads(),
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _commit() -> str | None:
    """Name the commit of a checkout; nothing for an installed package."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
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


# Reads files of results, and refuses others.


def read_results(file: Path, form: str, whose: str) -> dict[str, Any]:
    """Read results of one form.

    Args:
        file: where they are.
        form: what stands under "format" there.
        whose: results these are, for the message.

    Raises:
        InputError: the file holds something else.
    """
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise InputError(f"{file} holds no results of {whose}: {error}") from error
    if not isinstance(content, dict) or content.get("format") != form:
        raise InputError(f"{file} holds no results of {whose}")
    return content


# The numbers of one run, and the bounds that the plain run beside it says.


Row: TypeAlias = dict[str, Any]


def row_of(answer: Answer, plain: Answer) -> Row:
    """Give the numbers of a run, and its bounds, which the plain run beside it says."""
    stats, bounds = answer.stats, bounds_of(plain)
    kept = [span for span in stats.timeline if span.outcome is Outcome.KEPT]
    wasted = [span for span in stats.timeline if span.outcome is not Outcome.KEPT]
    return {
        "wall_s": stats.wall_s,
        "plain_s": plain.stats.wall_s,
        "bound_s": bounds.best_s,
        "bound_guessed_s": bounds.best_guessed_s,
        "step_s": bounds.step_s,
        "search_s": bounds.search_s,
        "steps": stats.segments,
        "round_trips": stats.searches,
        "queries": stats.queries,
        "batch_sizes": list(stats.batch_sizes),
        "guesses": stats.guesses,
        "accepted": stats.accepted,
        "wasted_segments": stats.wasted_segments,
        "writing_s": stats.write_s,
        "wasted_s": sum(_seconds(span) for span in wasted if span.kind == "extend"),
        "searching_s": stats.search_s,
        "both_s": stats.overlap_s,
        "searches": [
            [span.queries, round(_seconds(span), 6)] for span in kept if span.kind == "search"
        ],
    }


def bounds_of(plain: Answer) -> Bounds:
    """Read the lower bounds off a plain run: no verification can end earlier."""
    spans = plain.stats.timeline
    steps = max(1, plain.stats.segments)
    searches = [_seconds(span) for span in spans if span.kind == "search"]
    writing = sum(_seconds(span) for span in spans if span.kind in ("ask", "encode", "extend"))
    return Bounds(steps=steps, step_s=writing / steps, search_s=fmean(searches or [0.0]))


def _seconds(span: Span) -> float:
    return span.ended_s - span.started_s
