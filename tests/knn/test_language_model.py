"""KNN-LM ready to use: real tiny models through both engines, and what is refused."""

import asyncio
import itertools
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerFast as Tokenizer

from ralmspec_plugins import Continuous, FixedStride, OptimalStride, Settings, plain
from ralmspec_plugins.errors import (
    Closed,
    ConfigError,
    ContextOverflowError,
    InputError,
    ModelError,
)
from ralmspec_plugins.knn.build import build_datastore
from ralmspec_plugins.knn.cache import NeighbourCache
from ralmspec_plugins.knn.datastore import Datastore
from ralmspec_plugins.knn.language_model import KNNLanguageModel
from ralmspec_plugins.knn.model import LogProbSampler
from ralmspec_plugins.knn.search import ExactSearch, open_search
from ralmspec_plugins.knn.workload import KNNLM
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.retrieval.numpy_flat import InTurn, OwnThreads
from ralmspec_plugins.scheduling.schedules import Schedule
from ralmspec_plugins.speculators.replica import Replica
from ralmspec_plugins.testing.models import tiny_gpt2, tiny_llama, tiny_tokenizer
from ralmspec_plugins.types import Answer, Request

STORY = "the keeper counted ships that passed island before storm and sells crêpes at night"
WORDS = STORY.split()
TEMPERATURE = 30.0  # keys of random models are far apart
WEIGHTS = (0.1, 0.25, 0.65, 1.0)
KS = (1, 8, 64, 1024)
SCHEDULES: tuple[Schedule, ...] = (
    Continuous(),
    Continuous(window=4, lanes=2),
    OptimalStride(overlap=False),
    OptimalStride(overlap=True, gamma_limit=0.95),
    *(FixedStride(stride=stride, overlap=overlap) for stride in (1, 2, 4, 8) for overlap in (0, 1)),
)
SAMPLINGS = (Greedy(), Sampling(temperature=0.8), Greedy(repetition_penalty=1.3))


def texts(count: int, seed: int) -> list[str]:
    """Make sentences whose parts come again in others."""
    dice = random.Random(seed)
    halves = [" ".join(dice.choices(WORDS, k=6)) for _ in range(6)]
    return [f"{dice.choice(halves)}, {dice.choice(halves)}." for _ in range(count)]


