"""A cheap index over the whole knowledge base that guesses for an expensive one."""

from collections.abc import Hashable

from ralmspec_plugins.protocols import Retriever
from ralmspec_plugins.types import Hits, Query


class Replica:
    """Guesses with a search of its own, so it can guess the very first retrieval too.

    The retriever inside is approximate, quantised or local, over the same passages
    as the one whose answers count. It sees the same encoding unless `reencode`.
    """

    def __init__(
        self,
        retriever: Retriever,
        of: Retriever,
        *,
        reencode: bool = False,
        inline: bool = False,
    ) -> None:
        """Guess with a retriever.

        Args:
            retriever: the cheap one. Its k should be at least that of the other: a guess with
                fewer hits is right only where a workload compares what hits lead to, as KNN-LM
                does.
            of: the one guessed for, and no other: no passage of this replica can come
                before another retriever's user.
            reencode: encode the query's text again, with the cheap one's own encoder.
            inline: search inside the loop, not in a worker: for one that takes less than a
                millisecond, beside steps that take little more.
        """
        self.inline = inline
        self.retriever = retriever
        self.signature: Hashable = of.signature
        self._k: int | None = getattr(of, "k", None)
        self._reencode = reencode

    def guess(self, query: Query) -> Hits | None:
        """Search the cheap index; nothing found is no guess."""
        if self._reencode:
            query = self.retriever.encode(query.text)
        hits = self.retriever.search([query])[0]
        return hits[: self._k] or None

    def learn(self, query: Query, hits: Hits) -> None:
        """Learn nothing: the index already holds every passage."""
