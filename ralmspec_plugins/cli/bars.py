"""The progress bars of long commands: on stderr, and only where a person sees them."""

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from ralmspec_plugins.cli.output import notes


def bars() -> Progress:
    """Make room for bars; each task becomes one."""
    console = notes()
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
