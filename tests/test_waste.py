"""What wrong guesses may cost: by hand in virtual time, and in engines."""

import asyncio
import copy
import pickle
from collections.abc import Sequence
from typing import Any

import pytest

from ralmspec_plugins import AsyncEngine, Continuous, Engine, Latencies, Settings, Simulation, plain
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Hits, Query, Stats
from ralmspec_plugins.waste import WasteShare
from tests.test_loop import STEPS, Counting, Guesser, Numbered, hit

TOKENS = 10  # of a segment
WRONG = Guesser({number: hit(0) for number in range(2, STEPS)})  # but for the first two


class Costly(Counting):
    """Writes a letter a step, which costs ten tokens."""

    def extend(self, state: str, hits: Hits, progress: Progress) -> str:
        progress.charge(TOKENS)
        return super().extend(state, hits, progress)


class Encoded(Numbered):
    """Encodes in a worker."""

    inline_encode = False


def simulated(guesser: Guesser | None = None, *, heeds: bool = True, **settings: Any) -> Stats:
    """Answer in virtual time: a search takes four steps, an encoding half of one."""
    latencies = Latencies(extend_s=1.0, search_s=lambda _: 4.0, encode_s=0.5)
    chosen = Settings(
        schedule=Continuous(lanes=STEPS), speculators=(guesser or Guesser(),), **settings
    )
    answer = Simulation(Costly(heeds), Encoded(), latencies, chosen).run("")
    assert answer.text == ("abcdefgh" if heeds else "x" * STEPS)
    return answer.stats


def test_right_guesses_waste_nothing() -> None:
    """Nor does the plain loop."""
    both: list[dict[str, Any]] = [{}, {"speculate": False}]
    for settings in both:
        stats = simulated(**settings)
        assert (stats.wasted_tokens, stats.wasted_encodings, stats.limited_by) == (0, 0, None)
        assert sum(span.tokens for span in stats.timeline) == STEPS * TOKENS


def test_what_wrong_guesses_cost_is_counted() -> None:
    """Each dropped segment, stopped or not, and each query that no step of the answer has."""
    stats = simulated(WRONG)

    assert stats.wasted_segments > 3
    assert stats.wasted_tokens == TOKENS * stats.wasted_segments
    assert stats.wasted_encodings == 0  # the question is the number of the step, so it comes again
    assert stats.limited_by is None


def test_a_segment_that_is_taken_back_is_not_wasted() -> None:
    """The text is the same with a wrong passage: most of what was dropped is used."""
    stats = simulated(Guesser({3: hit(0)}), heeds=False)

    assert stats.reused > 0
    assert stats.wasted_tokens == TOKENS * stats.wasted_segments > 0


