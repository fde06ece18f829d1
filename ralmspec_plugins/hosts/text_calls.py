"""What calls of any host's model have in common: their steps, their arguments, how they ended."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.hosts import text_draft
from ralmspec_plugins.hosts.text_draft import TextDraft, Written

Step: TypeAlias = Literal["tokens", "sentence", "stop", "whole"]
Bound: TypeAlias = str | Callable[[int], Mapping[str, Any]]
Continuation: TypeAlias = Literal["assistant"] | Mapping[str, Any]
Bounded: TypeAlias = Callable[[int], Mapping[str, Any]]

_CUT_OFF = frozenset(  # finish reasons of a text that a bound cut off
    {"length", "max_tokens", "max_new_tokens", "max_output_tokens", "model_length", "max_length"}
)
_UNSAID = frozenset({"finish_reason_unspecified", "unspecified", "unknown", "null", ""})


def stated(bound: Bound) -> Bounded:
    """Turn what a user says of a model's bound into the arguments for at most n tokens.

    >>> stated("max_tokens")(4)
    {'max_tokens': 4}
    """
    if isinstance(bound, str):
        name = bound
        return lambda tokens: {name: tokens}
    return bound


def merged(base: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """Lay arguments over others; those that are mappings in both are merged.

    >>> merged({"extra_body": {"top_k": 1}, "seed": 1}, {"extra_body": {"echo": True}})
    {'extra_body': {'top_k': 1, 'echo': True}}
    """
    both = {name: value for name, value in ours.items() if name in base}
    return {
        **ours,
        **{
            name: {**base[name], **value}
            for name, value in both.items()
            if isinstance(value, Mapping) and isinstance(base[name], Mapping)
        },
    }


def came_to_an_end(information: Mapping[str, Any] | None) -> bool | None:
    """Say whether a model ended by itself or at a bound, if what goes with its output says so."""
    for name in ("finish_reason", "stop_reason", "done_reason"):
        reason = (information or {}).get(name)
        if reason is not None:
            said = str(getattr(reason, "name", reason)).lower()
            return None if said in _UNSAID else said not in _CUT_OFF
    return None


def check_step(
    name: str, step: Step, *, bounded: bool, takes_stop: bool, continues: bool, instead: str
) -> None:
    """Refuse a model that cannot write in such steps.

    Args:
        name: of its class.
        step: how far a call is to write.
        bounded: whether it can be told to write at most n tokens.
        takes_stop: whether it can be told where to stop.
        continues: whether it writes on where the text so far ends.
        instead: which arguments make whose models continue, and what else can be done.

    Raises:
        ConfigError: it cannot; the message says what to do.
    """
    if step == "whole":
        return
    if step != "stop" and not bounded:
        raise ConfigError(
            f"It is not known how {name} is told to write at most n tokens. Say so with "
            "bound='max_tokens' (the argument's name, or a function from n to arguments); or "
            "write sentences through a stop string (sentence_stop='.'); or use "
            "workload='one_shot', which needs no bound."
        )
    if step == "stop" and not takes_stop:
        raise ConfigError(
            f"{name} does not stop at stop strings, so sentence_stop cannot be used with "
            "it; leave it out: this model can be told how far to write."
        )
    if not continues:
        raise ConfigError(
            f"It is not known that {name} can continue an assistant message, without which "
            "it cannot write on. If it can, say so with continuation='assistant', or with the "
            f"arguments that it needs {instead}"
        )


def stops(draft: TextDraft, step: Step, sentence_stop: str | None) -> list[str]:
    """Give the stop strings that a call is told of.

    A stop string is passed on where the model takes one: it is cut off by the text
    draft in any case, but a model that knows of it writes no further. A model that
    is to stop behind a sentence is told of nothing else, or it could not be said why
    it stopped.
    """
    if step == "stop":
        assert sentence_stop is not None
        return [sentence_stop]
    return list(draft.origin.stop)


def taken(
    draft: TextDraft, written: Written, step: Step, bound: int, sentence_stop: str | None
) -> TextDraft:
    """Append what a call gave, as its step says."""
    if step == "whole":
        return text_draft.whole(draft, written)
    if step == "stop":
        return text_draft.grown_to_stop(draft, written, sentence_stop or "", bound)
    if step == "sentence":
        return text_draft.grown_by_sentence(draft, written, bound)
    return text_draft.grown(draft, written, bound)
