"""Files become passages; whatever cannot be read is named with file and line."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ralmspec_plugins.errors import ConfigError, InputError, MissingExtraError
from ralmspec_plugins.retrieval import ingest, read_passages
from ralmspec_plugins.retrieval.ingest import check_passages, split_text, stream_passages
from ralmspec_plugins.types import Passage


def test_a_text_file_is_split_into_passages(tmp_path: Path) -> None:
    """About 100 words each, cut behind a sentence, numbered in order."""
    sentence = "One two three four five six seven eight nine ten eleven twelve. "
    (tmp_path / "story.txt").write_text(sentence * 20)
    passages = read_passages(tmp_path / "story.txt")

    assert ["story.txt#0001", "story.txt#0002", "story.txt#0003"] == [p.id for p in passages]
    assert (sentence * 8).strip() == passages[0].text


def test_a_markdown_file_is_titled_by_its_heading(tmp_path: Path) -> None:
    """The first heading is every passage's title."""
    (tmp_path / "note.md").write_text("intro\n\n# The Title #\n\nbody text")

    assert [Passage("note.md#0001", "intro\n\n# The Title #\n\nbody text", "The Title")] == (
        read_passages(tmp_path / "note.md")
    )


def test_json_lines_keep_their_ids(tmp_path: Path) -> None:
    """`id` and `title` are optional, all else is metadata, empty lines do not count."""
    lines = ['{"id": 7, "text": "a", "title": "T", "page": 1}', "", '{"text": "b\\u2028c"}', ""]
    (tmp_path / "kb.jsonl").write_text("\n".join(lines))

    assert [Passage("7", "a", "T", {"page": 1}), Passage("kb.jsonl#0003", "b\u2028c")] == (
        read_passages(tmp_path / "kb.jsonl")
    )


def test_a_long_record_is_split_under_its_id(tmp_path: Path) -> None:
    """Only a text that had to be split gets numbers."""
    (tmp_path / "kb.jsonl").write_text(json.dumps({"id": "x", "text": "a b c"}))

    assert ["x#0001", "x#0002"] == [p.id for p in read_passages(tmp_path / "kb.jsonl", words=2)]


def test_a_folder_is_read_whole(tmp_path: Path) -> None:
    """All known files below it, hidden ones aside, named by their place in it."""
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    for name in ("b.txt", "sub/a.md", ".git/c.txt", "d.pdf"):
        (tmp_path / name).write_text("words")

    assert ["b.txt#0001", "sub/a.md#0001"] == [p.id for p in read_passages(tmp_path)]


def test_bad_lines_are_reported_with_their_numbers(tmp_path: Path) -> None:
    """All of them at once, so that one run finds them."""
    lines = [
        '{"text": "good"}',
        "{oops",
        '{"id": "x"}',
        '{"text": "  "}',
        '{"text": "a", "id": []}',
    ]
    (tmp_path / "kb.jsonl").write_text("\n".join([*lines, "3", "4", "5"]))
    for read in (read_passages, check_passages):
        with pytest.raises(InputError, match="7 bad lines") as caught:
            read(tmp_path / "kb.jsonl")

        assert all(f"line {number} " in str(caught.value) for number in (2, 3, 4, 5))
        assert "2 more" in str(caught.value)


def test_ids_that_occur_twice_are_named(tmp_path: Path) -> None:
    """Two lines, or two files, may not share an id."""
    (tmp_path / "kb.jsonl").write_text('{"id": "x", "text": "a"}\n{"id": "x", "text": "b"}')
    for read in (read_passages, check_passages):
        with pytest.raises(InputError, match="1 ids occur more than once: x;"):
            read(tmp_path)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Missing, of an unknown kind, not UTF-8, or without a word."""
    (tmp_path / "a.pdf").write_text("x")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "folder").mkdir()
    for name, reason in (
        ("nowhere", "does not exist"),
        ("a.pdf", "is not a .txt"),
        ("latin.txt", "UTF-8"),
        ("empty.txt", "no text"),
        ("folder", "holds no"),
    ):
        for read in (read_passages, check_passages):
            with pytest.raises(InputError, match=reason):
                read(tmp_path / name)
    with pytest.raises(ConfigError, match="words"):
        read_passages(tmp_path / "empty.txt", words=0)


@given(text=st.text(alphabet="ab.! \n\u3000"), words=st.integers(1, 6))
def test_splitting_loses_no_word(text: str, words: int) -> None:
    """The pieces' words are the text's, in order, and none is longer than allowed."""
    pieces = split_text(text, words)

    assert text.split() == [word for piece in pieces for word in piece.split()]
    assert all(1 <= len(piece.split()) <= words for piece in pieces)


@given(
    blocks=st.lists(st.text(alphabet="ab.! \n", max_size=12), max_size=12), words=st.integers(1, 6)
)
def test_a_text_in_blocks_is_split_as_a_whole(blocks: list[str], words: int) -> None:
    """Wherever the blocks end, also inside a word, the pieces are those of the whole text."""
    assert split_text("".join(blocks), words) == list(ingest._split_stream(blocks, words))


def test_a_stream_gives_the_same_passages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one, from all kinds of files and any line end, and counted beforehand."""
    monkeypatch.setattr(ingest, "_LETTERS_AT_ONCE", 7)
    text = "One two three.\r\nFour five! Six seven eight nine ten.\rEleven"
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "b.md").write_bytes(b"# Title\r\n" + text.encode())
    (tmp_path / "c.jsonl").write_bytes(b'{"text": "a b c d e"}\r\n\n{"text": "f", "id": "x"}')
    expected = [
        ("a.txt", text.replace("\r\n", "\n").replace("\r", "\n")),
        ("b.md", "# Title\n" + text.replace("\r\n", "\n").replace("\r", "\n")),
    ]
    passages = read_passages(tmp_path, words=4)

    assert passages == list(stream_passages(tmp_path, words=4))
    assert len(passages) == check_passages(tmp_path, words=4)
    for name, whole in expected:
        pieces = [p.text for p in passages if p.id.startswith(name)]
        assert split_text(whole, 4) == pieces
    assert ["c.jsonl#0001#0001", "c.jsonl#0001#0002", "x"] == [p.id for p in passages[-3:]]


