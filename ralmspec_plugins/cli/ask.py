"""`ralmspec ask`: answer questions over a saved knowledge base."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Literal

from ralmspec_plugins.cli import build, options, output
from ralmspec_plugins.cli.answers import Printer, ask_all
from ralmspec_plugins.cli.generate import write_all
from ralmspec_plugins.cli.long_context import LongContextOptions
from ralmspec_plugins.config import Settings
from ralmspec_plugins.lm.prompts import ChatPlace
from ralmspec_plugins.protocols import Workload

_SEARCHING: Final = {"workload": "interval", "capacity": 1000, "eviction": "lru"}


@options.command
def ask(
    question: str | None = None,
    *,
    searching: build.SearchOptions,
    asking: options.QuestionOptions,
    scheduling: options.ScheduleOptions,
    common: options.CommonOptions,
    workload: options.WorkloadOption = "interval",
    choosing: options.WorkloadOptions,
    capacity: options.Count = 1000,
    eviction: Literal["lru", "lfu", "fifo"] = "lru",
    template: str | None = None,
    chat: ChatPlace | None = None,
    drafter: options.DrafterName = "none",
    corpus: Path | None = None,
    longer: LongContextOptions,
) -> None:
    """Answer one question, or those of a file, and stream the text.

    With --long-context in place of --kb the model reads files whole, and nothing is searched.

    Options:
        question: The question, or the start of a text.
        workload: Search every few tokens, every sentence, once, or as docs/workloads.md describes.
        capacity: Maximum number of passages in the passage cache.
        eviction: Eviction policy of the passage cache.
        template: The text around a question. (default: {prompt}, on a line for the demo's model)
        chat: Use the model's chat template, with the passages in this place.
        drafter: Draft tokens, several of which are read in one pass: from what is in front of the
            model (suffix), from passages that were there earlier (passages), from both, from a
            token corpus as well (corpus), or by a model that reads a retrieved part of a long
            context (rapid).
        corpus: The folder that ralmspec draft build made, for --drafter corpus.
    """
    longer.check(drafter, plain=asking.plain)
    options.check_corpus(drafter, corpus)
    choosing.check(workload)
    modes, requests = asking.modes(), asking.requests(question)
    if longer.long_context:
        values = {"workload": workload, "capacity": capacity, "eviction": eviction}
        given = [options.option(name) for name in values if values[name] != _SEARCHING[name]]
        searching.check_unused(*given, *options.changed(scheduling))
        style = {"template": template, "chat": chat, "drafter": drafter, "corpus": corpus}
        write_all(longer, asking, common, requests, searching.encoder, style)
        return
    settings = Settings(
        prefetch=searching.prefetch, capacity=capacity, eviction=eviction, **scheduling.settings()
    )
    store = searching.open(common.device)
    model = build.told_model(common.model, searching.samples())
    with output.notes().status("loading the model"):
        weights = build.Weights(
            model,
            common.threads,
            device=common.device,
            temperature=asking.temperature,
            template=template,
            chat=chat,
            drafter=drafter,
            corpus=corpus,
        )

    def make(mode: str) -> Workload[Any]:
        return searching.workload(weights.language_model(mode), workload, **asdict(choosing))

    with build.engines(modes, make, store, settings) as opened:
        printer = Printer(common.json, many=len(requests) > 1)
        ask_all(opened, requests, printer, asking.timeline, build.added(searching.latency))
