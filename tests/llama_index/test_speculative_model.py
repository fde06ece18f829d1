"""A local model with a drafter as LlamaIndex' own: the texts of plain decoding, in every way."""

import asyncio
import copy
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
import torch
from llama_index.core import PromptTemplate, VectorStoreIndex
from llama_index.core.agent import ReActAgent
from llama_index.core.base.llms.types import (
    ChatMessage,
    CompletionResponse,
    ImageBlock,
    MessageRole,
)
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import TextNode
from llama_index_ralmspec import SpeculativeLLM, SpeculativeQueryEngine, stats_of
from llama_index_ralmspec.capabilities import keeps_nothing

from ralmspec_plugins import FixedStride
from ralmspec_plugins.adapters.events import stats_in
from ralmspec_plugins.decoding import Decoding
from ralmspec_plugins.errors import ConfigError, ContextOverflowError, InputError, ModelError
from ralmspec_plugins.testing.models import tiny_llama, tiny_tokenizer
from tests.batching.gated import aeventually
from tests.decoding.drafters import oracle
from tests.drafted_models import (
    ALL,
    CHOICES,
    SEEDS,
    HostPair,
    Repeating,
    cases,
    chat_tokenizer,
    drafting,
)
from tests.llama_index.test_local_model import made
from tests.llama_index.worlds import WordEmbedding

PROMPT = "The keeper counted the ships that"
MESSAGES = [
    ChatMessage(role=MessageRole.SYSTEM, content="Count."),
    ChatMessage(role=MessageRole.USER, content="The ships?"),
]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny matrices are slower on two
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pair() -> HostPair:
    return HostPair.of(SpeculativeLLM, max_tokens=24)


# Texts are plain decoding's.


def _check(pair: HostPair, number: int, seeds: range) -> None:
    before = pair.fast.stats
    for prompt, options, rng in cases(number, seeds):
        expected = pair.plain.complete(prompt, **options)
        pair.teach(prompt, options, rng)
        streamed = list(pair.fast.stream_complete(prompt, **options))
        for one in (
            pair.fast.complete(prompt, **options),
            streamed[-1],
            *asyncio.run(_awaited(pair.fast, prompt, options)),
        ):
            assert expected.text == one.text
            assert expected.raw["usage"] == one.raw["usage"]
            assert expected.raw["finish_reason"] == one.raw["finish_reason"]
        assert expected.text == "".join(one.delta or "" for one in streamed)
        messages = [ChatMessage(content=prompt)]
        if rng.random() < 0.3:
            messages.append(ChatMessage(role=MessageRole.ASSISTANT, content=" the"))
        chats = pair.plain.chat(messages, **options), pair.fast.chat(messages, **options)
        assert len({one.message.content for one in chats}) == 1
    assert pair.fast.stats.drafts_accepted > before.drafts_accepted


async def _awaited(llm: Any, prompt: str, options: dict[str, Any]) -> list[Any]:
    whole = await llm.acomplete(prompt, **options)
    return [whole, [one async for one in await llm.astream_complete(prompt, **options)][-1]]


@pytest.mark.parametrize("number", range(len(CHOICES)))
def test_texts_are_plain_decodings(pair: HostPair, number: int) -> None:
    """Completed, chatted, streamed and awaited; greedy and drawn, with stops, for any drafts."""
    _check(pair, number, range(SEEDS))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CHOICES)))
def test_texts_are_plain_decodings_in_1200_cases(pair: HostPair, number: int) -> None:
    """The rest of the same cases."""
    _check(pair, number, range(SEEDS, ALL))


# What a call gives, and takes.


async def test_messages_are_shown_by_the_template(pair: HostPair) -> None:
    """In every way of chatting; or by the user's own function."""
    shown = "<s>system: Count.\nuser: The ships?\nassistant: "
    expected = pair.plain.complete(shown, formatted=True).text
    own = SpeculativeLLM(
        pair.plain.loaded(), drafter=None, messages_to_prompt=lambda _: PROMPT, max_tokens=24
    )
    llm = pair.fast

    assert llm.metadata.is_chat_model
    assert not own.metadata.is_chat_model
    assert expected == llm.chat(MESSAGES).message.content
    assert expected == (await llm.achat(MESSAGES)).message.content
    assert expected == "".join(one.delta or "" for one in llm.stream_chat(MESSAGES))
    awaited = [one.delta or "" async for one in await llm.astream_chat(MESSAGES)]
    assert expected == "".join(awaited)
    assert len(awaited) > 5
    assert pair.plain.complete(PROMPT).text == own.chat(MESSAGES).message.content
    assert llm.predict(PromptTemplate("{who}?"), who="ships") == (
        pair.plain.chat([ChatMessage(content="ships?")]).message.content
    )


