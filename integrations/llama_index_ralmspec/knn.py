"""KNN-LM as a LlamaIndex model: speculative retrieval from a datastore for each token."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import (
    LLMMetadata,
)
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW
from typing_extensions import override

from llama_index_ralmspec.completions import AnsweringLLM
from ralmspec_plugins.adapters.local_model import check_model, model_name
from ralmspec_plugins.arguments import refuse_unknown
from ralmspec_plugins.engine.streams import AnswerStream, AsyncAnswerStream
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.knn.request import KNNRequest
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.types import Answer

if TYPE_CHECKING:
    from ralmspec_plugins.knn import KNNLanguageModel


class KNNLLM(AnsweringLLM):
    """A `KNNLanguageModel` as a LlamaIndex `LLM`.

    Texts are those of `KNNLanguageModel.generate`, and so those of a plain loop that
    searches before every token. Streams yield only text that is final. It completes
    texts; messages are formatted as one text (`messages_to_prompt`). `raw` of a response,
    or of a stream's last one, has the reason of the text's end, the token counts for the
    host's counters and, under "ralmspec", a `Report`.

    A call accepts `max_tokens`, `stop`, `seed`, `sampling`, `deadline_s` and `plain`, which apply
    to this call only; any other argument is a `TypeError`. The model is not closed with this
    object: it may be in use elsewhere.

    Attributes:
        max_tokens: the maximum number of tokens of a text.
        seed: the random seed for sampling: the same prompt and seed give the same text.
        stop: strings before which a text ends; those of a call replace them.
        sampling: how tokens are chosen; by default as the model is set.
        deadline_s: the timeout of a text in seconds.
        speculate: whether to speculate; `False` gives the same text, with one search at a time.
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
        """Create a model with these settings.

        Args:
            lm: the language model, with its datastore.
            max_tokens: see `Attributes`.
            seed: as above.
            stop: one string, or several.
            sampling: as above.
            deadline_s: as above.
            speculate: as above.
            host: the fields of every LLM of the host: `callback_manager`, `system_prompt`,
                `messages_to_prompt`, `completion_to_prompt`, `output_parser`, and so on.

        Raises:
            TypeError: an argument is unknown.
            ConfigError: `lm` is not a `KNNLanguageModel`, or a value has another type or is out of
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
        """The language model, with its datastore."""
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

    def _options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings, overridden by a call's arguments."""
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

    @override
    def _answer(self, shown: str, given: Mapping[str, Any]) -> Answer:
        return self.lm.generate(shown, **self._options(given))

    @override
    async def _aanswer(self, shown: str, given: Mapping[str, Any]) -> Answer:
        return await self.lm.agenerate(shown, **self._options(given))

    @override
    def _answer_stream(self, shown: str, given: Mapping[str, Any]) -> AnswerStream:
        return self.lm.stream(shown, **self._options(given))

    @override
    async def _aanswer_stream(self, shown: str, given: Mapping[str, Any]) -> AsyncAnswerStream:
        return self.lm.astream(shown, **self._options(given))
