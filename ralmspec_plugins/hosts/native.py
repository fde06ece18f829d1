"""A store's batch search, made to give what the host's retriever itself gives."""

import asyncio
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeAlias

from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.hosts.asked import Asked
from ralmspec_plugins.hosts.batch_search import BatchSearch, Scored, Vector
from ralmspec_plugins.types import Hits

BatchMode: TypeAlias = Literal["exact", "probed", "off"]
BATCH_MODES: Final = ("exact", "probed", "off")

# Keeps of each query's documents what the retriever would; `None` for what only the
# retriever itself can say. Documents beyond its k are kept as far as all those before
# them are, so that a wider search still begins with its own.
Cut: TypeAlias = Callable[[Sequence[list[Scored]]], list[list[Scored] | None]]


class Embedder(Protocol):
    """Embeds queries by the methods that the host's own search calls."""

    def embed(self, text: str) -> Asked:
        """Embed a query; what it carries is its vector, and what was recorded of the call."""
        ...

    async def aembed(self, text: str) -> Asked:
        """Do it as the host's own asynchronous search does, without holding up the event loop."""
        ...


def all_of(found: Sequence[list[Scored]]) -> list[list[Scored] | None]:
    """Keep everything that was found."""
    return list(found)


@dataclass(frozen=True, slots=True)
class Native:
    """How one retriever's settings are searched in batches."""

    search: BatchSearch
    embedder: Embedder
    cut: Cut = all_of
    leads_on: bool = False  # what is found may stand for more than one document

    @property
    def wide(self) -> bool:
        """Whether a wider search may stand for the retriever's own."""
        return self.search.exact and self.search.wide and not self.leads_on

    def find(self, vectors: Sequence[Vector], width: int | None) -> list[list[Scored]]:
        """Search many vectors at once, by default as wide as the retriever does."""
        return self.search.search(vectors, max(self.search.k, width or 0))

    async def afind(self, vectors: Sequence[Vector], width: int | None) -> list[list[Scored]]:
        """Do the same without holding up the event loop."""
        asearch = getattr(self.search, "asearch", None)
        if asearch is None:
            return await asyncio.to_thread(self.find, vectors, width)
        found: list[list[Scored]] = await asearch(vectors, max(self.search.k, width or 0))
        return found


@dataclass(frozen=True, slots=True)
class Look:
    """A host's retriever as it is now.

    Args:
        signature: all that its answers depend on.
        native: its batch search; `None`: it is a black box.
        k: how many documents it gives, where it says so.
        pure: whether equal queries find equal documents, without side effects.
        fixed: the retriever with copies of these settings, where it is kept to them for a
            whole call; `None` where it cannot be.
        hosts_own: whether the signature surely names all: no code but the host's own, and
            what is known of stores, says what is found.
        passing: whether these settings are one call's alone, and nothing is kept for them.
    """

    signature: Hashable
    native: Native | None
    k: int | None
    pure: bool
    fixed: Any = None
    hosts_own: bool = True
    passing: bool = False

    def fitting(self, vectors: Sequence[Vector | None]) -> Native | None:
        """Give the batch search for such queries, or `None` if they are asked one by one."""
        native = self.native
        if native is None or not vectors or any(vector is None for vector in vectors):
            return None
        return native if native.search.exact or len(vectors) > 1 else None

    def beginning(self, singles: list[Hits], width: int | None) -> list[Hits]:
        """Give the host's own results back where a wider search can begin with them.

        Raises:
            InputError: the host gives more than k, so that k of them are not its result.
        """
        longest = max(map(len, singles), default=0)
        if width is not None and self.k is not None and longest > self.k:
            raise InputError(
                f"a search for {self.k} documents gave {longest}: some stand for others, "
                "so a wider search would not begin with its result"
            )
        return singles


def check_way(batch: str, side_by_side: object) -> None:
    """Refuse a way of searching that there is not.

    Raises:
        ConfigError: an unknown `batch`, or no call at a time.
    """
    if batch not in BATCH_MODES:
        raise ConfigError(f"unknown batch {batch!r}; known are {', '.join(BATCH_MODES)}")
    if isinstance(side_by_side, bool) or not isinstance(side_by_side, int) or side_by_side < 1:
        raise ConfigError(f"side_by_side must be at least 1, got {side_by_side!r}")
