"""KNN-LM as a LangChain model: real tiny models, held against `KNNLanguageModel` run plainly."""

import asyncio
import copy
import pickle
from collections.abc import Awaitable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.load import dumpd
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import LLMResult
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import ConfigurableField
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_ralmspec import KNNLLM, SpeculativeRAG, stats_of
from langchain_ralmspec.pipeline import side_effects_of

from ralmspec_plugins import FixedStride, Settings
from ralmspec_plugins.adapters.side_effects import SideEffects
from ralmspec_plugins.errors import ConfigError, ContextOverflowError, DeadlineExceeded, InputError
from ralmspec_plugins.knn import KNNLanguageModel, build_datastore
from ralmspec_plugins.lm import Sampling
from ralmspec_plugins.testing.models import tiny_llama, tiny_tokenizer
from tests.langchain.stores.worlds import WordEmbeddings

TEXTS = [
    f"{who} {did} the ships that passed {where}."
    for who in ("The keeper", "The storm", "A señor")
    for did in ("counted", "sells", "smiles at")
    for where in ("the island", "at night", "before the storm", "the lighthouse")
]
PROMPTS = ["The keeper counted", "A señor smiles", "The storm sells the"]
LENGTH = 20


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KNNLanguageModel]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny matrices are slower on two
    model, tokenizer = tiny_llama(context=1024), tiny_tokenizer()
    store = build_datastore(TEXTS, tmp_path_factory.mktemp("knn") / "store", model, tokenizer)
    # The default schedule would see that there is nothing to hide here, and guess next to nothing.
    settings = Settings(schedule=FixedStride(stride=4, overlap=True))
    mixed: dict[str, Any] = {"k": 8, "temperature": 30.0, "weight": 0.6}
    with KNNLanguageModel(model, tokenizer, store, settings=settings, **mixed) as lm:
        yield lm
    torch.set_num_threads(before)


@pytest.fixture
def llm(lm: KNNLanguageModel) -> KNNLLM:
    return KNNLLM(lm=lm, max_tokens=LENGTH)


class Heard(BaseCallbackHandler):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.starts: list[dict[str, Any]] = []
        self.ends: list[LLMResult] = []
        self.errors: list[BaseException] = []

    def on_llm_start(self, serialized: Any, prompts: Any, **kwargs: Any) -> None:
        self.starts.append({"serialized": serialized, "prompts": prompts, **kwargs})

    def on_llm_new_token(self, token: str, **kwargs: Any) -> None:
        self.pieces.append(token)

    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        self.ends.append(response)

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.errors.append(error)


class HeardAsync(AsyncCallbackHandler):
    """Writes down the pieces it awaits."""

    def __init__(self) -> None:
        self.pieces: list[str] = []

    async def on_llm_new_token(self, token: str, **kwargs: Any) -> None:
        await asyncio.sleep(0)
        self.pieces.append(token)


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
    plain = KNNLLM(lm=lm, max_tokens=LENGTH, speculate=False)

    assert len(expected) > LENGTH
    assert expected == llm.invoke(prompt)
    assert expected == await llm.ainvoke(prompt)
    assert expected == plain.invoke(prompt)


def test_streams_settle_their_text(llm: KNNLLM, lm: KNNLanguageModel) -> None:
    """Every piece stays, and handlers hear each of them."""
    heard = Heard()
    pieces = list(llm.stream(PROMPTS[0], config={"callbacks": [heard]}))

    assert "".join(pieces) == plainly(lm, PROMPTS[0])
    assert [piece for piece in pieces if piece] == heard.pieces
    assert len(heard.pieces) > 5


async def test_asynchronous_streams_settle_their_text(llm: KNNLLM, lm: KNNLanguageModel) -> None:
    """As well, and their handlers are awaited."""
    heard = HeardAsync()
    stream = llm.astream(PROMPTS[1], config={"callbacks": [heard]})
    pieces = [piece async for piece in stream]

    assert "".join(pieces) == plainly(lm, PROMPTS[1])
    assert [piece for piece in pieces if piece] == heard.pieces


async def test_batches_give_each_prompt_its_text(llm: KNNLLM, lm: KNNLanguageModel) -> None:
    """In order, side by side or two at a time, on threads and on the loop."""
    expected = [plainly(lm, prompt) for prompt in PROMPTS]
    inputs: list[Any] = list(PROMPTS)

    assert expected == llm.batch(inputs)
    assert expected == llm.batch(inputs, config={"max_concurrency": 2})
    assert expected == await llm.abatch(inputs)
    assert [] == llm.batch([])


