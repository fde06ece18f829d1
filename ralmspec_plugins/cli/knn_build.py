"""`ralmspec knn build`: text and a model in, a datastore out."""

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from ralmspec_plugins.cli import options
from ralmspec_plugins.cli.assemble import demo_model, use_threads
from ralmspec_plugins.cli.bars import bars
from ralmspec_plugins.cli.output import notes, on_terminal, plural, screen, seconds, write_json
from ralmspec_plugins.errors import RalmSpecError
from ralmspec_plugins.retrieval.ingest import stream_texts

if TYPE_CHECKING:
    from ralmspec_plugins.knn.build import Stage
    from ralmspec_plugins.knn.datastore import Datastore


class Key(StrEnum):
    """The kinds of keys: a test holds this against `KEY_KINDS`."""

    FFN_INPUT = "ffn_input"
    OUTPUT = "output"


def build(
    text: Annotated[
        list[Path],
        typer.Option(help="A .txt, .md or .jsonl file (text), or a folder; may be repeated."),
    ],
    out: Annotated[Path, typer.Option(help="The folder of the datastore.")],
    model: options.Model = None,
    key: Annotated[
        Key, typer.Option(help="The key: the last feed-forward input, or the last hidden state.")
    ] = Key.FFN_INPUT,
    context: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of a window. [default: 1024, or what the model can]"),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens that a window goes on by. [default: half the context]"),
    ] = None,
    bos: Annotated[
        bool | None,
        typer.Option(
            "--bos/--no-bos", help="Begin each text with BOS. [default: if the tokenizer has one]"
        ),
    ] = None,
    eos: Annotated[
        bool, typer.Option("--eos", help="End each text with EOS, so that answers may end.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows in one pass.")] = 8,
    threads: options.Threads = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Forget an unfinished build of the same folder.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Build a datastore; an old one stays until the new one is whole.

    Each file of plain text or Markdown is one document, and each line of JSON lines.
    What is encoded is safe at once: stopped by Ctrl-C, a full disk or a crash, the
    same command goes on where it was.
    """
    began_s = time.perf_counter()
    cutting = {"context": context, "stride": stride, "bos": bos, "eos": eos}
    with bars() as progress:
        work = _Work(progress, text, model, threads)
        work.count(cutting)
        store = work.build(
            out, {**cutting, "key_kind": key.value, "batch_size": batch_size, "restart": restart}
        )
    record = {
        "datastore": str(out),
        "entries": len(store),
        "documents": store.about.documents,
        "dimension": store.about.dimension,
        "bytes": sum(file.stat().st_size for file in out.iterdir()),
        "seconds": round(time.perf_counter() - began_s, 3),
    }
    _report_build(record, json)


class _Work:
    """A model and texts; the texts are read once to know how much they hold, and once more."""

    def __init__(
        self, progress: Progress, paths: list[Path], model: str | None, threads: int | None
    ) -> None:
        self._progress = progress
        self._paths = paths
        self._encoded = 0
        self._task: Any = None
        stream_texts(paths)  # what is not there is known before a model is loaded
        use_threads(threads, model)
        from ralmspec_plugins.lm.huggingface import load

        self._model, self._tokenizer = load(demo_model() if model is None else model, "auto", None)

    def count(self, cutting: dict[str, Any]) -> None:
        """Read all texts once, so that what is wrong with one is known before the work."""
        from ralmspec_plugins.knn.build import cutting_for

        task = self._progress.add_task("reading", total=None)
        cut = cutting_for(self._model, self._tokenizer, **cutting)
        self._total = cut.count(stream_texts(self._paths))
        self._progress.update(task, total=self._total, completed=self._total)

    def build(self, target: Path, settings: dict[str, Any]) -> "Datastore":
        """Build, and where this is stopped, say how to go on."""
        from ralmspec_plugins.knn.build import build_datastore

        try:
            return build_datastore(
                stream_texts(self._paths),
                target,
                self._model,
                self._tokenizer,
                source=", ".join(path.name for path in self._paths),
                progress=self._shown,
                **settings,
            )
        except RalmSpecError:
            raise
        except BaseException:
            if self._encoded:
                notes().print(
                    f"{self._encoded:,} of {self._total:,} entries are encoded, and kept: the "
                    "same command goes on from there.",
                    soft_wrap=True,
                )
            raise

    def _shown(self, stage: "Stage", entries: int) -> None:
        if self._task is None:
            self._task = self._progress.add_task(stage, total=self._total)
        if stage == "finishing":
            self._progress.update(self._task, description=stage)
            return
        self._encoded = entries
        self._progress.update(self._task, completed=entries, description=stage)


def _report_build(record: dict[str, Any], as_json: bool) -> None:
    if as_json or not on_terminal():
        write_json(record)
        return
    screen().print(
        f"{record['datastore']}: {record['entries']:,} entries of "
        f"{plural(record['documents'], 'document')}, {record['dimension']} numbers each, "
        f"{record['bytes'] / 1e6:.1f} MB, in {seconds(record['seconds'])}",
        markup=False,
        soft_wrap=True,
    )
