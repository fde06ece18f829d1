"""Every kind of end, at every offset inside an accepted block, is plain decoding's."""

from collections.abc import Callable, Sequence
from random import Random

import pytest

from ralmspec_plugins.decoding import TokenTree
from ralmspec_plugins.errors import Cancelled
from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.lm.state import Draft
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Request
from tests.decoding.drafters import oracle, random_tree
from tests.decoding.pairs import Pair, held_tokens, integers
from tests.lm.reference import FRONTS, Tokenizer

LENGTH = 14
PROMPT = "The keeper counted"
Rule = Callable[[Sequence[int], Random, int], TokenTree]
SAMPLED = Sampling(temperature=0.8, top_k=6)
WAYS = [
    pytest.param(oracle, Greedy(), id="oracle-greedy"),
    pytest.param(random_tree, SAMPLED, id="tree-sampled"),
    pytest.param(oracle, SAMPLED, id="oracle-sampled", marks=pytest.mark.slow),
    pytest.param(random_tree, Greedy(), id="tree-greedy", marks=pytest.mark.slow),
]


def _pair(tokenizer: Tokenizer, rule: Rule, sampling: Greedy | Sampling) -> tuple[Pair, Draft]:
    """Give both models, and the text that is written where nothing ends it."""
    pair = Pair.of(integers(tokenizer, noise=1e-4), tokenizer, sampling)
    pair.drafter.rule = rule
    free = _written(pair.plain, Request(prompt=PROMPT, max_tokens=3 * LENGTH, seed=3))
    pair.drafter.know(pair.plain, free)
    return pair, free


def _written(lm: HuggingFaceLM, request: Request) -> Draft:
    return lm.write(lm.begin(request), FRONTS[0], request.max_tokens, Progress())


def _check_and_go_on(pair: Pair, request: Request) -> Draft:
    """Write with both; then other passages, and the first ones again, with both."""
    drafts = [_written(lm, request) for lm in (pair.plain, pair.fast)]
    assert drafts[0] == drafts[1]
    assert held_tokens(pair.plain, drafts[0]) == held_tokens(pair.fast, drafts[1])
    ended = drafts[1]
    for front in (1, 0):
        drafts = [
            lm.write(draft, FRONTS[front], 3, Progress())
            for lm, draft in zip((pair.plain, pair.fast), drafts, strict=True)
        ]
        assert drafts[0] == drafts[1]
    return ended


@pytest.mark.parametrize(("rule", "sampling"), WAYS)
def test_a_length_cap(tokenizer: Tokenizer, rule: Rule, sampling: Greedy | Sampling) -> None:
    """A text of any length is as long as it may be, and ends by its length."""
    pair, free = _pair(tokenizer, rule, sampling)
    for length in range(1, LENGTH):
        ended = _check_and_go_on(pair, Request(prompt=PROMPT, max_tokens=length, seed=3))

        assert (ended.ending, ended.tokens) == ("length", free.tokens[:length])


@pytest.mark.parametrize(("rule", "sampling"), WAYS)
def test_an_end_token(tokenizer: Tokenizer, rule: Rule, sampling: Greedy | Sampling) -> None:
    """The end token ends the text where it comes first, though drafts stand behind it."""
    pair, free = _pair(tokenizer, rule, sampling)
    for offset in range(LENGTH):
        end = free.tokens[offset]
        pair.plain._eos = pair.fast._eos = frozenset({end})
        ended = _check_and_go_on(pair, Request(prompt=PROMPT, max_tokens=3 * LENGTH, seed=3))

        first = free.tokens.index(end)
        assert (ended.ending, ended.tokens) == ("eos", free.tokens[: first + 1])


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize(("rule", "sampling"), WAYS)
def test_a_stop_string(
    tokenizer: Tokenizer, rule: Rule, sampling: Greedy | Sampling, length: int
) -> None:
    """A stop string of one or two tokens ends the text at any offset; the cut is plain's."""
    pair, free = _pair(tokenizer, rule, sampling)
    stopped = set()
    for offset in range(LENGTH):
        stop = tokenizer.decode(list(free.tokens[offset : offset + length]))
        if "\ufffd" in stop or stop not in free.text:
            continue
        request = Request(prompt=PROMPT, max_tokens=3 * LENGTH, seed=3, stop=(stop,))
        ended = _check_and_go_on(pair, request)

        assert ended.ending == "stop"
        assert stop not in ended.text
        stopped.add(len(ended.tokens))
    assert len(stopped) > 3


