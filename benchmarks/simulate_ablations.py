"""Simulate the ablations: stride, cache, prefetch, interval, window, lanes, latency, size, batches.

    python benchmarks/simulate_ablations.py DATA \
        benchmarks/results/simulate_ablations.json

Everything is simulated in virtual time, on 60 real Wikipedia traces, k = 1; what is written
after a wrong guess asks what was asked before ("rewriting"). Pictures lie beside the result.
"""

import argparse
import json
from pathlib import Path

from benchmarks.harness.results import surroundings
from benchmarks.simulated.studies import HELD_TO, Both, points
from benchmarks.simulated.tables import draw_ablations
from benchmarks.simulated.traces import load_traces

CURVES = Path(__file__).parent / "results" / "batch_curves.json"


def main() -> None:
    """Run all points, write what they came to, and draw them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("result", type=Path)
    options = parser.parse_args()
    both = Both(load_traces(options.data), load_traces(options.data, left_out=True))
    rows = []
    for point in points(json.loads(CURVES.read_text()), both.inside.count):
        row = point.run(both, HELD_TO)
        rows.append(row)
        inside = row["in_knowledge_base"]
        print(f"{point.ablation:9} {point.line:45} {point.x!s:>9} {inside['speed_up']:6.2f}")
    result = {
        "what": "simulated in virtual time; speed-up over the plain loop",
        "surroundings": surroundings(),
        "mode": HELD_TO,
        "traces": both.inside.count,
        "passages": both.inside.size,
        "rows": rows,
    }
    options.result.write_text(json.dumps(result, indent=1) + "\n")
    for picture in draw_ablations(result, options.result.with_suffix("")):
        print(picture)


if __name__ == "__main__":
    main()
