"""The abilities of a LlamaIndex model: bounded output, continued messages, concurrent calls.

Models are recognised by the qualified names of their classes, so that no provider's
package is imported here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any, Final

from llama_index.core.llms import LLM

from ralmspec_plugins.adapters.fingerprint import class_names, is_known, qualified_name
from ralmspec_plugins.adapters.text_model import (
    Bound,
    Bounded,
    Continuation,
    Step,
    check_step,
    merged,
    stated,
)
from ralmspec_plugins.errors import ConfigError

# How the output of a LlamaIndex model is bounded and stopped.
#
# Few models use the arguments of a call. Some override them by their own settings, others
# have only settings: these are called through a copy with changed settings, which shares
# everything else, including the connections to a server.


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
    """How calls of a class of models are bounded and given stop strings.

    Args:
        setting: the model's own setting that is the bound.
        arguments: a function from the bound to further arguments.
        place: the setting that holds the arguments; `None`: they are arguments of the call.
        stop: the name of the argument for stop strings; `None` if there is none.
        instead: the settings that such arguments replace.
        clients: the names of the synchronous and the asynchronous connection to a server, which
            are created on first use.
        logprobs: the settings that enable log-probabilities of tokens.
    """

    setting: str | None = None
    arguments: Bounded | None = None
    place: str | None = None
    stop: str | None = "stop"
    instead: Sequence[str] = ()
    clients: tuple[str, str] | None = None
    logprobs: Mapping[str, Any] | None = None

    @property
    def bounds(self) -> bool:
        """Whether the output can be bounded."""
        return self.setting is not None or self.arguments is not None


_WAYS: Final[Mapping[str, Way]] = {
    _OPENAI: Way(
        "max_tokens",
        place="additional_kwargs",
        instead=_OPENAI_BOUNDS,
        clients=("_get_client", "_get_aclient"),
        logprobs={"logprobs": True, "top_logprobs": 1},
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
    """Return how a model's calls are bounded, by its class or the user's setting."""
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
    scored: bool = False,
    asynchronous: bool = False,
) -> tuple[LLM, dict[str, Any]]:
    """Return the model to call, and the arguments of the call.

    Args:
        llm: the user's model.
        way: how its calls are bounded.
        tokens: the bound, if there is one.
        stop: stop strings, ignored if the model does not accept any.
        further: further arguments, such as those to continue a message.
        scored: whether the call requests log-probabilities.
        asynchronous: whether the call is awaited.
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
    if scored:
        settings.update(way.logprobs or {})
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
    """Return the settings, with arguments merged into those that a setting holds."""
    assert way.place is not None
    held: dict[str, Any] = getattr(llm, way.place) or {}
    if not bounded:
        return {way.place: {**held, **merged(held, arguments)}}
    held = {name: value for name, value in held.items() if name not in way.instead}
    unset = [] if way.setting is not None else way.instead  # a stated bound replaces it
    settings: dict[str, Any] = {name: None for name in unset if name in type(llm).model_fields}
    return {**settings, way.place: {**held, **merged(held, arguments)}}


def _connect(llm: LLM, client: str) -> None:
    """Create the model's connection, so that its copies share it."""
    found = getattr(llm, client)
    if isinstance(found, MethodType):
        found()


_HUGGING_FACE: Final = "llama_index.llms.huggingface.base.HuggingFaceLLM"
_STRUCTURED: Final = "llama_index.core.llms.structured_llm.StructuredLLM"
# Chat models that complete one text formatted from the messages: this text can be continued.
_CHATS_BY_PROMPT: Final = frozenset(
    {
        "llama_index.core.llms.custom.CustomLLM.chat",
        f"{_HUGGING_FACE}.chat",
        "llama_index.llms.llama_cpp.base.LlamaCPP.chat",
    }
)
# Chat models that continue a trailing message of the assistant. Anthropic's newest models reject
# one: the caller then receives their error.
_CONTINUES: Final = frozenset(
    {"llama_index.llms.anthropic.base.Anthropic", "llama_index.llms.ollama.base.Ollama"}
)
_OWN: Final = frozenset(
    {"llama_index_ralmspec.knn.KNNLLM", "llama_index_ralmspec.speculative_model.SpeculativeLLM"}
)
_REMOTE: Final = frozenset(
    f"llama_index.llms.{name}"
    for name in (
        *("ai21", "anthropic", "azure_inference", "azure_openai", "baseten", "bedrock"),
        *("bedrock_converse", "cerebras", "cohere", "dashscope", "databricks", "deepinfra"),
        *("deepseek", "featherlessai", "fireworks", "gemini", "gigachat", "google_genai"),
        *("groq", "huggingface_api", "ibm", "litellm", "llama_api", "lmstudio", "localai"),
        *("mistralai", "nebius", "novita", "nvidia", "oci_genai", "ollama", "openai"),
        *("openai_like", "openrouter", "perplexity", "sambanovasystems", "siliconflow"),
        *("together", "upstage", "vertex", "xinference", "yi", "zhipuai"),
    )
)
# Modules whose asynchronous methods call the synchronous ones, which block the event loop.
_BLOCKING: Final = frozenset(
    {
        "llama_index.core.llms.custom",
        *(f"llama_index.llms.{name}.base" for name in ("bedrock", "langchain", "vllm")),
    }
)

