"""Errors as clients see them: what they can do, and nothing of the inside."""

import logging
from typing import Final

from ralmspec_plugins.errors import (
    Closed,
    ConfigError,
    ContextOverflowError,
    DeadlineExceeded,
    InputError,
    Overloaded,
)
from ralmspec_plugins.serving.limits import Limits
from ralmspec_plugins.serving.openai_api import ApiError

_log = logging.getLogger(__name__)
_OVERLOADED: Final = "rate_limit_exceeded"


def api_error(error: Exception, request_id: str, limits: Limits) -> ApiError:
    """Return an error as clients see it; one that they did not cause is logged."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextOverflowError):
        return ApiError(400, str(error), code="context_length_exceeded")
    if isinstance(error, InputError | ConfigError):
        return ApiError(400, str(error))
    if isinstance(error, Overloaded):
        again = {"Retry-After": str(limits.retry_after_s)}
        return ApiError(429, str(error), "rate_limit_error", _OVERLOADED, headers=again)
    if isinstance(error, DeadlineExceeded):
        return ApiError(504, str(error), "timeout_error", "deadline_exceeded")
    if isinstance(error, Closed):
        return ApiError(503, "the server is shutting down", "server_error", "shutting_down")
    _log.error("request %s failed", request_id, exc_info=error)
    message = f"the request failed inside of the server, whose log has it as {request_id}"
    return ApiError(500, message, "server_error", "internal_error")
