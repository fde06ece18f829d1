"""Draw the batch curves that `batch_curves.py` measured: one picture a size, one panel a kind."""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

PANELS = (
    ("exact, dense", lambda name: "-flat" in name),
    ("approximate, dense", lambda name: name.startswith("faiss-") and "-flat" not in name),
    ("exact, sparse", lambda name: "-flat" not in name and not name.startswith("faiss-")),
)


def draw(results: Path) -> list[Path]:
    """Write a picture beside the results for each size in them."""
    pictures: list[Path] = []
    if not results.exists():
        return pictures
    for size, entry in json.loads(results.read_text()).items():
        picture = results.with_name(f"{results.stem}_{size}.svg")
        _draw_size(size, entry["curves"], picture)
        pictures.append(picture)
    return pictures


def _draw_size(size: str, curves: dict[str, Any], picture: Path) -> None:
    mpl.rcParams["svg.hashsalt"] = size  # the same numbers give the same file
    panels = [(title, [n for n in curves if fits(n)]) for title, fits in PANELS]
    panels = [(title, names) for title, names in panels if names]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5.2 * len(panels), 4.6), layout="constrained", squeeze=False
    )
    for axis, (title, names) in zip(axes[0], panels, strict=True):
        for name in names:
            points = curves[name]["points"]
            sizes = sorted(points, key=int)
            n = [int(each) for each in sizes]
            (line,) = axis.plot(n, [points[each]["median_ms"] for each in sizes], label=name)
            axis.fill_between(
                n,
                [points[each]["min_ms"] for each in sizes],
                [points[each]["max_ms"] for each in sizes],
                color=line.get_color(),
                alpha=0.15,
                linewidth=0,
            )
        passages = {curves[name]["passages"] for name in names}
        axis.set_title(f"{title}, {' or '.join(f'{p:,}' for p in sorted(passages))} passages")
        axis.set_xlabel("queries in the batch, n")
        axis.set_yscale("log")
        axis.grid(visible=True, which="both", alpha=0.25)
        axis.legend(fontsize=8)
    axes[0][0].set_ylabel("b(n) in ms: median, and fastest to slowest")
    figure.savefig(picture, metadata={"Date": None})
    plt.close(figure)
