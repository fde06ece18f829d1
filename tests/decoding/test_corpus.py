"""A token corpus finds what a search through all its documents finds; building it survives."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest

from ralmspec_plugins.decoding import (
    CorpusDrafter,
    Decoding,
    DraftContext,
    TokenCorpus,
    build_corpus,
)
from ralmspec_plugins.errors import ConfigError, IndexFileError, InputError, ModelError
from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.testing.models import tiny_llama, tiny_tokenizer
from tests.decoding.drafters import FREE
from tests.lm.reference import Tokenizer

TEXTS = [f"the ships that passed island {n} sells {n * 7 % 11} storms" for n in range(300)]


def _places(documents: list[list[int]], pattern: list[int]) -> list[tuple[int, ...]]:
    """Give what follows a pattern, by looking through all documents."""
    size = len(pattern)
    return sorted(
        tuple(document[at + size : at + size + 3])
        for document in documents
        for at in range(len(document) - size + 1)
        if document[at : at + size] == pattern
    )


def test_every_pattern_is_found_where_it_stands() -> None:
    """Random documents and patterns; nothing is found across two documents."""
    rng, found = Random(3), 0
    for _ in range(60):
        documents = [
            [rng.randrange(4) for _ in range(rng.randint(1, 12))] for _ in range(rng.randint(1, 5))
        ]
        corpus = TokenCorpus.of(documents)
        for _ in range(30):
            pattern = [rng.randrange(5) for _ in range(rng.randint(1, 4))]
            start, stop = corpus.find(pattern)
            expected = _places(documents, pattern)
            if corpus.about.boundary in pattern:  # it is no token of these documents
                continue
            assert expected == sorted(corpus.following(start, stop, len(pattern), 3))
            length, *stretch = corpus.longest(pattern, 3)
            longest = next(
                (n for n in (3, 2, 1) if n <= len(pattern) and _places(documents, pattern[-n:])), 0
            )
            assert longest == length
            assert not length or tuple(stretch) == corpus.find(pattern[-length:])
            found += len(expected)
    assert found > 500


def test_drafts_stay_in_a_document() -> None:
    """Behind a document's last token nothing is drafted."""
    drafter = CorpusDrafter(TokenCorpus.of([[1, 2, 3], [4, 5]]))

    assert (3,) == drafter.propose(DraftContext(0, (), (9,), (1, 2)), 9).tokens
    assert not drafter.propose(DraftContext(0, (), (9,), (2, 3)), 9).tokens
    assert (5,) == drafter.propose(DraftContext(0, (), (9, 4), ()), 9).tokens


def test_the_most_frequent_paths_fill_the_budget() -> None:
    """Behind 1: 2 3 at six places, 4 at two."""
    drafter = CorpusDrafter(TokenCorpus.of([[1, 2, 3]] * 6 + [[1, 4]] * 2))
    tree = drafter.propose(DraftContext(0, (), (9,), (1,)), 3)

    assert (2, 3, 4) == tree.tokens
    assert (-1, 0, -1) == tree.parents
    assert tree.values == pytest.approx((0.75, 0.75, 0.25))


def test_few_places_leave_room_for_shorter_endings() -> None:
    """7 1 went on with 5 once; 1 alone goes on with 2 at nine places."""
    drafter = CorpusDrafter(TokenCorpus.of([[7, 1, 5], *[[1, 2]] * 9]))
    tree = drafter.propose(DraftContext(0, (), (9,), (7, 1)), 9)

    assert {5, 2} == set(tree.tokens)
    assert sum(tree.values) <= 1.0 + 1e-9
    assert {5: 2, 2: 1} == {token: tree.evidence[at].match for at, token in enumerate(tree.tokens)}


def test_many_places_are_sampled() -> None:
    """At most `places` are looked at, spread over all of them."""
    corpus = TokenCorpus.of([[1, 2]] * 500 + [[1, 3]] * 500)
    tree = CorpusDrafter(corpus, places=10).propose(DraftContext(0, (), (9,), (1,)), 9)

    assert {2: 0.5, 3: 0.5} == dict(zip(tree.tokens, tree.values, strict=True))


