"""The model of KNN-LM: bit-equal states whatever was dropped, and no pass too many."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import DynamicCache, PreTrainedModel
from transformers import PreTrainedTokenizerFast as Tokenizer

from ralmspec_plugins.errors import Cancelled, ConfigError, ContextOverflowError, InputError
from ralmspec_plugins.knn.hidden_states import KeyHook
from ralmspec_plugins.knn.model import KNNModel, LogProbSampler
from ralmspec_plugins.knn.state import KNNDraft
from ralmspec_plugins.lm.kv_cache import ModelRunner, cache_argument
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing.models import tiny_gpt2, tiny_llama, tiny_tokenizer
from ralmspec_plugins.types import Request
from tests.selection import covering

PROMPT = "The lighthouse keeper counted"
Plant = Callable[[pytest.MonkeyPatch], None]
MODELS = ("gpt2", "llama", "llama-bfloat16")


@pytest.fixture(scope="module", params=MODELS)
def network(request: pytest.FixtureRequest) -> PreTrainedModel:
    if request.param == "gpt2":
        return tiny_gpt2()
    return tiny_llama(dtype=torch.bfloat16 if request.param.endswith("16") else None)


def states_equal(one: KNNDraft, other: KNNDraft) -> bool:
    """Compare to the bit, the arrays too."""
    if one.hidden is None or other.hidden is None:
        return one == other and one.hidden is other.hidden
    assert one.log_probs is not None
    assert other.log_probs is not None
    return (
        one == other
        and one.hidden.tobytes() == other.hidden.tobytes()
        and one.log_probs.tobytes() == other.log_probs.tobytes()
    )


def straight(
    network: PreTrainedModel, prompt: tuple[int, ...], tokens: tuple[int, ...]
) -> tuple[bytes, bytes]:
    """Run prompt and tokens with nothing of ours but the tap; give hidden state and log-probs."""
    tap, cache, model = KeyHook(network), DynamicCache(config=network.config), network
    settings = {cache_argument(network): cache, "logits_to_keep": 1}
    with torch.inference_mode():
        for portion in (prompt, *[(token,) for token in tokens]):
            output = model(input_ids=torch.tensor([portion]), **settings)
            hidden = tap.taken()[0, -1].float()
        log_probs = torch.log_softmax(output.logits[0, -1].float(), dim=-1)
    return hidden.numpy().tobytes(), log_probs.numpy().tobytes()


@pytest.mark.parametrize(("budget", "seed"), covering([0, 60_000, 10**9], range(3)))
def test_a_state_depends_on_its_tokens_alone(
    network: PreTrainedModel, tokenizer: Tokenizer, budget: int, seed: int
) -> None:
    """Going on from any older state has the bits of one straight run, whatever is in the cache."""
    dice = np.random.default_rng(seed)
    model = KNNModel(network, tokenizer, cache_bytes=budget)
    states = [model.begin(Request(prompt=PROMPT, max_tokens=40))]
    for _ in range(14):
        before = states[min(len(states) - 1, int(dice.exponential(2)))]
        states.insert(0, model.feed(before, int(dice.integers(5, 300)), Progress()))
    for state in states:
        assert state.hidden is not None
        assert state.log_probs is not None
        expected = straight(network, state.draft.prompt_tokens, state.tokens)

        assert expected == (state.hidden.tobytes(), state.log_probs.tobytes())


class CountedPasses:
    """Counts the passes of a model, and the tokens in each."""

    def __init__(self, network: PreTrainedModel) -> None:
        self.sizes: list[int] = []
        network.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        self.sizes.append(kwargs["input_ids"].shape[1])


def test_a_rollback_costs_no_pass(tokenizer: Tokenizer) -> None:
    """Three wrong tokens are dropped, and the right one costs its own pass and no other."""
    network = tiny_llama()
    model, counted = KNNModel(network, tokenizer), CountedPasses(network)
    begun = model.begin(Request(prompt=PROMPT))
    length = len(begun.draft.prompt_tokens)
    wrong = begun
    for token in (40, 41, 42):
        wrong = model.feed(wrong, token, Progress())
    right = model.feed(begun, 50, Progress())
    model.feed(right, 51, Progress())

    assert counted.sizes == [length, 1, 1, 1, 1, 1]


def test_the_token_that_ends_a_text_costs_no_pass(tokenizer: Tokenizer) -> None:
    """Nothing is asked behind it, so it is not read."""
    network = tiny_gpt2()
    model, counted = KNNModel(network, tokenizer), CountedPasses(network)
    ended = model.feed(model.begin(Request(prompt=PROMPT, max_tokens=1)), 40, Progress())

    assert (ended.finished, ended.draft.ending, ended.hidden) == (True, "length", None)
    assert len(counted.sizes) == 1


def test_what_was_evicted_is_rebuilt_token_by_token(tokenizer: Tokenizer) -> None:
    """Without memory for caches, prompt and tokens are read in the same portions again."""
    network = tiny_llama()
    model, counted = KNNModel(network, tokenizer, cache_bytes=0), CountedPasses(network)
    state = model.begin(Request(prompt=PROMPT))
    length = len(state.draft.prompt_tokens)
    for token in (40, 41):
        state = model.feed(state, token, Progress())

    assert counted.sizes == [length, length, 1, length, 1, 1]


def test_end_of_text_and_stop_strings_end(tokenizer: Tokenizer) -> None:
    """The rules are those of every draft: the model's EOS, stop strings, full length."""
    network = tiny_llama()
    network.generation_config.eos_token_id = 7
    model = KNNModel(network, tokenizer)
    begun = model.begin(Request(prompt=PROMPT, stop=("zz",)))
    z = tokenizer.encode("z", add_special_tokens=False)[0]
    stopped = model.feed(model.feed(begun, z, Progress()), z, Progress())

    assert model.feed(begun, 7, Progress()).draft.ending == "eos"
    assert (stopped.draft.ending, stopped.text) == ("stop", "")
    assert model.feed(begun, z, Progress()).settled == ""