def test_a_response_says_what_it_took() -> None:
    """Passes, tokens and the reason of the end; the host's own counter counts the tokens."""
    counter = TokenCountingHandler(tokenizer=str.split)
    pair = HostPair.of(SpeculativeLLM, tiny_llama(), max_tokens=24)
    pair.teach(PROMPT, {}, Random(0))
    pair.drafter.rule = oracle
    llm = SpeculativeLLM(
        pair.fast.loaded(),
        decoding=pair.fast.loaded().loaded.decoding,
        tokenizer=pair.fast.loaded().loaded.tokenizer,
        max_tokens=24,
        callback_manager=CallbackManager([counter]),
    )
    for response in (llm.complete(PROMPT), list(llm.stream_complete(PROMPT))[-1]):
        stats = stats_in(response.raw, "a response")

        assert 24 == stats.tokens_written == response.raw["usage"]["output_tokens"]
        assert stats.drafts_accepted > 12
        assert "length" == response.raw["finish_reason"]
    assert 48 == counter.completion_llm_token_count
    assert 2 * response.raw["usage"]["input_tokens"] == counter.prompt_llm_token_count
    assert (2, 48) == (llm.stats.calls, llm.stats.tokens_written)
    assert (llm.stats.tokens_per_pass or 0) > 2
    assert "SpeculativeLLM" in repr(llm)
    assert llm.loaded() is pair.fast.loaded() is copy.deepcopy(llm).loaded()


