"""A check of JSON that is cheap for any bytes, before JSON is parsed on the event loop."""

import re
from typing import Final

from ralmspec_plugins.serving.openai_api import ApiError

_MOST_ELEMENTS: Final = 8192  # over twice as many as a conversation of 1,000 messages has
# A string, which the body's end may cut off, or what separates two values. No part is tried
# twice, so the time is proportional to the body's length.
_TOKEN: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[\[{,:]', re.DOTALL)


def check_json(body: bytes) -> None:
    """Refuse a body of so many values that parsing and checking them would hold up all clients.

    A text counts as one value, however long it is.

    >>> check_json(b'{"a": "[,,,[[[", "b": [1, 2]}')

    Raises:
        ApiError: it has too many values, or is not UTF-8.
    """
    if b"\0" in body:  # of UTF-16, whose strings end elsewhere; in UTF-8 it must be escaped
        raise ApiError(400, "the body must be JSON in UTF-8")
    for count, _ in enumerate(_TOKEN.finditer(body)):
        if count > 2 * _MOST_ELEMENTS:
            raise ApiError(400, f"the body has more than {_MOST_ELEMENTS} values")