def test_a_stream_reads_no_further_than_it_is_asked(tmp_path: Path) -> None:
    """The first passages come before a later mistake is met."""
    good = '{"text": "good"}\n' * 100_000
    (tmp_path / "kb.jsonl").write_text(good + "{oops")
    stream = stream_passages(tmp_path)

    assert Passage("kb.jsonl#0001", "good") == next(stream)
    with pytest.raises(InputError, match="line 100001"):
        list(stream)


def test_restructured_text_is_titled_by_its_heading(tmp_path: Path) -> None:
    """A line with a rule below it; a transition or a table's rule is none."""
    text = "intro\n\n----\n\nThe Title\n=========\n\nbody text"
    (tmp_path / "note.rst").write_text(text)

    assert [Passage("note.rst#0001", text, "The Title")] == read_passages(tmp_path / "note.rst")


PAGE = """<html><head><title>The
 Title</title><style>p { color: red }</style></head><body><!-- hidden -->
<h1>Heading</h1><p>One <b>bo</b>ld
word.<br>Next &amp; last</p><ul><li>first<li>second</ul><pre>x = 1
y = 2</pre><script>alert("no")</script></body></html>"""


def test_a_page_gives_its_visible_text(tmp_path: Path) -> None:
    """A line for each block; inline elements part no word; no code, style or comment."""
    pytest.importorskip("bs4")
    (tmp_path / "page.HTML").write_text(PAGE)
    text = "Heading\nOne bold word.\nNext & last\nfirst\nsecond\nx = 1\ny = 2"

    assert [Passage("page.HTML#0001", text, "The Title")] == read_passages(tmp_path / "page.HTML")
    assert [text] == list(ingest.stream_texts([tmp_path]))


def test_a_page_without_a_title_is_named_by_its_heading(tmp_path: Path) -> None:
    """Or by nothing; a page without text is as an empty file."""
    pytest.importorskip("bs4")
    for content, title in (("<h1>A <i>b</i></h1>c", "A b"), ("c", "")):
        (tmp_path / "page.htm").write_text(content)

        assert [title] == [passage.title for passage in read_passages(tmp_path / "page.htm")]
    (tmp_path / "page.htm").write_text("<title>T</title><script>x</script>")
    with pytest.raises(InputError, match="no text"):
        read_passages(tmp_path / "page.htm")


def test_the_library_for_pages_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, "bs4", None)
    (tmp_path / "page.html").write_text("text")
    with pytest.raises(MissingExtraError, match=r"ralmspec-plugins\[html\]"):
        read_passages(tmp_path)


def test_the_field_of_a_text_may_be_chosen(tmp_path: Path) -> None:
    """By default the first of three that a line has; the chosen one alone, if one is."""
    lines = ['{"contents": "a", "page_content": "b"}', '{"page_content": "c"}', '{"text": "d"}']
    (tmp_path / "kb.jsonl").write_text("\n".join(lines))
    (tmp_path / "own.jsonl").write_text('{"text": "no", "body": "yes"}')

    assert ["a", "c", "d"] == [one.text for one in read_passages(tmp_path / "kb.jsonl")]
    assert ["a", "c", "d"] == list(ingest.stream_texts([tmp_path / "kb.jsonl"]))
    own = {"text_field": "body"}
    assert [Passage("own.jsonl#0001", "yes", metadata={"text": "no"})] == (
        read_passages(tmp_path / "own.jsonl", **own)
    )
    assert 1 == check_passages(tmp_path / "own.jsonl", **own)
    assert ["yes"] == list(ingest.stream_texts([tmp_path / "own.jsonl"], **own))
    with pytest.raises(InputError, match='line 1 needs an object with "body"'):
        read_passages(tmp_path / "kb.jsonl", **own)


def test_what_is_left_out_of_a_folder_is_counted(tmp_path: Path) -> None:
    """By ending, without hidden files; of a file nothing is."""
    (tmp_path / ".git").mkdir()
    for name in ("a.txt", "b.pdf", "c.PDF", "LICENSE", ".env", ".git/config.ini"):
        (tmp_path / name).write_text("x")

    assert {".pdf": 2, "": 1} == ingest.skipped_files(tmp_path)
    assert {} == ingest.skipped_files(tmp_path / "a.txt")
