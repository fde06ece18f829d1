"""A pipeline's own model, driven by tokens: the host's prompt, the pipeline's settings."""

from typing import Any

import pytest
import torch
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline
from langchain_ralmspec.local_model import direct_lm, sampling_of
from langchain_ralmspec.prompts import Prompting
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig, pipeline

from ralmspec_plugins.adapters.documents import HostPassage, host_passage
from ralmspec_plugins.engine.threads import Engine
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.plain import plain
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing import WordRetriever
from ralmspec_plugins.testing.models import tiny_llama, tiny_tokenizer
from ralmspec_plugins.types import Passage, Request
from ralmspec_plugins.workloads import Interval
from ralmspec_plugins.workloads.sentences import Sentences
from tests.langchain.fake_models import WordLLM

pytestmark = pytest.mark.filterwarnings(
    "ignore:.langchain-community. is being sunset:DeprecationWarning"
)
PROMPT = PromptTemplate.from_template("Read:\n{context}\nNow: {input}\n")
CHAT = ChatPromptTemplate.from_messages([("system", "Read: {context}!"), ("user", "{input}")])
TEXTS = ("the ships that passed", "a storm sells crêpes 🙂", "</s> the señor pays 25 €")


def made(**settings: Any) -> HuggingFacePipeline:
    if "generation_config" not in settings:
        settings.setdefault("do_sample", False)
    return HuggingFacePipeline(
        pipeline=pipeline(
            "text-generation",
            model=tiny_llama(),
            tokenizer=tiny_tokenizer(),
            max_new_tokens=12,
            **settings,
        )
    )


def chat(llm: HuggingFacePipeline) -> ChatHuggingFace:
    tokenizer = llm.pipeline.tokenizer
    tokenizer.chat_template = (
        "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}\n"
        "{% endfor %}<s>assistant: "
    )
    return ChatHuggingFace(llm=llm, tokenizer=tokenizer, model_id="tiny")


def passages() -> list[Passage]:
    found: list[Passage] = []
    for number, text in enumerate(TEXTS):
        source = Document(page_content=text, metadata={"page": number})
        found.append(
            host_passage(id=str(number), text=text, metadata=source.metadata, source=source)
        )
    return found


def shown(lm: Any, request: Request, front: list[Passage]) -> str:
    """Decode all that stands in front of the first token."""
    draft = lm.begin(request)
    lineage = lm._lineage(draft.placed(lm.template.arranged(front)))
    return str(lm.tokenizer.decode([*lineage.prefix.tokens, *lineage.prompt]))


def test_the_model_reads_the_hosts_prompt() -> None:
    """Decoded, the tokens are the prompt with its documents, as the host's chain shows them."""
    found = passages()
    parts = Prompting(
        prompt=PROMPT,
        document_prompt=PromptTemplate.from_template("[{page}] {page_content}"),
        separator=" | ",
    )
    joined = " | ".join(f"[{number}] {text}" for number, text in enumerate(TEXTS))
    request = Request(prompt="Who?")
    lm = direct_lm(made(), parts)

    assert f"Read:\n{joined}\nNow: Who?\n" == shown(lm, request, found).removeprefix("<s>")
    assert "Read:\n\nNow: Who?\n" == shown(lm, request, []).removeprefix("<s>")
    whole = Prompting(prompt=PROMPT, format_docs=lambda found: "; ".join(map(str, found)))
    documents = "; ".join(str(one.source) for one in found if isinstance(one, HostPassage))
    lm = direct_lm(made(), whole)
    assert f"Read:\n{documents}\nNow: Who?\n" == shown(lm, request, found).removeprefix("<s>")


def test_a_chat_model_is_given_its_template() -> None:
    """The documents stand where the template puts their message; no token begins it twice."""
    lm = direct_lm(chat(made()), Prompting(prompt=CHAT))
    expected = f"<s>system: Read: {TEXTS[0]}!\n<s>user: Who?\n<s>assistant: "

    assert expected == shown(lm, Request(prompt="Who?"), passages()[:1])


def test_a_text_begins_as_the_tokenizer_begins_it() -> None:
    """With its first token, once, also where the template has written it already."""
    llm = made()
    tokenizer = llm.pipeline.tokenizer
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    expected = tokenizer.encode("Read:\n")

    assert expected[0] == tokenizer.bos_token_id
    draft = direct_lm(llm, Prompting(prompt=PROMPT)).begin(Request(prompt="Who?"))
    assert tuple(expected) == draft.origin.head_tokens

    head = direct_lm(chat(llm), Prompting(prompt=CHAT)).begin(Request(prompt="Who?")).origin
    assert head.head_tokens[0] == tokenizer.bos_token_id
    assert head.head_tokens[1] != tokenizer.bos_token_id


def test_what_stands_in_a_document_ends_no_turn() -> None:
    """A special token's name in a document is plain text."""
    lm = direct_lm(made(), Prompting(prompt=PROMPT))
    placed = lm.template.arranged(passages()[2:])
    tokens = lm._passage_ids(placed[0].title, placed[0].text)

    assert lm.tokenizer.eos_token_id not in tokens
    assert placed[0].text == lm.tokenizer.decode(list(tokens))