async def test_it_goes_into_engines() -> None:
    """A query engine and a chat engine of the host's, with the plain one's texts."""
    index = VectorStoreIndex([TextNode(text="ships")], embed_model=WordEmbedding())
    llms, texts = HostPair.of(SpeculativeLLM, tiny_llama(context=4096), max_tokens=12), []
    for llm in (llms.plain, llms.fast):
        engine = RetrieverQueryEngine.from_args(index.as_retriever(), llm=llm)
        memory = ChatMemoryBuffer.from_defaults(tokenizer_fn=str.split)
        chat = SimpleChatEngine.from_defaults(llm=llm, memory=memory)
        texts.append(
            [
                str(engine.query("ships?")),
                str(await engine.aquery("ships?")),
                str(chat.chat("The ships?")),
                str(await chat.achat("And then?")),
            ]
        )

    assert texts[0] == texts[1]
    assert all(texts[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the host's own, of its agents
async def test_it_goes_into_an_agent() -> None:
    """Whose long prompt shows it what a tool would be called by; streamed, with the same reply."""
    llms = HostPair.of(SpeculativeLLM, tiny_llama(context=4096), max_tokens=12)
    replies = []
    for llm in (llms.plain, llms.fast):
        agent = ReActAgent(tools=[], llm=llm, streaming=True)
        replies.append(str(await agent.run("The ships?", max_iterations=2)))

    assert replies[0] == replies[1] != ""


async def test_the_event_loop_stays_free_and_the_model_too(pair: HostPair) -> None:
    """Others have their turn; a stream that is given up leaves no cache."""
    count, caches = 0, pair.fast.loaded().lm.caches

    async def beat() -> None:
        nonlocal count
        while True:
            await asyncio.sleep(0.001)
            count += 1

    kept, beating = len(caches), asyncio.create_task(beat())
    await pair.fast.achat(MESSAGES, max_tokens=200)
    beating.cancel()
    stream: Any = await pair.fast.astream_complete(PROMPT, max_tokens=200)
    first = (await anext(stream)).text
    await stream.aclose()

    assert count > 3
    assert pair.plain.complete(PROMPT).text.startswith(first)
    await aeventually(lambda: kept == len(caches))


# What is refused.


class Loud(SpeculativeLLM):
    """Overrides what a LlamaIndex model of one's own implements."""

    def complete(self, *args: Any, **kwargs: Any) -> CompletionResponse:
        response = super().complete(*args, **kwargs)
        return response.model_copy(update={"text": f"{response.text}!"})

    def stream_complete(self, *args: Any, **kwargs: Any) -> Any:
        for response in super().stream_complete(*args, **kwargs):
            yield response.model_copy(update={"text": f"{response.text}!"})


async def test_what_a_subclass_overrides_is_called() -> None:
    """By the asynchronous methods and for messages, too."""
    llm = Loud(tiny_llama(), tokenizer=chat_tokenizer(), drafter=None, max_tokens=4)
    message = [ChatMessage(content=PROMPT)]
    completed = [llm.complete(PROMPT), await llm.acomplete(PROMPT)]
    completed.append(list(llm.stream_complete(PROMPT))[-1])
    completed.append([one async for one in await llm.astream_complete(PROMPT)][-1])
    chatted = [llm.chat(message), await llm.achat(message)]
    chatted.append(list(llm.stream_chat(message))[-1])
    chatted.append([one async for one in await llm.astream_chat(message)][-1])

    assert completed[0].text.endswith("!")
    assert [completed[0].text] * 4 == [one.text for one in completed]
    assert str(chatted[0].message.content).endswith("!")
    assert [chatted[0].message.content] * 4 == [one.message.content for one in chatted]


def test_what_makes_no_model_is_refused(pair: HostPair) -> None:
    """At once, saying what was wrong and what was got."""
    network = pair.plain.loaded().lm.model
    refused: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"temperature": -1}, ConfigError, "temperature must be at least 0, got -1"),
        ({"max_tokens": 0}, ConfigError, "max_tokens must be at least 1"),
        ({"max_token": 3}, TypeError, "did you mean 'max_tokens'"),
        ({"stop": [3]}, ConfigError, "stop must be a text"),
        ({"drafter": "rest"}, ConfigError, "got 'rest'"),
        ({"chat_template": 3}, ConfigError, "chat_template must be a text, got 3"),
        ({"model": "/nowhere"}, ModelError, "There is no directory"),
    ]
    for given, kind, message in refused:
        with pytest.raises(kind, match=message):
            SpeculativeLLM(**{"model": network, "tokenizer": tiny_tokenizer(), **given})
    bare = SpeculativeLLM(network, tiny_tokenizer(), drafter=None, max_tokens=3)

    assert not bare.metadata.is_chat_model
    assert bare.complete(PROMPT).text
    with pytest.raises(ModelError, match=r"no chat template.*messages_to_prompt"):
        bare.chat(MESSAGES)
    picture = ChatMessage(blocks=[ImageBlock(url="http://a/b.png")])
    for messages, what in (
        ([ChatMessage(role=MessageRole.TOOL, content="3")], "a message of tool"),
        ([picture], r"only text, got \['ImageBlock'\]"),
    ):
        with pytest.raises(InputError, match=what):
            pair.fast.chat(messages)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"max_token": 5}, TypeError, "did you mean 'max_tokens'"),
        ({"max_tokens": 2000}, ContextOverflowError, "the model's context is 512"),
        ({"top_p": 0}, ConfigError, "top_p must be above 0"),
        ({"tools": [{}]}, NotImplementedError, "calls no tools"),
    ],
)
async def test_errors_are_the_librarys(
    pair: HostPair, given: dict[str, Any], kind: type[Exception], message: str
) -> None:
    """Called, awaited and streamed."""
    llm = pair.fast
    with pytest.raises(kind, match=message):
        llm.complete(PROMPT, **given)
    with pytest.raises(kind, match=message):
        await llm.achat(MESSAGES, **given)
    with pytest.raises(kind, match=message):
        list(llm.stream_complete(PROMPT, **given))
    with pytest.raises(kind, match=message):
        [one async for one in await llm.astream_complete(PROMPT, **given)]


# Both speculations at once.


def an_index() -> VectorStoreIndex:
    nodes = [TextNode(id_=f"n{at}", text=f"the ships that passed {at} storms") for at in range(12)]
    return VectorStoreIndex(nodes, embed_model=WordEmbedding())


def own(tokenizer: Any, **settings: Any) -> SpeculativeLLM:
    return SpeculativeLLM(tiny_llama(), tokenizer, **{"max_tokens": 24, **settings})


