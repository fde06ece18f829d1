"""Whatever was written and dropped before, a segment comes out as if it stood alone."""

import itertools
import threading
from collections.abc import Callable, Sequence

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, PreTrainedModel

from ralmspec_plugins.errors import Cancelled
from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.lm.kv_cache import CacheStore, ModelRunner, PrefillSchedule, Run
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.lm.state import Draft
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing.models import tiny_llama
from ralmspec_plugins.types import Passage, Request
from tests.lm.reference import (
    FRONTS,
    PASSAGES,
    Models,
    Operations,
    Tokenizer,
    check_against_straight_run,
)
from tests.selection import covering

REQUEST = Request(prompt="The keeper counted", max_tokens=14, seed=5)
OPERATIONS = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from([0, 0, 1, 2, 3]), st.integers(1, 5)),
    min_size=1,
    max_size=6,
)
BUDGETS = st.sampled_from([0, 40_000, 10**9])  # none; a cache or two; all
SEVERAL = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize(
    ("sampling", "dtype", "family"),
    covering(
        [Greedy(), Sampling(temperature=0.9, top_k=40)],
        ["float32", "bfloat16"],
        ["llama", "gpt2"],
        strength=2,
    ),
    ids=repr,
)
@SEVERAL
@given(operations=OPERATIONS, budget=BUDGETS)
def test_history_leaves_no_trace(
    models: Models,
    tokenizer: Tokenizer,
    family: str,
    dtype: str,
    sampling: Greedy | Sampling,
    operations: Operations,
    budget: int,
) -> None:
    """Any interleaving of segments from older drafts has the straight run's tokens and logits."""
    model = models[family, dtype]
    lm = HuggingFaceLM(model, tokenizer, sampling=sampling, cache_bytes=budget)
    check_against_straight_run(lm, lm.begin(REQUEST), operations)


@SEVERAL
@given(operations=OPERATIONS)
def test_equal_write_keys_mean_equal_drafts(
    models: Models, tokenizer: Tokenizer, operations: Operations
) -> None:
    """In bfloat16, segments with the same key are equal drafts, wherever they were written."""
    lm = HuggingFaceLM(models["llama", "bfloat16"], tokenizer)
    drafts, known = [lm.begin(REQUEST)], {}
    for which, front, count in operations:
        draft = drafts[which % len(drafts)]
        if draft.finished:
            continue
        written = lm.write(draft, FRONTS[front], count, Progress())
        key = lm.write_key(draft, FRONTS[front], count)

        assert known.setdefault(key, written) == written
        drafts.append(written)


def test_key_holds_the_cache_only_while_the_passages_stay(
    llama: PreTrainedModel, tokenizer: Tokenizer
) -> None:
    """The same tokens by another way: one key for new passages, two for the old ones."""
    lm = HuggingFaceLM(llama, tokenizer)
    begun = lm.begin(REQUEST)
    straight = lm.write(begun, PASSAGES[:1], 4, Progress())
    detour = Draft(straight.origin, straight.transcript, straight.tokens, FRONTS[0], 2)

    assert lm.write_key(straight, PASSAGES[1:], 4) == lm.write_key(detour, PASSAGES[1:], 4)
    assert lm.write_key(straight, PASSAGES[:1], 4) != lm.write_key(detour, PASSAGES[:1], 4)
    assert lm.text_key(straight) == lm.text_key(detour)
    assert hash(lm.write_key(straight, PASSAGES, 4)) == hash(lm.write_key(straight, PASSAGES, 4))


def test_key_holds_the_whole_passage(llama: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """Two passages under one id are two passages; metadata is not the model's business."""
    lm = HuggingFaceLM(llama, tokenizer)
    begun = lm.begin(REQUEST)
    keys = [
        lm.write_key(begun, [passage], 4)
        for passage in (
            Passage("1", "text"),
            Passage("1", "other"),
            Passage("1", "text", "title"),
            Passage("1", "text", metadata={"page": [3]}),
        )
    ]

    assert len(set(keys)) == 3
    assert keys[0] == keys[3]


# The same passages twice, a segment dropped in between, other passages, the old ones again;
# then a long stay with one passage, after which bfloat16 shows a wrong portioning of passes.
ROUND_TRIP = [(0, 0, 4), (1, 0, 4), (1, 0, 5), (1, 1, 4), (2, 0, 4), (4, 1, 3), (4, 0, 2)]
ROUND_TRIP += [(5, 0, 4), (8, 0, 4), (9, 0, 4), (10, 0, 4), (11, 0, 4)]
LONGER = Request(prompt=REQUEST.prompt, max_tokens=40, seed=5)


def test_the_round_trip_is_right(models: Models, tokenizer: Tokenizer) -> None:
    """The history that the planted faults below are caught with holds without them."""
    lm = HuggingFaceLM(models["llama", "bfloat16"], tokenizer)
    check_against_straight_run(lm, lm.begin(LONGER), ROUND_TRIP)


def _forget_to_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DynamicCache, "crop", lambda *_: None)


