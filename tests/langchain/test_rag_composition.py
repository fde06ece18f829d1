"""The runnable goes where the host's own go: chains, bindings, alternatives, histories, copies."""

import copy
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.callbacks import dispatch_custom_event
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder, PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import (
    ConfigurableField,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_core.runnables.utils import AddableDict
from langchain_ralmspec.rag import SpeculativeRAG

from ralmspec_plugins import FixedStride, QueryCache, SharedPassageCache
from ralmspec_plugins.errors import ConfigError
from tests.langchain.rag_loops import by_hand
from tests.langchain.rag_parts import (
    QUESTIONS,
    HashChat,
    HashLLM,
    HashRetriever,
    HostError,
    Log,
    documents,
    plain_values,
    rag_of,
    vector_store,
)
from tests.langchain.test_rag_equality import values

QUESTION = QUESTIONS[0]


@pytest.fixture
def rag() -> Iterator[Any]:
    rag = rag_of(HashLLM(), HashRetriever(documents=documents()))
    yield rag
    rag.close()


@pytest.fixture
def expected() -> dict[str, Any]:
    return by_hand(HashLLM(), HashRetriever(documents=documents()), "sentences").invoke(QUESTION)


async def test_it_stands_anywhere_in_a_chain(rag: Any, expected: dict[str, Any]) -> None:
    """Between functions, in parallel, behind an assignment: invoked, in batches and streamed."""
    chain = (
        RunnableLambda(lambda text: {"input": text.strip()})
        | rag
        | RunnableLambda(lambda reply: reply["answer"])
    )
    asked, answer = f"  {QUESTION} ", expected["answer"]

    assert answer == chain.invoke(asked)
    assert answer == await chain.ainvoke(asked)
    assert [answer] * 2 == chain.batch([asked] * 2)
    assert [answer] * 2 == await chain.abatch([asked] * 2)
    assert answer == "".join(chain.stream(asked))
    assert answer == "".join([piece async for piece in chain.astream(asked)])
    beside = RunnableParallel(one=rag, two=rag, same=RunnablePassthrough())
    both = beside.invoke(QUESTION)
    assert [values(expected), values(expected), QUESTION] == [
        values(both["one"]),
        values(both["two"]),
        both["same"],
    ]
    assigned = RunnablePassthrough.assign(reply=rag)
    assert values(expected) == values((await assigned.ainvoke({"input": QUESTION}))["reply"])
    picked = rag.pick("answer")
    assert answer == picked.invoke(QUESTION)
    assert answer == "".join(picked.stream(QUESTION))
    assert [answer] == (rag | RunnableLambda(lambda reply: reply["answer"])).batch([QUESTION])
    assert values(expected) == values(rag.map().invoke([QUESTION])[0])


def test_chains_in_front_pass_their_pieces_on(rag: Any, expected: dict[str, Any]) -> None:
    """A question that comes in pieces is put together, texts and dicts alike."""
    halves = [QUESTION[:4], QUESTION[4:]]
    whole = [piece.get("answer", "") for piece in rag.transform(iter(halves))]
    dicts = [AddableDict(input=QUESTION), AddableDict(more=1)]
    pieces = list(rag.transform(iter(dicts)))

    assert expected["answer"] == "".join(whole)
    assert expected["answer"] == "".join(piece.get("answer", "") for piece in pieces)
    assert {"input", "more", "context", "answer", "ralmspec"} == {k for p in pieces for k in p}


def test_config_names_tags_and_metadata_reach_all_runs(rag: Any) -> None:
    """`with_config`: the run's own name, and tags and metadata inherited by those inside."""
    log, listened = Log(), []
    named = rag.with_config(run_name="mine", tags=["t"], metadata={"m": 1}, callbacks=[log])
    named.invoke(QUESTION)
    starts = [kw for name, _, kw in log.events if name.endswith("_start")]

    assert "mine" == starts[0]["name"]
    assert len(starts) > 2
    assert all("t" in kw["tags"] and kw["metadata"]["m"] == 1 for kw in starts)
    heard = rag.with_listeners(
        on_start=lambda run: listened.append(run.name),
        on_end=lambda run: listened.append(sorted(run.outputs)),
    )
    heard.invoke(QUESTION)
    assert ["SpeculativeRAG", ["answer", "context", "input", "ralmspec"]] == listened
    assert "SpeculativeRAG" == rag.get_name()
    assert "other" == rag.model_copy(update={"name": "other"}).get_name()


async def test_retries_and_fallbacks_see_the_hosts_errors(expected: dict[str, Any]) -> None:
    """A store that is down twice: retried until it is up, or answered by another chain."""
    downs = [0, 0]

    def down_twice(query: str) -> None:
        downs[0] += 1
        if downs[0] <= 4:  # a failed speculative search is repeated once
            raise HostError("down")

    retriever = HashRetriever(documents=documents(), hook=down_twice)
    flaky = rag_of(HashLLM(), retriever, side_by_side=1, speculate=False)
    retried = flaky.with_retry(
        retry_if_exception_type=(HostError,), stop_after_attempt=6, wait_exponential_jitter=False
    )
    assert values(expected) == values(retried.invoke(QUESTION))

    def down(query: str) -> None:
        raise HostError("down")

    good = rag_of(HashLLM(), HashRetriever(documents=documents()))
    broken = rag_of(HashLLM(), HashRetriever(documents=documents(), hook=down))
    backed = broken.with_fallbacks([good], exceptions_to_handle=(HostError,))
    assert values(expected) == values(backed.invoke(QUESTION))
    log = Log()
    with pytest.raises(HostError):
        broken.invoke(QUESTION, {"callbacks": [log]})
    assert [] == log.left_open()
    for each in (flaky, good, broken):
        each.close()


def test_settings_are_bound_to_calls() -> None:
    """`bind(stop=..., max_tokens=...)`: as when they are fields."""
    llm, retriever = HashLLM(), HashRetriever(documents=documents())
    rag = rag_of(llm, retriever, "interval")
    whole = rag.invoke(QUESTION)["answer"]
    stop = " " + whole.split()[-2]
    cut = by_hand(llm, retriever, "interval", stop=(stop,)).invoke(QUESTION)

    assert values(cut) == values(rag.bind(stop=[stop]).invoke(QUESTION))
    assert values(cut) == values(rag.bind(stop=stop).batch([QUESTION])[0])
    assert 8 == len(rag.bind(max_tokens=8).invoke(QUESTION)["answer"].split())
    short = rag_of(llm, retriever, "interval", max_tokens=8, stop=(stop,))
    assert values(short.invoke(QUESTION)) == values(
        rag.bind(max_tokens=8, stop=[stop]).invoke(QUESTION)
    )
    with pytest.raises(ConfigError, match="max_tokens"):
        rag.invoke(QUESTION, max_tokens=0)
    rag.close()
    short.close()


async def test_speculation_is_switched_per_call(expected: dict[str, Any]) -> None:
    """`configurable_fields`: off for this call, another schedule for that; one set of threads."""
    liar = HashRetriever(documents=documents(), salt="lie")
    rag = rag_of(
        HashLLM(),
        HashRetriever(documents=documents()),
        replica=liar,
        schedule=FixedStride(stride=2),
    )
    either = rag.configurable_fields(
        speculate=ConfigurableField(id="ahead"), max_tokens=ConfigurableField(id="most")
    )
    on, off = (
        either.invoke(QUESTION, {"configurable": {"ahead": ahead}}) for ahead in (True, False)
    )

    assert values(expected) == values(on) == values(off)
    assert on["ralmspec"]["stats"]["guesses"] > 0
    assert 0 == off["ralmspec"]["stats"]["guesses"]
    assert 0 == off["ralmspec"]["stats"]["wasted_segments"]
    off = await either.with_config(configurable={"ahead": False}).ainvoke(QUESTION)
    assert 0 == off["ralmspec"]["stats"]["guesses"]
    assert {"ahead", "most"} <= {spec.id for spec in either.config_specs}
    assert ["ahead", "most"] == sorted(
        either.config_schema().model_json_schema()["$defs"]["Configurable"]["properties"]
    )
    rag.close()


async def test_the_parts_are_set_up_per_call() -> None:
    """The retriever's `search_kwargs` and the model itself, by fields of theirs: as by hand."""
    store = vector_store(documents())
    retriever = store.as_retriever().configurable_fields(
        search_kwargs=ConfigurableField(id="search_kwargs")
    )
    llm = HashLLM().configurable_alternatives(
        ConfigurableField(id="model"), default_key="plain", other=HashLLM(max_tokens=5)
    )
    rag = rag_of(llm, retriever, "one_shot")
    hand = by_hand(llm, retriever, "one_shot")
    for configurable in (
        {},
        {"search_kwargs": {"k": 1}},
        {"search_kwargs": {"k": 3, "filter": lambda document: document.metadata["even"]}},
        {"model": "other"},
        {"model": "other", "search_kwargs": {"k": 2}},
    ):
        config: Any = {"configurable": configurable}
        expected = hand.invoke(QUESTION, config)
        assert values(expected) == values(rag.invoke(QUESTION, config))
        assert values(expected) == values(await rag.ainvoke(QUESTION, config))
        assert values(expected) == values(await rag.with_config(config).ainvoke(QUESTION))
    assert {"search_kwargs", "model"} <= {spec.id for spec in rag.config_specs}
    rag.close()


def test_alternatives_choose_whole_runnables(rag: Any) -> None:
    """`configurable_alternatives`: ours or another chain, by the call's config."""
    other = RunnableLambda(lambda _: {"input": "", "context": [], "answer": "other"})
    either = rag.configurable_alternatives(ConfigurableField(id="which"), other=other)

    assert "other" == either.with_config(configurable={"which": "other"}).invoke(QUESTION)["answer"]
    assert rag.invoke(QUESTION)["answer"] == either.invoke(QUESTION)["answer"]


def test_histories_wrap_it() -> None:
    """`RunnableWithMessageHistory`: earlier turns stand in the prompt of the next."""
    prompt = ChatPromptTemplate.from_messages(
        [("system", "Know: {context}"), MessagesPlaceholder("history"), ("human", "{input}")]
    )
    llm = HashChat()
    rag = SpeculativeRAG(
        retriever=HashRetriever(documents=documents()), llm=llm, prompt=prompt, workload="one_shot"
    )
    with pytest.warns(DeprecationWarning, match="short-term"):
        history = InMemoryChatMessageHistory()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what LangGraph is to take the place of
        chat = RunnableWithMessageHistory(
            rag,
            lambda _: history,
            input_messages_key="input",
            history_messages_key="history",
            output_messages_key="answer",
        )
    config: Any = {"configurable": {"session_id": "s"}}
    first = chat.invoke({"input": "One?"}, config)["answer"]
    chat.invoke({"input": "Two?"}, config)

    assert first in llm.prompts[-1]
    assert ["One?", first, "Two?"] == [message.content for message in history.messages[:3]]
    assert 4 == len(history.messages)
    rag.close()


def test_schemas_and_graph_say_what_goes_in_and_out(rag: Any) -> None:
    """Schemas that can be shown as JSON; a graph with one node of its name."""
    into, out = rag.get_input_jsonschema(), rag.get_output_jsonschema()
    graph = rag.get_graph()

    assert {"string", "object"} == {one["type"] for one in into["anyOf"]}
    assert {"input", "context", "answer", "ralmspec"} == set(
        out["$defs"]["ReportedReply"]["properties"]
    )
    assert rag.get_input_schema().model_validate(QUESTION).root == QUESTION
    assert ["SpeculativeRAG"] == [
        node.name for node in graph.nodes.values() if node.name == "SpeculativeRAG"
    ]
    assert "SpeculativeRAG" in graph.draw_mermaid()
    assert "SpeculativeRAG" in repr(rag | RunnableLambda(len))


def test_it_is_a_tool(rag: Any, expected: dict[str, Any]) -> None:
    """`as_tool` with the question's schema."""
    from pydantic import BaseModel

    class Arguments(BaseModel):
        input: str

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*beta")  # said once in a process
        tool = rag.as_tool(args_schema=Arguments, name="ask", description="Answers.")

    assert expected["answer"] == tool.invoke({"input": QUESTION})["answer"]


def test_copies_answer_by_their_own_fields(expected: dict[str, Any]) -> None:
    """`model_copy(update=...)` and `deepcopy` have parts of their own; fields are frozen."""
    rag = rag_of(HashLLM(), HashRetriever(documents=documents()), pool=SharedPassageCache())
    other = HashRetriever(documents=documents(3, mark="other"))
    for copied in (rag.model_copy(), copy.copy(rag), copy.deepcopy(rag), rag.model_copy(deep=True)):
        assert values(expected) == values(copied.invoke(QUESTION))
        copied.close()
    elsewhere = rag.model_copy(update={"retriever": other})
    ahead = rag_of(HashLLM(), rag.retriever, replica=rag.retriever, schedule=FixedStride(stride=2))
    plainly = ahead.model_copy(update={"speculate": False})

    assert ahead.invoke(QUESTION)["ralmspec"]["stats"]["guesses"] > 0
    assert 0 == plainly.invoke(QUESTION)["ralmspec"]["stats"]["guesses"]
    ahead.close()
    assert "other" in plain_values(elsewhere.invoke(QUESTION)["context"])[0][0]
    assert values(expected) == values(rag.invoke(QUESTION))
    with pytest.raises(ValueError, match="frozen"):
        rag.speculate = False
    with pytest.raises(ValueError, match="nonsense"):
        rag_of(HashLLM(), other, nonsense=1)
    rag.close()


def test_it_is_pickled_where_its_parts_are(expected: dict[str, Any]) -> None:
    """As one object with its parts; the copy has threads of its own."""
    rag = rag_of(HashLLM(), HashRetriever(documents=documents()))
    rag.invoke(QUESTION)
    again = pickle.loads(pickle.dumps(rag))

    assert values(expected) == values(again.invoke(QUESTION))
    rag.close()
    again.close()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"workload": "nonsense"}, "one_shot"),
        ({"batching": "sometimes"}, "exact"),
        ({"prompt": PromptTemplate.from_template("no documents: {input}")}, "context"),
        ({"llm": HashChat(), "workload": "sentences"}, "continuation"),
        ({"llm": RunnableLambda(str), "workload": "interval"}, "one_shot"),
        ({"side_by_side": 0}, "side_by_side"),
        ({"prefetch": 0}, "prefetch"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_when_it_is_made(settings: dict[str, Any], says: str) -> None:
    """At construction, by a message that names the way out."""
    fields = {"llm": HashLLM(), "retriever": HashRetriever(documents=documents()), **settings}
    with pytest.raises(ValueError, match=says):
        SpeculativeRAG(**fields)


def test_copies_of_one_runnable_are_counted_together() -> None:
    """What a copy for one call asks of the store is in the statistics of the runnable."""
    rag = rag_of(HashLLM(), HashRetriever(documents=documents()), "interval", pool=None)
    either = rag.configurable_fields(speculate=ConfigurableField(id="speculate"))
    reply = either.invoke(QUESTION, {"configurable": {"speculate": False}})

    assert rag.stats.round_trips == reply["ralmspec"]["stats"]["searches"] > 0
    rag.close()


class Telltale(BaseRetriever):
    """Finds by what stands in its config, and tells of it."""

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        user = (run_manager.metadata or {}).get("user")
        dispatch_custom_event("telltale", {"user": user})
        return [Document(f"{query} of {user}, {sorted(run_manager.tags)}")]


async def test_a_black_box_reads_its_callers_metadata_and_tags() -> None:
    """What it finds by them is each caller's own; what it tells of inside is told to nobody."""
    hand = by_hand(HashLLM(), Telltale(), "interval")
    rag = rag_of(HashLLM(), Telltale(), "interval", memo=QueryCache(), pool=SharedPassageCache())
    for user in ("ada", "bob", "ada"):
        logs = Log(), Log(), Log()
        configs: list[Any] = [
            {"metadata": {"user": user}, "tags": [f"of {user}"], "callbacks": [log]} for log in logs
        ]
        expected = hand.invoke(QUESTION, configs[0])

        assert values(expected) == values(rag.invoke(QUESTION, configs[1]))
        assert values(expected) == values(await rag.ainvoke(QUESTION, configs[2]))
        by_itself = [data["user"] for name, data in logs[0].customs() if name == "telltale"]
        assert {user} == set(by_itself)
        for log in logs[1:]:
            assert "on_retriever_end" in log.names
            assert "telltale" not in [name for name, _ in log.customs()]
    rag.close()


@pytest.mark.parametrize(
    ("k", "prefetch", "brought"), [(1, None, 20), (20, None, 80), (20, 30, 30)]
)
def test_a_search_brings_no_more_than_the_pool_can_use(
    k: int, prefetch: int | None, brought: int
) -> None:
    """20 k documents, up to 80: each costs a copy. What is asked for is what comes."""
    pool = SharedPassageCache()
    store = vector_store(documents(200)).as_retriever(search_kwargs={"k": k})
    rag = rag_of(HashLLM(), store, "one_shot", pool=pool, prefetch=prefetch)
    rag.invoke(QUESTION)

    assert [brought] == [part.size for part in pool._parts.values()]
    rag.close()
