"""LlamaIndex' query engine over a retriever, speculating: the same responses, sooner."""

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
from ralmspec_plugins.adapters.arguments import refuse_unknown
from ralmspec_plugins.adapters.engines import Runtime
from ralmspec_plugins.adapters.fingerprint import overridden
from ralmspec_plugins.adapters.retriever_state import HostStats
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.speculators.passage_cache import SharedPassageCache
from ralmspec_plugins.speculators.query_cache import QueryCache

# What the host's query engine calls while it answers, and this one does not.
_UNCALLED: Final = (
    *("retrieve", "aretrieve", "synthesize", "asynthesize"),
    *("_apply_node_postprocessors", "_async_apply_node_postprocessors"),
)


class SpeculativeQueryEngine(RetrieverQueryEngine):
    """Answers what a `RetrieverQueryEngine` answers, and does not wait for its searches.

    With `workload="one_shot"`, the default, the response is exactly that of the host's
    query engine with the same retriever, node postprocessors and response synthesizer:
    text, nodes, scores, metadata. With "sentences" or "interval" it is that of the loop
    which a user would write by hand, with a retrieval for each sentence or every few tokens.

    Goes where a query engine goes: into a `QueryEngineTool`, a router, a chat engine.

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
        """Put the host's parts together; the arguments of `RetrieverQueryEngine` first.

        Args:
            retriever: any retriever of the host's; vector stores are looked into.
            response_synthesizer: writes the response; over `Settings.llm` by default. The
                workloads with many steps take its model and its text_qa_template.
            node_postprocessors: applied to what a search finds, in every step.
            callback_manager: the host's.
            options: see `Options`.

        Raises:
            TypeError: an unknown option.
            ConfigError: the parts do not fit each other; the message says what to do.
        """
        self._use(Options(**options), Runtime())
        super().__init__(retriever, response_synthesizer, node_postprocessors, callback_manager)
        self._assembled()  # what does not fit is refused here

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
        """Make one as `RetrieverQueryEngine.from_args` does, with `Options` as keywords beside.

        Raises:
            TypeError: an unknown argument; the host would pass over it.
            ConfigError: the parts do not fit each other; the message says what to do.
        """
        refuse_unknown(kwargs.keys(), NAMES, beside=signature(cls.from_args).parameters)
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
        """Make one in place of `index.as_query_engine(...)`.

        Args:
            index: the index.
            arguments: those of `as_query_engine`, which the retriever gets too
                (`similarity_top_k`, `filters`, ...), and those of `Options`.

        Raises:
            TypeError: an unknown argument; the host would pass over it.
            ConfigError: it makes no query engine over a retriever, or the parts do not fit.
        """
        if not isinstance(index, BaseIndex):
            raise ConfigError(
                f"from_index() takes an index, got {type(index).__name__}; of a retriever: "
                "from_args(retriever, ...), of a query engine: wrap(engine, ...)"
            )
        own = {name: arguments.pop(name) for name in NAMES & arguments.keys()}
        engine = index.as_query_engine(**arguments)
        _check_arguments(index, getattr(engine, "retriever", None), arguments)
        return cls.wrap(engine, **own)

    @classmethod
    def wrap(cls, engine: Any, **options: Any) -> Self:
        """Make one of the parts of a query engine that there is.

        Args:
            engine: a `RetrieverQueryEngine`.
            options: see `Options`.

        Raises:
            ConfigError: it is another one, or the parts do not fit.
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
        """How it speculates."""
        return self._options

    def with_options(self, **changed: Any) -> Self:
        """Give the same engine with other options; what was learned, and threads, are shared.

        Raises:
            TypeError: an unknown option.
            ConfigError: the options do not fit the parts.
        """
        return self._like(self._retriever, replace(self._options, **changed), self._runtime)

    def with_retriever(self, retriever: BaseRetriever) -> Self:
        """Give the same engine over another retriever."""
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
        """Be copied and pickled as the host's are; what is made of the parts is made again."""
        return {**vars(self), "_assembly": None}

    def _assembled(self) -> Assembly:
        """Give the parts; anew where the host's were replaced since."""
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
        """Answer a query as the host does, where nothing could be guessed."""
        began = PlainRun(query_bundle.query_str, in_metadata=self._options.report)
        nodes = began.retrieved(self.retrieve(query_bundle))
        self._assembled().note_call(len(nodes))
        response = self._response_synthesizer.synthesize(query=query_bundle, nodes=nodes)
        return began.reported(response)

    async def _asynthesized(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        """Do the same on an event loop."""
        began = PlainRun(query_bundle.query_str, in_metadata=self._options.report)
        nodes = began.retrieved(await self.aretrieve(query_bundle))
        self._assembled().note_call(len(nodes))
        response = await self._response_synthesizer.asynthesize(query=query_bundle, nodes=nodes)
        return began.reported(response)

    @property
    def stats(self) -> HostStats:
        """What has reached the retriever's store so far: round trips, and queries in them."""
        return self._assembled().stats

    def invalidate(self) -> None:
        """Forget what was found, for when the index has changed: memo and pool are emptied.

        What queries that are running find is not remembered for later ones.
        """
        for cache in (self._options.memo, self._options.pool):
            if isinstance(cache, QueryCache | SharedPassageCache):
                cache.invalidate()

    def close(self) -> None:
        """Wait for searches that nobody needs any more, and let the threads go."""
        self._runtime.close()

    def __enter__(self) -> Self:
        """Use as a context manager."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


def _check_wrappable(engine: Any) -> None:
    """Refuse what is more, or less, than a retriever, postprocessors and a synthesizer.

    Raises:
        ConfigError: it is; the message says what takes its place.
    """
    kind = type(engine)
    if isinstance(engine, BaseIndex):
        remedy = "of an index: SpeculativeQueryEngine.from_index(index, ...)"
        raise ConfigError(f"wrap() takes a RetrieverQueryEngine, got a {kind.__name__}; {remedy}")
    if isinstance(engine, BaseRetriever):
        remedy = "of a retriever: SpeculativeQueryEngine.from_args(retriever, ...)"
        raise ConfigError(f"wrap() takes a RetrieverQueryEngine, got a {kind.__name__}; {remedy}")
    if not isinstance(engine, RetrieverQueryEngine):
        raise ConfigError(
            "wrap() takes a RetrieverQueryEngine, which is a retriever, postprocessors and a "
            f"response synthesizer; got {kind.__name__}. If it asks an engine, put ours inside"
        )
    own = [] if isinstance(engine, SpeculativeQueryEngine) else _own_methods(kind)
    if own or overridden(engine):
        raise ConfigError(
            "wrap() takes a RetrieverQueryEngine, which is a retriever, postprocessors and a "
            f"response synthesizer; got {kind.__name__}, with methods of its own: "
            f"{', '.join(own) or 'replaced on the object'}. "
            "Give it the parts by SpeculativeQueryEngine(retriever, response_synthesizer), "
            "or put ours inside"
        )


def _own_methods(kind: type) -> list[str]:
    """List what a class, and those between it and the host's, add to the host's."""
    between = kind.__mro__[: kind.__mro__.index(RetrieverQueryEngine)]
    return sorted(
        name
        for one in between
        for name, value in vars(one).items()
        if isinstance(value, FunctionType | property | classmethod | staticmethod)
        and name != "__init__"  # it has made the parts that are taken
    )


def _refuse_uncalled(kind: type) -> None:
    """Refuse a class with methods of its own that would never be called.

    Raises:
        ConfigError: it has; the message says where their code can go.
    """
    own = [
        name for name in _UNCALLED if getattr(kind, name) is not getattr(RetrieverQueryEngine, name)
    ]
    if own:
        raise ConfigError(
            f"{kind.__name__} overrides {', '.join(own)}, which a SpeculativeQueryEngine does not "
            "call: searching and writing overlap. Put that into a retriever, a node postprocessor "
            "or a response synthesizer of your own"
        )


def speculate(engine: Any, **options: Any) -> Any:
    """Make a query engine or an agent that answers what this one answers, sooner.

    A query engine does not wait for its searches; an agent's model runs while its tools do.

    >>> from llama_index.core import MockEmbedding, VectorStoreIndex
    >>> from llama_index.core.llms import MockLLM
    >>> from llama_index.core.schema import TextNode
    >>> index = VectorStoreIndex([TextNode(text="The fox is red.")], embed_model=MockEmbedding(8))
    >>> engine = index.as_query_engine(llm=MockLLM(max_tokens=2))
    >>> engine.query("Which colour?") == speculate(engine).query("Which colour?")
    True

    Args:
        engine: a `RetrieverQueryEngine`, as `index.as_query_engine()` gives one: what is
            returned is a `SpeculativeQueryEngine`. Or a `FunctionAgent`, a `ReActAgent` or an
            `AgentWorkflow`: what is returned is a copy of it.
        options: see `Options`, or `AgentOptions` for an agent.

    Raises:
        TypeError: an unknown option.
        ConfigError: it is another one, or its parts do not fit; the message says what to do.
    """
    if isinstance(engine, Workflow):
        return speculate_agent(engine, AgentOptions(**options))
    return SpeculativeQueryEngine.wrap(engine, **options)


def _check_arguments(index: BaseIndex[Any], retriever: Any, arguments: dict[str, Any]) -> None:
    """Refuse arguments that neither retriever nor query engine has: the host passes over them.

    Raises:
        TypeError: there are such.
    """
    makers = (index.as_query_engine, index.as_retriever, RetrieverQueryEngine.from_args)
    known = {name for make in makers for name in signature(make).parameters}
    for kind in type(retriever).__mro__:
        if "__init__" in vars(kind):
            known |= signature(vars(kind)["__init__"]).parameters.keys()
    known |= {"vector_store_kwargs"}  # read out of the others by the retriever of a vector index
    refuse_unknown(arguments.keys(), known, beside=NAMES)
