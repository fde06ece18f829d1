"""docs/cli.md and the program name the same options."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from ralmspec_plugins.cli.app import app

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_every_option_is_described_and_none_is_invented() -> None:
    """In the section of each command."""
    group = typer.main.get_command(app)
    sections = PAGE.read_text(encoding="utf-8").split("\n## ")
    told = {text.split("\n")[0]: set(re.findall(r"`(--[a-z-]+)", text)) for text in sections}
    real = {
        name: {option for parameter in command.params for option in _long(parameter)}
        for name, command in _commands(group)
    }
    known = {name: options - {"--help"} for name, options in real.items()}

    assert known == {name: told[name] - {"--version"} for name in known}


def _commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Walk all commands, those of a group by both names."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{before}{name} ")
        else:
            yield before + name, command


def _long(parameter: object) -> list[str]:
    names = [*getattr(parameter, "opts", ()), *getattr(parameter, "secondary_opts", ())]
    return [name for name in names if name.startswith("--")]
