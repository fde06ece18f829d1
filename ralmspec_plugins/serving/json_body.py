"""A check of JSON that is cheap for any bytes, before JSON is parsed on the event loop."""

import json
import re
from typing import Any, Final

from ralmspec_plugins.serving.openai_api import ApiError

_MOST_VALUES: Final = 8192  # more than a conversation of 1,000 messages in parts has
_MOST_TOKENS: Final = 3 * _MOST_VALUES  # strings and signs, on average of each value
# A string, which the body's end may cut off, or what separates two values. No part is tried
# twice, so the time is proportional to the body's length.
_TOKEN: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[\[{,:]', re.DOTALL)
_NOT_UTF8: Final = "the body must be JSON in UTF-8"
_SIGNS: Final = (b'"', b"[", b"{", b",", b":")


def check_json(body: bytes) -> None:
    """Check that a body has not so many values that parsing them would block the event loop.

    A text counts as one value, however long it is. No object has a name twice: of two values, a
    proxy in front may have checked the other. What is no JSON passes.

    >>> check_json(b'{"a": "[,,,[[[", "b": [1, 2]}')

    Raises:
        ApiError: it has too many values or a name twice, or is not UTF-8.
    """
    _check_size(body)
    try:
        if body:
            json.loads(body, object_pairs_hook=_check_names)
    except UnicodeDecodeError:
        raise ApiError(400, _NOT_UTF8) from None
    except (ValueError, RecursionError):
        return  # the application says what is wrong with it


def _check_names(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) < len(pairs):
        raise ApiError(400, "the body has an object with the same name twice")


def _check_size(body: bytes) -> None:
    if b"\0" in body:  # of UTF-16, whose strings end elsewhere; in UTF-8 it must be escaped
        raise ApiError(400, _NOT_UTF8)
    if sum(map(body.count, _SIGNS)) <= _MOST_TOKENS:
        return  # too few, even if none of them was part of a text
    for count, _ in enumerate(_TOKEN.finditer(body)):
        if count > _MOST_TOKENS:
            raise ApiError(400, f"the body has more than {_MOST_VALUES} values")
