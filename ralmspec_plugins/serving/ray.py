"""The server on a Ray cluster: the same application over replicas of engines and of indexes.

Three Ray Serve deployments, each scaled alone. `Ingress` is the application of `create_app()`.
`Engines` hold engines with their caches: a tenant's requests are routed to a replica that has
the tenant's. `Retrieval` holds the indexes, each behind a `Verifier`, which merges the searches of
all engines in its replica; knowledge bases are opened where they are asked for.
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from ralmspec_plugins.batching.verifier import Verifier
from ralmspec_plugins.engine.aio import AsyncEngine
from ralmspec_plugins.errors import ConfigError, MissingExtraError
from ralmspec_plugins.protocols import Retriever
from ralmspec_plugins.serving.pipelines import (
    Done,
    EnginePipeline,
    Part,
    Pipeline,
    Question,
)
from ralmspec_plugins.types import Hit, Hits, Passage, Query

try:
    import ray
    from ray import serve
    from ray.exceptions import RayActorError, RayTaskError
except ModuleNotFoundError as missing:
    if missing.name != "ray":
        raise
    raise MissingExtraError("ray", "ray[serve]") from missing

from ralmspec_plugins.serving.app import create_app
from ralmspec_plugins.serving.openai_api import ApiError

_TRIES: Final = 3  # of a search, or of a request that has sent nothing, on replicas that stop
_OPEN: Final = 64  # knowledge bases in a replica; the least recently used is closed
_SCALING: Final = ("num_replicas", "autoscaling_config")
_GENERATIONS: Final = "ralmspec-generations"

Options: TypeAlias = Mapping[str, Any]

# Ray starts with 5 requests for each replica, fewer than one merged search.
RETRIEVAL: Final[Options] = {
    "num_replicas": 1,
    "max_ongoing_requests": 512,
    "ray_actor_options": {"num_cpus": 1},
}
ENGINES: Final[Options] = {
    "max_ongoing_requests": 64,
    "autoscaling_config": {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 16},
    "ray_actor_options": {"num_cpus": 1},
}
INGRESS: Final[Options] = {
    "num_replicas": 1,
    "max_ongoing_requests": 1024,
    "ray_actor_options": {"num_cpus": 0},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterModel:
    """A model of a cluster; its functions are called in the replicas, and must be picklable.

    `retriever` is called with the tenant ("" for a model that is the same for all) where its
    searches are made, and `engine` with the retriever where its requests are answered. Each
    tenant is searched, and cached, apart from all others.
    """

    retriever: Callable[[str], Retriever]
    engine: Callable[[Retriever], AsyncEngine]
    tenants: frozenset[str] | None = None
    lanes: int = 1  # searches of a replica at the same time
    max_tokens: int = 128  # of an answer whose client sets no limit


def application(
    models: Mapping[str, ClusterModel],
    *,
    retrieval: Options | None = None,
    engines: Options | None = None,
    ingress: Options | None = None,
    **settings: Any,
) -> Any:
    """Return the application for `ray.serve.run`.

    Args:
        models: by the names that clients use.
        retrieval: options of Ray's `deployment.options` in place of those in `RETRIEVAL`.
        engines: the same in place of those in `ENGINES`.
        ingress: the same in place of those in `INGRESS`.
        settings: those of `create_app`.

    Raises:
        ConfigError: there is no model, or one is no `ClusterModel`.
    """
    for name, model in models.items():
        if not isinstance(model, ClusterModel):
            raise ConfigError(f"{name!r} must be a ClusterModel(...), got {model!r:.200}")
    create_app({name: _NoPipeline() for name in models}, **settings)  # raises errors early
    made = dict(models)
    searching = _deployment(_Retrieval, "Retrieval", RETRIEVAL, retrieval).bind(made)
    answering = _deployment(_Engines, "Engines", ENGINES, engines)
    fronting = _deployment(serve.ingress()(_Ingress), "Ingress", INGRESS, ingress)
    return fronting.bind(made, answering.bind(made, searching), settings)


def _deployment(kind: type, name: str, defaults: Options, own: Options | None) -> Any:
    """Return a deployment with a user's options in place of the defaults."""
    given = own or {}
    kept = {name: value for name, value in defaults.items() if name not in _SCALING}
    if not any(name in given for name in _SCALING):  # of which Ray takes only one
        kept = dict(defaults)
    return serve.deployment(kind).options(name=name, **{**kept, **given})


def _key(model: str, tenant: str) -> str:
    return f"{model}\n{tenant}"  # a header has no line break, so no tenant is another model's


