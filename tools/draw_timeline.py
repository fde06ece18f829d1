"""Draw docs/_static/timeline.svg: one request, plainly and speculatively, in virtual time.

The request and the latencies are those of docs/quickstart.md.
"""

from pathlib import Path
from typing import Final

from ralmspec_plugins import Latencies, Settings, Simulation, timeline
from ralmspec_plugins.testing import EchoWorkload, WordRetriever

PICTURE: Final = Path(__file__).resolve().parents[1] / "docs" / "_static" / "timeline.svg"
COLOURS: Final = ("red", "blue", "grey", "black")
ANIMALS: Final = ("fox", "whale", "kite", "cat")


def drawing() -> str:
    """Return the picture."""
    store = WordRetriever([f"{colour} {animal}" for colour in COLOURS for animal in ANIMALS])
    latencies = Latencies(extend_s=0.02, search_s=lambda _: 0.05)
    prompt = " ".join((*ANIMALS, *COLOURS, *ANIMALS, *COLOURS))
    runs = {
        name: Simulation(EchoWorkload(), store, latencies, Settings(speculate=speculate))
        .run(prompt)
        .stats
        for name, speculate in (("plain", False), ("speculative", True))
    }
    return timeline.figure(runs, note="A search takes 50 ms, a segment 20 ms, in virtual time.")


if __name__ == "__main__":
    PICTURE.write_text(drawing() + "\n", encoding="utf-8")
