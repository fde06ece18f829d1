"""`ralmspec knn`: a language model with a datastore of neighbours (KNN-LM)."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import typer

from ralmspec_plugins.cli import build as parts
from ralmspec_plugins.cli import options, output, sources
from ralmspec_plugins.cli.answers import Printer, ask_all
from ralmspec_plugins.config import Settings
from ralmspec_plugins.demo import MODEL
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.knn import Datastore, Mixing, open_search
from ralmspec_plugins.knn.datastore import KeyKind
from ralmspec_plugins.knn.perplexity import BLOCK, STRIDE
from ralmspec_plugins.knn.search import GUESSED
from ralmspec_plugins.retrieval.ingest import stream_texts
from ralmspec_plugins.types import Answer

if TYPE_CHECKING:
    from ralmspec_plugins.knn import KNNLanguageModel

_SAMPLE = 500  # letters, or tokens, that are looked at
OptionalNumber = Annotated[int | None, {"min": 0}]
AtLeastTwo = Annotated[int, {"min": 2}]

knn = typer.Typer(
    no_args_is_help=True, help="KNN-LM: build a datastore, and generate with it or measure it."
)


@knn.command()
@options.command
def build(
    *,
    text: list[Path],
    out: Path,
    common: options.CommonOptions,
    reading: sources.TextOptions,
    key: KeyKind = "ffn_input",
    context: options.OptionalCount = None,
    stride: options.OptionalCount = None,
    bos: bool | None = None,
    eos: bool = False,
    batch_size: options.Count = 8,
    restart: bool = False,
) -> None:
    """Build a datastore; an old one is kept until the new one is complete.

    Each file of plain text or Markdown is one document, and each line of JSON lines.
    Entries are written to the disk immediately: after Ctrl-C, a full disk or a crash, the
    same command continues.

    Options:
        text: A .txt, .md, .markdown, .rst, .html or .jsonl file, a folder of them, or - for
            stdin; may be repeated.
        out: The folder of the datastore.
        key: The key: the last feed-forward input, or the last hidden state.
        context: Tokens of a window. (default: 1024, or the model's context if that is less)
        stride: Tokens between the starts of windows. (default: half the context)
        bos: Begin each text with BOS. (default: if the tokenizer has one)
        eos: End each text with EOS, so that answers may end.
        batch_size: Windows in one pass.
        restart: Discard an unfinished build of the same folder.
    """
    began_s = time.perf_counter()
    with sources.opened(text) as texts:
        read = partial(stream_texts, texts, text_field=reading.text_field)
        first = next(read(), "")  # missing files are reported before a model is loaded
        skipped = sources.skipped(texts)
        name = parts.use_threads(common.threads, parts.told_model(common.model, [first[:_SAMPLE]]))
        from ralmspec_plugins.knn.build import build_datastore, cutting_for
        from ralmspec_plugins.lm.huggingface import load

        cutting: dict[str, Any] = {"context": context, "stride": stride, "bos": bos, "eos": eos}
        with output.bars() as progress:
            watcher = output.BuildBars(progress, "the texts")
            model, tokenizer = load(name, "auto", common.device)
            watcher.counted(cutting_for(model, tokenizer, **cutting).count(read()))
            with watcher.kept("entry"):
                store = build_datastore(
                    read(),
                    out,
                    model,
                    tokenizer,
                    source=", ".join(path.name for path in texts),
                    progress=watcher,
                    key_kind=key,
                    batch_size=batch_size,
                    restart=restart,
                    **cutting,
                )
    size, about = sum(file.stat().st_size for file in out.iterdir()), store.about
    took_s = round(time.perf_counter() - began_s, 3)
    record: dict[str, Any] = {"datastore": str(out), "entries": len(store)}
    record |= {"documents": about.documents, "dimension": about.dimension}
    record |= {"skipped": skipped, "bytes": size, "seconds": took_s}
    sentence = (
        f"{out}: {len(store):,} entries of {output.plural(about.documents, 'document')}, "
        f"{about.dimension} numbers each, {size / 1e6:.1f} MB, in {output.seconds(took_s)}"
    )
    output.report(record, sentence, common.json)


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighbourOptions:
    """The search of a token's neighbours.

    Options:
        k: Neighbours of each token.
        distance_temperature: Of the neighbours' distances: above 1 distant ones weigh more.
        search: Kind of search.
        index: hnsw, ivfpq: the folder of the index, built and saved if it does not exist.
        rerank: hnsw, ivfpq: number of candidates that are measured exactly, to select the k
            nearest; 0 uses the index's own distances. (default: k; ivfpq: 16 k, up to 1024)
        any_model: Allow other weights than those of the keys, such as another precision.
    """

    PANEL: ClassVar[str] = "Search"

    k: options.Count = 1024
    distance_temperature: float = 1.0
    search: Literal["exact", "hnsw", "ivfpq"] = "exact"
    index: Path | None = None
    rerank: OptionalNumber = None
    any_model: bool = False

    def open(
        self,
        folder: Path,
        common: options.CommonOptions,
        replica: str | None = None,
        replica_index: Path | None = None,
        **settings: Any,
    ) -> "KNNLanguageModel":
        """Open a datastore, and load its model; `settings` are the `KNNLanguageModel`'s.

        Raises:
            ConfigError: settings of an index for a search without one.
            IndexFileError: the folder has no datastore, or a damaged one.
            ModelError: there is no such model, or it does not fit the datastore.
            MissingExtraError: transformers, torch or the search's library is not installed.
        """
        datastore = Datastore.open(folder)  # errors are reported before a model is loaded
        name = parts.use_threads(common.threads, parts.told_model(common.model, _sample(datastore)))
        from ralmspec_plugins.knn import KNNLanguageModel

        with output.notes().status("loading model and datastore"):
            given = _given(index=self.index, rerank=self.rerank)
            if given and self.search == "exact":
                foreign = " and ".join(map(options.option, given))
                raise ConfigError(
                    f"{foreign} belongs to --search hnsw and ivfpq; exact has no index"
                )
            if replica is not None:
                few = min(self.k, GUESSED)  # their choices are nearly those of all
                index = _given(index=replica_index)
                settings["replica"] = open_search(replica, datastore, k=few, **index)
            search = open_search(self.search, datastore, k=self.k, **given)
            settings |= {"same_model": not self.any_model, "search": search}
            settings["temperature"] = self.distance_temperature
            settings["device"] = common.device
            return KNNLanguageModel.from_pretrained(name, datastore, **settings)


def _sample(datastore: Datastore) -> Iterator[str]:
    """Yield the start of a datastore's texts, as the demo's tokenizer reads it."""
    from ralmspec_plugins.lm.huggingface import load_tokenizer

    yield str(load_tokenizer(MODEL).decode(datastore.values[:_SAMPLE].tolist()))


def _given(**settings: Any) -> dict[str, Any]:
    """Return the settings that were set."""
    return {name: value for name, value in settings.items() if value is not None}


@knn.command()
@options.command
def generate(
    datastore: Path,
    prompt: str | None = None,
    *,
    neighbours: NeighbourOptions,
    asking: options.QuestionOptions,
    scheduling: options.ScheduleOptions,
    common: options.CommonOptions,
    weight: float = 0.25,
    replica: Literal["hnsw", "ivfpq"] | None = None,
    replica_index: Path | None = None,
    prefetch: options.OptionalCount = None,
    following: OptionalNumber = None,
    followed: OptionalNumber = None,
    capacity: options.OptionalCount = None,
) -> None:
    """Continue one text, or those of a file, and stream the result.

    Options:
        datastore: The folder of a datastore (see: knn build).
        prompt: The start of a text.
        weight: The neighbours' share in each choice, up to 1 (lambda).
        replica: Guess with this search of the same datastore, in place of the cache.
        replica_index: The folder of its index, built and saved if it does not exist.
        prefetch: Neighbours that a search adds to the cache. (default: k)
        following: Entries after each neighbour that are added, too. (default: 10)
        followed: Number of nearest neighbours whose successors are added. (default: all)
        capacity: Maximum number of entries in the cache. (default: 16384)
    """
    modes, requests = asking.modes(), asking.requests(prompt)
    cache = _given(following=following, followed=followed, capacity=capacity)
    foreign = ", ".join(map(options.option, (*cache, *_given(prefetch=prefetch))))
    if prefetch is not None and neighbours.search != "exact":
        raise ConfigError("--prefetch belongs to --search exact; the others find k, and no more")
    if replica is not None and foreign:
        raise ConfigError(f"{foreign} belongs to the cache, and --replica guesses without one")
    if replica is None and replica_index is not None:
        raise ConfigError("--replica-index belongs to --replica hnsw and ivfpq")
    settings = Settings(prefetch=prefetch, **scheduling.settings())
    with neighbours.open(
        datastore, common, replica, replica_index, weight=weight, settings=settings, **cache
    ) as lm:
        lm.generate(
            "Hello", max_tokens=parts.WARM_TOKENS, plain=True
        )  # warm-up before the timed runs
        sampling = parts.sampling_of(asking.temperature)
        engines = {mode: lm.engine(sampling, plain=mode == options.PLAIN) for mode in modes}
        ask_all(engines, requests, _Texts(common.json, many=len(requests) > 1), asking.timeline)


class _Texts(Printer):
    """Prints texts; their neighbours, a thousand for each token, are only counted."""

    def record(self, question: str, answer: Answer) -> dict[str, Any]:
        found = sum(len(step.hits) for step in answer.retrieved)
        record = {"prompt": question, "text": answer.text, "tokens": list(answer.state.tokens)}
        return record | {"neighbours": found}

    def summary(self, answer: Answer) -> None:
        stats = answer.stats
        rate = len(answer.state.tokens) / stats.wall_s if stats.wall_s else 0.0
        self.console.print(f"{output.in_short(stats)}, {rate:.1f} tokens a second", style="cyan")

    def compared(self, answer: Answer) -> str:
        return f"{len(answer.state.tokens)} tokens, and the neighbours of each"


@knn.command()
@options.command
def perplexity(
    datastore: Path,
    *,
    text: list[Path],
    reading: sources.TextOptions,
    neighbours: NeighbourOptions,
    common: options.CommonOptions,
    weight: list[float] | None = None,
    block: AtLeastTwo = BLOCK,
    stride: options.Count = STRIDE,
) -> None:
    """Measure the perplexity of texts that are not in the datastore.

    Options:
        datastore: The folder of a datastore (see: knn build).
        text: A .txt, .md, .markdown, .rst, .html or .jsonl file, a folder of them, or - for
            stdin; may be repeated.
        weight: The neighbours' share; may be repeated. (default: 0.25)
        block: Tokens of a window.
        stride: Tokens between the starts of windows.
    """
    weights = [Mixing(weight=one).weight for one in weight or (Mixing().weight,)]
    with sources.opened(text) as paths:
        sources.skipped(paths)
        texts = list(stream_texts(paths, text_field=reading.text_field))
    with neighbours.open(datastore, common) as lm, output.bars() as progress:
        task = progress.add_task("reading", total=None)
        found = lm.perplexity(
            texts,
            block=block,
            stride=stride,
            progress=lambda tokens: progress.update(task, completed=tokens),
        )
    mixed = {str(one): _finite(found.perplexity(one)) for one in weights}
    record: dict[str, Any] = {"texts": found.texts, "tokens": found.tokens, "k": neighbours.k}
    record |= {"model": found.model_perplexity, "interpolated": mixed}
    counted = f"{output.plural(found.tokens, 'token')} of {output.plural(found.texts, 'text')}"
    table = output.table(
        "", "perplexity", title=f"{counted}, {output.plural(neighbours.k, 'neighbour')} each"
    )
    table.add_row("model alone", f"{found.model_perplexity:.2f}")
    for one, value in mixed.items():
        table.add_row(f"with weight {one}", "infinite" if value is None else f"{value:.2f}")
    output.report(record, table, common.json)


def _finite(value: float) -> float | None:
    """Return a finite number, or `None` for infinity, which JSON does not support."""
    return value if math.isfinite(value) else None
