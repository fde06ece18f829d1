"""LangChain models for texts and for messages over a local model with speculative decoding."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any, NoReturn, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, BaseLLM, LangSmithParams
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
)
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import (
    ChatGeneration,
    ChatGenerationChunk,
    ChatResult,
    GenerationChunk,
    LLMResult,
)
from pydantic import BaseModel, ConfigDict, Field, StrictBool
from typing_extensions import override

from langchain_ralmspec.generations import achunks_of, chunks_of, result_of
from langchain_ralmspec.options import checked_fields
from ralmspec_plugins.adapters.events import REPORT, aclosable
from ralmspec_plugins.adapters.fingerprint import overrides_only
from ralmspec_plugins.adapters.local_model import taken_by
from ralmspec_plugins.adapters.writing_options import (
    NO_TOOLS,
    OPTIONS,
    DecodingStats,
    LoadingOptions,
    WritingOptions,
    options_of,
)
from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.types import Answer

if TYPE_CHECKING:
    from ralmspec_plugins.adapters.speculative_model import SpeculativeModel


class LocalModelSettings(BaseModel):
    """The common settings of `SpeculativeLLM` and `SpeculativeChatModel`."""

    model: Any = Field(repr=False, exclude=True)
    """A saved model's folder or name, a loaded transformers model, or a `HuggingFaceLM`; after
    construction, the loaded model."""
    tokenizer: Any = Field(default=None, repr=False, exclude=True)
    """The tokenizer of a model that is loaded already; by default the one saved with the model."""
    drafter: Any = Field(default="suffix", exclude=True)
    """The drafter: "suffix" (copies from the prompt and the text), "passages", a `Drafter`,
    or several of these; `None` for plain decoding: the same texts, one token per pass."""
    decoding: Any = Field(default=None, exclude=True)
    """A `Decoding` with more settings, instead of `drafter`."""
    dtype: Any = Field(default="auto", exclude=True)
    """The precision in which a model is loaded; as saved by default."""
    device: Any = Field(default=None, exclude=True)
    """The device on which a model is loaded."""
    cache_bytes: int = Field(default=2 * 2**30, exclude=True)
    """The maximum memory of key-value caches that are not in use."""

    max_tokens: Any = 256
    """The maximum number of tokens of a text."""
    temperature: Any = 0.0
    """0: the most likely token is chosen; above 0: tokens are sampled."""
    top_k: Any = 0
    """The number of most likely tokens to sample from; 0: all."""
    top_p: Any = 1.0
    """The total probability of the tokens to sample from."""
    repetition_penalty: Any = 1.0
    """The penalty of tokens that occur in prompt or text; 1: none."""
    seed: Any = 0
    """The random seed for sampling: the same prompt and seed give the same text."""
    stop: Any = ()
    """Strings before which a text ends; those of a call replace them."""
    deadline_s: Any = None
    """The timeout of a text in seconds."""

    def __init__(self, **given: Any) -> None:
        """Load the model, unless it is loaded, and make the measurements for its drafter.

        Raises:
            ConfigError: a setting is unknown, of another type, or out of range.
            ModelError: there is no causal model.
        """
        with checked_fields(type(self)):
            super().__init__(**given)
        options_of(self, {})
        self.loaded()

    def loaded(self) -> "SpeculativeModel":
        """Return the loaded model, with this object's drafter."""
        from ralmspec_plugins.adapters.speculative_model import speculative_model

        names = ("tokenizer", "drafter", "decoding", "dtype", "device", "cache_bytes")
        loading = LoadingOptions(**{name: getattr(self, name) for name in names})
        made = speculative_model(self.model, loading, options_of(self, {}).sampling)
        if made is not self.model:
            self.model = made
        return made

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Return a copy of the settings with the same model."""
        return self.model_copy()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Raise an error: the model cannot be pickled.

        Raises:
            TypeError: a loaded model belongs to its process.
        """
        raise TypeError(
            f"{type(self).__name__} cannot be pickled: its model is loaded in this process. "
            "Create it again where it is needed, from the same folder"
        )

    @property
    def model_name(self) -> str:
        """The name by which the model was loaded."""
        return self.loaded().name

    @property
    def stats(self) -> DecodingStats:
        """The counts of all calls of this model so far, including those of copies."""
        return self.loaded().stats

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """All settings that texts depend on: the key of the model in LangChain's caches."""
        own = {name: getattr(self, name) for name in OPTIONS if name not in ("stop", "deadline_s")}
        stop = [self.stop] if isinstance(self.stop, str) else list(self.stop or ())
        # The host puts a call's own stop strings under "stop".
        return {**self.loaded().known_by(), **own, "own_stop": stop}

    def _call_options(self, stop: Sequence[str] | None, given: Mapping[str, Any]) -> WritingOptions:
        return options_of(self, given if stop is None else {**given, "stop": stop})

    def get_token_ids(self, text: str) -> list[int]:
        """Return the model's tokens; the host's method would load GPT-2's tokenizer."""
        custom = getattr(self, "custom_get_token_ids", None)
        return list(custom(text)) if custom is not None else self.loaded().tokens(text)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        named: LangSmithParams = super()._get_ls_params(  # type: ignore[misc] # of the host's class
            stop=stop, **kwargs
        )
        named["ls_provider"] = "ralmspec"
        return named


