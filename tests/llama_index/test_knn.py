"""KNN-LM as a LlamaIndex model: real tiny models, held against `KNNLanguageModel` run plainly."""

import asyncio
from collections.abc import Awaitable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from llama_index.core import PromptTemplate, VectorStoreIndex
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.callbacks import (
    CallbackManager,
    CBEventType,
    EventPayload,
    TokenCountingHandler,
)
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.llm import (
    LLMCompletionEndEvent,
    LLMCompletionInProgressEvent,
)
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.schema import TextNode
from llama_index_ralmspec import KNNLLM, SpeculativeQueryEngine
from pydantic import PrivateAttr

from ralmspec_plugins import FixedStride, Settings
from ralmspec_plugins.adapters.events import stats_in
from ralmspec_plugins.errors import ConfigError, ContextOverflowError, InputError
from ralmspec_plugins.knn import KNNLanguageModel, build_datastore
from ralmspec_plugins.lm import Sampling
from ralmspec_plugins.testing.models import tiny_llama, tiny_tokenizer
from tests.llama_index.worlds import WordEmbedding

TEXTS = [
    f"{who} {did} the ships that passed {where}."
    for who in ("The keeper", "The storm", "A señor")
    for did in ("counted", "sells", "smiles at")
    for where in ("the island", "at night", "before the storm", "the lighthouse")
]
PROMPTS = ["The keeper counted", "A señor smiles", "The storm sells the"]
LENGTH = 20
CONTEXT = 1024


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KNNLanguageModel]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny matrices are slower on two
    model, tokenizer = tiny_llama(context=CONTEXT), tiny_tokenizer()
    store = build_datastore(TEXTS, tmp_path_factory.mktemp("knn") / "store", model, tokenizer)
    # The default schedule would see that there is nothing to hide here, and guess next to nothing.
    settings = Settings(schedule=FixedStride(stride=4, overlap=True))
    mixed: dict[str, Any] = {"k": 8, "temperature": 30.0, "weight": 0.6}
    with KNNLanguageModel(model, tokenizer, store, settings=settings, **mixed) as lm:
        yield lm
    torch.set_num_threads(before)


@pytest.fixture
def llm(lm: KNNLanguageModel) -> KNNLLM:
    return KNNLLM(lm, max_tokens=LENGTH)


class Heard(BaseCallbackHandler):
    """Writes down the starts and ends of model calls."""

    def __init__(self) -> None:
        super().__init__([], [])
        self.starts: list[Any] = []
        self.ends: list[Any] = []

    def on_event_start(self, event_type: Any, payload: Any = None, *_: Any, **__: Any) -> str:
        if event_type == CBEventType.LLM:
            self.starts.append(payload)
        return ""

    def on_event_end(self, event_type: Any, payload: Any = None, *_: Any, **__: Any) -> None:
        if event_type == CBEventType.LLM:
            self.ends.append(payload)

    def start_trace(self, trace_id: Any = None) -> None: ...

    def end_trace(self, trace_id: Any = None, trace_map: Any = None) -> None: ...


class Events(BaseEventHandler):
    """Keeps the host's newer events."""

    _kept: list[Any] = PrivateAttr(default_factory=list)

    def handle(self, event: Any, **_: Any) -> None:
        self._kept.append(event)


@pytest.fixture
def events() -> Iterator[Events]:
    handler = Events()
    root = get_dispatcher()
    root.add_event_handler(handler)
    yield handler
    root.event_handlers.remove(handler)


def plainly(lm: KNNLanguageModel, prompt: str, **options: Any) -> str:
    """Write by the plain loop."""
    return lm.generate(prompt, plain=True, **{"max_tokens": LENGTH, **options}).text


async def beats_beside(work: Awaitable[Any]) -> tuple[Any, int]:
    """Await something, and count how often another task has its turn meanwhile."""
    count = 0

    async def beat() -> None:
        nonlocal count
        while True:
            await asyncio.sleep(0.001)
            count += 1

    beating = asyncio.create_task(beat())
    given = await work
    beating.cancel()
    return given, count


