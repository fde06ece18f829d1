"""Arguments that nobody takes: refused by name, with the one that was probably meant."""

from collections.abc import Collection
from collections.abc import Set as AbstractSet
from difflib import get_close_matches


def suggestion(name: str, known: Collection[str]) -> str:
    """Say which name was probably meant, or which are known.

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
    """Refuse arguments of names that are not known.

    Args:
        given: the names.
        known: those that are taken.
        beside: those that are taken in another way, and may have been meant.

    Raises:
        TypeError: there are such.
    """
    for name in sorted(given - set(known)):
        meant = {*known, *beside} - {"self", "args", "kwargs"}
        raise TypeError(f"unknown argument {name!r}; {suggestion(name, meant)}")
