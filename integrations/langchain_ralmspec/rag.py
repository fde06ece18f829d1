"""A retriever and a model as one LangChain runnable that speculates."""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, closing
from copy import deepcopy
from dataclasses import fields
from functools import partial
from typing import Any, Self, TypeAlias

from langchain_core.documents import Document
from langchain_core.output_parsers import BaseOutputParser
from langchain_core.prompts import BasePromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
from langchain_core.runnables.utils import ConfigurableFieldSpec, get_unique_config_specs
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    PrivateAttr,
    StrictBool,
    StrictFloat,
    StrictInt,
)
from typing_extensions import override

from langchain_ralmspec.options import checked_fields
from langchain_ralmspec.pipeline import Assembly, PipelineSettings, RequestRun
from langchain_ralmspec.response import (
    ChainShape,
    Output,
    Reply,
    ReportedReply,
    given_out,
    whole,
)
from langchain_ralmspec.serving import RAGPipeline
from ralmspec_plugins import Continuous, FixedStride, OptimalStride, QueryCache, SharedPassageCache
from ralmspec_plugins.adapters.engines import OwnPool, Runtime, WorkloadMaker, WorkloadName
from ralmspec_plugins.adapters.retriever_state import BatchMode, HostStats
from ralmspec_plugins.adapters.text_model import Bound, Continuation
from ralmspec_plugins.engine.streams import IterationEndError

Question: TypeAlias = str | dict[str, Any]
Given: TypeAlias = Any  # a reply or a piece of one: a dict; with `output="answer"`, the answer's


