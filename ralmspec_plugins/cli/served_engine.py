"""What `ralmspec serve` serves and how: its options, and the engine that they make."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

from ralmspec_plugins.batching.verifier import Verifier
from ralmspec_plugins.cli import build, options
from ralmspec_plugins.config import Settings
from ralmspec_plugins.engine.aio import AsyncEngine
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.protocols import Retriever
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

    def settings(self) -> dict[str, Any]:
        """Return the settings of `create_app`.

        Raises:
            ConfigError: other machines could ask without a key.
        """
        from ralmspec_plugins.serving.server import LOOPBACK_NAMES, is_loopback

        limits = Limits(max_tokens=self.max_tokens, running=self.running, waiting=self.waiting)
        hosts = (*LOOPBACK_NAMES, self.host) if is_loopback(self.host) else None
        ignore = tuple(self.ignore or ())
        return {"keys": self.checked_keys(), "limits": limits, "hosts": hosts, "ignore": ignore}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a served engine is made, in this process or in the replicas of a cluster."""

    searching: build.SearchOptions
    scheduling: options.ScheduleOptions
    common: options.CommonOptions
    choosing: options.WorkloadOptions
    workload: str = "interval"
    drafter: options.DrafterName = "none"
    plain: bool = False
    style: Mapping[str, Any] = field(default_factory=dict)  # of the model's prompts and sampling

    def __post_init__(self) -> None:
        """Check the options of the workload and the schedule."""
        self.choosing.check(self.workload)
        self.scheduling.settings()

    @property
    def lanes(self) -> int:
        """The number of searches at the same time."""
        lanes: int = getattr(self.scheduling.settings()["schedule"], "lanes", 1)
        return lanes

    def retriever(self, tenant: str = "") -> Retriever:
        """Open the knowledge base, which is the same for all tenants."""
        return self.searching.open(self.common.device)

    def engine(self, retriever: Retriever) -> AsyncEngine:
        """Load the model; all requests of the engine share one passage cache."""
        model = self.common.model or build.told_model(None, self.searching.samples())
        style = {"device": self.common.device, "drafter": self.drafter, **self.style}
        weights = build.Weights(model, self.common.threads, **style)
        lm = weights.language_model(options.PLAIN if self.plain else options.SPECULATIVE)
        settings = Settings(
            prefetch=self.searching.prefetch,
            pool=SharedPassageCache(),
            speculate=not self.plain,
            **self.scheduling.settings(),
        )
        steps = self.searching.workload(lm, self.workload, **asdict(self.choosing))
        return AsyncEngine(steps, retriever, settings)

    def pipeline(self, max_tokens: int) -> EnginePipeline:
        """Return the pipeline in this process."""
        verifier = Verifier(self.retriever(), lanes=self.lanes)
        tokens = default_tokens(max_tokens)
        return EnginePipeline(self.engine(verifier), max_tokens=tokens, verifier=verifier)


def default_tokens(most: int) -> int:
    """Return the limit of an answer whose client sets none."""
    return min(_DEFAULT_TOKENS, most)
