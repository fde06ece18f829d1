"""Inputs that users met and that failed once: each beside the host's own object."""

import asyncio
import threading
import time
import warnings
from collections.abc import Iterator
from operator import itemgetter
from typing import Any, TypedDict
from unittest import mock
from uuid import uuid4

import chromadb
import pytest
from chromadb.config import Settings
from langchain_classic.chains import create_history_aware_retriever, create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import BaseChatModel, FakeListLLM
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableParallel, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_ralmspec import SpeculativeRAG, SpeculativeRetriever, speculate
from langgraph.config import get_stream_writer
from langgraph.graph import START, StateGraph

from ralmspec_plugins import QueryCache, SharedPassageCache
from tests.langchain.rag_loops import by_hand
from tests.langchain.rag_parts import HashLLM, HashRetriever, called, documents, rag_of

EMBEDDING = DeterministicFakeEmbedding(size=8)
WAYS = ("invoke", "ainvoke", "stream", "astream", "batch", "abatch")


def answer_of(runnable: Any, value: Any, way: str, config: Any = None) -> Any:
    """Call a runnable in one of its ways."""
    return called(runnable, value, way, config)


@pytest.fixture
def cache() -> Iterator[None]:
    set_llm_cache(InMemoryCache())
    yield
    set_llm_cache(None)


class Found(BaseRetriever):
    """Finds one document."""

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return [Document("text")]


class Chat(BaseChatModel):
    """A chat model as any server that reports no token usage, or reports it."""

    streaming: bool = False  # a field of ChatOpenAI and most others
    usage: bool = False
    calls: list[str] = []  # noqa: RUF012 a pydantic field

    @property
    def _llm_type(self) -> str:
        return "chat"

    def _about(self) -> Any:
        counts = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
        return {"usage_metadata": counts} if self.usage else {}

    def _generate(self, messages: Any, *_: Any, **__: Any) -> ChatResult:
        self.calls.append("whole")
        message = AIMessage("an answer", **self._about())
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(self, messages: Any, *_: Any, **__: Any) -> Iterator[ChatGenerationChunk]:
        self.calls.append("streamed")
        yield ChatGenerationChunk(message=AIMessageChunk("an answer", **self._about()))


def show(documents: Any) -> str:
    return " / ".join(one.page_content for one in documents)


PROMPT = ChatPromptTemplate.from_template("{context}\n{question}")


def chain_of(llm: Any, retriever: Any = None) -> Runnable[Any, Any]:
    """Make the chain of the documentation."""
    first = {"context": (retriever or Found()) | show, "question": RunnablePassthrough()}
    return first | PROMPT | llm | StrOutputParser()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("cache")
