"""`python -m benchmarks SUITE`: measure plain and speculative runs in parallel, write a report.

`python -m benchmarks decoding` measures token-level speculation, with options of its own.

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
    if sys.argv[1:2] != ["decoding"]:
        app(prog_name="python -m benchmarks")
        return
    from benchmarks.decoding.cli import decoding

    own = typer.Typer(pretty_exceptions_enable=False)
    own.command(cls=_Suite)(decoding)
    own(args=sys.argv[2:], prog_name="python -m benchmarks decoding")


if __name__ == "__main__":
    main()
