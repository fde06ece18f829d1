"""How often store and model are called: by the engine, and by the loop that is written by hand."""

import re
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from llama_index.core import PromptTemplate, StorageContext, VectorStoreIndex
from llama_index.core.base.llms.types import CompletionResponse, LLMMetadata
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.llms.openai import OpenAI
from llama_index.llms.openai_like import OpenAILike
from llama_index_ralmspec import SpeculativeQueryEngine, register_batch_search, stats_of
from llama_index_ralmspec.stores.simple import simple_search

from ralmspec_plugins import FixedStride
from ralmspec_plugins.demo import DEMO_SEED, MODEL, make_world
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.workloads import Interval, Sentences
from tests.langchain.openai_server import Served, serving
from tests.llama_index.by_hand import last_words
from tests.llama_index.engine_parts import seen, seen_nodes
from tests.llama_index.rag_parts import HashLLM, HashRetriever, digest, made_nodes, pair
from tests.llama_index.worlds import WordEmbedding

STEPS, STEP_WORDS, QUERY_WORDS = 16, 3, 12
TOPICS = ("sea", "hill", "fire", "town", "moon", "mill")
END = "\n###\n"  # between the nodes and the question, in every prompt
PROMPT = PromptTemplate(f"{{context_str}}{END}{{query_str}}")
SENTENCE = re.compile(r".*?[.](?=\s|$)", flags=re.DOTALL)
WORKLOADS: dict[str, Any] = {
    "sentences": partial(Sentences, tokens=6, query_tokens=QUERY_WORDS, max_sentences=STEPS),
    "interval": partial(Interval, interval=STEP_WORDS, query_tokens=QUERY_WORDS),
}
ASKED = [f"Tell of the {topic}" for topic in TOPICS]
STRIDE = FixedStride(stride=4)


def article(number: int, shift: int) -> list[str]:
    """Write sentences of three words, of which some at a time are about one thing."""
    words = []
    for sentence in range(STEPS):
        topic = TOPICS[(number + sentence // 4) % len(TOPICS)]
        words += [f"{topic}{(sentence + at + shift) % 5}" for at in range(STEP_WORDS)]
        words[-1] += "."
    return words


class Story(CustomLLM):
    """Goes on with the article that the question begins, in words that depend on the nodes."""

    calls: list[str] = []  # noqa: RUF012 a pydantic field

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="story")

    @llm_completion_callback()
    def complete(
        self, prompt: str, formatted: bool = False, max_tokens: int = 0, **kwargs: Any
    ) -> CompletionResponse:
        self.calls.append(prompt)
        number = next(at for at, question in enumerate(ASKED) if END + question in prompt)
        done = len(prompt.partition(END + ASKED[number])[2].split())
        shift = digest(prompt.partition(END)[0])  # with other nodes it has other words
        more = article(number, shift)[done : done + max_tokens]
        return CompletionResponse(text="".join(f" {word}" for word in more))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        raise NotImplementedError


_lock = threading.Lock()
_trips: dict[int, list[int]] = {}  # how many queries each call of a store had


class CountedStore(SimpleVectorStore):
    """Counts what reaches it."""

    @property
    def trips(self) -> list[int]:
        return _trips.setdefault(id(self), [])

    def count(self, queries: int) -> None:
        with _lock:
            self.trips.append(queries)

    def query(self, *args: Any, **kwargs: Any) -> Any:
        self.count(1)
        return super().query(*args, **kwargs)


class CountedSearch:
    """Its batch search: one call for all queries."""

    def __init__(self, search: Any, store: CountedStore) -> None:
        self._search, self._store = search, store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._search, name)

    def search(self, vectors: Any, k: int) -> Any:
        self._store.count(len(vectors))
        return self._search.search(vectors, k)


def _counted(retriever: Any) -> Any:
    search = simple_search(retriever)
    return None if search is None else CountedSearch(search, retriever._vector_store)


register_batch_search(f"{CountedStore.__module__}.CountedStore", _counted)


def counted_store(k: int) -> tuple[CountedStore, Any]:
    """Put nodes about all topics into a store, and search it."""
    nodes = [
        TextNode(
            id_=f"{topic}-{at}",
            text=" ".join(f"{topic}{(at + one) % 5}" for one in range(3)),
            metadata={"about": topic},
            excluded_embed_metadata_keys=["about"],
        )
        for topic in TOPICS
        for at in range(6)
    ]
    store = CountedStore()
    context = StorageContext.from_defaults(vector_store=store)
    index = VectorStoreIndex(nodes, storage_context=context, embed_model=WordEmbedding())
    return store, index.as_retriever(similarity_top_k=k)