@pytest.mark.parametrize("prompt", PROMPTS)
async def test_texts_are_those_of_the_plain_loop(
    llm: KNNLLM, lm: KNNLanguageModel, prompt: str
) -> None:
    """Called and awaited, with speculation and without."""
    expected = plainly(lm, prompt)

    assert len(expected) > LENGTH
    assert expected == llm.complete(prompt).text
    assert expected == (await llm.acomplete(prompt)).text
    assert expected == KNNLLM(lm, max_tokens=LENGTH, speculate=False).complete(prompt).text


async def test_streams_settle_their_text(llm: KNNLLM, lm: KNNLanguageModel) -> None:
    """Each response has all of the text so far, and what is new; nothing is taken back."""
    expected = plainly(lm, PROMPTS[0])
    responses = list(llm.stream_complete(PROMPTS[0]))
    awaited = [one async for one in await llm.astream_complete(PROMPTS[0])]
    for given in (responses, awaited):
        so_far = ""
        for one in given:
            so_far += one.delta or ""
            assert one.text == so_far
        assert len(given) > 5

        assert expected == so_far


async def test_messages_are_shown_as_one_text(lm: KNNLanguageModel) -> None:
    """By the host's own way, or by the user's; called, awaited and streamed."""
    messages = [
        ChatMessage(role=MessageRole.SYSTEM, content="Count."),
        ChatMessage(role=MessageRole.USER, content="The keeper"),
    ]
    plain = KNNLLM(lm, max_tokens=LENGTH)
    own = KNNLLM(
        lm, max_tokens=LENGTH, messages_to_prompt=lambda all_: str(all_[-1].content) + " counted"
    )
    assert plain.messages_to_prompt is not None
    for llm, shown in ((plain, plain.messages_to_prompt(messages)), (own, "The keeper counted")):
        expected = plainly(lm, shown)

        assert expected == llm.chat(messages).message.content
        assert expected == (await llm.achat(messages)).message.content
        assert expected == "".join(one.delta or "" for one in llm.stream_chat(messages))
        pieces = [one.delta or "" async for one in await llm.astream_chat(messages)]
        assert expected == "".join(pieces)
        assert len(pieces) > 5


def test_prompts_are_wrapped_once(lm: KNNLanguageModel) -> None:
    """`completion_to_prompt` is for what comes from outside, as with the host's own models."""
    llm = KNNLLM(lm, max_tokens=LENGTH, completion_to_prompt=lambda text: f"The {text}")
    expected = plainly(lm, "The keeper")

    assert expected == llm.complete("keeper").text
    assert expected == llm.complete("The keeper", formatted=True).text
    assert expected == llm.predict(PromptTemplate("{who}"), who="keeper")
    assert expected == "".join(llm.stream(PromptTemplate("{who}"), who="keeper"))


async def test_a_response_says_what_it_took(llm: KNNLLM) -> None:
    """Guesses, tokens and the reason of the end: of a text, a chat, and a stream's last piece."""
    streamed = list(llm.stream_complete(PROMPTS[0]))
    raws = [
        llm.complete(PROMPTS[0]).raw,
        (await llm.achat([ChatMessage(content="The keeper")])).raw,
        streamed[-1].raw,
    ]
    for raw in raws:
        stats = stats_in(raw, "a response")

        assert (LENGTH, "length") == (stats.segments, raw["finish_reason"])
        assert LENGTH == raw["usage"]["output_tokens"]
        assert 0 < stats.accepted < stats.guesses
    assert all(one.raw is None for one in streamed[:-1])


async def test_handlers_hear_it(lm: KNNLanguageModel, events: Events) -> None:
    """Once for each call, with the whole text; the host's own counter counts its tokens."""
    counter, heard = TokenCountingHandler(tokenizer=str.split), Heard()
    llm = KNNLLM(lm, max_tokens=LENGTH, callback_manager=CallbackManager([counter, heard]))
    expected = plainly(lm, PROMPTS[0])
    llm.complete(PROMPTS[0])
    await llm.acomplete(PROMPTS[0])
    pieces = list(llm.stream_complete(PROMPTS[0]))
    texts = [end[EventPayload.COMPLETION].text for end in heard.ends]
    ended = [one for one in events._kept if isinstance(one, LLMCompletionEndEvent)]
    going = [one for one in events._kept if isinstance(one, LLMCompletionInProgressEvent)]

    assert [expected] * 3 == texts
    assert [expected] * 3 == [one.response.text for one in ended]
    assert len(pieces) == len(going)
    assert 3 == len(heard.starts)
    assert 3 * LENGTH == counter.completion_llm_token_count
    assert 3 * len(lm.model.encode(PROMPTS[0])) == counter.prompt_llm_token_count


