"""Schedules: the paper's test vectors, the batch curve, and what policies decide."""

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ralmspec_plugins.config import Settings
from ralmspec_plugins.engine.simulation import Latencies, Simulation
from ralmspec_plugins.engine.threads import Engine
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.plain import plain
from ralmspec_plugins.scheduling.cost_model import BatchCurve, Contention, Costs, Searched
from ralmspec_plugins.scheduling.os3 import (
    best_part,
    estimate_gamma,
    optimal_stride,
    worth_gathering,
)
from ralmspec_plugins.scheduling.policy import Policy, SchedulerState
from ralmspec_plugins.scheduling.schedules import (
    Continuous,
    FixedStride,
    OptimalStride,
    Schedule,
)
from ralmspec_plugins.testing import EchoWorkload, WordRetriever
from ralmspec_plugins.types import Hit, Hits, Passage, Query

GAMMAS = (0.2, 0.4, 0.6, 0.8, 0.9)

# PAPERS 1.6: a, b, then the stride for each gamma, synchronous / with overlap.
VECTORS = [
    (1, 40, "3/3 4/4 6/6 11/11 19/19"),
    (1, 10, "2/2 3/3 4/4 7/7 11/11"),
    (1, 3, "1/1 2/2 3/2 4/4 7/6"),
    (1, 1, "1/1 1/1 2/1 3/1 4/1"),
    (1, 0.5, "1/1 1/1 1/1 2/1 3/1"),
    (0.1, 4.2, "3/3 4/4 6/6 11/11 19/19"),
    (0.22, 4.2, "2/2 3/3 5/5 9/9 14/14"),
    (0.22, 0.15, "1/1 1/1 2/1 2/1 3/1"),
    (0.11, 0.15, "1/1 1/1 2/1 3/2 5/3"),
    (0.22, 0.026, "1/1 1/1 1/1 1/1 2/1"),
]


@pytest.mark.parametrize(("a", "b", "expected"), VECTORS)
def test_the_stride_is_the_papers(a: float, b: float, expected: str) -> None:
    """OS3 finds the stride of each of the 100 vectors of PAPERS 1.6."""
    actual = " ".join(
        f"{optimal_stride(a, b, gamma)}/{optimal_stride(a, b, gamma, overlap=True)}"
        for gamma in GAMMAS
    )

    assert expected == actual


@given(
    a=st.floats(0, 10),
    b=st.floats(0, 100),
    gamma=st.floats(0, 1),
    overlap=st.booleans(),
    limit=st.integers(1, 64),
)
def test_stopping_early_finds_the_best_stride(
    a: float, b: float, gamma: float, overlap: bool, limit: int
) -> None:
    """No stride within the limit verifies more a second than the one that is chosen."""
    a_clamped, b_clamped, gamma_clamped = max(a, 1e-9), max(b, 1e-9), min(gamma, 1 - 1e-9)

    def rate(stride: int) -> float:
        latency, right = stride * a_clamped + b_clamped, gamma_clamped**stride
        if overlap:
            hidden = (stride - 1) * a_clamped + max(a_clamped, b_clamped)
            latency = right * hidden + (1 - right) * latency
        return (1 - right) / ((1 - gamma_clamped) * latency)

    chosen = optimal_stride(a, b, gamma, overlap=overlap, limit=limit)

    assert 1 <= chosen <= limit
    assert rate(chosen) >= max(map(rate, range(1, limit + 1))) * (1 - 1e-9)


def test_free_parts_do_not_hang() -> None:
    """With a free model and a free retriever the search for a stride still ends (PAPERS 1.6)."""
    assert 1 <= optimal_stride(0.0, 0.0, 0.6) <= 64
    assert optimal_stride(0.0, 1.0, 1.0) == 64


