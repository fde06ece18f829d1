"""A host's model, wrapped, writes what a loop written by hand with it writes."""

from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.documents import Document
from langchain_core.language_models import FakeListLLM
from langchain_core.messages import AIMessage
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import ConfigurableField, Runnable, RunnableLambda
from langchain_ralmspec.llm import HostLM
from langchain_ralmspec.prompts import Prompting

from ralmspec_plugins.adapters.documents import host_passage
from ralmspec_plugins.adapters.text_state import Usage
from ralmspec_plugins.engine.threads import Engine
from ralmspec_plugins.errors import Cancelled, ConfigError
from ralmspec_plugins.plain import plain
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing import WordRetriever
from ralmspec_plugins.types import Passage, Request
from ralmspec_plugins.workloads import Interval, OneShot
from ralmspec_plugins.workloads.sentences import Sentences
from tests.langchain.by_hand import (
    PROMPT,
    QUESTIONS,
    TEXTS,
    prompted,
    searching,
    sentences_by_hand,
    tokens_by_hand,
)
from tests.langchain.fake_models import HostDownError, WordChat, WordLLM
from tests.sentence_stops import check_same_sentences

PARTS = Prompting(prompt=PROMPT)
RETRIEVER = WordRetriever(TEXTS, k=2)
SOME = QUESTIONS[::3]  # every verb, and every thing, of the questions
PASSAGES = RETRIEVER.passages[:2]


def models() -> dict[str, Any]:
    return {
        "text": WordLLM(),
        "silent about its end": WordLLM(says_why=False),
        "chat": WordChat(),
    }


def wrapped(llm: Runnable[Any, Any], **settings: Any) -> HostLM:
    if isinstance(llm, WordChat):
        settings.setdefault("continuation", "assistant")
    return HostLM(llm, PARTS, **settings)


@pytest.mark.parametrize("name", models())
@pytest.mark.parametrize("stop", [(), ("storm",), ("the sea", ". The")], ids=str)
def test_tokens_are_those_of_the_loop_by_hand(name: str, stop: tuple[str, ...]) -> None:
    """Four tokens a call, stop strings within a segment and across two: the same texts."""
    expected = [
        tokens_by_hand(models()[name], searching(RETRIEVER), question, stop=stop)
        for question in SOME
    ]
    workload = Interval(wrapped(models()[name]))
    requests = [Request(prompt=question, max_tokens=24, stop=stop) for question in SOME]

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
    requests = [Request(prompt=question, max_tokens=999) for question in SOME]

    assert expected == [plain(workload, RETRIEVER, request).text for request in requests]
    with Engine(workload, RETRIEVER) as engine:
        assert expected == [engine.run(request).text for request in requests]
        assert expected == ["".join(engine.stream(request)) for request in requests]


def test_one_shot_is_the_hosts_own_call() -> None:
    """No bound, no stop string, no change: what the model says to the prompt, in one call."""
    for llm in (WordLLM(), WordChat()):
        workload = OneShot(HostLM(llm, PARTS, whole=True))
        answer = plain(workload, RETRIEVER, Request(prompt=QUESTIONS[0], max_tokens=1))
        prompt = prompted(searching(RETRIEVER)(QUESTIONS[0]), QUESTIONS[0])
        output = llm.invoke(prompt)

        assert output == answer.state.draft.message or isinstance(output, AIMessage)
        assert (output if isinstance(output, str) else output.text) == answer.text
        assert llm.calls[0].keys() - {"messages"} <= {"prompt", "stop"}
        assert llm.calls[0] == llm.calls[1]


def test_any_runnable_can_answer_in_one_shot() -> None:
    """A chain, a retry, a function: called as it is; its output is kept beside its text."""
    for llm, message in (
        (RunnableLambda(lambda value: value.to_string()[-7:]), "Answer:"),
        (RunnableLambda(lambda _: AIMessage("yes")), AIMessage("yes")),
        (RunnableLambda(lambda _: {"answer": 1}), {"answer": 1}),
        (FakeListLLM(responses=["listed"]).with_retry(), "listed"),
        (FakeListLLM(responses=["listed"]).with_fallbacks([WordLLM()]), "listed"),
    ):
        lm = HostLM(llm, PARTS, whole=True)
        draft = lm.write(lm.begin(Request(prompt="Who?")), PASSAGES, 1, Progress())

        assert message == draft.message
        assert draft.finished
        assert draft.text == (message.content if isinstance(message, AIMessage) else str(message))


def test_wrappers_are_seen_through_and_kept() -> None:
    """Bound arguments, configs and configurable fields stay in force; ours come on top."""
    llm = WordLLM()
    bound = llm.bind(stop=["storm"], seed=7).with_config(tags=["a"]).bind(max_tokens=99)
    lm = HostLM(bound, PARTS)
    lm.write(lm.begin(Request(prompt="Who?")), PASSAGES, 4, Progress())
    call = llm.calls[0]

    assert {"max_tokens": 4, "seed": 7, "stop": ["storm"]} == {
        name: call[name] for name in ("max_tokens", "seed", "stop")
    }


