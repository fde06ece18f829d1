"""`ralmspec index`: text in, a saved knowledge base out."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from ralmspec_plugins.cli.assemble import default_backend, make_encoder
from ralmspec_plugins.cli.bars import bars
from ralmspec_plugins.cli.output import notes, on_terminal, plural, screen, seconds, write_json
from ralmspec_plugins.errors import ConfigError, RalmSpecError
from ralmspec_plugins.retrieval import (
    BACKENDS,
    HashingEncoder,
    build_index,
    open_retriever,
    read_passages,
    save,
    stream_passages,
)
from ralmspec_plugins.retrieval.builder import Stage
from ralmspec_plugins.retrieval.ingest import check_passages
from ralmspec_plugins.retrieval.registry import needs_encoder
from ralmspec_plugins.retrieval.storage.format import check_target


def index(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT", help="A .txt, .md or .jsonl file (text, id, title), or a folder."
        ),
    ],
    target: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="The folder of the saved knowledge base.")
    ],
    backend: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(BACKENDS)}. [default: bm25s if installed, or numpy-flat]"),
    ] = None,
    encoder: Annotated[
        str,
        typer.Option(
            help="For dense backends: hashing, or a sentence-transformers folder or hub name."
        ),
    ] = "hashing",
    vectors: Annotated[
        Path | None,
        typer.Option(help="For dense backends: the passages' vectors, a .npy file, row by row."),
    ] = None,
    k: Annotated[int, typer.Option("--k", min=1, help="Passages for each query.")] = 1,
    words: Annotated[int, typer.Option(min=1, help="A passage's greatest length.")] = 100,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Forget an unfinished build of OUTPUT, and encode anew."),
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="JSON on stdout, as always when it is no terminal.")
    ] = False,
) -> None:
    """Read passages and save a knowledge base; an old one stays until the new one is whole.

    With a dense backend, what is encoded is safe at once: stopped by Ctrl-C, a
    full disk or a crash, the same command goes on where it was.
    """
    began_s = time.perf_counter()
    name = _backend(backend)
    _check_target(source, target)
    with bars() as progress:
        if needs_encoder(name):
            count = _build(
                _Bars(progress, source, words),
                target,
                make_encoder(encoder) or HashingEncoder(),
                {"backend": name, "vectors": vectors, "k": k, "restart": restart},
            )
        else:
            if vectors is not None:
                raise ConfigError(
                    f"--vectors needs a dense backend, such as numpy-flat, not {name}"
                )
            count = _index_words(progress, source, target, name, k, words)
    record = {
        "knowledge_base": str(target),
        "backend": name,
        "passages": count,
        "bytes": sum(file.stat().st_size for file in target.rglob("*") if file.is_file()),
        "seconds": round(time.perf_counter() - began_s, 3),
    }
    _report(record, json)


def _backend(name: str | None) -> str:
    if name is None:
        return default_backend()
    chosen = name.replace("_", "-")
    if chosen not in BACKENDS:
        raise ConfigError(f"unknown backend {name!r}; known are {', '.join(BACKENDS)}")
    return chosen


def _check_target(source: Path, target: Path) -> None:
    """Refuse, before hours of encoding, a target that could not be saved to."""
    if source.is_dir() and target.absolute().is_relative_to(source.absolute()):
        raise ConfigError(
            f"OUTPUT {target} lies in INPUT {source}, and would be read as text the next time; "
            "choose a folder beside it"
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


class _Bars:
    """Reads a source once to know how much it holds, and then shows how far a build is."""

    def __init__(self, progress: Progress, source: Path, words: int) -> None:
        task = progress.add_task(f"reading {source.name}", total=None)
        self.total = check_passages(source, words=words)
        progress.update(task, total=self.total, completed=self.total)
        self.passages = stream_passages(source, words=words)
        self.encoded = 0
        self._progress = progress
        self._encoding = progress.add_task("encoding", total=self.total)
        self._indexing: Any = None

    def __call__(self, stage: Stage, passages: int) -> None:
        if stage != "indexing":
            self.encoded = passages
            self._progress.update(self._encoding, completed=passages, description=stage)
        elif self._indexing is None:
            self._indexing = self._progress.add_task("indexing", total=None)
        else:
            self._progress.update(self._indexing, total=passages, completed=passages)


def _build(bars: _Bars, target: Path, encoder: Any, settings: dict[str, Any]) -> int:
    """Encode and index on the disk; where this is stopped, say how to go on."""
    try:
        return build_index(bars.passages, target, encoder, progress=bars, **settings).size
    except RalmSpecError:
        raise
    except BaseException:
        if bars.encoded:
            notes().print(
                f"{bars.encoded:,} of {plural(bars.total, 'passage')} are encoded, and kept: the "
                "same command goes on from there.",
                soft_wrap=True,
            )
        raise


def _report(record: dict[str, Any], as_json: bool) -> None:
    if as_json or not on_terminal():
        write_json(record)
        return
    screen().print(
        f"{record['knowledge_base']}: {plural(record['passages'], 'passage')}, "
        f"{record['backend']}, {record['bytes'] / 1e6:.1f} MB, in {seconds(record['seconds'])}",
        markup=False,
        soft_wrap=True,
    )
