"""A model and a search that do everything once: what was asked before is answered from memory.

The same texts are continued in dozens of ways to count guesses and to simulate; all of
it is what the model and the datastore really say, and only the time is not theirs.
"""

from collections.abc import Hashable, Sequence
from dataclasses import replace

from ralmspec_plugins.knn.datastore import Datastore
from ralmspec_plugins.knn.draft import Choices, KNNDraft, TokenModel
from ralmspec_plugins.knn.exact import ExactSearch, encode_no_text
from ralmspec_plugins.knn.neighbours import Neighbours
from ralmspec_plugins.knn.search import NeighbourSearch
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.records import Query, Request


class RememberingModel:
    """Reads each text once. For one thread."""

    def __init__(self, model: TokenModel) -> None:
        """Remember what this model says."""
        self._model = model
        self._begun: dict[Request, KNNDraft] = {}
        self._written: dict[tuple[int, tuple[int, ...]], KNNDraft] = {}  # by request and tokens

    def begin(self, request: Request) -> KNNDraft:
        """Read a prompt."""
        if request not in self._begun:
            self._begun[request] = self._model.begin(request)
        return _anew(self._begun[request])

    def feed(self, state: KNNDraft, token: int, progress: Progress) -> KNNDraft:
        """Write a token."""
        key = state.draft.origin.owner, (*state.tokens, token)
        if key not in self._written:
            self._written[key] = self._model.feed(state, token, progress)
        return _anew(self._written[key])

    def release(self, state: KNNDraft) -> None:
        """Keep everything: the same request comes again."""

    def forget(self) -> None:
        """Free all that is kept."""
        for state in self._begun.values():
            self._model.release(state)
        self._begun.clear()
        self._written.clear()


class OfK:
    """An exact search that gives fewer neighbours than it could, over the same keys in memory."""

    exact = True
    pure = True
    inline_encode = True

    def __init__(self, search: ExactSearch, k: int) -> None:
        """Ask this search for k neighbours."""
        self._search = search
        self.k = k
        self.size = search.size
        self.datastore: Datastore = search.datastore
        self.signature: Hashable = ("of", k, search.signature)

    def encode(self, text: str) -> Query:
        """Refuse a text.

        Raises:
            InputError: always.
        """
        return encode_no_text(text)

    def search(self, queries: Sequence[Query]) -> list[Neighbours]:
        """Find the k nearest entries of each query."""
        return self._search.search_wide(queries, self.k)

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Neighbours]:
        """Find the `width` nearest entries of each query."""
        return self._search.search_wide(queries, width)


class Remembered:
    """What searches have found, by query."""

    def __init__(self, search: NeighbourSearch) -> None:
        """Remember what this search finds."""
        self.inner = search
        self._found: dict[Hashable, Neighbours] = {}

    def search(self, queries: Sequence[Query]) -> list[Neighbours]:
        """Search for those that were not asked before, in one batch, and give all."""
        missing = {query.key: query for query in queries if query.key not in self._found}
        if missing:
            found = self.inner.search(list(missing.values()))
            self._found.update(zip(missing, found, strict=True))
        return [self._found[query.key] for query in queries]

    def forget(self) -> None:
        """Free all that is kept."""
        self._found.clear()


class RememberedSearch:
    """A search for k neighbours that looks for each query's once."""

    pure = True
    inline_encode = True

    def __init__(self, remembered: Remembered, k: int) -> None:
        """Give the first k of what is remembered; all of it where the search is not exact."""
        inner = remembered.inner
        assert k == inner.k or (inner.exact and k < inner.k), "only exact rankings are prefixes"
        self._remembered = remembered
        self.k = k
        self.size = inner.size
        self.exact = inner.exact
        self.datastore = inner.datastore
        self.signature: Hashable = ("remembered", k, inner.signature)

    def encode(self, text: str) -> Query:
        """Refuse a text.

        Raises:
            InputError: always.
        """
        return encode_no_text(text)

    def search(self, queries: Sequence[Query]) -> list[Neighbours]:
        """Give the k nearest entries of each query."""
        return [found[: self.k] for found in self._remembered.search(queries)]


class RememberedWideSearch(RememberedSearch):
    """The same over an exact search, which may be asked for more than k."""

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Neighbours]:
        """Give the `width` nearest entries of each query, as far as they are remembered."""
        return [found[:width] for found in self._remembered.search(queries)]


def remembered_search(remembered: Remembered, k: int) -> RememberedSearch:
    """Search for k neighbours among what is remembered, wider where that is the same ranking."""
    kind = RememberedWideSearch if remembered.inner.exact else RememberedSearch
    return kind(remembered, k)


def _anew(state: KNNDraft) -> KNNDraft:
    """Give a state whose choices nobody has made: they depend on how it is asked."""
    return replace(state, choices=Choices())
