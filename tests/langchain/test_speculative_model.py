"""A local model with a drafter as LangChain's own: the texts of plain decoding, in every way."""

import asyncio
import copy
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGenerationChunk, GenerationChunk
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import ConfigurableField
from langchain_ralmspec import SpeculativeChatModel, SpeculativeLLM, stats_of

from ralmspec_plugins.adapters.speculative_model import decoding_of
from ralmspec_plugins.decoding import Decoding, PassageDrafter, SuffixDrafter
from ralmspec_plugins.errors import (
    ConfigError,
    ContextOverflowError,
    DeadlineExceeded,
    InputError,
    ModelError,
)
from ralmspec_plugins.lm import HuggingFaceLM
from ralmspec_plugins.testing.models import tiny_llama, tiny_tokenizer
from tests.batching.gated import aeventually
from tests.decoding.drafters import oracle
from tests.drafted_models import ALL, CHOICES, SEEDS, HostPair, cases, chat_tokenizer, drafting
from tests.lm.damages import DAMAGES, damaged, saved

PROMPT = "The keeper counted the ships that"
MESSAGES = [SystemMessage("Count."), HumanMessage("The ships?")]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny matrices are slower on two
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pair() -> HostPair:
    return HostPair.of(SpeculativeLLM, max_tokens=24)


@pytest.fixture(scope="module")
def chats() -> HostPair:
    return HostPair.of(SpeculativeChatModel, max_tokens=24)


class Heard(BaseCallbackHandler):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.ends: list[Any] = []
        self.errors: list[BaseException] = []

    def on_llm_new_token(self, token: str, **kwargs: Any) -> None:
        self.pieces.append(token)

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.ends.append(response.generations[0][0])

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.errors.append(error)


# Texts are plain decoding's.


def _check_texts(pair: HostPair, number: int, seeds: range) -> None:
    before = pair.fast.stats
    for prompt, options, rng in cases(number, seeds):
        expected = pair.plain.generate([prompt], **options)
        pair.teach(prompt, options, rng)
        whole = pair.fast.generate([prompt], **options)
        [[one]], [[other]] = expected.generations, whole.generations

        assert one.text == other.text
        assert one.generation_info["finish_reason"] == other.generation_info["finish_reason"]
        assert expected.llm_output == whole.llm_output
        assert one.text == "".join(pair.fast.stream(prompt, **options))
        pieces = asyncio.run(_awaited(pair.fast, prompt, options))
        assert [one.text] * 2 == pieces
    after = pair.fast.stats
    assert after.drafts_accepted > before.drafts_accepted
    assert after.tokens_written > before.tokens_written


async def _awaited(llm: Any, prompt: Any, options: dict[str, Any]) -> list[Any]:
    whole = await llm.ainvoke(prompt, **options)
    return [whole, "".join([piece async for piece in llm.astream(prompt, **options)])]


def _check_messages(pair: HostPair, number: int, seeds: range) -> None:
    before = pair.fast.stats
    for prompt, options, rng in cases(number, seeds):
        messages = [HumanMessage(prompt)]
        if rng.random() < 0.3:
            messages = [SystemMessage(prompt), *messages, AIMessage(rng.choice([" the", "é"]))]
        expected = pair.plain.invoke(messages, **options)
        pair.teach(pair.plain.prompt_of(messages), options, rng)
        whole = pair.fast.invoke(messages, **options)
        streamed = sum(pair.fast.stream(messages, **options), AIMessageChunk(""))
        awaited = asyncio.run(pair.fast.ainvoke(messages, **options))
        for one in (whole, streamed, awaited):
            assert expected.content == one.content
            assert expected.usage_metadata == one.usage_metadata
            assert (
                expected.response_metadata["finish_reason"]
                == one.response_metadata["finish_reason"]
            )
    assert pair.fast.stats.drafts_accepted > before.drafts_accepted


@pytest.mark.parametrize("number", range(len(CHOICES)))
def test_texts_are_plain_decodings(pair: HostPair, number: int) -> None:
    """Invoked, streamed and awaited; greedy and drawn, with stop strings, for any drafts."""
    _check_texts(pair, number, range(SEEDS))


