"""LlamaIndex' query engine over a retriever with speculation: the same responses in less time."""

from collections.abc import Sequence
from dataclasses import replace
from inspect import signature
from types import FunctionType
from typing import Any, Final, Self

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.indices.base import BaseIndex
from llama_index.core.llms import LLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import BaseSynthesizer, ResponseMode
from llama_index.core.schema import QueryBundle
from llama_index.core.workflow import Workflow

from llama_index_ralmspec.agents import AgentOptions, speculate_agent
from llama_index_ralmspec.options import NAMES, Options
from llama_index_ralmspec.pipeline import Assembly, RequestRun, key_of
from llama_index_ralmspec.response import PlainRun
from llama_index_ralmspec.serving import QueryEnginePipeline
from ralmspec_plugins.adapters.engines import Runtime
from ralmspec_plugins.adapters.fingerprint import overridden
from ralmspec_plugins.adapters.retriever_state import HostStats
from ralmspec_plugins.arguments import refuse_unknown
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.speculators.passage_cache import SharedPassageCache
from ralmspec_plugins.speculators.query_cache import QueryCache

# Methods that the host's query engine calls for a query, and this one does not.
_UNCALLED: Final = (
    *("retrieve", "aretrieve", "synthesize", "asynthesize"),
    *("_apply_node_postprocessors", "_async_apply_node_postprocessors"),
)


