"""A model on a device: plain and speculative texts equal to the bit, and what a device adds."""

from random import Random
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.generation.logits_process import TopPLogitsWarper

from ralmspec_plugins import Engine, FixedStride, Settings, plain
from ralmspec_plugins.decoding import Decoding
from ralmspec_plugins.decoding.calibration import pass_clock
from ralmspec_plugins.decoding.decoder import SpeculativeDecoder
from ralmspec_plugins.errors import DeviceMemoryError
from ralmspec_plugins.lm import Greedy, HuggingFaceLM, Sampling
from ralmspec_plugins.lm.token_sampler import _TopP
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.retrieval import HashingEncoder
from ralmspec_plugins.retrieval.torch_flat import TorchFlat
from ralmspec_plugins.testing.models import tiny_gpt2, tiny_llama
from ralmspec_plugins.types import Passage, Request
from ralmspec_plugins.workloads import Interval
from tests.decoding.drafters import FREE, RULES
from tests.decoding.pairs import Pair, operations
from tests.decoding.test_fixed_shape import _check, _short_buckets  # noqa: F401 a fixture
from tests.lm.reference import FRONTS, PASSAGES, Tokenizer

SAMPLED = Sampling(temperature=0.9, top_k=8, top_p=0.9, repetition_penalty=1.1)
# Of each test; on a GPU 20,000 in all, in about three minutes. 20,000 on the CPU are
# tests/decoding's.
CERTIFIED_TOKENS = {"cpu": 60, "cuda": 5_000}
INVARIANT_TOKENS = {"cpu": 60, "cuda": 2_500}
REQUEST = Request(prompt="The keeper counted the ships", max_tokens=20)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("sampling", [Greedy(), SAMPLED], ids=["greedy", "sampled"])
def test_certified_texts_are_the_plain_ones(
    device: str, tokenizer: Tokenizer, sampling: Greedy | Sampling
) -> None:
    """In float32, over rollbacks and drafts of every kind."""
    pair = Pair.of(tiny_llama().to(device), tokenizer, sampling)  # type: ignore[arg-type]
    counts, seed = pair.fast.decoder.counts, 0  # type: ignore[attr-defined]
    while counts.passes + counts.accepted < CERTIFIED_TOKENS[device]:
        rng, seed = Random(seed), seed + 1
        pair.drafter.rule, pair.drafter.rng = rng.choice(RULES), rng
        request = Request(prompt="The keeper counted", max_tokens=40, seed=seed)
        pair.check(request, operations(rng, 8))

    assert counts.accepted > CERTIFIED_TOKENS[device] // 20


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("sampling", [Greedy(), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_invariant_texts_are_the_plain_ones(
    device: str, tokenizer: Tokenizer, dtype: torch.dtype, sampling: Greedy | Sampling
) -> None:
    """The probe succeeds on the device, and the texts are equal in any precision."""
    model = tiny_llama(dtype=dtype).to(device)  # type: ignore[arg-type]
    tokens, accepted = _check(model, tokenizer, sampling, INVARIANT_TOKENS[device] // 25)

    assert tokens > INVARIANT_TOKENS[device] // 2
    assert accepted > tokens // 8


DECODINGS: dict[str, Decoding | None] = {
    "plain": None,
    "certified": Decoding(exactness="certified", costs=FREE, calibration_s=0.01, most_retakes=1.0),
    "invariant": Decoding(exactness="invariant", costs=FREE, calibration_s=0.01),
}


@pytest.mark.parametrize(
    ("mode", "sampling"), [("plain", SAMPLED), ("certified", SAMPLED), ("invariant", Greedy())]
)
def test_torchs_default_device_is_not_the_models(
    device: str, tokenizer: Tokenizer, mode: str, sampling: Greedy | Sampling
) -> None:
    """No tensor is made where the caller's thread would have it made."""
    model: Any = tiny_llama().to(device)  # type: ignore[arg-type]
    usual = HuggingFaceLM(model, tokenizer, sampling=sampling, decoding=DECODINGS[mode])
    expected = usual.write(usual.begin(REQUEST), PASSAGES, 20, Progress())
    with torch.device("meta"):  # whose tensors have no data
        lm = HuggingFaceLM(model, tokenizer, sampling=sampling, decoding=DECODINGS[mode])
        draft = lm.write(lm.begin(REQUEST), PASSAGES, 20, Progress())

    assert isinstance(lm.decoder, SpeculativeDecoder) == (mode != "plain")
    assert len(draft.tokens) == 20
    assert expected.tokens == draft.tokens


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_autocast_of_the_callers_thread_stays_out(
    device: str, tokenizer: Tokenizer, make: Any
) -> None:
    """It belongs to a thread: guesses in other threads would differ from the plain loop."""
    lm = HuggingFaceLM(make().to(device), tokenizer).scored()
    expected = lm.write(lm.begin(REQUEST), PASSAGES, 8, Progress())
    with torch.autocast(device, dtype=torch.bfloat16):
        draft = lm.write(lm.begin(REQUEST), PASSAGES, 8, Progress())

    assert len(expected.logprobs) == 8
    assert expected.logprobs == draft.logprobs


class Full:
    """A model's passes, one of which finds no memory left, after it changed the cache."""

    def __init__(self, lm: HuggingFaceLM, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = -1  # passes before that one
        self.passes = 0
        self._forward = lm.model.forward
        monkeypatch.setattr(lm.model, "forward", self)

    def __call__(self, *args: Any, **named: Any) -> Any:
        self.passes += 1
        self.left -= 1
        found = self._forward(*args, **named)
        if self.left == -1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return found


@pytest.mark.parametrize("mode", DECODINGS)
def test_a_pass_without_memory_is_a_clear_error_and_the_draft_goes_on(
    device: str, tokenizer: Tokenizer, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever pass fails: idle caches are freed, and the same call gives the same text."""
    model: Any = tiny_llama().to(device)  # type: ignore[arg-type]
    lm = HuggingFaceLM(model, tokenizer, decoding=DECODINGS[mode])
    full = Full(lm, monkeypatch)

    first = lm.write(lm.begin(REQUEST), FRONTS[0], 6, Progress())
    full.passes = 0
    expected, passes = lm.write(first, FRONTS[1], 8, Progress()), full.passes
    assert passes > 1
    for fails in range(passes):
        lm.caches.clear()
        first = lm.write(lm.begin(REQUEST), FRONTS[0], 6, Progress())
        full.left = fails
        with pytest.raises(DeviceMemoryError, match=r"pass over \d+ tokens.*20.00 GiB.\)$"):
            lm.write(first, FRONTS[1], 8, Progress())
        assert len(lm.caches) == 0
        full.left = -1
        assert expected.tokens == lm.write(first, FRONTS[1], 8, Progress()).tokens


@pytest.mark.parametrize("fails", [0, 6, 9, 17])
def test_an_engine_goes_on_where_a_pass_found_no_memory(
    device: str, tokenizer: Tokenizer, fails: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that ran beside others is run again by itself; the first one raises, as plainly."""
    passages = [Passage(str(at), one.text) for at, one in enumerate(PASSAGES * 3)]
    retriever = TorchFlat.build(passages, HashingEncoder(64), device=device)
    lm = HuggingFaceLM(tiny_llama().to(device), tokenizer)  # type: ignore[arg-type]
    workload, full = Interval(lm, interval=4), Full(lm, monkeypatch)
    expected = plain(workload, retriever, REQUEST)
    lm.caches.clear()
    full.left = fails
    with Engine(workload, retriever, Settings(schedule=FixedStride(stride=3))) as engine:
        if not fails:
            with pytest.raises(DeviceMemoryError, match="pass over"):
                engine.run(REQUEST)
        answer = engine.run(REQUEST)

    assert full.left < -1
    assert expected == answer
    assert answer.text
    assert bool(fails) == bool(answer.stats.retries)


def test_the_clock_of_passes_waits_for_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that is still computed is not counted as what reads its result."""
    waits: list[torch.device] = []
    stream = lambda device: SimpleNamespace(synchronize=lambda: waits.append(device))  # noqa: E731
    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    clock = pass_clock(torch.device("cuda:1"))

    assert clock() <= clock()
    assert waits == [torch.device("cuda:1")] * 2


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_tokens_that_transformers_keeps(device: str, top_p: float) -> None:
    """To the bit on the CPU, with ties; on a GPU the same ones each time."""
    dice = torch.Generator().manual_seed(0)
    none: Any = torch.empty((1, 0), dtype=torch.long)
    for size, digits in [(5, 0), (384, 1), (384, 7), (40_000, 3)]:
        scores = 3 * torch.randn((1, size), generator=dice).mul(10**digits).round().div(10**digits)
        kept = [_TopP(top_p)(none, scores.to(device)) for _ in range(8)]

        assert all(torch.equal(kept[0], again) for again in kept[1:])
        assert 1 <= int(kept[0].isfinite().sum()) < size or size == 5
        if device == "cpu":
            assert torch.equal(TopPLogitsWarper(top_p)(none, scores), kept[0])


def test_threads_write_what_one_writes(device: str, tokenizer: Tokenizer) -> None:
    """A request in a thread of its own beside others: the same tokens and log-probabilities."""
    lm = HuggingFaceLM(tiny_llama().to(device), tokenizer).scored()  # type: ignore[arg-type]
    expected = lm.write(lm.begin(REQUEST), PASSAGES, 20, Progress()).logprobs
    found: list[Any] = []

    def write() -> None:
        found.append(lm.write(lm.begin(REQUEST), PASSAGES, 20, Progress()).logprobs)

    threads = [Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [expected] * 8 == found
    assert len(expected) == 20
