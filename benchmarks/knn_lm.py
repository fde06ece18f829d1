"""Measure KNN-LM: speed-up over the plain loop, guess rates, perplexity, and the paper's figure.

    python benchmarks/knn_lm.py DATA WORK benchmarks/results/knn_lm.json --dry-run
    python benchmarks/knn_lm.py DATA WORK benchmarks/results/knn_lm.json --prepare
    python benchmarks/knn_lm.py DATA WORK benchmarks/results/knn_lm.json

The first time, WORK is filled: the model is trained on the texts and the datastores and
indexes are built; each is gone on with after a stop, and later runs only open it. Each
part is on the disk before the next one begins, and is not done again.

`cells` and `profiles` are timed, and want a quiet machine. `perplexities`, `rates`,
`recalls` and `simulated` are counted, and come out the same on any: `--sections rates recalls`.

Exact search runs where it does in production, in this process, on threads of its own, and torch
is held to one; "exact beside" runs it in a process of its own, on a core of its own.
Every text is asserted equal to the plain loop's in the same run: tokens, text, queries,
neighbours and their distances.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.knn.inputs import python_docs, wikipedia
from benchmarks.knn.run import SECTIONS, SMALL, Bench, Results, Scale, estimate, run
from benchmarks.knn.tables import TABLES, guess_rate_picture
from ralmspec_plugins.retrieval.storage.files import write_whole


def main() -> None:
    """Measure, and write results and pictures."""
    options = _options()
    torch.set_num_threads(2 if options.prepare else 1)  # a pass costs the same beside any search
    scale = SMALL if options.small else Scale()
    if options.models:
        scale = replace(scale, models=tuple(options.models))
    domains = (wikipedia(options.data), python_docs())
    benches = [
        Bench(name, scale, domains, options.data, options.work, _say) for name in scale.models
    ]
    results = Results(options.result, scale.record())
    if options.prepare:
        for bench in benches:
            bench.build()
    elif options.dry_run:
        estimate(benches, results, _say)
    else:
        run(benches, options.sections, results, _say)
        pictures(results, options.result)
        for name, write in TABLES.items():
            print(f"\n## {name}\n\n{write(results.content)}")


def pictures(results: Results, file: Path) -> None:
    """Draw the guess rates of each model beside the results."""
    models = dict.fromkeys(name.partition(",")[0] for name in results.content["rates"])
    for model in models:
        picture = file.with_name(f"{file.stem}_guesses_{model.replace(':', '-')}.svg")
        write_whole(picture, guess_rate_picture(results.content, model))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the shared folder")
    parser.add_argument("work", type=Path, help="where models, datastores and indexes are kept")
    parser.add_argument("result", type=Path)
    parser.add_argument("--models", nargs="+", help="demo, or random:LAYERSxWIDTH; both by default")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--prepare", action="store_true", help="fill WORK, and measure nothing")
    parser.add_argument("--dry-run", action="store_true", help="say how long the cells will take")
    parser.add_argument("--small", action="store_true", help="a trial; its numbers mean nothing")
    return parser.parse_args()


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


if __name__ == "__main__":
    main()
