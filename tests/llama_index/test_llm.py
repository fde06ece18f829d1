"""A host's model, wrapped, writes what a loop written by hand with it writes."""

import asyncio
from typing import Any

import pytest
from llama_index.core.llms import LLM, MockLLM
from llama_index.core.postprocessor import LongContextReorder, SimilarityPostprocessor
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index_ralmspec.host_calls import HostContext
from llama_index_ralmspec.llm import HostLM
from llama_index_ralmspec.prompts import Prompting

from ralmspec_plugins import AsyncEngine
from ralmspec_plugins.adapters.text_state import Usage
from ralmspec_plugins.engine.threads import Engine
from ralmspec_plugins.errors import Cancelled, ConfigError
from ralmspec_plugins.plain import plain
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Hit, Hits, Request
from ralmspec_plugins.workloads import Interval, OneShot
from ralmspec_plugins.workloads.sentences import Sentences
from tests.llama_index.by_hand import (
    PROMPT,
    QUESTIONS,
    called,
    made_passages,
    made_retriever,
    searching,
    sentences_by_hand,
    tokens_by_hand,
)
from tests.llama_index.fake_llms import AsyncWordLLM, HostDownError, WordChat, WordLLM, models
from tests.sentence_stops import check_same_sentences
from tests.words import words_after

PARTS = Prompting(text_qa_template=PROMPT)
RETRIEVER = made_retriever()
SOME = QUESTIONS[::3]  # every verb, and every thing, of the questions
HITS: Hits = tuple(Hit(passage, 0.5) for passage in made_passages()[:2])


def wrapped(llm: LLM, **settings: Any) -> Any:
    if isinstance(llm, WordChat):
        settings.setdefault("continuation", "assistant")
    return HostLM(llm, PARTS, **settings)


def asked(prompt: str, *, asynchronous: bool = False, **settings: Any) -> Request:
    context = HostContext(QueryBundle(prompt), asynchronous=asynchronous)
    return Request(prompt=prompt, context=context, **settings)


@pytest.mark.parametrize("name", models())
@pytest.mark.parametrize("stop", [(), ("storm",), ("the sea", ". The")], ids=str)
def test_tokens_are_those_of_the_loop_by_hand(name: str, stop: tuple[str, ...]) -> None:
    """Four tokens a call, stop strings within a segment and across two: the same texts."""
    expected = [
        tokens_by_hand(models()[name], searching(RETRIEVER), question, stop=stop)
        for question in SOME
    ]
    workload = Interval(wrapped(models()[name]))
    requests = [asked(question, max_tokens=24, stop=stop) for question in SOME]

    assert expected == [plain(workload, RETRIEVER, request).text for request in requests]
    with Engine(workload, RETRIEVER) as engine:
        assert expected == [engine.run(request).text for request in requests]
        assert expected == ["".join(engine.stream(request)) for request in requests]


@pytest.mark.parametrize("name", models())
def test_sentences_are_those_of_the_loop_by_hand(name: str) -> None:
    """A sentence a call: the same texts, plainly, with speculation, and streamed."""
    expected = [
        sentences_by_hand(models()[name], searching(RETRIEVER), question) for question in SOME
    ]
    workload = Sentences(wrapped(models()[name]), tokens=12, max_sentences=3)
    requests = [asked(question, max_tokens=999) for question in SOME]

    assert expected == [plain(workload, RETRIEVER, request).text for request in requests]
    with Engine(workload, RETRIEVER) as engine:
        assert expected == [engine.run(request).text for request in requests]
        assert expected == ["".join(engine.stream(request)) for request in requests]


@pytest.mark.parametrize("name", models())
def test_awaited_the_texts_are_the_same(name: str) -> None:
    """Where the model awaits, and where its calls sit in threads: run, and streamed."""
    expected = [
        tokens_by_hand(models()[name], searching(RETRIEVER), question) for question in QUESTIONS[:8]
    ]
    workload = Interval(wrapped(models()[name]))
    requests = [asked(question, asynchronous=True, max_tokens=24) for question in QUESTIONS[:8]]

    async def run() -> tuple[list[str], list[str]]:
        async with AsyncEngine(workload, RETRIEVER) as engine:
            answers = await asyncio.gather(*(engine.run(request) for request in requests))
            streams = ["".join([piece async for piece in engine.stream(one)]) for one in requests]
        return [answer.text for answer in answers], streams

    assert (expected, expected) == asyncio.run(run())


@pytest.mark.parametrize("name", models())
def test_a_whole_answer_is_what_the_host_predicts(name: str) -> None:
    """No bound and no stop string: `predict` gives the same, and makes the same call."""
    llm, question = models()[name], QUESTIONS[3]
    nodes = searching(RETRIEVER)(question)
    context = PARTS.context(nodes)
    expected = llm.predict(PROMPT, context_str=context, query_str=question)
    answer = plain(OneShot(HostLM(llm, PARTS, whole=True)), RETRIEVER, asked(question))

    assert expected == answer.text
    assert isinstance(llm, WordLLM)
    assert llm.calls[0] == llm.calls[1]


