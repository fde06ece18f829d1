"""Which tenant a request belongs to."""

from collections.abc import Sequence
from typing import Final

from ralmspec_plugins.serving.keys import Caller
from ralmspec_plugins.serving.openai_api import ApiError
from ralmspec_plugins.serving.pipelines import Pipeline

TENANT_HEADER: Final = "X-RalmSpec-Tenant"


def tenant_of(named: Sequence[str], caller: Caller, pipeline: Pipeline, header: str) -> str:
    """Return the tenant of a request, "" for a model that is the same for all.

    Args:
        named: the values of the tenant's header.
        caller: who asks.
        pipeline: what is to answer; its `tenants`, if it has any, are those that it knows.
        header: the name of the header, for the error message.

    Raises:
        ApiError: there is none, more than one, or one that the caller or the model does not have.
    """
    if len(named) > 1:
        raise ApiError(400, f"{header} was given more than once")
    name = named[0].strip(" \t") if named else ""
    known: frozenset[str] | None = getattr(pipeline, "tenants", None)
    if known is None:
        if name:
            raise ApiError(400, f"this model is the same for all tenants: leave {header} out")
        return ""
    if not name and caller.tenants:
        name = caller.tenants[0]
    if not name:
        raise ApiError(400, f"this model has tenants: name yours in the header {header}")
    if name not in known or (caller.tenants is not None and name not in caller.tenants):
        raise ApiError(403, "this key may not ask for this tenant", "permission_error")
    return name
