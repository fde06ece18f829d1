"""RAPID's acceptance rule as its paper has it: exact for eta 0, and for no other."""

import numpy as np
import pytest

from benchmarks.decoding.rapid_rule import (
    Pair,
    deviations,
    distribution,
    enriched,
    token_by_token,
    total_variation,
)


@pytest.mark.parametrize("drafts", [1, 2, 3])
def test_without_transfer_the_rule_is_exact(drafts: int) -> None:
    """The enumerated distribution is that of the target, whatever the drafter."""
    for seed in range(4):
        pair = Pair(3, seed, 0.4)
        rule = distribution(pair, 3, drafts, 0.0)

        assert 27 == len(rule)
        assert sum(rule.values()) == pytest.approx(1.0)
        assert total_variation(rule, token_by_token(pair, 3, 0.0)) < 1e-12


def test_with_transfer_it_is_neither_distribution() -> None:
    """It is nearer to p than p^ is, and is not p, against what the paper states."""
    rows = deviations(vocabulary=3, length=2, drafts=1, seeds=5)

    assert [0.0, 5.0, 10.0, 20.0, 40.0] == [row["eta"] for row in rows]
    assert rows[0]["rule_p_most"] < 1e-12
    for row in rows[1:]:
        assert row["rule_p"] > 0.01
        assert row["rule_p_hat"] > 0.01
        assert row["rule_p"] < row["p_hat_p"]


@pytest.mark.parametrize("guard", ["teacher", "target"])
def test_p_hat_is_the_packages(guard: str) -> None:
    """The reproduction compares with the p^ that texts are written by."""
    torch = pytest.importorskip("torch")
    from ralmspec_plugins.decoding import KnowledgeTransfer, RagDrafter
    from ralmspec_plugins.lm import Sampling

    p, q = Pair(6, 3, 0.5).both((1, 2))
    transfer = KnowledgeTransfer(teacher=RagDrafter(), eta=7.0, guard=guard)  # type: ignore[arg-type]
    shift = transfer.shift(Sampling())
    assert shift is not None
    logits = shift(*(torch.tensor(np.log(one))[None].float() for one in (p, q)))

    assert np.allclose(enriched(p, q, 7.0, guard), logits.softmax(-1)[0].numpy(), atol=1e-6)  # type: ignore[arg-type]
