"""Make the texts of the benchmarks from public sources, or from what is on any machine.

    python -m benchmarks.data DATA --encoder sentence-transformers/all-MiniLM-L6-v2
    python -m benchmarks.data DATA --offline

DATA is then what the benchmarks' `--data` takes:

| file | what | public source |
|---|---|---|
| wikipedia_articles.jsonl | 60 whole articles | WikiText-103, validation and test |
| wikipedia_passages.jsonl | pieces of 100 words of all articles | the same |
| nq_questions.jsonl | 500 questions with answers | Natural Questions, open |
| trace_queries.json | 33 queries of 60 texts: 24 words, every 3 words | of the articles |
| trace_vectors.npz | vectors of passages and queries | by `--encoder` |

Offline, Python's own documentation stands in for Wikipedia, and questions are made of its titles.
Sources and sizes are those of the published results; which rows were drawn may differ. The
downloads need the Hugging Face hub and pyarrow. Where the published results were made the hub
cannot be reached: there this module's downloads have run on files of the same form alone.
"""

import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer

from benchmarks.harness.inputs import python_library
from ralmspec_plugins.cli.build import make_encoder
from ralmspec_plugins.errors import InputError, MissingExtraError
from ralmspec_plugins.retrieval.encoders import Encoder, encode_all
from ralmspec_plugins.retrieval.optional import optional
from ralmspec_plugins.retrieval.storage.files import write_whole
from ralmspec_plugins.types import Passage

WIKITEXT: Final = ("Salesforce/wikitext", "wikitext-103-raw-v1/{}-00000-of-00001.parquet")
QUESTIONS: Final = ("google-research-datasets/nq_open", "nq_open/validation-00000-of-00001.parquet")
ARTICLES: Final = 60
PASSAGE_WORDS: Final = 100  # as in the paper
ASKED: Final = 500
QUERY_WORDS, QUERY_STEP, QUERIES = 24, 3, 33  # about 32 tokens, and four
_SEED: Final = 0
_HEADING: Final = re.compile(r"^ = (?!= )(.+?) = $")
_SUBHEADING: Final = re.compile(r"^ = = ")
# WikiText stands apart at punctuation: `1 @,@ 000`, `well @-@ known`, `Sonic 's`, `( film )`.
_TOGETHER: Final = (
    (re.compile(r" @([-,.])@ "), r"\1"),
    (re.compile(r" ([,.;:!?%)\]])"), r"\1"),
    (re.compile(r"([(\[$£]) "), r"\1"),
    (re.compile(r" (n't|'(?:s|m|d|ll|re|ve))\b"), r"\1"),
)


