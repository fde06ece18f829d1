"""Writes the page of the command line's options from the program itself."""

from collections.abc import Iterator
from typing import Any

import typer

from ralmspec_plugins.cli.app import app


def cli_page() -> str:
    """Return all commands with their arguments, options, defaults and help."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "(cli-options)=\n# Options of the command line\n"
    yield "As `ralmspec --help` shows them; [the guide](cli.md) explains them.\n"
    group = typer.main.get_command(app)
    for name, command in _commands(group, ""):
        yield f"## {name}\n"
        yield _text(command.help or "") + "\n"
        context = typer.Context(command, info_name=f"ralmspec {name}")
        usage = " ".join(command.collect_usage_pieces(context))
        yield f"```text\nralmspec {name} {usage}\n```\n"
        for parameter in command.params:
            record = parameter.get_help_record(context)
            if record is not None and parameter.name != "help":
                heading, meaning = record
                yield f"`{heading}`\n: {_text(meaning) or '(required)'}\n"


def _commands(group: Any, before: str) -> Iterator[tuple[str, Any]]:
    """Walk all commands, those of a group by both names."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{before}{name} ")
        else:
            yield before + name, command


def _text(text: str) -> str:
    """Return the text on one line, without what Markdown reads as markup."""
    return " ".join(text.split()).replace("[", "\\[").replace("*", "\\*").replace("<", "&lt;")
