"""Options that are refused when they are given: fields of the runnables, and settings of a call."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from ralmspec_plugins.adapters.arguments import suggestion
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.types import Request


@contextmanager
def checked_fields(kind: type) -> Iterator[None]:
    """Have a field of another type, or an unknown one, be a `ConfigError` that says which.

    Raises:
        ConfigError: pydantic has refused the fields.
    """
    try:
        yield
    except ValidationError as error:
        known: Collection[str] = getattr(kind, "model_fields", {})
        said = [
            f"{'.'.join(map(str, one['loc'][:1]))}: {one['msg']}, got {one['input']!r:.80}"
            if one["type"] != "extra_forbidden"
            else f"{one['loc'][0]} is no option of it; {suggestion(str(one['loc'][0]), known)}"
            for one in error.errors(include_url=False)
        ]
        raise ConfigError(f"{kind.__name__}: {'; '.join(dict.fromkeys(said))}") from error


CALL_SETTINGS = ("stop", "max_tokens", "seed", "deadline_s")


def request_with(question: str, context: Any, settings: Mapping[str, Any]) -> Request:
    """Make a request of the settings of one call.

    Raises:
        TypeError: a setting of another type.
        ConfigError: an unknown one, or one without a meaning.
    """
    unknown = [name for name in settings if name not in CALL_SETTINGS]
    if unknown:
        raise ConfigError(
            f"unknown settings {unknown} of a call; {suggestion(unknown[0], CALL_SETTINGS)}. "
            "What the model is to be called with is bound to the model: llm.bind(...)"
        )
    stop = settings["stop"] or ()
    stop = (stop,) if isinstance(stop, str) else stop
    if not isinstance(stop, list | tuple) or not all(isinstance(one, str) for one in stop):
        raise TypeError(f"stop must be a text or a list of texts, got {stop!r}")
    for name in ("max_tokens", "seed"):
        if type(settings[name]) is not int:
            raise TypeError(f"{name} must be an integer, got {settings[name]!r}")
    deadline_s = settings["deadline_s"]
    if type(deadline_s) not in (int, float, type(None)):
        raise TypeError(f"deadline_s must be a number of seconds or None, got {deadline_s!r}")
    return Request(
        prompt=question,
        context=context,
        stop=tuple(stop),
        max_tokens=settings["max_tokens"],
        seed=settings["seed"],
        deadline_s=deadline_s,
    )