@pytest.mark.parametrize("most", [0, 1, 10, 11, 25, 60])
def test_a_bound_on_tokens_is_kept_but_for_one_call(most: int) -> None:
    """Undecided segments count; the last call begins while less than the bound is at stake."""
    stats = simulated(WRONG, max_wasted_tokens=most)

    assert stats.wasted_tokens <= -(-most // TOKENS) * TOKENS
    assert (stats.wasted_tokens > 0) == (most > 0)
    assert stats.limited_by == "max_wasted_tokens"
    assert stats.unguessed == ("max_wasted_tokens was reached" if not most else None)


def test_undecided_work_counts_only_until_it_is_verified() -> None:
    """With right guesses a bound of one segment is never used up: one runs ahead at a time."""
    stats = simulated(max_wasted_tokens=TOKENS)
    ahead = sum(span.ahead for span in stats.timeline)

    assert (stats.wasted_tokens, stats.accepted) == (0, STEPS)
    assert ahead > 3
    assert simulated(max_wasted_tokens=99 * TOKENS).wall_s < stats.wall_s


class Lost(Counting):
    """Asks what the text says, so that a wrong segment's question is asked by no other step."""

    def query(self, state: str) -> str | None:
        return f"{len(state)}{state[-1:]}" if len(state) < STEPS else None


class ByText(Encoded):
    """Finds the letter of the step for any question."""

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        return [(hit(int(query.text[0])),) for query in queries]


class Misled(Guesser):
    """Guesses the first passage, whatever is asked."""

    def guess(self, query: Query) -> Hits:
        return (hit(0),)


@pytest.mark.parametrize("most", [None, 0, 1, 2, 5])
def test_a_bound_on_encodings_is_kept(most: int | None) -> None:
    """A query behind a guess counts from the moment at which it is formed."""
    latencies = Latencies(extend_s=1.0, search_s=lambda _: 4.0, encode_s=0.5)
    settings = Settings(
        schedule=Continuous(lanes=STEPS), speculators=(Misled(),), max_wasted_encodings=most
    )
    parts = Lost(), ByText()
    stats = [Simulation(*parts, latencies, settings).run("").stats for _ in range(2)][-1]

    if most is None:
        assert stats.wasted_encodings > 5
        assert stats.limited_by is None
    else:
        assert stats.wasted_encodings == most
        assert stats.limited_by == "max_wasted_encodings"
    assert len([span for span in stats.timeline if span.kind == "encode"]) == (
        STEPS + stats.wasted_encodings
    )


def test_an_inline_encoder_costs_nothing() -> None:
    """A bound on encodings says nothing where none is an effect of its own, but for zero."""
    latencies = Latencies(extend_s=1.0, search_s=lambda _: 4.0)
    settings = Settings(speculators=(Guesser(),), max_wasted_encodings=1)
    stats = Simulation(Counting(), Numbered(), latencies, settings).run("").stats

    assert stats.wasted_encodings == 0
    assert stats.limited_by is None
    assert any(span.ahead for span in stats.timeline)


@pytest.mark.parametrize("bound", [{"max_wasted_tokens": 25}, {"max_wasted_encodings": 2}])
def test_both_engines_keep_a_bound(bound: dict[str, Any]) -> None:
    """In threads and on asyncio, with the answer of the plain loop."""
    settings = Settings(schedule=Continuous(lanes=STEPS), speculators=(Misled(),), **bound)
    parts = Costly(), Encoded()

    async def run() -> Any:
        async with AsyncEngine(*parts, settings) as engine:
            return await engine.run("")

    with Engine(*parts, settings) as engine:
        answers = [engine.run(""), asyncio.run(run())]
    for answer in answers:
        assert plain(*parts, "").retrieved == answer.retrieved
        assert answer.text == "abcdefgh"
        assert answer.stats.wasted_tokens <= 30
        assert answer.stats.wasted_encodings <= 2


def answers_with(share: Any, guesser: Guesser | None = None, requests: int = 12) -> list[Stats]:
    """Answer some requests of one engine in virtual time."""
    latencies = Latencies(extend_s=1.0, search_s=lambda _: 4.0, encode_s=0.5)
    settings = Settings(
        schedule=Continuous(lanes=STEPS), speculators=(guesser or WRONG,), max_wasted_share=share
    )
    simulation = Simulation(Costly(), Encoded(), latencies, settings)
    answers = [simulation.run("") for _ in range(requests)]
    assert {answer.text for answer in answers} == {"abcdefgh"}
    return [answer.stats for answer in answers]


@pytest.mark.parametrize("limit", [0, 0.05, 0.2, 0.5])
def test_a_share_of_all_calls_is_kept(limit: float) -> None:
    """Over all requests, and after each of them; with 0 nothing is begun on a guess."""
    free, bound = answers_with(None), answers_with(limit)
    calls = wasted = 0
    for stats in bound:
        calls += stats.segments + stats.wasted_segments
        wasted += stats.wasted_segments
        assert wasted <= limit * calls
    assert sum(stats.wasted_segments for stats in free) > wasted
    assert "max_wasted_share" in {stats.limited_by for stats in bound}
    assert (wasted > 0) == (limit > 0)


def test_right_guesses_use_up_no_share() -> None:
    """What has become part of an answer is not at risk any more."""
    stats = answers_with(0.2, Guesser())

    assert sum(one.accepted for one in stats[4:]) > 2 * len(stats[4:])
    assert sum(one.wasted_segments for one in stats) == 0
    assert stats[-1].wall_s < answers_with(0)[-1].wall_s


class Asked(Costly):
    """Forms its queries in a worker."""

    inline_query = False


@pytest.mark.parametrize("workload", [Costly, Asked])
def test_what_is_kept_is_not_at_risk_after_a_request(workload: type[Costly]) -> None:
    """Neither its segments, nor its queries, nor the call that found the answer to be complete."""
    latencies = Latencies(extend_s=1.0, search_s=lambda _: 4.0, ask_s=0.1, encode_s=0.5)
    share = WasteShare(0.9)
    settings = Settings(
        schedule=Continuous(lanes=STEPS), speculators=(Guesser(),), max_wasted_share=share
    )
    simulation = Simulation(workload(), Encoded(), latencies, settings)
    for _ in range(3):
        stats = simulation.run("").stats
        assert stats.accepted > 3
        assert stats.wasted_segments == 0

    assert share._calls >= 3 * STEPS
    assert share._at_risk == 0


def test_a_share_is_copied_and_pickled() -> None:
    """As settings are; a copy begins without counts."""
    settings = Settings(max_wasted_share=0.1)
    for copied in (copy.deepcopy(settings), pickle.loads(pickle.dumps(settings))):
        assert copied.max_wasted_share.limit == 0.1
        assert copied.max_wasted_share is not settings.max_wasted_share


def test_engines_share_a_share() -> None:
    """Those with one settings object, and those that are given the same `WasteShare`."""
    share = WasteShare(0.5)
    settings = [Settings(speculators=(Guesser(),), max_wasted_share=share) for _ in range(2)]
    for setting in settings:
        with Engine(Costly(), Encoded(), setting) as engine:
            engine.run("")

    assert share._calls == 2 * STEPS
    assert all(setting.max_wasted_share is share for setting in settings)


@pytest.mark.parametrize("share", [-0.1, 1.5, True, "0.1", float("nan")])
def test_a_share_without_a_meaning_is_refused(share: Any) -> None:
    """At once, with what to do."""
    with pytest.raises(ConfigError, match="max_wasted_share must be from 0 to 1"):
        Settings(max_wasted_share=share)


@pytest.mark.parametrize("name", ["max_wasted_tokens", "max_wasted_encodings"])
@pytest.mark.parametrize("most", [-1, 0.5, True, "3"])
def test_a_bound_without_a_meaning_is_refused(name: str, most: Any) -> None:
    """At once, with what to do."""
    with pytest.raises(ConfigError, match=f"{name} must be a whole number of at least 0"):
        Settings(**{name: most})
