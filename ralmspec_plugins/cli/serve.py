"""`ralmspec serve`: an OpenAI-compatible server over a saved knowledge base."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from ralmspec_plugins.batching.verifier import Verifier
from ralmspec_plugins.cli import build, options, output
from ralmspec_plugins.config import Settings
from ralmspec_plugins.engine.aio import AsyncEngine
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.lm.prompts import ChatPlace
from ralmspec_plugins.protocols import PoolableRetriever, Workload
from ralmspec_plugins.retrieval.optional import optional
from ralmspec_plugins.serving import ApiKeys, EnginePipeline, Limits
from ralmspec_plugins.speculators.passage_cache import SharedPassageCache

_DEFAULT_TOKENS: Final = 128  # of an answer, where a client sets no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Where a server listens, and what it takes on.

    Options:
        host: The address. Any other than this machine's own needs --keys.
        port: The port; 0 for any free one.
        name: The model's name for clients. (default: the knowledge base's folder)
        keys: A TOML file of API keys (docs/serving.md).
        running: Maximum number of requests answered at the same time.
        waiting: Maximum number of requests that wait for that; others get 429.
        max_tokens: The maximum number of tokens that a client may ask for.
        ignore: A field of OpenAI's API to be accepted without effect; may be repeated.
        drain: How long answers under way may take when the server is stopped.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    name: str | None = None
    keys: Annotated[Path | None, {"metavar": "FILE"}] = None
    running: options.Count = 8
    waiting: Annotated[int, {"min": 0}] = 256
    max_tokens: options.Count = 1024
    ignore: list[str] | None = None
    drain: options.Seconds = 30.0

    def checked_keys(self) -> ApiKeys | None:
        """Return the keys.

        Raises:
            ConfigError: other machines could ask without one.
        """
        from ralmspec_plugins.serving.server import is_loopback

        if self.keys is not None:
            return ApiKeys.read(self.keys)
        if is_loopback(self.host):
            return None
        raise ConfigError(
            f"--host {self.host} can be reached from other machines: give the keys that may ask "
            "with --keys FILE, or listen on 127.0.0.1 behind a proxy that checks who asks"
        )

    def limits(self) -> Limits:
        """Return the limits of requests."""
        return Limits(max_tokens=self.max_tokens, running=self.running, waiting=self.waiting)


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
) -> None:
    """Answer OpenAI's chat completions over a knowledge base, until SIGTERM or Ctrl-C.

    Options:
        workload: Search every few tokens, every sentence, once, or as docs/workloads.md describes.
        temperature: 0 for greedy decoding; above, tokens are sampled.
        plain: Do not speculate.
        template: The text around a question. (default: {prompt}, on a line for the demo's model)
        chat: Use the model's chat template, with the passages in this place.
        drafter: Draft tokens, several of which are read in one pass (see: ralmspec ask).
    """
    for module, package in _NEEDED.items():
        optional(module, "serving", package)
    from ralmspec_plugins.serving import create_app, server

    choosing.check(workload)
    keys, limits, schedule = serving.checked_keys(), serving.limits(), scheduling.settings()
    with server.listen(serving.host, serving.port) as listening:
        with output.notes().status("loading the knowledge base and the model"):
            style = {"temperature": temperature, "template": template, "chat": chat}
            weights = build.Weights(common.model, common.threads, drafter=drafter, **style)
            lm = weights.language_model(options.PLAIN if plain else options.SPECULATIVE)
            steps = searching.workload(lm, workload, **asdict(choosing))
            pipeline = _pipeline(searching, steps, limits, {"speculate": not plain, **schedule})
        name = serving.name or searching.kb.resolve().name
        local = server.is_loopback(serving.host)
        hosts = (*server.LOOPBACK_NAMES, serving.host) if local else None
        ignore = serving.ignore or ()
        app = create_app({name: pipeline}, keys=keys, limits=limits, ignore=ignore, hosts=hosts)
        url = server.address(listening)
        with output.ServerStatus(url, name, common.json) as status:
            server.run(app, listening, limits=limits, drain_s=serving.drain, show=status.show)


_NEEDED: Final = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "prometheus_client": "prometheus-client",
}


def _pipeline(
    searching: build.SearchOptions,
    workload: Workload[Any],
    limits: Limits,
    settings: Mapping[str, Any],
) -> EnginePipeline:
    """Return the pipeline of a knowledge base, whose requests share searches and passages."""
    verifier = Verifier(searching.open(), lanes=getattr(settings["schedule"], "lanes", 1))
    pool = SharedPassageCache() if isinstance(verifier, PoolableRetriever) else None
    all_settings = Settings(prefetch=searching.prefetch, pool=pool, **settings)
    engine = AsyncEngine(workload, verifier, all_settings)
    tokens = min(_DEFAULT_TOKENS, limits.max_tokens)
    return EnginePipeline(engine, max_tokens=tokens, verifier=verifier)
