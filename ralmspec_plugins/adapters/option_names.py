"""Says of a name that is no option which one was perhaps meant."""

from collections.abc import Collection
from difflib import get_close_matches


def unknown_option(name: str, known: Collection[str]) -> str:
    """Return the end of an error's message about an unknown name: a near one, or all.

    >>> unknown_option("max_token", ["max_tokens", "stop"])
    "did you mean 'max_tokens'?"
    >>> unknown_option("colour", ["stop", "max_tokens"])
    'known are max_tokens, stop'
    """
    near = get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