class SpeculativeRAG(RunnableSerializable[Question, Given]):
    """Answers questions with a retriever and a model by iterative speculative retrieval.

    The answer is that of the loop which a user would write manually with the same
    objects, in less time. It can be used like any runnable: with `|`, `with_retry`,
    `RunnableParallel`, as a LangGraph node. The input is a question, or a dict with `input` (or
    `question`); the output is a dict with the input's keys, `context` (the documents of all
    retrievals, each once, in order of use), and `answer`. A `ReportHandler` among the
    callbacks receives the statistics.

    >>> from langchain_core.embeddings import DeterministicFakeEmbedding
    >>> from langchain_core.language_models import FakeListLLM
    >>> from langchain_core.vectorstores import InMemoryVectorStore
    >>> store = InMemoryVectorStore.from_texts(["red fox"], DeterministicFakeEmbedding(size=8))
    >>> llm = FakeListLLM(responses=["The fox is red."])
    >>> rag = SpeculativeRAG.from_llm(llm, store.as_retriever(), workload="one_shot")
    >>> reply = rag.invoke("What colour is the fox?")
    >>> reply["answer"], [document.page_content for document in reply["context"]]
    ('The fox is red.', ['red fox'])
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", frozen=True)

    retriever: Runnable[Any, Any]
    """Any retriever; vector stores are inspected (docs/langchain.md)."""
    llm: Runnable[Any, Any]
    """A `BaseLLM` or `BaseChatModel`; for `workload="one_shot"` any runnable."""
    query: Runnable[Any, Any] | None = None
    """Makes the first query from the input if it is not the question itself, such as a chain that
    rewrites the question by the chat history. Called once, before anything is guessed."""

    prompt: InstanceOf[BasePromptTemplate] | None = None  # type: ignore[type-arg]
    """The model's prompt, with `context`, and `input` or `question`."""
    document_prompt: InstanceOf[BasePromptTemplate] | None = None  # type: ignore[type-arg]
    """Formats a document; only its text by default."""
    document_separator: str = "\n\n"
    document_variable_name: str = "context"
    question_key: str = "input"
    """The key of the question in a dict; the prompt may use this name, too."""
    output: Output = "reply"
    """The output: the whole reply, or only the answer."""
    report: StrictBool = False
    """Whether a reply includes its `Report`, under "ralmspec"."""
    format_docs: Callable[[list[Document]], str] | None = None
    """Formats all documents, instead of `document_prompt` and `document_separator`."""
    output_parser: InstanceOf[BaseOutputParser] | None = None  # type: ignore[type-arg]
    """Makes `answer` from the whole text; the text itself by default."""

    workload: WorkloadName | WorkloadMaker | None = None
    """"sentences" (the default: a sentence per step), "interval" (a few tokens per step; the
    default with `direct`), "one_shot" (one retrieval, one call), "flare", "iter_retgen",
    "multi_hop" (docs/workloads.md), or a function from a model to a workload, such as
    `functools.partial(Interval, interval=8)`."""
    direct: StrictBool = False
    """Whether a local Hugging Face model is driven by tokens and key-value cache, not by calls."""
    decoding: Any = Field(default=None, repr=False)
    """With `direct`: a `Decoding`, which enables speculative decoding (docs/decoding.md)."""
    bound: Bound | None = None
    """How a call is bounded to n tokens; known for the usual classes."""
    continuation: Continuation | None = None
    """How the chat model continues its own last message; known for the usual classes."""
    logprobs: Mapping[str, Any] | None = None
    """The arguments of a call that request log-probabilities in OpenAI's form, for "flare"; known
    for OpenAI's classes."""
    sentence_stop: str | None = None
    """The stop string that ends a sentence, for models whose output cannot be bounded."""
    max_tokens: StrictInt | None = None
    """The maximum number of tokens of an answer, by the bounds of its steps: 256, for sentences
    1024.

    With `workload="one_shot"` the model's own setting applies instead."""
    stop: tuple[str, ...] = ()
    seed: StrictInt = 0
    """The random seed for sampling with `direct`."""
    deadline_s: StrictFloat | StrictInt | None = None

    speculate: StrictBool = True
    """Whether to speculate; `False`: the plain loop."""
    guess_through: StrictBool = False
    """Whether to call the model speculatively even if its calls are observed to have side
    effects."""
    schedule: Continuous | OptimalStride | FixedStride | None = None
    """How far to speculate; `Continuous` by default, with lanes if single calls may run in
    parallel."""
    prefetch: StrictInt | None = None
    """The number of documents of a wider search for the pool, where possible: max(20, 20 k),
    at most 80, or 2 k."""
    pool: SharedPassageCache | None = Field(default_factory=OwnPool)
    """The passage cache of documents found so far, for guesses. It is shared by all calls; by
    default only if the search uses only LangChain's own classes. `None`: one per request."""
    memo: QueryCache | None = None
    """Caches results of searches, which are used without a new search: for an index that does not
    change, or if `invalidate` is called after a change."""
    replica: BaseRetriever | None = None
    """A cheap retriever over the same documents that guesses for an expensive one."""
    max_wasted_tokens: StrictInt | None = None
    """The maximum number of tokens that the wrong guesses of one answer may cost, by what the
    model reports: then its next searches are waited for. 0: no guess; `None`: no limit."""
    max_wasted_encodings: StrictInt | None = None
    """The same for the embeddings of queries that are not part of the answer."""
    max_wasted_share: StrictFloat | StrictInt | None = None
    """The share of discarded calls among all calls of the model, 0 to 1, in all answers of this
    object and of its copies; with 0.1 the first call on a guess is made after nine others."""
    max_concurrent_calls: StrictInt | None = None
    """The maximum number of the model's calls at once, in all requests of this object and of its
    copies: others wait, and those that depend on no guess go first. `None`: no limit."""
    batching: BatchMode = "exact"
    """Which batch searches are used: "exact", "probed" or "off" (docs/langchain.md)."""
    side_by_side: StrictInt = 8
    """The maximum number of concurrent single calls of the retriever, and of queries that are
    embedded in parallel where the embedding model is waited for."""
    pure: StrictBool | None = None
    """Whether the retriever finds the same documents for the same query; by default determined by
    its class."""

    chain: ChainShape | None = Field(default=None, repr=False)
    """The shape of the chain from which `speculate()` made this object."""
    runtime: Runtime = Field(default_factory=Runtime, exclude=True, repr=False)
    """Threads and measurements; shared by the copies that LangChain makes."""

    _assembly: Assembly = PrivateAttr()

    def __init__(self, **values: Any) -> None:
        """Create the runnable.

        Raises:
            ConfigError: a field is unknown or of another type, or the parts are not compatible;
                the message says what to do.
        """
        with checked_fields(type(self)):
            super().__init__(**values)
        self._assembly = self._assemble()  # not in a validator: pydantic would wrap its errors

    def _assemble(self) -> Assembly:
        settings = {field.name: getattr(self, field.name) for field in fields(PipelineSettings)}
        return Assembly(PipelineSettings(**settings))

    @classmethod
    def from_llm(
        cls,
        llm: Runnable[Any, Any],
        retriever: Runnable[Any, Any],
        prompt: BasePromptTemplate[Any] | None = None,
        **settings: Any,
    ) -> Self:
        """Create the runnable of a model and a retriever.

        Raises:
            ConfigError: the parts are not compatible; the message says what to do.
        """
        return cls(llm=llm, retriever=retriever, prompt=prompt, **settings)

    @property
    @override
    def config_specs(self) -> list[ConfigurableFieldSpec]:
        parts = (self.retriever, self.llm, *(() if self.query is None else (self.query,)))
        return get_unique_config_specs(spec for part in parts for spec in part.config_specs)

    @property
    @override
    def InputType(self) -> Any:
        return Question if self._like is None else self._like.InputType

    @property
    @override
    def OutputType(self) -> Any:
        if self._like is not None:
            return self._like.OutputType
        if self.output != "reply":
            return Any
        return ReportedReply if self.report else Reply

    @override
    def get_input_schema(self, config: RunnableConfig | None = None) -> type[BaseModel]:
        like: Any = super() if self._like is None else self._like
        schema: type[BaseModel] = like.get_input_schema(config)
        return schema

    @override
    def get_output_schema(self, config: RunnableConfig | None = None) -> type[BaseModel]:
        like: Any = super() if self._like is None else self._like
        schema: type[BaseModel] = like.get_output_schema(config)
        return schema

    @property
    def _like(self) -> Runnable[Any, Any] | None:
        return None if self.chain is None else self.chain.like

    @override
    def invoke(self, input: Question, config: RunnableConfig | None = None, **kwargs: Any) -> Given:
        """Answer a question.

        Args:
            input: a question, or a dict with `input` or `question`.
            config: LangChain's config.
            kwargs: `stop`, `max_tokens`, `seed` or `deadline_s`, for this call only.

        Raises:
            InputError: there is no question.
            Exception: the error of the plain loop.
        """
        return self._call_with_config(partial(self._invoke, settings=kwargs), input, config)

    @override
    async def ainvoke(
        self, input: Question, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Given:
        """Answer a question on an event loop."""
        answer = partial(self._ainvoke, settings=kwargs)
        return await self._acall_with_config(answer, input, config)

    @override
    def stream(
        self, input: Question, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[Given]:
        """Yield the reply in pieces: input, documents when confirmed, text when settled."""
        pieces = partial(self._transform, settings=kwargs)
        yield from self._transform_stream_with_config(iter([input]), pieces, config)

    @override
    def astream(
        self, input: Question, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Given]:
        """Yield the reply in pieces on an event loop."""

        # The host's own generator without another one around it: nested generators that an event
        # loop closes at its end are reported as errors.
        async def inputs() -> AsyncIterator[Question]:
            yield input

        pieces = partial(self._atransform, settings=kwargs)
        given: Any = self._atransform_stream_with_config(inputs(), pieces, config)
        pieces_of: AsyncIterator[Given] = given
        return pieces_of

    @override
    def batch(
        self,
        inputs: list[Question],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Given]:
        """Answer many questions at once: their searches are merged, and they share a pool."""
        together = self._together()
        return super(SpeculativeRAG, together).batch(
            inputs, config, return_exceptions=return_exceptions, **kwargs
        )

    @override
    async def abatch(
        self,
        inputs: list[Question],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Given]:
        """Answer many questions at once on an event loop."""
        together = self._together()
        return await super(SpeculativeRAG, together).abatch(
            inputs, config, return_exceptions=return_exceptions, **kwargs
        )

    @property
    def stats(self) -> HostStats:
        """The calls of the retriever's store so far: round trips, and queries in them."""
        return self._assembly.stats

    def invalidate(self) -> None:
        """Clear memo and pool, after a change of the index.

        Results of requests that are running are not cached for later ones.
        """
        for cache in (self.memo, self.pool):
            if cache is not None:
                cache.invalidate()

    def as_pipeline(self) -> RAGPipeline:
        """Return this as a pipeline of a server (`ralmspec_plugins.serving`)."""
        return RAGPipeline(self)

    def close(self) -> None:
        """Wait for searches that are no longer needed, and shut down the threads.

        Without it they end when the runnable is garbage-collected.
        """
        self.runtime.close()

    @override
    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        copied = super().model_copy(update=update, deep=deep)
        copied._assembly = copied._assemble()  # noqa: SLF001 its own class
        return copied

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return type(self)(**deepcopy(self._set_fields(), memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), **self._set_fields()), ()

    def _set_fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.model_fields_set}

    def _together(self) -> "SpeculativeRAG":
        return (
            self
            if self.pool is not None
            else self.model_copy(update={"pool": SharedPassageCache()})
        )

    def _invoke(
        self, value: Question, config: RunnableConfig, *, settings: Mapping[str, Any]
    ) -> Given:
        asked = self._assembly.asked(value, config, settings)
        run = RequestRun(self._assembly, asked, config, settings, streamed=False)
        try:
            return whole(run.pieces(), self.output)
        except IterationEndError as end:  # outside of an iterator: the error as the part raised it
            raise end.error from end.error.__cause__

    async def _ainvoke(
        self, value: Question, config: RunnableConfig, *, settings: Mapping[str, Any]
    ) -> Given:
        asked = await self._assembly.aasked(value, config, settings)
        run = RequestRun(self._assembly, asked, config, settings, streamed=False)
        try:
            return whole([piece async for piece in run.apieces()], self.output)
        except IterationEndError as end:
            raise end.error from end.error.__cause__

    def _transform(
        self, values: Iterator[Question], config: RunnableConfig, *, settings: Mapping[str, Any]
    ) -> Iterator[Given]:
        for value in values:
            asked = self._assembly.asked(value, config, settings)
            run = RequestRun(self._assembly, asked, config, settings, streamed=True)
            with closing(run.pieces()) as pieces:
                yield from given_out(pieces, self.output)

    async def _atransform(
        self,
        values: AsyncIterator[Question],
        config: RunnableConfig,
        *,
        settings: Mapping[str, Any],
    ) -> AsyncIterator[Given]:
        async for value in values:
            asked = await self._assembly.aasked(value, config, settings)
            run = RequestRun(self._assembly, asked, config, settings, streamed=True)
            async with aclosing(run.apieces()) as pieces:
                async for piece in pieces:
                    for part in given_out([piece], self.output):
                        yield part