_INSTEAD: Final = (
    "(OpenAILike against vLLM, transformers serve or llama.cpp: continuation="
    "{'extra_body': {'continue_final_message': True, 'add_generation_prompt': False}}; "
    "api.openai.com cannot). Otherwise use workload='one_shot'; for a local HuggingFaceLLM, "
    "direct=True."
)


@dataclass(frozen=True, slots=True)
class Abilities:
    """What is known about a model."""

    name: str
    chat: bool  # whether its input is messages
    by_prompt: bool  # whether messages are formatted as one text, which it completes
    way: Way  # how its calls are bounded and given stop strings
    continuation: Mapping[str, Any] | None  # the arguments to continue a message
    side_by_side: bool = False  # whether several calls may run at a time
    streams: bool = True
    native_async: bool = True  # whether cancelling its task stops it, since it uses no thread
    parses: bool = False  # whether it parses its whole output
    logprobs: Mapping[str, Any] | None = None  # the arguments that request log-probabilities


def abilities(
    llm: LLM,
    *,
    bound: Bound | None = None,
    continuation: Continuation | None = None,
    side_by_side: bool | None = None,
    logprobs: Mapping[str, Any] | None = None,
) -> Abilities:
    """Return a model's abilities by its class and the user's settings.

    Args:
        llm: the model.
        bound: the name of the argument that bounds its output, or a function from the
            number of tokens to the arguments of the call.
        continuation: "assistant" for a chat model that continues a trailing assistant
            message, or the arguments of a call that enable this.
        side_by_side: whether several calls may run at a time.
        logprobs: the arguments of a call that request log-probabilities.
    """
    names = class_names(llm)
    parses = llm.output_parser is not None or _STRUCTURED in names
    chat = bool(llm.metadata.is_chat_model)
    by_prompt = chat and continuation is None and _defined(llm, "chat") in _CHATS_BY_PROMPT
    arguments: Mapping[str, Any] | None = {} if names & _CONTINUES else None
    if continuation is not None:
        arguments = {} if continuation == "assistant" else continuation
    way = way_of(llm, names, bound)
    if logprobs is None and way.logprobs is not None:
        logprobs = {}  # its settings enable them
    return Abilities(
        name=qualified_name(type(llm)),
        chat=chat,
        by_prompt=by_prompt,
        way=way,
        continuation=arguments,
        side_by_side=is_remote(llm) if side_by_side is None else side_by_side,
        # Its stream comes from a thread that continues when the stream is closed.
        streams=_HUGGING_FACE not in names and not parses,
        native_async=awaits(llm, "achat" if chat and not by_prompt else "acomplete"),
        parses=parses,
        logprobs=logprobs,
    )


def check(known: Abilities, step: Step) -> None:
    """Check that a model can write in such steps.

    Raises:
        ConfigError: it cannot; the message says what to do.
    """
    if step != "whole" and known.parses:
        raise ConfigError(
            f"{known.name} parses its whole output, so it cannot write in steps. "
            "Use workload='one_shot', or the model without its output parser."
        )
    check_step(
        known.name,
        step,
        bounded=known.way.bounds,
        takes_stop=known.way.stop is not None,
        continues=not known.chat or known.by_prompt or known.continuation is not None,
        instead=_INSTEAD,
    )


def hugging_face(llm: Any) -> bool:
    """Return whether this is a `HuggingFaceLLM`."""
    return _HUGGING_FACE in class_names(llm)


def inner(llm: Any) -> Any:
    """Return the model that makes the calls of this one: the one inside a structured model."""
    return llm.llm if _STRUCTURED in class_names(llm) else llm


def is_remote(llm: Any) -> bool:
    """Return whether a model calls a server, which accepts several calls at a time."""
    packages = {".".join(name.split(".")[:3]) for name in class_names(inner(llm))}
    return bool(packages & _REMOTE)


def keeps_nothing(llm: Any) -> bool:
    """Return whether a model is this package's own: no call of it changes a later one.

    It draws its tokens by keyed random numbers, not by the process-wide generators.
    """
    return is_known(inner(llm), _OWN)


def awaits(llm: Any, method: str) -> bool:
    """Return whether a model's asynchronous method waits instead of calling the synchronous one."""
    kind = type(inner(llm))
    return getattr(getattr(kind, method, None), "__module__", None) not in (None, *_BLOCKING)


def _defined(llm: Any, method: str) -> str:
    """Return the qualified name of a method's definition."""
    found = getattr(type(llm), method)
    return f"{found.__module__}.{found.__qualname__}"