# Searches.


@dataclass(frozen=True, slots=True)
class _About:
    """What an engine has to know of a retriever in another process."""

    k: int | None
    wide: bool
    pure: bool


class _Retrieval:
    """The indexes of one replica."""

    def __init__(self, models: Mapping[str, ClusterModel]) -> None:
        self._models = models
        self._lanes: dict[str, Verifier] = {}

    @serve.multiplexed(max_num_models_per_replica=_OPEN)  # type: ignore[untyped-decorator]
    async def _open(self, key: str) -> Verifier:
        name, _, tenant = key.partition("\n")
        model = self._models[name]
        retriever = await asyncio.to_thread(model.retriever, tenant)
        if name not in self._lanes:
            self._lanes[name] = Verifier(retriever, lanes=model.lanes)
        return self._lanes[name].beside(retriever)

    async def about(self, key: str) -> _About:
        verifier: Any = await self._open(key)
        k = getattr(verifier.retriever, "k", None)
        wide = k is not None and hasattr(verifier, "asearch_wide")
        return _About(k, wide, getattr(verifier.retriever, "pure", True))

    async def encode(self, key: str, text: str) -> Query:
        verifier: Any = await self._open(key)
        own = verifier.retriever
        if hasattr(own, "aencode"):
            found: Query = await own.aencode(text)
            return found
        return await asyncio.to_thread(own.encode, text)

    async def search(self, key: str, queries: Sequence[Query], width: int | None) -> list[Hits]:
        verifier: Any = await self._open(key)
        if width is None:
            found = await verifier.asearch(queries)
        else:
            found = await verifier.asearch_wide(queries, width)
        return [tuple(map(_plain, hits)) for hits in found]


def _plain(hit: Hit) -> Hit:
    """Return a hit without what only its own process understands."""
    passage = hit.passage
    values = (passage.id, passage.text, passage.title, dict(passage.metadata))
    return Hit(Passage(*values), hit.score)


class RemoteRetriever:
    """A retriever in the replicas of `Retrieval`, for an `AsyncEngine`.

    A search whose replica stops is made again by another one: searches have no side effects.
    """

    encode_lanes = 8

    def __init__(self, handle: Any, key: str, about: _About) -> None:
        """Search with this handle."""
        self._handle = handle.options(multiplexed_model_id=key)
        self._key = key
        self.pure = about.pure
        self.signature = ("cluster", key)  # of a model and a tenant
        if about.k is not None:
            self.k = about.k
        if about.wide:
            self.asearch_wide = self._asearch_wide

    async def aencode(self, text: str) -> Query:
        """Return the query of a text."""
        found: Query = await _again(lambda: self._handle.encode.remote(self._key, text))
        return found

    async def asearch(self, queries: Sequence[Query]) -> list[Hits]:
        """Return the best passages of each query."""
        return await self._search(queries, None)

    async def _asearch_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        return await self._search(queries, width)

    async def _search(self, queries: Sequence[Query], width: int | None) -> list[Hits]:
        asked = list(queries)
        found: list[Hits] = await _again(
            lambda: self._handle.search.remote(self._key, asked, width)
        )
        return found

    def encode(self, text: str) -> Query:
        """Raise an error, as `search` does.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(_ASYNCHRONOUS)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """Raise an error: only an `AsyncEngine` can wait for another process.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(_ASYNCHRONOUS)


_ASYNCHRONOUS: Final = "a retriever of a cluster is asynchronous: use an AsyncEngine"


async def _again(call: Callable[[], Awaitable[Any]]) -> Any:
    """Return the result of a remote call; it is made again if its replica stops.

    Raises:
        Exception: what the call raised in its replica.
    """
    for left in reversed(range(_TRIES)):
        try:
            return await call()
        except RayTaskError as error:
            raise _cause(error) from None
        except RayActorError:
            if not left:
                raise
    raise AssertionError


def _cause(error: RayTaskError) -> BaseException:
    """Return what was raised in the other process, whose traceback is in that process's log."""
    cause: BaseException = error.cause
    return cause if isinstance(cause, Exception) else RuntimeError(repr(cause))


# Answers.


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class _Generations:
    """The generation of each model's caches: a text that changes when they are invalidated."""

    def __init__(self) -> None:
        self._first = uuid.uuid4().hex
        self._of: dict[str, str] = {}

    def current(self, model: str) -> str:
        return self._of.get(model, self._first)

    def invalidate(self, model: str) -> None:
        self._of[model] = uuid.uuid4().hex