@dataclass(frozen=True, slots=True)
class Article:
    """A whole article."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Texts:
    """Articles, questions with their answers, and where they are from."""

    source: str
    articles: Sequence[Article]
    questions: Sequence[tuple[str, Sequence[str]]]


def together(text: str) -> str:
    """Return a text of WikiText as it is usually written.

    >>> together("Sonic 's well @-@ known 1 @,@ 000 rings ( in 1991 ) .")
    "Sonic's well-known 1,000 rings (in 1991)."
    """
    for pattern, replacement in _TOGETHER:
        text = pattern.sub(replacement, text)
    return text


def wikitext_articles(lines: Iterable[str]) -> Iterator[Article]:
    r"""Yield the articles of WikiText's lines, without their headings.

    >>> list(wikitext_articles([" = A = \n", "One . \n", " = = Plot = = \n", "Two . \n"]))
    [Article(title='A', text='One. Two.')]
    """
    title, parts = "", list[str]()
    for line in lines:
        if heading := _HEADING.match(line.rstrip("\n")):
            if parts:
                yield Article(title, " ".join(parts))
            title, parts = together(heading.group(1)), []
        elif line.strip() and not _SUBHEADING.match(line):
            parts.append(together(line.strip()))
    if parts:
        yield Article(title, " ".join(parts))


def downloaded() -> Texts:
    """Return the texts of the public sources.

    Raises:
        InputError: they cannot be downloaded.
        MissingExtraError: huggingface_hub or pyarrow is not installed.
    """
    name, file = WIKITEXT
    lines = [
        row["text"] for part in ("validation", "test") for row in _rows(name, file.format(part))
    ]
    asked = [(row["question"], row["answer"]) for row in _rows(*QUESTIONS)]
    drawn = random.Random(_SEED).sample(asked, min(ASKED, len(asked)))
    return Texts(
        "WikiText-103 (validation and test) and Natural Questions (open), CC BY-SA 3.0",
        list(wikitext_articles(lines)),
        drawn,
    )


def _rows(name: str, file: str) -> list[dict[str, Any]]:
    hub = optional("huggingface_hub", "hf", "huggingface_hub")
    try:
        parquet: Any = __import__("pyarrow.parquet", fromlist=["parquet"])
    except ModuleNotFoundError as error:
        raise InputError("the downloads are in Parquet: pip install pyarrow") from error
    try:
        path = hub.hf_hub_download(name, file, repo_type="dataset")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file} of {name} cannot be downloaded ({type(error).__name__}: {error}); "
            "--offline makes texts from Python's documentation"
        ) from error
    rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    return rows


def offline() -> Texts:
    """Return texts of the installed Python's documentation: there on any machine.

    Raises:
        InputError: its sources are not on this machine.
    """
    library = python_library()
    titles = dict.fromkeys(passage.id.partition(".")[0] for passage in library.passages)
    texts = {name: list[str]() for name in titles}
    for passage in library.passages:
        texts[passage.id.partition(".")[0]].append(passage.text)
    articles = [Article(name, " ".join(parts)) for name, parts in texts.items()]
    asked = [
        (f"what does {passage.id} do", [passage.text.split("\n")[0]])
        for passage in library.passages
    ]
    drawn = random.Random(_SEED).sample(asked, min(ASKED, len(asked)))
    return Texts("Python's own documentation, in place of Wikipedia and NQ", articles, drawn)


def write(texts: Texts, folder: Path, encoder: Encoder | None = None) -> None:
    """Write the files that the benchmarks read.

    Raises:
        InputError: there are no articles that are long enough.
    """
    needed = QUERY_WORDS + QUERY_STEP * (QUERIES - 1)
    whole = [one for one in texts.articles if len(one.text.split()) >= needed]
    if not whole:
        raise InputError(f"no article has {needed} words")
    folder.mkdir(parents=True, exist_ok=True)
    longest = sorted(whole, key=lambda one: len(one.text), reverse=True)[:ARTICLES]
    passages = list(_passages(texts.articles))
    traces = [{"article": one.title, "queries": _queries(one.text)} for one in longest]
    _lines(
        folder / "wikipedia_articles.jsonl",
        ({"title": one.title, "text": one.text} for one in longest),
    )
    shown = ({"id": one.id, "title": one.title, "text": one.text} for one in passages)
    _lines(folder / "wikipedia_passages.jsonl", shown)
    asked = enumerate(texts.questions)
    told = ({"id": at, "question": text, "answers": list(right)} for at, (text, right) in asked)
    _lines(folder / "nq_questions.jsonl", told)
    write_whole(folder / "trace_queries.json", json.dumps(traces).encode())
    write_whole(
        folder / "README.md", f"Made by benchmarks/data.py from: {texts.source}.\n".encode()
    )
    if encoder is not None:
        docs = encode_all(encoder, passages).astype(np.float16)  # [passages, dim]
        asked_of = [[encoder(query) for query in _queries(one.text)] for one in longest]
        q = np.asarray(asked_of, dtype=np.float16)  # [traces, queries, dim]
        np.savez(folder / "trace_vectors.npz", docs=docs, q=q)


def _passages(articles: Sequence[Article]) -> Iterator[Passage]:
    count = 0
    for article in articles:
        words = article.text.split()
        for start in range(0, len(words), PASSAGE_WORDS):
            text = " ".join(words[start : start + PASSAGE_WORDS])
            yield Passage(f"wiki-{count}", text, article.title)
            count += 1


def _queries(text: str) -> list[str]:
    words = text.split()
    starts = range(0, QUERY_STEP * QUERIES, QUERY_STEP)
    return [" ".join(words[start : start + QUERY_WORDS]) for start in starts]


def _lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_whole(path, text.encode())


def main(
    folder: Path,
    offline_only: Annotated[bool, typer.Option("--offline", help="Download nothing.")] = False,
    encoder: Annotated[
        str | None, typer.Option(help="Of the vectors: hashing, a folder, or a hub name.")
    ] = None,
) -> None:
    """Make the texts of the benchmarks in a folder."""
    try:
        texts = offline() if offline_only else downloaded()
        write(texts, folder, make_encoder(encoder))
    except (InputError, MissingExtraError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error
    print(f"{folder}: {len(texts.articles)} articles. Source: {texts.source}")


if __name__ == "__main__":
    typer.run(main)