def test_a_the_llm_cache_answers_without_a_usage(way: str) -> None:
    """A hit has a usage that lacks the counts."""
    chain = chain_of(Chat(calls=[]))
    for runnable in (chain, speculate(chain)):
        set_llm_cache(InMemoryCache())
        assert ["an answer"] * 2 == [answer_of(runnable, "q", way) for _ in range(2)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("workload", ["sentences", "interval"])
@pytest.mark.usefixtures("cache")
def test_a_the_llm_cache_answers_a_loop(workload: str, way: str) -> None:
    """A text model, whose hits do not say why they ended, writes step by step."""
    retriever = HashRetriever(documents=documents())
    expected = by_hand(HashLLM(), retriever, workload).invoke("q")
    assert expected["answer"]
    with_cache = rag_of(HashLLM(), retriever, workload, report=False)
    assert [expected] * 3 == [answer_of(with_cache, "q", way) for _ in range(3)]
    with_cache.close()


@pytest.mark.parametrize("options", [{}, {"pool": None}, {"speculate": False}])
@pytest.mark.parametrize("way", WAYS)
def test_b_rows_without_a_text_leave_their_places_empty(way: str, options: Any) -> None:
    """What lies behind the first k does not move up."""
    chroma = pytest.importorskip("langchain_chroma").Chroma
    client = chromadb.EphemeralClient(Settings(anonymized_telemetry=False))
    store = chroma(f"textless-{uuid4()}", EMBEDDING, client=client)
    store.add_texts([f"text {i}" for i in range(10)], ids=[f"t{i}" for i in range(10)])
    bare = EMBEDDING.embed_query("q")
    store._collection.add(ids=["bare"], embeddings=[bare])  # as other programs write them
    host = store.as_retriever(search_kwargs={"k": 3})
    with SpeculativeRetriever(retriever=host, pool=SharedPassageCache()) as alone:
        expected = host.invoke("q")
        assert len(expected) == 2
        assert expected == alone.invoke("q") == alone.batch(["q"])[0]
    rag = SpeculativeRAG(
        retriever=host, llm=Chat(calls=[]), prompt=PROMPT, workload="one_shot", **options
    )
    assert expected == answer_of(rag, "q", way)["context"]
    rag.close()


class Tells(BaseRetriever):
    """Writes into the stream of the graph in which it runs."""

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        get_stream_writer()({"searching": query})
        return [Document("text")]


class State(TypedDict, total=False):
    """Question and answer."""

    q: str
    a: str


@pytest.mark.parametrize("options", [{}, {"pool": None}, {"speculate": False}])
def test_c_a_retriever_uses_the_graph_that_it_runs_in(options: Any) -> None:
    """What does not count for a cache's key is not kept from the call."""
    chain = chain_of(Chat(calls=[]), Tells())
    for runnable in (chain, speculate(chain, **options)):
        graph = StateGraph(State).add_node("n", lambda s, r=runnable: {"a": r.invoke(s["q"])})
        done = graph.add_edge(START, "n").compile()
        assert [{"searching": "fox"}] == list(done.stream({"q": "fox"}, stream_mode="custom"))


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "batch", "abatch"])
@pytest.mark.usefixtures("cache")
def test_d_the_llm_cache_is_asked_where_the_host_asks_it(way: str) -> None:
    """A model that would stream to a handler is called once for three equal questions."""
    llm = Chat(streaming=True, usage=True, calls=[])
    chain = chain_of(llm)
    counts = []
    for runnable in (chain, speculate(chain)):
        set_llm_cache(InMemoryCache())
        llm.calls.clear()
        for _ in range(3):
            answer_of(runnable, "q", way, {"callbacks": [BaseCallbackHandler()]})
        counts.append(len(llm.calls))
    assert [1, 1] == counts


def retrieval_chain(llm: Any, retriever: Any) -> Runnable[Any, Any]:
    prompt = PromptTemplate.from_template("{context} {input}")
    return create_retrieval_chain(retriever, create_stuff_documents_chain(llm, prompt))


def test_e_the_schema_is_the_chains() -> None:
    """So it is as good a tool."""
    store = InMemoryVectorStore.from_texts(["text"], EMBEDDING)
    chain = retrieval_chain(FakeListLLM(responses=["answer"]), store.as_retriever())
    ours = speculate(chain)
    seen = []
    for runnable in (chain, ours):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as_tool is in beta
            tool = runnable.as_tool(name="kb", description="asks the knowledge base")
        seen.append((tool.args, tool.invoke({"input": "q"})["answer"]))
    assert seen[0] == seen[1]
    assert chain.input_schema.model_json_schema() == ours.input_schema.model_json_schema()


class Slow(Chat):
    """Takes longer than anybody waits."""

    async def _agenerate(self, messages: Any, *_: Any, **__: Any) -> ChatResult:
        await asyncio.sleep(5)
        return self._generate(messages)


