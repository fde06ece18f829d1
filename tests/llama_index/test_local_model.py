"""The model in a `HuggingFaceLLM`: by its own calls, and driven by tokens with its settings."""

from typing import Any

import pytest
import torch
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor import LongContextReorder, SimilarityPostprocessor
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode
from llama_index.llms.huggingface import HuggingFaceLLM
from llama_index_ralmspec import CommitEvent, SpeculativeQueryEngine, stats_of
from llama_index_ralmspec.documents import nodes_of
from llama_index_ralmspec.host_calls import HostContext
from llama_index_ralmspec.llm import HostLM
from llama_index_ralmspec.local_model import direct_lm, sampling_of
from llama_index_ralmspec.prompts import Prompting
from transformers import GenerationConfig

from ralmspec_plugins.decoding import CostCurve, Decoding, SuffixDrafter
from ralmspec_plugins.engine.threads import Engine
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.plain import plain
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing.models import tiny_llama, tiny_tokenizer
from ralmspec_plugins.types import Hit, Hits, Passage, Request, passages_of
from ralmspec_plugins.workloads import Interval
from ralmspec_plugins.workloads.sentences import Sentences
from tests.llama_index.by_hand import (
    QUESTIONS,
    last_words,
    made_passages,
    made_retriever,
    searching,
)
from tests.llama_index.engine_parts import hearing

PROMPT = PromptTemplate("Read:\n{context_str}\nNow: {query_str}\n")
PARTS = Prompting(text_qa_template=PROMPT)
RETRIEVER = made_retriever()
HITS: Hits = tuple(Hit(passage, 0.9 - at / 4) for at, passage in enumerate(made_passages()))
TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}\n"
    "{% endfor %}<s>assistant: "
)


def made(*, chat: bool = False, eos: int | None = None, **settings: Any) -> HuggingFaceLLM:
    tokenizer, model = tiny_tokenizer(), tiny_llama()
    if chat:
        tokenizer.chat_template = TEMPLATE
    model.generation_config.eos_token_id = eos
    model.generation_config.pad_token_id = 1
    return HuggingFaceLLM(
        model=model,
        tokenizer=tokenizer,
        context_window=512,
        device_map="cpu",
        is_chat_model=chat,
        **{"max_new_tokens": 7, **settings},
    )


def asked(prompt: str, *, asynchronous: bool = False, **settings: Any) -> Request:
    context = HostContext(QueryBundle(prompt), asynchronous=asynchronous)
    return Request(prompt=prompt, context=context, **settings)


def shown(lm: Any, request: Request, passages: list[Passage]) -> str:
    """Give the text in front of what the model is to write."""
    draft = lm.begin(request).placed(lm.template.arranged(passages))
    lineage = lm._lineage(draft)
    return str(lm.tokenizer.decode([*lineage.prefix.tokens, *lineage.prompt]))


def context_of(nodes: list[NodeWithScore]) -> str:
    return "\n\n".join(one.node.get_content(metadata_mode=MetadataMode.LLM) for one in nodes)


# By its own calls


@pytest.mark.parametrize("chat", [False, True])
def test_its_calls_write_what_a_loop_by_hand_writes(chat: bool) -> None:
    """A model that knows its settings alone is bounded by a copy; a chat by its template."""
    llm, question = made(chat=chat, system_prompt="Be brief."), QUESTIONS[0]
    text = ""
    for bound in (4, 4, 2):
        llm.max_new_tokens = bound
        nodes = searching(RETRIEVER)(last_words(question, text, 32))
        given = {"context_str": context_of(nodes), "query_str": question}
        if chat:
            system = ChatMessage(role=MessageRole.SYSTEM, content="Be brief.")
            prompt = llm.messages_to_prompt([system, *PROMPT.format_messages(**given)])
        else:
            prompt = "Be brief.\n\n" + PROMPT.format(**given)
        text += llm.complete(prompt + text, formatted=True).text
    llm.max_new_tokens = 7
    lm: Any = HostLM(llm, PARTS)
    request = asked(question, max_tokens=10)

    assert text == plain(Interval(lm), RETRIEVER, request).text
    with Engine(Interval(lm), RETRIEVER) as engine:
        assert text == engine.run(request).text
        assert text == "".join(engine.stream(request))
    assert llm.max_new_tokens == 7
    assert not lm.side_by_side
    assert not hasattr(lm, "awrite")


