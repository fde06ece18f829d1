"""`ralmspec generate`: continue texts with a local model, behind files that it reads whole."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ralmspec_plugins.cli import build, options, output
from ralmspec_plugins.cli.answers import Printer, ask_all
from ralmspec_plugins.cli.long_context import UNCUT, LongContextOptions
from ralmspec_plugins.config import Settings
from ralmspec_plugins.lm.prompts import ChatPlace
from ralmspec_plugins.protocols import Workload
from ralmspec_plugins.types import Request
from ralmspec_plugins.workloads.one_shot import OneShot


@options.command
def generate(
    prompt: str | None = None,
    *,
    asking: options.QuestionOptions,
    common: options.CommonOptions,
    longer: LongContextOptions,
    encoder: str | None = None,
    template: str | None = None,
    chat: ChatPlace | None = None,
    drafter: options.DrafterName = "none",
    corpus: Path | None = None,
) -> None:
    """Continue a text, or those of a file, without searching.

    Options:
        prompt: The start of the text.
        encoder: rapid: of chunks: hashing, or a sentence-transformers folder or name on the hub.
        template: The text around a prompt. (default: {prompt}, on a line for the demo's model)
        chat: Use the model's chat template, with the files in this place.
        drafter: Draft tokens, several of which are read in one pass: from what is in front of the
            model (suffix, passages, both), from a token corpus as well (corpus), or by a model that
            reads a retrieved part of the files (rapid).
        corpus: The folder that ralmspec draft build made, for --drafter corpus.
    """
    longer.check(drafter, plain=asking.plain)
    options.check_corpus(drafter, corpus)
    style = {"template": template, "chat": chat, "drafter": drafter, "corpus": corpus}
    write_all(longer, asking, common, asking.requests(prompt), encoder, style)


def write_all(
    longer: LongContextOptions,
    asking: options.QuestionOptions,
    common: options.CommonOptions,
    requests: Sequence[Request],
    encoder: str | None,
    style: dict[str, Any],
) -> None:
    """Continue the prompts of requests behind files, in each mode."""
    modes, files = asking.modes(), longer.files()
    if style["drafter"] == "rapid":
        style |= {"decoding": longer.decodings(encoder, common.device), "drafter": "none"}
    model = build.told_model(common.model, files.samples() or [one.prompt for one in requests])
    with output.notes().status("loading the model"):
        weights = build.Weights(
            model,
            common.threads,
            device=common.device,
            temperature=asking.temperature,
            passage_tokens=UNCUT,
            **style,
        )

    def make(mode: str) -> Workload[Any]:
        return OneShot(weights.language_model(mode), query=files.query)

    with build.engines(modes, make, files, Settings()) as opened:
        ask_all(opened, requests, Printer(common.json, many=len(requests) > 1), asking.timeline)