def test_a_result_says_what_it_took(llm: KNNLLM, lm: KNNLanguageModel) -> None:
    """Guesses, tokens and the reason of the end; the same behind a stream."""
    heard = Heard()
    result = llm.generate(PROMPTS[:2], callbacks=[heard])
    infos = [one[0].generation_info or {} for one in result.generations]
    stats = stats_of(infos[0])
    written = lm.generate(PROMPTS[0], max_tokens=LENGTH)
    read = len(written.state.draft.prompt_tokens)

    assert [LENGTH, LENGTH] == [stats_of(info).segments for info in infos]
    assert 0 < stats.accepted < stats.guesses
    assert infos[0]["finish_reason"] == "length"
    usage = {"input_tokens": read, "output_tokens": LENGTH, "total_tokens": read + LENGTH}
    assert infos[0]["ralmspec"]["usage"] == usage
    assert (result.llm_output or {})["token_usage"]["completion_tokens"] == 2 * LENGTH
    assert len(heard.ends) == 2


def test_a_stream_says_what_it_took(llm: KNNLLM) -> None:
    """To whom hears its end."""
    heard = Heard()
    list(llm.stream(PROMPTS[0], config={"callbacks": [heard]}))
    [[generation]] = heard.ends[0].generations

    assert stats_of(generation.generation_info or {}).segments == LENGTH


@pytest.mark.parametrize("own", [True, False])
async def test_stop_strings_end_a_text(lm: KNNLanguageModel, own: bool) -> None:
    """Those of a call take the place of the model's own; a stream never shows part of one."""
    whole = plainly(lm, PROMPTS[0])
    mark = whole[9:12]
    expected = whole[: whole.index(mark)]
    llm = KNNLLM(lm=lm, max_tokens=LENGTH, stop=(mark,) if own else ("never",))
    given: dict[str, Any] = {} if own else {"stop": [mark]}
    heard = Heard()
    text = llm.invoke(PROMPTS[0], config={"callbacks": [heard]}, **given)
    [[generation]] = heard.ends[0].generations

    assert expected == text
    assert "stop" == (generation.generation_info or {})["finish_reason"]
    assert expected == "".join(llm.stream(PROMPTS[0], **given))
    assert expected == "".join([piece async for piece in llm.astream(PROMPTS[0], **given)])
    assert [expected] == llm.batch([PROMPTS[0]], **given)
    assert whole == llm.invoke(PROMPTS[0], stop=[])


async def test_a_call_has_settings_of_its_own(lm: KNNLanguageModel) -> None:
    """As arguments, bound, and by the config; the object keeps its own."""
    hot = Sampling(temperature=1.5)
    llm = KNNLLM(lm=lm, max_tokens=LENGTH, sampling=hot)
    one, other = (plainly(lm, PROMPTS[0], sampling=hot, seed=seed) for seed in (1, 2))
    chosen = llm.configurable_fields(seed=ConfigurableField(id="seed"))

    assert one != other
    assert one == llm.invoke(PROMPTS[0], seed=1)
    assert other == llm.bind(seed=2).invoke(PROMPTS[0])
    assert other == chosen.invoke(PROMPTS[0], config={"configurable": {"seed": 2}})
    assert plainly(lm, PROMPTS[0], max_tokens=4) == llm.invoke(
        PROMPTS[0], max_tokens=4, sampling=lm.sampling, plain=True
    )
    assert one == "".join(llm.stream(PROMPTS[0], seed=1))
    assert [one, one] == llm.batch([PROMPTS[0]] * 2, seed=1)
    assert [other, other] == await llm.abatch([PROMPTS[0]] * 2, seed=2)
    assert (llm.seed, llm.max_tokens) == (0, LENGTH)


async def test_it_goes_into_a_chain(llm: KNNLLM, lm: KNNLanguageModel) -> None:
    """Between a prompt and a parser, with the config's names and tags."""
    chain = PromptTemplate.from_template("The {who} counted") | llm | StrOutputParser()
    expected = plainly(lm, "The keeper counted")
    heard = Heard()
    config: Any = {"callbacks": [heard], "run_name": "told", "tags": ["knn"], "metadata": {"a": 1}}
    streamed = [piece async for piece in chain.astream({"who": "keeper"})]

    assert expected == chain.invoke({"who": "keeper"}, config=config)
    assert expected == await chain.ainvoke({"who": "keeper"})
    assert expected == "".join(chain.stream({"who": "keeper"}))
    assert expected == "".join(streamed)
    assert len(streamed) > 5
    [start] = heard.starts
    assert ["The keeper counted"] == start["prompts"]
    assert "knn" in start["tags"]
    assert (1, LENGTH) == (start["metadata"]["a"], start["metadata"]["ls_max_tokens"])


