"""Reads files of results, and refuses others."""

import json
from pathlib import Path
from typing import Any

from ralmspec_plugins.errors import InputError


def read_results(file: Path, form: str, whose: str) -> dict[str, Any]:
    """Read results of one form.

    Args:
        file: where they are.
        form: what stands under "format" there.
        whose: results these are, for the message.

    Raises:
        InputError: the file holds something else.
    """
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise InputError(f"{file} holds no results of {whose}: {error}") from error
    if not isinstance(content, dict) or content.get("format") != form:
        raise InputError(f"{file} holds no results of {whose}")
    return content
