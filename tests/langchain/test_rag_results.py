"""Every way to call the runnable gives the one result; with one retrieval, the host chain's own."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_classic.chains.retrieval import create_retrieval_chain
from langchain_core.documents import Document
from langchain_core.language_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import (
    BaseOutputParser,
    CommaSeparatedListOutputParser,
    PydanticToolsParser,
)
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder, PromptTemplate
from langchain_core.runnables.utils import AddableDict
from langchain_ralmspec.rag import SpeculativeRAG
from pydantic import BaseModel

from ralmspec_plugins import QueryCache
from ralmspec_plugins.errors import ConfigError, InputError
from tests.langchain.by_hand import PROMPT
from tests.langchain.rag_loops import by_hand
from tests.langchain.rag_parts import (
    QUESTIONS,
    WORKLOADS,
    HashChat,
    HashLLM,
    HashRetriever,
    Log,
    documents,
    plain_values,
    rag_of,
    vector_store,
)
from tests.langchain.test_rag_equality import values
from tests.selection import covering

QUESTION = QUESTIONS[0]


@pytest.fixture(params=WORKLOADS)
def rag(request: pytest.FixtureRequest) -> Iterator[Any]:
    rag = rag_of(HashLLM(), HashRetriever(documents=documents()), request.param)
    yield rag
    rag.close()


def summed(pieces: list[Any]) -> dict[str, Any]:
    whole = AddableDict()
    for piece in pieces:
        whole = whole + piece
    return dict(whole)


async def test_all_ways_to_call_give_the_same(rag: Any) -> None:
    """Invoked, in a batch, streamed, transformed, from event streams: one result."""
    expected = values(rag.invoke(QUESTION))

    async def inputs() -> Any:
        yield QUESTION

    assert expected == values(await rag.ainvoke(QUESTION))
    assert [expected] * 2 == [values(one) for one in rag.batch([QUESTION] * 2)]
    assert [expected] * 2 == [values(one) for one in await rag.abatch([QUESTION] * 2)]
    assert expected == values(summed(list(rag.stream(QUESTION))))
    assert expected == values(summed([one async for one in rag.astream(QUESTION)]))
    assert expected == values(summed(list(rag.transform(iter([QUESTION])))))
    assert expected == values(summed([one async for one in rag.atransform(inputs())]))
    events = [one async for one in rag.astream_events(QUESTION, version="v2")]
    assert expected == values(events[-1]["data"]["output"])
    own = events[0]["run_id"]
    chunks = [e["data"]["chunk"] for e in events if e["event"] == "on_chain_stream"]
    assert expected == values(summed(chunks))
    assert {own} == {e["run_id"] for e in events if e["event"] == "on_chain_stream"}
    with pytest.warns(DeprecationWarning, match="astream_log"):
        log = [patch async for patch in rag.astream_log(QUESTION, diff=False)]
    assert expected == values(log[-1].state["final_output"])


async def test_what_came_with_the_question_comes_back(rag: Any) -> None:
    """A text, a dict with `input` or `question`; other keys in front, as they came."""
    answer = rag.invoke(QUESTION)["answer"]
    for given in (
        {"input": QUESTION},
        {"question": QUESTION},
        {"more": [1, {"a": 2}], "input": QUESTION, "z": None},
    ):
        reply = rag.invoke(given)
        assert [*given, "context", "answer", "ralmspec"] == list(reply)
        assert given == {key: reply[key] for key in given}
        assert answer == reply["answer"]
        streamed = list(rag.stream(given))
        assert [*given, "context", "answer", "ralmspec"] == list(summed(streamed))
        assert given == streamed[0]
        assert values({"input": "", **reply}) == values({"input": "", **(await rag.ainvoke(given))})


async def test_what_stands_where_the_reply_will_is_not_added_to(rag: Any) -> None:
    """An input with `context` or `answer` of its own: replaced, as the host's chain does."""
    expected = rag.invoke(QUESTION)
    given = {"input": QUESTION, "context": [Document("old")], "answer": "old", "ralmspec": 1}
    for reply in (
        rag.invoke(given),
        await rag.ainvoke(given),
        summed(list(rag.stream(given))),
    ):
        assert values(expected) == values(reply)
        assert set(expected["ralmspec"]) == set(reply["ralmspec"])


@pytest.mark.parametrize(
    "bad", [{}, {"input": 3}, {"other": "x"}, 7, None, ["a"], {"question": None}]
)
async def test_what_is_no_question_is_refused(rag: Any, bad: Any) -> None:
    """An `InputError` that says what was got, in every way to call; its run is closed."""
    log = Log()
    with pytest.raises(InputError, match="input"):
        rag.invoke(bad, {"callbacks": [log]})
    with pytest.raises(InputError):
        await rag.ainvoke(bad)
    with pytest.raises(InputError):
        list(rag.stream(bad))
    with pytest.raises(InputError):
        [one async for one in rag.astream(bad)]
    assert log.names == ["on_chain_start", "on_chain_error"]
    with pytest.raises(ConfigError, match=r"not a setting of a call; .*stop"):
        rag.invoke(QUESTION, temperature=3)


