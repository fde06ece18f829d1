"""`ralmspec draft build`: text in, a token corpus out."""

import json
from pathlib import Path

import pytest

from ralmspec_plugins.decoding import TokenCorpus
from ralmspec_plugins.testing.models import tiny_tokenizer
from tests.cli.conftest import Run


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Three documents in two files."""
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("the ships that passed the island")
    (folder / "b.jsonl").write_text('{"text": "one"}\n{"text": "two ships"}\n')
    return folder


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A tokenizer without a model, beside a configuration."""
    folder = tmp_path / "model"
    tiny_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


def test_a_corpus_is_built(run: Run, texts: Path, tokenizer: Path, tmp_path: Path) -> None:
    """With the model's tokenizer; its weights are not needed."""
    more = tmp_path / "more.txt"
    more.write_text("a storm")
    target = tmp_path / "corpus"
    result = run("draft", "build", texts, target, "--model", tokenizer, "--more", more)

    assert 0 == result.exit_code, result.output
    record = json.loads(result.stdout)
    corpus = TokenCorpus.open(target, verify="digests")
    assert 4 == record["documents"] == corpus.about.documents
    assert len(corpus) == record["tokens"] + 4
    corpus.check_tokenizer(tiny_tokenizer())


def test_what_is_wrong_is_explained(run: Run, texts: Path, tokenizer: Path, tmp_path: Path) -> None:
    """No text, no tokenizer, and a folder that holds something else: code 1, one message each."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letters").write_text("")
    (tmp_path / "none").mkdir()
    cases = [
        (tmp_path / "nowhere", tmp_path / "corpus", tokenizer, "nowhere"),
        (texts, mine, tokenizer, "not a token corpus"),
        (texts, tmp_path / "corpus", tmp_path / "none", "no config.json"),
    ]
    for text, target, model, message in cases:
        result = run("draft", "build", text, target, "--model", model)

        assert 1 == result.exit_code
        assert message in result.stderr
        assert not (tmp_path / "corpus").exists()