def _reuse_other_passages(monkeypatch: pytest.MonkeyPatch) -> None:
    take = CacheStore.take

    def careless(self: CacheStore, name: PrefillSchedule, kind: type[Run]) -> Run | None:
        found = (
            n for n in self._entries if isinstance(n, PrefillSchedule) and n.owner == name.owner
        )
        return take(self, next(found, name), kind)

    monkeypatch.setattr(CacheStore, "take", careless)


def _prefill_on_the_same_passages(monkeypatch: pytest.MonkeyPatch) -> None:
    placed = Draft.placed
    monkeypatch.setattr(
        Draft,
        "placed",
        lambda self, passages: Draft(
            self.origin,
            self.transcript,
            self.tokens,
            placed(self, passages).passages,
            len(self.tokens),
        ),
    )


def _change_the_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ralmspec_plugins.lm.kv_cache._copied", lambda cache: cache)


def _feed_several_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def feed(self: ModelRunner, run: Run, token: int) -> None:
        run.last = self._pass(run.cache, (token, token))
        run.cache.crop(-1)
        run.tokens.append(token)

    monkeypatch.setattr(ModelRunner, "feed", feed)


@pytest.mark.parametrize(
    "plant",
    [
        _forget_to_crop,
        _reuse_other_passages,
        _prefill_on_the_same_passages,
        _change_the_prefix,
        _feed_several_at_once,
    ],
)
def test_a_planted_fault_is_caught(
    models: Models,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[pytest.MonkeyPatch], None],
) -> None:
    """The comparison with the straight run is sharp enough to see each of these faults.

    In one precision at least: on some processors, kernels for another number of rows
    give a small model's bfloat16 results the same bits.
    """
    plant(monkeypatch)
    caught = []
    for dtype in ("float32", "bfloat16"):
        lm = HuggingFaceLM(models["llama", dtype], tokenizer)
        try:
            check_against_straight_run(lm, lm.begin(LONGER), ROUND_TRIP)
        except AssertionError:
            caught.append(dtype)

    assert caught


def _mistral() -> PreTrainedModel:
    config = transformers.MistralConfig(
        vocab_size=384, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=8,
        initializer_range=0.3, eos_token_id=None,
    )  # fmt: skip
    return transformers.MistralForCausalLM(config)


def _recurrent() -> PreTrainedModel:
    config = transformers.Lfm2Config(
        vocab_size=384, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, layer_types=["conv", "full_attention"],
        initializer_range=0.3, eos_token_id=None,
    )  # fmt: skip
    return transformers.Lfm2ForCausalLM(config)


@pytest.mark.parametrize("make", [_mistral, _recurrent])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_caches_that_cannot_be_cropped(
    tokenizer: Tokenizer, make: Callable[[], PreTrainedModel], dtype: str
) -> None:
    """A sliding window or a recurrent state forgets; such a cache is rebuilt, not cropped."""
    torch.manual_seed(1)
    lm = HuggingFaceLM(make().to(dtype), tokenizer)
    check_against_straight_run(lm, lm.begin(LONGER), ROUND_TRIP)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_history_leaves_no_trace_on_a_gpu(tokenizer: Tokenizer, dtype: torch.dtype) -> None:
    """The same round trip on a CUDA device."""
    lm = HuggingFaceLM(tiny_llama(dtype=dtype).cuda(), tokenizer)
    check_against_straight_run(lm, lm.begin(LONGER), ROUND_TRIP)