def test_gamma_is_the_papers() -> None:
    """Strides 3, 4, 3, 2 with 1, 4, 2, 0 matches: 7 right, 3 rounds cut short, 7 / 10, capped."""
    assert estimate_gamma([1, 4, 2, 0], [3, 4, 3, 2]) == 0.6
    assert estimate_gamma([1, 4, 2, 0], [3, 4, 3, 2], limit=0.9) == pytest.approx(0.7)
    assert estimate_gamma([0], [1]) == 0.0


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(0, 10)), max_size=30))
def test_the_curve_never_falls(measured: list[tuple[int, float]]) -> None:
    """A larger batch never costs less, whatever was measured."""
    curve = BatchCurve()
    for queries, seconds in measured:
        curve.observe(queries, seconds)
    costs = [curve(queries) for queries in range(1, 100)]

    assert costs == sorted(costs)


def test_one_disturbed_search_does_not_count_for_long() -> None:
    """A cold first search of a minute is forgotten with the second one."""
    curve = BatchCurve()
    for seconds in (60.0, 0.1, 0.1):
        curve.observe(1, seconds)

    assert curve(1) == curve(8) == 0.1


def test_a_size_that_no_longer_occurs_is_measured_anew() -> None:
    """One bad batch must not end batching for ever."""
    curve = BatchCurve()
    curve.observe(4, 300.0)
    for _ in range(100):
        curve.observe(1, 0.1)

    assert curve(4) == 0.1


def view(
    *,
    pending: int = 0,
    searching: int = 0,
    in_flight: int = 0,
    ahead: int = 0,
    stalled: bool = False,
) -> SchedulerState:
    return SchedulerState(pending, searching, in_flight, ahead, stalled)


def test_a_fixed_stride_waits_for_its_batch() -> None:
    """Stride 3 writes on two guesses, then sends three queries; it writes nothing meanwhile."""
    policy = FixedStride(stride=3).begin(Costs())

    may_write = [policy.may_write(view(pending=n + 1, ahead=n)) for n in (0, 1, 2)]

    assert may_write == [True, True, False]
    assert policy.batches(view(pending=2, ahead=1)) == []
    assert policy.batches(view(pending=3, ahead=2)) == [3]
    assert not policy.may_write(view(pending=0, searching=1, in_flight=3, ahead=2))


def test_a_stalled_round_is_sent() -> None:
    """Where nothing can be written, what is pending goes out, however little."""
    policy = FixedStride(stride=8).begin(Costs())

    assert policy.batches(view(pending=1, stalled=True)) == [1]


def test_overlap_writes_one_step_more() -> None:
    """While three queries are out, the third one's step may be written, and no other."""
    policy = FixedStride(stride=3, overlap=True).begin(Costs())

    assert policy.may_write(view(searching=1, in_flight=3, ahead=2))
    assert not policy.may_write(view(pending=1, searching=1, in_flight=3, ahead=3))


def after_rounds(policy: Policy, *, step_s: float, search_s: float, right: bool) -> Policy:
    """Let a policy see six rounds of one kind."""
    for _ in range(6):
        policy.batches(view(pending=1, stalled=True))
        policy.wrote(step_s)
        policy.searched(Searched(1, search_s))
        policy.record_outcome(right)
        policy.may_write(view(pending=1))
    return policy


def test_the_stride_follows_what_is_measured() -> None:
    """Dear searches and right guesses make long rounds; wrong ones make the plain loop."""
    dear = after_rounds(OptimalStride().begin(Costs()), step_s=1, search_s=40, right=True)
    wrong = after_rounds(OptimalStride().begin(Costs()), step_s=1, search_s=40, right=False)

    assert dear.may_write(view(pending=5, ahead=4))
    assert dear.batches(view(pending=1)) == []
    assert not wrong.may_write(view(pending=1))
    assert wrong.batches(view(pending=1)) == [1]


def test_one_lane_takes_what_is_pending() -> None:
    """A free lane takes everything, a busy one nothing."""
    policy = Continuous().begin(Costs())

    assert policy.batches(view(pending=5)) == [5]
    assert policy.batches(view(pending=5, searching=1, in_flight=2)) == []


def test_many_lanes_take_one_query_each() -> None:
    """Each query starts when it is born; more than there are lanes are shared out."""
    policy = Continuous(lanes=4).begin(Costs())

    assert policy.batches(view(pending=3)) == [1, 1, 1]
    assert policy.batches(view(pending=3, searching=2, in_flight=2)) == [2, 1]


