"""`ralmspec index`: text in, a saved knowledge base out."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from ralmspec_plugins.cli.assemble import default_backend, make_encoder
from ralmspec_plugins.cli.output import notes, on_terminal, plural, screen, seconds, write_json
from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.records import Passage
from ralmspec_plugins.retrieval import (
    BACKENDS,
    HashingEncoder,
    KnowledgeBase,
    open_retriever,
    read_passages,
    save,
)
from ralmspec_plugins.retrieval.backends import needs_encoder
from ralmspec_plugins.retrieval.storage import check_target

_AT_ONCE = 256  # passages encoded between two moves of the progress bar


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
    json: Annotated[
        bool, typer.Option("--json", help="JSON on stdout, as always when it is no terminal.")
    ] = False,
) -> None:
    """Read passages and save a knowledge base; an old one stays until the new one is whole."""
    began_s = time.perf_counter()
    name = _backend(backend)
    _check_target(source, target)
    with _progress() as progress:
        reading = progress.add_task(f"reading {source.name}", total=None)
        passages = read_passages(source, words=words)
        progress.update(reading, total=len(passages), completed=len(passages))
        store = _build(name, passages, encoder, vectors, k, progress)
        saving = progress.add_task(f"saving {target.name}", total=None)
        save(store, target)
        progress.update(saving, total=1, completed=1)
    record = {
        "knowledge_base": str(target),
        "backend": name,
        "passages": store.size,
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


def _build(
    name: str,
    passages: Sequence[Passage],
    encoder: str,
    vectors: Path | None,
    k: int,
    progress: Progress,
) -> KnowledgeBase:
    """Encode and index, with progress where it can be known."""
    if not needs_encoder(name):
        if vectors is not None:
            raise ConfigError(f"--vectors needs a dense backend, such as numpy-flat, not {name}")
        task = progress.add_task("indexing", total=None)
        store = open_retriever(name, passages, k=k)
        progress.update(task, total=store.size, completed=store.size)
        return store
    chosen = make_encoder(encoder) or HashingEncoder()
    if vectors is not None:
        store = open_retriever(name, passages, chosen, k=k, vectors=_read_vectors(vectors))
        store.encode("Does the encoder fit the vectors?")
        return store
    task = progress.add_task("encoding", total=len(passages))
    watched = _Watched(chosen, lambda count: progress.advance(task, count))
    return open_retriever(name, passages, watched, k=k)


class _Watched:
    """An encoder that says how far it is."""

    def __init__(self, encoder: Any, advance: Callable[[int], None]) -> None:
        self._encoder = encoder
        self._advance = advance
        self.name = encoder.name
        self.settings = encoder.settings

    def __call__(self, text: str) -> Any:
        return self._encoder(text)

    def many(self, texts: Sequence[str]) -> Any:
        parts = []
        for start in range(0, len(texts), _AT_ONCE):
            some = texts[start : start + _AT_ONCE]
            encode = getattr(self._encoder, "many", None)
            parts.append(encode(some) if encode else [self._encoder(text) for text in some])
            self._advance(len(some))
        return np.concatenate(parts)


def _read_vectors(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"there is no file {path}; --vectors takes a .npy file")
    try:
        vectors = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} is not a plain numpy array: {error}") from error
    # Half and double precision are taken too; what is no number is refused by the store.
    return vectors.astype(np.float32) if vectors.dtype.kind == "f" else vectors


def _progress() -> Progress:
    console = notes()
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )


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
