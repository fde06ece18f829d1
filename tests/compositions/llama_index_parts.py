"""Compositions of LlamaIndex' own parts, drawn by a seed: an engine, how it is asked, and ours."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from llama_index.core import (
    PromptTemplate,
    StorageContext,
    SummaryIndex,
    VectorStoreIndex,
)
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
)
from llama_index.core.indices.query.query_transform import (
    HyDEQueryTransform,
    StepDecomposeQueryTransform,
)
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.postprocessor import (
    FixedRecencyPostprocessor,
    LongContextReorder,
    MetadataReplacementPostProcessor,
    PrevNextNodePostprocessor,
    SentenceEmbeddingOptimizer,
    SimilarityPostprocessor,
    TimeWeightedPostprocessor,
)
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import (
    CitationQueryEngine,
    MultiStepQueryEngine,
    RetrieverQueryEngine,
    RetryQueryEngine,
    RouterQueryEngine,
    SubQuestionQueryEngine,
    TransformQueryEngine,
)
from llama_index.core.response_synthesizers import (
    ResponseMode,
    SimpleSummarize,
    get_response_synthesizer,
)
from llama_index.core.retrievers import (
    AutoMergingRetriever,
    QueryFusionRetriever,
    RecursiveRetriever,
    RouterRetriever,
    TransformRetriever,
)
from llama_index.core.schema import (
    IndexNode,
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.tools import QueryEngineTool, RetrieverTool, ToolMetadata
from llama_index.core.types import BaseOutputParser
from llama_index.core.vector_stores.types import VectorStoreQueryMode
from llama_index_ralmspec import SpeculativeQueryEngine, SpeculativeRetriever, speculate, stats_of

from ralmspec_plugins import Continuous, FixedStride, OptimalStride, QueryCache, SharedPassageCache
from ralmspec_plugins.errors import InputError
from tests.compositions.draws import Draws
from tests.llama_index.contract import topic
from tests.llama_index.engine_parts import WordEmbedding, default_llm, hearing, seen_nodes
from tests.llama_index.rag_loops import LoopByHand
from tests.llama_index.rag_parts import (
    WORKLOADS,
    AsyncHashLLM,
    HashChat,
    HashLLM,
    HashRetriever,
    HostError,
    ScoresIntoTexts,
    digest,
)
from tests.llama_index.test_query_composition import LikesLong, Second, TwoQuestions

SYNC = ("query", "query again", "tool", "parts", "threads")
WAYS = (*SYNC, "aquery", "aquery again", "atool", "aparts", "tasks")
QUESTIONS = tuple(f"Who {verb} the ships?" for verb in ("saw", "sold", "hid", "lost", "found"))
STREAMING = ("compact", "refine", "simple_summarize", "tree_summarize", "generation")
_KNOWN = {"cut-off", "reordered", "replaced", "recent", "neighbours"}
MODES = (*STREAMING, "accumulate", "compact_accumulate", "no_text", "context_only")


class Copies(HashRetriever):
    """Gives copies: what postprocessors write into nodes does not last."""

    def _ranked(self, query: str) -> list[NodeWithScore]:
        return deepcopy(super()._ranked(query))


class Blocks(Copies):
    """The same without an asynchronous method of its own: the host's would block the loop."""

    _aretrieve = BaseRetriever._aretrieve


class Refuses(Copies):
    """Raises for one question in four."""

    def _ranked(self, query: str) -> list[NodeWithScore]:
        if digest("refused" + query) % 4 == 0:
            raise HostError(f"not found: {query}")
        return super()._ranked(query)


class Shortens(BaseNodePostprocessor):
    """A reranker that also cuts, and gives scores of its own: by a digest of query and text."""

    keeps: int = 2

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        asked = "" if query_bundle is None else query_bundle.query_str
        ranked = sorted(nodes, key=lambda one: digest(asked + one.node.get_content()))
        return [
            NodeWithScore(node=one.node, score=at / 7)
            for at, one in enumerate(ranked[: self.keeps])
        ]


class Numbers(BaseNodePostprocessor):
    """Keeps a count of its calls, and cuts by it."""

    calls: int = 0

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        self.calls += 1
        return nodes[: 1 + self.calls % 2]


