"""What a request knows already, and who guesses the rest: memo, then speculators in order."""

import logging
import time
from collections.abc import Callable, Hashable, Sequence
from itertools import takewhile
from typing import Any

from ralmspec_plugins.effects import SearchResult
from ralmspec_plugins.protocols import Speculator
from ralmspec_plugins.speculators.query_cache import QueryCache
from ralmspec_plugins.types import Hit, Hits, Query, fixed

_log = logging.getLogger(__name__)


class SpeculatorCascade:
    """The memo and the speculators of one request, asked in this order.

    What was really found for a query is known exactly: for the length of the
    request always, and longer where a shared memo is given. An error inside a
    speculator means no guess. What is found after a cache was invalidated that
    others share is the request's own: its search may have begun before.
    """

    def __init__(
        self,
        speculators: Sequence[Speculator] = (),
        *,
        memo: QueryCache | None = None,
        signature: Hashable = None,
        signature_now: Callable[[], Hashable] | None = None,
        may_guess: Callable[[], bool] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Ask these speculators, the first that answers counts.

        Args:
            speculators: in the order in which they are asked.
            memo: remembers longer than the request.
            signature: what is remembered there belongs to it.
            signature_now: gives the retriever's at any time: what was found after it has changed
                is kept from whatever others share.
            may_guess: says at any time whether guesses may be written on; `None`: always.
            clock: gives the seconds that quick guesses are timed with.
        """
        self.clock = clock
        self._speculators = tuple(speculators)
        by_text = takewhile(lambda one: getattr(one, "by_text", False), self._speculators)
        # Those to ask: all of them, or while a query is being encoded those that read its text.
        self._asked = {True: self._speculators, False: tuple(by_text)}
        self._quick = {
            encoded: tuple(takewhile(lambda one: one.inline, asked))
            for encoded, asked in self._asked.items()
        }
        self._memo = memo
        # What is found now that was asked before these were invalidated is kept from them.
        self._generations = [getattr(one, "generation", None) for one in self._speculators]
        self._memo_generation = None if memo is None else memo.generation
        self._signature = signature
        self._signature_now = signature_now
        self._may_guess = may_guess
        self._complained = False
        self._found: dict[Hashable, Hits] = {}
        self._encoded: dict[str, Query] = {}  # by their texts

    def known(self, query: Query) -> Hits | None:
        """Give the real hits of a query that was searched before."""
        hits = self._found.get(query.key)
        if hits is None and self._memo is not None:
            hits = self._memo.known(self._signature, query)
        return hits

    def known_by_text(self, query: Query) -> Hits | None:
        """Give the real hits of a query that is not encoded yet."""
        return None if self._memo is None else self._memo.known_by_text(self._signature, query)

    def encoded(self, text: str) -> Query | None:
        """Give the query that a text was encoded to in this request."""
        return self._encoded.get(text)

    def note_encoded(self, text: str, query: Query) -> None:
        """Take in what a text was encoded to, whether its step is still there or not."""
        self._encoded[text] = query

    @property
    def speculates(self) -> bool:
        """Whether there is any speculator."""
        return bool(self._speculators)

    @property
    def held(self) -> bool:
        """Whether nothing may be written on guesses now; an error in there is no request's."""
        try:
            return self._may_guess is not None and not self._may_guess()
        except Exception:  # noqa: BLE001 whatever it is, the plain loop would not have met it
            self._complain(self._may_guess)
            return True

    def slow(self, *, encoded: bool = True) -> bool:
        """Say whether there are speculators left that must not be asked inside the loop."""
        return len(self._quick[encoded]) < len(self._asked[encoded])

    def guess_inline(self, query: Query, *, encoded: bool = True) -> Hits | None:
        """Give the first guess of the speculators that are asked first, inside the loop.

        Args:
            query: what is asked.
            encoded: whether the query has its encoding; without it only speculators that guess
                by the text are asked, and only those in front of all others.
        """
        return self._first_guess(self._quick[encoded], query)

    def guess_async(self, query: Query, *, encoded: bool = True) -> Hits | None:
        """Give the first guess of the others."""
        return self._first_guess(self._asked[encoded][len(self._quick[encoded]) :], query)

    def _first_guess(self, speculators: Sequence[Speculator], query: Query) -> Hits | None:
        for speculator in speculators:
            try:
                hits = speculator.guess(query)
                hits = None if hits is None else _checked(hits)
            except Exception:  # noqa: BLE001 an error here means no guess, whatever it is
                self._complain(speculator)
                continue
            if hits is not None:
                return hits
        return None

    def learn(self, query: Query, found: SearchResult) -> None:
        """Take in what a search found, whether its step is still there or not."""
        self._found[query.key] = found.hits
        if not self._is_as_it_was():
            return
        if self._memo is not None:
            self._memo.learn(self._signature, query, found.hits, self._memo_generation)
        for speculator, generation in zip(self._speculators, self._generations, strict=True):
            learn: Any = speculator.learn
            try:
                if generation is None:
                    learn(query, found.wide)
                else:
                    learn(query, found.wide, generation)
            except Exception:  # noqa: BLE001 what was not learned costs a guess, never truth
                self._complain(speculator)

    def _is_as_it_was(self) -> bool:
        """Whether the retriever has the signature still that it had when the request began."""
        if self._signature_now is None:
            return True
        try:
            return self._signature_now() == self._signature
        except Exception:  # noqa: BLE001 the plain loop reads no signature
            self._complain("a retriever's signature")
            return False

    def _complain(self, part: object) -> None:
        """Log an error of what only speculation asks, once for each request."""
        if not self._complained:
            _log.warning("%r failed; nothing is guessed with it", part, exc_info=True)
        self._complained = True


def _checked(hits: Hits) -> Hits:
    """Refuse a guess that is not made of hits; what raises here is no guess."""
    hits = fixed(hits)
    if isinstance(hits, tuple) and not all(isinstance(hit, Hit) for hit in hits):
        raise TypeError(f"a guess must be a sequence of hits, got {hits!r}")
    return hits
