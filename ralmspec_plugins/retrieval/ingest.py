"""Read passages from text, markup and JSON-lines files, splitting long texts at sentences."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.retrieval.optional import optional
from ralmspec_plugins.retrieval.storage.corpus import SeenIds, batched
from ralmspec_plugins.types import Passage

_JSON_LINES: Final = ".jsonl"
_PLAIN: Final = ".txt"
TEXT_FIELDS: Final = ("text", "contents", "page_content")  # ours, Pyserini's, LangChain's
_WORDS = 100  # a passage's length in the papers, as in DPR's Wikipedia
_BAD_LINES_SHOWN = 5
_CHECKED_AT_ONCE = 4096
_LETTERS_AT_ONCE = 1 << 20
_WORD = re.compile(r"\S+")
_HEADING = re.compile(r"^#\s+(.+?)\s*#*\s*$", re.MULTILINE)
_UNDERLINED = re.compile(
    r"^(\S.*)\n([=\-~^\"'*+#<>])\2{2,}[ \t]*$", re.MULTILINE
)  # a title of .rst
_NO_TEXT = ("script", "style", "template", "noscript", "head", "title")  # elements of a page
_INLINE = (
    *("a", "abbr", "b", "bdi", "bdo", "cite", "code", "data", "del", "dfn", "em", "font", "i"),
    *("ins", "kbd", "label", "mark", "q", "s", "samp", "small", "span", "strong", "sub", "sup"),
    *("time", "tt", "u", "var", "wbr"),
)
_SPACE = re.compile(r"\s+")

# The formats of files of one document each: its title and its text.


def _markdown(text: str) -> tuple[str, str]:
    heading = _HEADING.search(text)
    return heading.group(1) if heading else "", text


def _restructured(text: str) -> tuple[str, str]:
    heading = _UNDERLINED.search(text)
    return heading.group(1).strip() if heading else "", text


def _html(text: str) -> tuple[str, str]:
    """Return the title and the visible text of a page, a line for each block."""
    soup = optional("bs4", "html", "beautifulsoup4")
    page: Any = soup.BeautifulSoup(text, "html.parser")
    named = page.title or page.h1
    title = " ".join(named.get_text().split()) if named else ""
    for element in page(_NO_TEXT):
        element.decompose()
    for node in page(string=True):  # comments are strings of other types
        if type(node) is soup.NavigableString and node.find_parent("pre") is None:
            node.replace_with(_SPACE.sub(" ", node))
    for element in page(True):
        if element.name not in _INLINE:
            element.insert_before("\n")
            element.insert_after("\n")
    lines = (" ".join(line.split()) for line in page.get_text().split("\n"))
    return title, "\n".join(filter(None, lines))


_DOCUMENTS: Final[Mapping[str, Callable[[str], tuple[str, str]]]] = {
    _PLAIN: lambda text: ("", text),
    ".md": _markdown,
    ".markdown": _markdown,
    ".rst": _restructured,
    ".html": _html,
    ".htm": _html,
}
_SUFFIXES: Final = (*_DOCUMENTS, _JSON_LINES)

# Reads files and folders.


def read_passages(
    path: str | os.PathLike[str], *, words: int = _WORDS, text_field: str | None = None
) -> list[Passage]:
    """Return the passages of a file, or of all supported files in a folder, by name.

    A text's passages have the ids `<file>#0001` and so on; those of a JSON line keep the
    given `id`, with such a suffix only if the text was split.

    Args:
        path: a .txt, .md, .markdown, .rst, .html, .htm or .jsonl file, or a folder.
        words: the maximum number of words of a passage.
        text_field: the field with the text of a JSON line; the first of `TEXT_FIELDS` that it
            has by default.

    Raises:
        InputError: there is no text, an unsupported file, an invalid line, or a duplicate id.
        ConfigError: `words` is below 1.
        MissingExtraError: there is an HTML file, and beautifulsoup4 is not installed.
    """
    passages = list(stream_passages(path, words=words, text_field=text_field))
    suspects = SeenIds().add([passage.id for passage in passages])
    _refuse_doubles(passages, suspects)
    return passages


def stream_passages(
    path: str | os.PathLike[str], *, words: int = _WORDS, text_field: str | None = None
) -> Iterator[Passage]:
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
    return _stream(root, text_files(root), words, _fields(text_field))


def check_passages(
    path: str | os.PathLike[str], *, words: int = _WORDS, text_field: str | None = None
) -> int:
    """Return the number of passages, after reading and checking all of them.

    Raises:
        InputError: as for `read_passages`.
        ConfigError: `words` is below 1.
    """
    seen = SeenIds()
    suspects: set[str] = set()
    count = 0
    passages = stream_passages(path, words=words, text_field=text_field)
    for some in batched(passages, _CHECKED_AT_ONCE):
        suspects |= seen.add([passage.id for passage in some])
        count += len(some)
    if suspects:
        _refuse_doubles(stream_passages(path, words=words, text_field=text_field), suspects)
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
        found = [file for file in _visible(root) if file.suffix.lower() in _SUFFIXES]
        if not found:
            raise InputError(f"the folder {root} holds no {', '.join(_SUFFIXES)} file")
        return found
    if not root.is_file():
        raise InputError(f"{root} does not exist; give a file or a folder")
    if root.suffix.lower() not in _SUFFIXES:
        raise InputError(f"{root.name} is not a {', '.join(_SUFFIXES)} file; convert it to one")
    return [root]


def skipped_files(root: Path) -> Counter[str]:
    """Return the number of files in a folder that `text_files` leaves out, by their ending.

    Files without an ending count as "", hidden ones not at all.
    """
    endings = (file.suffix.lower() for file in _visible(root)) if root.is_dir() else ()
    return Counter(ending for ending in endings if ending not in _SUFFIXES)


def _visible(root: Path) -> list[Path]:
    return [
        file
        for file in sorted(root.rglob("*"))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(root).parts)
    ]


def _fields(text_field: str | None) -> tuple[str, ...]:
    return TEXT_FIELDS if text_field is None else (text_field,)


def _stream(
    root: Path, files: Sequence[Path], words: int, fields: Sequence[str]
) -> Iterator[Passage]:
    empty = True
    for file in files:
        name = file.relative_to(root).as_posix() if root.is_dir() else file.name
        try:
            for passage in _read(file, name, words, fields):
                empty = False
                yield passage
        except UnicodeDecodeError as error:
            raise InputError(f"{file} is not UTF-8 text ({error}); convert it first") from error
    if empty:
        raise InputError(f"{root} holds no text; give files with at least one passage")


def _read(file: Path, name: str, words: int, fields: Sequence[str]) -> Iterator[Passage]:
    with file.open(encoding="utf-8-sig") as opened:
        suffix = file.suffix.lower()
        if suffix == _JSON_LINES:
            yield from _read_lines(file, name, opened, words, fields)
            return
        title, blocks = "", iter(lambda: opened.read(_LETTERS_AT_ONCE), "")
        if suffix != _PLAIN:  # read completely, since the title may be anywhere in it
            title, text = _DOCUMENTS[suffix]("".join(blocks))
            blocks = iter([text])
        for number, piece in enumerate(_split_stream(blocks, words), start=1):
            yield Passage(f"{name}#{number:04d}", piece, title)


def _read_lines(
    file: Path, name: str, lines: Iterable[str], words: int, fields: Sequence[str]
) -> Iterator[Passage]:
    bad = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield from _record_passages(json_line(line), f"{name}#{number:04d}", words, fields)
        except InputError as error:
            bad.append(f"line {number} {error}")
    if bad:
        shown = "; ".join(bad[:_BAD_LINES_SHOWN])
        more = f"; and {len(bad) - _BAD_LINES_SHOWN} more" if len(bad) > _BAD_LINES_SHOWN else ""
        many = f" {len(bad)} bad lines:" if len(bad) > 1 else ""
        raise InputError(f"{file}:{many} {shown}{more}")


def json_line(line: str) -> Any:
    """Return the value of a line of JSON.

    Raises:
        InputError: it is not JSON; the message says where, in words that follow "line 3".
    """
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"is not JSON ({error.msg}: character {error.pos + 1})") from error
    except (ValueError, RecursionError) as error:  # a number of too many digits, for example
        raise InputError(f"is not JSON ({error})") from error


def _text_of(record: Any, fields: Sequence[str]) -> tuple[str, str]:
    """Return the field that has a record's text, and the text.

    Raises:
        InputError: there is none; the message follows "line 3".
    """
    if isinstance(record, dict):
        field = next((one for one in fields if one in record), fields[0])
        if isinstance(text := record.get(field), str):
            return field, text
        if field in record:
            raise InputError(f'has a "{field}" that is not a text')
    wanted = " or ".join(f'"{one}"' for one in fields)
    raise InputError(f'needs an object with {wanted}, such as {{"{fields[0]}": "..."}}')


def _record_passages(
    record: Any, own_id: str, words: int, fields: Sequence[str]
) -> Iterator[Passage]:
    field, text = _text_of(record, fields)
    given = record.get("id", own_id)
    title = record.get("title", "")
    if isinstance(given, bool) or not isinstance(given, str | int) or not isinstance(title, str):
        raise InputError('has an "id" that is not a text or a whole number, or a "title" no text')
    rest = {key: value for key, value in record.items() if key not in ("id", field, "title")}
    pieces = split_text(text, words)
    if not pieces:
        raise InputError(f'has an empty "{field}"')
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


def stream_texts(
    paths: Sequence[str | os.PathLike[str]], *, text_field: str | None = None
) -> Iterator[str]:
    """Yield the documents of each file in the given order, and of folders by name.

    A file of text or markup is one document; in a .jsonl file each line is
    one: its `text_field`, or the first of `TEXT_FIELDS` that it has. One document at a time is
    in memory.

    Raises:
        InputError: there is no text, or an unsupported file; while reading: a line that is
            not an object with a text, or bytes that are not UTF-8.
    """
    files = [file for path in paths for file in text_files(Path(path))]
    return _stream_texts(files, _fields(text_field))


def _stream_texts(files: Sequence[Path], fields: Sequence[str]) -> Iterator[str]:
    for file in files:
        try:
            if file.suffix.lower() == _JSON_LINES:
                yield from _text_lines(file, fields)
            else:
                _, text = _DOCUMENTS[file.suffix.lower()](file.read_text(encoding="utf-8-sig"))
                yield text
        except UnicodeDecodeError as error:
            raise InputError(f"{file} is not UTF-8 text ({error}); convert it first") from error


def _text_lines(file: Path, fields: Sequence[str]) -> Iterator[str]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    _, text = _text_of(json_line(line), fields)
                except InputError as error:
                    raise InputError(f"{file}: line {number} {error}") from error
                yield text
