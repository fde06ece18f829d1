"""Writes a file as a whole: what was there stays until then, and nothing else is ever left."""

import os
from pathlib import Path


def write_whole(file: Path, content: bytes) -> None:
    """Write beside the file, and give it its name at the end.

    Raises:
        OSError: it cannot be written there.
    """
    fresh = file.with_name(f".{file.name}.{os.getpid()}.new")
    try:
        fresh.write_bytes(content)
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)
