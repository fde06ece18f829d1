"""Drives the Hugging Face model inside a host's wrapper by tokens and key-value cache."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, Generation, LLMResult
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable

from langchain_ralmspec.capabilities import inside_pipeline, unwrapped
from langchain_ralmspec.prompts import Prompting, continued
from langchain_ralmspec.recording import ModelRun
from langchain_ralmspec.speculative_model import SpeculativeChatModel, SpeculativeLLM
from ralmspec_plugins.adapters.local_model import UNCUT, sampling, split_template
from ralmspec_plugins.adapters.writing_options import direct_options
from ralmspec_plugins.effects import Commit
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.lm.prompts import PassageTemplate
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.types import Request, passages_of

if TYPE_CHECKING:
    from ralmspec_plugins.lm.decoder import DecodingSettings
    from ralmspec_plugins.lm.huggingface import HuggingFaceLM

_TOKENISING = ("prefix", "add_special_tokens", "truncation", "tokenizer_encode_kwargs")


def direct_lm(
    llm: Runnable[Any, Any],
    prompting: Prompting | None = None,
    *,
    cache_bytes: int | None = None,
    decoding: "DecodingSettings | None" = None,
) -> "HuggingFaceLM":
    """Return a token-level model over that of a `HuggingFacePipeline`, or of a chat model on one.

    A `SpeculativeLLM` or `SpeculativeChatModel` is accepted, too, with its own drafter; for the
    others `decoding` enables speculative decoding.

    The prompt is the host's, chat template included, split at the place of the documents; tokens
    are chosen by the pipeline's own settings. (The result of `format_docs` for an empty list is
    not used.) The reference is the plain loop over this model. A loop over the host's wrapper
    tokenizes the text again at each step, possibly into other tokens, and draws other random
    numbers if it samples.

    Raises:
        ConfigError: there is no text-generation pipeline inside, or it has unsupported
            settings; the message names them.
    """
    from ralmspec_plugins.lm.huggingface import HuggingFaceLM

    inner = unwrapped(llm)
    parts = Prompting() if prompting is None else prompting
    if isinstance(inner.model, SpeculativeLLM | SpeculativeChatModel) and not inner.dynamic:
        writing = direct_options(inner.model, inner.arguments, decoding, "the SpeculativeRAG")
        template = _template(inner.model, parts)
        return inner.model.loaded().driven_by_tokens(writing, template, UNCUT)
    wrapper = inside_pipeline(inner.model)
    if wrapper is None or inner.dynamic:
        outer, got = type(llm).__name__, type(inner.model).__name__
        raise ConfigError(
            "direct=True needs a HuggingFacePipeline, a ChatHuggingFace over one, or a "
            "SpeculativeLLM or SpeculativeChatModel, without "
            f"configurable alternatives, got {got if outer == got else f'{outer} over {got}'}; "
            "without direct=True the host's own calls are used"
        )
    pipeline = wrapper.pipeline
    if getattr(pipeline, "task", None) != "text-generation":
        raise ConfigError(
            f"direct=True needs a pipeline for 'text-generation', got {pipeline.task!r}"
        )
    options: dict[str, Any] = {} if cache_bytes is None else {"cache_bytes": cache_bytes}
    return HuggingFaceLM(
        pipeline.model,
        pipeline.tokenizer,
        sampling=sampling_of(pipeline, inner.arguments.get("pipeline_kwargs") or {}),
        template=_template(inner.model, parts),
        passage_tokens=UNCUT,
        decoding=decoding,
        **options,
    )


def _template(model: Any, parts: Prompting) -> PassageTemplate:
    shown = _shown_by(model)
    return split_template(
        lambda request, context: shown(parts.value(request, context)),
        parts.context,
        separator=parts.separator,
        together=parts.format_docs is not None,
        variable=parts.document_variable,
    )


def sampling_of(pipeline: Any, arguments: Mapping[str, Any]) -> Greedy | Sampling:
    """Return how a pipeline chooses tokens, with the arguments bound to its calls.

    Raises:
        ConfigError: it has unsupported settings.
    """
    before = pipeline._preprocess_params  # noqa: SLF001 there is no public way
    return sampling(
        settings_of(pipeline, arguments),
        pipeline.model.generation_config.eos_token_id,
        "the pipeline",
        unfit=[name for name in _TOKENISING if before.get(name) is not None],
    )


def settings_of(pipeline: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that `generate` combines: the model's, the pipeline's, the call's."""
    given = {**pipeline._forward_params, **arguments}  # noqa: SLF001 as above
    prepare: Callable[..., dict[str, Any]] | None
    prepare = getattr(pipeline, "_prepare_generate_kwargs", None)  # transformers >= 5.20
    if prepare is not None:
        given = prepare(given)
    configs = (pipeline.model, pipeline, given.pop("generation_config", None))
    settings: dict[str, Any] = {}
    for place in configs:
        config = getattr(place, "generation_config", place)
        if hasattr(config, "to_diff_dict"):
            settings.update(config.to_diff_dict())
    return {**settings, **given}


def _shown_by(model: Any) -> Callable[[PromptValue], str]:
    if isinstance(model, SpeculativeChatModel):
        return lambda value: model.prompt_of(value.to_messages())
    if hasattr(model, "_to_chat_prompt"):
        return lambda value: str(model._to_chat_prompt(value.to_messages()))  # noqa: SLF001
    return lambda value: value.to_string()


# The runs of a model that is driven directly, reported as if its wrapper had been called.


class DirectRuns:
    """Creates a run for each committed segment: its prompt and its text.

    The wrapper is not called, so no call is captured; a trace still shows what the model read.
    """

    def __init__(self, request: Request, prompting: Prompting, llm: Any, text: Any) -> None:
        """Create runs for a request without text.

        Args:
            request: the request.
            prompting: formats documents and inputs as a prompt.
            llm: the model's wrapper.
            text: returns the text of a state.
        """
        self._request = request
        self._prompting = prompting
        self._llm = llm
        self._text = text
        self._shown = ""

    def run_of(self, event: Commit) -> ModelRun:
        """Return the run of a committed segment."""
        context = self._prompting.context(passages_of(event.hits))
        value = self._prompting.value(self._request, context)
        before, self._shown = self._shown, self._text(event.state)
        piece = self._shown[len(before) :]
        if isinstance(self._llm, BaseChatModel):
            given, _ = continued(value, before, {})
            shown: Any = given if isinstance(given, list) else given.to_messages()
            made: Generation = ChatGeneration(message=AIMessage(content=piece))
        else:
            shown, made = value.to_string() + before, Generation(text=piece)
        method = "on_chat_model_start" if isinstance(shown, list) else "on_llm_start"
        run = ModelRun(method, {}, shown, uuid4(), [], {}, {"name": self._llm.get_name()})
        run.response = LLMResult(generations=[[made]])
        return run