@pytest.mark.parametrize("own", [True, False])
async def test_stop_strings_end_a_text(lm: KNNLanguageModel, own: bool) -> None:
    """Those of a call take the place of the model's own; a stream never shows part of one."""
    whole = plainly(lm, PROMPTS[0])
    mark = whole[9:12]
    expected = whole[: whole.index(mark)]
    llm = KNNLLM(lm, max_tokens=LENGTH, stop=mark if own else ["never"])
    given: dict[str, Any] = {} if own else {"stop": [mark]}
    response = llm.complete(PROMPTS[0], **given)

    assert expected == response.text
    assert "stop" == response.raw["finish_reason"]
    assert [expected] == [list(llm.stream_complete(PROMPTS[0], **given))[-1].text]
    assert expected == (await llm.acomplete(PROMPTS[0], **given)).text
    assert whole == llm.complete(PROMPTS[0], stop=[]).text


def test_a_call_has_settings_of_its_own(lm: KNNLanguageModel) -> None:
    """The object keeps its own."""
    hot = Sampling(temperature=1.5)
    llm = KNNLLM(lm, max_tokens=LENGTH, sampling=hot)
    one, other = (plainly(lm, PROMPTS[0], sampling=hot, seed=seed) for seed in (1, 2))

    assert one != other
    assert [one, other] == [llm.complete(PROMPTS[0], seed=seed).text for seed in (1, 2)]
    assert other == llm.model_copy(update={"seed": 2}).complete(PROMPTS[0]).text
    assert (
        plainly(lm, PROMPTS[0], max_tokens=4)
        == llm.complete(PROMPTS[0], max_tokens=4, sampling=lm.sampling, plain=True).text
    )
    assert (llm.seed, llm.max_tokens) == (0, LENGTH)


def test_it_says_what_it_is(llm: KNNLLM, lm: KNNLanguageModel) -> None:
    """Context and output for the host's prompt helper; neither weights nor datastore elsewhere."""
    metadata = llm.metadata
    payload = llm.to_payload()

    assert (CONTEXT, LENGTH) == (metadata.context_window, metadata.num_output)
    assert not metadata.is_chat_model
    assert "ralmspec_knn_llm" == payload["class_name"]
    assert llm.lm is lm
    assert "KNNLanguageModel" not in repr(llm) + str(llm.to_dict())


@pytest.fixture
def index(lm: KNNLanguageModel, monkeypatch: pytest.MonkeyPatch) -> VectorStoreIndex:
    """An index of the texts; the host counts tokens as the model does, to cut prompts."""
    monkeypatch.setattr("llama_index.core.global_tokenizer", lm.model.encode)
    nodes = [TextNode(id_=f"n{at}", text=text) for at, text in enumerate(TEXTS)]
    return VectorStoreIndex(nodes, embed_model=WordEmbedding())


async def test_a_query_engine_writes_with_it(
    index: VectorStoreIndex, llm: KNNLLM, lm: KNNLanguageModel
) -> None:
    """Called, awaited and streamed, as with a model that writes the plain loop's text."""
    plain = KNNLLM(lm, max_tokens=LENGTH, speculate=False)
    expected = str(index.as_query_engine(llm=plain).query("What did the keeper count?"))
    engine = index.as_query_engine(llm=llm)
    streaming = index.as_query_engine(llm=llm, streaming=True)
    streamed: Any = streaming.query("What did the keeper count?")

    assert len(expected) > LENGTH
    assert expected == str(engine.query("What did the keeper count?"))
    assert expected == str(await engine.aquery("What did the keeper count?"))
    assert expected == "".join(streamed.response_gen)


def test_a_chat_engine_writes_with_it(llm: KNNLLM, lm: KNNLanguageModel) -> None:
    """Its history holds the text, and no report."""
    engine = SimpleChatEngine.from_defaults(llm=llm, memory=ChatMemoryBuffer.from_defaults())
    response = engine.chat("The keeper")
    [asked, answered] = engine.chat_history

    assert (asked.content, str(response)) == ("The keeper", answered.content)
    assert {} == answered.additional_kwargs