async def test_its_events_have_the_text(llm: KNNLLM, lm: KNNLanguageModel) -> None:
    """`astream_events` of a chain tells each piece as the model's."""
    chain = PromptTemplate.from_template("{start}") | llm
    told = [one async for one in chain.astream_events({"start": PROMPTS[2]}, version="v2")]
    pieces = [one["data"]["chunk"].text for one in told if one["event"] == "on_llm_stream"]

    assert plainly(lm, PROMPTS[2]) == "".join(pieces)


def test_a_stream_that_is_given_up_leaves_nothing(llm: KNNLLM, lm: KNNLanguageModel) -> None:
    """Its caches are gone, and the next call is as before."""
    stream: Any = llm.stream(PROMPTS[0])
    first = [next(stream), next(stream)]
    stream.close()

    assert plainly(lm, PROMPTS[0]).startswith("".join(first))
    assert len(lm.model.caches) == 0
    assert plainly(lm, PROMPTS[0]) == llm.invoke(PROMPTS[0])


async def test_the_event_loop_stays_free(llm: KNNLLM) -> None:
    """Others have their turn while a text is written."""
    _, beside_one = await beats_beside(llm.ainvoke(PROMPTS[0]))
    _, beside_many = await beats_beside(llm.abatch(list(PROMPTS)))

    assert min(beside_one, beside_many) > 3


def test_threads_share_it(llm: KNNLLM, lm: KNNLanguageModel) -> None:
    """Twelve calls at once, each with its own text."""
    asked = PROMPTS * 4
    with ThreadPoolExecutor(6) as threads:
        texts = list(threads.map(llm.invoke, asked))

    assert [plainly(lm, prompt) for prompt in asked] == texts


@pytest.mark.parametrize(
    ("prompt", "given", "kind", "message"),
    [
        ("", {}, InputError, "the prompt is empty"),
        ("The keeper", {"max_tokens": 2000}, ContextOverflowError, "the model's context is 1024"),
        ("The keeper", {"max_token": 5}, TypeError, "did you mean 'max_tokens'"),
        ("The keeper", {"max_tokens": 0}, ConfigError, "max_tokens must be at least 1"),
        ("The keeper", {"deadline_s": 1e-9}, DeadlineExceeded, "no answer within"),
    ],
)
async def test_errors_are_the_library_s(
    llm: KNNLLM, prompt: str, given: dict[str, Any], kind: type[Exception], message: str
) -> None:
    """Called, awaited, streamed and in a batch; handlers hear of each."""
    heard = Heard()
    config: Any = {"callbacks": [heard]}
    with pytest.raises(kind, match=message):
        llm.invoke(prompt, config=config, **given)
    with pytest.raises(kind, match=message):
        await llm.ainvoke(prompt, config=config, **given)
    with pytest.raises(kind, match=message):
        list(llm.stream(prompt, config=config, **given))
    with pytest.raises(kind, match=message):
        [piece async for piece in llm.astream(prompt, config=config, **given)]
    with pytest.raises(kind, match=message):
        llm.batch([prompt, prompt], config=config, **given)
    [failed, _] = llm.batch([prompt, prompt], return_exceptions=True, **given)

    assert isinstance(failed, kind)
    assert [kind] * 6 == [type(error) for error in heard.errors]  # a batch has two runs


def test_what_makes_no_model_is_refused(lm: KNNLanguageModel) -> None:
    """At once: another kind of object, a number out of range, an unknown field."""
    with pytest.raises(ConfigError, match=r"must be a KNNLanguageModel, got builtins\.str"):
        KNNLLM(lm="gpt2")
    with pytest.raises(ConfigError, match="max_tokens must be at least 1"):
        KNNLLM(lm=lm, max_tokens=0)
    with pytest.raises(ConfigError, match="none empty"):
        KNNLLM(lm=lm, stop=("",))
    for name, value in (
        ("max_token", 3),
        ("max_tokens", "3"),
        ("deadline_s", -1),
        ("stop", [""]),
        ("speculate", "no"),
        ("sampling", 3),
    ):
        with pytest.raises(ConfigError, match=name):
            KNNLLM(lm=lm, **{name: value})


