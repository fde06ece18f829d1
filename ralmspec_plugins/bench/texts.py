"""The texts of benchmarks: passages that are searched, and articles that are written."""

import json
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.bench.python_docs import library_passages
from ralmspec_plugins.demo.world import DEMO_SEED, make_world
from ralmspec_plugins.errors import InputError
from ralmspec_plugins.records import Passage

PROMPT_WORDS: Final = 24
_PASSAGE_WORDS: Final = 100  # as in the paper (PAPERS 1.10)
_WORDS_A_TOKEN: Final = 0.9  # at most: a piece of a trained vocabulary is hardly ever more
_WORDS_TO_SPARE: Final = 8  # for short scripts, whose words may all be long


@dataclass(frozen=True, slots=True)
class Script:
    """What a trace asks a model to write: the prompt, and the words that follow."""

    prompt: str
    text: str


@dataclass(frozen=True, slots=True)
class Library:
    """Passages, and articles over the same things.

    `vectors`: of the passages, [passages, dim] float32, where they are known already.
    """

    name: str
    passages: Sequence[Passage]
    articles: Sequence[str]
    vectors: NDArray[np.float32] | None = field(default=None, repr=False)

    def scripts(self, count: int, tokens: int) -> list[Script]:
        """Cut scripts out of the articles, each long enough for so many tokens.

        The first of each article come first, so that few scripts are of different articles.

        Raises:
            InputError: the articles are too short for so many.
        """
        words_needed = PROMPT_WORDS + int(_WORDS_A_TOKEN * tokens) + _WORDS_TO_SPARE
        made: list[Script] = []
        articles = [article.split() for article in self.articles]
        longest = max((len(words) for words in articles), default=0)
        for start in range(0, longest, words_needed):
            for words in articles:
                piece = words[start : start + words_needed]
                if len(piece) == words_needed:
                    text = " ".join(piece[PROMPT_WORDS:])
                    made.append(Script(" ".join(piece[:PROMPT_WORDS]), text))
                if len(made) == count:
                    return made
        raise InputError(
            f"the articles of {self.name} give {len(made)} texts of {words_needed} words, but "
            f"{count} are needed; give more or longer articles, or ask for fewer requests or steps"
        )


def folder_library(folder: Path) -> Library:
    """Read articles.jsonl and passages.jsonl of a folder, or files whose names end so.

    Articles have a "text", passages an "id", a "title" and a "text"; without passages the
    articles are cut into pieces of 100 words. The vectors of passages are taken from a
    file `*vectors.npz` with an array `docs`, if there is one of their number.

    Raises:
        InputError: there are no articles.
    """
    articles = [row["text"] for row in _rows(folder, "articles.jsonl")]
    if not articles:
        raise InputError(
            f"{folder} has no file named *articles.jsonl with lines such as "
            '{"title": "...", "text": "..."}'
        )
    listed = _rows(folder, "passages.jsonl")
    passages = [Passage(row["id"], row["text"], row.get("title", "")) for row in listed]
    if not passages:
        passages = list(_pieces(articles))
    return Library(folder.name, passages, articles, _vectors(folder, len(passages)))


def python_library() -> Library:
    """Read the documentation of the installed Python's standard library: there on any machine.

    Raises:
        InputError: its sources are not on this machine.
    """
    stdlib = Path(sysconfig.get_path("stdlib"))
    passages = list(library_passages(stdlib))
    if not passages:
        raise InputError(f"the standard library's sources are not in {stdlib}")
    modules: dict[str, list[str]] = {}
    for passage in passages:
        modules.setdefault(passage.id.partition(".")[0], []).append(passage.text)
    articles = sorted((" ".join(texts) for texts in modules.values()), key=len, reverse=True)
    return Library("Python's documentation", passages, articles)


def world_library() -> Library:
    """Give the demo's invented world, which the demo's model can write about."""
    world = make_world(DEMO_SEED)
    passages = [Passage(told.id, told.text, told.title) for told in world.passages()]
    return Library("an invented world", passages, ())


def padded(
    passages: Sequence[Passage], vectors: NDArray[np.float32], size: int, seed: int = 0
) -> tuple[list[Passage], NDArray[np.float32]]:
    """Pad passages with random unit vectors, which no real query comes near."""
    missing = max(0, size - len(passages))
    noise = np.random.default_rng(seed).standard_normal(
        (missing, vectors.shape[1]), dtype=np.float32
    )
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    padding = [Passage(f"noise-{number}", "") for number in range(missing)]
    return [*passages, *padding], np.concatenate([vectors, noise])


def padded_texts(passages: Sequence[Passage], size: int, seed: int = 0) -> list[Passage]:
    """Pad passages with texts of their own words in another order, for sparse stores."""
    words = np.array(" ".join(passage.text for passage in passages).split())
    dice = np.random.default_rng(seed)
    missing = max(0, size - len(passages))
    drawn = (" ".join(dice.choice(words, _PASSAGE_WORDS)) for _ in range(missing))
    return [*passages, *(Passage(f"noise-{at}", text) for at, text in enumerate(drawn))]


def _rows(folder: Path, ending: str) -> list[dict[str, Any]]:
    files = sorted(file for file in folder.glob("*.jsonl") if file.name.endswith(ending))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return [json.loads(line) for line in lines if line.strip()]


def _pieces(articles: Sequence[str]) -> Iterator[Passage]:
    for number, article in enumerate(articles):
        words = article.split()
        for start in range(0, len(words), _PASSAGE_WORDS):
            text = " ".join(words[start : start + _PASSAGE_WORDS])
            yield Passage(f"article-{number}-{start // _PASSAGE_WORDS}", text)


def _vectors(folder: Path, count: int) -> NDArray[np.float32] | None:
    for file in sorted(folder.glob("*vectors.npz")):
        with np.load(file, allow_pickle=False) as arrays:
            if "docs" in arrays and len(arrays["docs"]) == count:
                found: NDArray[np.float32] = arrays["docs"].astype(np.float32)
                return found
    return None
