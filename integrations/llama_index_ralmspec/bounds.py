"""Tells a LlamaIndex model how far to write and where to stop.

Few models heed the arguments of a call. Some overrule them by their own settings,
others know their settings alone: these are called through a copy with settings of
its own, which shares everything else, the connections to a server included.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any, Final

from llama_index.core.llms import LLM

from ralmspec_plugins.adapters.text_model import Bound, Bounded, merged, stated

# Fields that bound the output, where the call takes an argument of the same name.
_FIELDS: Final = (
    "max_tokens",
    "max_new_tokens",
    "max_output_tokens",
    "max_tokens_to_sample",
    "num_predict",
)
_OPENAI: Final = "llama_index.llms.openai.base.OpenAI"
_OPENAI_BOUNDS: Final = ("max_tokens", "max_completion_tokens")


@dataclass(frozen=True, slots=True)
class Way:
    """How a class of models is told of its bound and of stop strings.

    Args:
        setting: the model's own setting that is the bound.
        arguments: from the bound to further arguments.
        place: the setting that holds the arguments; `None` for the call itself.
        stop: the argument that takes stop strings; `None` where there is none.
        instead: what such arguments are in place of, where they are settings.
        clients: what makes the connection to a server, and the asynchronous one, when
            they are first needed.
    """

    setting: str | None = None
    arguments: Bounded | None = None
    place: str | None = None
    stop: str | None = "stop"
    instead: Sequence[str] = ()
    clients: tuple[str, str] | None = None

    @property
    def bounds(self) -> bool:
        """Whether there is any way to tell the bound."""
        return self.setting is not None or self.arguments is not None


_WAYS: Final[Mapping[str, Way]] = {
    _OPENAI: Way(
        "max_tokens",
        place="additional_kwargs",
        instead=_OPENAI_BOUNDS,
        clients=("_get_client", "_get_aclient"),
    ),
    "llama_index.llms.huggingface.base.HuggingFaceLLM": Way("max_new_tokens", stop=None),
    "llama_index.core.llms.mock.MockLLM": Way("max_tokens", stop=None),
    "llama_index.llms.llama_cpp.base.LlamaCPP": Way(
        arguments=stated("max_tokens"), place="generate_kwargs"
    ),
    "llama_index.llms.ollama.base.Ollama": Way(
        arguments=stated("num_predict"),
        place="additional_kwargs",
        clients=("client", "async_client"),
    ),
    "llama_index.llms.anthropic.base.Anthropic": Way(
        arguments=stated("max_tokens"), stop="stop_sequences"
    ),
    "llama_index.llms.vllm.base.Vllm": Way(arguments=stated("max_tokens")),
}


def way_of(llm: LLM, names: frozenset[str], bound: Bound | None) -> Way:
    """Say how a model is told, by its class or by what the user says of its bound."""
    way = next((_WAYS[name] for name in _WAYS if name in names), None)
    if way is None:
        fields = type(llm).model_fields
        known = next((name for name in _FIELDS if name in fields), None)
        way = Way(arguments=None if known is None else stated(known))
    if bound is None or bound == way.setting:
        return way
    return replace(way, setting=None, arguments=stated(bound))


def told(
    llm: LLM,
    way: Way,
    *,
    tokens: int | None = None,
    stop: Sequence[str] = (),
    further: Mapping[str, Any] | None = None,
    asynchronous: bool = False,
) -> tuple[LLM, dict[str, Any]]:
    """Give the model to call, and the arguments of the call.

    Args:
        llm: the model as the user has it.
        way: how it is told.
        tokens: the bound, if there is one.
        stop: stop strings, passed on where the model takes any.
        further: arguments besides, as for a message that is continued.
        asynchronous: whether the call is to be awaited.
    """
    arguments: dict[str, Any] = {}
    if tokens is not None and way.arguments is not None:
        arguments.update(way.arguments(tokens))
    if stop and way.stop is not None:
        arguments[way.stop] = list(stop)
    arguments = {**arguments, **merged(arguments, further or {})}
    settings: dict[str, Any] = {}
    if tokens is not None and way.setting is not None:
        settings[way.setting] = tokens
    if way.place is not None:
        settings.update(_placed(llm, way, arguments, bounded=tokens is not None))
        arguments = {}
    own = {name: value for name, value in settings.items() if getattr(llm, name) != value}
    if not own:
        return llm, arguments
    if way.clients is not None and getattr(llm, "reuse_client", True):
        _connect(llm, way.clients[asynchronous])
    return llm.model_copy(update=own), arguments


def _placed(llm: LLM, way: Way, arguments: Mapping[str, Any], *, bounded: bool) -> dict[str, Any]:
    """Give the settings with arguments laid over those that a setting holds."""
    assert way.place is not None
    held: dict[str, Any] = getattr(llm, way.place) or {}
    if not bounded:
        return {way.place: {**held, **merged(held, arguments)}}
    held = {name: value for name, value in held.items() if name not in way.instead}
    unset = [] if way.setting is not None else way.instead  # a stated bound stands for it
    settings: dict[str, Any] = {name: None for name in unset if name in type(llm).model_fields}
    return {**settings, way.place: {**held, **merged(held, arguments)}}


def _connect(llm: LLM, client: str) -> None:
    """Have the model make its own connection, so that its copies share it."""
    found = getattr(llm, client)
    if isinstance(found, MethodType):
        found()