def test_a_configurable_model_is_looked_at_in_each_call() -> None:
    """What the config of a call chooses is what is bounded, or refused."""
    llm = WordLLM().configurable_alternatives(
        ConfigurableField(id="model"), mute=FakeListLLM(responses=["no"])
    )
    lm = HostLM(llm, PARTS)
    assert lm.write(lm.begin(Request(prompt="Who?")), PASSAGES, 4, Progress()).spent == 4

    mute = HostLM(llm.with_config(configurable={"model": "mute"}), PARTS, whole=True)
    assert mute.write(mute.begin(Request(prompt="Who?")), PASSAGES, 4, Progress()).text == "no"
    with pytest.raises(ConfigError, match="FakeListLLM"):
        HostLM(llm.with_config(configurable={"model": "mute"}), PARTS)


def test_an_empty_output_ends_the_text() -> None:
    """A model with nothing more to say, and which does not say so, is not asked forever."""
    lm = HostLM(FakeListLLM(responses=["some ", "", "more"]), PARTS, bound=lambda _: {})
    answer = plain(Interval(lm), RETRIEVER, Request(prompt="Who?", max_tokens=99))

    assert answer.text == "some "
    assert answer.state.calls == 2


def test_sentences_through_a_stop_string() -> None:
    """A model without a bound is told where to stop; the mark that it cut off is put back."""
    responses = ["It rained", " It poured", "", "never"]
    lm = HostLM(FakeListLLM(responses=responses), PARTS, sentence_stop=".")
    answer = plain(Sentences(lm), RETRIEVER, Request(prompt="Who?", max_tokens=99))

    assert answer.text == "It rained. It poured."
    assert answer.state.draft.finished
    llm = WordLLM()
    lm = HostLM(llm, PARTS, sentence_stop="!")
    lm.write_sentence(lm.begin(Request(prompt="Who?", stop=("x",))), PASSAGES, 64, Progress())
    assert llm.calls[0]["stop"] == ["!"]  # and nothing else, or it could not be said why it ended


class DeafLLM(WordLLM):
    """A model that takes stop strings and ignores them."""

    def _words(self, prompt: str, stop: Any, kwargs: Any) -> Any:
        return super()._words(prompt, None, kwargs)


@pytest.mark.parametrize("mark", [".", ". The"])
def test_sentences_of_a_model_that_ignores_its_stop_string(mark: str) -> None:
    """They are those of a model that stops there: plainly, with speculation, and streamed."""
    requests = [Request(prompt=question, max_tokens=999) for question in SOME]
    obeying, ignoring = (HostLM(llm, PARTS, sentence_stop=mark) for llm in (WordLLM(), DeafLLM()))

    check_same_sentences(obeying, ignoring, RETRIEVER, requests, mark)


def test_tokens_are_not_counted_with_a_stop_string() -> None:
    """A workload that counts tokens cannot be served by stopping at marks."""
    lm = HostLM(FakeListLLM(responses=["a"]), PARTS, sentence_stop=".")

    with pytest.raises(ConfigError, match="sentences"):
        lm.write(lm.begin(Request(prompt="Who?")), PASSAGES, 4, Progress())


@pytest.mark.parametrize("workload", ["tokens", "sentences"])
def test_the_hosts_cache_changes_no_answer(workload: str) -> None:
    """A text that comes from the host's cache ends where it ended when it was written."""
    texts = []
    for cache in (False, InMemoryCache()):
        lm = wrapped(WordLLM(cache=cache))
        loop: Any = Interval(lm) if workload == "tokens" else Sentences(lm)
        for _ in range(2):
            requests = [Request(prompt=question, max_tokens=40) for question in QUESTIONS]
            texts.append([plain(loop, RETRIEVER, request).text for request in requests])

    assert [texts[0]] * 3 == texts[1:]


def test_usage_adds_up_over_calls() -> None:
    """The draft holds what all its calls have used, and no others."""
    llm = WordChat()
    lm = wrapped(llm)
    draft = lm.begin(Request(prompt="What?", max_tokens=8))
    for _ in range(2):
        draft = lm.write(draft, PASSAGES, 4, Progress())

    assert Usage(6, 8, 14) == draft.usage
    assert len(llm.calls) == 2


def test_the_hosts_error_is_raised_as_it_is() -> None:
    """Neither wrapped nor swallowed."""
    lm = wrapped(WordLLM(fails_on="Who?"))

    with pytest.raises(HostDownError, match="is down"):
        lm.write(lm.begin(Request(prompt="Who?")), PASSAGES, 4, Progress())


