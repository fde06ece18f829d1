"""The application: OpenAI's chat completions over speculative pipelines."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, create_model
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ralmspec_plugins.errors import ConfigError, RalmSpecError
from ralmspec_plugins.serving.answering import AnswerResponse, ApiErrorResponse, Service
from ralmspec_plugins.serving.errors import api_error
from ralmspec_plugins.serving.guard import CALLER, REQUEST_ID, Guard
from ralmspec_plugins.serving.keys import ApiKeys, Caller
from ralmspec_plugins.serving.limits import Admission, Limits
from ralmspec_plugins.serving.metrics import Metrics
from ralmspec_plugins.serving.openai_api import (
    ApiError,
    ChatRequest,
    QuestionOf,
    json_bytes,
    only_question,
    question_in,
)
from ralmspec_plugins.serving.pipelines import Pipeline, pipeline_of
from ralmspec_plugins.serving.tenants import TENANT_HEADER, tenant_of

_JSON: Final = "application/json"


class InvalidateRequest(BaseModel):
    """Which model's caches to discard."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: Annotated[str, Field(min_length=1)]


def create_app(
    pipelines: Mapping[str, Any],
    *,
    keys: ApiKeys | None = None,
    limits: Limits | None = None,
    question_of: QuestionOf = only_question,
    ignore: Iterable[str] = (),
    hosts: Iterable[str] | None = None,
    tenant_header: str = TENANT_HEADER,
) -> FastAPI:
    """Return an ASGI application that answers OpenAI's chat completions.

    Args:
        pipelines: what answers, by the name that clients give as `model`: an `Engine`, an
            `AsyncEngine`, a `SpeculativeRAG`, a `SpeculativeQueryEngine`, or a `Pipeline`.
        keys: the keys of clients. `None`: any client that reaches the server may ask, and none
            may invalidate caches.
        limits: of requests, and of all requests together.
        question_of: returns the question in a conversation: `only_question` refuses what is more
            than one question, `dialogue` makes one text of all messages.
        ignore: fields of OpenAI's API to be accepted without effect, such as "temperature", for
            clients that always send them. All other unknown fields are refused.
        hosts: the host names that clients may use, against pages that resolve their own name to
            this server. `None`: any.
        tenant_header: the header that names the tenant.

    Raises:
        ConfigError: there is no pipeline, one is none, or an ignored field has an effect.
    """
    served = {_checked_name(name): pipeline_of(one) for name, one in pipelines.items()}
    if not served:
        raise ConfigError("there must be at least one pipeline")
    limits = limits or Limits()
    admission = Admission(limits)
    service = Service(limits, admission, Metrics(served, admission))
    app = FastAPI(
        title="ralmspec",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # it would go to any host that a request names, and to http
        lifespan=_lifespan(service, served),
    )
    routes = _Routes(service, served, keys, question_of, tenant_header)
    _add_routes(app, routes, _request_model(ignore))
    _add_error_handlers(app, limits)
    app.add_middleware(Guard, limits=limits, keys=keys, hosts=hosts)
    app.state.admission = admission
    return app


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or not name or not name.isprintable():
        raise ConfigError(
            f"a model's name must be a text of printable characters, not empty, got {name!r}"
        )
    return name


def _request_model(ignore: Iterable[str]) -> type[ChatRequest]:
    """Return the form of requests, with fields that have no effect."""
    names = [ignore] if isinstance(ignore, str) else list(ignore)
    used = sorted(set(names) & ChatRequest.model_fields.keys())
    if used:
        raise ConfigError(f"{', '.join(used)} cannot be ignored: this server applies it")
    fields: dict[str, Any] = dict.fromkeys(names, (Any, None))
    return create_model("ChatRequest", __base__=ChatRequest, **fields)


def _lifespan(service: Service, served: Mapping[str, Pipeline]) -> Any:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(service.metrics.watch_loop())
        try:
            yield
        finally:
            watching.cancel()
            for pipeline in served.values():
                await pipeline.close()

    return lifespan