def test_its_last_token_says_whether_it_has_ended() -> None:
    """An end of sequence, or one of `stopping_ids`; a bound is no end."""
    endless: Any = HostLM(made(), PARTS)
    draft = endless.write(endless.begin(asked("Who?")), HITS[:1], 4, Progress())
    assert not draft.finished

    first = made().complete(_prompt(made()), formatted=True).raw["model_output"][0][-7].item()
    for llm in (made(eos=first), made(stopping_ids=[first])):
        lm: Any = HostLM(llm, PARTS)
        assert lm.write(lm.begin(asked("Who?")), HITS[:1], 4, Progress()).finished


def _prompt(llm: HuggingFaceLLM) -> str:
    return PARTS.shown(llm, "Who?", context_of(nodes_of(HITS[:1])))


# Driven by tokens


@pytest.mark.parametrize("chat", [False, True])
def test_the_prompt_is_the_hosts(chat: bool) -> None:
    """With its system prompt, its wrappers, its chat template: as its own call would have it."""
    llm = made(
        chat=chat,
        system_prompt="Be brief.",
        completion_to_prompt=lambda prompt: f"[{prompt}]",
        query_wrapper_prompt="Q: {query_str}",
    )
    whole = PARTS.shown(llm, "Who?", context_of(nodes_of(HITS[:2])))
    expected = whole if whole.startswith("<s>") else "<s>" + whole
    lm = direct_lm(llm, PARTS)

    assert "Be brief." in whole
    assert ("[Read" in whole) is not chat
    begins = lm.tokenizer.bos_token  # type: ignore[union-attr]
    assert expected.removeprefix(begins) == shown(
        lm, asked("Who?"), passages_of(HITS[:2])
    ).removeprefix(begins)


def test_a_function_shows_all_nodes_as_one_text() -> None:
    """Its text stands for the first of them."""
    parts = Prompting(
        text_qa_template=PROMPT, format_nodes=lambda nodes: "|".join(one.node_id for one in nodes)
    )
    text = shown(direct_lm(made(), parts), asked("Who?"), passages_of(HITS[:3]))

    assert "n0|n1|n2" in text