def test_tokens_are_those_that_generate_chooses() -> None:
    """Greedily, with a repetition penalty, the text is the one `generate` writes."""
    llm = made(repetition_penalty=1.3)
    lm = direct_lm(llm, Prompting(prompt=PROMPT))
    draft = lm.begin(Request(prompt="Who?", max_tokens=12))
    written = lm.write(draft, passages()[:1], 12, Progress())
    lineage = lm._lineage(written)
    ids = torch.tensor([[*lineage.prefix.tokens, *lineage.prompt]])
    output = llm.pipeline.model.generate(
        ids, max_new_tokens=12, do_sample=False, repetition_penalty=1.3
    )

    assert list(written.tokens) == output[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("make", [Interval, Sentences], ids=["tokens", "sentences"])
@pytest.mark.parametrize("sampled", [False, True])
def test_speculation_changes_no_token(make: Any, sampled: bool) -> None:
    """The engine's tokens are those of the plain loop over the same model."""
    lm = direct_lm(made(do_sample=sampled), Prompting(prompt=PROMPT))
    retriever = WordRetriever(TEXTS)
    workload = make(lm)
    with Engine(workload, retriever) as engine:
        for number in range(4):
            request = Request(prompt=f"the storm {number}", max_tokens=24, seed=number)
            expected, answer = plain(workload, retriever, request), engine.run(request)

            assert expected == answer
            drafts = [getattr(one.state, "draft", one.state) for one in (expected, answer)]
            assert drafts[0].tokens == drafts[1].tokens


def test_the_frame_is_made_for_each_request() -> None:
    """Other inputs are another frame, and the host's error where one is missing."""
    lm = direct_lm(made(), Prompting(prompt=PromptTemplate.from_template("{context}{style}")))

    with pytest.raises(KeyError, match="style"):
        lm.begin(Request(prompt="Who?"))


def test_a_document_that_cannot_be_shown_fails_when_it_is_used() -> None:
    """Not when the loop compares what a segment depends on."""
    parts = Prompting(prompt=PROMPT, document_prompt=PromptTemplate.from_template("{chapter}"))
    lm = direct_lm(made(), parts)
    draft = lm.begin(Request(prompt="Who?"))

    assert lm.write_key(draft, passages(), 4) != lm.write_key(draft, passages(), 4)
    with pytest.raises(ValueError, match="chapter"):
        lm.write(draft, passages(), 4, Progress())


@pytest.mark.parametrize(
    ("settings", "arguments", "expected"),
    [
        ({}, {}, Greedy()),
        ({"repetition_penalty": 1.2}, {}, Greedy(repetition_penalty=1.2)),
        ({"do_sample": True}, {}, Sampling(temperature=0.7, top_k=50)),  # the pipeline's defaults
        (
            {"do_sample": True, "temperature": 0.5, "top_k": 0, "top_p": 0.9},
            {"top_p": 0.8},
            Sampling(temperature=0.5, top_k=0, top_p=0.8),
        ),
        ({"do_sample": True}, {"do_sample": False, "return_full_text": False}, Greedy()),
        (
            {"generation_config": GenerationConfig(do_sample=True, top_k=3)},
            {},
            Sampling(temperature=0.7, top_k=3),
        ),
        ({"num_beams": 1, "no_repeat_ngram_size": 0, "max_time": None}, {}, Greedy()),
    ],
    ids=str,
)
def test_settings_are_the_pipelines(
    settings: dict[str, Any], arguments: dict[str, Any], expected: Greedy | Sampling
) -> None:
    """Those of its model, of itself and of the calls, each over the ones before."""
    assert expected == sampling_of(made(**settings).pipeline, arguments)


@pytest.mark.parametrize(
    ("settings", "arguments", "named"),
    [
        ({"num_beams": 2}, {}, "num_beams"),
        ({"do_sample": True, "min_p": 0.1}, {}, "min_p"),
        ({}, {"no_repeat_ngram_size": 3, "typical_p": 0.5}, "no_repeat_ngram_size, typical_p"),
        ({}, {"stop_strings": ["a"]}, "stop_strings"),
        ({}, {"eos_token_id": 7}, "eos_token_id"),
        ({"add_special_tokens": False}, {}, "add_special_tokens"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_kept_to_are_named(
    settings: dict[str, Any], arguments: dict[str, Any], named: str
) -> None:
    """And never left out in silence."""
    llm = made(**settings)

    with pytest.raises(ConfigError, match=named):
        direct_lm(llm.bind(pipeline_kwargs=arguments) if arguments else llm)


def test_only_pipelines_are_driven_directly() -> None:
    """Everything else is called as it is; the message says what is needed."""
    with pytest.raises(ConfigError, match=r"HuggingFacePipeline.*WordLLM"):
        direct_lm(WordLLM())
    other = made()
    other.pipeline.task = "summarization"
    with pytest.raises(ConfigError, match="summarization"):
        direct_lm(other)
    twice = Prompting(prompt=PromptTemplate.from_template("{context} {context}"))
    lm = direct_lm(made(), twice)
    with pytest.raises(ConfigError, match="2 times"):
        lm.begin(Request(prompt="Who?"))
