"""Who guesses is measured: the speculator that is right most often is asked first."""

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
            rates.record_outcome(place, True)
    rates.record_outcome(0, False)

    assert (0, 1, 2) == rates.order(3)


def test_a_rejected_speculator_is_tried_again() -> None:
    """Its counts fade while others are asked, since what is asked may have changed."""
    rates = SpeculatorRates()
    for _ in range(10):
        rates.record_outcome(0, False)
    before = rates.order(2)
    for _ in range(400):
        rates.record_outcome(1, True)

    assert (1, 0) == before
    assert (0, 1) == rates.order(2)


def test_one_speculator_needs_no_order() -> None:
    """Nor does none."""
    rates = SpeculatorRates()
    rates.record_outcome(0, False)

    assert [0] == list(rates.order(1))
    assert [] == list(rates.order(0))