def by_hand(llm: Any, retriever: Any, question: str, workload: str) -> Any:
    """Search and write, step by step, with the host's own objects."""
    text, used = "", dict[str, NodeWithScore]()
    for _ in range(STEPS):
        found = retriever.retrieve(last_words(question, text, QUERY_WORDS))
        for one in found:
            used.setdefault(one.node_id, one)
        context = "\n\n".join(one.node.get_content(MetadataMode.LLM) for one in found)
        prompt = PROMPT.format(context_str=context, query_str=question) + text
        tokens = 6 if workload == "sentences" else STEP_WORDS
        piece = llm.complete(prompt, formatted=True, max_tokens=tokens).text
        sentence = SENTENCE.match(piece) if workload == "sentences" else None
        text += sentence.group() if sentence else piece
    return text, seen_nodes(list(used.values()))


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("workload", WORKLOADS)
def test_round_trips_to_the_store(workload: str, k: int) -> None:
    """Where queries drift slowly, a loop of 16 steps reaches the store in a fraction of the trips.

    Counted by the store itself; with a stride, how fast anything is does not matter.
    """
    store, retriever = counted_store(k)
    llm = Story()
    expected = [by_hand(llm, retriever, question, workload) for question in ASKED]
    plain = len(store.trips)
    store.trips.clear()
    with SpeculativeQueryEngine.from_args(
        retriever,
        llm=llm,
        text_qa_template=PROMPT,
        workload=WORKLOADS[workload],
        max_tokens=10**6 if workload == "sentences" else STEPS * STEP_WORDS,
        bound="max_tokens",
        schedule=STRIDE,
        prefetch=3 * k,
        pool=None,
    ) as ours:
        got: list[Any] = [ours.query(question) for question in ASKED]
        stats = ours.stats

    assert expected == [(one.response, seen_nodes(one.source_nodes)) for one in got]
    assert plain == STEPS * len(ASKED)
    assert (len(store.trips), sum(store.trips)) == (stats.round_trips, stats.queries)
    assert len(store.trips) * 2 <= plain  # measured: 2.3 times as few for k = 1, 2.6 for k = 4


WORLD = make_world(DEMO_SEED, 60)
FIRST, *MORE = [one.prompt for one in WORLD.questions(2, 1)]
EACH_QUESTION = pytest.mark.parametrize(
    "question", [FIRST, *(pytest.param(one, marks=pytest.mark.slow) for one in MORE)]
)
CONTINUED = {"extra_body": {"continue_final_message": True, "add_generation_prompt": False}}
CLIENTS: dict[str, Any] = {
    "like, completing": partial(OpenAILike, model="demo", is_chat_model=False),
    "like, chatting": partial(OpenAILike, model="demo", is_chat_model=True),
    "completing": partial(OpenAI, model="gpt-3.5-turbo-instruct"),
    "chatting": partial(OpenAI, model="gpt-4o-mini"),
}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(HuggingFaceLM.from_pretrained(MODEL)) as served:
        yield served


@pytest.fixture(scope="module")
def searched() -> Any:
    """A retriever over the demo's passages."""
    nodes = [TextNode(id_=one.id, text=one.text) for one in WORLD.passages()]
    return VectorStoreIndex(nodes, embed_model=WordEmbedding()).as_retriever(similarity_top_k=1)


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest, served: Served) -> Any:
    common = {"api_base": served.url, "api_key": "none", "temperature": 0, "max_tokens": 16}
    return CLIENTS[request.param](**common, max_retries=0)


def requests_for(served: Served, call: Any, *arguments: Any) -> tuple[Any, list[Any]]:
    """Call something, and list what has reached the server."""
    before = served.count
    made = seen(call(*arguments))
    return made, served.requests[before:]


@EACH_QUESTION
def test_one_shot_sends_what_the_hosts_engine_sends(
    client: Any, searched: Any, served: Served, question: str
) -> None:
    """Byte for byte, each once; on a wrong guess one more, and on a right one no more."""
    host = RetrieverQueryEngine.from_args(searched, llm=client, text_qa_template=PROMPT)
    liar = HashRetriever(made_nodes())
    guess = {"schedule": FixedStride(stride=2), "pool": None}
    with (
        SpeculativeQueryEngine.wrap(host) as ours,
        SpeculativeQueryEngine.wrap(host, replica=searched, **guess) as right,
        SpeculativeQueryEngine.wrap(host, replica=liar, **guess) as wrong,
    ):
        expected, sent = requests_for(served, host.query, question)

        assert 1 == len(sent)
        assert (expected, sent) == requests_for(served, right.query, question)
        got, also_dropped = requests_for(served, wrong.query, question)
        assert expected == got
        assert sent[0] in also_dropped
        assert 2 >= len(also_dropped)
        assert (expected, sent) == requests_for(
            served, ours.with_options(speculate=False).query, question
        )