class Heard(BaseCallbackHandler):
    """Notes the names of what it is told."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def on_retriever_start(self, *args: Any, **kwargs: Any) -> None:
        self.names.append("retriever start")

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        self.names.append("chat model start")


def test_f_a_request_that_is_given_up_tells_of_its_call() -> None:
    """The call that was too slow is in the trace."""

    async def given_up(runnable: Any) -> list[str]:
        heard = Heard()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(runnable.ainvoke("q", {"callbacks": [heard]}), 0.3)
        return heard.names

    chain = chain_of(Slow(calls=[]))
    seen = [asyncio.run(given_up(runnable)) for runnable in (chain, speculate(chain))]
    assert [["retriever start", "chat model start"]] * 2 == seen


def test_g_replaced_methods_are_called() -> None:
    """On an instance or on its class, before the first use or after it."""
    store = InMemoryVectorStore.from_texts(["real"], EMBEDDING)
    host = store.as_retriever()
    ours = SpeculativeRetriever(retriever=host)
    rag = SpeculativeRAG(retriever=host, llm=Chat(calls=[]), prompt=PROMPT, workload="one_shot")

    def texts() -> list[str]:
        fresh = SpeculativeRetriever(retriever=store.as_retriever())
        found = [host.invoke("q"), ours.invoke("q"), fresh.invoke("q"), fresh.batch(["q"])[0]]
        return [show(one) for one in (*found, rag.invoke("q")["context"])]

    fake = [Document("replaced")]
    assert ["real"] * 5 == texts()
    with mock.patch.object(store, "similarity_search", return_value=fake):
        assert ["replaced"] * 5 == texts()
    with mock.patch.object(InMemoryVectorStore, "similarity_search", return_value=fake):
        assert ["replaced"] * 5 == texts()
    assert ["real"] * 5 == texts()


class Broken(DeterministicFakeEmbedding):
    """Has no vector for a question mark."""

    def embed_query(self, text: str) -> list[float]:
        return [float("nan")] * self.size if text == "?" else super().embed_query(text)


def test_h_a_vector_of_nan_finds_what_it_finds() -> None:
    """All distances are NaN, which no comparison sees."""
    chroma = pytest.importorskip("langchain_chroma").Chroma
    client = chromadb.EphemeralClient(Settings(anonymized_telemetry=False))
    store = chroma(f"not-a-number-{uuid4()}", Broken(size=16), client=client)
    store.add_texts([f"text {i}" for i in range(30)], ids=[f"t{i}" for i in range(30)])
    host = store.as_retriever(search_kwargs={"k": 3})
    ours = SpeculativeRetriever(retriever=host, pool=SharedPassageCache())
    expected = host.invoke("?")
    assert len(expected) == 3
    assert expected == ours.invoke("?") == ours.batch(["?", "x"])[0]
    rag = SpeculativeRAG(retriever=host, llm=Chat(calls=[]), prompt=PROMPT, workload="one_shot")
    assert expected == rag.invoke("?")["context"]
    rag.close()


class Marked(SpeculativeRetriever):
    """Overrides what LangChain has subclasses override."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: Any, **kwargs: Any
    ) -> list[Document]:
        found = super()._get_relevant_documents(query, run_manager=run_manager, **kwargs)
        return [one.model_copy(update={"page_content": "marked"}) for one in found]


def test_j_a_thread_id_does_not_keep_apart_what_cannot_read_it() -> None:
    """Over a known store nothing reads the call's config."""
    store = InMemoryVectorStore.from_texts(["a", "b"], EMBEDDING)
    counts = []
    for configs in (
        [{} for _ in range(10)],
        [{"configurable": {"thread_id": str(i)}} for i in range(10)],
    ):
        ours = SpeculativeRetriever(
            retriever=store.as_retriever(), memo=QueryCache(ttl_s=60), pool=SharedPassageCache()
        )
        ours.batch([f"q{i}" for i in range(10)], configs)
        trips = ours.stats.round_trips
        for config in configs:
            ours.invoke("the same", config)
        counts.append((trips, ours.stats.remembered))
    assert [(1, 9)] * 2 == counts