@pytest.mark.parametrize("number", range(len(CHOICES)))
def test_messages_are_plain_decodings(chats: HostPair, number: int) -> None:
    """Likewise, with a begun answer in some."""
    _check_messages(chats, number, range(SEEDS))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CHOICES)))
def test_texts_are_plain_decodings_in_1200_cases(pair: HostPair, number: int) -> None:
    """The rest of the same cases."""
    _check_texts(pair, number, range(SEEDS, ALL))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CHOICES)))
def test_messages_are_plain_decodings_in_1200_cases(chats: HostPair, number: int) -> None:
    """The rest of the same cases."""
    _check_messages(chats, number, range(SEEDS, ALL))


async def test_batches_give_each_prompt_its_text(pair: HostPair, chats: HostPair) -> None:
    """In order, on threads and on the loop, side by side."""
    prompts = [f"The keeper counted {number} ships" for number in range(5)]
    expected = [pair.plain.invoke(one) for one in prompts]
    answers = [chats.plain.invoke(one).content for one in prompts]

    assert len(set(expected)) == len(prompts)
    assert expected == pair.fast.batch(prompts)
    assert expected == pair.fast.batch(prompts, config={"max_concurrency": 2})
    assert expected == await pair.fast.abatch(prompts)
    assert answers == [one.content for one in chats.fast.batch(prompts)]
    assert answers == [one.content for one in await chats.fast.abatch(prompts)]
    with ThreadPoolExecutor(6) as threads:
        assert expected * 2 == list(threads.map(pair.fast.invoke, prompts * 2))
    assert [] == pair.fast.batch([])


# What a call gives, and takes.


def test_a_result_says_what_it_took() -> None:
    """Tokens, passes and the reason of the end; the same behind a stream, and in all."""
    pair = HostPair.of(SpeculativeLLM, tiny_llama(), max_tokens=24)
    pair.teach(PROMPT, {}, Random(0))
    pair.drafter.rule = oracle
    heard, llm = Heard(), pair.fast
    result = llm.generate([PROMPT])
    list(llm.stream(PROMPT, config={"callbacks": [heard]}))
    infos = [result.generations[0][0].generation_info or {}, heard.ends[0].generation_info]
    for info in infos:
        stats = stats_of(info)

        assert "length" == info["finish_reason"]
        assert 24 == stats.tokens_written == info["ralmspec"]["usage"]["output_tokens"]
        assert stats.drafts_accepted > 12
        assert (stats.tokens_per_pass or 0) > 2
    assert (2, 48) == (llm.stats.calls, llm.stats.tokens_written)
    assert llm.stats.drafts_accepted > 24
    assert (llm.stats.tokens_per_pass or 0) > 2


def test_a_message_says_what_it_took(chats: HostPair) -> None:
    """In the places where LangChain's handlers and users look."""
    message = chats.fast.invoke(MESSAGES)
    prompt = chats.fast.prompt_of(MESSAGES)
    read = len(chats.fast.get_token_ids(prompt))
    chunks = list(chats.fast.stream(MESSAGES))
    with_usage = [one for one in chunks if one.usage_metadata]

    assert prompt == "<s>system: Count.\nuser: The ships?\nassistant: "
    assert {"input_tokens": read, "output_tokens": 24, "total_tokens": read + 24} == (
        message.usage_metadata
    )
    assert (message.response_metadata["model_name"], "length") == (
        "llama",
        message.response_metadata["finish_reason"],
    )
    assert stats_of(message.response_metadata).tokens_written == 24
    assert [chunks[-1]] == with_usage
    assert message.additional_kwargs == {}