class _Routes:
    """What each path answers."""

    def __init__(
        self,
        service: Service,
        served: Mapping[str, Pipeline],
        keys: ApiKeys | None,
        question_of: QuestionOf,
        tenant_header: str,
    ) -> None:
        self._service = service
        self._served = served
        self._keys = keys
        self._question_of = question_of
        self._tenant_header = tenant_header
        self._since = int(time.time())

    async def chat(self, asked: ChatRequest, request: Request) -> Response:
        """Answer a question."""
        pipeline = self._pipeline(asked.model)
        caller: Caller = request.scope[CALLER]
        named = request.headers.getlist(self._tenant_header)
        tenant = tenant_of(named, caller, pipeline, self._tenant_header)
        question = question_in(
            asked,
            tenant,
            question_of=self._question_of,
            max_tokens=self._service.limits.max_tokens,
        )
        return AnswerResponse(
            self._service,
            pipeline,
            question,
            asked,
            account=f"tenant {tenant}" if tenant else f"key {caller.name}",
            request_id=request.scope[REQUEST_ID],
        )

    async def models(self) -> Response:
        """List the models."""
        data = [self._model(name) for name in self._served]
        return _json({"object": "list", "data": data})

    async def model(self, name: str) -> Response:
        """Describe one model."""
        self._pipeline(name)
        return _json(self._model(name))

    async def invalidate(self, asked: InvalidateRequest, request: Request) -> Response:
        """Discard what a model has cached."""
        self._check_admin(request)
        await asyncio.to_thread(self._pipeline(asked.model).invalidate)
        return _json({"model": asked.model, "invalidated": True})

    async def health(self) -> Response:
        """Return that the server runs."""
        return _json({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        """Return all metrics."""
        if self._keys is not None:
            self._check_admin(request)
        return Response(self._service.metrics.text(), media_type="text/plain; version=0.0.4")

    def _check_admin(self, request: Request) -> None:
        if self._keys is None:
            raise ApiError(403, "this needs a server with API keys", "permission_error")
        if not request.scope[CALLER].admin:
            raise ApiError(403, "this needs a key with admin = true", "permission_error")

    def _pipeline(self, name: str) -> Pipeline:
        if name not in self._served:
            message = f"there is no model {name!r:.200} here; GET /v1/models lists them"
            raise ApiError(404, message, code="model_not_found", param="model")
        return self._served[name]

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._since, "owned_by": "ralmspec"}


def _json(value: Mapping[str, Any]) -> Response:
    return Response(json_bytes(value), media_type=_JSON)


def _add_routes(app: FastAPI, routes: _Routes, request_model: type[ChatRequest]) -> None:
    async def chat(asked: Any, request: Request) -> Response:
        """Answer a question, whole or as server-sent events."""
        return await routes.chat(asked, request)

    chat.__annotations__["asked"] = request_model  # FastAPI checks and documents by it
    raw: dict[str, Any] = {"response_class": Response, "responses": _DOCUMENTED}
    app.post("/v1/chat/completions", **raw)(chat)
    app.post("/v1/ralmspec/invalidate", **raw)(routes.invalidate)
    app.get("/v1/models", **raw)(routes.models)
    app.get("/v1/models/{name:path}", **raw)(routes.model)
    app.get("/healthz", **raw)(routes.health)
    app.get("/metrics", **raw)(routes.metrics)


_ERROR: Final = {"description": "An error, in OpenAI's envelope.", "content": {_JSON: {}}}
_DOCUMENTED: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "The answer."},
    **dict.fromkeys((400, 401, 403, 404, 405, 408, 413, 421, 429, 431, 500, 503, 504), _ERROR),
}


def _add_error_handlers(app: FastAPI, limits: Limits) -> None:
    """Put all errors into OpenAI's envelope."""

    async def known(request: Request, error: Exception) -> Response:
        return ApiErrorResponse(api_error(error, request.scope[REQUEST_ID], limits))

    async def of_form(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return ApiErrorResponse(_form_error(error))

    async def of_http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        return ApiErrorResponse(ApiError(error.status_code, str(error.detail), headers=headers))

    app.add_exception_handler(Exception, known)
    app.add_exception_handler(ApiError, known)
    app.add_exception_handler(RalmSpecError, known)
    app.add_exception_handler(RequestValidationError, of_form)
    app.add_exception_handler(HTTPException, of_http)


def _form_error(error: RequestValidationError) -> ApiError:
    """Return what is wrong with a request's form. What the client sent is not repeated."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body") or "the body"
    if first["type"] == "extra_forbidden":
        message = f"{place} has no effect here, so it is refused: leave it out"
    elif first["type"] == "json_invalid":
        place = "the body"
        message = "the body is not valid JSON"
    elif place == "the body" and first["type"] != "value_error":  # of a model that read it
        message = "the body must be a JSON object, sent with Content-Type: application/json"
    elif first["type"] == "value_error":
        message = f"{place}: {first['ctx']['error']}"
    else:
        message = f"{place}: {first['msg']}"
    return ApiError(400, message, param=place)
