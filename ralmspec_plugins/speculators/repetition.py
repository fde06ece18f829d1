"""A guess that needs neither encoding nor index: what the step before was given."""

from collections.abc import Callable

from ralmspec_plugins.types import Hits, Query


class Repetition:
    """Guesses that a search finds again what the step before it has found.

    Queries of a text that is being written overlap: with one passage a step, 46 to 78 % of real
    searches find what the one before has found; with four, in the same order, 2 to 12 %
    (docs/benchmarks.md). This guess is made while the
    query is being encoded, which counts where the encoder is remote. The scores of hits differ
    from query to query, so a workload that reads them never accepts it.

    It keeps nothing, so it may be shared by the requests of all users.
    """

    inline = True
    by_text = True

    def __init__(self, unless: Callable[[], bool] | None = None) -> None:
        """Create a speculator; it makes no guess while `unless` returns true."""
        self._unless = unless

    def guess_after(self, query: Query, previous: Hits) -> Hits | None:
        """Return the hits of the step before, verified or guessed, if there were any."""
        if self._unless is not None and self._unless():
            return None
        return previous or None

    def guess(self, query: Query) -> Hits | None:
        """Return `None`: there is no step before the first one."""
        return None

    def learn(self, query: Query, hits: Hits) -> None:
        """Do nothing."""