def test_batches_that_cost_what_their_queries_cost_go_out_singly() -> None:
    """Where b(n) = n b(1), the first answer should not wait for the last."""
    curve = BatchCurve()
    for queries in (1, 2, 4, 8):
        curve.observe(queries, 0.1 * queries)
    policy = Continuous().begin(Costs(curve))

    assert policy.batches(view(pending=8)) == [1]


def test_a_first_step_that_writes_nothing_does_not_make_searches_wait() -> None:
    """FLARE's first step only searches: a step seems to take no time, and searches to gather.

    Each later one takes as long as a search; as soon as that is known, one query is enough.
    """
    policy = Continuous(lanes=4).begin(Costs())
    policy.wrote(0.00001)
    policy.searched(Searched(1, 0.3))
    gathers = policy.batches(view(pending=1))
    policy.wrote(0.3)
    policy.wrote(0.3)

    assert gathers == []
    assert policy.batches(view(pending=1)) == [1]


def test_the_window_bounds_what_runs_ahead() -> None:
    """At most `window` steps stand on guesses that nobody confirmed."""
    policy = Continuous(window=3).begin(Costs())

    assert policy.may_write(view(ahead=2))
    assert not policy.may_write(view(ahead=3))


def test_hopeless_guesses_are_not_written_on() -> None:
    """After many wrong guesses nothing runs ahead; after some right ones it does again."""
    policy = Continuous().begin(Costs())
    for _ in range(32):
        policy.record_outcome(accepted=False)
    hopeless = policy.may_write(view())
    for _ in range(8):
        policy.record_outcome(accepted=True)

    assert not hopeless
    assert policy.may_write(view())


def test_segments_that_stop_late_make_wrong_guesses_dear() -> None:
    """Half of the guesses are right: what they hide is less than waiting for a stop takes."""
    costs = Costs()
    costs.wrote(0.01)
    costs.searched(Searched(1, 0.01))
    for turn in range(30):
        costs.record_outcome(accepted=turn % 2 == 0)
    quick = costs.worth_writing()
    for _ in range(9):
        costs.stopped(0.02)
    late = costs.worth_writing()
    for turn in range(200):
        costs.record_outcome(accepted=turn % 2 == 0)

    assert (quick, late, costs.worth_writing()) == (True, False, True)


def test_the_first_outcome_is_awaited_where_a_search_is_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One segment on a guess until then; all the window beside long searches."""
    monkeypatch.setattr(Costs, "LONG_SEARCH", 2.0)
    for search_s, most in ((0.015, 1), (0.03, 64)):
        costs = Costs()
        policy = Continuous().begin(costs)
        costs.wrote(0.01)
        costs.searched(Searched(1, search_s))
        careful = [policy.may_write(view(ahead=ahead)) for ahead in (0, 1, most - 1, most)]
        policy.record_outcome(accepted=True)

        assert [True, most > 1, True, False] == careful
        assert policy.may_write(view(ahead=63))


def test_before_one_was_stopped_a_wrong_guess_costs_half_a_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Right or wrong alike, so a search must take longer than half a step to be worth a guess."""
    monkeypatch.setattr(Costs, "STOP_SHARE", 0.5)
    for search_s, worth in ((0.009, False), (0.013, True)):
        costs = Costs()
        costs.wrote(0.02)
        costs.searched(Searched(1, search_s))
        before = costs.worth_writing()
        costs.stopped(0.0)

        assert (worth, True) == (before, costs.worth_writing())


class _Wrong:
    """Guesses a passage that is never found."""

    inline = True

    def guess(self, _query: Query) -> Hits:
        return (Hit(Passage("none", "never found")),)

    def learn(self, query: Query, hits: Hits) -> None:
        """It knows nothing."""