@pytest.mark.parametrize(("rule", "sampling"), WAYS)
def test_interval_ends(tokenizer: Tokenizer, rule: Rule, sampling: Greedy | Sampling) -> None:
    """Segments of any length follow each other as one text."""
    pair, free = _pair(tokenizer, rule, sampling)
    for interval in range(1, LENGTH):
        drafts = [lm.begin(free_request()) for lm in (pair.plain, pair.fast)]
        while not drafts[0].finished:
            drafts = [
                lm.write(draft, FRONTS[0], interval, Progress())
                for lm, draft in zip((pair.plain, pair.fast), drafts, strict=True)
            ]
            assert drafts[0] == drafts[1]
            assert held_tokens(pair.plain, drafts[0]) == held_tokens(pair.fast, drafts[1])
        assert drafts[1].tokens == free.tokens
    assert pair.fast.decoder.counts.accepted > LENGTH


def free_request() -> Request:
    return Request(prompt=PROMPT, max_tokens=3 * LENGTH, seed=3)


@pytest.mark.parametrize(("rule", "sampling"), WAYS)
def test_sentence_ends(tokenizer: Tokenizer, rule: Rule, sampling: Greedy | Sampling) -> None:
    """A segment that ends with a sentence ends at the same token, drafts behind it or not."""
    pair, free = _pair(tokenizer, rule, sampling)
    drafts = [lm.begin(free_request()) for lm in (pair.plain, pair.fast)]
    while not drafts[0].finished:
        drafts = [
            lm.write_sentence(draft, FRONTS[0], 9, Progress())
            for lm, draft in zip((pair.plain, pair.fast), drafts, strict=True)
        ]
        assert drafts[0] == drafts[1]
    assert drafts[1].tokens == free.tokens


@pytest.mark.parametrize(("rule", "sampling"), WAYS)
def test_cancellation(tokenizer: Tokenizer, rule: Rule, sampling: Greedy | Sampling) -> None:
    """A segment that is cancelled at any token reports that token last, and spoils nothing."""
    pair, free = _pair(tokenizer, rule, sampling)
    for offset in range(1, LENGTH):
        draft = pair.fast.begin(free_request())
        reported = []
        progress = Progress()

        def report(state: Draft, offset: int = offset, progress: Progress = progress) -> None:
            reported.append(state)  # noqa: B023 called before the next round
            if len(state.tokens) == offset:
                progress.cancel()

        progress.connect(report)
        with pytest.raises(Cancelled):
            pair.fast.write(draft, FRONTS[0], 3 * LENGTH, progress)
        assert [len(state.tokens) for state in reported] == list(range(1, offset + 1))
        assert held_tokens(pair.fast, reported[-1])[0] == list(free.tokens[: offset - 1])
        again = pair.fast.write(draft, FRONTS[0], 3 * LENGTH, Progress())
        assert again == free


def test_an_error_in_a_pass_leaves_no_cache(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass that fails takes its half-written cache with it; the next one begins anew."""
    pair, free = _pair(tokenizer, oracle, Greedy())
    draft = pair.fast.begin(free_request())
    with monkeypatch.context() as patch:
        patch.setattr(pair.fast.model, "_logits", _out_of_memory)
        with pytest.raises(MemoryError):
            pair.fast.write(draft, FRONTS[0], LENGTH, Progress())

    assert pair.fast._lineage(draft) not in pair.fast.caches
    assert pair.fast.write(draft, FRONTS[0], 3 * LENGTH, Progress()) == free


def _out_of_memory(*_: object) -> None:
    raise MemoryError("planted")