def test_it_stops_between_passes(tokenizer: Tokenizer) -> None:
    """A token that nobody needs is not read, and the state before it goes on as ever."""
    model = KNNModel(tiny_llama(), tokenizer)
    begun = model.begin(Request(prompt=PROMPT))
    given_up = Progress()
    given_up.cancel()
    expected = model.feed(begun, 40, Progress())
    with pytest.raises(Cancelled):
        model.feed(begun, 41, given_up)

    assert states_equal(expected, model.feed(begun, 40, Progress()))


def test_released_requests_leave_nothing(tokenizer: Tokenizer) -> None:
    """The caches of one request go, and those of another stay."""
    model = KNNModel(tiny_llama(), tokenizer)
    one, other = (model.begin(Request(prompt=PROMPT)) for _ in range(2))
    assert len(model.caches) == 2
    model.release(one)
    assert len(model.caches) == 1
    model.release(other)
    assert len(model.caches) == 0
    model.caches.check()


def test_reading_a_window_gives_what_writing_it_gives(tokenizer: Tokenizer) -> None:
    """One pass over all has, up to rounding, the states of a pass for each token."""
    model = KNNModel(tiny_gpt2(), tokenizer)
    state = model.begin(Request(prompt=PROMPT, max_tokens=100))
    tokens = model.encode("A passage is put in front")
    hidden, log_probs = [], []
    for token in tokens:
        assert state.hidden is not None
        assert state.log_probs is not None
        hidden.append(state.hidden)
        log_probs.append(float(state.log_probs[token]))
        state = model.feed(state, token, Progress())
    reading = model.read((state.draft.prompt_tokens + tokens)[:-1], tokens)

    assert reading.hidden == pytest.approx(np.stack(hidden), abs=1e-4)
    assert reading.log_probs == pytest.approx(log_probs, abs=1e-4)


