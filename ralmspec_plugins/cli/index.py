"""`ralmspec index`: build a knowledge base from text, and save it."""

import time
from pathlib import Path
from typing import Annotated

from rich.progress import Progress

from ralmspec_plugins.cli import build, options, output
from ralmspec_plugins.errors import ConfigError
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
from ralmspec_plugins.retrieval.registry import needs_encoder
from ralmspec_plugins.retrieval.storage.format import check_target


@options.command
def index(
    source: Annotated[Path, {"metavar": "INPUT"}],
    target: Annotated[Path, {"metavar": "OUTPUT"}],
    *,
    backend: Annotated[str | None, {"metavar": "|".join(BACKENDS)}] = None,
    encoder: str = "hashing",
    vectors: Path | None = None,
    k: options.Count = 1,
    words: options.Count = 100,
    restart: bool = False,
    json: bool = False,
) -> None:
    """Read passages and save a knowledge base; an old one is kept until the new one is complete.

    With a dense backend, vectors are written to the disk immediately: after Ctrl-C, a
    full disk or a crash, the same command continues.

    Options:
        source: A .txt, .md or .jsonl file (text, id, title), or a folder.
        target: The folder of the saved knowledge base.
        backend: The retriever. (default: bm25s if installed, or numpy-flat)
        encoder: For dense backends: hashing, or a sentence-transformers folder or hub name.
        vectors: For dense backends: the passages' vectors, a .npy file, row by row.
        k: Passages for each query.
        words: Maximum number of words of a passage.
        restart: Discard an unfinished build of OUTPUT, and encode again from the start.
        json: JSON on stdout, which is the default if stdout is not a terminal.
    """
    began_s = time.perf_counter()
    name = _backend(backend)
    _check_target(source, target)
    if vectors is not None and not needs_encoder(name):
        raise ConfigError(f"--vectors needs a dense backend, such as numpy-flat, not {name}")
    with output.bars() as progress:
        if needs_encoder(name):
            watcher = output.BuildBars(progress, source.name)
            watcher.counted(check_passages(source, words=words))
            with watcher.kept("passage"):
                count = build_index(
                    stream_passages(source, words=words),
                    target,
                    build.make_encoder(encoder) or HashingEncoder(),
                    progress=watcher,
                    backend=name,
                    vectors=vectors,
                    k=k,
                    restart=restart,
                ).size
        else:
            count = _index_words(progress, source, target, name, k, words)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    took_s = round(time.perf_counter() - began_s, 3)
    record = {"knowledge_base": str(target), "backend": name, "passages": count}
    sentence = f"{target}: {output.plural(count, 'passage')}, {name}, {size / 1e6:.1f} MB, in "
    output.report(
        record | {"bytes": size, "seconds": took_s}, sentence + output.seconds(took_s), json
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


def _index_words(
    progress: Progress, source: Path, target: Path, name: str, k: int, words: int
) -> int:
    """Index in memory, and save."""
    task = progress.add_task(f"reading {source.name}", total=None)
    passages = read_passages(source, words=words)
    progress.update(task, total=len(passages), completed=len(passages))
    task = progress.add_task("indexing", total=None)
    store = open_retriever(name, passages, k=k)
    progress.update(task, total=store.size, completed=store.size)
    task = progress.add_task(f"saving {target.name}", total=None)
    save(store, target)
    progress.update(task, total=1, completed=1)
    return store.size
