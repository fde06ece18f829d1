"""The texts of KNN-LM's benchmarks: what is held out is nowhere else."""

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from benchmarks.knn.inputs import (
    HELD_OUT,
    IN_DOMAIN,
    PYTHON,
    WIKIPEDIA,
    Domain,
    prompts,
    python_docs,
    wikipedia,
)
from ralmspec_plugins.errors import InputError
from tests.benchmarks.knn_world import domains, questions

ARTICLES = 40


def data(folder: Path, articles: int = ARTICLES) -> Path:
    """Write articles in three passages each; every fourth has lost its name."""
    titles = ["<unk>" if at % 4 == 0 else f"title {at}" for at in range(articles)]
    passages, whole = [], []
    for at, title in enumerate(titles):
        pieces = [f"piece {at}.{part} of it" for part in range(3)]
        passages += [{"id": f"{at}", "title": title, "text": piece} for piece in pieces]
        if at % 2 == 0 or at % 3 == 0:
            whole.append({"title": title, "text": " ".join(pieces)})
    for name, rows in (("passages", passages), ("articles", whole)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"wikipedia_{name}.jsonl").write_text(lines)
    return folder


def test_held_out_articles_are_in_no_document(tmp_path: Path) -> None:
    """No passage of a held-out article is left, and every other article is one document."""
    found = wikipedia(data(tmp_path))

    assert len(found.held_out) == HELD_OUT
    assert not set(found.held_out) & set(found.documents)
    assert len(found.documents) == ARTICLES - HELD_OUT
    pieces = {piece for held in found.held_out for piece in held.split("piece ")[1:]}
    told = " ".join(found.documents)
    assert [piece for piece in pieces if f"piece {piece.strip()}" in told] == []


def test_articles_without_a_name_are_not_held_out(tmp_path: Path) -> None:
    """Their title is that of many others, which would be left out with them."""
    found = wikipedia(data(tmp_path))

    nameless = [at for at in range(ARTICLES) if at % 4 == 0]
    assert all(any(f"piece {at}.0 of" in one for one in found.documents) for at in nameless)


def test_too_little_text_is_said(tmp_path: Path) -> None:
    """Without whole articles there is nothing to hold out."""
    with pytest.raises(InputError, match="0 to hold out"):
        wikipedia(data(tmp_path, articles=1))


@pytest.mark.usefixtures("docs_read_once")
def test_python_has_its_documentation() -> None:
    """A document for each module, a tenth of the longer ones held out."""
    found = python_docs()

    assert len(found.held_out) > 3
    assert len(found.documents) > 100
    assert not set(found.held_out) & set(found.documents)
    assert all("\n" in text for text in found.held_out)


def test_prompts_are_starts_of_held_out_texts(tmp_path: Path) -> None:
    """Of each domain in turn, and then questions, which are of none."""
    both = domains()

    asked = prompts(both, questions(tmp_path), each=1, outside=2)

    assert [prompt.source for prompt in asked] == [WIKIPEDIA, PYTHON, "questions", "questions"]
    assert [prompt.place for prompt in asked] == [*["in domain"] * 2, *["out of domain"] * 2]
    assert all(
        domain.held_out[0].startswith(prompt.text) and len(prompt.text.split()) == 24
        for domain, prompt in zip(both, asked, strict=False)
    )
    assert asked[2].text == "Who counted the ships?"
    assert set(IN_DOMAIN) == {WIKIPEDIA, PYTHON}


def test_too_few_prompts_are_said(tmp_path: Path) -> None:
    """The message says how many there are."""
    with pytest.raises(InputError, match="there are 4 prompts"):
        prompts(domains(), questions(tmp_path), each=3, outside=2)


def test_lines_stay_lines(tmp_path: Path) -> None:
    """A prompt keeps what stands between its words, as the documents do."""
    one = Domain("code", ("a",), ("first\n    second third",))

    asked = prompts([one], questions(tmp_path), each=1, outside=0)

    assert [prompt.text for prompt in asked] == ["first\n    second third"]