class SpeculativeLLM(LocalModelSettings, BaseLLM):
    """Continues texts with a local Hugging Face model, several tokens per pass.

    The text equals that of `drafter=None`, which generates one token per pass, greedy or sampled.
    `stream` yields only text that is final. `generation_info` has the reason of a text's end
    and, under "ralmspec", a `Report`: `stats_of(generation_info)` reads it.

    A call accepts `stop`, `max_tokens`, `temperature`, `top_k`, `top_p`, `repetition_penalty`,
    `seed` and `deadline_s`, which apply to this call only; any other argument is a `TypeError`.
    """

    model_config = ConfigDict(extra="forbid")

    @property
    @override
    def _llm_type(self) -> str:
        return "ralmspec-llm"

    @override
    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        answers = self.loaded().answers(prompts, self._call_options(stop, kwargs))
        return result_of(answers, self.model_name)

    @override
    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        if overrides_only(self, SpeculativeLLM, "_generate", "_agenerate"):
            return await super()._agenerate(prompts, stop, run_manager, **kwargs)
        answers = await self.loaded().aanswers(prompts, self._call_options(stop, kwargs))
        return result_of(answers, self.model_name)

    @override
    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        stream = self.loaded().stream(prompt, self._call_options(stop, kwargs))
        return chunks_of(stream, run_manager)

    @override
    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        if overrides_only(self, SpeculativeLLM, "_stream", "_astream"):
            made = super()._astream(prompt, stop, run_manager, **kwargs)
        else:
            stream = await self.loaded().astream(prompt, self._call_options(stop, kwargs))
            made = achunks_of(stream, run_manager)
        async with aclosing(aclosable(made)) as chunks:
            async for chunk in chunks:
                yield chunk


