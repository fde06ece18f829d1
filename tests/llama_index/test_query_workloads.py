"""Multi-hop and Iter-RetGen in LlamaIndex: as the loop by hand with the host's own objects."""

from typing import Any

import pytest
from llama_index.core import MockEmbedding, PromptTemplate, VectorStoreIndex
from llama_index.core.chat_engine import ContextChatEngine
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import MetadataMode
from llama_index_ralmspec import CommitEvent, RetrievalEvent, SpeculativeQueryEngine
from pydantic import Field

from ralmspec_plugins.errors import ConfigError
from tests.llama_index.rag_parts import (
    HashLLM,
    HashRetriever,
    ScoresIntoTexts,
    digest,
    made_nodes,
)

QUESTION = "Who saw it?"
TAGS = PromptTemplate("{context_str}Ask in tags. {query_str}\n")
ANSWER = PromptTemplate("{context_str}\n{query_str}")


class TagLLM(HashLLM):
    """Asks three times for a digest of what it reads, then answers with one."""

    def written(self, prompt: str, kwargs: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
        if prompt.count("<information>") < 3:
            text = f"I look. <search>x{digest(prompt):08x}</search> and on"
        else:
            text = f"So <answer>x{digest(prompt):08x}</answer> it is"
        ends = [text.find(mark) for mark in kwargs.get("stop") or () if mark in text]
        return list(text[: min(ends, default=len(text))]), {}


class Answering(HashLLM):
    """Answers a whole question by a digest."""

    def written(self, prompt: str, kwargs: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
        assert "max_tokens" not in kwargs
        return [f"x{digest(prompt):08x}"], {}


def engine(llm: Any, store: Any, template: PromptTemplate, **options: Any) -> Any:
    synthesizer = get_response_synthesizer(
        llm=llm,
        response_mode="simple_summarize",
        text_qa_template=template,
        streaming=options.pop("streaming", False),
    )
    processors = options.pop("processors", [])
    return SpeculativeQueryEngine(store, synthesizer, processors, None, **options)


def by_hand(llm: Any, store: HashRetriever) -> str:
    """Write until a tag closes, put in what is found, and write on."""
    prompt, read, written = TAGS.format(context_str="", query_str=QUESTION), "", ""
    while True:
        text = llm.complete(prompt + read).text
        text = text.partition("</search>")[0].partition("</answer>")[0]
        if "<answer>" in text:
            return f"{written}{text}</answer>"
        text += "</search>"
        found = store.retrieve(text.rpartition("<search>")[2].partition("</search>")[0])
        lines = [f"Doc {n}(Title: ) {one.node.text}" for n, one in enumerate(found, start=1)]
        written += text
        read += text + "\n\n<information>" + "\n".join(lines) + "</information>\n\n"


@pytest.mark.parametrize("speculate", [True, False])
def test_multi_hop_is_the_loop_by_hand(*, speculate: bool) -> None:
    """The same text and queries, as a response and as a stream; sources of all hops."""
    hand, ours = HashRetriever(made_nodes()), HashRetriever(made_nodes())
    expected = by_hand(TagLLM(), hand)
    options = {"workload": "multi_hop", "bound": "max_tokens", "speculate": speculate}
    response = engine(TagLLM(), ours, TAGS, **options).query(QUESTION)
    stream = engine(TagLLM(), ours, TAGS, streaming=True, **options).query(QUESTION)

    assert expected == str(response) == "".join(stream.response_gen)
    assert expected.count("<search>") == 3
    assert set(hand.asked) <= set(ours.asked)
    assert len(response.source_nodes) >= 3


class Hops(BaseEventHandler):
    """Notes retrievals and commits."""

    retrieved: list[Any] = Field(default_factory=list)
    committed: list[str] = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Hops"

    def handle(self, event: Any, **_: Any) -> None:
        if isinstance(event, RetrievalEvent):
            self.retrieved.append(event)
        elif isinstance(event, CommitEvent):
            self.committed.append(event.query_str)


def test_each_hop_is_told() -> None:
    """A retrieval and a commit each, in the order of the hops; the first turn has no search."""
    hand, handler = HashRetriever(made_nodes()), Hops()
    by_hand(TagLLM(), hand)
    made = engine(
        TagLLM(), HashRetriever(made_nodes()), TAGS, workload="multi_hop", bound="max_tokens"
    )
    get_dispatcher().add_event_handler(handler)
    try:
        response = made.query(QUESTION)
    finally:
        get_dispatcher().event_handlers.remove(handler)
    read = [one.node_ids for one in handler.retrieved]

    assert hand.asked == [one.query_str for one in handler.retrieved]
    assert ["", *hand.asked] == handler.committed
    assert len(read) == 3
    assert {one.node.node_id for one in response.source_nodes} == {
        one for ids in read for one in ids
    }


@pytest.mark.parametrize("speculate", [True, False])
def test_iter_retgen_is_the_loop_by_hand(*, speculate: bool) -> None:
    """Three completions without a bound, each with what the answer before found."""
    hand, ours = HashRetriever(made_nodes()), HashRetriever(made_nodes())
    query, answer = QUESTION, ""
    for _ in range(3):
        found = hand.retrieve(query)
        shown = "\n\n".join(one.node.get_content(MetadataMode.LLM).strip() for one in found)
        prompt = ANSWER.format(context_str=shown, query_str=QUESTION)
        answer = Answering().complete(prompt).text
        query = f"{answer} {QUESTION}"
    made = engine(Answering(), ours, ANSWER, workload="iter_retgen", speculate=speculate)

    assert answer == str(made.query(QUESTION))
    assert set(hand.asked) <= set(ours.asked)
    assert len(set(hand.asked)) == 3


def test_what_cannot_be_is_refused() -> None:
    """Postprocessors of nodes in the text; FLARE without log-probabilities."""
    store = HashRetriever(made_nodes())
    steps = {"bound": "max_tokens"}

    with pytest.raises(ConfigError, match="ScoresIntoTexts would not run"):
        engine(TagLLM(), store, TAGS, workload="multi_hop", processors=[ScoresIntoTexts()], **steps)
    with pytest.raises(ConfigError, match="logprobs"):
        engine(HashLLM(), store, ANSWER, workload="flare", **steps)


class Scored(HashLLM):
    """Gives log-probabilities in OpenAI's form where it is asked for them."""

    def written(self, prompt: str, kwargs: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
        words, raw = super().written(prompt, kwargs)
        if kwargs.get("logprobs"):
            scores = [-(digest(prompt + word) % 5) / 4 for word in words]
            raw["choices"][0]["logprobs"] = {"tokens": words, "token_logprobs": scores}
        return words, raw


def test_flare_takes_what_asks_for_log_probabilities() -> None:
    """What the refusal names as its remedy; the response is the plain loop's."""
    options = {"workload": "flare", "bound": "max_tokens", "logprobs": {"logprobs": True}}
    stores = [HashRetriever(made_nodes()), HashRetriever(made_nodes())]
    responses = [
        engine(Scored(), store, ANSWER, speculate=speculate, **options).query(QUESTION)
        for store, speculate in zip(stores, (True, False), strict=True)
    ]

    assert str(responses[0]) == str(responses[1]) != ""
    assert responses[0].source_nodes == responses[1].source_nodes
    assert len(set(stores[1].asked)) > 1  # the question, and sentences that were unsure
    assert set(stores[1].asked) <= set(stores[0].asked)


def test_logprobs_are_refused_where_nothing_reads_them() -> None:
    """As every option without an effect."""
    for workload in ("sentences", "one_shot"):
        with pytest.raises(ConfigError, match="logprobs"):
            engine(
                Scored(),
                HashRetriever(made_nodes()),
                ANSWER,
                workload=workload,
                logprobs={"logprobs": True},
            )


def test_what_is_passed_by_mistake_is_refused_with_the_remedy() -> None:
    """An index in place of a retriever; a chat engine, which takes a retriever of ours."""
    index = VectorStoreIndex(made_nodes(), embed_model=MockEmbedding(4))
    with pytest.raises(ConfigError, match=r"for an index use from_index"):
        SpeculativeQueryEngine.from_args(index)  # type: ignore[arg-type]
    memory = ChatMemoryBuffer.from_defaults(token_limit=100)
    chat = ContextChatEngine.from_defaults(index.as_retriever(), llm=MockLLM(), memory=memory)
    with pytest.raises(ConfigError, match=r"or a SpeculativeRetriever to it"):
        SpeculativeQueryEngine.wrap(chat)  # type: ignore[arg-type]
