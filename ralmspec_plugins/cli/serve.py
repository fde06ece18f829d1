"""`ralmspec serve`: an OpenAI-compatible server over a saved knowledge base."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

import typer

from ralmspec_plugins.cli import build, options, output
from ralmspec_plugins.cli.served_engine import Recipe, ServerOptions
from ralmspec_plugins.lm.prompts import ChatPlace
from ralmspec_plugins.retrieval.optional import optional


@options.command
def serve(
    *,
    searching: build.SearchOptions,
    serving: ServerOptions,
    scheduling: options.ScheduleOptions,
    common: options.CommonOptions,
    workload: options.WorkloadOption = "interval",
    choosing: options.WorkloadOptions,
    temperature: Annotated[float, {"min": 0.0}] = 0.0,
    plain: bool = False,
    template: str | None = None,
    chat: ChatPlace | None = None,
    drafter: options.DrafterName = "none",
    corpus: Path | None = None,
    ray: bool = False,
) -> None:
    """Answer OpenAI's chat completions over a knowledge base, until SIGTERM or Ctrl-C.

    Options:
        workload: Search every few tokens, every sentence, once, or as docs/workloads.md describes.
        temperature: 0 for greedy decoding; above, tokens are sampled.
        plain: Do not speculate.
        template: The text around a question. (default: {prompt}, on a line for the demo's model)
        chat: Use the model's chat template, with the passages in this place.
        drafter: Draft tokens, several of which are read in one pass (see: ralmspec ask).
        corpus: The folder that ralmspec draft build made, for --drafter corpus.
        ray: Serve on the Ray cluster of this machine, or start one (docs/serving.md).
    """
    options.check_corpus(drafter, corpus)
    if drafter == "rapid":
        raise typer.BadParameter("--drafter rapid needs --long-context, as of ralmspec ask")
    for module, package in _NEEDED.items():
        optional(module, "serving", package)
    model = build.told_model(common.model, searching.samples())
    recipe = Recipe(
        searching=searching,
        scheduling=scheduling,
        common=replace(common, model=model),
        choosing=choosing,
        workload=workload,
        drafter=drafter,
        plain=plain,
        style={
            "temperature": temperature,
            "template": template,
            "chat": chat,
            "corpus": corpus,
        },
    )
    name = serving.name or searching.folder.resolve().name
    settings = serving.settings()
    if ray:
        from ralmspec_plugins.cli.cluster import serve_on_ray

        serve_on_ray({name: recipe}, serving.host, serving.port, settings, as_json=common.json)
        return
    from ralmspec_plugins.serving import create_app, server

    limits = settings["limits"]
    with server.listen(serving.host, serving.port) as listening:
        with output.notes().status("loading the knowledge base and the model"):
            app = create_app({name: recipe.pipeline(limits.max_tokens)}, **settings)
        with output.ServerStatus(server.address(listening), name, common.json) as status:
            server.run(app, listening, limits=limits, drain_s=serving.drain, show=status.show)


_NEEDED: Final = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "prometheus_client": "prometheus-client",
}