def test_log_probs_are_the_models(network: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """They sum to one, and name the tokens that the network finds likely."""
    model = KNNModel(network, tokenizer)
    state = model.begin(Request(prompt=PROMPT))
    with torch.inference_mode():
        logits = network(input_ids=torch.tensor([state.draft.prompt_tokens])).logits[0, -1]
    assert state.log_probs is not None

    assert np.exp(state.log_probs.astype(np.float64)).sum() == pytest.approx(1, abs=1e-5)
    assert int(logits.argmax()) == int(state.log_probs.argmax())
    assert state.log_probs.dtype == np.float32


def test_prompts_begin_as_the_datastores_texts(tokenizer: Tokenizer) -> None:
    """With BOS if they did, and without if not."""
    network = tiny_llama()
    without, model = KNNModel(network, tokenizer), KNNModel(network, tokenizer, bos=True)
    tokens, request = without.encode(PROMPT), Request(prompt=PROMPT)

    assert model.encode(PROMPT) == (0, *tokens)
    assert without.begin(request).draft.prompt_tokens == tokens
    assert model.begin(request).draft.prompt_tokens == (0, *tokens)
    with pytest.raises(InputError, match="the prompt is empty"):
        model.begin(Request(prompt=""))
    with pytest.raises(ConfigError, match="no BOS token"):
        KNNModel(network, tiny_tokenizer(bos=False), bos=True)


def test_an_empty_prompt_is_refused(tokenizer: Tokenizer) -> None:
    """Without a token there is no hidden state to ask with."""
    with pytest.raises(InputError, match="the prompt is empty"):
        KNNModel(tiny_llama(), tokenizer).begin(Request(prompt=""))


def test_a_text_beyond_the_context_is_refused_at_its_start(tokenizer: Tokenizer) -> None:
    """The sum is counted before the first pass, in the words of the other models."""
    model = KNNModel(tiny_llama(context=20), tokenizer)
    length = len(model.encode(PROMPT))
    expected = f"{length} prompt tokens \\+ 16 text tokens = {length + 16}.*context is 20"
    with pytest.raises(ContextOverflowError, match=expected):
        model.begin(Request(prompt=PROMPT, max_tokens=16))

    assert model.begin(Request(prompt=PROMPT, max_tokens=20 - length)).tokens == ()


def test_impossible_tokens_are_never_drawn() -> None:
    """Where only neighbours count, draws stay among their tokens, under every setting."""
    log_probs = np.full(50, -np.inf)
    log_probs[[3, 17, 30]] = np.log([0.2, 0.5, 0.3])
    settings = [Sampling(), Sampling(temperature=2.0, top_k=2), Sampling(top_p=0.6)]
    drawn = {
        LogProbSampler(one).choose(log_probs, (), seed, position)
        for one, seed, position in itertools.product(settings, range(20), range(5))
    }

    assert drawn == {3, 17, 30}
    assert LogProbSampler(Greedy()).choose(log_probs, (), 0, 0) == 17


def test_a_repetition_penalty_sees_the_history() -> None:
    """The likeliest token loses to the next one once it has been written."""
    log_probs = np.log([0.4, 0.35, 0.25])
    chooser = LogProbSampler(Greedy(repetition_penalty=2.0))

    assert chooser.needs_history
    assert chooser.choose(log_probs, (1,), 0, 0) == 0
    assert chooser.choose(log_probs, (0,), 0, 0) == 1


def _wrong_position(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = KeyHook.taken
    monkeypatch.setattr(KeyHook, "taken", lambda self: taken(self).flip(1))


def _forget_to_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DynamicCache, "crop", lambda *_: None)


def _keep_the_wrong_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelRunner, "_roll_back", lambda *_: True)


@pytest.mark.parametrize("plant", [_wrong_position, _forget_to_crop, _keep_the_wrong_tokens])
def test_planted_bugs_are_caught(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, plant: Plant
) -> None:
    """The straight run tells each of them."""
    plant(monkeypatch)
    network = tiny_llama()
    model = KNNModel(network, tokenizer)
    begun = model.begin(Request(prompt=PROMPT))
    model.feed(model.feed(begun, 40, Progress()), 41, Progress())
    state = model.feed(begun, 50, Progress())
    monkeypatch.undo()
    shown = [
        (one.hidden.tobytes(), one.log_probs.tobytes())
        for one in (begun, state)
        if one.hidden is not None and one.log_probs is not None
    ]
    expected = [straight(network, one.draft.prompt_tokens, one.tokens) for one in (begun, state)]

    assert expected != shown