def test_the_chat_templates_own_start_is_the_only_one() -> None:
    """A tokenizer that begins each text with BOS does not add another one."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = chat_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    chat = SpeculativeChatModel(model=tiny_llama(), tokenizer=tokenizer, drafter=None, max_tokens=2)
    tokens = tokenizer.encode("system: Count.\nuser: The ships?\nassistant: ")

    assert tokens[0] == 0
    assert len(tokens) == (chat.invoke(MESSAGES).usage_metadata or {})["input_tokens"]


async def test_handlers_hear_the_pieces(pair: HostPair, chats: HostPair) -> None:
    """Of streams, and of `invoke` where the model is told to stream."""
    for llm, given in ((pair.fast, PROMPT), (chats.fast, MESSAGES)):
        heard, awaited = Heard(), Heard()
        pieces = list(llm.stream(given, config={"callbacks": [heard]}))
        texts = [one if isinstance(one, str) else one.content for one in pieces]
        async for _ in llm.astream(given, config={"callbacks": [awaited]}):
            pass

        assert [one for one in texts if one] == [one for one in heard.pieces if one]
        assert heard.pieces == awaited.pieces
        assert len(heard.pieces) > 5
    streaming = SpeculativeChatModel(
        model=chats.fast.model, decoding=chats.fast.decoding, max_tokens=24, streaming=True
    )
    heard = Heard()
    whole = streaming.invoke(MESSAGES, config={"callbacks": [heard]})

    assert whole.content == "".join(heard.pieces) == chats.plain.invoke(MESSAGES).content


def test_a_call_has_settings_of_its_own(pair: HostPair) -> None:
    """As arguments, bound, and by the config; the object keeps its own."""
    options = {"temperature": 1.5, "seed": 3, "max_tokens": 9}
    expected = pair.plain.invoke(PROMPT, **options)
    chosen = pair.fast.configurable_fields(seed=ConfigurableField(id="seed"))
    seeded = {"configurable": {"seed": 3}}

    assert expected != pair.plain.invoke(PROMPT, **{**options, "seed": 4})
    assert expected == pair.fast.bind(**options).invoke(PROMPT)
    assert expected == chosen.invoke(PROMPT, config=seeded, temperature=1.5, max_tokens=9)
    assert expected == pair.fast.model_copy(update=options).invoke(PROMPT)
    own = pair.fast.model_copy(update={"stop": expected[3:5]})
    assert pair.plain.invoke(PROMPT, stop=[expected[3:5]], **options) == own.invoke(
        PROMPT, **options
    )
    assert expected == own.invoke(PROMPT, stop=[], **options)
    assert (pair.fast.seed, pair.fast.max_tokens) == (0, 24)


async def test_it_goes_into_chains(pair: HostPair, chats: HostPair) -> None:
    """Between a prompt and a parser; streamed, and told of by events."""
    chain = PromptTemplate.from_template("The {who} counted") | pair.fast | StrOutputParser()
    talk = ChatPromptTemplate.from_messages([("user", "{who}?")]) | chats.fast | StrOutputParser()
    for one, expected in (
        (chain, pair.plain.invoke("The keeper counted")),
        (talk, chats.plain.invoke("keeper?").content),
    ):
        events = [event async for event in one.astream_events({"who": "keeper"}, version="v2")]
        told = [event["data"]["chunk"] for event in events if "model_stream" in event["event"]]
        told += [event["data"]["chunk"] for event in events if "llm_stream" in event["event"]]

        assert expected == one.invoke({"who": "keeper"})
        assert expected == await one.ainvoke({"who": "keeper"})
        assert expected == "".join(one.stream({"who": "keeper"}))
        assert expected == "".join(
            str(getattr(piece, "text", None) or getattr(piece, "content", "")) for piece in told
        )


async def test_it_goes_into_an_agent(chats: HostPair) -> None:
    """LangGraph's, without tools; with tools it is refused."""
    from langchain.agents import create_agent
    from langchain_core.tools import tool

    @tool
    def count(what: str) -> int:
        """Count."""
        return len(what)

    agents = [create_agent(one, tools=[]) for one in (chats.plain, chats.fast)]
    asked: Any = {"messages": [("user", "The ships?")]}
    [slow, fast] = [one.invoke(asked)["messages"][-1] for one in agents]

    assert slow.content == fast.content != ""
    assert slow.usage_metadata == fast.usage_metadata
    with pytest.raises(NotImplementedError, match="calls no tools"):
        create_agent(chats.fast, tools=[count]).invoke(asked)