def _generations() -> Any:
    kind: Any = _Generations
    return kind.options(
        name=_GENERATIONS, namespace="ralmspec", get_if_exists=True, lifetime="detached"
    ).remote()


class _Engines:
    """The engines of one replica, one for each model and tenant that was needed here."""

    def __init__(self, models: Mapping[str, ClusterModel], retrieval: Any) -> None:
        self._models = models
        self._retrieval = retrieval
        self._generations = _generations()
        self._seen: dict[str, str] = {}

    @serve.multiplexed(max_num_models_per_replica=_OPEN)  # type: ignore[untyped-decorator]
    async def _pipeline(self, key: str) -> EnginePipeline:
        model = self._models[key.partition("\n")[0]]
        handle = self._retrieval.options(multiplexed_model_id=key)
        about = await _again(lambda: handle.about.remote(key))
        retriever = RemoteRetriever(self._retrieval, key, about)
        engine = await asyncio.to_thread(model.engine, retriever)
        return EnginePipeline(engine, max_tokens=model.max_tokens)

    async def ask(self, key: str, question: Question) -> AsyncGenerator[Part, None]:
        pipeline = await self._pipeline(key)
        await self._follow(key, pipeline)
        try:
            async with aclosing(pipeline.ask(question)) as parts:
                async for part in parts:
                    yield _sent(part)
        except (SystemExit, KeyboardInterrupt) as error:  # would end the replica, with all others
            raise RuntimeError(f"a part of the request raised {error!r}") from None

    async def _follow(self, key: str, pipeline: EnginePipeline) -> None:
        """Discard what was cached before the model's last invalidation."""
        current = await self._generations.current.remote(key.partition("\n")[0])
        if self._seen.setdefault(key, current) != current:
            self._seen[key] = current
            pipeline.invalidate()


def _sent(part: Part) -> Part:
    """Return a part without its timeline, which no client sees."""
    if isinstance(part, Done) and part.stats is not None:
        return replace(part, stats=replace(part.stats, timeline=()))
    return part


class ClusterPipeline:
    """The pipeline of a model whose engines are in other processes.

    A request whose replica stops is asked again, if none of its text has been sent; else it fails:
    another replica's text might continue it otherwise.
    """

    def __init__(self, name: str, model: ClusterModel, handle: Any) -> None:
        """Answer with the engines of this handle."""
        self._name = name
        self._handle = handle
        if model.tenants is not None:
            self.tenants = model.tenants

    async def ask(self, question: Question) -> AsyncGenerator[Part, None]:
        """Yield the answer of a replica.

        Raises:
            ApiError: the replica has stopped.
        """
        for _ in range(_TRIES):
            began = False
            try:
                async with aclosing(self._asked(question)) as parts:
                    async for part in parts:
                        yield part
                        began = True
                return
            except RayActorError:
                if began:
                    break
        message = "a part of the cluster stopped during this request: send it again"
        raise ApiError(503, message, "server_error", "replica_stopped")

    async def _asked(self, question: Question) -> AsyncGenerator[Part, None]:
        key = _key(self._name, question.tenant)
        handle = self._handle.options(stream=True, multiplexed_model_id=key)
        response = handle.ask.remote(key, question)
        complete = False
        try:
            async for part in response:
                yield part
            complete = True
        except RayTaskError as error:
            complete = True
            raise _cause(error) from None
        finally:
            if not complete:
                response.cancel()

    def invalidate(self) -> None:
        """Make every replica discard what it has cached, before its next answer."""
        ray.get(_generations().invalidate.remote(self._name))

    async def close(self) -> None:
        """Do nothing: the replicas are Ray's."""


class _Ingress:
    """The application in a replica."""

    def __init__(
        self, models: Mapping[str, ClusterModel], engines: Any, settings: Mapping[str, Any]
    ) -> None:
        self._models = models
        self._engines = engines
        self._settings = settings

    def __serve_build_asgi_app__(self) -> Any:
        pipelines: dict[str, Pipeline] = {
            name: ClusterPipeline(name, model, self._engines)
            for name, model in self._models.items()
        }
        return create_app(pipelines, **self._settings)


class _NoPipeline:
    """Stands for a pipeline while settings are checked."""

    def ask(self, question: Question) -> AsyncGenerator[Part, None]:
        raise AssertionError

    def invalidate(self) -> None:
        raise AssertionError

    async def close(self) -> None:
        raise AssertionError


__all__ = ["ENGINES", "INGRESS", "RETRIEVAL", "ClusterModel", "application"]