@pytest.mark.parametrize("search_s", [0.005, 0.01, 0.02, 0.03, 0.05, 0.1])
def test_wrong_guesses_cost_little_from_the_first_request_on(
    search_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments of 30 ms that cannot be stopped: 20 wrong guesses cost one of them, or 3 %."""
    for name, value in {"LONG_SEARCH": 2.0, "STOP_SHARE": 0.5, "WORTH_WRITING": 0.05}.items():
        monkeypatch.setattr(Costs, name, value)
    words = [f"word{number}" for number in range(20)]
    store = WordRetriever(words)
    latencies = Latencies(extend_s=0.03, search_s=lambda _: search_s, stop_s=0.03)
    settings = Settings(speculators=[_Wrong()])
    answer = Simulation(EchoWorkload(), store, latencies, settings).run(" ".join(words))

    assert answer == plain(EchoWorkload(), store, " ".join(words))
    assert 20 == answer.stats.segments
    assert answer.stats.guesses > 0 == answer.stats.accepted
    plain_s = 20 * (search_s + 0.03)
    assert answer.stats.wall_s <= plain_s + max(0.03, 0.03 * plain_s)


@pytest.mark.parametrize(
    ("min_acceptance_rate", "written"), [(0.1, True), (0.3, True), (0.5, False)]
)
def test_the_share_of_right_guesses_that_is_asked_for(
    min_acceptance_rate: float, *, written: bool
) -> None:
    """With two guesses in five right, a schedule that asks for half of them waits."""
    policy = Continuous(min_acceptance_rate=min_acceptance_rate).begin(Costs())
    for number in range(30):
        policy.record_outcome(accepted=number % 5 < 2)

    assert written == policy.may_write(view())


def test_a_share_is_between_nothing_and_all() -> None:
    """Anything else is refused."""
    with pytest.raises(ConfigError, match="min_acceptance_rate"):
        Continuous(min_acceptance_rate=1.5)


def costs_of(*, alone_s: float, beside_s: float) -> Costs:
    """Give what is known after steps of these lengths, alone and beside a search."""
    costs = Costs()
    for _ in range(Contention.ENOUGH):
        costs.wrote(alone_s)
        costs.wrote(beside_s, beside_s)
    return costs


@pytest.mark.parametrize(
    ("beside_s", "speed"),
    [(1.0, 1.0), (1.1, 1.0), (1.25, 0.8), (2.0, 0.5), (9.0, 0.5), (0.5, 1.0)],
)
def test_contention_is_what_a_step_takes_longer_beside_a_search(
    beside_s: float, speed: float
) -> None:
    """A step of 1 second that takes 1.25 beside a search is written at 0.8 of the speed.

    A tenth counts as noise, and more than all of the machine cannot be taken.
    """
    assert costs_of(alone_s=1.0, beside_s=beside_s).contention.speed == pytest.approx(speed)


def test_a_step_that_was_half_beside_a_search_counts_for_that_half() -> None:
    """1 second alone, 1.5 with 1 second beside a search: half a second's work in that second."""
    costs = Costs()
    for _ in range(Contention.ENOUGH):
        costs.wrote(1.0)
        costs.wrote(1.5, 1.0)

    assert costs.contention.speed == pytest.approx(0.5)
    assert costs.contention.alone_s(1.5, 1.0) == pytest.approx(1.0)


def test_contention_is_forgotten_and_measured_anew() -> None:
    """What was true beside a search long ago need not be true any more."""
    costs = costs_of(alone_s=1.0, beside_s=2.0)
    assert not costs.worth_writing_beside(1)
    for _ in range(Contention.FADING):
        costs.searched(Searched(1, 1.0))

    assert costs.contention.speed == 1.0
    assert costs.worth_writing_beside(1)


def test_costs_are_those_of_work_alone() -> None:
    """At half speed a step of 2 seconds beside a search counts as 1, and so does a search."""
    costs = costs_of(alone_s=1.0, beside_s=2.0)
    costs.wrote(2.0, 2.0)
    costs.searched(Searched(1, 6.0, 4.0))

    assert costs.step_s == 1.0
    assert costs.curve(1) == 4.0


def test_a_search_that_takes_from_the_model_waits_for_a_batch() -> None:
    """At half speed nothing is gained by searching early, so more go out together."""
    policy = Continuous().begin(Costs())
    full = Continuous().begin(costs_of(alone_s=1.0, beside_s=2.0))
    for right in (True, True, True, False) * 4:
        full.record_outcome(right)
    full.searched(Searched(1, 20.0))
    full.searched(Searched(64, 21.0))

    assert policy.batches(view(pending=1)) == [1]
    assert full.batches(view(pending=1)) == []
    assert full.batches(view(pending=1, stalled=True)) == [1]
    assert full.batches(view(pending=60)) != []
    assert not full.may_write(view(searching=1, ahead=1))
    assert full.may_write(view(ahead=1))


def test_a_step_that_begins_with_a_search_is_beside_it() -> None:
    """At half speed it is not begun where a search is about to go out, and else it is."""
    policy = Continuous().begin(Costs())
    full = Continuous().begin(costs_of(alone_s=1.0, beside_s=2.0))
    for right in (True, True, True, False) * 4:
        full.record_outcome(right)
    full.searched(Searched(1, 20.0))
    full.searched(Searched(64, 21.0))

    assert full.may_write(view(pending=1, ahead=1))
    assert not full.may_write(view(pending=60, ahead=1))
    assert policy.may_write(view(pending=60, ahead=1))


@pytest.mark.parametrize("speed", [1.0, 0.8, 0.5])
def test_a_stride_knows_of_contention(speed: float) -> None:
    """At half speed an overlapped round costs what a synchronous one costs, so strides agree."""
    overlapped = optimal_stride(3, 5, 0.9, overlap=True, speed=speed)
    synchronous = optimal_stride(3, 5, 0.9)

    assert overlapped <= synchronous
    assert (overlapped == synchronous) == (speed == 0.5)


@given(
    pending=st.integers(1, 24),
    fixed_s=st.floats(0, 50),
    each_s=st.floats(0.01, 5),
    gamma=st.floats(0, 1),
)
def test_no_other_part_is_searched_sooner(
    pending: int, fixed_s: float, each_s: float, gamma: float
) -> None:
    """Of all sizes, parts of the chosen one take the least on average, counted part by part."""

    def takes(part: int) -> float:
        begins = range(0, pending, part)
        return sum(
            gamma**begin * (fixed_s + each_s * min(part, pending - begin)) for begin in begins
        )

    chosen = best_part(pending, lambda n: fixed_s + each_s * n, gamma)

    assert 1 <= chosen <= pending
    assert takes(chosen) <= min(map(takes, range(1, pending + 1))) * (1 + 1e-9)


def test_a_search_of_all_is_not_cut_where_batches_are_nearly_free() -> None:
    """31 queries, b(n) = 39 + n, 95 % right: 70 at once; 15, 15 and 1 take 54 + 0.46 x 54 + ...

    54 + 0.463 x 54 + 0.215 x 40 = 87.6. The rate of OS3, (1 - 0.95^n) / b(n), is highest at 16,
    but counts as if there were always more to search.
    """
    assert best_part(31, lambda n: 39 + n, 0.95) == 31
    assert best_part(31, lambda n: 39 + n, 0.95, worth=1e9) == 1


def test_a_lane_gathers_before_it_is_taken_by_one_query() -> None:
    """At R/G 20 a search waits for about what is written meanwhile, unless nothing can be written.

    It goes at once where half of that is there; with as many lanes as that, with a dear batch,
    and at R/G 1.4, nothing is gathered.
    """
    curve = BatchCurve()
    for size in (1, 16):
        curve.observe(size, 19.5 + 0.5 * size)
    costs = Costs(curve)
    for _ in range(40):
        costs.wrote(1.0)
        costs.record_outcome(accepted=True)
    policy = Continuous().begin(costs)
    view = SchedulerState(pending=1, searching=0, in_flight=0, ahead=1, stalled=False)

    assert policy.batches(view) == []
    assert policy.batches(replace(view, pending=19)) == []
    assert policy.batches(replace(view, pending=20)) == [20]
    assert policy.batches(replace(view, pending=10)) == [10]
    assert policy.batches(replace(view, stalled=True)) == [1]
    assert Continuous(lanes=32).begin(costs).batches(view) == [1]
    assert worth_gathering(1.0, lambda n: 20.0 * n, 0.9) == 1
    assert worth_gathering(1.0, lambda n: 1.2 + 0.2 * n, 0.9) == 1


@pytest.mark.parametrize(("own_s", "worth"), [(0.002, False), (0.0005, True)])
def test_a_short_search_that_computes_here_is_not_guessed_for(
    monkeypatch: pytest.MonkeyPatch, own_s: float, worth: bool
) -> None:
    """Two threads that compute take more from each other than 2 ms of searching would give."""
    monkeypatch.setattr(Costs, "SIDE_BY_SIDE_S", 0.003)
    costs = Costs()
    costs.wrote(0.01)
    costs.store.observe(0.002, own_s)
    costs.searched(Searched(1, 0.002))

    assert worth == costs.worth_guessing()


def test_only_a_trial_prefetches_for_guesses_that_are_never_right() -> None:
    """One search of sixteen; once some guesses are right again, each does."""
    costs = Costs()
    policy = Continuous().begin(costs)
    costs.wrote(0.01)
    before = policy.worth_prefetching()
    for _ in range(32):
        costs.record_outcome(accepted=False)
    wide = []
    for _ in range(32):
        costs.searched(Searched(1, 0.01))
        wide.append(policy.worth_prefetching())
    assert policy.worth_guessing()
    for _ in range(4):
        costs.record_outcome(accepted=True)

    assert before
    assert sum(wide) == 2
    assert policy.worth_prefetching()
    assert FixedStride(stride=2).begin(costs).worth_prefetching()


@pytest.mark.parametrize(("guess_s", "worth"), [(0.009, False), (0.004, True)])
def test_guesses_that_take_what_they_hide_are_not_made(guess_s: float, worth: bool) -> None:
    """Half of them are right, so a guess for a search of 10 ms hides 5 on average."""
    costs = Costs()
    costs.wrote(0.01)
    costs.searched(Searched(1, 0.01))
    for turn in range(30):
        costs.record_outcome(accepted=turn % 2 == 0)
    costs.guessed(guess_s)

    assert worth == costs.worth_guessing()


def test_quick_guesses_are_never_held_back() -> None:
    """A pool's take microseconds, and beside a search as short nothing is lost by them."""
    costs = Costs()
    costs.wrote(0.0001)
    costs.searched(Searched(1, 0.00005))
    costs.guessed(0.0002)

    assert costs.worth_guessing()


def test_what_guessing_took_is_forgotten_search_by_search() -> None:
    """Else one slow guess would be the last; a usual one is, whatever the slowest took."""
    costs = Costs()
    costs.wrote(0.01)
    costs.guessed(0.1)
    costs.searched(Searched(1, 0.01))
    assert not costs.worth_guessing()
    for _ in range(80):
        costs.searched(Searched(1, 0.01))
    assert costs.worth_guessing()

    costs.guessed(0.001)
    costs.guessed(0.001)
    assert costs.worth_guessing()


class NoGuess:
    """Takes ten times as long as a search, and guesses nothing."""

    inline = True

    def __init__(self, signature: Hashable) -> None:
        self.signature = signature
        self.asked = 0

    def guess(self, query: Query) -> Hits | None:
        self.asked += 1
        time.sleep(0.05)
        return None

    def learn(self, query: Query, hits: Hits) -> None:
        """Learn nothing."""


class SlowWords(WordRetriever):
    def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        time.sleep(0.005)
        return super().search_wide(queries, width)


class NoneFromAWorker(NoGuess):
    """Guesses nothing, at once, where it holds nobody up."""

    inline = False

    def guess(self, query: Query) -> Hits | None:
        return None


@pytest.mark.parametrize("others", [(), (NoneFromAWorker,)], ids=["alone", "with another"])
@pytest.mark.parametrize("schedule", [Continuous(), OptimalStride()])
def test_slow_guesses_are_noticed(
    schedule: Schedule, others: tuple[Callable[[Hashable], NoGuess], ...]
) -> None:
    """Who guesses in ten times a search's time is asked in the first steps, and then no more."""
    words = SlowWords(["a passage"])
    guesser = NoGuess(words.signature)
    behind = [make(words.signature) for make in others]
    settings = Settings(schedule=schedule, speculators=(guesser, *behind))
    with Engine(EchoWorkload(), words, settings) as engine:
        engine.run(" ".join(f"word{number}" for number in range(40)))

    assert 1 <= guesser.asked <= 10
