"""What a LlamaIndex model can do: bound its output, continue a message, run beside itself.

Models are recognised by the qualified names of their classes, so that no provider's
package is imported here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from llama_index.core.llms import LLM

from llama_index_ralmspec.bounds import Way, way_of
from ralmspec_plugins.adapters.fingerprint import class_names, qualified_name
from ralmspec_plugins.adapters.text_model import Bound, Continuation, Step, check_step
from ralmspec_plugins.errors import ConfigError

_HUGGING_FACE: Final = "llama_index.llms.huggingface.base.HuggingFaceLLM"
_STRUCTURED: Final = "llama_index.core.llms.structured_llm.StructuredLLM"
# Chat models that complete one text, which shows the messages: it can be written on.
_CHATS_BY_PROMPT: Final = frozenset(
    {
        "llama_index.core.llms.custom.CustomLLM.chat",
        f"{_HUGGING_FACE}.chat",
        "llama_index.llms.llama_cpp.base.LlamaCPP.chat",
    }
)
# Chat models that continue a trailing message of the assistant. Of Anthropic's models the
# newest refuse one: their error is what the caller then gets.
_CONTINUES: Final = frozenset(
    {"llama_index.llms.anthropic.base.Anthropic", "llama_index.llms.ollama.base.Ollama"}
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
# Where asynchronous methods are the synchronous ones, which hold up the event loop.
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
    chat: bool  # it is given messages
    by_prompt: bool  # messages are shown to it as one text, which it completes
    way: Way  # how it is told to write at most n tokens, and where to stop
    continuation: Mapping[str, Any] | None  # the arguments with which a message is continued
    side_by_side: bool = False  # several calls may run at a time
    streams: bool = True
    native_async: bool = True  # cancelling its task stops it; otherwise it sits in a thread
    parses: bool = False  # it reads its own output, as a whole


def abilities(
    llm: LLM,
    *,
    bound: Bound | None = None,
    continuation: Continuation | None = None,
    side_by_side: bool | None = None,
) -> Abilities:
    """Say what a model can do, by its class and by what the user says.

    Args:
        llm: the model.
        bound: the argument that bounds its output, or a function from the number of
            tokens to the arguments of the call.
        continuation: "assistant" for a chat model that continues a trailing assistant
            message, or the arguments of a call that make it do so.
        side_by_side: whether several calls may run at a time.
    """
    names = class_names(llm)
    parses = llm.output_parser is not None or _STRUCTURED in names
    chat = bool(llm.metadata.is_chat_model)
    by_prompt = chat and continuation is None and _defined(llm, "chat") in _CHATS_BY_PROMPT
    arguments: Mapping[str, Any] | None = {} if names & _CONTINUES else None
    if continuation is not None:
        arguments = {} if continuation == "assistant" else continuation
    return Abilities(
        name=qualified_name(type(llm)),
        chat=chat,
        by_prompt=by_prompt,
        way=way_of(llm, names, bound),
        continuation=arguments,
        side_by_side=is_remote(llm) if side_by_side is None else side_by_side,
        # Its stream comes from a thread that goes on when nobody listens any more.
        streams=_HUGGING_FACE not in names and not parses,
        native_async=awaits(llm, "achat" if chat and not by_prompt else "acomplete"),
        parses=parses,
    )


def check(known: Abilities, step: Step) -> None:
    """Refuse a model that cannot write in such steps.

    Raises:
        ConfigError: it cannot; the message says what to do.
    """
    if step != "whole" and known.parses:
        raise ConfigError(
            f"{known.name} parses its output, which must be whole for that, so it cannot write "
            "step by step. Use workload='one_shot', or the model without its output parser."
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
    """Say whether this is a `HuggingFaceLLM`."""
    return _HUGGING_FACE in class_names(llm)


def inner(llm: Any) -> Any:
    """Give the model that makes the calls of this one: what a structured one stands on."""
    return llm.llm if _STRUCTURED in class_names(llm) else llm


def is_remote(llm: Any) -> bool:
    """Say whether a model's calls go to a server, which takes several at a time."""
    packages = {".".join(name.split(".")[:3]) for name in class_names(inner(llm))}
    return bool(packages & _REMOTE)


def awaits(llm: Any, method: str) -> bool:
    """Say whether a model's asynchronous method is one: not its synchronous twin."""
    kind = type(inner(llm))
    return getattr(getattr(kind, method, None), "__module__", None) not in (None, *_BLOCKING)


def _defined(llm: Any, method: str) -> str:
    """Name a method by where it was defined."""
    found = getattr(type(llm), method)
    return f"{found.__module__}.{found.__qualname__}"