async def test_batches_take_settings_and_faults_one_by_one() -> None:
    """A list of configs, at most so many at a time, exceptions in their places."""
    llm = HashLLM()
    running, most = [0], [0]

    def fails(query: str) -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        running[0] -= 1
        if query.startswith("bad"):
            raise KeyError(query)

    rag = rag_of(llm, HashRetriever(documents=documents(), hook=fails), side_by_side=1)
    asked = [QUESTIONS[0], "bad one", QUESTIONS[1]]
    logs = [Log(), Log(), Log()]
    configs: Any = [
        {"callbacks": [log], "tags": [f"t{number}"], "max_concurrency": 1}
        for number, log in enumerate(logs)
    ]
    got = rag.batch(asked, configs, return_exceptions=True)
    expected = [rag.invoke(QUESTIONS[0]), rag.invoke(QUESTIONS[1])]

    assert most == [1]
    assert [values(one) for one in expected] == [values(got[0]), values(got[2])]
    assert isinstance(got[1], KeyError)
    assert [["t0"], ["t1"], ["t2"]] == [log.events[0][2]["tags"] for log in logs]
    assert ["on_chain_end", "on_chain_error", "on_chain_end"] == [log.names[-1] for log in logs]
    assert [[]] * 3 == [log.left_open() for log in logs]
    with pytest.raises(KeyError, match="bad one"):
        rag.batch(asked)
    assert [] == rag.batch([])
    assert [] == await rag.abatch([])
    rag.close()
    clean = rag_of(HashLLM(), HashRetriever(documents=documents()))
    async_got = await clean.abatch(asked[::2], [{"tags": ["a"]}, {"tags": ["b"]}])
    assert [values(one) for one in expected] == [values(one) for one in async_got]
    indexed = dict(clean.batch_as_completed(asked[::2]))
    assert [values(one) for one in expected] == [values(indexed[0]), values(indexed[1])]
    clean.close()


HISTORY_PROMPT = ChatPromptTemplate.from_messages(
    [("system", "Know: {context}"), MessagesPlaceholder("chat_history"), ("human", "{input}")]
)
CHAINS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "text": (HashLLM, PROMPT, {}),
    "chat": (HashChat, PROMPT, {}),
    "history": (HashChat, HISTORY_PROMPT, {"chat_history": [("human", "hi"), ("ai", "yes?")]}),
    "history as text": (HashLLM, HISTORY_PROMPT, {"chat_history": []}),
}
SHOWN: dict[str, dict[str, Any]] = {
    "as usual": {},
    "document prompt": {
        "document_prompt": PromptTemplate.from_template("<{number}> {page_content}"),
        "document_separator": "\n--\n",
    },
}


@pytest.mark.parametrize(
    ("name", "shown", "kind"),
    covering(CHAINS, SHOWN, ["black box", "looked into", "twice the same"], strength=2),
)
async def test_one_retrieval_is_the_hosts_own_chain(name: str, shown: str, kind: str) -> None:
    """`create_retrieval_chain` key by key: invoked, and streamed chunk by chunk."""
    make, prompt, more = CHAINS[name]
    llm = make()
    retriever: Any = HashRetriever(documents=documents())
    if kind == "looked into":
        retriever = vector_store(documents()).as_retriever()
    elif kind == "twice the same":
        retriever = HashRetriever(documents=[*documents(2), *documents(1, ids=False)] * 2, k=5)
    chain = create_retrieval_chain(
        retriever, create_stuff_documents_chain(llm, prompt, **SHOWN[shown])
    )
    rag = SpeculativeRAG(
        retriever=retriever, llm=llm, prompt=prompt, workload="one_shot", **SHOWN[shown]
    )
    for question in QUESTIONS[:3]:
        given = {"input": question, **more}
        expected, reply = chain.invoke(given), rag.invoke(given)

        assert list(expected) == list(reply)
        assert expected == reply
        reply = await rag.ainvoke(given)
        assert expected == reply
        chunks, ours = list(chain.stream(given)), list(rag.stream(given))
        merged = kind == "looked into"  # what was written before it was verified comes at once
        assert _pieces(chunks, merged=merged) == _pieces(ours, merged=merged)
        ours = [one async for one in rag.astream(given)]
        assert _pieces(chunks, merged=merged) == _pieces(ours, merged=merged)
    rag.close()


def _pieces(chunks: list[dict[str, Any]], *, merged: bool) -> list[Any]:
    """Show chunks: which keys in which order, with what in them; empty texts aside."""
    flat = [(key, value) for chunk in chunks for key, value in chunk.items() if value != ""]
    if merged:
        flat = list(summed([AddableDict({key: value}) for key, value in flat]).items())
    return [(key, plain_values(v) if key == "context" else v) for key, v in flat]


def test_a_documents_prompt_that_asks_too_much_fails_as_the_hosts_does() -> None:
    """Metadata that a document lacks: the host's own error."""
    llm, retriever = HashLLM(), HashRetriever(documents=documents())
    template = PromptTemplate.from_template("{nothing} {page_content}")
    chain = create_retrieval_chain(
        retriever, create_stuff_documents_chain(llm, PROMPT, document_prompt=template)
    )
    rag = rag_of(llm, retriever, "one_shot", document_prompt=template)
    with pytest.raises(ValueError, match="nothing") as expected:
        chain.invoke({"input": QUESTION})
    with pytest.raises(ValueError, match="nothing") as got:
        rag.invoke(QUESTION)

    assert str(expected.value) == str(got.value)
    rag.close()


