"""A LlamaIndex model for texts and messages over a local model with speculative decoding."""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, Self

from llama_index.core.base.llms.types import (
    ChatMessage,
    LLMMetadata,
    TextBlock,
)
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW
from llama_index.core.llms import CustomLLM
from typing_extensions import override

from llama_index_ralmspec.completions import AnsweringLLM
from ralmspec_plugins.adapters.writing_options import (
    OPTIONS,
    DecodingStats,
    LoadingOptions,
    options_of,
)
from ralmspec_plugins.arguments import refuse_unknown
from ralmspec_plugins.engine.streams import AnswerStream, AsyncAnswerStream
from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.types import Answer

if TYPE_CHECKING:
    from ralmspec_plugins.adapters.speculative_model import SpeculativeModel


class SpeculativeLLM(AnsweringLLM):
    """A local Hugging Face model as a LlamaIndex `LLM`, with several tokens per pass.

    The text equals that of `drafter=None`, which generates one token per pass, greedy or sampled.
    Streams yield only text that is final. `raw` of a response, or of a stream's last one, has
    the reason of the text's end, the token counts for the host's counters and, under
    "ralmspec", a `Report`; `stats` has the counts of all calls.

    Messages are formatted by the tokenizer's chat template, by `chat_template`, or by
    `messages_to_prompt`; a last message of the assistant is continued. It accepts only text, and
    does not call tools.

    A call accepts `max_tokens`, `temperature`, `top_k`, `top_p`, `repetition_penalty`, `seed`,
    `stop` and `deadline_s`, which apply to this call only; any other argument is a `TypeError`.

    Attributes:
        max_tokens: the maximum number of tokens of a text.
        temperature: 0: the most likely token is chosen; above 0: tokens are sampled.
        top_k: the number of most likely tokens to sample from; 0: all.
        top_p: the total probability of the tokens to sample from.
        repetition_penalty: the penalty of tokens that occur in prompt or text; 1: none.
        seed: the random seed for sampling: the same prompt and seed give the same text.
        stop: strings before which a text ends; those of a call replace them.
        deadline_s: the timeout of a text in seconds.
        chat_template: formats messages as a text, instead of the tokenizer's own.
        is_chat_model: whether the host passes prompts as messages; by default if there is a
            chat template.
    """

    max_tokens: Any = 256
    temperature: Any = 0.0
    top_k: Any = 0
    top_p: Any = 1.0
    repetition_penalty: Any = 1.0
    seed: Any = 0
    stop: Any = ()
    deadline_s: Any = None
    chat_template: str | None = None
    is_chat_model: bool = False

    _model: Any = PrivateAttr()

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        drafter: Any = "suffix",
        decoding: Any = None,
        dtype: Any = "auto",
        device: Any = None,
        cache_bytes: int = 2 * 2**30,
        chat_template: str | None = None,
        is_chat_model: bool | None = None,
        **settings: Any,
    ) -> None:
        """Load the model, unless it is loaded, and make the measurements for its drafter.

        Args:
            model: a saved model's folder or name, a loaded transformers model, or a
                `HuggingFaceLM`.
            tokenizer: the tokenizer of a model that is loaded already.
            drafter: the drafter: "suffix" (copies from the prompt and the text), "passages",
                a `Drafter`, or several of these; `None` for plain decoding: the same texts, one
                token per pass.
            decoding: a `Decoding` with more settings, instead of `drafter`.
            dtype: the precision in which a model is loaded; as saved by default.
            device: the device on which a model is loaded.
            cache_bytes: the maximum memory of key-value caches that are not in use.
            chat_template: see `Attributes`.
            is_chat_model: as above.
            settings: the other attributes, and the fields of every LLM of the host:
                `callback_manager`, `system_prompt`, `messages_to_prompt`,
                `completion_to_prompt`, `output_parser`, and so on.

        Raises:
            TypeError: an argument is unknown.
            ConfigError: a setting is of another type or out of range.
            ModelError: there is no causal model.
        """
        from ralmspec_plugins.adapters.speculative_model import has_chat_template, speculative_model

        beside = signature(type(self).__init__).parameters.keys() - {"settings"}
        refuse_unknown(settings.keys(), {*CustomLLM.model_fields, *OPTIONS}, beside=beside)
        if not isinstance(chat_template, str | None):
            raise ConfigError(f"chat_template must be a text, got {chat_template!r:.80}")
        given = {name: value for name, value in settings.items() if value is not None}
        super().__init__(chat_template=chat_template, **given)
        loading = LoadingOptions(
            tokenizer=tokenizer,
            drafter=drafter,
            decoding=decoding,
            dtype=dtype,
            device=device,
            cache_bytes=cache_bytes,
        )
        self._model = speculative_model(model, loading, options_of(self, {}).sampling)
        own_messages = "messages_to_prompt" in given
        if not own_messages:
            self.messages_to_prompt = _ChatPrompt(self._model, chat_template)
        if is_chat_model is None:
            is_chat_model = not own_messages and has_chat_template(self._model, chat_template)
        self.is_chat_model = is_chat_model

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Return a copy of the settings with the same model."""
        return self.model_copy()

    @classmethod
    @override
    def class_name(cls) -> str:
        return "ralmspec_speculative_llm"

    @property
    @override
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(
            context_window=self.loaded().lm.context or DEFAULT_CONTEXT_WINDOW,
            num_output=self.max_tokens,
            is_chat_model=self.is_chat_model,
            model_name=self.loaded().name,
        )

    @property
    def stats(self) -> DecodingStats:
        """The counts of all calls of this model so far, including those of copies."""
        return self.loaded().stats

    def loaded(self) -> "SpeculativeModel":
        """Return the loaded model."""
        model: SpeculativeModel = self._model
        return model

    @override
    def _answer(self, shown: str, given: Mapping[str, Any]) -> Answer:
        [answer] = self.loaded().answers([shown], options_of(self, given))
        return answer

    @override
    async def _aanswer(self, shown: str, given: Mapping[str, Any]) -> Answer:
        [answer] = await self.loaded().aanswers([shown], options_of(self, given))
        return answer

    @override
    def _answer_stream(self, shown: str, given: Mapping[str, Any]) -> AnswerStream:
        return self.loaded().stream(shown, options_of(self, given))

    @override
    async def _aanswer_stream(self, shown: str, given: Mapping[str, Any]) -> AsyncAnswerStream:
        return await self.loaded().astream(shown, options_of(self, given))


class _ChatPrompt:
    """Formats messages as the text that a model continues, by its chat template or another."""

    def __init__(self, model: "SpeculativeModel", template: str | None) -> None:
        self._model = model
        self._template = template

    def __call__(self, messages: Sequence[ChatMessage]) -> str:
        """Return messages formatted as a text.

        Raises:
            ModelError: there is no chat template.
            InputError: they contain more than text, or the template raises an error.
        """
        from ralmspec_plugins.adapters.speculative_model import chat_prompt, check_chat_template

        check_chat_template(
            self._model,
            self._template,
            "Set chat_template=... or messages_to_prompt=..., or complete texts.",
        )
        return chat_prompt(self._model, self._template, [*map(_plain, messages)])


def _plain(message: ChatMessage) -> dict[str, str]:
    """Return the role and the text of a message.

    Raises:
        InputError: it belongs to a tool, calls one, or contains more than text.
    """
    role = str(message.role.value)
    if role not in ("system", "user", "assistant") or message.additional_kwargs.get("tool_calls"):
        what = f"a message of {role}" if role != "assistant" else "tool calls"
        raise InputError(
            f"SpeculativeLLM accepts messages of system, user and assistant, got {what}"
        )
    other = sorted({type(one).__name__ for one in message.blocks if not isinstance(one, TextBlock)})
    if other:
        raise InputError(f"SpeculativeLLM accepts only text, got {other}")
    text = "\n".join(one.text for one in message.blocks if isinstance(one, TextBlock))
    return {"role": role, "content": text}
