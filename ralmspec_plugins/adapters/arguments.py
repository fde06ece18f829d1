"""Errors of unknown arguments, with a suggestion."""

from collections.abc import Collection
from collections.abc import Set as AbstractSet
from difflib import get_close_matches


def suggestion(name: str, known: Collection[str]) -> str:
    """Return a similar known name, or all known ones.

    >>> suggestion("workloda", ["schedule", "workload"])
    "did you mean 'workload'?"
    >>> suggestion("colour", ["schedule", "workload"])
    'known are schedule, workload'
    """
    near = get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"


def refuse_unknown(
    given: AbstractSet[str], known: Collection[str], *, beside: Collection[str] = ()
) -> None:
    """Check that all arguments are known.

    Args:
        given: the names.
        known: the names of supported arguments.
        beside: names that are supported elsewhere, for suggestions.

    Raises:
        TypeError: a name is unknown.
    """
    for name in sorted(given - set(known)):
        meant = {*known, *beside} - {"self", "args", "kwargs"}
        raise TypeError(f"unknown argument {name!r}; {suggestion(name, meant)}")