def test_documents_are_the_callers_own() -> None:
    """What a caller does to the documents of a reply is not seen in the next one."""
    rag = rag_of(HashLLM(), vector_store(documents()).as_retriever(), memo=QueryCache())
    first = rag.invoke(QUESTION)
    before = plain_values(first["context"])
    for document in first["context"]:
        document.metadata["number"] = "spoiled"
        document.page_content = "spoiled"

    assert before == plain_values(rag.invoke(QUESTION)["context"])
    rag.close()


async def test_a_parser_makes_the_answer() -> None:
    """A list of the text; streamed, it comes whole; its own error surfaces and ends all runs."""
    llm, retriever = HashLLM(), HashRetriever(documents=documents())
    rag = rag_of(llm, retriever, output_parser=CommaSeparatedListOutputParser())
    text = by_hand(llm, retriever, "sentences").invoke(QUESTION)["answer"]
    expected = CommaSeparatedListOutputParser().parse(text)

    assert expected == rag.invoke(QUESTION)["answer"]
    assert expected == (await rag.ainvoke(QUESTION))["answer"]
    assert expected == summed(list(rag.stream(QUESTION)))["answer"]

    class Strict(BaseOutputParser[str]):
        def parse(self, text: str) -> str:
            raise ZeroDivisionError(text)

    log = Log()
    strict = rag_of(llm, retriever, output_parser=Strict())
    with pytest.raises(ZeroDivisionError):
        strict.invoke(QUESTION, {"callbacks": [log]})
    with pytest.raises(ZeroDivisionError):
        await strict.ainvoke(QUESTION, {"callbacks": [log]})
    with pytest.raises(ZeroDivisionError):
        list(strict.stream(QUESTION, {"callbacks": [log]}))
    assert [] == log.left_open()
    rag.close()
    strict.close()


async def test_the_answer_alone_adds_up_too() -> None:
    """`output="answer"`: texts that add up to the text."""
    rag = rag_of(HashLLM(), HashRetriever(documents=documents()), output="answer")
    expected = by_hand(HashLLM(), HashRetriever(documents=documents()), "sentences")
    answer = expected.invoke(QUESTION)["answer"]

    assert answer == rag.invoke(QUESTION)
    assert answer == "".join(rag.stream(QUESTION))
    assert answer == "".join([one async for one in rag.astream(QUESTION)])
    assert [answer] == await rag.abatch([QUESTION])
    rag.close()


class Structured(BaseModel):
    """What a tool is called with."""

    colour: str


def tool_caller() -> FakeMessagesListChatModel:
    call = {"name": "Structured", "args": {"colour": "red"}, "id": "1"}
    return FakeMessagesListChatModel(responses=[AIMessage(content="", tool_calls=[call])])


@pytest.mark.parametrize("place", ["the model's own", "behind it"])
async def test_a_parser_gets_what_the_model_gave(place: str) -> None:
    """Tool calls and objects are no text, and are not made into one."""
    parser = PydanticToolsParser(tools=[Structured], first_tool_only=True)
    own = place == "the model's own"
    llm = tool_caller() | parser if own else tool_caller()
    retriever = HashRetriever(documents=documents())
    rag = SpeculativeRAG(
        retriever=retriever,
        llm=llm,
        prompt=PROMPT,
        workload="one_shot",
        output_parser=None if own else parser,
    )

    assert Structured(colour="red") == rag.invoke(QUESTION)["answer"]
    assert Structured(colour="red") == (await rag.ainvoke(QUESTION))["answer"]
    if not own:  # streamed, this sequence gives nothing by itself either
        assert Structured(colour="red") == summed(list(rag.stream(QUESTION)))["answer"]
    rag.close()


async def test_a_parser_does_not_hold_up_the_event_loop() -> None:
    """Its asynchronous method is awaited."""

    class Awaited(BaseOutputParser[str]):
        def parse(self, text: str) -> str:
            raise AssertionError("not in ainvoke")

        async def aparse_result(self, result: Any, *, partial: bool = False) -> str:
            await asyncio.sleep(0)
            return "awaited"

    rag = rag_of(HashLLM(), HashRetriever(documents=documents()), "interval")
    rag = rag.model_copy(update={"output_parser": Awaited()})

    assert "awaited" == (await rag.ainvoke(QUESTION))["answer"]
    rag.close()


def test_documents_that_share_an_id_are_told_apart() -> None:
    """Each of them is in the reply: a document is what it says, not its id alone."""
    same = [Document(f"text {number}", id="same") for number in range(12)]
    hand = by_hand(HashLLM(), HashRetriever(documents=same), "interval")
    rag = rag_of(HashLLM(), HashRetriever(documents=same), "interval")

    assert values(hand.invoke(QUESTION)) == values(rag.invoke(QUESTION))
    rag.close()
