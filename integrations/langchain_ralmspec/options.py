"""Checks of options when they are given: fields of the runnables, and settings of a call."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from langchain_core.vectorstores import VectorStore
from pydantic import ValidationError

from ralmspec_plugins.arguments import suggestion
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.types import Request


@contextmanager
def checked_fields(kind: type) -> Iterator[None]:
    """Convert pydantic's errors of unknown or wrongly typed fields to a `ConfigError`.

    Raises:
        ConfigError: pydantic has rejected the fields.
    """
    try:
        yield
    except ValidationError as error:
        known: Collection[str] = getattr(kind, "model_fields", {})
        fields: dict[str, list[Any]] = {}
        for one in error.errors(include_url=False):
            fields.setdefault(".".join(map(str, one["loc"][:1])), []).append(one)
        said = [_wrong(name, found, known) for name, found in fields.items()]
        raise ConfigError(f"{kind.__name__}: {'; '.join(said)}") from error


_CLASSES: Final = {"dataclass_type": "class_name", "is_instance_of": "class"}


def _wrong(name: str, found: Sequence[Any], known: Collection[str]) -> str:
    """Return one sentence on the errors of a field: of a union pydantic has one for each member."""
    first = found[0]
    if first["type"] == "extra_forbidden":
        return f"{name} is not an option; {suggestion(name, known)}"
    got = f"got {first['input']!r:.80}{_hint(first['input'])}"
    if all(one["type"] in _CLASSES for one in found):
        classes = [one["ctx"][_CLASSES[one["type"]]] for one in found]
        return f"{name}: it must be an instance of {' or '.join(dict.fromkeys(classes))}, {got}"
    return f"{name}: {'; '.join(dict.fromkeys(one['msg'] for one in found))}, {got}"


def _hint(given: Any) -> str:
    """Return what to do with a value that is often given in place of a retriever."""
    return "; pass its as_retriever()" if isinstance(given, VectorStore) else ""


_OF_STEPS: Final = ("bound", "continuation", "logprobs", "sentence_stop")


def check_has_effect(given: Collection[str], *, direct: bool, one_shot: bool, named: bool) -> None:
    """Check that all settings have an effect.

    Args:
        given: the names of the settings that were given.
        direct: whether a local model is driven by its tokens.
        one_shot: whether one call writes the answer.
        named: whether the workload is a named one: another may read the whole request.

    Raises:
        ConfigError: a setting has none; the message says which, and what to do.
    """
    useless = [name for name in _OF_STEPS if name in given and (direct or one_shot)]
    if useless and direct:
        raise ConfigError(
            f"{', '.join(useless)} cannot be used with direct=True, where the model is driven by "
            "its tokens and not by its own calls: remove this setting"
        )
    if "max_tokens" in given and one_shot and not direct:
        useless.append("max_tokens")
    if useless:
        raise ConfigError(
            f"{', '.join(useless)} cannot be used with workload='one_shot', where the model is "
            "called once, with its own settings: bind the arguments to the model, "
            "llm.bind(...), or use workload='sentences' or 'interval'"
        )
    if "seed" in given and named and not direct:
        raise ConfigError(
            "seed cannot be used without direct=True, where the model's own calls sample: set it "
            "when creating the model, or bind it to the model, llm.bind(...)"
        )


CALL_SETTINGS: Final = ("stop", "max_tokens", "seed", "deadline_s")


def request_with(question: str, context: Any, settings: Mapping[str, Any]) -> Request:
    """Return the request of one call's settings.

    Raises:
        TypeError: a setting has another type.
        ConfigError: a setting is unknown or out of range.
    """
    unknown = [name for name in settings if name not in CALL_SETTINGS]
    if unknown:
        raise ConfigError(
            f"{unknown[0]} is not a setting of a call; {suggestion(unknown[0], CALL_SETTINGS)}. "
            "Bind other arguments of the model to the model: llm.bind(...)"
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
