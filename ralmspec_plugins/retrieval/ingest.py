"""Read passages from text, Markdown and JSON-lines files, splitting long texts at sentences."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.retrieval.storage.corpus import SeenIds, batched
from ralmspec_plugins.types import Passage

_SUFFIXES = (".txt", ".md", ".jsonl")
_WORDS = 100  # a passage's length in the papers, as in DPR's Wikipedia
_BAD_LINES_SHOWN = 5
_CHECKED_AT_ONCE = 4096
_LETTERS_AT_ONCE = 1 << 20
_WORD = re.compile(r"\S+")
_HEADING = re.compile(r"^#\s+(.+?)\s*#*\s*$", re.MULTILINE)


def read_passages(path: str | os.PathLike[str], *, words: int = _WORDS) -> list[Passage]:
    """Return the passages of a file, or of all supported files in a folder, by name.

    A text's passages have the ids `<file>#0001` and so on; those of a JSON line keep the
    given `id`, with such a suffix only if the text was split.

    Args:
        path: a .txt, .md or .jsonl file, or a folder.
        words: the maximum number of words of a passage.

    Raises:
        InputError: there is no text, an unsupported file, an invalid line, or a duplicate id.
        ConfigError: `words` is below 1.
    """
    passages = list(stream_passages(path, words=words))
    suspects = SeenIds().add([passage.id for passage in passages])
    _refuse_doubles(passages, suspects)
    return passages


def stream_passages(path: str | os.PathLike[str], *, words: int = _WORDS) -> Iterator[Passage]:
    """Yield the passages of `read_passages`, for files of any size.

    Only a small part of a text or JSON-lines file is in memory. Duplicate ids
    are not detected here, but by `check_passages` and `build_index`.

    Raises:
        InputError: there is no text or an unsupported file; while reading: an invalid line.
        ConfigError: `words` is below 1.
    """
    if words < 1:
        raise ConfigError(f"words must be at least 1, got {words}")
    root = Path(path)
    return _stream(root, text_files(root), words)


def check_passages(path: str | os.PathLike[str], *, words: int = _WORDS) -> int:
    """Return the number of passages, after reading and checking all of them.

    Raises:
        InputError: as for `read_passages`.
        ConfigError: `words` is below 1.
    """
    seen = SeenIds()
    suspects: set[str] = set()
    count = 0
    for some in batched(stream_passages(path, words=words), _CHECKED_AT_ONCE):
        suspects |= seen.add([passage.id for passage in some])
        count += len(some)
    if suspects:
        _refuse_doubles(stream_passages(path, words=words), suspects)
    return count


def split_text(text: str, words: int = _WORDS) -> list[str]:
    """Return the pieces of a text, of at most this many words.

    A piece ends after the last sentence that ends in its second half, if
    there is one, and the text inside a piece is unchanged.

    >>> split_text("One two three. Four five six seven.", words=5)
    ['One two three.', 'Four five six seven.']
    """
    pieces, _ = _split(text, words, whole=True)
    return pieces


def _split(text: str, words: int, *, whole: bool) -> tuple[list[str], int]:
    """Return the pieces of a text, or of its part that no later text changes, and its end."""
    spans = [match.span() for match in _WORD.finditer(text)]
    pieces = []
    start = 0
    while start < len(spans) if whole else start + words < len(spans):
        stop = min(start + words, len(spans))
        if stop < len(spans):
            ends = (at + 1 for at in range(stop - 1, start + words // 2 - 1, -1))
            stop = next((at for at in ends if _ends_sentence(text[slice(*spans[at - 1])])), stop)
        pieces.append(text[spans[start][0] : spans[stop - 1][1]])
        start = stop
    return pieces, spans[start][0] if start < len(spans) else len(text)


def _split_stream(blocks: Iterable[str], words: int) -> Iterator[str]:
    """Yield the pieces of a text in blocks, as `split_text` returns them."""
    rest = ""
    for block in blocks:
        rest += block
        pieces, end = _split(rest, words, whole=False)
        yield from pieces
        rest = rest[end:]
    yield from split_text(rest, words)


def _ends_sentence(word: str) -> bool:
    return word.rstrip("\"')]\u201d\u2019").endswith((".", "!", "?"))


def text_files(root: Path) -> list[Path]:
    """Return a file, or the supported files in a folder in the order of their names.

    Raises:
        InputError: there is none, or an unsupported one.
    """
    if root.is_dir():
        found = [
            file
            for file in sorted(root.rglob("*"))
            if file.suffix.lower() in _SUFFIXES
            and file.is_file()
            and not any(part.startswith(".") for part in file.relative_to(root).parts)
        ]
        if not found:
            raise InputError(f"the folder {root} holds no {', '.join(_SUFFIXES)} file")
        return found
    if not root.is_file():
        raise InputError(f"{root} does not exist; give a file or a folder")
    if root.suffix.lower() not in _SUFFIXES:
        raise InputError(f"{root.name} is not a {', '.join(_SUFFIXES)} file; convert it to one")
    return [root]


def _stream(root: Path, files: Sequence[Path], words: int) -> Iterator[Passage]:
    empty = True
    for file in files:
        name = file.relative_to(root).as_posix() if root.is_dir() else file.name
        try:
            for passage in _read(file, name, words):
                empty = False
                yield passage
        except UnicodeDecodeError as error:
            raise InputError(f"{file} is not UTF-8 text ({error}); convert it first") from error
    if empty:
        raise InputError(f"{root} holds no text; give files with at least one passage")


def _read(file: Path, name: str, words: int) -> Iterator[Passage]:
    with file.open(encoding="utf-8-sig") as opened:
        if file.suffix.lower() == ".jsonl":
            yield from _read_lines(file, name, opened, words)
            return
        title, blocks = "", iter(lambda: opened.read(_LETTERS_AT_ONCE), "")
        if file.suffix.lower() == ".md":
            text = "".join(blocks)  # complete, since its title may be anywhere in it
            heading = _HEADING.search(text)
            title, blocks = heading.group(1) if heading else "", iter([text])
        for number, piece in enumerate(_split_stream(blocks, words), start=1):
            yield Passage(f"{name}#{number:04d}", piece, title)


def _read_lines(file: Path, name: str, lines: Iterable[str], words: int) -> Iterator[Passage]:
    bad = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield from _record_passages(json.loads(line), f"{name}#{number:04d}", words)
        except ValueError as error:
            bad.append(f"line {number}: {error}")
    if bad:
        shown = "; ".join(bad[:_BAD_LINES_SHOWN])
        more = f"; and {len(bad) - _BAD_LINES_SHOWN} more" if len(bad) > _BAD_LINES_SHOWN else ""
        raise InputError(f"{file} has {len(bad)} bad lines: {shown}{more}")


def _record_passages(record: Any, own_id: str, words: int) -> Iterator[Passage]:
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise InputError('needs an object with a "text", such as {"text": "..."}')
    given = record.get("id", own_id)
    title = record.get("title", "")
    if isinstance(given, bool) or not isinstance(given, str | int) or not isinstance(title, str):
        raise InputError('"id" must be a text or a whole number, and "title" a text')
    rest = {key: value for key, value in record.items() if key not in ("id", "text", "title")}
    pieces = split_text(record["text"], words)
    if not pieces:
        raise InputError('"text" is empty')
    for number, piece in enumerate(pieces, start=1):
        identity = str(given) if len(pieces) == 1 else f"{given}#{number:04d}"
        yield Passage(identity, piece, title, rest)


def _refuse_doubles(passages: Iterable[Passage], suspects: set[str]) -> None:
    """Check that none of the suspected ids occurs twice."""
    counts = Counter(passage.id for passage in passages if passage.id in suspects)
    doubles = [name for name, count in counts.items() if count > 1]
    if doubles:
        shown = ", ".join(doubles[:_BAD_LINES_SHOWN])
        raise InputError(f"{len(doubles)} ids occur more than once: {shown}; ids must be unique")


def stream_texts(paths: Sequence[str | os.PathLike[str]]) -> Iterator[str]:
    """Yield the documents of each file in the given order, and of folders by name.

    A .txt or .md file is one document; in a .jsonl file each line is
    one, its "text". One document at a time is in memory.

    Raises:
        InputError: there is no text, or an unsupported file; while reading: a line that is
            not an object with a "text", or bytes that are not UTF-8.
    """
    return _stream_texts([file for path in paths for file in text_files(Path(path))])


def _stream_texts(files: Sequence[Path]) -> Iterator[str]:
    for file in files:
        try:
            if file.suffix.lower() == ".jsonl":
                yield from _text_lines(file)
            else:
                yield file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{file} is not UTF-8 text ({error}); convert it first") from error


def _text_lines(file: Path) -> Iterator[str]:
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
