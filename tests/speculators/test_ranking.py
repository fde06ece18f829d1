"""Who guesses is measured: the speculator that is right most often is asked first."""

from itertools import pairwise

from ralmspec_plugins import Latencies, Settings, Simulation
from ralmspec_plugins.plain import plain
from ralmspec_plugins.speculators.ranking import SpeculatorRates
from ralmspec_plugins.testing import EchoWorkload, WordRetriever
from ralmspec_plugins.types import Hits, Query, Request

WORDS = [f"word{n}" for n in range(40)]
STORE = [f"{word} stands here" for word in WORDS]


class _Guesser:
    """Guesses right or wrong, as it is told; counts."""

    inline = True

    def __init__(self, store: WordRetriever, right: bool) -> None:
        self.store, self.right, self.asked = store, right, 0

    def guess(self, query: Query) -> Hits | None:
        self.asked += 1
        hits = tuple(self.store.search([query])[0])
        other = tuple(self.store.search([Query("word7 here")])[0])
        return hits if self.right else other[::-1] if len(other) > 1 else other

    def learn(self, query: Query, hits: Hits) -> None:
        pass


def test_a_right_speculator_overtakes_a_wrong_one() -> None:
    """The wrong one that always answers stands first in the list, and is soon asked second."""
    store = WordRetriever(STORE)
    wrong, right = _Guesser(store, False), _Guesser(store, True)
    engine = Simulation(
        EchoWorkload(),
        store,
        Latencies(search_s=lambda _: 0.05, extend_s=lambda _: 0.01),
        Settings(speculators=[wrong, right]),
    )
    accepted = []
    for start in range(0, 40, 8):
        request = Request(prompt=" ".join(WORDS[start : start + 8]))
        answer = engine.run(request)

        assert answer.text == plain(EchoWorkload(), store, request).text != ""
        accepted.append(answer.stats.guess_rate or 0.0)

    assert accepted[0] < 1.0
    assert accepted[-1] > 0.9
    assert right.asked > 2 * wrong.asked


def test_the_given_order_stands_among_equals() -> None:
    """Rates that differ by little are noise."""
    rates = SpeculatorRates()
    for place in (0, 1, 2):
        for _ in range(20):
            rates.record_outcome(place, True, 0.05)
    rates.record_outcome(0, False, 0.05)

    assert (0, 1, 2) == rates.order(3)


def test_a_rejected_speculator_is_tried_again() -> None:
    """Its counts fade while others are asked, since what is asked may have changed."""
    rates = SpeculatorRates()
    for _ in range(10):
        rates.record_outcome(0, False, 0.05)
    before = rates.order(2)
    for _ in range(400):
        rates.record_outcome(1, True, 0.05)

    assert (1, 0) == before
    assert (0, 1) == rates.order(2)


def test_one_speculator_needs_no_order() -> None:
    """Nor does none."""
    rates = SpeculatorRates()
    rates.record_outcome(0, False, 0.05)

    assert [0] == list(rates.order(1))
    assert [] == list(rates.order(0))


def test_what_a_guess_saves_counts_not_only_how_often_it_is_right() -> None:
    """One that answers before the query is encoded saves more, though it is less often right."""
    rates, alike = SpeculatorRates(), SpeculatorRates()
    for number in range(60):
        for one, lead_s in ((rates, 0.07), (alike, 0.05)):
            one.record_outcome(0, number % 10 < 7, lead_s)
            one.record_outcome(1, number % 10 < 9, 0.05)

    assert (0, 1) == rates.order(2)
    assert (1, 0) == alike.order(2)


def test_the_order_does_not_change_to_and_fro() -> None:
    """Between two that save about the same, the one that is asked stays; each change costs time."""
    rates = SpeculatorRates()
    orders = []
    for number in range(120):
        rates.record_outcome(0, number % 10 < (4 if number < 40 else 7), 0.05)
        rates.record_outcome(1, number % 10 < 8, 0.05)
        orders.append(tuple(rates.order(2)))

    assert orders[0] == (0, 1)
    assert orders[-1] == (1, 0)
    assert sum(before != after for before, after in pairwise(orders)) == 1


def test_a_slow_speculator_saves_little() -> None:
    """Where its guesses come shortly before the search's results, another one is asked first."""
    rates = SpeculatorRates()
    for number in range(40):
        rates.record_outcome(0, True, 0.01)
        rates.record_outcome(1, number % 2 == 0, 0.05)

    assert (1, 0) == rates.order(2)


class _Slow(_Guesser):
    """Answers outside of the loop."""

    inline = False


def test_the_lead_of_a_guess_is_measured() -> None:
    """A right one that takes almost as long as the search is asked after a quick one."""
    store = WordRetriever(STORE)
    slow, quick = _Slow(store, True), _Guesser(store, True)
    engine = Simulation(
        EchoWorkload(),
        store,
        Latencies(search_s=lambda _: 0.05, extend_s=lambda _: 0.01, guess_s=0.045),
        Settings(speculators=[slow, quick]),
    )
    for _ in range(2):
        for place, lead_s in ((0, 0.005), (1, 0.05)):
            engine._session.rates.record_outcome(place, True, lead_s)
    for start in range(0, 32, 8):
        request = Request(prompt=" ".join(WORDS[start : start + 8]))
        assert engine.run(request).text == plain(EchoWorkload(), store, request).text != ""

    assert slow.asked == 0 < quick.asked
    only = Simulation(
        EchoWorkload(),
        store,
        Latencies(search_s=lambda _: 0.05, extend_s=lambda _: 0.01, guess_s=0.045),
        Settings(speculators=[slow]),
    )
    only.run(Request(prompt=" ".join(WORDS[:8])))
    leads = only._session.rates._counts[0]

    assert leads.all > 0
    assert leads.lead_s / leads.all < 0.02
