"""`python -m benchmarks SUITE`: measure plain and speculative runs in parallel, write a report.

`python -m benchmarks decoding` measures token-level speculation, `python -m benchmarks rapid`
drafts of a retrieved part of a long context, `python -m benchmarks agents` agents that run ahead
of their tools, `python -m benchmarks workloads` FLARE, Iter-RetGen and multi-hop,
`python -m benchmarks encoders` how much of a query's encoding is hidden,
`python -m benchmarks serving` the server under load, `python -m benchmarks capacity` a Ray cluster
beside what a simulation foretells, `python -m benchmarks never_slower` where speculation might cost
time, and `python -m benchmarks gpu` searches, passes and requests on a GPU, with options of their
own.

Exit codes: 0 for success, 1 for an error that a message explains, 2 for a wrong command line.
"""

import sys
from typing import Any

import typer
from typer.core import TyperCommand

from benchmarks.harness.cli import bench
from ralmspec_plugins.cli.app import explained_errors


class _Suite(TyperCommand):
    def invoke(self, ctx: Any) -> Any:
        with explained_errors():
            return super().invoke(ctx)


app = typer.Typer(
    pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)
app.command(cls=_Suite)(bench)


def main() -> None:
    """Run the suite that is named on the command line."""
    name = sys.argv[1] if len(sys.argv) > 1 else None
    command: Any
    if name == "decoding":
        from benchmarks.decoding.cli import decoding as command
    elif name == "rapid":
        from benchmarks.decoding.rapid import rapid as command
    elif name == "agents":
        from benchmarks.agents import agents as command
    elif name == "serving":
        from benchmarks.serving.cli import serving as command
    elif name == "capacity":
        from benchmarks.serving.capacity import capacity as command
    elif name == "workloads":
        from benchmarks.workloads.cli import workloads as command
    elif name == "never_slower":
        from benchmarks.never_slower.cli import never_slower as command
    elif name == "encoders":
        from benchmarks.encoders import encoders as command
    elif name == "gpu":
        from benchmarks.gpu.cli import gpu as command
    else:
        app(prog_name="python -m benchmarks")
        return
    own = typer.Typer(pretty_exceptions_enable=False)
    own.command(cls=_Suite)(command)
    own(args=sys.argv[2:], prog_name=f"python -m benchmarks {name}")


if __name__ == "__main__":
    main()