class SpeculativeChatModel(LocalModelSettings, BaseChatModel):
    """Answers messages with a local Hugging Face model, several tokens per pass.

    Messages are formatted by the tokenizer's chat template, or by `chat_template`; a last message
    of the assistant is continued. Everything else is as with `SpeculativeLLM`. The costs of a
    message are in its `usage_metadata`, and in its `response_metadata`, which `stats_of` reads.
    It accepts only text, and does not call tools.
    """

    model_config = ConfigDict(extra="forbid")

    chat_template: Any = Field(default=None, repr=False)
    """A Jinja template that formats messages as a text, instead of the tokenizer's own."""
    streaming: StrictBool = False
    """Whether `invoke` streams to handlers of single tokens."""

    def __init__(self, **given: Any) -> None:
        """Load the model, and check that messages can be formatted for it.

        Raises:
            ConfigError: a setting is unknown, of another type, or out of range.
            ModelError: there is no causal model, or no chat template.
        """
        from ralmspec_plugins.adapters.speculative_model import check_chat_template

        super().__init__(**given)
        if not isinstance(self.chat_template, str | None):
            raise ConfigError(f"chat_template must be a text, got {self.chat_template!r:.80}")
        check_chat_template(
            self.loaded(),
            self.chat_template,
            "Set chat_template=..., or use SpeculativeLLM, which continues texts.",
        )

    def prompt_of(self, messages: Sequence[BaseMessage]) -> str:
        """Return messages formatted as the text that the model continues.

        Raises:
            InputError: they contain more than text, or the template raises an error.
        """
        from ralmspec_plugins.adapters.speculative_model import chat_prompt

        return chat_prompt(self.loaded(), self.chat_template, [*map(_plain, messages)])

    @override
    def bind_tools(self, tools: Any, **kwargs: Any) -> NoReturn:
        """Raise an error: tools are not supported.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(f"{type(self).__name__} was given tools, but {NO_TOOLS}")

    @override
    def with_structured_output(self, schema: Any, **kwargs: Any) -> NoReturn:
        """Raise an error: schemas are not supported.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(f"{type(self).__name__} was given a schema, but {NO_TOOLS}")

    @property
    @override
    def _llm_type(self) -> str:
        return "ralmspec-chat"

    @property
    @override
    def _identifying_params(self) -> dict[str, Any]:
        return {**super()._identifying_params, "chat_template": self.chat_template}

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        options = self._call_options(stop, kwargs)
        [answer] = self.loaded().answers([self.prompt_of(messages)], options)
        return self._chat_result(answer)

    @override
    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        if overrides_only(self, SpeculativeChatModel, "_generate", "_agenerate"):
            return await super()._agenerate(messages, stop, run_manager, **kwargs)
        options = self._call_options(stop, kwargs)
        [answer] = await self.loaded().aanswers([self.prompt_of(messages)], options)
        return self._chat_result(answer)

    @override
    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        options = self._call_options(stop, kwargs)
        stream = self.loaded().stream(self.prompt_of(messages), options)
        with closing(chunks_of(stream, None)) as pieces:
            for piece in pieces:
                chunk = self._chat_chunk(piece)
                if run_manager is not None and piece.text:
                    run_manager.on_llm_new_token(piece.text, chunk=chunk)
                yield chunk

    @override
    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        if overrides_only(self, SpeculativeChatModel, "_stream", "_astream"):
            async with aclosing(
                aclosable(super()._astream(messages, stop, run_manager, **kwargs))
            ) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        options = self._call_options(stop, kwargs)
        stream = await self.loaded().astream(self.prompt_of(messages), options)
        async with aclosing(achunks_of(stream, None)) as pieces:
            async for piece in pieces:
                chunk = self._chat_chunk(piece)
                if run_manager is not None and piece.text:
                    await run_manager.on_llm_new_token(piece.text, chunk=chunk)
                yield chunk

    def _chat_result(self, answer: Answer) -> ChatResult:
        taken = taken_by(answer)
        message = AIMessage(
            content=answer.text,
            usage_metadata=_usage(taken),
            response_metadata={**taken, "model_name": self.model_name},
        )
        made = ChatGeneration(
            message=message, generation_info={"finish_reason": taken["finish_reason"]}
        )
        return ChatResult(generations=[made])

    def _chat_chunk(self, piece: GenerationChunk) -> ChatGenerationChunk:
        taken = piece.generation_info
        if taken is None:
            return ChatGenerationChunk(message=AIMessageChunk(content=piece.text))
        return ChatGenerationChunk(
            message=AIMessageChunk(
                content="",
                usage_metadata=_usage(taken),
                response_metadata={**taken, "model_name": self.model_name},
                chunk_position="last",
            )
        )


def _usage(taken: Mapping[str, Any]) -> UsageMetadata:
    usage: UsageMetadata = taken[REPORT]["usage"]
    return UsageMetadata(
        input_tokens=usage["input_tokens"],
        output_tokens=usage["output_tokens"],
        total_tokens=usage["total_tokens"],
    )


def _plain(message: BaseMessage) -> dict[str, str]:
    """Return the role and the text of a message.

    Raises:
        InputError: it has another role, or contains more than text.
    """
    called = isinstance(message, AIMessage) and message.tool_calls
    role = _ROLES.get(type(message).__name__.removesuffix("Chunk"))
    if isinstance(message, ChatMessage):
        role = message.role
    if role is None or called:
        what = "tool calls" if called else f"a {type(message).__name__}"
        raise InputError(
            f"SpeculativeChatModel accepts messages of system, user and assistant, got {what}"
        )
    blocks = [message.content] if isinstance(message.content, str) else message.content
    other = [one for one in blocks if not isinstance(one, str) and one.get("type") != "text"]
    if other:
        kinds = sorted({str(one.get("type")) for one in other if isinstance(one, dict)})
        raise InputError(f"SpeculativeChatModel accepts only text, got content of {kinds}")
    return {"role": role, "content": str(message.text)}


_ROLES = {
    HumanMessage.__name__: "user",
    AIMessage.__name__: "assistant",
    SystemMessage.__name__: "system",
}
