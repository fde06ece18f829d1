"""Files that a LlamaIndex user opens: damaged ones, and those that name a model to download."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index_ralmspec import KNNLLM, SpeculativeLLM, SpeculativeQueryEngine

from ralmspec_plugins import Passage
from ralmspec_plugins.errors import IndexFileError, InputError, ModelError
from ralmspec_plugins.knn import KNNLanguageModel, build_datastore
from ralmspec_plugins.retrieval import HashingEncoder, load, open_retriever, save
from ralmspec_plugins.testing.models import tiny_llama, tiny_tokenizer
from tests.llama_index.rag_parts import HashLLM
from tests.lm.damages import DAMAGES, damaged, saved

Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "whole")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stores") / "whole"
    build_datastore(["The keeper counted ships."], folder, tiny_llama(), tiny_tokenizer())
    return folder


@pytest.mark.parametrize(("file", "damage"), DAMAGES)
def test_a_damaged_model_is_named(model: Path, tmp_path: Path, file: str, damage: Damage) -> None:
    """Whatever its files hold: no error of a parser comes through."""
    folder = damaged(model, tmp_path / "model", file, damage)

    with pytest.raises(ModelError, match="cannot be loaded as a causal model"):
        SpeculativeLLM(str(folder))


@pytest.mark.parametrize(("file", "damage"), DAMAGES[::3])
def test_a_damaged_model_of_a_datastore_is_named(
    model: Path, store: Path, tmp_path: Path, file: str, damage: Damage
) -> None:
    """As with the model alone."""
    folder = damaged(model, tmp_path / "model", file, damage)

    with pytest.raises(ModelError, match="cannot be loaded as a causal model"):
        KNNLLM(KNNLanguageModel.from_pretrained(folder, store))


def test_a_folders_files_cause_no_download(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is loaded from a folder is read from this machine only, and no code of it runs."""
    asked: list[dict[str, Any]] = []
    for kind in ("AutoTokenizer", "AutoModelForCausalLM"):
        loader = getattr(transformers, kind)
        monkeypatch.setattr(loader, "from_pretrained", _noting(loader.from_pretrained, asked))
    text = SpeculativeLLM(str(model), max_tokens=4).complete("The keeper").text

    assert text
    assert 2 == len(asked)
    assert all(one["local_files_only"] is True for one in asked)
    assert all(one["trust_remote_code"] is False for one in asked)


def _noting(load: Any, asked: list[dict[str, Any]]) -> Any:
    def noted(*args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs)
        return load(*args, **kwargs)

    return noted


STORE_FILES = ("about.json", "keys.npy", "values.npy", "document_ends.npy")


@pytest.mark.parametrize("damage", [DAMAGES[0][1], DAMAGES[1][1], DAMAGES[2][1], Path.unlink])
@pytest.mark.parametrize("file", STORE_FILES)
def test_a_damaged_datastore_is_named(
    model: Path, store: Path, tmp_path: Path, file: str, damage: Damage
) -> None:
    """The model is whole, its datastore is not."""
    folder = damaged(store, tmp_path / "store", file, damage)

    with pytest.raises(IndexFileError, match="store"):
        KNNLLM(KNNLanguageModel.from_pretrained(model, folder))


class OverOurs(BaseRetriever):
    """A knowledge base of this package as a retriever of LlamaIndex."""

    def __init__(self, folder: Path, **about: Any) -> None:
        super().__init__()
        self._base = load(folder, **about)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        [hits] = self._base.search([self._base.encode(query_bundle.query_str)])
        return [
            NodeWithScore(
                node=TextNode(id_=str(hit.passage.id), text=hit.passage.text), score=hit.score
            )
            for hit in hits
        ]


def base(folder: Path) -> Path:
    passages = [Passage(word, f"the {word}") for word in ("fox", "owl", "elm")]
    save(open_retriever("numpy-flat", passages, HashingEncoder(64), k=2), folder)
    return folder


@pytest.mark.parametrize("kind", ["sentence-transformers", "huggingface"])
def test_a_knowledge_base_that_names_a_model_downloads_nothing(tmp_path: Path, kind: str) -> None:
    """It is refused; with the encoder given, it answers as before."""
    folder = base(tmp_path / "kb")
    expected = OverOurs(folder, encoder=HashingEncoder(64)).retrieve("the fox")
    record = json.loads((folder / "kb.json").read_text())
    record["settings"]["encoder_settings"] = {"kind": kind, "path": "attacker/model"}
    (folder / "kb.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="never downloaded"):
        OverOurs(folder)
    engine = SpeculativeQueryEngine.from_args(
        OverOurs(folder, encoder=HashingEncoder(64)), llm=HashLLM()
    )
    for response in (engine.query("the fox"), asyncio.run(engine.aquery("the fox"))):
        assert len(expected) == 2
        assert [one.node_id for one in expected] == [one.node_id for one in response.source_nodes]


@pytest.mark.parametrize("damage", [DAMAGES[0][1], DAMAGES[1][1], DAMAGES[2][1], Path.unlink])
@pytest.mark.parametrize("kind", ["kb.json", "passages", "vectors"])
def test_a_damaged_knowledge_base_is_named(tmp_path: Path, kind: str, damage: Damage) -> None:
    """Its record, its passages, its vectors."""
    folder = base(tmp_path / "kb")
    [file, *_] = sorted(one for one in folder.rglob("*") if kind in one.name and one.is_file())
    damage(file)

    with pytest.raises(IndexFileError, match="kb"):
        OverOurs(folder, encoder=HashingEncoder(64))