def test_the_hosts_cache_knows_it(pair: HostPair, chats: HostPair) -> None:
    """What was written is not written again, by any drafter; what is asked otherwise is."""
    for both, given in ((pair, PROMPT), (chats, MESSAGES)):
        cached = {"cache": InMemoryCache()}
        fast, plain = (one.model_copy(update=cached) for one in (both.fast, both.plain))
        first, calls = fast.invoke(given), (fast.stats.calls, plain.stats.calls)
        again = [one.invoke(given) for one in (fast, plain)]

        assert [getattr(first, "content", first)] * 2 == [
            getattr(one, "content", one) for one in again
        ]
        assert calls == (fast.stats.calls, plain.stats.calls)
        fast.model_copy(update={"temperature": 1.0}).invoke(given)
        assert calls[0] + 1 == fast.stats.calls


# Whom it leaves alone.


async def _beats_beside(work: Any) -> int:
    count = 0

    async def beat() -> None:
        nonlocal count
        while True:
            await asyncio.sleep(0.001)
            count += 1

    beating = asyncio.create_task(beat())
    await work
    beating.cancel()
    return count


async def test_the_event_loop_stays_free(pair: HostPair, chats: HostPair) -> None:
    """Others have their turn while a text is written, and while a new way is measured."""
    fresh = SpeculativeLLM(
        model=pair.plain.loaded().lm.model,
        tokenizer=chat_tokenizer(),
        decoding=drafting(SuffixDrafter()),
        max_tokens=24,
    )
    for work in (
        pair.fast.ainvoke(PROMPT),
        chats.fast.ainvoke(MESSAGES),
        pair.fast.abatch([PROMPT] * 3),
        fresh.ainvoke(PROMPT, temperature=0.9),
    ):
        assert await _beats_beside(work) > 3


async def test_what_is_given_up_leaves_nothing(pair: HostPair, chats: HostPair) -> None:
    """A stream that is closed, a task that is cancelled: caches are gone, the model is free."""
    for llm, given in ((pair.fast, PROMPT), (chats.fast, MESSAGES)):
        caches = llm.loaded().lm.caches
        kept, expected = len(caches), llm.invoke(given, max_tokens=300)
        stream = llm.stream(given, max_tokens=300)
        next(stream)
        stream.close()
        assert kept == len(caches)
        awaited = llm.astream(given, max_tokens=300)
        await anext(awaited)
        await awaited.aclose()
        await aeventually(lambda kept=kept, caches=caches: kept == len(caches))
        task = asyncio.create_task(llm.ainvoke(given, max_tokens=300))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await aeventually(lambda kept=kept, caches=caches: kept == len(caches))
        again = llm.invoke(given, max_tokens=300)
        assert getattr(expected, "content", expected) == getattr(again, "content", again)


# Where it comes from, and what is refused.


def test_it_is_loaded_from_a_folder(tmp_path: Path) -> None:
    """By its path alone; drafters by name, as an instance, several, none."""
    tiny_llama().save_pretrained(tmp_path)
    chat_tokenizer().save_pretrained(tmp_path)
    expected = SpeculativeLLM(model=tmp_path, drafter=None, max_tokens=8)
    texts = {expected.invoke(PROMPT)}
    for drafter in ("suffix", ["passages", SuffixDrafter()]):
        texts.add(SpeculativeLLM(model=str(tmp_path), drafter=drafter, max_tokens=8).invoke(PROMPT))
    chat = SpeculativeChatModel(model=tmp_path, drafter=None, max_tokens=8)

    named = decoding_of(["suffix", "passages"], None)

    assert named is not None
    assert [SuffixDrafter, PassageDrafter] == [type(one) for one in named.drafters]
    assert decoding_of(None, None) is None
    assert len(texts) == 1
    assert texts != {""}
    assert str(tmp_path) == expected.model_name == chat.model_name
    assert chat.invoke(MESSAGES).content


class Loud(SpeculativeLLM):
    """Overrides what a LangChain model implements."""

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._generate(*args, **kwargs)
        for [one] in result.generations:
            one.text += "!"
        return result

    def _stream(self, *args: Any, **kwargs: Any) -> Any:
        yield from super()._stream(*args, **kwargs)
        yield GenerationChunk(text="!")


class LoudChat(SpeculativeChatModel):
    """As that, for messages."""

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._generate(*args, **kwargs)
        result.generations[0].message.content += "!"  # type: ignore[operator]
        return result

    def _stream(self, *args: Any, **kwargs: Any) -> Any:
        yield from super()._stream(*args, **kwargs)
        yield ChatGenerationChunk(message=AIMessageChunk(content="!"))