def test_a_corpus_is_built_and_opened(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The folder holds what the same texts give in memory; a second build replaces it."""
    target = tmp_path / "corpus"
    stages: list[str] = []
    built = build_corpus(TEXTS, target, tokenizer, progress=lambda stage, _: stages.append(stage))
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]

    assert {"encoding", "sorting", "finishing"} == set(stages)
    assert len(TEXTS) == built.about.documents == sum(built.tokens == built.about.boundary)
    assert (
        encoded[7]
        == built.tokens[: built.about.tokens].tolist()[sum(len(one) + 1 for one in encoded[:7]) :][
            : len(encoded[7])
        ]
    )
    start, stop = built.find(encoded[7])
    assert (start, stop) != (0, 0)
    assert stop > start
    build_corpus(TEXTS[:9], target, tokenizer)
    assert 9 == TokenCorpus.open(target, verify="digests").about.documents


def test_a_build_that_was_stopped_goes_on(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was encoded is not encoded again, and the files are the same to the byte."""
    monkeypatch.setattr("ralmspec_plugins.decoding.corpus._PORTION", 200)
    whole, target = tmp_path / "whole", tmp_path / "stopped"
    build_corpus(TEXTS, whole, tokenizer)

    def stopped() -> Iterator[str]:
        yield from TEXTS[:200]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_corpus(stopped(), target, tokenizer)
    assert not target.exists()
    stages: list[str] = []
    build_corpus(TEXTS, target, tokenizer, progress=lambda stage, _: stages.append(stage))

    assert stages.count("checking") > 5
    assert "encoding" in stages
    for name in ("tokens.npy", "suffixes.npy"):
        assert (whole / name).read_bytes() == (target / name).read_bytes()


def test_an_error_leaves_the_old_corpus(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk while the suffix array is written: the old one is there, whole."""
    target = tmp_path / "corpus"
    build_corpus(TEXTS[:5], target, tokenizer)

    def full(file: Path, array: object) -> None:
        raise OSError(28, "No space left on device", str(file))

    with monkeypatch.context() as patch:
        patch.setattr("ralmspec_plugins.decoding.corpus.write_array", full)
        with pytest.raises(OSError, match="No space left"):
            build_corpus(TEXTS, target, tokenizer)
    assert 5 == TokenCorpus.open(target, verify="digests").about.documents
    assert len(TEXTS) == build_corpus(TEXTS, target, tokenizer).about.documents


@pytest.mark.parametrize("name", ["tokens.npy", "suffixes.npy", "about.json"])
@pytest.mark.parametrize("cut", [0, 40, -4])
def test_a_truncated_corpus_is_refused(
    tokenizer: Tokenizer, tmp_path: Path, name: str, cut: int
) -> None:
    """The message says what is damaged and what helps."""
    target = tmp_path / "corpus"
    build_corpus(TEXTS[:5], target, tokenizer)
    content = (target / name).read_bytes()
    (target / name).write_bytes(content[:cut])

    with pytest.raises(IndexFileError, match="build the corpus again"):
        TokenCorpus.open(target)


def test_a_changed_byte_is_found(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """By digests; sizes alone do not show it."""
    target = tmp_path / "corpus"
    build_corpus(TEXTS[:5], target, tokenizer)
    file = target / "tokens.npy"
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)

    with pytest.raises(IndexFileError, match=r"tokens\.npy"):
        TokenCorpus.open(target, verify="digests")


def test_folders_that_are_no_corpus_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """An empty folder, another version, and a place that something else takes."""
    with pytest.raises(IndexFileError, match="no token corpus"):
        TokenCorpus.open(tmp_path)
    target = tmp_path / "corpus"
    build_corpus(TEXTS[:5], target, tokenizer)
    about = target / "about.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "version": 99}))
    with pytest.raises(IndexFileError, match="99"):
        TokenCorpus.open(target)
    other = tmp_path / "mine"
    shutil.copytree(target, other)
    (other / "about.json").rename(other / "letters.txt")
    with pytest.raises(IndexFileError, match="not a token corpus"):
        build_corpus(TEXTS, other, tokenizer)


def test_texts_that_cannot_be_taken_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """No text, empty ones, and something that is no text."""
    for texts in ([], ["", ""]):
        with pytest.raises(InputError, match="nothing to draft from"):
            build_corpus(texts, tmp_path / "corpus", tokenizer)
    with pytest.raises(InputError, match="text 1 must be a string"):
        build_corpus(["the ships", 7], tmp_path / "corpus", tokenizer)  # type: ignore[list-item]
    with pytest.raises(InputError, match="nothing to draft from"):
        TokenCorpus.of([[]])
    assert not list(tmp_path.iterdir())


def test_another_tokenizer_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """When the model is loaded: its tokens mean something else."""
    corpus = build_corpus(TEXTS[:5], tmp_path / "corpus", tiny_tokenizer(bos=False))

    with pytest.raises(ModelError, match="another tokenizer"):
        HuggingFaceLM(
            tiny_llama(), tokenizer, decoding=Decoding(drafter=CorpusDrafter(corpus), costs=FREE)
        )


@pytest.mark.parametrize("name", ["longest_match", "least_match", "depth", "places"])
def test_settings_out_of_range_are_refused(name: str) -> None:
    """Each message names the setting."""
    with pytest.raises(ConfigError, match=name):
        CorpusDrafter(TokenCorpus.of([[1]]), **{name: 0})


def test_suffixes_are_in_order() -> None:
    """Against a sort of all endings."""
    corpus = TokenCorpus.of([[3, 1, 2, 1, 2], [2, 1]])
    tokens = corpus.tokens.tolist()

    assert sorted(range(len(tokens)), key=lambda at: tokens[at:]) == corpus.suffixes.tolist()
    assert np.int32 == corpus.tokens.dtype