class Objects(BaseNodePostprocessor):
    """Raises for one set of nodes in four."""

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        shown = " ".join(one.node_id for one in nodes)
        if digest("objected" + shown) % 4 == 0:
            raise HostError(f"not these: {shown}")
        return nodes


class Optimizes(SentenceEmbeddingOptimizer):
    """Writes into copies: the nodes may be those that a retriever keeps, and finds again."""

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return super()._postprocess_nodes(deepcopy(nodes), query_bundle)


class Marks(BaseOutputParser):
    """Reads an output, and says of a prompt that it will."""

    def parse(self, output: str) -> str:
        return f"<{output}>"

    def format(self, query: str) -> str:
        return f"{query} (marked)"


class OwnSummary(SimpleSummarize):
    """A synthesizer of one's own."""

    def get_response(self, query_str: str, text_chunks: Sequence[str], **given: Any) -> Any:
        return super().get_response(query_str.upper(), text_chunks, **given)


class Sampling(HashLLM):
    """Draws from the process-wide random state."""

    def written(self, prompt: str, kwargs: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
        return [f"drawn {random.random():.6f}. And"], super().written(prompt, kwargs)[1]


class InTurn(HashLLM):
    """Gives its answers in turn."""

    at: int = 0

    def written(self, prompt: str, kwargs: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
        self.at += 1
        return [f"answer {self.at}."], super().written(prompt, kwargs)[1]


class Filled(BaseModel):
    """What a model is asked to fill in."""

    words: str


class FillsIn(HashLLM):
    """Writes what can be read as that."""

    def written(self, prompt: str, kwargs: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
        _, raw = super().written(prompt, kwargs)
        return [f'{{"words": "x{digest(prompt):08x}"}}'], raw


@dataclass(frozen=True)
class Composition:
    """An engine of the host and one with ours, what they are asked, and how."""

    seed: int
    host: Any
    ours: Any
    closes: list[Any]  # what of ours has threads
    models: tuple[Any, Any]
    counters: tuple[TokenCountingHandler, TokenCountingHandler]
    values: list[dict[str, Any]]
    way: str
    reading: str  # how a stream is read
    random_ids: bool  # nodes are made on the way
    heard: bool  # each event of the host has one of ours
    bundles: bool  # what was put on a query by its search is looked at
    as_often: bool  # the model is called as often as the host's, in the same order
    about: tuple[str, ...]


@dataclass
class Outcome:
    """What came of a composition."""

    answers: list[Any] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    tokens: int = 0
    told: list[Any] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def composition(seed: int) -> Composition:
    """Draw a composition; the host's parts and ours are made alike, and are others."""
    draws = [_Draw(seed), _Draw(seed)]
    with default_llm():  # some parts ask for one where they are made
        host, ours = (draw.engines() for draw in draws)
    draw = draws[1]
    way = draw.any(*WAYS)
    if draw.ordered:
        way = {"threads": "query again", "tasks": "aquery again"}.get(way, way)
    if draw.chats:
        way = {"tool": "query", "atool": "aquery", "threads": "query", "tasks": "aquery"}.get(
            way, way
        )
    if draw.in_order:  # whose asynchronous calls are side by side
        way = way.removeprefix("a").replace("tasks", "query")
    if draw.whole:  # of an engine around it, which has no parts
        way = {"parts": "query", "aparts": "aquery"}.get(way, way)
    reading = draw.any("pieces", "whole", "text", "one piece")
    if "streaming" in draw.about:  # a call whose stream is not read to its end is not committed
        draw.told &= reading != "one piece" and way != "atool"
    alone = way in ("query", "aquery", "query again", "aquery again", "tool", "atool")
    return Composition(
        seed,
        host[0],
        ours[1],
        draw.closes,
        (draws[0].llm, draw.llm),
        (draws[0].counter, draw.counter),
        draw.values(),
        way,
        reading,
        draw.random_ids,
        alone and draw.told,
        draw.bundles,
        alone and draw.as_often and not (draw.side_by_side and way.startswith("a")),
        (f"{way} of", *draw.about),
    )


class _Draw(Draws):
    """Throws the dice for the parts; the same seed gives equal parts that are not the same."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.llm: Any = None
        self.counter = TokenCountingHandler(tokenizer=str.split)
        self.closes: list[Any] = []
        self.ordered = False  # its answers depend on the order of the calls
        self.in_order = self.side_by_side = False
        self.chats = self.whole = self.random_ids = False
        self.told = self.as_often = True
        self._waits = False  # a part is not known to be pure
        self._keeps = False  # and is not
        self.bundles = True

    # Retrievers

    def _vectors(self) -> Any:
        if self.maybe(0.2):
            import faiss
            from llama_index.vector_stores.faiss import FaissVectorStore

            self.about.append("faiss")
            store: Any = FaissVectorStore(faiss.IndexFlatL2(16))
            context = StorageContext.from_defaults(vector_store=store)
            return _indexed(VectorStoreIndex, storage_context=context).as_retriever(
                similarity_top_k=self.any(1, 2, 4)
            )
        settings: dict[str, Any] = {"similarity_top_k": self.any(1, 2, 4)}
        if self.maybe(0.2):
            settings["filters"] = topic("even")
        if self.maybe(0.2):
            settings["vector_store_query_mode"] = VectorStoreQueryMode.MMR
        return _indexed(VectorStoreIndex).as_retriever(**settings)

    def _hashed(self) -> Any:
        kind = self.any(Copies, Copies, Blocks, Refuses)
        return kind(_nodes(self.any(3, 6)), self.any(0, 1, 2, 2), str(self.any(1, 2)))

    def _bm25(self) -> Any:
        from llama_index.retrievers.bm25 import BM25Retriever

        return BM25Retriever(nodes=_nodes(), similarity_top_k=self.any(1, 2))

    def _simple(self) -> Any:
        return self.named({"vectors": self._vectors, "black box": self._hashed, "bm25": self._bm25})

    def _fusion(self) -> Any:
        queries = self.any(1, 1, 1, 2)
        if queries > 1:
            self.about.append("impure")
            self.told = False
        return QueryFusionRetriever(
            [self._simple(), self._simple()],
            HashLLM(),
            mode=self.any("simple", "reciprocal_rerank", "relative_score", "dist_based_score"),
            num_queries=queries,
            similarity_top_k=self.any(1, 3),
            use_async=self.maybe(0.3),
        )

    def _merging(self) -> Any:
        leaves = _nodes()
        parents = [TextNode(id_=f"parent-{at}", text=f"parent {at}") for at in range(2)]
        for at, leaf in enumerate(leaves):
            parent = parents[at % 2]
            leaf.relationships[NodeRelationship.PARENT] = RelatedNodeInfo(node_id=parent.node_id)
            children: Any = parent.relationships.setdefault(NodeRelationship.CHILD, [])
            children.append(RelatedNodeInfo(node_id=leaf.node_id))
        context = StorageContext.from_defaults()
        context.docstore.add_documents([*parents, *leaves])
        index = VectorStoreIndex(leaves, storage_context=context, embed_model=WordEmbedding())
        base: Any = index.as_retriever(similarity_top_k=self.any(2, 4))
        return AutoMergingRetriever(base, context, simple_ratio_thresh=0.4)

    def _recursive(self) -> Any:
        leads = [
            IndexNode(id_=f"lead-{at}", text=one.text, index_id=self.any("inner", one.node_id))
            for at, one in enumerate(_nodes())
        ]
        index = VectorStoreIndex(leads, embed_model=WordEmbedding())
        root = index.as_retriever(similarity_top_k=2)
        held = {one.node_id: one for one in _nodes()}
        parts = {"root": root, "inner": self._simple()}
        return RecursiveRetriever("root", parts, node_dict=held)

    def _behind_nodes(self) -> Any:
        inner = self._simple()
        objects: list[Any] = [
            IndexNode(id_=f"o{at}", text=one.text, index_id=f"i{at}", obj=inner if at % 2 else one)
            for at, one in enumerate(_nodes())
        ]
        index = VectorStoreIndex(objects=objects, embed_model=WordEmbedding())
        return index.as_retriever(similarity_top_k=self.any(1, 2))

    def _routed(self) -> Any:
        tools = [
            RetrieverTool.from_defaults(self._simple(), description=name) for name in ("one", "two")
        ]
        return RouterRetriever(selector=Second(), retriever_tools=tools, llm=HashLLM())

    def _listed(self) -> Any:
        kind = self.any("default", "embedding")
        return _indexed(SummaryIndex).as_retriever(
            retriever_mode=kind, similarity_top_k=2, embed_model=WordEmbedding()
        )

    def _transformed(self) -> Any:
        self.told = False  # its model is no part that is given nodes
        return TransformRetriever(self._simple(), HyDEQueryTransform(llm=HashLLM()))

    def retriever(self) -> Any:
        """Draw a retriever."""
        return self.named(
            {
                "simple": self._simple,
                "simple again": self._simple,
                "simple once more": self._simple,
                "vectors too": self._vectors,
                "fusion": self._fusion,
                "auto-merging": self._merging,
                "recursive": self._recursive,
                "objects behind nodes": self._behind_nodes,
                "router retriever": self._routed,
                "list": self._listed,
                "transformed": self._transformed,
            }
        )

    # Models, postprocessors, synthesizers

    def _model(self) -> Any:
        settings: dict[str, Any] = {}
        if self.maybe(0.2):
            settings["system_prompt"] = "Be brief."
        if self.maybe(0.1):
            settings["query_wrapper_prompt"] = PromptTemplate("[{query_str}]")
        kind = self.any(
            *("text", "text", "awaited", "awaited", "chat", "chat", "refuses", "draws", "in turn")
        )
        self.about.append(f"model {kind}")
        if kind in ("draws", "in turn"):
            self.ordered = self._waits = self._keeps = True
        kinds: dict[str, Any] = {
            "text": HashLLM,
            "awaited": AsyncHashLLM,
            "chat": HashChat,
            "refuses": HashLLM,
            "draws": Sampling,
            "in turn": InTurn,
        }
        if kind == "refuses":
            settings["hook"] = _refused
        return kinds[kind](**settings)

    def _processors(self, retriever: Any) -> list[Any]:
        made: dict[str, Callable[[], Any]] = {
            "cut-off": lambda: SimilarityPostprocessor(similarity_cutoff=self.any(0.4, 0.6)),
            "reordered": LongContextReorder,
            "replaced": lambda: MetadataReplacementPostProcessor(target_metadata_key="window"),
            "recent": lambda: FixedRecencyPostprocessor(top_k=2, date_key="day"),
            "neighbours": self._neighbours,
            "optimized": self._optimized,
            "shortened": lambda: Shortens(keeps=self.any(1, 2)),
            "counting": self._counting,
            "scores shown": ScoresIntoTexts,
            "objecting": Objects,
            "by time": lambda: TimeWeightedPostprocessor(
                time_access_refresh=False, now=1.0, top_k=self.any(1, 2)
            ),
        }
        if {*self.about} & {"recursive", "objects behind nodes"}:  # they keep what they give
            del made["replaced"]
        names = self.some(*made) if self.maybe(0.6) else []
        self.about += names
        self._waits |= not {*names} <= _KNOWN
        return [made[name]() for name in names]

    def _counting(self) -> Any:
        self.ordered = self._keeps = True
        return Numbers()

    def _neighbours(self) -> Any:
        context = StorageContext.from_defaults()
        context.docstore.add_documents(_nodes())
        return PrevNextNodePostprocessor(
            docstore=context.docstore, num_nodes=1, mode=self.any("next", "previous", "both")
        )

    def _optimized(self) -> Any:
        return Optimizes(
            embed_model=WordEmbedding(), percentile_cutoff=0.5, tokenizer_fn=_sentences
        )

    def _written(self) -> dict[str, Any]:
        """Draw how it is written: the arguments of `get_response_synthesizer`."""
        mode = self.any("compact", "compact", *MODES)
        self.about.append(mode)
        settings: dict[str, Any] = {"response_mode": ResponseMode(mode)}
        if mode in STREAMING and self.maybe(0.35):
            self.about.append("streaming")
            settings["streaming"] = True
        if self.maybe(0.4):
            kind = self.any("template", "parsed", "with code")
            self.about.append(kind)
            given: dict[str, Any] = {}
            if kind == "parsed":
                given["output_parser"] = Marks()
            if kind == "with code":
                given["function_mappings"] = {"context_str": _shown}
                self._waits |= mode not in ("generation", "no_text", "context_only")
            question = PromptTemplate("Know: {context_str}\nSay: {query_str}", **given)
            settings["text_qa_template"] = settings["summary_template"] = question
        if mode in ("tree_summarize", "accumulate", "compact_accumulate") and self.maybe(0.3):
            settings["use_async"] = True
            self.as_often = self.as_often and False  # in another order
        filled = mode in ("compact", "refine", "tree_summarize") and "streaming" not in settings
        if filled and self.maybe(0.15):
            self.about.append("filled in")
            settings["output_cls"] = Filled
            self.llm = FillsIn()
        else:
            self.llm = self._model()
        return settings

    # Engines

    def engines(self) -> tuple[Any, Any]:
        """Draw the host's engine, and the one with ours in its place."""
        kind = self.any(
            *("engine", "engine", "engine", "engine", "loop", "around", "chat"),
            *("our retriever", "from args", "from index"),
        )
        self.about.append(kind)
        self.bundles = kind not in ("loop", "chat", "our retriever")
        if kind == "loop":
            return self._loop()
        if kind == "chat":
            return self._chat()
        if kind == "from index":
            return self._from_index()
        if kind == "our retriever":
            return self._our_retriever()
        host, arguments = self._hosts()
        if kind == "from args":
            ours: Any = SpeculativeQueryEngine.from_args(**arguments, **self._options())
        else:
            ours = speculate(host, **self._options())
        self.closes.append(ours)
        if kind == "around":
            around = self._around()
            return around(host), around(ours)
        return host, ours

    def _hosts(self) -> tuple[Any, dict[str, Any]]:
        """Draw the host's engine, and what it is made of."""
        retriever = self.retriever()
        written = self._written()
        manager = CallbackManager([self.counter])
        self.llm.callback_manager = manager
        arguments = {
            "retriever": retriever,
            "llm": self.llm,
            "node_postprocessors": self._processors(retriever),
            "callback_manager": manager,
            **written,
        }
        if self.maybe(0.1) and "streaming" not in written:
            self.about.append("own synthesizer")
            self._waits = True
            arguments = {
                name: value
                for name, value in arguments.items()
                if name in ("retriever", "node_postprocessors", "callback_manager")
            }
            arguments["response_synthesizer"] = OwnSummary(llm=self.llm)
        return RetrieverQueryEngine.from_args(**arguments), arguments

    def _from_index(self) -> tuple[Any, Any]:
        index: Any = _indexed(VectorStoreIndex)
        arguments = {
            "similarity_top_k": self.any(1, 2, 4),
            **self._written(),
            "node_postprocessors": self._processors(None),
        }
        ours = SpeculativeQueryEngine.from_index(
            index, llm=self.llm, **arguments, **self._options()
        )
        self.closes.append(ours)
        return index.as_query_engine(llm=self.llm, **arguments), ours

    def _our_retriever(self) -> tuple[Any, Any]:
        host, arguments = self._hosts()
        settings: dict[str, Any] = {}
        self.told = False  # searches that are looked into are told by an event of ours
        if self.maybe(0.5):
            settings["memo"] = QueryCache()
        if self.maybe(0.3):
            settings["batching"] = self.any("off", "probed")
        ours = SpeculativeRetriever(arguments.pop("retriever"), **settings)
        self.closes.append(ours)
        return host, RetrieverQueryEngine.from_args(ours, **arguments)

    def _loop(self) -> tuple[Any, Any]:
        """Draw the loop that is written by hand, and the engine of the same parts."""
        retriever, workload = self.retriever(), self.any("sentences", "interval")
        self.llm = self.any(HashLLM, AsyncHashLLM, HashChat)()
        self.about.append(workload)
        synthesizer = get_response_synthesizer(llm=self.llm, response_mode="simple_summarize")
        processors = [one for one in self._processors(retriever) if not isinstance(one, Numbers)]
        parts = (retriever, synthesizer, processors, CallbackManager([self.counter]))
        options = self._options()
        if self.llm.metadata.is_chat_model:
            options["continuation"] = "assistant"
        if workload == "interval":
            options["max_tokens"] = 24
        self.as_often &= False
        self.told = False
        ours = SpeculativeQueryEngine(*parts, workload=WORKLOADS[workload], **options)
        self.closes.append(ours)
        self.whole = True
        return LoopByHand(*parts, workload=workload), ours

    def _around(self) -> Callable[[Any], Any]:
        """Draw an engine of the host's that asks another one."""
        self.whole = self.random_ids = True
        self.bundles = False
        return self.named(  # type: ignore[no-any-return]
            {
                "router": lambda: (
                    lambda one: RouterQueryEngine(Second(), _tools(one), llm=HashLLM())
                ),
                "sub questions": lambda: self._sub_questions,
                "steps": lambda: _steps,
                "retry": lambda: lambda one: RetryQueryEngine(one, LikesLong(), max_retries=2),
                "hypothetical": lambda: (
                    lambda one: TransformQueryEngine(one, HyDEQueryTransform(llm=HashLLM()))
                ),
            }
        )

    def _sub_questions(self, engine: Any) -> Any:
        self.in_order = self.ordered
        self.side_by_side = True  # its asynchronous questions
        return SubQuestionQueryEngine.from_defaults(
            _tools(engine),
            llm=HashLLM(),
            question_gen=TwoQuestions(),
            use_async=False,
            verbose=False,
        )

    def _chat(self) -> tuple[Any, Any]:
        """Draw a chat engine over an engine, or over a retriever."""
        self.chats = self.whole = self.random_ids = True
        self.told = self.bundles = False
        kind = self.any("condense", "context", "both", "citation")
        self.about.append(kind)
        host, arguments = self._hosts()
        if kind == "condense":
            ours = speculate(host, **self._options())
            self.closes.append(ours)
            return _condensing(host), _condensing(ours)
        retriever = arguments["retriever"]
        found = SpeculativeRetriever(retriever)
        self.closes.append(found)
        llm, memory = self.llm, ChatMemoryBuffer.from_defaults
        if kind == "citation":
            self.chats = False
            return tuple(
                CitationQueryEngine.from_args(None, llm, retriever=one)
                for one in (retriever, found)
            )  # type: ignore[arg-type, return-value]
        if kind == "context":
            return tuple(
                ContextChatEngine.from_defaults(one, llm=llm, memory=memory())
                for one in (retriever, found)
            )  # type: ignore[return-value]
        return tuple(
            CondensePlusContextChatEngine.from_defaults(one, llm=llm, memory=memory())
            for one in (retriever, found)
        )  # type: ignore[return-value]

    def values(self) -> list[dict[str, Any]]:
        """Draw what is asked."""
        return [self._value() for _ in range(self.any(2, 2, 3))]

    def _value(self) -> dict[str, Any]:
        asked: dict[str, Any] = {"query_str": self.any(*QUESTIONS)}
        if self.bundles and self.maybe(0.15):
            asked["custom_embedding_strs"] = ["ships no 7", "storms"]
        elif self.bundles and self.maybe(0.1):
            asked["embedding"] = WordEmbedding().get_text_embedding("ships no 14")
        return asked

    def _options(self) -> dict[str, Any]:
        """Draw how ours speculates."""
        options: dict[str, Any] = {}
        if self.maybe(0.5):
            options["pool"] = self.any(None, SharedPassageCache(), SharedPassageCache())
        if self.maybe(0.2):
            options["memo"] = QueryCache()
            self.told = self.bundles = False
        if self.maybe(0.3):
            options["replica"] = HashRetriever(_nodes(4), salt="lie")
        if self.maybe(0.6):
            options["schedule"] = self.any(
                FixedStride(stride=3, overlap=True), OptimalStride(), Continuous(lanes=3)
            )
        if self.maybe(0.3):
            options["prefetch"] = self.any(1, 4)
        if self.maybe(0.1):
            options["speculate"] = False
        if self.maybe(0.2):
            options["batching"] = self.any("off", "probed")
        if self.maybe(0.2):
            options["report"] = True
        return self._permitted(options)

    def _permitted(self, options: dict[str, Any]) -> dict[str, Any]:
        """Draw whether parts may run on guesses, where that is as true as it is said."""
        waits = self._waits or options.get("speculate") is False
        if not waits and self.maybe(0.2):
            options["guess_through"] = "replica" in options
        elif self._waits and not self._keeps and self.maybe(0.3):
            options["guess_through"] = True  # as nothing is kept, and nothing drawn
            waits = options.get("speculate") is False
        self.as_often &= waits or options.get("guess_through") is False
        if options.get("guess_through") and "optimized" in self.about:
            self.bundles = False  # it writes into the query, on guesses into a copy
        self.about.append(f"options {sorted(options)}")
        return options


def _nodes(count: int = 8) -> list[TextNode]:
    """Make nodes that tell apart, and follow each other."""
    made = []
    for at in range(count):
        near = {NodeRelationship.PREVIOUS: at - 1, NodeRelationship.NEXT: at + 1}
        metadata = {"topic": "odd" if at % 2 else "even", "day": f"2024-01-{at + 1:02d}"}
        made.append(
            TextNode(
                id_=f"n{at}",
                text=f"Ships and storms no {at * 7}. Seen by {at * 3} keepers.",
                metadata={**metadata, "window": f"window {at}"},
                excluded_llm_metadata_keys=["window"],
                relationships={
                    kind: RelatedNodeInfo(node_id=f"n{other}")
                    for kind, other in near.items()
                    if 0 <= other < count
                },
            )
        )
    return made


def _indexed(kind: Any, **settings: Any) -> Any:
    if kind is VectorStoreIndex:
        settings["embed_model"] = WordEmbedding()
    return kind(_nodes(), **settings)


def _refused(prompt: str) -> None:
    if digest("refused" + prompt) % 4 == 0:
        raise HostError(f"cannot answer {digest(prompt)}")


def _sentences(text: str) -> list[str]:
    return text.split(". ")


def _shown(**given: Any) -> str:
    return f"shown {given['context_str']}"


def _tools(engine: Any) -> list[QueryEngineTool]:
    return [
        QueryEngineTool(engine, ToolMetadata(name=name, description=name))
        for name in ("world", "again")
    ]


def _steps(engine: Any) -> Any:
    llm = HashLLM()
    return MultiStepQueryEngine(
        engine,
        StepDecomposeQueryTransform(llm=llm),
        response_synthesizer=get_response_synthesizer(llm=llm),
        index_summary="a world",
        num_steps=2,
    )


def _condensing(engine: Any) -> Any:
    memory = ChatMemoryBuffer.from_defaults()
    return CondenseQuestionChatEngine.from_defaults(engine, llm=HashLLM(), memory=memory)


# What comes of a composition.


def outcome(engine: Any, drawn: Composition, *, ours: bool) -> Outcome:
    """Ask all that is to be asked, in the way that was drawn; errors stand for themselves."""
    made = Outcome()
    llm, counter = drawn.models[ours], drawn.counters[ours]
    llm.prompts.clear()
    counter.reset_counts()
    random.seed(drawn.seed)
    with default_llm(), hearing() if drawn.heard else nullcontext() as heard:
        made.answers = _asked(engine, drawn, made.counts)
    told = [] if heard is None else heard.golden
    # A stream that was begun ahead stands in its query's span; the host's is begun by its reader.
    made.told = [one[:2] for one in told] if "streaming" in drawn.about else told
    made.prompts = list(llm.prompts)
    made.tokens = counter.total_llm_token_count
    return made


def _asked(engine: Any, drawn: Composition, counts: Counter[str]) -> list[Any]:
    way, values = drawn.way, drawn.values
    if way.endswith("again"):
        values = [*values, *values]
    call = _Call(engine, drawn, counts)
    if way == "threads":
        with ThreadPoolExecutor(3) as pool:
            return list(pool.map(call.run, values))
    if way == "tasks":

        async def together() -> list[Any]:
            return await asyncio.gather(*map(call.arun, values))

        return asyncio.run(together())
    if way.startswith("a"):

        async def one_by_one() -> list[Any]:
            return [await call.arun(value) for value in values]

        return asyncio.run(one_by_one())
    return [call.run(value) for value in values]


class _Call:
    """Asks an engine one question, and gives all that is seen of the answer."""

    def __init__(self, engine: Any, drawn: Composition, counts: Counter[str]) -> None:
        self._engine, self._drawn, self._counts = engine, drawn, counts
        self._way = drawn.way.removesuffix(" again")

    def run(self, value: dict[str, Any]) -> Any:
        bundle, stage = QueryBundle(**value), "asked"
        try:
            response = self._response(bundle)
            stage, sources = "read", self._sources(response)
            if isinstance(response, StreamingResponse):
                text: Any = self._read(response)
            elif hasattr(response, "chat_stream"):
                text = "".join(response.response_gen)
            else:
                text = str(response)
            return self._seen(response, text, sources, bundle)
        except Exception as error:
            return stage, type(error).__name__, str(error)

    async def arun(self, value: dict[str, Any]) -> Any:
        bundle, stage = QueryBundle(**value), "asked"
        try:
            response = await self._aresponse(bundle)
            stage, sources = "read", self._sources(response)
            if isinstance(response, AsyncStreamingResponse):
                text: Any = await self._aread(response)
            elif hasattr(response, "chat_stream"):
                text = "".join([piece async for piece in response.async_response_gen()])
            else:
                text = str(response)
            return self._seen(response, text, sources, bundle)
        except Exception as error:
            return stage, type(error).__name__, str(error)

    def _response(self, bundle: QueryBundle) -> Any:
        engine, way = self._engine, self._way
        if hasattr(engine, "chat"):
            streams = self._drawn.reading == "pieces"
            return (engine.stream_chat if streams else engine.chat)(bundle.query_str)
        if way == "tool":
            output = QueryEngineTool.from_defaults(engine).call(bundle.query_str)
            return output.raw_output
        if way == "parts":
            return engine.synthesize(bundle, engine.retrieve(bundle))
        return engine.query(bundle)

    async def _aresponse(self, bundle: QueryBundle) -> Any:
        engine, way = self._engine, self._way
        if hasattr(engine, "chat"):
            streams = self._drawn.reading == "pieces"
            return await (engine.astream_chat if streams else engine.achat)(bundle.query_str)
        if way == "atool":
            output = await QueryEngineTool.from_defaults(engine).acall(bundle.query_str)
            return output.raw_output
        if way == "aparts":
            return await engine.asynthesize(bundle, await engine.aretrieve(bundle))
        return await engine.aquery(bundle)

    def _read(self, response: Any) -> Any:
        how = self._drawn.reading
        if how == "whole":
            return str(response.get_response())
        if how == "text":
            return str(response)
        if how == "one piece":
            piece = next(iter(response.response_gen), "")
            response.response_gen.close()
            return bool(piece)
        return "".join(response.response_gen)

    async def _aread(self, response: Any) -> Any:
        how = self._drawn.reading
        if how == "whole":
            return str(await response.get_response())
        if how == "one piece":
            piece = await anext(response.response_gen, "")
            await response.response_gen.aclose()
            return bool(piece)
        gen = response.async_response_gen() if how == "text" else response.response_gen
        return "".join([piece async for piece in gen])

    def _sources(self, response: Any) -> Any:
        found = response.source_nodes
        if self._drawn.random_ids:
            return [(one.node.get_content(), one.score) for one in found]
        return seen_nodes(found)

    def _seen(self, response: Any, text: Any, sources: Any, bundle: QueryBundle) -> Any:
        self._counts["answers"] += 1
        self._counts["with text"] += bool(text) and text != "Empty Response"
        self._counts["with sources"] += bool(sources)
        metadata = dict(getattr(response, "metadata", None) or {})
        for name in ("ralmspec", "selector_result", "sub_qa"):
            metadata.pop(name, None)
        if self._drawn.random_ids:
            metadata = {}
        self._count_guesses(response)
        asked = vars(bundle) if self._drawn.bundles else {}
        return type(response).__name__, text, sources, metadata, asked

    def _count_guesses(self, response: Any) -> None:
        try:
            stats = stats_of(response)
        except (InputError, TypeError, AttributeError):
            return
        self._counts["guessed"] += stats.guesses > 0
        self._counts["guessed wrong"] += stats.guesses > stats.accepted