def test_the_prefix_of_a_passage_is_computed_once(
    llama: PreTrainedModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two requests, and a return to a passage, share the pass over that passage."""
    lm = HuggingFaceLM(llama, tokenizer)
    passes = _counted_passes(lm, monkeypatch)
    for request in (REQUEST, Request(prompt="Another prompt")):
        draft = lm.begin(request)
        for front in (0, 1, 0):
            draft = lm.write(draft, FRONTS[front], 2, Progress())

    prefixes = [tokens for tokens in passes if tokens[0] == tokenizer.bos_token_id]
    assert len(prefixes) == len(set(prefixes)) == 2


def test_writing_on_costs_one_pass_a_token(
    llama: PreTrainedModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefix, prefill, then single tokens; nothing is computed twice while passages stay."""
    lm = HuggingFaceLM(llama, tokenizer)
    passes = _counted_passes(lm, monkeypatch)
    draft = lm.begin(REQUEST)
    for _ in range(3):
        draft = lm.write(draft, PASSAGES, 4, Progress())

    assert [len(tokens) for tokens in passes[2:]] == [1] * 11
    assert tuple(tokens[0] for tokens in passes[2:]) == draft.tokens[:-1]


def test_release_frees_one_request(llama: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """The caches of the released request go; other requests' and the passages' own stay."""
    lm = HuggingFaceLM(llama, tokenizer)
    kept = lm.write(lm.begin(REQUEST), PASSAGES[:1], 4, Progress())
    gone = lm.write(lm.begin(REQUEST), PASSAGES[:1], 4, Progress())
    before = len(lm.caches)
    lm.release(gone)

    assert (before, len(lm.caches)) == (3, 2)
    assert lm._lineage(kept) in lm.caches
    again = lm.write(gone, PASSAGES[:1], 4, Progress())
    assert again == lm.write(kept, PASSAGES[:1], 4, Progress())


def test_cancellation_between_tokens(models: Models, tokenizer: Tokenizer) -> None:
    """A cancelled segment stops at the next token, and leaves nothing wrong behind."""
    lm = HuggingFaceLM(models["llama", "bfloat16"], tokenizer)
    draft = lm.write(lm.begin(REQUEST), PASSAGES[:1], 3, Progress())
    reported = []
    progress = Progress(lambda state: (reported.append(state), progress.cancel()))

    with pytest.raises(Cancelled):
        lm.write(draft, PASSAGES[:1], 8, progress)
    assert [len(state.tokens) for state in reported] == [4]
    check_against_straight_run(lm, lm.begin(LONGER), ROUND_TRIP)
    fresh = HuggingFaceLM(models["llama", "bfloat16"], tokenizer)
    alone = fresh.write(fresh.begin(REQUEST), PASSAGES[:1], 3, Progress())
    assert fresh.write(alone, PASSAGES[:1], 8, Progress()) == lm.write(
        draft, PASSAGES[:1], 8, Progress()
    )


def test_a_failed_pass_leaves_no_cache(
    llama: PreTrainedModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an error inside the model its half-written cache is not used again."""
    lm = HuggingFaceLM(llama, tokenizer)
    draft = lm.write(lm.begin(REQUEST), PASSAGES[:1], 3, Progress())
    with monkeypatch.context() as patch:
        patch.setattr(llama.lm_head, "forward", _out_of_memory)
        with pytest.raises(MemoryError):
            lm.write(draft, PASSAGES[:1], 3, Progress())

    assert lm._lineage(draft) not in lm.caches
    check_against_straight_run(lm, lm.begin(LONGER), ROUND_TRIP)


def test_two_threads_write_what_each_writes_alone(models: Models, tokenizer: Tokenizer) -> None:
    """Requests that share a model and its caches do not touch each other's tokens."""
    lm = HuggingFaceLM(models["llama", "bfloat16"], tokenizer, cache_bytes=120_000)
    prompts = ["The keeper counted", "A passage is put", "The señor pays"]
    together: dict[str, object] = {}
    barrier = threading.Barrier(len(prompts))

    def work(prompt: str) -> None:
        barrier.wait()
        together[prompt] = _iterate(lm, prompt)

    threads = [threading.Thread(target=work, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lm.caches.check()
    alone = HuggingFaceLM(models["llama", "bfloat16"], tokenizer)

    expected = {prompt: _iterate(alone, prompt) for prompt in prompts}

    assert expected == together


def _iterate(lm: HuggingFaceLM, prompt: str) -> Draft | None:
    draft = lm.begin(Request(prompt=prompt, max_tokens=24))
    for front in itertools.cycle((0, 0, 1, 2)):
        if lm.finished(draft):
            return draft
        draft = lm.write(draft, FRONTS[front], 4, Progress())
    return None


def _counted_passes(lm: HuggingFaceLM, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    passes: list[tuple[int, ...]] = []
    run = lm._passes._pass

    def counted(cache: DynamicCache, tokens: Sequence[int], keep: int = 1) -> torch.Tensor:
        passes.append(tuple(tokens))
        return run(cache, tokens, keep)

    monkeypatch.setattr(lm._passes, "_pass", counted)
    return passes


def _out_of_memory(*_: object) -> None:
    raise MemoryError("planted")