def check_engines(plain: Any, fast: Any, **settings: Any) -> int:
    """Ask both, the fast one twice: then its drafter knows the texts. Give its guesses."""
    parts: dict[str, Any] = {
        "similarity_top_k": 1,
        "text_qa_template": PromptTemplate("{context_str}\n{query_str}\n"),
        "max_tokens": 24,
        "workload": "interval",
        **settings,
    }
    drafts = {"decoding": parts.pop("decoding", None)}
    index, guesses = an_index(), 0
    with (
        SpeculativeQueryEngine.from_index(index, llm=plain, speculate=False, **parts) as slow,
        SpeculativeQueryEngine.from_index(
            index, llm=fast, schedule=FixedStride(stride=2), **parts, **drafts
        ) as quick,
    ):
        for question in ("where?", "are 3 storms passed"):
            expected = slow.query(question)
            first, again = quick.query(question), quick.query(question)

            assert str(expected)
            assert str(expected) == str(first) == str(again)
            assert expected.source_nodes == first.source_nodes == again.source_nodes
            guesses += stats_of(again).guesses
    return guesses


@pytest.mark.parametrize("options", [{}, {"temperature": 1.2, "seed": 5}])
@pytest.mark.parametrize("tokenizer", [tiny_tokenizer, chat_tokenizer])
def test_answers_by_the_hosts_calls_are_the_plain_loops(
    tokenizer: Any, options: dict[str, Any]
) -> None:
    """Texts and messages: calls are made on guesses, and their tokens drafted."""
    llm = own(tokenizer(), decoding=drafting(Repeating()), **options)
    guesses = check_engines(own(tokenizer(), drafter=None, **options), llm)

    assert guesses > 0
    assert llm.stats.drafts_accepted > 5


@pytest.mark.parametrize("options", [{}, {"temperature": 1.2}])
@pytest.mark.parametrize("tokenizer", [tiny_tokenizer, chat_tokenizer])
def test_answers_of_our_model_driven_directly_are_the_plain_loops(
    tokenizer: Any, options: dict[str, Any]
) -> None:
    """Its drafter and its way of choosing tokens go with it."""
    drafter = Counting()
    llm = own(tokenizer(), decoding=drafting(drafter), **options)
    guesses = check_engines(own(tokenizer(), drafter=None, **options), llm, direct=True)

    assert guesses > 0
    assert drafter.accepted > 5


def test_tokens_of_the_hosts_own_model_are_speculated_on() -> None:
    """A `HuggingFaceLLM` driven directly, with `decoding`."""
    drafter = Counting()
    llm = made()
    check_engines(llm, llm, direct=True, decoding=drafting(drafter))

    assert drafter.accepted > 5


class Counting(Repeating):
    """Counts what was right of its drafts."""

    accepted = 0

    def update(self, accepted: Any) -> None:
        self.accepted += len(accepted.nodes)


def test_what_cannot_be_kept_to_is_refused() -> None:
    """Two drafters, a drafter that nobody asks, and settings of calls that are not made."""
    for settings, given, message in (
        ({}, {"decoding": Decoding()}, "decoding needs direct=True"),
        ({}, {"direct": True, "decoding": Decoding()}, "which has its own drafter"),
        ({"stop": "x"}, {"direct": True}, "stop and deadline_s of the SpeculativeLLM"),
    ):
        llm = own(tiny_tokenizer(), drafter=None, **settings)
        with pytest.raises(ConfigError, match=message):
            SpeculativeQueryEngine.from_index(an_index(), llm=llm, workload="interval", **given)


def test_stats_of_reads_a_response_of_the_model() -> None:
    """As it reads a query engine's; anything else is refused in words."""
    llm = SpeculativeLLM(tiny_llama(), tiny_tokenizer(), max_tokens=8)
    response = llm.complete("The keeper counted the ships")

    assert 8 == stats_of(response).tokens_written
    for other in (CompletionResponse(text="a"), "a text", {"a": 1}):
        with pytest.raises(InputError, match="expected a response of"):
            stats_of(other)  # type: ignore[arg-type]


def test_its_calls_are_not_watched() -> None:
    """It draws no numbers of the process's generators; one that is derived from it may."""

    class Derived(SpeculativeLLM):
        pass

    own, derived = (
        kind(model=tiny_llama(), tokenizer=chat_tokenizer(), drafter=None)
        for kind in (SpeculativeLLM, Derived)
    )
    assert keeps_nothing(own)
    assert not keeps_nothing(derived)
