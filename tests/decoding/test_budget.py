"""How many drafts a pass takes: worked cases, and zero where nothing can be gained."""

import pytest

from ralmspec_plugins.decoding.budget import AcceptanceRates, Budget, CostCurve
from ralmspec_plugins.decoding.token_tree import EMPTY, Evidence, TokenTree
from ralmspec_plugins.errors import ConfigError

FLAT = CostCurve((1, 64), (1.0, 1.0))
SURE = Evidence("suffix", 9)


def _chain(length: int, evidence: Evidence = SURE) -> TokenTree:
    return TokenTree(
        tuple(range(length)), tuple(range(-1, length - 1)), evidence=(evidence,) * length
    )


def test_free_rows_are_all_taken() -> None:
    """Where a pass costs the same whatever its rows, every draft that may be right is taken."""
    chosen = Budget(FLAT).choose(_chain(12), 20, trees=True)

    assert _chain(12).tokens == chosen.tokens


def test_a_linear_cost_is_never_worth_it() -> None:
    """A draft that may be wrong at the price of a pass of its own cannot pay."""
    line = CostCurve((1, 2, 3, 4), (1.0, 2.0, 3.0, 4.0))

    assert Budget(line).choose(_chain(3), 20, trees=True) is EMPTY


def test_the_best_number_of_drafts() -> None:
    """Worked: chances 0.9, 0.81, 0.729 and costs 1.2, 2, 2.9 give 1.58, 1.36, 1.19 tokens a unit.

    The first estimate of a draft with 9 tokens of context is 9/10.
    """
    curve = CostCurve((1, 2, 3, 4), (1.0, 1.2, 2.0, 2.9))

    assert [0.9, 0.81, 0.729] == pytest.approx(Budget(curve).chances(_chain(3)))
    assert len(Budget(curve).choose(_chain(3), 20, trees=True)) == 1


def test_a_cheaper_wider_pass_is_filled_up() -> None:
    """3 rows cost more than 6 do: 2 drafts are followed by 3 that nothing speaks for."""
    curve = CostCurve((1, 3, 6, 8), (1.0, 1.6, 1.1, 4.0))
    chosen = Budget(curve).choose(_chain(2), 20, trees=True)

    assert (0, 1) == chosen.tokens[:2]
    assert [0.0] * 3 == list(chosen.values[2:])
    assert len(Budget(curve).choose(_chain(2), 3, trees=False)) == 3  # no deeper than is useful


def test_useless_drafts_are_given_up_and_taken_up_again() -> None:
    """After wrong drafts none is taken; drafts that would have been right bring them back."""
    curve = CostCurve((1, 2, 4, 8), (1.0, 1.1, 1.3, 1.6))
    budget = Budget(curve)
    for _ in range(60):
        budget.learn(_chain(4), [99])
    assert budget.choose(_chain(4), 20, trees=True) is EMPTY
    for _ in range(200):
        budget.learn(_chain(4), [0, 1, 2, 3])

    assert len(budget.choose(_chain(4), 20, trees=True)) >= 4


def test_drafting_becomes_rare_where_it_does_not_pay() -> None:
    """At last seven tokens of eight come without drafting; a draft worth a pass ends that."""
    budget = Budget(CostCurve((1, 2), (1.0, 2.0)))
    asked = []
    for _ in range(400):
        asked.append(budget.ask(31) > 0)
        if asked[-1]:
            budget.choose(_chain(1), 9, trees=True)

    assert asked[:4] == [True] * 4
    assert sum(asked[-80:]) == 10
    budget.costs = FLAT
    while not budget.ask(31):
        pass
    assert budget.choose(_chain(3), 9, trees=True)
    assert budget.ask(31)


def test_more_is_asked_for_where_more_is_right() -> None:
    """Texts that are copied at length are drafted at length."""
    budget = Budget(FLAT)
    before = budget.ask(31)
    for _ in range(40):
        budget.learn(_chain(9), list(range(9)))

    assert before < budget.ask(31) == 31


def test_certifying_counts_as_cost() -> None:
    """Where a token's certification takes a pass' time, nothing can be gained."""
    budget = Budget(CostCurve((1, 8), (1.0, 1.1), 0.01))
    assert budget.choose(_chain(4), 20, trees=True)
    for _ in range(100):
        budget.note_check(0.01)

    assert budget.choose(_chain(4), 20, trees=True) is EMPTY


def test_choices_taken_again_count_as_cost() -> None:
    """Where certainty takes more passes than speculation saves, nothing is speculated on."""
    budget = Budget(CostCurve((1, 8), (1.0, 1.3)))
    assert budget.choose(_chain(4), 20, trees=True)
    budget.note_tokens(0, 400)
    assert budget.choose(_chain(4), 20, trees=True) is EMPTY
    budget.note_tokens(2000, 0)
    assert budget.choose(_chain(4), 20, trees=True)


def test_siblings_are_judged_by_their_rank() -> None:
    """Of two children the first is learned to be right and the second to be wrong."""
    tree = TokenTree((5, 6), (-1, -1), (0.6, 0.4), (Evidence("s", 3, 0.6), Evidence("s", 3, 0.4)))
    budget = Budget(FLAT)
    for _ in range(50):
        budget.learn(tree, [5])
    first, second = budget.chances(tree)

    assert first > 0.9
    assert second < 0.1


def test_older_tries_count_for_less() -> None:
    """After a thousand wrong drafts, as many right ones are enough to be trusted again."""
    rates = AcceptanceRates()
    for accepted in (False, True):
        for _ in range(1000):
            rates.learn(SURE, 1, first=True, accepted=accepted)

    assert rates.of(SURE, 1, first=True) > 0.9


@pytest.mark.parametrize(
    ("rows", "costs"), [((), ()), ((2,), (1.0,)), ((1, 1), (1.0, 1.0)), ((1, 2), (1.0, 0.0))]
)
def test_what_is_no_curve_is_refused(rows: tuple[int, ...], costs: tuple[float, ...]) -> None:
    """A curve begins with one row at cost 1 and rises in rows."""
    with pytest.raises(ConfigError, match="cost curve"):
        CostCurve(rows, costs)


@pytest.mark.parametrize(("draft_s", "rare"), [(0.5, True), (0.001, False)])
@pytest.mark.parametrize("tree", [TokenTree(), TokenTree((5,), (-1,), (0.1,), (Evidence("x"),))])
def test_drafts_that_cost_more_than_they_give_become_rare(
    draft_s: float, rare: bool, tree: TokenTree
) -> None:
    """A drafter that takes half a pass and finds nothing, or nothing right, is asked seldom."""
    budget = Budget(CostCurve((1, 8), (1.0, 1.0), pass_s=1.0))
    asked = 0
    for _ in range(2000):
        if budget.ask(4):
            asked += 1
            budget.note_draft(draft_s)
            budget.choose(tree, 8, trees=True)
            budget.learn(tree, [9])

    assert rare == (asked < 300)
    if rare:
        assert asked * draft_s < 0.1 * 2000