def test_it_writes_for_speculative_retrieval(index: VectorStoreIndex, llm: KNNLLM) -> None:
    """It can be bounded, so it takes a sentence at a time behind a retriever of nodes."""
    template = PromptTemplate("{context_str}\n{query_str}\n")
    parts: dict[str, Any] = {
        "llm": llm,
        "similarity_top_k": 1,
        "text_qa_template": template,
        "workload": "sentences",
        "max_tokens": 24,
    }
    with (
        SpeculativeQueryEngine.from_index(index, **parts) as fast,
        SpeculativeQueryEngine.from_index(index, speculate=False, **parts) as slow,
    ):
        expected, actual = slow.query("the keeper"), fast.query("the keeper")

    assert len(str(expected)) > 20
    assert str(expected) == str(actual)
    assert expected.source_nodes == actual.source_nodes


def test_a_stream_that_is_given_up_leaves_nothing(llm: KNNLLM, lm: KNNLanguageModel) -> None:
    """Its caches are gone, and the next call is as before."""
    stream: Any = llm.stream_complete(PROMPTS[0])
    text = [next(stream), next(stream)][-1].text
    stream.close()
    del stream

    assert plainly(lm, PROMPTS[0]).startswith(text)
    assert len(lm.model.caches) == 0
    assert plainly(lm, PROMPTS[0]) == llm.complete(PROMPTS[0]).text


async def test_the_event_loop_stays_free(llm: KNNLLM) -> None:
    """Others have their turn while a text is written, also of a chat."""
    _, beside_text = await beats_beside(llm.acomplete(PROMPTS[0]))
    _, beside_chat = await beats_beside(llm.achat([ChatMessage(content="The keeper")]))

    assert min(beside_text, beside_chat) > 3


def test_threads_share_it(llm: KNNLLM, lm: KNNLanguageModel) -> None:
    """Twelve calls at once, each with its own text."""
    asked = PROMPTS * 4
    with ThreadPoolExecutor(6) as threads:
        texts = [one.text for one in threads.map(llm.complete, asked)]

    assert [plainly(lm, prompt) for prompt in asked] == texts


@pytest.mark.parametrize(
    ("prompt", "given", "kind", "message"),
    [
        ("", {}, InputError, "the prompt is empty"),
        ("The keeper", {"max_tokens": 2000}, ContextOverflowError, "the model's context is 1024"),
        ("The keeper", {"max_token": 5}, TypeError, "max_token"),
        ("The keeper", {"max_tokens": 0}, ConfigError, "max_tokens must be at least 1"),
    ],
)
async def test_errors_are_the_library_s(
    llm: KNNLLM, prompt: str, given: dict[str, Any], kind: type[Exception], message: str
) -> None:
    """Called, awaited and streamed."""
    with pytest.raises(kind, match=message):
        llm.complete(prompt, **given)
    with pytest.raises(kind, match=message):
        await llm.acomplete(prompt, **given)
    with pytest.raises(kind, match=message):
        list(llm.stream_complete(prompt, **given))
    with pytest.raises(kind, match=message):
        [one async for one in await llm.astream_complete(prompt, **given)]


def test_what_makes_no_model_is_refused(lm: KNNLanguageModel) -> None:
    """At once: another kind of object, a number out of range, an unknown argument."""
    other: Any = "gpt2"
    with pytest.raises(ConfigError, match=r"must be a KNNLanguageModel, got builtins\.str"):
        KNNLLM(other)
    with pytest.raises(ConfigError, match="max_tokens must be at least 1"):
        KNNLLM(lm, max_tokens=0)
    with pytest.raises(TypeError, match="did you mean 'max_tokens'"):
        KNNLLM(lm, max_token=3)
    wrong: list[dict[str, Any]] = [{"max_tokens": "3"}, {"max_tokens": True}, {"seed": 1.5}]
    wrong += [{"sampling": 3}, {"deadline_s": "1"}, {"stop": [3]}, {"stop": 3}]
    for given in wrong:
        with pytest.raises(ConfigError, match=f"{next(iter(given))} must be"):
            KNNLLM(lm, **given)
        with pytest.raises(ConfigError, match=f"{next(iter(given))} must be"):
            KNNLLM(lm).complete(PROMPTS[0], **given)
    with pytest.raises(ConfigError, match="speculate must be True or False, got 'no'"):
        KNNLLM(lm, speculate="no")  # type: ignore[arg-type]