class SpeculativeQueryEngine(RetrieverQueryEngine):
    """Answers as a `RetrieverQueryEngine`, without waiting for its searches.

    With `workload="one_shot"`, the default, the response is exactly that of the host's
    query engine with the same retriever, node postprocessors and response synthesizer:
    text, nodes, scores, metadata. With "sentences" or "interval" it is that of the loop
    which a user would write manually, with a retrieval for each sentence or every few tokens.

    It can be used like any query engine: in a `QueryEngineTool`, a router, a chat engine.

    >>> from llama_index.core import MockEmbedding, VectorStoreIndex
    >>> from llama_index.core.llms import MockLLM
    >>> from llama_index.core.schema import TextNode
    >>> index = VectorStoreIndex([TextNode(text="The fox is red.")], embed_model=MockEmbedding(8))
    >>> with SpeculativeQueryEngine.from_index(index, llm=MockLLM(max_tokens=4)) as engine:
    ...     response = engine.query("What colour is the fox?")
    >>> str(response), [node.get_content() for node in response.source_nodes]
    ('text text text text', ['The fox is red.'])
    """

    def __init__(
        self,
        retriever: BaseRetriever,
        response_synthesizer: BaseSynthesizer | None = None,
        node_postprocessors: list[BaseNodePostprocessor] | None = None,
        callback_manager: CallbackManager | None = None,
        **options: Any,
    ) -> None:
        """Create a query engine, with the arguments of `RetrieverQueryEngine` first.

        Args:
            retriever: any retriever of the host; vector stores are inspected.
            response_synthesizer: writes the response; by default with `Settings.llm`. Workloads
                with many steps use its model and its text_qa_template.
            node_postprocessors: applied to the nodes found in every step.
            callback_manager: the host's callback manager.
            options: see `Options`.

        Raises:
            TypeError: an option is unknown.
            ConfigError: the parts are not compatible; the message says what to do.
        """
        self._use(Options(**options), Runtime())
        super().__init__(retriever, response_synthesizer, node_postprocessors, callback_manager)
        self._assembled()  # raises errors early

    def _use(self, options: Options, runtime: Runtime) -> None:
        _refuse_uncalled(type(self))
        self._options = options
        self._runtime = runtime
        self._assembly: Assembly | None = None

    @classmethod
    def from_args(
        cls,
        retriever: BaseRetriever,
        llm: LLM | None = None,
        response_synthesizer: BaseSynthesizer | None = None,
        node_postprocessors: list[BaseNodePostprocessor] | None = None,
        callback_manager: CallbackManager | None = None,
        response_mode: ResponseMode = ResponseMode.COMPACT,
        text_qa_template: BasePromptTemplate | None = None,
        refine_template: BasePromptTemplate | None = None,
        summary_template: BasePromptTemplate | None = None,
        simple_template: BasePromptTemplate | None = None,
        chat_content_qa_template: BasePromptTemplate | None = None,
        chat_content_refine_template: BasePromptTemplate | None = None,
        output_cls: type[BaseModel] | None = None,
        use_async: bool = False,
        streaming: bool = False,
        verbose: bool = False,
        multimodal: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Create an engine by the arguments of `RetrieverQueryEngine.from_args` and `Options`.

        Raises:
            TypeError: an argument is unknown; the host would ignore it.
            ConfigError: the parts are not compatible; the message says what to do.
        """
        refuse_unknown(kwargs.keys(), NAMES, beside=signature(cls.from_args).parameters)
        if not isinstance(retriever, BaseRetriever):
            raise ConfigError(
                f"from_args() takes a retriever, got {type(retriever).__name__}; for an index use "
                "from_index(index, ...), for a query engine wrap(engine, ...)"
            )
        host = RetrieverQueryEngine.from_args(
            retriever,
            llm=llm,
            response_synthesizer=response_synthesizer,
            node_postprocessors=node_postprocessors,
            callback_manager=callback_manager,
            response_mode=response_mode,
            text_qa_template=text_qa_template,
            refine_template=refine_template,
            summary_template=summary_template,
            simple_template=simple_template,
            chat_content_qa_template=chat_content_qa_template,
            chat_content_refine_template=chat_content_refine_template,
            output_cls=output_cls,
            use_async=use_async,
            streaming=streaming,
            verbose=verbose,
            multimodal=multimodal,
        )
        return cls.wrap(host, **kwargs)

    @classmethod
    def from_index(cls, index: BaseIndex[Any], **arguments: Any) -> Self:
        """Create an engine in place of `index.as_query_engine(...)`.

        Args:
            index: the index.
            arguments: those of `as_query_engine`, including those of the retriever
                (`similarity_top_k`, `filters`, ...), and those of `Options`.

        Raises:
            TypeError: an argument is unknown; the host would ignore it.
            ConfigError: the index has no query engine over a retriever, or the parts are not
                compatible.
        """
        if not isinstance(index, BaseIndex):
            raise ConfigError(
                f"from_index() takes an index, got {type(index).__name__}; for a retriever use "
                "from_args(retriever, ...), for a query engine wrap(engine, ...)"
            )
        own = {name: arguments.pop(name) for name in NAMES & arguments.keys()}
        engine = index.as_query_engine(**arguments)
        _check_arguments(index, getattr(engine, "retriever", None), arguments)
        return cls.wrap(engine, **own)

    @classmethod
    def wrap(cls, engine: Any, **options: Any) -> Self:
        """Create an engine from the parts of an existing query engine.

        Args:
            engine: a `RetrieverQueryEngine`.
            options: see `Options`.

        Raises:
            ConfigError: it is another kind of engine, or the parts are not compatible.
        """
        _check_wrappable(engine)
        return cls(
            engine.retriever,
            engine._response_synthesizer,  # noqa: SLF001 the host has no other name for them
            list(engine._node_postprocessors),  # noqa: SLF001
            engine.callback_manager,
            **options,
        )

    @property
    def options(self) -> Options:
        """The options of speculation."""
        return self._options

    def with_options(self, **changed: Any) -> Self:
        """Return the same engine with other options; measurements and threads are shared.

        Raises:
            TypeError: an option is unknown.
            ConfigError: the options are not compatible with the parts.
        """
        return self._like(self._retriever, replace(self._options, **changed), self._runtime)

    def with_retriever(self, retriever: BaseRetriever) -> Self:
        """Return the same engine over another retriever."""
        return self._like(retriever, self._options, Runtime())

    def _like(self, retriever: BaseRetriever, options: Options, runtime: Runtime) -> Self:
        made = object.__new__(type(self))
        made._use(options, runtime)
        RetrieverQueryEngine.__init__(
            made,
            retriever,
            self._response_synthesizer,
            self._node_postprocessors,
            self.callback_manager,
        )
        made._assembled()
        return made

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the assembled parts, which a copy creates again."""
        return {**vars(self), "_assembly": None}

    def _assembled(self) -> Assembly:
        """Return the assembled parts; created again if the host's parts were replaced."""
        processors: Sequence[BaseNodePostprocessor] = self._node_postprocessors
        parts = (self._retriever, self._response_synthesizer, processors)
        if self._assembly is None or self._assembly.key != key_of(*parts):
            self._assembly = Assembly(*parts, self._options, self._runtime)
        return self._assembly

    def _query(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        """Answer a query."""
        payload: dict[str, Any] = {EventPayload.QUERY_STR: query_bundle.query_str}
        with self.callback_manager.event(CBEventType.QUERY, payload=payload) as told:
            assembly = self._assembled()
            engines = assembly.engines(query_bundle)
            if engines is None:
                response = self._synthesized(query_bundle)
            else:
                response = RequestRun(assembly, engines, query_bundle).response()
            told.on_end(payload={EventPayload.RESPONSE: response})
        return response

    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        """Answer a query on an event loop."""
        payload: dict[str, Any] = {EventPayload.QUERY_STR: query_bundle.query_str}
        with self.callback_manager.event(CBEventType.QUERY, payload=payload) as told:
            assembly = self._assembled()
            engines = assembly.engines(query_bundle, asynchronous=True)
            if engines is None:
                response = await self._asynthesized(query_bundle)
            else:
                run = RequestRun(assembly, engines, query_bundle, asynchronous=True)
                response = await run.aresponse()
            told.on_end(payload={EventPayload.RESPONSE: response})
        return response

    def _synthesized(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        """Answer a query as the host does, because nothing can be guessed."""
        began = PlainRun(query_bundle.query_str, in_metadata=self._options.report)
        nodes = began.retrieved(self.retrieve(query_bundle))
        self._assembled().note_call(len(nodes))
        response = self._response_synthesizer.synthesize(query=query_bundle, nodes=nodes)
        return began.reported(response)

    async def _asynthesized(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        """Answer a query as the host does, on an event loop."""
        began = PlainRun(query_bundle.query_str, in_metadata=self._options.report)
        nodes = began.retrieved(await self.aretrieve(query_bundle))
        self._assembled().note_call(len(nodes))
        response = await self._response_synthesizer.asynthesize(query=query_bundle, nodes=nodes)
        return began.reported(response)

    @property
    def stats(self) -> HostStats:
        """The calls of the retriever's store so far: round trips, and queries in them."""
        return self._assembled().stats

    def invalidate(self) -> None:
        """Clear memo and pool, after a change of the index.

        Results of queries that are running are not cached for later ones.
        """
        for cache in (self._options.memo, self._options.pool):
            if isinstance(cache, QueryCache | SharedPassageCache):
                cache.invalidate()

    def as_pipeline(self) -> QueryEnginePipeline:
        """Return this as a pipeline of a server (`ralmspec_plugins.serving`)."""
        return QueryEnginePipeline(self)

    def close(self) -> None:
        """Wait for searches that are no longer needed, and shut down the threads."""
        self._runtime.close()

    def __enter__(self) -> Self:
        """Return the engine."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the engine."""
        self.close()


def _check_wrappable(engine: Any) -> None:
    """Check that an engine consists of a retriever, postprocessors and a synthesizer.

    Raises:
        ConfigError: it does not; the message says what to use instead.
    """
    kind = type(engine)
    if isinstance(engine, BaseIndex):
        remedy = "for an index use SpeculativeQueryEngine.from_index(index, ...)"
        raise ConfigError(f"expected a RetrieverQueryEngine, got a {kind.__name__}; {remedy}")
    if isinstance(engine, BaseRetriever):
        remedy = "for a retriever use SpeculativeQueryEngine.from_args(retriever, ...)"
        raise ConfigError(f"expected a RetrieverQueryEngine, got a {kind.__name__}; {remedy}")
    if not isinstance(engine, RetrieverQueryEngine):
        raise ConfigError(
            "expected a RetrieverQueryEngine, which is a retriever, postprocessors and a "
            f"response synthesizer; got {kind.__name__}. If it calls a query engine or a "
            "retriever, pass a SpeculativeQueryEngine or a SpeculativeRetriever to it"
        )
    own = [] if isinstance(engine, SpeculativeQueryEngine) else _own_methods(kind)
    if own or overridden(engine):
        raise ConfigError(
            "expected a RetrieverQueryEngine, which is a retriever, postprocessors and a "
            f"response synthesizer; got {kind.__name__}, with methods of its own: "
            f"{', '.join(own) or 'replaced on the object'}. "
            "Pass the parts to SpeculativeQueryEngine(retriever, response_synthesizer), "
            "or pass a SpeculativeQueryEngine to it"
        )


def _own_methods(kind: type) -> list[str]:
    """Return the methods that a class and its bases add to the host's class."""
    between = kind.__mro__[: kind.__mro__.index(RetrieverQueryEngine)]
    return sorted(
        name
        for one in between
        for name, value in vars(one).items()
        if isinstance(value, FunctionType | property | classmethod | staticmethod)
        and name != "__init__"  # it has created the parts
    )


def _refuse_uncalled(kind: type) -> None:
    """Check that a class does not override methods that are never called.

    Raises:
        ConfigError: it does; the message says where to put their code.
    """
    own = [
        name for name in _UNCALLED if getattr(kind, name) is not getattr(RetrieverQueryEngine, name)
    ]
    if own:
        raise ConfigError(
            f"{kind.__name__} overrides {', '.join(own)}, which a SpeculativeQueryEngine does not "
            "call, since retrieval and generation overlap. Put their code into your own retriever, "
            "node postprocessor or response synthesizer"
        )


def speculate(engine: Any, **options: Any) -> Any:
    """Return a query engine or an agent with the same answers in less time.

    A query engine does not wait for its searches; an agent's model runs while its tools run.

    >>> from llama_index.core import MockEmbedding, VectorStoreIndex
    >>> from llama_index.core.llms import MockLLM
    >>> from llama_index.core.schema import TextNode
    >>> index = VectorStoreIndex([TextNode(text="The fox is red.")], embed_model=MockEmbedding(8))
    >>> engine = index.as_query_engine(llm=MockLLM(max_tokens=2))
    >>> engine.query("Which colour?") == speculate(engine).query("Which colour?")
    True

    Args:
        engine: a `RetrieverQueryEngine`, as returned by `index.as_query_engine()`, for which a
            `SpeculativeQueryEngine` is returned; or a `FunctionAgent`, a `ReActAgent` or an
            `AgentWorkflow`, of which a copy is returned.
        options: see `Options`, or `AgentOptions` for an agent.

    Raises:
        TypeError: an option is unknown.
        ConfigError: it is of another class, or its parts are not compatible; the message says
            what to do.
    """
    if isinstance(engine, Workflow):
        return speculate_agent(engine, AgentOptions(**options))
    return SpeculativeQueryEngine.wrap(engine, **options)


def _check_arguments(index: BaseIndex[Any], retriever: Any, arguments: dict[str, Any]) -> None:
    """Check that retriever or query engine accepts all arguments; the host ignores others.

    Raises:
        TypeError: an argument is unknown.
    """
    makers = (index.as_query_engine, index.as_retriever, RetrieverQueryEngine.from_args)
    known = {name for make in makers for name in signature(make).parameters}
    for kind in type(retriever).__mro__:
        if "__init__" in vars(kind):
            known |= signature(vars(kind)["__init__"]).parameters.keys()
    known |= {"vector_store_kwargs"}  # read by the retriever of a vector index
    refuse_unknown(arguments.keys(), known, beside=NAMES)
