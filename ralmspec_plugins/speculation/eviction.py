"""Which passage leaves a full pool: one small policy each, all with the same four methods."""

from collections import OrderedDict
from typing import Protocol

from ralmspec_plugins.errors import ConfigError


class Eviction(Protocol):
    """Keeps the order in which slots are given up. A slot is added once, until it is given up."""

    def add(self, slot: int) -> None:
        """Take in a slot that has just been filled."""
        ...

    def use(self, slot: int) -> None:
        """Note that a slot's passage was guessed, or found again by a real search."""
        ...

    def give_up(self) -> int:
        """Choose a slot, and forget it."""
        ...

    def slots(self) -> set[int]:
        """Give all slots that are kept, for checks."""
        ...


class Fifo:
    """The oldest goes first, used or not."""

    def __init__(self) -> None:
        """Start without slots."""
        self._order: OrderedDict[int, None] = OrderedDict()

    def add(self, slot: int) -> None:
        """Put a slot behind all others."""
        assert slot not in self._order
        self._order[slot] = None

    def use(self, slot: int) -> None:
        """Change nothing."""

    def give_up(self) -> int:
        """Choose the slot in front."""
        return self._order.popitem(last=False)[0]

    def slots(self) -> set[int]:
        """Give all slots that are kept."""
        return set(self._order)


class Lru(Fifo):
    """The least recently used goes first."""

    def use(self, slot: int) -> None:
        """Move a slot behind all others."""
        self._order.move_to_end(slot)


class Lfu:
    """The least often used goes first; among equals, the one that was used longest ago."""

    def __init__(self) -> None:
        """Start without slots."""
        self._uses: dict[int, int] = {}
        self._with: dict[int, OrderedDict[int, None]] = {}  # slots by their number of uses
        self._fewest = 0

    def add(self, slot: int) -> None:
        """Take in a slot with no use yet."""
        assert slot not in self._uses
        self._file(slot, 0)
        self._fewest = 0

    def use(self, slot: int) -> None:
        """Count one more use."""
        uses = self._uses[slot]
        self._drop(slot)
        self._file(slot, uses + 1)

    def give_up(self) -> int:
        """Choose the first of those with the fewest uses."""
        while self._fewest not in self._with:
            self._fewest += 1
        slot = next(iter(self._with[self._fewest]))
        self._drop(slot)
        return slot

    def slots(self) -> set[int]:
        """Give all slots that are kept."""
        return set(self._uses)

    def _file(self, slot: int, uses: int) -> None:
        self._uses[slot] = uses
        self._with.setdefault(uses, OrderedDict())[slot] = None

    def _drop(self, slot: int) -> None:
        uses = self._uses.pop(slot)
        group = self._with[uses]
        del group[slot]
        if not group:
            del self._with[uses]


POLICIES: dict[str, type[Fifo] | type[Lru] | type[Lfu]] = {"lru": Lru, "lfu": Lfu, "fifo": Fifo}


def eviction_of(name: str) -> Eviction:
    """Make a policy by name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in POLICIES:
        raise ConfigError(f"unknown eviction {name!r}; known are {', '.join(sorted(POLICIES))}")
    return POLICIES[name]()
