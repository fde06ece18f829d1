"""Sources of texts: files, folders and stdin, and the files in them that are left out."""

import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from ralmspec_plugins.cli.output import notes, plural
from ralmspec_plugins.retrieval.ingest import skipped_files

STDIN: Final = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """The reading of texts.

    Options:
        text_field: The field of a JSON line that has its text. (default: the first that it has of
            text, contents and page_content)
    """

    text_field: str | None = None


@contextmanager
def opened(sources: Sequence[Path]) -> Iterator[list[Path]]:
    """Provide sources as files and folders: stdin, `-`, becomes a temporary file.

    Stdin that begins with `{` is read as JSON lines, any other as plain text.
    """
    with TemporaryDirectory(prefix="ralmspec-") as folder:
        yield [_stdin(Path(folder)) if str(one) == STDIN else one for one in sources]


def _stdin(folder: Path) -> Path:
    copy = folder / "stdin"
    with copy.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    with copy.open("rb") as file:
        first = next((line for line in file if line.strip(b"\xef\xbb\xbf \t\r\n")), b"")
    lines = first.lstrip(b"\xef\xbb\xbf \t").startswith(b"{")
    return copy.rename(folder / ("stdin.jsonl" if lines else "stdin.txt"))


def skipped(sources: Sequence[Path]) -> dict[str, int]:
    """Return the number of files in folders that are not read, by their ending; print it, too."""
    counts = sum((skipped_files(one) for one in sources), Counter[str]())
    if counts:
        each = ", ".join(f"{count:,} {ending or 'without one'}" for ending, count in counts.items())
        told = f"left out by their endings: {plural(counts.total(), 'file')} ({each})"
        notes().print(told, style="yellow", soft_wrap=True, markup=False)
    return dict(counts)