def tutorials() -> dict[str, tuple[Runnable[Any, Any], Any]]:
    """The chains of the tutorials, with an input each."""
    store = InMemoryVectorStore.from_texts(["t", "u"], EMBEDDING)
    retriever = store.as_retriever(search_kwargs={"k": 1})
    llm = FakeListLLM(responses=["x"])
    condense = PromptTemplate.from_template("{chat_history} {input}")
    aware = create_history_aware_retriever(llm, retriever, condense)
    tail = PromptTemplate.from_template("{context} {question}") | llm | StrOutputParser()
    first = {"context": retriever | show, "question": RunnablePassthrough()}
    answer = RunnablePassthrough.assign(context=lambda x: show(x["context"])) | tail
    sources = RunnableParallel({"context": retriever, "question": RunnablePassthrough()})
    return {
        "history-aware, first turn": (retrieval_chain(llm, aware), {"input": "q"}),
        "history-aware": (
            retrieval_chain(llm, aware),
            {"input": "q", "chat_history": [("user", "x")]},
        ),
        "model.with_retry": (retrieval_chain(llm.with_retry(), retriever), {"input": "q"}),
        "model.with_fallbacks": (
            retrieval_chain(llm.with_fallbacks([llm]), retriever),
            {"input": "q"},
        ),
        "retriever.with_retry": (
            retrieval_chain(llm, itemgetter("input") | retriever.with_retry()),
            {"input": "q"},
        ),
        "retriever.with_fallbacks": (
            {
                "context": retriever.with_fallbacks([retriever]) | show,
                "question": RunnablePassthrough(),
            }
            | tail,
            "q",
        ),
        "chain.with_retry": ((first | tail).with_retry(), "q"),
        "chain.with_fallbacks": ((first | tail).with_fallbacks([first | tail]), "q"),
        "reranked": (
            {"context": retriever | reversed_ | show, "question": RunnablePassthrough()} | tail,
            "q",
        ),
        "sources": (sources.assign(answer=answer), "q"),
    }


def reversed_(documents: list[Document]) -> list[Document]:
    return documents[::-1]


TUTORIALS = tuple(tutorials())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", TUTORIALS)
def test_l_the_chains_of_the_tutorials_are_taken(name: str, way: str) -> None:
    """They give what they gave."""
    chain, value = tutorials()[name]
    assert answer_of(chain, value, way) == answer_of(speculate(chain), value, way)
    ours = speculate(chain)
    assert chain.input_schema.model_json_schema() == ours.input_schema.model_json_schema()


class Tuple(BaseRetriever):
    """Gives no list, against its own signature."""

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> Any:
        return (Document("a"), Document("b"))


@pytest.mark.parametrize("way", WAYS)
def test_m_a_tuple_of_documents_is_taken(way: str) -> None:
    """As the host takes it."""
    chain = chain_of(Chat(calls=[]), Tuple())
    assert answer_of(chain, "q", way) == answer_of(speculate(chain), "q", way)
    ours = SpeculativeRetriever(retriever=Tuple())
    assert list(Tuple().invoke("q")) == list(ours.invoke("q"))


def test_m_the_combination_reads_another_variable() -> None:
    """`create_retrieval_chain` gives the documents as `context`, and as nothing else."""
    prompt = PromptTemplate.from_template("{documents} {input}")
    combine = create_stuff_documents_chain(
        FakeListLLM(responses=["x"]), prompt, document_variable_name="documents"
    )
    chain = create_retrieval_chain(Found(), combine)
    for runnable in (chain, speculate(chain)):
        with pytest.raises(KeyError, match="documents"):
            runnable.invoke({"input": "q"})


