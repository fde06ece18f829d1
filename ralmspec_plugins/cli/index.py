"""`ralmspec index`: build a knowledge base from text, and save it."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

from rich.progress import Progress

from ralmspec_plugins.cli import build, options, output, sources
from ralmspec_plugins.errors import ConfigError, IndexFileError
from ralmspec_plugins.retrieval import (
    BACKENDS,
    HashingEncoder,
    build_index,
    open_retriever,
    read_passages,
    save,
    stream_passages,
)
from ralmspec_plugins.retrieval.ingest import check_passages
from ralmspec_plugins.retrieval.registry import needs_encoder, read
from ralmspec_plugins.retrieval.storage.format import check_target
from ralmspec_plugins.types import Passage


@options.command
def index(
    source: Annotated[Path, {"metavar": "INPUT"}],
    target: Annotated[Path, {"metavar": "OUTPUT"}],
    *,
    backend: Annotated[str | None, {"metavar": "|".join(BACKENDS)}] = None,
    encoder: str = "hashing",
    device: str | None = None,
    vectors: Path | None = None,
    k: options.Count = 1,
    words: options.Count = 100,
    reading: sources.TextOptions,
    force: bool = False,
    restart: bool = False,
    json: bool = False,
) -> None:
    """Read passages and save a knowledge base; an old one is kept until the new one is complete.

    With a dense backend, vectors are written to the disk immediately: after Ctrl-C, a
    full disk or a crash, the same command continues.

    Options:
        source: A .txt, .md, .markdown, .rst, .html or .jsonl file, a folder of them, or - for
            stdin (JSON lines if it begins with a brace, or plain text).
        target: The folder of the saved knowledge base.
        backend: The retriever. (default: bm25s if installed, or numpy-flat)
        encoder: For dense backends: hashing, or a sentence-transformers folder or hub name.
        device: Where the encoder's model computes: cpu, cuda, cuda:1. (default: cpu)
        vectors: For dense backends: the passages' vectors, a .npy file, row by row.
        k: Passages for each query.
        words: Maximum number of words of a passage.
        force: Replace a knowledge base of other passages.
        restart: Discard an unfinished build of OUTPUT, and encode again from the start.
        json: JSON on stdout, which is the default if stdout is not a terminal.
    """
    began_s = time.perf_counter()
    name = _backend(backend)
    _check_target(source, target)
    if vectors is not None and not needs_encoder(name):
        raise ConfigError(f"--vectors needs a dense backend, such as numpy-flat, not {name}")
    with sources.opened([source]) as [found]:
        skipped = sources.skipped([found])
        given = Given(found, words, reading.text_field, target, force)
        with output.bars() as progress:
            if needs_encoder(name):
                watcher = output.BuildBars(progress, found.name)
                watcher.counted(given.checked())
                with watcher.kept("passage"):
                    count = build_index(
                        given.stream(),
                        target,
                        build.make_encoder(encoder, device) or HashingEncoder(),
                        progress=watcher,
                        backend=name,
                        vectors=vectors,
                        k=k,
                        restart=restart,
                    ).size
            else:
                count = _index_words(progress, given, name, k)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    took_s = round(time.perf_counter() - began_s, 3)
    record: dict[str, Any] = {"knowledge_base": str(target), "backend": name, "passages": count}
    record |= {"skipped": skipped, "bytes": size, "seconds": took_s}
    sentence = f"{target}: {output.plural(count, 'passage')}, {name}, {size / 1e6:.1f} MB, in "
    output.report(record, sentence + output.seconds(took_s), json)


@dataclass(frozen=True, slots=True)
class Given:
    """The passages to be indexed, and their target."""

    source: Path
    words: int
    text_field: str | None
    target: Path
    force: bool

    def stream(self) -> Iterator[Passage]:
        """Yield the passages."""
        return stream_passages(self.source, words=self.words, text_field=self.text_field)

    def checked(self) -> int:
        """Return the number of passages, after a check of them and of the target.

        Raises:
            InputError: the passages cannot be used.
            ConfigError: the target holds others, and may not be replaced.
        """
        count = check_passages(self.source, words=self.words, text_field=self.text_field)
        self._check_replaced(self.stream())
        return count

    def read(self) -> list[Passage]:
        """Return the passages, after the same checks.

        Raises:
            InputError: the passages cannot be used.
            ConfigError: the target holds others, and may not be replaced.
        """
        passages = read_passages(self.source, words=self.words, text_field=self.text_field)
        self._check_replaced(passages)
        return passages

    def _check_replaced(self, passages: Iterable[Passage]) -> None:
        if self.force or not self.target.exists():
            return
        try:
            old = read(self.target, verify="sizes").passages
        except IndexFileError:
            return  # damaged, or an empty folder: there is nothing to lose
        if any(one != other for one, other in zip_longest(old, passages)):
            raise ConfigError(
                f"{self.target} is a knowledge base of {output.plural(len(old), 'passage')}, and "
                "these are others; give --force to replace it, or another folder"
            )


def _backend(name: str | None) -> str:
    if name is None:
        return build.default_backend()
    chosen = name.replace("_", "-")
    if chosen not in BACKENDS:
        raise ConfigError(f"unknown backend {name!r}; known are {', '.join(BACKENDS)}")
    return chosen


def _check_target(source: Path, target: Path) -> None:
    """Check the target before passages are encoded."""
    if source.is_dir() and target.absolute().is_relative_to(source.absolute()):
        raise ConfigError(
            f"OUTPUT {target} is inside INPUT {source}, and would be read as text the next time; "
            "choose a folder next to it"
        )
    check_target(target)


def _index_words(progress: Progress, given: Given, name: str, k: int) -> int:
    """Index in memory, and save."""
    task = progress.add_task(f"reading {given.source.name}", total=None)
    passages = given.read()
    progress.update(task, total=len(passages), completed=len(passages))
    task = progress.add_task("indexing", total=None)
    store = open_retriever(name, passages, k=k)
    progress.update(task, total=store.size, completed=store.size)
    task = progress.add_task(f"saving {given.target.name}", total=None)
    save(store, given.target)
    progress.update(task, total=1, completed=1)
    return store.size
