"""The `ralmspec` application: its commands, and the handling of errors.

Exit codes: 0 success, 1 an error with a message, 2 an invalid
command line, 130 Ctrl-C. Only internal errors show a traceback.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ralmspec_plugins import __version__
from ralmspec_plugins.cli.ask import ask
from ralmspec_plugins.cli.demo import demo
from ralmspec_plugins.cli.diagnose import diagnose
from ralmspec_plugins.cli.draft import draft
from ralmspec_plugins.cli.generate import generate
from ralmspec_plugins.cli.index import index
from ralmspec_plugins.cli.knn import knn
from ralmspec_plugins.cli.output import complain
from ralmspec_plugins.cli.serve import serve
from ralmspec_plugins.errors import RalmSpecError

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class Commands(TyperGroup):
    """Runs a command, and converts errors that users can cause to a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with explained_errors():
            return super().invoke(ctx)


@contextmanager
def explained_errors() -> Iterator[None]:
    """Convert an error that a user can cause to a message on stderr and an exit code."""
    try:
        yield
    except RalmSpecError as error:
        complain(str(error))
    except KeyboardInterrupt:
        complain("stopped")
        raise typer.Exit(INTERRUPTED) from None
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise  # the reader of the output has closed it: typer ends without a message
        complain(_explained(error))
    else:
        return
    raise typer.Exit(1)


def _explained(error: OSError) -> str:
    """Return the system's error, with the remark that existing files are unchanged.

    >>> _explained(OSError(28, "No space left on device", "kb/vectors.npy"))
    'kb/vectors.npy: No space left on device. Free some space; what was there before is unchanged.'
    """
    place = f"{error.filename}: " if error.filename else ""
    reason = error.strerror or str(error)
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    advice = "Free some space; what" if error.errno in full else "What"
    return f"{place}{reason}. {advice} was there before is unchanged."


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Speculative retrieval for iterative RAG: the answers of the plain loop, in less time.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ralmspec {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version, and exit."
        ),
    ] = False,
) -> None:
    """Process the options before a command."""


app.command()(index)
app.command()(ask)
app.command()(generate)
app.command()(demo)
app.command()(diagnose)
app.command()(serve)
app.add_typer(draft, name="draft")
app.add_typer(knn, name="knn")
