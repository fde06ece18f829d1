"""Saved knowledge bases on a Ray cluster: `ralmspec serve --ray`, and Ray's config files.

A config file of `serve deploy` or `serve run` names `ralmspec_plugins.cli.cluster:application`.
"""

import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ralmspec_plugins.cli import build, options, output
from ralmspec_plugins.cli.served_engine import Recipe, ServerOptions, default_tokens
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.serving import ray as cluster

_OF_SEARCH: Final = ("encoder", "k", "interval", "query_tokens", "prefetch")
_OF_SERVER: Final = ("keys", "running", "waiting", "max_tokens", "ignore")
_OTHER: Final = (
    *("kb", "name", "model", "threads", "device", "workload", "plain", "retrieval", "engines"),
)


def application(arguments: Mapping[str, Any]) -> Any:
    """Return the application of one knowledge base, for a config file of Ray's.

    Args:
        arguments: `kb`; optionally `name`, `model`, `threads`, `device`, `workload`, `plain`,
            `encoder`, `k`, `interval`, `query_tokens`, `prefetch`, `keys`, `running`, `waiting`,
            `max_tokens` and `ignore`, as `ralmspec serve` has them, and `retrieval` and `engines`,
            options of Ray's for these deployments.

    Raises:
        ConfigError: `kb` is missing, or an argument is unknown.
    """
    known = (*_OF_SEARCH, *_OF_SERVER, *_OTHER)
    unknown = sorted(set(arguments) - set(known))
    if unknown or "kb" not in arguments:
        raise ConfigError(
            f"the arguments must be kb, and others among {', '.join(known)}; "
            f"got {', '.join(sorted(arguments)) or 'none'}"
        )
    kb = Path(arguments["kb"])
    server: dict[str, Any] = {name: arguments[name] for name in _OF_SERVER if name in arguments}
    if "keys" in server:
        server["keys"] = Path(server["keys"])
    recipe = Recipe(
        searching=build.SearchOptions(
            kb=kb, **{name: arguments[name] for name in _OF_SEARCH if name in arguments}
        ),
        common=options.CommonOptions(
            model=arguments.get("model"),
            threads=arguments.get("threads"),
            device=arguments.get("device"),
        ),
        scheduling=options.ScheduleOptions(),
        choosing=options.WorkloadOptions(),
        workload=arguments.get("workload", "interval"),
        plain=arguments.get("plain", False),
    )
    settings = {**ServerOptions(**server).settings(), "hosts": None}  # Ray's proxy listens
    scaling = {name: arguments.get(name) for name in ("retrieval", "engines")}
    return _application({arguments.get("name", kb.resolve().name): recipe}, settings, scaling)


def _application(
    recipes: Mapping[str, Recipe], settings: Mapping[str, Any], scaling: Mapping[str, Any]
) -> Any:
    tokens = default_tokens(settings["limits"].max_tokens)
    models = {
        name: cluster.ClusterModel(
            retriever=recipe.retriever,
            engine=recipe.engine,
            lanes=recipe.lanes,
            max_tokens=tokens,
        )
        for name, recipe in recipes.items()
    }
    return cluster.application(models, **scaling, **settings)


def serve_on_ray(
    recipes: Mapping[str, Recipe],
    host: str,
    port: int,
    settings: Mapping[str, Any],
    *,
    as_json: bool,
) -> None:
    """Serve on the cluster of this machine, or on one that is started, until SIGTERM or Ctrl-C.

    Raises:
        ConfigError: the port is 0, which Ray's proxies cannot share.
        KeyboardInterrupt: it was Ctrl-C.
    """
    import ray
    from ray import serve

    if not port:
        raise ConfigError("--port 0 cannot be used with --ray: every machine's proxy has this port")
    made = _application(recipes, settings, {})
    stopped = threading.Event()
    before = signal.getsignal(signal.SIGTERM)
    try:
        with output.notes().status("starting the replicas"):
            ray.init(ignore_reinit_error=True, log_to_driver=False)
            serve.start(http_options={"host": host, "port": port})
            serve.run(made, route_prefix="/")
        signal.signal(signal.SIGTERM, lambda *_: stopped.set())  # in place of Ray's own
        with output.ServerStatus(f"http://{host}:{port}/v1", ", ".join(recipes), as_json):
            stopped.wait()
    finally:
        serve.shutdown()
        ray.shutdown()
        signal.signal(signal.SIGTERM, before)