def test_a_missing_variable_is_the_hosts_error() -> None:
    """As the prompt's own `invoke` says it; a missing field of a document likewise."""
    prompt = PromptTemplate.from_template("{context} {language} {input}")
    lm = HostLM(WordLLM(), Prompting(prompt=prompt))
    with pytest.raises(KeyError, match="language"):
        lm.write(lm.begin(Request(prompt="Who?")), PASSAGES, 4, Progress())

    parts = Prompting(prompt=PROMPT, document_prompt=PromptTemplate.from_template("{page}"))
    lm = HostLM(WordLLM(), parts)
    with pytest.raises(ValueError, match="missing metadata"):
        lm.write(lm.begin(Request(prompt="Who?")), PASSAGES, 4, Progress())
    assert not lm.same_passages(PASSAGES, PASSAGES)
    draft = lm.begin(Request(prompt="Who?"))
    assert lm.write_key(draft, PASSAGES, 4) != lm.write_key(draft, PASSAGES, 4)


def test_a_prompt_without_a_place_for_documents_is_refused() -> None:
    """The model would never see them."""
    with pytest.raises(ConfigError, match="context"):
        Prompting(prompt=PromptTemplate.from_template("{input}"))


def test_a_text_that_the_prompt_begins_is_continued() -> None:
    """An assistant's message at the end of the prompt and the text so far are one message."""
    prompt = ChatPromptTemplate.from_messages(
        [("system", "{context}"), ("user", "{input}"), ("ai", "Well,")]
    )
    llm = WordChat()
    lm = HostLM(llm, Prompting(prompt=prompt), continuation="assistant")
    draft = lm.write(lm.begin(Request(prompt="What?")), PASSAGES, 2, Progress())
    lm.write(draft, PASSAGES, 2, Progress())

    begun, continued = (call["messages"][2:] for call in llm.calls)
    assert [message.content for message in begun] == ["Well,"]
    assert [message.content for message in continued] == ["Well," + draft.text]


def test_a_message_that_is_continued_keeps_its_fields() -> None:
    """Its name and what goes with it; a text behind content blocks is one more block."""
    block = {"type": "text", "text": "Well,"}
    contents: tuple[Any, ...] = ("Well,", [block])
    for content in contents:
        begun = AIMessage(content=content, name="bot", additional_kwargs={"x": 1})
        prompt = ChatPromptTemplate.from_messages([("user", "{context}{input}"), begun])
        llm = WordChat()
        lm = HostLM(llm, Prompting(prompt=prompt), continuation="assistant")
        draft = lm.write(lm.begin(Request(prompt="What?")), PASSAGES, 2, Progress())
        lm.write(draft, PASSAGES, 2, Progress())
        first, second = (call["messages"] for call in llm.calls)

        assert begun == first[1]
        assert [block, {"type": "text", "text": draft.text}] == second[1].content or (
            "Well," + draft.text == second[1].content
        )
        assert ("bot", {"x": 1}, 2) == (second[1].name, second[1].additional_kwargs, len(second))
    assert begun.content == [block]


def test_what_the_model_does_not_see_does_not_count() -> None:
    """Passages whose formatted text is equal are the same, whatever their metadata say."""

    def passage(text: str, page: int) -> Passage:
        source = Document(page_content=text, metadata={"page": page})
        return host_passage(id=None, text=text, metadata=source.metadata, source=source)

    one, other, third = passage("a", 1), passage("a", 2), passage("b", 1)
    lm = wrapped(WordLLM())
    paged = Prompting(
        prompt=PROMPT, document_prompt=PromptTemplate.from_template("{page}: {page_content}")
    )
    draft = lm.begin(Request(prompt="Who?"))

    assert one != other
    assert lm.same_passages([one, third], [other, third])
    assert not lm.same_passages([one, third], [third, one])
    assert not HostLM(WordLLM(), paged).same_passages([one], [other])
    assert lm.write_key(draft, [one], 4) == lm.write_key(draft, [other], 4)
    assert lm.write_key(draft, [one], 4) != lm.write_key(draft, [third], 4)


def test_documents_that_are_formatted_are_copies() -> None:
    """A user's function may write into what it gets; nothing kept is changed by that."""

    def format_docs(documents: list[Document]) -> str:
        for document in documents:
            document.metadata["seen"] = document.metadata.get("seen", 0) + 1
        return str([document.metadata for document in documents])

    source = Document(page_content="a", metadata={})
    kept = host_passage(id="1", text="a", metadata=source.metadata, source=source)
    parts = Prompting(prompt=PROMPT, format_docs=format_docs)

    assert [parts.context([kept]) for _ in range(2)] == ["[{'seen': 1}]"] * 2


def test_a_cancelled_segment_makes_no_call() -> None:
    """What nobody needs any more is not begun."""
    llm = WordLLM()
    lm = wrapped(llm)
    progress = Progress()
    progress.cancel()

    with pytest.raises(Cancelled):
        lm.write(lm.begin(Request(prompt="Who?")), PASSAGES, 4, progress)
    assert llm.calls == []
