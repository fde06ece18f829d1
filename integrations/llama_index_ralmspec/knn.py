"""KNN-LM as a LlamaIndex model: each token is looked up in a datastore, speculatively."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.generic_utils import (
    astream_completion_response_to_chat_response,
    completion_response_to_chat_response,
)
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from typing_extensions import override

from llama_index_ralmspec.completions import aresponses_of, response_of, responses_of
from ralmspec_plugins.adapters.arguments import refuse_unknown
from ralmspec_plugins.adapters.local_model import check_model, model_name
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.knn.request import KNNRequest
from ralmspec_plugins.lm.sampling import Greedy, Sampling

if TYPE_CHECKING:
    from ralmspec_plugins.knn import KNNLanguageModel


class KNNLLM(CustomLLM):
    """Writes with a `KNNLanguageModel` wherever LlamaIndex takes an `LLM`.

    Texts are those of `KNNLanguageModel.generate`, so those of a plain loop that
    searches before every token. Streams give out only text that stays. It completes
    texts; messages are shown to it as one text (`messages_to_prompt`). `raw` of a response,
    of a stream's last one, has the reason of the text's end, the tokens that the host's
    counters read and, under "ralmspec", a `Report`.

    A call takes any of `max_tokens`, `stop`, `seed`, `sampling`, `deadline_s` and
    `plain`, for itself alone; any other argument is a `TypeError`. The model is not
    closed with this object: it may be in use elsewhere.

    Attributes:
        max_tokens: the longest text.
        seed: of the draws, if it samples: the same prompt and seed give the same text.
        stop: texts in front of which to end; those of a call take their place.
        sampling: how tokens are chosen; as the model itself does by default.
        deadline_s: give a text up after so many seconds.
        speculate: False: search for one token at a time. The same text, later.
    """

    max_tokens: int = 128
    seed: int = 0
    stop: tuple[str, ...] = ()
    sampling: Greedy | Sampling | None = None
    deadline_s: float | None = None
    speculate: bool = True

    _lm: Any = PrivateAttr()

    def __init__(
        self,
        lm: "KNNLanguageModel",
        *,
        max_tokens: int = 128,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        sampling: Greedy | Sampling | None = None,
        deadline_s: float | None = None,
        speculate: bool = True,
        **host: Any,
    ) -> None:
        """Put settings around a model.

        Args:
            lm: what writes, with its datastore.
            max_tokens: see `Attributes`, as for those that follow.
            seed: as above.
            stop: one text, or several.
            sampling: as above.
            deadline_s: as above.
            speculate: as above.
            host: what every LLM of the host takes: `callback_manager`, `system_prompt`,
                `messages_to_prompt`, `completion_to_prompt`, `output_parser`, and so on.

        Raises:
            TypeError: an unknown argument.
            ConfigError: `lm` is no `KNNLanguageModel`, or a value has another type or is out of
                range.
        """
        check_model(lm)
        refuse_unknown(host.keys(), type(self).model_fields.keys())
        if not isinstance(speculate, bool):
            raise ConfigError(f"speculate must be True or False, got {speculate!r}")
        KNNRequest(
            "",
            max_tokens=max_tokens,
            seed=seed,
            stop=stop,
            sampling=sampling,
            deadline_s=deadline_s,
        )
        super().__init__(
            max_tokens=max_tokens,
            seed=seed,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            sampling=sampling,
            deadline_s=deadline_s,
            speculate=speculate,
            **{name: value for name, value in host.items() if value is not None},
        )
        self._lm = lm

    @property
    def lm(self) -> "KNNLanguageModel":
        """What writes, with its datastore."""
        lm: KNNLanguageModel = self._lm
        return lm

    @classmethod
    @override
    def class_name(cls) -> str:
        return "ralmspec_knn_llm"

    @property
    @override
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(
            context_window=self.lm.model.context or DEFAULT_CONTEXT_WINDOW,
            num_output=self.max_tokens,
            model_name=model_name(self.lm),
        )

    def _options(self, given: dict[str, Any]) -> dict[str, Any]:
        """Lay a call's arguments over the settings."""
        own = {
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            "stop": self.stop,
            "sampling": self.sampling,
            "deadline_s": self.deadline_s,
            "plain": not self.speculate,
        }
        refuse_unknown(given.keys(), own.keys())
        return {**own, **given}

    def _shown(self, prompt: str, *, formatted: bool) -> str:
        """Give what the model is to continue; the host's own parts have formatted it already."""
        assert self.completion_to_prompt is not None, "the host fills it in"
        return prompt if formatted else self.completion_to_prompt(prompt)

    def _told(self, messages: Sequence[ChatMessage]) -> str:
        """Show messages as one text."""
        assert self.messages_to_prompt is not None, "the host fills it in"
        return self.messages_to_prompt(messages)

    @llm_completion_callback()
    @override
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Continue a text."""
        shown = self._shown(prompt, formatted=formatted)
        return response_of(self.lm.generate(shown, **self._options(kwargs)))

    @llm_completion_callback()
    @override
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """Continue a text without holding up the event loop."""
        shown = self._shown(prompt, formatted=formatted)
        return response_of(await self.lm.agenerate(shown, **self._options(kwargs)))

    @llm_completion_callback()
    @override
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """Continue a text piece by piece; the last piece is empty, and has `raw`."""
        stream = self.lm.stream(self._shown(prompt, formatted=formatted), **self._options(kwargs))

        return responses_of(stream)

    @llm_completion_callback()
    @override
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """Continue a text piece by piece without holding up the event loop."""
        stream = self.lm.astream(self._shown(prompt, formatted=formatted), **self._options(kwargs))

        return aresponses_of(stream)

    @llm_chat_callback()
    @override
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer messages without holding up the event loop, as the host's way would."""
        response = await self.acomplete(self._told(messages), formatted=True, **kwargs)
        return completion_response_to_chat_response(response)

    @llm_chat_callback()
    @override
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """Answer messages piece by piece, likewise."""
        responses = await self.astream_complete(self._told(messages), formatted=True, **kwargs)
        return astream_completion_response_to_chat_response(responses)
