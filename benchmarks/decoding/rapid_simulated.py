"""RAPID's published speeds in virtual time, with costs fitted on two of its rows."""

from typing import Any, Final

from ralmspec_plugins import Latencies, Simulation
from ralmspec_plugins.decoding import CostCurve, SimulatedDecoder
from ralmspec_plugins.effects import Extend
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing import EchoWorkload, WordRetriever

DRAFTS: Final = 10  # the paper's gamma
PLAIN_SD: Final = (0.65, 1.63)  # acceptance (60 to 70 %) and speed of the 8B model: the fit
RAPID: Final = (("RAPID, 8B", 0.80, 2.10), ("RAPID, 70B", 0.80, 2.69))  # acceptance 75 to 85 %
PASS_S: Final = 1.0 / 10.64  # of the 8B model behind 122,000 tokens
RETRIEVAL_S: Final = 1.43
TOKENS: Final = 128  # of an answer
PREFILL_S: Final = {"RAPID, 8B": (25.89, 26.37), "RAPID, 70B": (160.54, 163.43)}  # LC, RAPID
_TEXT: Final = "a " * 8


def simulated(tokens: int) -> dict[str, Any]:
    """Return what is predicted from the plain row and that of plain speculation alone.

    A pass over 1 + k rows costs the same for every k (weights and cache are read once), and each
    draft a step of the drafter. The step is fitted; the same one is taken for both models, since
    there is no row of plain speculation for the larger one.
    """
    acceptance, published = PLAIN_SD
    step = fitted_step(acceptance, published, tokens)
    rows = [
        {
            "row": "plain speculation, 8B (fitted)",
            "acceptance": acceptance,
            "published": published,
            "predicted": speed(step, acceptance, tokens),
            "error": "",
            "parallel": speed(step, acceptance, tokens, parallel=True),
        }
    ]
    for name, rate, truth in RAPID:
        predicted = speed(step, rate, tokens)
        rows.append(
            {
                "row": name,
                "acceptance": rate,
                "published": truth,
                "predicted": predicted,
                "error": f"{100 * (predicted / truth - 1):+.0f} %",
                "parallel": speed(step, rate, tokens, parallel=True),
            }
        )
    return {"step": step, "rows": rows, "told": _told(step, rows)}


def speed(step: float, acceptance: float, tokens: int, *, parallel: bool = False) -> float:
    """Return the simulated speed of decoding, in plain decoding's.

    In parallel the next chain is drafted while this one is verified, as if it were accepted whole.
    Where it is, its steps take only what exceeds the pass.
    """
    curve = _curve(step, acceptance if parallel else None)
    decoder = SimulatedDecoder(
        curve, acceptance=acceptance, pass_s=PASS_S, tokens=tokens, most_drafts=DRAFTS
    )
    latencies = Latencies(extend_s=decoder, search_s=lambda _: 0.0)
    run = Simulation(EchoWorkload(), WordRetriever([_TEXT]), latencies).run("a")
    return tokens * PASS_S / run.stats.write_s


def fitted_step(acceptance: float, published: float, tokens: int) -> float:
    """Return the cost of a drafter's step at which the published speed is simulated."""
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2.0
        curve = _curve(middle, None)
        decoder = SimulatedDecoder(
            curve, acceptance=acceptance, pass_s=1.0, tokens=tokens, most_drafts=DRAFTS
        )
        found = tokens / decoder(Extend(None, (), progress=Progress()))
        low, high = (middle, high) if found > published else (low, middle)
    return (low + high) / 2.0


def _curve(step: float, acceptance: float | None) -> CostCurve:
    """Return the cost of a pass with k drafts, their steps included."""
    costs = []
    for drafts in range(DRAFTS + 1):
        hidden = 0.0 if acceptance is None else acceptance**drafts * min(1.0, drafts * step)
        costs.append(1.0 + drafts * step - hidden)
    return CostCurve(tuple(range(1, DRAFTS + 2)), tuple(costs), PASS_S)


def _told(step: float, rows: list[dict[str, Any]]) -> str:
    """Return what was fitted, and what whole requests gain by running in parallel."""
    fitted = "Fitted on the rows of plain decoding and of plain speculation: a step of"
    parts = [f"{fitted} {step:.2f} passes."]
    for row in rows[1:]:
        plain_s, rapid_s = PREFILL_S[row["row"]]
        decode_s = TOKENS * PASS_S
        after = rapid_s + RETRIEVAL_S + decode_s / row["predicted"]
        beside = max(plain_s, RETRIEVAL_S) + decode_s / row["parallel"]
        taking = f"{row['row']}: {TOKENS} tokens with retrieval and prefills take {after:.1f} s"
        parts.append(
            f"{taking} one after the other, {beside:.1f} s with drafter and retrieval in parallel."
        )
    return " ".join(parts) + "\n"
