"""A pipeline with the demo model, wrapped, writes what a loop by hand with it writes."""

from typing import Any

import pytest
from langchain_huggingface import HuggingFacePipeline
from langchain_ralmspec.llm import HostLM
from langchain_ralmspec.prompts import Prompting
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from ralmspec_plugins.demo import DEMO_SEED, MODEL, make_world
from ralmspec_plugins.engine.threads import Engine
from ralmspec_plugins.plain import plain
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing import WordRetriever
from ralmspec_plugins.types import Request
from ralmspec_plugins.workloads import Interval, OneShot
from ralmspec_plugins.workloads.sentences import Sentences
from tests.langchain.by_hand import ARTICLE, searching, sentences_by_hand, tokens_by_hand

WORLD = make_world(DEMO_SEED, 100)
RETRIEVER = WordRetriever([passage.text for passage in WORLD.passages()], k=1)
QUESTIONS = [question.prompt for question in WORLD.questions(2, 1)]


@pytest.fixture(scope="module")
def llm() -> HuggingFacePipeline:
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    made = pipeline("text-generation", model=model, tokenizer=tokenizer, do_sample=False)
    return HuggingFacePipeline(pipeline=made)


def bind(tokens: int) -> dict[str, Any]:
    return {"pipeline_kwargs": {"max_new_tokens": tokens, "return_full_text": False}}


def test_tokens_are_those_of_the_loop_by_hand(llm: HuggingFacePipeline) -> None:
    """Plainly, with speculation, and for whoever wants a stream."""
    workload = Interval(HostLM(llm, Prompting(prompt=ARTICLE)))
    with Engine(workload, RETRIEVER) as engine:
        for question in QUESTIONS:
            request = Request(prompt=question, max_tokens=24)
            expected = tokens_by_hand(
                llm, searching(RETRIEVER), question, template=ARTICLE, bind=bind
            )

            assert expected == plain(workload, RETRIEVER, request).text
            assert expected == engine.run(request).text
            assert expected == "".join(engine.stream(request))


def test_sentences_are_those_of_the_loop_by_hand(llm: HuggingFacePipeline) -> None:
    """Each step is one call, of which the first sentence is kept."""
    workload = Sentences(HostLM(llm, Prompting(prompt=ARTICLE)), tokens=24, max_sentences=3)
    for question in QUESTIONS:
        given: Any = {"tokens": 24, "sentences": 3, "template": ARTICLE, "bind": bind}
        expected = sentences_by_hand(llm, searching(RETRIEVER), question, **given)
        answer = plain(workload, RETRIEVER, Request(prompt=question, max_tokens=999))

        assert expected == answer.text
        assert answer.state.draft.calls == 3


def test_one_shot_is_what_the_pipeline_says(llm: HuggingFacePipeline) -> None:
    """Its own call as it is, which repeats the prompt unless it is told not to."""
    for model in (llm, llm.bind(pipeline_kwargs={"return_full_text": False, "max_new_tokens": 9})):
        lm: Any = HostLM(model, Prompting(prompt=ARTICLE), whole=True)
        answer = plain(OneShot(lm), RETRIEVER, Request(prompt=QUESTIONS[0]))
        hit = answer.sources[0]
        expected = model.invoke(ARTICLE.format(context=hit.passage.text, input=QUESTIONS[0]))

        assert expected == answer.text


def test_a_stop_string_cuts_a_text_that_the_pipeline_would_go_on_with(
    llm: HuggingFacePipeline,
) -> None:
    """A pipeline ignores stop strings; the draft ends in front of them all the same."""
    lm = HostLM(llm, Prompting(prompt=ARTICLE))
    request = Request(prompt=QUESTIONS[0], max_tokens=40)
    stopped = Request(prompt=QUESTIONS[0], max_tokens=40, stop=(" of ",))
    whole = plain(Interval(lm), RETRIEVER, request).text

    assert " of " in whole
    assert whole.split(" of ")[0] == plain(Interval(lm), RETRIEVER, stopped).text


def test_nobody_waits_for_a_pipelines_stream(llm: HuggingFacePipeline) -> None:
    """It would come from a thread that cannot be stopped: a pipeline is called instead."""
    reports: list[Any] = []
    lm = HostLM(llm, Prompting(prompt=ARTICLE))
    lm.write(lm.begin(Request(prompt=QUESTIONS[0])), [], 4, Progress(reports.append))

    assert reports == []
    assert not hasattr(lm, "awrite")
