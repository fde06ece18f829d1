"""The abilities of a LangChain model: bounded output, continued messages, concurrent calls.

Models are recognised by the qualified names of their classes, so that no provider's
package is imported here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from langchain_core.globals import get_llm_cache
from langchain_core.language_models import LLM, BaseChatModel, BaseLLM, SimpleChatModel
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.base import RunnableBinding
from langchain_core.runnables.config import merge_configs
from langchain_core.runnables.configurable import DynamicRunnable

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

# Fields that bound the output, where the call takes an argument of the same name.
_BOUND_FIELDS = (
    "max_tokens",
    "max_new_tokens",
    "max_output_tokens",
    "max_tokens_to_sample",
    "num_predict",
    "n_predict",
)
_PIPELINES = frozenset(
    f"langchain_{package}.llms.huggingface_pipeline.HuggingFacePipeline"
    for package in ("huggingface", "community")
)
# Servers that can continue a message, and alternatives for models that cannot.
_INSTEAD = (
    "(vLLM, transformers serve and llama.cpp: continuation="
    "{'extra_body': {'continue_final_message': True, 'add_generation_prompt': False}}; "
    "api.openai.com cannot). Otherwise use workload='one_shot'; for a local Hugging Face "
    "pipeline, direct=True."
)
_CHAT_HUGGING_FACE = "langchain_huggingface.chat_models.huggingface.ChatHuggingFace"
_OLLAMA = frozenset({"langchain_ollama.chat_models.ChatOllama", "langchain_ollama.llms.OllamaLLM"})
_OLLAMA_OPTIONS = (
    *("mirostat", "mirostat_eta", "mirostat_tau", "num_ctx", "num_gpu", "num_thread"),
    *("repeat_last_n", "repeat_penalty", "temperature", "seed", "stop", "tfs_z", "top_k", "top_p"),
)
_RENAMED_BOUNDS = {"langchain_community.llms.vllm.VLLM": "max_tokens"}
# Chat models that continue a trailing assistant message, and the marks of that message.
# Anthropic's newest models reject one: the caller then receives their error.
_CONTINUES: Mapping[str, Mapping[str, Any]] = {
    "langchain_anthropic.chat_models.ChatAnthropic": {},
    "langchain_mistralai.chat_models.ChatMistralAI": {"prefix": True},
    "langchain_ollama.chat_models.ChatOllama": {},
    "langchain_ralmspec.speculative_model.SpeculativeChatModel": {},
    "langchain_core.language_models.fake_chat_models.FakeChatModel": {},
    "langchain_core.language_models.fake_chat_models.FakeListChatModel": {},
    "langchain_core.language_models.fake_chat_models.FakeMessagesListChatModel": {},
    "langchain_core.language_models.fake_chat_models.GenericFakeChatModel": {},
}
# The arguments that request the log-probabilities of a model's tokens, in OpenAI's form.
_LOGPROBS: Mapping[str, Mapping[str, Any]] = {
    "langchain_openai.chat_models.base.BaseChatOpenAI": {"logprobs": True},
    "langchain_openai.llms.base.BaseOpenAI": {"logprobs": 1},
}
_REMOTE = frozenset(
    f"langchain_{name}"
    for name in (
        *("ai21", "anthropic", "aws", "azure_ai", "cerebras", "cohere", "deepseek"),
        *("fireworks", "google_genai", "google_vertexai", "groq", "ibm", "mistralai"),
        *("nvidia_ai_endpoints", "ollama", "openai", "openrouter", "perplexity", "together"),
        *("upstage", "writer", "xai"),
    )
)
_REMOTE_CLASSES = frozenset({"langchain_huggingface.llms.huggingface_endpoint.HuggingFaceEndpoint"})
_OWN = frozenset(
    {
        "langchain_ralmspec.knn.KNNLLM",
        "langchain_ralmspec.speculative_model.SpeculativeChatModel",
        "langchain_ralmspec.speculative_model.SpeculativeLLM",
    }
)


@dataclass(frozen=True, slots=True)
class Unwrapped:
    """The model inside wrappers, and the arguments that these bind to its calls."""

    model: Any
    arguments: Mapping[str, Any]
    dynamic: bool  # whether the model depends on the config of the call


@dataclass(frozen=True, slots=True)
class Abilities:
    """What is known about a model."""

    name: str
    chat: bool
    model: bool  # whether it is a model, not another runnable
    bound: Bounded | None  # the arguments for at most n tokens
    continuation: Mapping[str, Any] | None  # the arguments to continue a message
    mark: Mapping[str, Any] = field(default_factory=dict)  # on the message that is continued
    side_by_side: bool = False  # whether several calls may run at a time
    takes_stop: bool = True
    streams: bool = True
    native_async: bool = True  # whether cancelling its task stops it, since it uses no thread
    logprobs: Mapping[str, Any] | None = None  # the arguments that request log-probabilities


def unwrapped(llm: Runnable[Any, Any], config: RunnableConfig | None = None) -> Unwrapped:
    """Return the model in `.bind(...)`, `.with_config(...)`, configurable fields, alternatives.

    Retries, fallbacks and sequences are not unwrapped: they decide what they call.
    """
    arguments: dict[str, Any] = {}
    dynamic = False
    while True:
        if isinstance(llm, RunnableBinding):
            arguments = {**llm.kwargs, **arguments}
            config = merge_configs(llm.config, config)
            llm = llm.bound
        elif isinstance(llm, DynamicRunnable):
            dynamic = True
            llm, config = llm.prepare(config)
        else:
            return Unwrapped(llm, arguments, dynamic)


def abilities(
    inner: Unwrapped,
    *,
    bound: Bound | None = None,
    continuation: Continuation | None = None,
    side_by_side: bool | None = None,
    logprobs: Mapping[str, Any] | None = None,
) -> Abilities:
    """Return a model's abilities by its class and the user's settings.

    Args:
        inner: the model, unwrapped.
        bound: the name of the argument that bounds its output, or a function from the
            number of tokens to the arguments of the call.
        continuation: "assistant" for a chat model that continues a trailing assistant
            message, or the arguments of a call that enable this.
        side_by_side: whether several calls may run at a time.
        logprobs: the arguments of a call that request log-probabilities.
    """
    model = inner.model
    names = class_names(model)
    local = inside_pipeline(model) is not None
    mark: Mapping[str, Any] | None = None
    if isinstance(model, BaseChatModel) and not local:
        mark = _first(_CONTINUES, names)
    if continuation is not None:
        arguments: Mapping[str, Any] | None = {} if continuation == "assistant" else continuation
    else:
        arguments = None if mark is None else {}
    return Abilities(
        name=qualified_name(type(model)),
        chat=isinstance(model, BaseChatModel),
        model=isinstance(model, BaseChatModel | BaseLLM),
        bound=_bound(inner, names, local) if bound is None else stated(bound),
        continuation=None if arguments is None else _beside_fields(arguments, model),
        mark=mark or {},
        side_by_side=_remote(names) if side_by_side is None else side_by_side,
        takes_stop=not local,
        # A pipeline streams from a thread that continues when the stream is closed, and its
        # stream differs from the text that its call returns.
        streams=not local,
        native_async=not local and _awaits(model),
        logprobs=_first(_LOGPROBS, names) if logprobs is None else logprobs,
    )


def _first(
    table: Mapping[str, Mapping[str, Any]], names: frozenset[str]
) -> Mapping[str, Any] | None:
    return next((table[name] for name in table if name in names), None)


def cached(model: Any) -> bool:
    """Return whether the host reads its cache before it invokes a model."""
    cache = getattr(model, "cache", None)
    return cache is not False and bool(cache or get_llm_cache() is not None)


def check(known: Abilities, step: Step) -> None:
    """Check that a model can write in such steps.

    Raises:
        ConfigError: it cannot; the message says what to do.
    """
    if step == "whole":
        return
    if not known.model:
        raise ConfigError(
            f"{known.name} is not a LangChain model whose output can be bounded (retries, "
            "fallbacks and chains hide theirs). Use workload='one_shot', which calls it "
            "unchanged, or pass the model itself."
        )
    check_step(
        known.name,
        step,
        bounded=known.bound is not None,
        takes_stop=known.takes_stop,
        continues=not known.chat or known.continuation is not None,
        instead=_INSTEAD,
    )


def inside_pipeline(model: Any) -> Any | None:
    """Return the `HuggingFacePipeline` that a model is or that a chat model uses, or `None`."""
    if _CHAT_HUGGING_FACE in class_names(model):
        model = model.llm
    return model if class_names(model) & _PIPELINES else None


def is_remote(model: Any) -> bool:
    """Return whether a model is the client of a known server."""
    return _remote(class_names(model))


def keeps_nothing(model: Any) -> bool:
    """Return whether a model is this package's own: no call of it changes a later one.

    It draws its tokens by keyed random numbers, not by the process-wide generators.
    """
    return is_known(model, _OWN)


def _remote(names: frozenset[str]) -> bool:
    packages = {name.split(".", 1)[0] for name in names}
    return bool(packages & _REMOTE or names & _REMOTE_CLASSES)


def _bound(inner: Unwrapped, names: frozenset[str], local: bool) -> Bounded | None:
    if local:
        return lambda tokens: {
            "pipeline_kwargs": {"max_new_tokens": tokens, "return_full_text": False}
        }
    if names & _OLLAMA:
        options = {} if "options" in inner.arguments else _ollama_options(inner.model)
        return lambda tokens: {"options": {**options, "num_predict": tokens}}
    known = next((_RENAMED_BOUNDS[name] for name in _RENAMED_BOUNDS if name in names), None)
    if known is None:
        fields = getattr(type(inner.model), "model_fields", {})
        known = next((name for name in _BOUND_FIELDS if name in fields), None)
    return None if known is None else stated(known)


def _ollama_options(model: Any) -> dict[str, Any]:
    values = {name: getattr(model, name, None) for name in _OLLAMA_OPTIONS}
    return {name: value for name, value in values.items() if value is not None}


def _beside_fields(arguments: Mapping[str, Any], model: Any) -> Mapping[str, Any]:
    # An argument of the call replaces the model's own setting completely.
    fields = {name: getattr(model, name, None) for name in arguments}
    return merged(fields, arguments)


def _awaits(model: Any) -> bool:
    kind = type(model)
    if isinstance(model, BaseChatModel):
        threads = (BaseChatModel._agenerate, SimpleChatModel._agenerate)  # noqa: SLF001
        return kind._agenerate not in threads  # noqa: SLF001
    if isinstance(model, LLM) and kind._agenerate is LLM._agenerate:  # noqa: SLF001
        return kind._acall is not LLM._acall  # noqa: SLF001
    if isinstance(model, BaseLLM):
        return kind._agenerate is not BaseLLM._agenerate  # noqa: SLF001
    return True
