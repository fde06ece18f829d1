"""Reads the documents of a datastore from text, Markdown and JSON-lines files, one by one."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ralmspec_plugins.errors import InputError
from ralmspec_plugins.retrieval.ingest import text_files


def stream_texts(paths: Sequence[str | os.PathLike[str]]) -> Iterator[str]:
    """Give each file's documents in the order given, and those of a folder by their names.

    A .txt or .md file is one document, as it stands; in a .jsonl file each line is
    one, its "text". One document at a time is in memory.

    Raises:
        InputError: nothing to read, or an unknown kind of file; while reading: a line that is
            no object with a "text", or bytes that are no UTF-8.
    """
    return _stream([file for path in paths for file in text_files(Path(path))])


def _stream(files: Sequence[Path]) -> Iterator[str]:
    for file in files:
        try:
            if file.suffix.lower() == ".jsonl":
                yield from _lines(file)
            else:
                yield file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{file} is not UTF-8 text ({error}); convert it first") from error


def _lines(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _text(file, number, line)


def _text(file: Path, number: int, line: str) -> str:
    try:
        record: Any = json.loads(line)
    except ValueError as error:
        raise InputError(f"{file}, line {number}: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise InputError(
            f'{file}, line {number}: needs an object with a "text", such as {{"text": "..."}}'
        )
    text: str = record["text"]
    return text
