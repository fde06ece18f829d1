"""Put a finished folder in another one's place, so that there always is one of the two."""

import ctypes
import os
import shutil
import sys
import tempfile
from pathlib import Path

_HERE = -100  # AT_FDCWD: paths are given as they are
_EXCHANGE = 2  # RENAME_EXCHANGE


def atomic_replace(target: Path, fresh: Path) -> None:
    """Give a finished folder its name; what had the name before is removed.

    Where the system can exchange two folders in one step (Linux, most file
    systems), the name leads to a whole folder at every moment. Elsewhere the old
    folder is moved aside first, and put back if that is where it stops.
    """
    fresh.chmod(0o755)  # 0700 would lock out other users of the folder
    sync_folder(fresh)
    if not target.exists():
        fresh.rename(target)
    elif exchange(target, fresh):
        shutil.rmtree(fresh, ignore_errors=True)
    else:
        _move_aside(target, fresh)
    sync_folder(target.parent)


def _move_aside(target: Path, fresh: Path) -> None:
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent)) / "kb"
    try:
        target.rename(old)
        fresh.rename(target)
    finally:
        if old.exists() and not target.exists():  # stopped between the two
            old.rename(target)
        shutil.rmtree(old.parent, ignore_errors=True)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two folders' names in one step, and say whether the system could."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # a C library without it, such as an old musl
        return False
    done: int = rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)
    return done == 0


def sync_folder(folder: Path) -> None:
    """See a folder's names to the disk; a system that cannot is left alone."""
    try:
        opened = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(opened)
    except OSError:
        return
    finally:
        os.close(opened)