def test_postprocessors_come_before_the_prompt() -> None:
    """What they leave out is not shown, and what they turn round is; by real scores."""
    processors = (SimilarityPostprocessor(similarity_cutoff=1.0), LongContextReorder())
    search = searching(RETRIEVER)
    expected = [
        tokens_by_hand(WordLLM(), search, question, processors=processors) for question in QUESTIONS
    ]
    unprocessed = [tokens_by_hand(WordLLM(), search, question) for question in QUESTIONS]
    lm = wrapped(WordLLM(), postprocessors=processors)
    requests = [asked(question, max_tokens=24) for question in QUESTIONS]

    assert expected != unprocessed
    assert lm.reads_scores
    assert expected == [plain(Interval(lm), RETRIEVER, request).text for request in requests]
    with Engine(Interval(lm), RETRIEVER) as engine:
        assert expected == [engine.run(request).text for request in requests]


def test_a_function_that_shows_scores_sees_the_searchs_own() -> None:
    """`format_nodes` is given nodes with scores, and a guess with other scores is no guess."""

    def shown(nodes: list[NodeWithScore]) -> str:
        return "".join(f"{one.score!r} {one.node.node_id}\n" for one in nodes)

    llm = WordLLM()
    lm = HostLM(llm, Prompting(text_qa_template=PROMPT, format_nodes=shown))
    near = tuple(Hit(hit.passage, 0.25) for hit in HITS)
    plain(Interval(lm), RETRIEVER, asked(QUESTIONS[0], max_tokens=4))
    found = RETRIEVER.search([RETRIEVER.encode(QUESTIONS[0])])[0]

    assert (
        shown([NodeWithScore(node=hit.passage.source, score=hit.score) for hit in found])
        in (  # type: ignore[attr-defined]
            llm.calls[0]["prompt"]
        )
    )
    assert lm.reads_scores
    assert not lm.same_passages(HITS, near)
    assert lm.write_key(lm.begin(asked("a")), HITS, 4) != lm.write_key(
        lm.begin(asked("a")), near, 4
    )


def test_scores_do_not_count_where_nobody_looks() -> None:
    """Without anything that could read them, passages alone are compared and remembered."""
    lm = wrapped(WordLLM())
    near = tuple(Hit(hit.passage, 0.25) for hit in HITS)
    draft = lm.begin(asked("a"))

    assert not lm.reads_scores
    assert lm.same_passages(HITS, near)
    assert not lm.same_passages(HITS, HITS[::-1])
    assert lm.write_key(draft, HITS, 4) == lm.write_key(draft, near, 4)
    assert lm.write_key(draft, HITS, 4) != lm.write_key(draft, HITS[:1], 4)


def test_the_record_holds_the_nodes() -> None:
    """Fresh nodes in the hits' order, and what was left of them."""
    cutoff = SimilarityPostprocessor(similarity_cutoff=0.4)
    lm = wrapped(WordLLM(), postprocessors=[cutoff])
    hits = (Hit(HITS[0].passage, 0.3), Hit(HITS[1].passage, 0.9))
    first, second = (
        lm.write(lm.begin(asked("Who?")), hits, 4, Progress()).recording for _ in range(2)
    )

    assert [("n0", 0.3), ("n1", 0.9)] == [(one.node.node_id, one.score) for one in first.nodes]
    assert [first.nodes[1]] == first.used
    assert first.used[0] is first.nodes[1]
    assert not {id(one.node) for one in first.nodes} & {id(one.node) for one in second.nodes}


def test_an_empty_output_ends_the_text() -> None:
    """A model with nothing more to say, and which does not say so, is not asked forever."""
    lm = HostLM(MockLLM(max_tokens=1), PARTS, bound=lambda _: {})
    answer = plain(Interval(lm), RETRIEVER, asked("Who?", max_tokens=9))
    assert answer.text == "text" * 3

    silent = WordLLM(says_why=False, max_tokens=0)
    lm = HostLM(silent, PARTS, bound=lambda _: {})
    assert plain(Interval(lm), RETRIEVER, asked("Who?", max_tokens=99)).text == ""
    assert len(silent.calls) == 1


def test_sentences_through_a_stop_string() -> None:
    """A model is told where to stop, and of nothing else, or it could not be said why it did."""
    llm = WordLLM()
    lm = HostLM(llm, PARTS, sentence_stop="!")
    draft = lm.write_sentence(lm.begin(asked("Who?", stop=("x",))), HITS, 64, Progress())

    assert llm.calls[0]["stop"] == ["!"]
    assert "max_tokens" not in llm.calls[0]
    assert draft.text
    with pytest.raises(ConfigError, match="sentences"):
        lm.write(lm.begin(asked("Who?")), HITS, 4, Progress())


