"""Texts of benchmarks: read from a folder, from Python itself, padded to any size."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness.inputs import (
    PROMPT_WORDS,
    Library,
    folder_library,
    padded,
    padded_texts,
    python_library,
)
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.types import Passage

WORDS = [f"word{number}" for number in range(500)]


def written(folder: Path, name: str, rows: list[dict[str, str]]) -> None:
    (folder / name).write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")


def test_a_script_goes_on_where_its_prompt_ends() -> None:
    """Prompt and text are one piece of the article, cut at a word."""
    library = Library("l", [], [" ".join(WORDS)])

    first, second = library.scripts(2, tokens=50)

    assert WORDS[: len(f"{first.prompt} {first.text}".split())] == (
        f"{first.prompt} {first.text}".split()
    )
    assert PROMPT_WORDS == len(first.prompt.split())
    assert set(first.text.split()).isdisjoint(second.prompt.split())


def test_few_scripts_are_of_different_articles() -> None:
    """The beginnings of all articles come before any article's second piece."""
    library = Library("l", [], [" ".join(WORDS), " ".join(WORDS[::-1])])

    prompts = [script.prompt for script in library.scripts(3, tokens=50)]

    assert [WORDS[0], WORDS[-1]] == [prompt.split()[0] for prompt in prompts[:2]]


def test_articles_that_are_too_short_are_refused() -> None:
    """The message says how many texts there are, and what would help."""
    with pytest.raises(InputError, match=r"give 1 texts of .* words, but 2 are needed"):
        Library("l", [], ["a " * 100]).scripts(2, tokens=60)


def test_a_folder_gives_articles_passages_and_vectors(tmp_path: Path) -> None:
    """All three are found by the ends of their names."""
    written(tmp_path, "wiki_articles.jsonl", [{"title": "a", "text": "one two"}])
    written(tmp_path, "wiki_passages.jsonl", [{"id": "p", "title": "a", "text": "one"}])
    np.savez(tmp_path / "my_vectors.npz", docs=np.ones((1, 3), dtype=np.float16))

    library = folder_library(tmp_path)

    assert ["one two"] == library.articles
    assert [Passage("p", "one", "a")] == library.passages
    assert library.vectors is not None
    assert ("float32", (1, 3)) == (str(library.vectors.dtype), library.vectors.shape)


def test_without_passages_articles_are_cut(tmp_path: Path) -> None:
    """Into pieces of 100 words; vectors of another number of passages are not theirs."""
    written(tmp_path, "articles.jsonl", [{"text": " ".join(WORDS[:150])}])
    np.savez(tmp_path / "my_vectors.npz", docs=np.ones((5, 3), dtype=np.float16))

    library = folder_library(tmp_path)

    assert [100, 50] == [len(passage.text.split()) for passage in library.passages]
    assert library.vectors is None


def test_a_folder_without_articles_is_refused(tmp_path: Path) -> None:
    """The message says which file is missing, and shows a line of it."""
    with pytest.raises(InputError, match=r"articles\.jsonl.*title"):
        folder_library(tmp_path)


@pytest.mark.usefixtures("docs_read_once")
def test_pythons_documentation_is_enough_for_a_suite() -> None:
    """Twenty texts of 128 tokens, over some thousands of passages."""
    library = python_library()

    assert 20 == len(library.scripts(20, tokens=128))
    assert len(library.passages) > 1000


def test_padding_comes_behind_the_real_ones() -> None:
    """Real passages keep their rows; the rest are unit vectors, the same each time."""
    real = [Passage("p", "one")]
    vectors = np.full((1, 4), 0.5, dtype=np.float32)

    passages, matrix = padded(real, vectors, 10)

    assert ("p", 10) == (passages[0].id, len({passage.id for passage in passages}))
    assert np.array_equal(vectors, matrix[:1])
    assert np.allclose(1.0, np.linalg.norm(matrix, axis=1))
    assert np.array_equal(matrix, padded(real, vectors, 10)[1])


def test_padding_is_near_the_real_ones() -> None:
    """0.7 of a real vector plus noise of length 1: a cosine of 0.57, and its passage's text."""
    dice = np.random.default_rng(1)
    vectors = dice.standard_normal((3, 256), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    passages, matrix = padded([Passage(f"p{n}", f"text {n}") for n in range(3)], vectors, 303)
    scores = matrix[3:] @ vectors.T
    nearest = scores.argmax(axis=1)

    assert abs(scores.max(axis=1).mean() - 0.7 / np.sqrt(1.49)) < 0.02
    assert [f"text {row}" for row in nearest] == [one.text for one in passages[3:]]
    assert {0, 1, 2} == set(nearest)


def test_padding_of_words_uses_the_real_ones_words() -> None:
    """Sparse stores are padded with texts that make their lists of words longer."""
    passages = padded_texts([Passage("p", "red fox")], 3)

    assert 3 == len(passages)
    assert {"red", "fox"} == set(passages[2].text.split())
