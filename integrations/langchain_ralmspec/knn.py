"""KNN-LM as a LangChain model: each token is looked up in a datastore, speculatively."""

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
from ralmspec_plugins.adapters.arguments import refuse_unknown
from ralmspec_plugins.adapters.local_model import check_model, known_by, model_name
from ralmspec_plugins.knn.request import KNNRequest
from ralmspec_plugins.lm.sampling import Greedy, Sampling

if TYPE_CHECKING:
    from ralmspec_plugins.knn import KNNLanguageModel


class KNNLLM(BaseLLM):
    """Writes with a `KNNLanguageModel` wherever LangChain takes an `LLM`.

    Texts are those of `KNNLanguageModel.generate`, so those of a plain loop that
    searches before every token. `stream` gives out only text that stays; `batch`
    merges the searches of its prompts; `generation_info` has the reason of a text's end
    and, under "ralmspec", a `Report`: `stats_of(generation_info)` reads it.

    A call takes `stop`, and any of `max_tokens`, `seed`, `sampling`, `deadline_s` and
    `plain`, for itself alone; any other argument is a `TypeError`. The model is not
    closed with this object: it may be in use elsewhere.
    """

    model_config = ConfigDict(extra="forbid")

    if TYPE_CHECKING:
        lm: KNNLanguageModel
    else:
        lm: Any = Field(repr=False, exclude=True)
        """What writes, with its datastore."""

    max_tokens: StrictInt = 128
    """The longest text."""
    seed: StrictInt = 0
    """Of the draws, if it samples: the same prompt and seed give the same text."""
    stop: tuple[str, ...] = ()
    """Texts in front of which to end; those of a call take their place."""
    sampling: Greedy | Sampling | None = None
    """How tokens are chosen; as the model itself does by default."""
    deadline_s: StrictFloat | StrictInt | None = None
    """Give a text up after so many seconds."""
    speculate: StrictBool = True
    """False: search for one token at a time. The same text, later."""

    # Of each model, what names it. Not a plain value, whose change would pass for a side effect.
    _names: WeakKeyDictionary[Any, dict[str, Any]] = PrivateAttr(default_factory=WeakKeyDictionary)

    def __init__(self, **fields: Any) -> None:
        """Put the settings around a model.

        Raises:
            ConfigError: a field of another type, an unknown one, or a number out of range.
        """
        with checked_fields(type(self)):
            super().__init__(**fields)
        check_model(self.lm)  # not in a validator: pydantic would wrap its errors
        KNNRequest("", **self._options(None, {}))

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Copy the settings; the model stays the same one."""
        return self.model_copy()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to be pickled.

        Raises:
            TypeError: a model with an open datastore belongs to its process.
        """
        raise TypeError(
            f"{type(self).__name__} cannot be pickled: its model and datastore are open in this "
            "process. Make it anew where it is needed, from the same folders"
        )

    @property
    def model_name(self) -> str:
        """The name that the model was loaded by."""
        return model_name(self.lm)

    @property
    @override
    def _llm_type(self) -> str:
        return "ralmspec-knn"

    @property
    @override
    def _identifying_params(self) -> dict[str, Any]:
        """Name all that texts depend on: LangChain's caches tell models apart by it."""
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
        """Tokenise as the model does; the host's way would ask the hub for GPT-2's tokenizer."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return list(self.lm.model.encode(text))

    def _options(self, stop: Sequence[str] | None, given: dict[str, Any]) -> dict[str, Any]:
        """Lay a call's arguments over the fields."""
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
        pieces = self.lm.astream(prompt, **self._options(stop, kwargs))
        return achunks_of(pieces, run_manager)
