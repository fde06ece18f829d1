"""A cheap index over the whole knowledge base that guesses the hits of an expensive one."""

from collections.abc import Hashable

from ralmspec_plugins.parts import complete, results
from ralmspec_plugins.protocols import Retriever
from ralmspec_plugins.types import Hits, Query


class Replica:
    """Guesses with its own search, and so can guess the first retrieval, too.

    Its retriever is approximate, quantised or local, over the same passages
    as the verified one. It receives the same encoding unless `reencode`.
    """

    def __init__(
        self,
        retriever: Retriever,
        of: Retriever,
        *,
        reencode: bool = False,
        inline: bool = False,
    ) -> None:
        """Create a speculator from a retriever.

        Args:
            retriever: the cheap retriever. Its k should be at least that of `of`: a guess with
                fewer hits is right only if the workload compares the effect of hits, as KNN-LM
                does.
            of: the retriever whose hits are guessed. Its signature is checked, so that no
                passage of this replica reaches users of another retriever.
            reencode: encode the query's text again, with the cheap retriever's encoder.
            inline: search inside the loop, not in a worker: for a search that takes less than a
                millisecond, where steps take little more.
        """
        self.inline = inline
        self.retriever = retriever
        self._complete = complete(retriever)
        self.signature: Hashable = complete(of).signature
        self._k: int | None = getattr(of, "k", None)
        self._reencode = reencode

    def guess(self, query: Query) -> Hits | None:
        """Return the hits of the cheap index; `None` if it finds nothing."""
        if self._reencode:
            query = self._complete.encode(query.text)
        [hits] = results(self._complete.search([query]), [query])
        return hits[: self._k] or None

    def learn(self, query: Query, hits: Hits) -> None:
        """Do nothing: the index already contains all passages."""