@pytest.mark.parametrize("kind", [Loud, LoudChat])
async def test_what_a_subclass_overrides_is_called(kind: Any) -> None:
    """By the asynchronous methods, too."""
    llm = kind(model=tiny_llama(), tokenizer=chat_tokenizer(), drafter=None, max_tokens=4)
    texts = [
        llm.invoke(PROMPT),
        await llm.ainvoke(PROMPT),
        (await llm.abatch([PROMPT]))[0],
        "".join([piece if kind is Loud else piece.content for piece in llm.stream(PROMPT)]),
        "".join([piece if kind is Loud else piece.content async for piece in llm.astream(PROMPT)]),
    ]
    shown = [one if isinstance(one, str) else one.content for one in texts]

    assert shown[0].endswith("!")
    assert shown == [shown[0]] * 5


@pytest.mark.parametrize(("file", "damage"), DAMAGES[::3])
def test_a_damaged_folder_is_named(tmp_path: Path, file: str, damage: Any) -> None:
    """Whatever its files hold: no error of a parser comes through."""
    whole = saved(tmp_path / "whole", chat_tokenizer())
    folder = damaged(whole, tmp_path / "model", file, damage)

    for kind in (SpeculativeLLM, SpeculativeChatModel):
        with pytest.raises(ModelError, match="cannot be loaded as a causal model"):
            kind(model=str(folder))


def test_models_are_shared(pair: HostPair) -> None:
    """A copy, a `HuggingFaceLM`, and what another object has loaded are not loaded again."""
    lm = HuggingFaceLM(
        pair.plain.loaded().lm.model, tiny_tokenizer(), decoding=drafting(SuffixDrafter())
    )
    llm = SpeculativeLLM(model=lm, max_tokens=24)
    for copied in (copy.copy(llm), copy.deepcopy(llm), llm.model_copy(deep=True)):
        assert copied.model is llm.model
    again = SpeculativeLLM(model=llm.model, seed=3)
    bare = SpeculativeLLM(model=llm.model, drafter=None, max_tokens=24)
    bare_copy = llm.model_copy(update={"drafter": None})
    chat = SpeculativeChatModel(model=pair.fast.model, decoding=pair.fast.decoding)

    assert chat.model is pair.fast.model
    assert llm.loaded().lm.caches is lm.caches
    assert again.model is llm.model
    assert bare.loaded().lm.model is lm.model
    assert bare.loaded().lm.decoder.__class__.__name__ == "PlainDecoder"
    assert bare_copy.invoke(PROMPT) == bare.invoke(PROMPT) == llm.invoke(PROMPT)
    assert bare_copy.stats.drafts_accepted == 0 < bare_copy.stats.calls
    with pytest.raises(TypeError, match="Create it again"):
        pickle.dumps(llm)