STORED = texts(60, 1)
MANY = 208


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def network(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_gpt2() if request.param == "gpt2" else tiny_llama()


@pytest.fixture(scope="module")
def store(
    network: PreTrainedModel, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Datastore:
    folder = tmp_path_factory.mktemp("store") / "towns"
    return build_datastore(STORED, folder, network, tokenizer)


@pytest.fixture
def lm(
    network: PreTrainedModel, tokenizer: Tokenizer, store: Datastore
) -> Iterator[KNNLanguageModel]:
    with KNNLanguageModel(network, tokenizer, store, k=8, temperature=TEMPERATURE) as lm:
        yield lm


def the_plain_loop(lm: KNNLanguageModel, request: Request, sampling: Any = None) -> Answer:
    """Answer by the definition, without an engine."""
    chooser = LogProbSampler(sampling if sampling is not None else lm.sampling)
    return plain(KNNLM(lm.model, chooser, lm.mixing), lm.retriever, request)


def check_equal(expected: Answer, actual: Answer) -> None:
    """Hold tokens, text and the whole record together, to the bit."""
    assert expected.state.tokens == actual.state.tokens
    assert expected.text == actual.text
    assert expected.retrieved == actual.retrieved


def starts(count: int, dice: random.Random) -> list[str]:
    """Make starts of texts, no two alike: a piece of one that is stored, and some words."""
    found: set[str] = set()
    while len(found) < count:
        words = dice.choice(STORED).split()
        first = dice.randrange(len(words) - 3)
        piece = words[first : first + dice.randint(2, 6)]
        found.add(" ".join([*piece, *dice.choices(WORDS, k=dice.randint(0, 2))]))
    return sorted(found, key=lambda _: dice.random())


def turns(prompts: int, dice: random.Random) -> Iterator[tuple[str, Schedule, int]]:
    """Give so many prompts; every schedule meets every k, as far as there are prompts."""
    pairs = list(itertools.product(SCHEDULES, KS))
    dice.shuffle(pairs)
    for prompt, (schedule, k) in zip(starts(prompts, dice), itertools.cycle(pairs), strict=False):
        yield prompt, schedule, k


def check_over(
    network: PreTrainedModel,
    tokenizer: Tokenizer,
    store: Datastore,
    prompts: int,
    index: Path | None = None,
) -> int:
    """Answer prompts under settings that are drawn for each of them, on both engines.

    With an index, named after its search, neighbours are found by that.
    """
    dice, wrong = random.Random(str(index and index.name)), 0
    for seed, (prompt, schedule, k) in enumerate(turns(prompts, dice)):
        search = "exact" if index is None else open_search(index.name, store, k=k, index=index)
        with KNNLanguageModel(
            network,
            tokenizer,
            store,
            k=k,
            weight=dice.choice(WEIGHTS),
            temperature=TEMPERATURE,
            search=search,
            sampling=(sampling := dice.choice(SAMPLINGS)),
            settings=Settings(schedule=schedule),
            following=dice.choice((10, 1, 5)),
            followed=dice.choice((None, 1, 2)),
            replica=ExactSearch(store, k=2) if dice.random() < 0.3 else None,  # often wrong
        ) as lm:
            request = Request(prompt=prompt, max_tokens=24, seed=seed)
            expected = the_plain_loop(lm, request, sampling)
            if dice.random() < 0.5:
                actual = lm.generate(prompt, max_tokens=24, seed=seed)
            else:
                actual = asyncio.run(lm.agenerate(prompt, max_tokens=24, seed=seed))
        check_equal(expected, actual)
        wrong += actual.stats.guesses - actual.stats.accepted
    return wrong


def test_the_drawn_settings_are_all_there() -> None:
    """Over 208 prompts with each search; k = 1024 leaves entries out, and no prompt comes twice."""
    for search in ("exact", "hnsw", "ivfpq"):
        drawn = list(turns(MANY, random.Random(search)))

        assert len({prompt for prompt, _, _ in drawn}) == MANY
        assert {(schedule, k) for _, schedule, k in drawn} == set(itertools.product(SCHEDULES, KS))


def test_every_setting_writes_the_plain_tokens(
    network: PreTrainedModel, tokenizer: Tokenizer, store: Datastore
) -> None:
    """Schedules, k, weights, greedy and drawn, on threads and on asyncio; some guesses wrong."""
    assert len(store) > max(KS)
    assert check_over(network, tokenizer, store, len(SCHEDULES)) > 3


@pytest.mark.parametrize("search", ["hnsw", "ivfpq"])
def test_approximate_neighbours_give_their_plain_tokens(
    network: PreTrainedModel, tokenizer: Tokenizer, store: Datastore, search: str, tmp_path: Path
) -> None:
    """The plain loop over the same search is what is right, whatever it misses."""
    pytest.importorskip("faiss")
    assert check_over(network, tokenizer, store, 4, tmp_path / search) > 0


@pytest.mark.slow
@pytest.mark.parametrize("search", ["exact", "hnsw", "ivfpq"])
def test_every_setting_writes_the_plain_tokens_for_many_prompts(
    network: PreTrainedModel, tokenizer: Tokenizer, store: Datastore, search: str, tmp_path: Path
) -> None:
    """Of each model so many with each search."""
    if search != "exact":
        pytest.importorskip("faiss")
    index = None if search == "exact" else tmp_path / search
    assert check_over(network, tokenizer, store, MANY, index) > 20


def test_plain_and_speculative_requests_are_one_text(
    network: PreTrainedModel, tokenizer: Tokenizer, store: Datastore
) -> None:
    """`plain=True` guesses nothing and gives the same answer, record and all."""
    settings = Settings(schedule=FixedStride(stride=4))
    with KNNLanguageModel(
        network, tokenizer, store, k=8, temperature=TEMPERATURE, settings=settings
    ) as lm:
        plainly = lm.generate("the keeper counted", max_tokens=30, plain=True)
        ahead = lm.generate("the keeper counted", max_tokens=30)

    check_equal(plainly, ahead)
    assert (plainly.stats.guesses, plainly.stats.searches) == (0, 30)
    assert ahead.stats.guesses > 0
    assert len(ahead.state.tokens) == 30
    assert [len(step.hits) for step in ahead.retrieved] == [8] * 30


def test_it_guesses_and_mostly_right(
    network: PreTrainedModel, tokenizer: Tokenizer, store: Datastore
) -> None:
    """A text that follows the datastore needs fewer searches than tokens."""
    settings = Settings(schedule=FixedStride(stride=4))
    with KNNLanguageModel(network, tokenizer, store, k=1, weight=1.0, settings=settings) as lm:
        answer = lm.generate(STORED[3][:30], max_tokens=12)

    assert answer.stats.searches <= 8
    assert answer.stats.accepted >= 6


def test_a_cache_is_as_it_was_asked_for(
    network: PreTrainedModel, tokenizer: Tokenizer, store: Datastore
) -> None:
    """One for each request, with these settings."""
    asked = {"following": 3, "followed": 2, "capacity": 50}
    with KNNLanguageModel(network, tokenizer, store, k=4, **asked) as lm:
        made = lm._guessing(inline=True).speculators
        assert callable(made)
        [first], [second] = made(), made()

    assert first is not second
    assert asked == {name: getattr(first, name) for name in asked}


@pytest.mark.parametrize("replica", [False, True])
def test_an_event_loop_never_waits_for_a_guess(
    network: PreTrainedModel,
    tokenizer: Tokenizer,
    store: Datastore,
    monkeypatch: pytest.MonkeyPatch,
    *,
    replica: bool,
) -> None:
    """Guesses take milliseconds: `agenerate` makes them in workers, `generate` in its own loop."""
    guessed_on: set[int] = set()
    kind: Any = Replica if replica else NeighbourCache

    def guess(self: Any, query: Any, made: Any = kind.guess) -> Any:
        guessed_on.add(threading.get_ident())
        return made(self, query)

    monkeypatch.setattr(kind, "guess", guess)
    with KNNLanguageModel(
        network, tokenizer, store, k=4, replica=ExactSearch(store, k=4) if replica else None
    ) as lm:
        expected = lm.generate("the keeper", max_tokens=8)
        inline, guessed_on = guessed_on, set()
        check_equal(expected, asyncio.run(lm.agenerate("the keeper", max_tokens=8)))

    assert len(inline) == 1
    assert guessed_on
    assert threading.get_ident() not in guessed_on


def test_a_replica_guesses_the_first_token_too(
    network: PreTrainedModel, tokenizer: Tokenizer, store: Datastore
) -> None:
    """One that finds the truth is always right, and 16 tokens need 4 searches with a stride of 4.

    A cache has nothing to guess from before the first search.
    """
    settings = Settings(schedule=FixedStride(stride=4))
    with KNNLanguageModel(
        network, tokenizer, store, k=8, settings=settings, replica=ExactSearch(store, k=8)
    ) as lm:
        check_equal(
            lm.generate("the keeper", max_tokens=16, plain=True),
            answer := lm.generate("the keeper", max_tokens=16),
        )

    assert (answer.stats.guesses, answer.stats.accepted) == (16, 16)
    assert answer.stats.searches == 4


def test_a_replica_by_its_name_looks_for_fewer_neighbours(
    network: PreTrainedModel, tokenizer: Tokenizer, store: Datastore
) -> None:
    """64 of 1024, or as many as are looked for if that is less."""
    pytest.importorskip("faiss")
    for k, fewer in ((1024, 64), (8, 8)):
        with KNNLanguageModel(network, tokenizer, store, k=k, replica="hnsw") as lm:
            assert lm.replica is not None
            assert [fewer, True] == [lm.replica.retriever.k, lm.replica.inline]
            check_equal(
                lm.generate("the keeper", max_tokens=6, plain=True),
                lm.generate("the keeper", max_tokens=6),
            )


def test_a_replica_that_cannot_be_is_refused(
    network: PreTrainedModel, tokenizer: Tokenizer, store: Datastore
) -> None:
    """One of another datastore, and one beside speculators that were given."""
    other = Datastore.of(store.keys, store.values[::-1], store.document_ends, store.about)
    with pytest.raises(ConfigError, match="is of another datastore"):
        KNNLanguageModel(network, tokenizer, store, replica=ExactSearch(other, k=3))
    with pytest.raises(ConfigError, match="replica and speculators were both given"):
        KNNLanguageModel(
            network,
            tokenizer,
            store,
            replica=ExactSearch(store, k=3),
            settings=Settings(speculators=()),
        )


def test_streams_give_the_same_text(lm: KNNLanguageModel) -> None:
    """In pieces, on threads and on asyncio; the answer is there at the end."""
    whole = lm.generate("ships that passed", max_tokens=20)
    stream = lm.stream("ships that passed", max_tokens=20)
    pieces = list(stream)

    async def gathered() -> tuple[list[str], Answer]:
        astream = lm.astream("ships that passed", max_tokens=20)
        return [piece async for piece in astream], astream.answer

    apieces, answer = asyncio.run(gathered())

    assert "".join(pieces) == "".join(apieces) == whole.text
    assert len(pieces) > 3
    check_equal(whole, stream.answer)
    check_equal(whole, answer)


def test_batches_give_the_same_texts(lm: KNNLanguageModel) -> None:
    """Requests that are answered at once share searches, and nothing else."""
    prompts = [" ".join(text.split()[:4]) for text in texts(6, 3)]
    alone = [lm.generate(prompt, max_tokens=12) for prompt in prompts]
    asked = [Request(prompt=prompt, max_tokens=12) for prompt in prompts]
    together = lm.engine().batch(asked)

    for expected, actual in zip(alone, together, strict=True):
        check_equal(expected, actual)


def test_asynchronous_batches_give_the_same_texts(
    network: PreTrainedModel, tokenizer: Tokenizer, store: Datastore
) -> None:
    """And closing lets go of what they share."""
    prompts = [" ".join(text.split()[:4]) for text in texts(4, 3)]
    asked = [Request(prompt=prompt, max_tokens=12) for prompt in prompts]

    async def together() -> list[Answer]:
        async with KNNLanguageModel(network, tokenizer, store, k=8) as lm:
            return list(await lm.async_engine().batch(asked))

    with KNNLanguageModel(network, tokenizer, store, k=8) as lm:
        for request, actual in zip(asked, asyncio.run(together()), strict=True):
            check_equal(the_plain_loop(lm, request), actual)


def test_unknown_keywords_are_refused(lm: KNNLanguageModel) -> None:
    """A misspelt one is no silent default."""
    with pytest.raises(TypeError, match="max_token"):
        lm.generate("the keeper", max_token=3)  # type: ignore[call-arg]


def test_sampling_is_a_setting_of_each_request(lm: KNNLanguageModel) -> None:
    """Seeds differ, the same seed does not, and the model's own way stays as it was."""
    hot = Sampling(temperature=1.5)
    one, again, other = (
        lm.generate("the island", max_tokens=16, sampling=hot, seed=seed) for seed in (1, 1, 2)
    )

    check_equal(one, again)
    assert one.state.tokens != other.state.tokens
    check_equal(
        lm.generate("the island", max_tokens=16),
        lm.generate("the island", max_tokens=16, sampling=Greedy()),
    )


def test_stop_texts_end_it(lm: KNNLanguageModel) -> None:
    """One text or several; what is given out ends in front of it."""
    whole = lm.generate("the keeper counted", max_tokens=30).text
    mark = whole[10:13]
    stopped = lm.generate("the keeper counted", max_tokens=30, stop=mark)

    assert stopped.text == whole[: whole.index(mark)]
    assert stopped.state.draft.ending == "stop"


def test_nothing_is_left_behind(lm: KNNLanguageModel) -> None:
    """No key-value cache outlives its request."""
    lm.generate("the keeper", max_tokens=8)
    lm.generate("the keeper", max_tokens=8, plain=True)

    assert len(lm.model.caches) == 0


def test_an_opened_search_brings_its_own_k(
    network: PreTrainedModel, tokenizer: Tokenizer, store: Datastore
) -> None:
    """And its settings; the same neighbours are found as by name."""
    search = ExactSearch(store, k=3, memory_bytes=0)
    with (
        KNNLanguageModel(network, tokenizer, store, search=search) as given,
        KNNLanguageModel(network, tokenizer, store, k=3) as named,
    ):
        check_equal(
            given.generate("the keeper", max_tokens=6), named.generate("the keeper", max_tokens=6)
        )
    other = Datastore.of(store.keys, store.values[::-1], store.document_ends, store.about)
    with pytest.raises(ConfigError, match="is of another datastore"):
        KNNLanguageModel(network, tokenizer, store, search=ExactSearch(other, k=3))


def test_a_closed_model_says_so(
    network: PreTrainedModel, tokenizer: Tokenizer, store: Datastore
) -> None:
    """Its threads are gone."""
    lm = KNNLanguageModel(network, tokenizer, store, k=1)
    lm.close()
    with pytest.raises(Closed):
        lm.generate("the keeper", max_tokens=2)


def test_prompts_that_cannot_be_continued_are_refused(lm: KNNLanguageModel) -> None:
    """An empty one, and one that is too long with the text behind it."""
    with pytest.raises(InputError, match="the prompt is empty"):
        lm.generate("")
    with pytest.raises(ContextOverflowError, match="the model's context is 512"):
        lm.generate("the keeper", max_tokens=600)


def test_a_model_that_did_not_make_the_keys_is_refused(
    tokenizer: Tokenizer, store: Datastore
) -> None:
    """Of another dimension, or with other weights; the latter can be asked for."""
    other = tiny_llama(seed=7)
    with pytest.raises(ModelError, match="does not fit"):
        KNNLanguageModel(tiny_llama(hidden=64), tokenizer, store)
    with pytest.raises(ModelError, match="does not fit: the model's fingerprint is"):
        KNNLanguageModel(other, tokenizer, store)
    with pytest.raises(ModelError, match="the tokenizer's fingerprint is"):
        KNNLanguageModel(other, tiny_tokenizer(bos=False), store, same_model=False)
    with KNNLanguageModel(other, tokenizer, store, k=1, same_model=False) as lm:
        assert lm.generate("the keeper", max_tokens=2).state.tokens


@pytest.mark.parametrize(
    "wrong",
    [
        {"weight": 0.0},
        {"temperature": -1.0},
        {"k": 0},
        {"search": "fast"},
        {"following": -1},
        {"followed": -1},
        {"capacity": 0},
    ],
    ids=repr,
)
def test_settings_without_a_meaning_are_refused(
    network: PreTrainedModel, tokenizer: Tokenizer, store: Datastore, wrong: dict[str, Any]
) -> None:
    """Before anything is asked."""
    with pytest.raises(ConfigError):
        KNNLanguageModel(network, tokenizer, store, **wrong)


def test_perplexity_falls_where_the_datastore_knows_the_text(lm: KNNLanguageModel) -> None:
    """Texts made of the same halves are foretold far better with it than without."""
    foretold = lm.perplexity(texts(6, 1))

    assert foretold.tokens > 100
    assert foretold.perplexity(0.65) < 0.2 * foretold.model_perplexity


def test_saved_models_and_stores_are_opened(
    network: PreTrainedModel, tokenizer: Tokenizer, store: Datastore, tmp_path: Any
) -> None:
    """From their folders, to the same text."""
    network.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    build_datastore(STORED, tmp_path / "store", network, tokenizer)
    with (
        KNNLanguageModel(network, tokenizer, store, k=8) as loaded,
        KNNLanguageModel.from_pretrained(tmp_path / "model", tmp_path / "store", k=8) as opened,
    ):
        # The weights lie elsewhere in memory, which changes a hidden state's last bits.
        expected, actual = (one.generate("the keeper", max_tokens=8) for one in (loaded, opened))

    assert expected.state.tokens == actual.state.tokens


def test_an_exact_search_by_its_name_scans_on_threads_of_its_own(
    network: PreTrainedModel, tokenizer: Tokenizer, store: Datastore, monkeypatch: Any
) -> None:
    """Where the library that holds BLAS to one thread is there; the text is the same."""
    pytest.importorskip("threadpoolctl")
    with KNNLanguageModel(network, tokenizer, store, k=3) as threaded:
        monkeypatch.setattr("ralmspec_plugins.knn.search.find_spec", lambda _: None)
        with KNNLanguageModel(network, tokenizer, store, k=3) as plainly:
            check_equal(
                threaded.generate("the keeper", max_tokens=6),
                plainly.generate("the keeper", max_tokens=6),
            )
            scans: list[Any] = [one.retriever for one in (threaded, plainly)]

    assert [OwnThreads, InTurn] == [type(search._scan) for search in scans]
