"""Simulate 1 to 5,000 concurrent requests through one merging verifier.

    python benchmarks/simulate_crowds.py DATA benchmarks/results/simulate_crowds.json

Everything is simulated in virtual time: real loops, pools and rankings of 60 real traces,
the verifier's own rule of merging, given durations (each row says where they are from).
Every answer is asserted equal to the plain loop's.
"""

import argparse
import json
import time
from pathlib import Path

from benchmarks.harness.results import surroundings
from benchmarks.simulated.studies import COUNTS, crowd_rows, services
from benchmarks.simulated.tables import draw_crowds
from benchmarks.simulated.traces import load_traces

CURVES = Path(__file__).parent / "results" / "batch_curves.json"


def main() -> None:
    """Run all crowds and write what they came to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--most", type=int, default=max(COUNTS), help="the largest crowd")
    options = parser.parse_args()
    began_s = time.perf_counter()
    traces = load_traces(options.data)
    rows = crowd_rows(
        traces,
        services(json.loads(CURVES.read_text())),
        counts=[count for count in COUNTS if count <= options.most],
        told=lambda line: print(f"{time.perf_counter() - began_s:6.0f} s  {line}", flush=True),
    )
    result = {
        "what": "simulated in virtual time",
        "surroundings": surroundings(),
        "steps": 32,
        "rows": rows,
    }
    options.result.write_text(json.dumps(result, indent=1) + "\n")
    for picture in draw_crowds(result, options.result.with_suffix("")):
        print(picture)


if __name__ == "__main__":
    main()
