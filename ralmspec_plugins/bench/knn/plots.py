"""Draws how often tokens are guessed right, as SVG (extra `plots`)."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ralmspec_plugins.bench.plots import svg
from ralmspec_plugins.timeline_picture import figure_class

_STYLES: Final = ("-", "--")  # in domain, out of domain
_FIXED: Final = "fixed "


def guess_rate_picture(content: Mapping[str, Any], model: str) -> bytes:
    """Draw the share of right guesses over the stride, a panel for each k and a line for each n.

    Solid lines are texts in the datastore's domain, dashed ones texts of none. What
    OS3 and Continuous come to stands beside, at the right.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    rows = [
        row
        for name, part in content["rates"].items()
        if name.startswith(f"{model},")
        for row in part["found"]
        if row["place"] != "all"
    ]
    ks = list(dict.fromkeys(row["k"] for row in rows))
    figure = figure_class()(figsize=(1.0 + 3.4 * len(ks), 3.8), layout="constrained")
    panels = figure.subplots(1, len(ks), sharey=True, squeeze=False)[0]
    for panel, k in zip(panels, ks, strict=True):
        _lines(panel, [row for row in rows if row["k"] == k])
        panel.set_title(f"k = {k}", fontsize=10)
        panel.set_xlabel("tokens between verifications")
        panel.spines[["right", "top"]].set_visible(False)
    panels[0].set_ylabel("tokens guessed right")
    panels[-1].legend(fontsize=7)
    return svg(figure)


def _lines(panel: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw fixed strides as lines, and what chooses its stride as points beside them."""
    names = list(dict.fromkeys(row["schedule"] for row in rows))
    places = list(dict.fromkeys(row["place"] for row in rows))
    for number, n in enumerate(dict.fromkeys(row["following"] for row in rows)):
        for place, style in zip(places, _STYLES, strict=False):
            rates = {
                row["schedule"]: row["rate"]
                for row in rows
                if (row["following"], row["place"]) == (n, place) and row["rate"] is not None
            }
            fixed = {name: rate for name, rate in rates.items() if name.startswith(_FIXED)}
            others = {name: rate for name, rate in rates.items() if name not in fixed}
            look = {"marker": ".", "color": f"C{number}"}
            x = [names.index(name) for name in fixed]
            panel.plot(x, list(fixed.values()), style, label=f"next {n}, {place}", **look)
            x = [names.index(name) for name in others]
            filled = {} if style == _STYLES[0] else {"markerfacecolor": "none"}
            panel.plot(
                x, list(others.values()), linestyle="none", **{**look, "marker": "o"}, **filled
            )
    ticks = [name.removeprefix(_FIXED) for name in names]
    panel.set_xticks(range(len(names)), ticks, fontsize=8)