def test_what_makes_no_model_is_refused(pair: HostPair) -> None:
    """At once, saying what was wrong, what was got, and what to do."""
    lm = pair.plain.loaded().lm
    made: dict[str, Any] = {"model": lm.model, "tokenizer": lm.tokenizer}
    refused: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"temperature": -1}, ConfigError, "temperature must be at least 0, got -1"),
        ({"temperature": "hot"}, ConfigError, "temperature must be a number, got 'hot'"),
        ({"top_k": -1}, ConfigError, "top_k must be at least 0"),
        ({"top_p": 1.5}, ConfigError, "top_p must be above 0 and at most 1"),
        ({"repetition_penalty": 0}, ConfigError, "repetition_penalty must be above 0"),
        ({"seed": 1.5}, ConfigError, "seed must be a whole number"),
        ({"max_tokens": 0}, ConfigError, "max_tokens must be at least 1"),
        ({"max_token": 3}, ConfigError, "max_token is not an option"),
        ({"stop": [3]}, ConfigError, "stop must be a text"),
        ({"stop": [""]}, ConfigError, "none empty"),
        ({"deadline_s": 0}, ConfigError, "deadline_s must be above 0"),
        ({"deadline_s": float("inf")}, ConfigError, "None: no deadline"),
        ({"drafter": "rest"}, ConfigError, r"one of \('suffix', 'passages'\).*got 'rest'"),
        ({"decoding": 3}, ConfigError, "decoding must be a Decoding"),
        ({"drafter": None, "decoding": Decoding()}, ConfigError, "both given"),
        ({"model": 3}, ConfigError, r"got builtins\.int"),
        ({"model": "/nowhere"}, ModelError, "There is no directory"),
        ({"tokenizer": None}, ConfigError, "needs its tokenizer"),
        ({"model": lm}, ConfigError, "has its tokenizer"),
    ]
    for given, kind, message in refused:
        with pytest.raises(kind, match=message):
            SpeculativeLLM(**{**made, **given})
    with pytest.raises(ModelError, match=r"has no chat template.*chat_template=.*SpeculativeLLM"):
        SpeculativeChatModel(model=lm.model, tokenizer=tiny_tokenizer(), drafter=None)
    with pytest.raises(ConfigError, match="chat_template must be a text, got 3"):
        SpeculativeChatModel(**made, chat_template=3, drafter=None)
    own = SpeculativeChatModel(
        model=lm.model, tokenizer=tiny_tokenizer(), drafter=None, max_tokens=4,
        chat_template="{% for one in messages %}[{{ one.content }}]{% endfor %}",
    )  # fmt: skip

    assert own.prompt_of(MESSAGES) == "[Count.][The ships?]"
    assert own.invoke(MESSAGES).content


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"max_token": 5}, TypeError, "did you mean 'max_tokens'"),
        ({"max_tokens": 2000}, ContextOverflowError, "the model's context is 512"),
        ({"max_tokens": 0}, ConfigError, "max_tokens must be at least 1"),
        ({"deadline_s": 1e-9}, DeadlineExceeded, "no answer within"),
        ({"tools": [{}]}, NotImplementedError, "'tools', but it calls no tools"),
    ],
)
async def test_errors_are_the_librarys(
    pair: HostPair, chats: HostPair, given: dict[str, Any], kind: type[Exception], message: str
) -> None:
    """Called, awaited and streamed; handlers hear of each."""
    for llm, asked in ((pair.fast, PROMPT), (chats.fast, MESSAGES)):
        heard = Heard()
        config: Any = {"callbacks": [heard]}
        with pytest.raises(kind, match=message):
            llm.invoke(asked, config=config, **given)
        with pytest.raises(kind, match=message):
            await llm.ainvoke(asked, config=config, **given)
        with pytest.raises(kind, match=message):
            list(llm.stream(asked, config=config, **given))
        with pytest.raises(kind, match=message):
            [piece async for piece in llm.astream(asked, config=config, **given)]

        assert [kind] * 4 == [type(error) for error in heard.errors]
    with pytest.raises(InputError, match="the prompt is empty"):
        SpeculativeLLM(
            model=pair.plain.loaded().lm.model, tokenizer=tiny_tokenizer(bos=False), drafter=None
        ).invoke("")


def test_messages_that_cannot_be_shown_are_refused(chats: HostPair) -> None:
    """Tools' messages, pictures, and what the template does not take."""
    call: Any = {"name": "count", "args": {}, "id": "1"}
    picture: Any = [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": "x"}]
    for messages, what in (
        ([ToolMessage("3", tool_call_id="1")], "a ToolMessage"),
        ([HumanMessage("a"), AIMessage("", tool_calls=[call])], "tool calls"),
        ([HumanMessage(picture)], r"only text, got content of \['image_url'\]"),
        ([], "does not take messages"),
    ):
        with pytest.raises(InputError, match=what):
            chats.fast.invoke(messages)
    strict = chats.fast.model_copy(
        update={"chat_template": "{{ raise_exception('one user alone') }}"}
    )
    with pytest.raises(InputError, match=r"messages of \['user'\]: one user alone"):
        strict.invoke("a")
    blocks: Any = [{"type": "text", "text": "The "}, {"type": "text", "text": "ships?"}]
    mixed = [ChatMessage("Count.", role="system"), HumanMessage(blocks)]

    assert chats.fast.prompt_of(MESSAGES) == chats.fast.prompt_of(mixed)
    for refuse in (chats.fast.bind_tools, chats.fast.with_structured_output):
        with pytest.raises(NotImplementedError, match="calls no tools"):
            refuse([])
