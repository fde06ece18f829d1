"""Says where numbers come from: the date, the commit, the machine, the versions."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

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
