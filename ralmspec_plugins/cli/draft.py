"""`ralmspec draft`: what drafts of tokens are taken from."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import typer

from ralmspec_plugins.cli import build as parts
from ralmspec_plugins.cli import options, output, sources
from ralmspec_plugins.retrieval.ingest import stream_texts

draft = typer.Typer(
    no_args_is_help=True, help="Speculation on tokens: build what drafts are taken from."
)


@draft.command()
@options.command
def build(
    text: Path,
    out: Path,
    *,
    model: str = parts.DEMO,
    more: list[Path] | None = None,
    reading: sources.TextOptions,
    restart: bool = False,
    json: bool = False,
) -> None:
    """Build a token corpus; an old one stays until the new one is complete.

    Each file of plain text or Markdown is one document, and each line of JSON lines.
    Tokens are on the disk at once: stopped by Ctrl-C, a full disk or a crash, the same
    command resumes behind them.

    Options:
        text: A .txt, .md, .markdown, .rst, .html or .jsonl file, a folder of them, or - for
            stdin.
        out: The folder of the corpus.
        model: The model whose tokenizer is used, a folder or a name on the hub; "demo" is the
            demo's own.
        more: Another file or folder; may be repeated.
        restart: Discard an unfinished build of the same folder.
        json: JSON on stdout, as always when it is no terminal.
    """
    began_s = time.perf_counter()
    given = [text, *(more or [])]
    with sources.opened(given) as texts:
        read = partial(stream_texts, texts, text_field=reading.text_field)
        read()  # what is not there is known before a tokenizer is loaded
        skipped = sources.skipped(texts)
        name = parts.use_threads(None, model)
        from ralmspec_plugins.decoding import build_corpus
        from ralmspec_plugins.lm.huggingface import load_tokenizer

        tokenizer = load_tokenizer(name)
        with output.bars() as progress:
            watcher = output.BuildBars(progress, "the texts")
            with watcher.kept("token"):
                corpus = build_corpus(
                    read(),
                    out,
                    tokenizer,
                    source=", ".join(path.name for path in texts),
                    progress=watcher,
                    restart=restart,
                )
    about, took_s = corpus.about, round(time.perf_counter() - began_s, 3)
    size = sum(file.stat().st_size for file in out.iterdir())
    tokens = about.tokens - about.documents  # without the boundaries
    record: dict[str, Any] = {"corpus": str(out), "tokens": tokens, "documents": about.documents}
    record |= {"skipped": skipped, "bytes": size, "seconds": took_s}
    sentence = (
        f"{out}: {tokens:,} tokens of {output.plural(about.documents, 'document')}, "
        f"{size / 1e6:.1f} MB, in {output.seconds(took_s)}"
    )
    output.report(record, sentence, json)
