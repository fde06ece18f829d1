"""Say where numbers come from: the date, the commit, the machine, the versions."""

import os
import platform
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import faiss
import torch

PACKAGES = ("numpy", "torch", "faiss-cpu", "faiss-gpu", "bm25s", "pyserini", "threadpoolctl")


def versions() -> Iterator[tuple[str, str]]:
    """List what is installed."""
    yield "python", platform.python_version()
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def surroundings() -> dict[str, Any]:
    """Say where the numbers come from."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores" + (f", {gpu}" if gpu else ""),
        "load_before": os.getloadavg()[0],
        "torch_threads": torch.get_num_threads(),
        "faiss_threads": faiss.omp_get_max_threads(),
        "versions": dict(versions()),
    }
