"""An OpenAI-compatible server over speculative pipelines (extra `serving`).

`create_app()` returns an ASGI application for any server; `ralmspec serve` runs it with uvicorn,
and `ralmspec_plugins.serving.ray` on a Ray cluster. It is imported on first access, since it needs
the extra; pipelines need none.
"""

from typing import TYPE_CHECKING, Any

from ralmspec_plugins.errors import MissingExtraError
from ralmspec_plugins.serving.keys import ApiKeys
from ralmspec_plugins.serving.limits import Limits
from ralmspec_plugins.serving.pipelines import (
    Done,
    EnginePipeline,
    PerTenant,
    Pipeline,
    Question,
    Source,
    Text,
    TokenUsage,
)

if TYPE_CHECKING:
    from ralmspec_plugins.serving.app import create_app as create_app
    from ralmspec_plugins.serving.openai_api import dialogue as dialogue
    from ralmspec_plugins.serving.openai_api import only_question as only_question

__all__ = [
    "ApiKeys",
    "Done",
    "EnginePipeline",
    "Limits",
    "PerTenant",
    "Pipeline",
    "Question",
    "Source",
    "Text",
    "TokenUsage",
    "create_app",
    "dialogue",
    "only_question",
]

_OF_EXTRA = {"create_app": "app", "dialogue": "openai_api", "only_question": "openai_api"}


def __getattr__(name: str) -> Any:
    """Import what needs the extra `serving` on first access."""
    if name not in _OF_EXTRA:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    try:
        module = import_module(f"ralmspec_plugins.serving.{_OF_EXTRA[name]}")
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "prometheus_client", "pydantic", "starlette"):
            raise
        raise MissingExtraError("serving", error.name) from error
    return getattr(module, name)
