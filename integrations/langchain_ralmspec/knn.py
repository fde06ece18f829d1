"""KNN-LM as a LangChain model: speculative retrieval from a datastore for each token."""

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakKeyDictionary

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseLLM
from langchain_core.outputs import GenerationChunk, LLMResult
from pydantic import ConfigDict, Field, PrivateAttr, StrictBool, StrictFloat, StrictInt
from typing_extensions import override

from langchain_ralmspec.generations import achunks_of, chunks_of, result_of
from langchain_ralmspec.options import checked_fields
from ralmspec_plugins.adapters.fingerprint import overrides_only
from ralmspec_plugins.adapters.local_model import check_model, known_by, model_name
from ralmspec_plugins.arguments import refuse_unknown
from ralmspec_plugins.knn.request import KNNRequest
from ralmspec_plugins.lm.sampling import Greedy, Sampling

if TYPE_CHECKING:
    from ralmspec_plugins.knn import KNNLanguageModel


class KNNLLM(BaseLLM):
    """A `KNNLanguageModel` as a LangChain `LLM`.

    Texts are those of `KNNLanguageModel.generate`, and so those of a plain loop that
    searches before every token. `stream` yields only text that is final; `batch`
    merges the searches of its prompts; `generation_info` has the reason of a text's end
    and, under "ralmspec", a `Report`: `stats_of(generation_info)` reads it.

    A call accepts `stop`, `max_tokens`, `seed`, `sampling`, `deadline_s` and `plain`, which apply
    to this call only; any other argument is a `TypeError`. The model is not closed with this
    object: it may be in use elsewhere.
    """

    model_config = ConfigDict(extra="forbid")

    if TYPE_CHECKING:
        lm: KNNLanguageModel
    else:
        lm: Any = Field(repr=False, exclude=True)
        """The language model, with its datastore."""

    max_tokens: StrictInt = 128
    """The maximum number of tokens of a text."""
    seed: StrictInt = 0
    """The random seed for sampling: the same prompt and seed give the same text."""
    stop: tuple[str, ...] = ()
    """Strings before which a text ends; those of a call replace them."""
    sampling: Greedy | Sampling | None = None
    """How tokens are chosen; by default as the model is set."""
    deadline_s: StrictFloat | StrictInt | None = None
    """The timeout of a text in seconds."""
    speculate: StrictBool = True
    """Whether to speculate; `False` gives the same text, with one search at a time."""

    # The fingerprints of each model; not a plain value, whose change would count as a side effect.
    _names: WeakKeyDictionary[Any, dict[str, Any]] = PrivateAttr(default_factory=WeakKeyDictionary)

    def __init__(self, **fields: Any) -> None:
        """Create a model with these settings.

        Raises:
            ConfigError: a field is unknown, of another type, or out of range.
        """
        with checked_fields(type(self)):
            super().__init__(**fields)
        check_model(self.lm)  # not in a validator: pydantic would wrap its errors
        KNNRequest("", **self._options(None, {}))

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Return a copy of the settings with the same model."""
        return self.model_copy()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Raise an error: the model cannot be pickled.

        Raises:
            TypeError: a model with an open datastore belongs to its process.
        """
        raise TypeError(
            f"{type(self).__name__} cannot be pickled: its model and datastore are open in this "
            "process. Create it again where it is needed, from the same folders"
        )

    @property
    def model_name(self) -> str:
        """The name by which the model was loaded."""
        return model_name(self.lm)

    @property
    @override
    def _llm_type(self) -> str:
        return "ralmspec-knn"

    @property
    @override
    def _identifying_params(self) -> dict[str, Any]:
        """All settings that texts depend on: the key of the model in LangChain's caches."""
        if self.lm not in self._names:
            self._names[self.lm] = known_by(self.lm)
        sampling = self.sampling if self.sampling is not None else self.lm.sampling
        return {
            **self._names[self.lm],
            "sampling": repr(sampling),
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            "own_stop": list(self.stop),  # the host puts the call's own under "stop"
        }

    @override
    def get_token_ids(self, text: str) -> list[int]:
        """Return the model's tokens; the host's method would load GPT-2's tokenizer."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return list(self.lm.model.encode(text))

    def _options(self, stop: Sequence[str] | None, given: dict[str, Any]) -> dict[str, Any]:
        """Return the fields, overridden by a call's arguments."""
        own = {
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            "stop": self.stop if stop is None else stop,
            "sampling": self.sampling,
            "deadline_s": self.deadline_s,
            "plain": not self.speculate,
        }
        refuse_unknown(given.keys(), own.keys())
        return {**own, **given}

    @override
    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        options = self._options(stop, kwargs)
        if len(prompts) == 1:
            return result_of([self.lm.generate(prompts[0], **options)], self.model_name)
        asked = [KNNRequest(prompt, **options) for prompt in prompts]
        engine = self.lm.engine(options["sampling"], plain=options["plain"])
        return result_of(engine.batch([one.request for one in asked]), self.model_name)

    @override
    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        if overrides_only(self, KNNLLM, "_generate", "_agenerate"):
            return await super()._agenerate(prompts, stop, run_manager, **kwargs)
        options = self._options(stop, kwargs)
        if len(prompts) == 1:
            return result_of([await self.lm.agenerate(prompts[0], **options)], self.model_name)
        asked = [KNNRequest(prompt, **options) for prompt in prompts]
        engine = self.lm.async_engine(options["sampling"], plain=options["plain"])
        return result_of(await engine.batch([one.request for one in asked]), self.model_name)

    @override
    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        return chunks_of(self.lm.stream(prompt, **self._options(stop, kwargs)), run_manager)

    @override
    def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        if overrides_only(self, KNNLLM, "_stream", "_astream"):
            return super()._astream(prompt, stop, run_manager, **kwargs)
        pieces = self.lm.astream(prompt, **self._options(stop, kwargs))
        return achunks_of(pieces, run_manager)