@EACH_QUESTION
def test_sentences_take_a_round_trip_each(
    client: Any, searched: Any, served: Served, question: str
) -> None:
    """Plainly one a sentence; with right guesses no more of them, and the same text."""
    workload = partial(Sentences, tokens=24, max_sentences=3)
    continuation = CONTINUED if client.metadata.is_chat_model else None
    with SpeculativeQueryEngine.from_args(
        searched,
        llm=client,
        text_qa_template=PROMPT,
        workload=workload,
        continuation=continuation,
        replica=searched,
        schedule=FixedStride(stride=2),
    ) as ours:
        plain = ours.with_options(speculate=False)
        expected, sent = requests_for(served, plain.query, question)
        got, also_sent = requests_for(served, ours.query, question)

        assert 3 == len(sent)
        assert [24] * 3 == [one["max_tokens"] for one in sent]
        assert expected == got
        assert sent == also_sent


@pytest.mark.parametrize("bound", ["max_wasted_tokens", "max_wasted_encodings"])
async def test_the_calls_of_wrong_guesses_stay_within_a_bound(bound: str) -> None:
    """Of the model and of the embedder: what follows waits for its search; the text is the same."""
    nodes = made_nodes()
    embedder = WordEmbedding()
    retriever = VectorStoreIndex(nodes, embed_model=embedder).as_retriever(similarity_top_k=2)
    wrong: dict[str, Any] = {"replica": HashRetriever(nodes, salt="lie"), "pool": None}
    wrong |= {"schedule": FixedStride(stride=4), "guess_through": True}
    hand, free = pair(HashLLM(), retriever, **wrong)
    expected, cost = hand.query(ASKED[0]), _wasted(free.query(ASKED[0]), bound)
    assert cost > 3
    for most in (0, cost // 4):
        ours = free.with_options(**{bound: most})
        for response in (ours.query(ASKED[0]), await ours.aquery(ASKED[0])):
            stats = stats_of(response)
            call = max(span.tokens for span in stats.timeline) if bound.endswith("tokens") else 1
            assert _wasted(response, bound) <= max(0, most - 1 + call * (most > 0)) < cost
            assert stats.limited_by == bound
            assert seen(expected) == seen(response)
            assert str(response)
    free.close()


def _wasted(response: Any, bound: str) -> int:
    return int(getattr(stats_of(response), bound.removeprefix("max_")))


def test_a_share_of_the_calls_of_all_queries_is_kept() -> None:
    """With 0.1 nothing is begun on a guess before nine calls were made, over all queries."""
    nodes = made_nodes()
    wrong: dict[str, Any] = {"replica": HashRetriever(nodes, salt="lie"), "pool": None}
    wrong |= {"schedule": FixedStride(stride=4), "guess_through": True}
    hand, free = pair(HashLLM(), HashRetriever(nodes), **wrong)
    ours = free.with_options(max_wasted_share=0.1)
    calls = wasted = 0
    limited, texts = set(), set()
    for question in ASKED * 4:
        response = ours.query(question)
        stats = stats_of(response)
        calls += stats.segments + stats.wasted_segments
        wasted += stats.wasted_segments
        limited.add(stats.limited_by)
        assert wasted <= 0.1 * calls
        assert seen(hand.query(question), empty=True) == seen(response, empty=True)
        texts.add(str(response))
    free.close()

    assert wasted > 0
    assert len(texts) > 1
    assert "max_wasted_share" in limited


@pytest.mark.parametrize("bound", ["max_wasted_tokens", "max_wasted_encodings"])
def test_a_bound_on_waste_is_checked_at_once(bound: str) -> None:
    """With the name of what was wrong."""
    with pytest.raises(ConfigError, match="max_wasted_share must be from 0 to 1"):
        pair(HashLLM(), HashRetriever(made_nodes()), max_wasted_share=1.5)
    with pytest.raises(ConfigError, match=f"{bound} must be a whole number of at least 0"):
        pair(HashLLM(), HashRetriever(made_nodes()), **{bound: -1})