def test_m_max_concurrency_bounds_the_retrievers_calls() -> None:
    """A request whose config says it has one at a time."""
    lock, out, most = threading.Lock(), [0], [0]

    class Counts(BaseRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
            with lock:
                out[0] += 1
                most[0] = max(most[0], out[0])
            time.sleep(0.01)
            with lock:
                out[0] -= 1
            return [Document(query[-1:])]

    llm = FakeListLLM(responses=["one. two three."])
    rag = SpeculativeRAG(
        retriever=Counts(),
        llm=llm,
        prompt=PROMPT,
        bound=lambda _: {},
        workload="sentences",
        max_tokens=64 * 6,
        pool=SharedPassageCache(),
    )
    for most_requests in (1, 2):
        most[0] = 0
        rag.batch(["a", "b", "c", "d"], {"max_concurrency": most_requests})
        assert most[0] <= most_requests
    rag.close()


def test_i_a_batch_calls_what_a_subclass_overrides() -> None:
    """LangChain's contract: one method to override."""
    store = InMemoryVectorStore.from_texts(["real"], EMBEDDING)
    ours = Marked(retriever=store.as_retriever())
    found = [ours.invoke("q"), ours.batch(["q"])[0], asyncio.run(ours.abatch(["q"]))[0]]
    assert ["marked"] * 3 == [show(one) for one in found]


def test_k_a_search_is_told_once_under_the_retrievers_name() -> None:
    """Cold or warm, over a black box or a store."""

    async def ends(retriever: Any) -> list[str]:
        events = retriever.astream_events("q", version="v2")
        return [one["name"] async for one in events if one["event"] == "on_retriever_end"]

    ours = SpeculativeRetriever(retriever=Found(), memo=QueryCache())
    assert [["Found"]] * 3 == [asyncio.run(ends(one)) for one in (Found(), ours, ours)]


class Stops(BaseRetriever):
    """A bare `next()` in a search is a common mistake."""

    error: Any

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        raise self.error("of search")


def raised_by(runnable: Any, way: str) -> type[BaseException]:
    with pytest.raises((StopIteration, StopAsyncIteration, RuntimeError)) as raised:
        called(runnable, "q", way)
    return raised.type


@pytest.mark.parametrize("options", [{}, {"speculate": False}])
@pytest.mark.parametrize("way", ["invoke", "ainvoke", "batch", "abatch"])
@pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration])
def test_f5_the_end_of_an_iteration_in_a_part_is_raised_as_by_the_host(
    error: type[Exception], way: str, options: Any
) -> None:
    """By a retriever or a model, in a chain and a loop; coroutines cannot raise `StopIteration`."""

    def fails(prompt: str) -> None:
        raise error("of model")

    for retriever, llm in (
        (Stops(error=error), HashLLM()),
        (HashRetriever(documents=documents()), HashLLM(hook=fails)),
    ):
        chain = chain_of(llm, retriever)
        hand = by_hand(llm, retriever, "interval")
        ours = rag_of(llm, retriever, "interval", **options)
        expected = raised_by(chain, way)

        assert (expected is error) is (error is StopAsyncIteration or "a" != way[0])
        assert expected is raised_by(speculate(chain, **options), way)
        assert raised_by(hand, way) is raised_by(ours, way)
        ours.close()
    alone = SpeculativeRetriever(retriever=Stops(error=error))
    assert raised_by(Stops(error=error), way) is raised_by(alone, way)


def test_f5_the_call_that_raised_it_is_told() -> None:
    """With its own error, as any other's."""

    class Errors(BaseCallbackHandler):
        def __init__(self) -> None:
            self.told: list[str] = []

        def on_retriever_error(self, error: BaseException, **_: Any) -> None:
            self.told.append(repr(error))

    seen = []
    chain = chain_of(HashLLM(), Stops(error=StopIteration))
    for runnable in (chain, speculate(chain)):
        heard = Errors()
        with pytest.raises(StopIteration):
            runnable.invoke("q", {"callbacks": [heard]})
        seen.append(heard.told)

    assert [["StopIteration('of search')"]] * 2 == seen