def test_tokens_are_those_that_generate_chooses() -> None:
    """Greedily, with a repetition penalty, the text is the one `generate` writes."""
    llm = made(generate_kwargs={"repetition_penalty": 1.3})
    lm: Any = direct_lm(llm, PARTS)
    written = lm.write(
        lm.begin(asked("Who?", max_tokens=12)), passages_of(HITS[:1]), 12, Progress()
    )
    lineage = lm._lineage(written)
    ids = torch.tensor([[*lineage.prefix.tokens, *lineage.prompt]])
    output = llm._model.generate(ids, max_new_tokens=12, repetition_penalty=1.3)

    assert list(written.tokens) == output[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("make", [Interval, Sentences], ids=["tokens", "sentences"])
@pytest.mark.parametrize(
    "processors",
    [(), (SimilarityPostprocessor(similarity_cutoff=1.0), LongContextReorder())],
    ids=["", "processed"],
)
@pytest.mark.parametrize("sampled", [False, True])
def test_speculation_changes_no_token(make: Any, processors: Any, sampled: bool) -> None:
    """The engine's tokens are those of the plain loop over the same model."""
    lm = direct_lm(made(generate_kwargs={"do_sample": sampled}), PARTS, processors)
    workload = make(lm)
    with Engine(workload, RETRIEVER) as engine:
        for number in range(3):
            request = asked(QUESTIONS[number], max_tokens=16, seed=number)

            assert plain(workload, RETRIEVER, request) == engine.run(request)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_postprocessors_come_before_the_model(asynchronous: bool) -> None:
    """It writes what it writes of the nodes that are left, and their events are kept."""
    cutoff = SimilarityPostprocessor(similarity_cutoff=0.6)
    llm = made()
    lm: Any = direct_lm(llm, PARTS, [cutoff])
    request = asked("Who?", asynchronous=asynchronous, max_tokens=8)
    reports: list[Any] = []
    written = lm.write(lm.begin(request), HITS, 8, Progress(reports.append))
    alone: Any = direct_lm(llm, PARTS)
    expected = alone.write(alone.begin(request), passages_of(HITS[:2]), 8, Progress())

    assert alone.text(expected) == lm.text(written) == lm.text(reports[-1])
    assert [one.node.node_id for one in written.recording.used] == ["n0", "n1"]
    assert lm.reads_scores
    assert lm.same_passages(HITS, tuple(Hit(hit.passage, hit.score) for hit in HITS))
    far = tuple(Hit(hit.passage, 0.1) for hit in HITS)
    assert not lm.same_passages(HITS, far)
    assert lm.write_key(written, HITS, 4) != lm.write_key(written, far, 4)


def test_no_call_of_the_host_is_imitated() -> None:
    """A model driven directly tells nothing of calls that are not made; its text is our event."""
    index = VectorStoreIndex(
        [TextNode(text="The fox is red."), TextNode(text="Ann is old.")],
        embed_model=MockEmbedding(8),
    )
    ours = SpeculativeQueryEngine.from_index(
        index, llm=made(), workload="interval", direct=True, max_tokens=8, similarity_top_k=1
    )
    with ours, hearing() as heard:
        response = ours.query(QUESTIONS[0])
    names = {type(one).__name__ for one in heard.events}

    assert str(response)
    assert not {name for name in names if name.startswith("LLM")}
    assert [one for one in heard.own if isinstance(one, CommitEvent)]


@pytest.mark.parametrize("streaming", [False, True])
def test_passes_are_in_the_statistics(streaming: bool) -> None:
    """With and without drafts: equal answers, and what they took, also streamed."""
    index = VectorStoreIndex([TextNode(text="The fox is red.")], embed_model=MockEmbedding(8))
    found = []
    for decoding in (None, Decoding(drafter=SuffixDrafter(), costs=CostCurve((1, 9), (1.0, 1.0)))):
        ours = SpeculativeQueryEngine.from_index(
            index, llm=made(), workload="interval", direct=True, max_tokens=16,
            decoding=decoding, streaming=streaming,
        )  # fmt: skip
        with ours:
            response = ours.query(QUESTIONS[0])
            found.append((str(response), stats_of(response)))
    (text, slow), (same, fast) = found

    assert text
    assert text == same
    assert slow.drafts_accepted == 0
    for stats in (slow, fast):
        assert stats.tokens_written >= 16
        assert stats.model_passes >= stats.tokens_written - stats.drafts_accepted
        assert stats.tokens_per_pass == stats.tokens_written / stats.model_passes


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, Greedy()),
        ({"generate_kwargs": {"repetition_penalty": 1.2}}, Greedy(repetition_penalty=1.2)),
        (
            {"generate_kwargs": {"do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.9}},
            Sampling(temperature=0.7, top_k=5, top_p=0.9),
        ),
        (
            {"generate_kwargs": {"generation_config": GenerationConfig(do_sample=True, top_k=3)}},
            Sampling(top_k=3),
        ),
        ({"eos": 5, "stopping_ids": [5]}, Greedy()),
    ],
    ids=str,
)
def test_settings_are_the_wrappers(settings: dict[str, Any], expected: Greedy | Sampling) -> None:
    """Those of its model, and those of its calls over them."""
    assert expected == sampling_of(made(**settings))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"generate_kwargs": {"num_beams": 2}}, "num_beams"),
        ({"generate_kwargs": {"do_sample": True, "min_p": 0.1}}, "min_p"),
        ({"generate_kwargs": {"eos_token_id": 7}}, "eos_token_id"),
        ({"stopping_ids": [9]}, "stopping_ids"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_kept_to_are_named(settings: dict[str, Any], named: str) -> None:
    """And never left out in silence."""
    with pytest.raises(ConfigError, match=named):
        direct_lm(made(**settings))


def test_only_a_local_hugging_face_model_is_driven_directly() -> None:
    """Everything else is called as it is; a prompt must show the nodes once."""
    with pytest.raises(ConfigError, match=r"HuggingFaceLLM.*MockLLM"):
        direct_lm(MockLLM(max_tokens=4))
    twice = Prompting(text_qa_template=PromptTemplate("{context_str} {context_str}"))
    lm: Any = direct_lm(made(), twice)
    with pytest.raises(ConfigError, match="2 times"):
        lm.begin(asked("Who?"))


def test_a_chat_prompt_of_the_users_is_kept() -> None:
    """Several messages, shown by the tokenizer's template."""
    messages = [
        ChatMessage(role=MessageRole.SYSTEM, content="Read: {context_str}!"),
        ChatMessage(role=MessageRole.USER, content="{query_str}"),
    ]
    parts = Prompting(text_qa_template=ChatPromptTemplate(message_templates=messages))
    text = shown(direct_lm(made(chat=True), parts), asked("Who?"), passages_of(HITS[:1]))
    expected = f"system: Read: {context_of(nodes_of(HITS[:1]))}!\n<s>user: Who?\n<s>assistant: "

    assert expected == text.replace("<s>", "", 1).lstrip()