def test_a_copy_has_the_same_model(llm: KNNLLM) -> None:
    """Hosts copy their objects deeply; pickling says why it cannot be."""
    for copied in (copy.copy(llm), copy.deepcopy(llm), llm.model_copy(deep=True)):
        assert copied.lm is llm.lm
        assert llm.invoke("the sea", max_tokens=3) == copied.invoke("the sea", max_tokens=3)
    with pytest.raises(TypeError, match="Create it again"):
        pickle.dumps(llm)


def test_it_is_known_by_all_that_a_text_depends_on(lm: KNNLanguageModel) -> None:
    """And by nothing else: how it speculates and its deadline change no text."""
    llm = KNNLLM(lm=lm)
    known = llm._identifying_params
    wider = KNNLanguageModel(
        lm.model.model, lm.model.tokenizer, lm.datastore, k=9, temperature=30.0, weight=0.6
    )
    others: list[dict[str, Any]] = [
        {"max_tokens": 3},
        {"seed": 1},
        {"stop": ("a",)},
        {"sampling": Sampling()},
        {"lm": wider},
    ]

    assert known == KNNLLM(lm=lm, speculate=False, deadline_s=9.0)._identifying_params
    assert all(llm.model_copy(update=one)._identifying_params != known for one in others)
    assert (known["model_name"], llm._llm_type) == (llm.model_name, "ralmspec-knn")
    wider.close()


def test_its_calls_have_no_side_effects(lm: KNNLanguageModel) -> None:
    """The first call reads the model's weights and keeps what names them: no state of answers."""
    llm = KNNLLM(lm=lm, max_tokens=LENGTH)
    assert side_effects_of(llm) is None  # so it need not be watched
    effects = SideEffects(llm)
    with effects.watched():
        assert llm.invoke(PROMPTS[0])

    assert (effects.found, effects.may_guess()) == (None, True)


def test_the_host_s_cache_knows_it(lm: KNNLanguageModel) -> None:
    """What was written is not written again, and what was asked otherwise is."""
    cache = InMemoryCache()
    llm, longer = (KNNLLM(lm=lm, max_tokens=tokens, cache=cache) for tokens in (4, 8))
    whole = plainly(lm, PROMPTS[0], max_tokens=8)
    stopping = KNNLLM(lm=lm, max_tokens=8, cache=cache, stop=(whole[4:6],))
    heard = Heard()
    texts = [llm.invoke(PROMPTS[0], config={"callbacks": [heard]}) for _ in range(2)]

    assert [plainly(lm, PROMPTS[0], max_tokens=4)] * 2 == texts
    assert len(heard.starts) == 1
    assert whole == longer.invoke(PROMPTS[0])
    assert whole[: whole.index(whole[4:6])] == stopping.invoke(PROMPTS[0])


def test_it_is_not_serialised(llm: KNNLLM) -> None:
    """Neither weights nor datastore stand in what handlers and traces are told."""
    told = dumpd(llm)

    assert (told["type"], told["id"][-1]) == ("not_implemented", "KNNLLM")
    assert "KNNLanguageModel" not in repr(llm)
    assert "lm" not in llm.model_dump()


def test_tokens_are_counted_as_the_model_counts(llm: KNNLLM, lm: KNNLanguageModel) -> None:
    """Without asking the hub for a tokenizer."""
    assert len(lm.model.encode(PROMPTS[1])) == llm.get_num_tokens(PROMPTS[1])
    assert [7] == KNNLLM(lm=lm, custom_get_token_ids=lambda _: [7]).get_token_ids("any")


def test_it_writes_for_speculative_retrieval(llm: KNNLLM) -> None:
    """It can be bounded, so it takes a sentence at a time behind a retriever of passages."""
    store = InMemoryVectorStore.from_texts(TEXTS, WordEmbeddings())
    parts: dict[str, Any] = {
        "retriever": store.as_retriever(search_kwargs={"k": 1}),
        "llm": llm,
        "prompt": PromptTemplate.from_template("{context}\n{input}\n"),
        "max_tokens": 24,
    }
    with_it, without = SpeculativeRAG(**parts), SpeculativeRAG(**parts, speculate=False)
    reply, plain = with_it.invoke("the keeper"), without.invoke("the keeper")
    with_it.close()
    without.close()

    assert len(plain["answer"]) > 20
    assert (plain["answer"], plain["context"]) == (reply["answer"], reply["context"])