class DeafLLM(WordLLM):
    """A model that takes stop strings and ignores them."""

    def written(self, prompt: str, kwargs: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
        return super().written(prompt, {**kwargs, "stop": None})


@pytest.mark.parametrize("mark", [".", ". The"])
def test_sentences_of_a_model_that_ignores_its_stop_string(mark: str) -> None:
    """They are those of a model that stops there: plainly, with speculation, and streamed."""
    requests = [asked(question, max_tokens=999) for question in SOME]
    obeying, ignoring = (HostLM(llm, PARTS, sentence_stop=mark) for llm in (WordLLM(), DeafLLM()))

    check_same_sentences(obeying, ignoring, RETRIEVER, requests, mark)


def test_usage_adds_up_over_calls() -> None:
    """The draft holds what all its calls have used, and no others."""
    llm = WordChat()
    lm = wrapped(llm)
    draft = lm.begin(asked("What?", max_tokens=8))
    for _ in range(2):
        draft = lm.write(draft, HITS, 4, Progress())
    written = sum(len(words_after(call["prompt"], 4, None)[0]) for call in llm.calls)

    assert len(llm.calls) == 2
    assert Usage(6, written, 6 + written) == draft.usage


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_hosts_error_is_raised_as_it_is(asynchronous: bool) -> None:
    """Neither wrapped nor swallowed, and the nodes that it was given are recorded."""
    lm = wrapped(WordLLM(fails_on="Who?"))
    request = asked("Who?", asynchronous=asynchronous)

    with pytest.raises(HostDownError, match="is down"):
        lm.write(lm.begin(request), HITS, 4, Progress())
    [record] = request.context.records
    assert len(record.nodes) == 2


def test_a_prompt_without_nodes_is_refused() -> None:
    """It has no variable for them, whatever it is mapped to."""
    with pytest.raises(ConfigError, match="context_str"):
        Prompting(text_qa_template=PromptTemplate("{query_str}"))
    mapped = PromptTemplate("{facts} {query_str}", template_var_mappings={"context_str": "facts"})
    shown = Prompting(text_qa_template=mapped).text(WordLLM(), "Who?", "Me.")

    assert shown == "Me. Who?"


def test_a_finished_draft_is_not_written_on() -> None:
    """No call is made for it."""
    llm = WordLLM()
    lm = HostLM(llm, PARTS, whole=True)
    draft = lm.write(lm.begin(asked("Who?")), HITS, 4, Progress())

    assert draft is lm.write(draft, HITS, 4, Progress())
    assert len(llm.calls) == 1


def test_a_cancelled_call_is_not_begun() -> None:
    """And a cancelled stream is closed; the host hears of it."""
    llm = WordLLM()
    lm = wrapped(llm)
    cancelled = Progress()
    cancelled.cancel()
    with pytest.raises(Cancelled):
        lm.write(lm.begin(asked("Who?")), HITS, 4, cancelled)
    assert llm.calls == []

    shown: list[str] = []
    progress = Progress()

    def show(draft: Any) -> None:
        shown.append(draft.text)
        progress.cancel()

    progress.connect(show)
    with pytest.raises(Cancelled):
        lm.write(lm.begin(asked("Who?")), HITS, 24, progress)
    assert len(shown) == 1
    assert len(llm.left_early) == 1


@pytest.mark.parametrize("make", [AsyncWordLLM, WordChat])
def test_a_cancelled_awaited_stream_is_closed(make: Any) -> None:
    """By its progress, and by its task."""
    llm = make()
    lm = wrapped(llm)
    progress = Progress()
    progress.connect(lambda _: progress.cancel())
    with pytest.raises(Cancelled):
        asyncio.run(lm.awrite(lm.begin(asked("Who?")), HITS, 24, progress))
    assert len(llm.left_early) == 1

    async def given_up() -> None:
        begun = asyncio.Event()
        progress = Progress(lambda _: begun.set())
        task = asyncio.create_task(lm.awrite(lm.begin(asked("Who?")), HITS, 24, progress))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(given_up())
    assert len(llm.left_early) == 2


def test_only_models_that_await_are_awaited() -> None:
    """Others get a thread of the engine's, where they hold up nobody."""
    assert hasattr(wrapped(AsyncWordLLM()), "awrite")
    assert hasattr(wrapped(WordChat()), "awrite_sentence")
    assert not hasattr(wrapped(WordLLM()), "awrite")
    assert not hasattr(wrapped(MockLLM(max_tokens=3)), "awrite")


def test_the_oracle_depends_on_the_nodes() -> None:
    """The loops above prove something only if other nodes make other texts."""
    nodes = searching(RETRIEVER)(QUESTIONS[0])

    assert called(WordLLM(), nodes, "Who?", "") != called(WordLLM(), nodes[:1], "Who?", "")
