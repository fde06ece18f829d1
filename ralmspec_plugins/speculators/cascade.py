"""The cascade of a request: a query cache of real hits, then speculators in order."""

import logging
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import takewhile
from typing import Any, Final, NamedTuple, TypeAlias

from ralmspec_plugins.effects import SearchResult
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.protocols import Speculator
from ralmspec_plugins.scheduling.rate_limit import RateLimit
from ralmspec_plugins.speculators.query_cache import QueryCache
from ralmspec_plugins.speculators.ranking import SpeculatorRates
from ralmspec_plugins.types import Hit, Hits, Query, fixed

_log = logging.getLogger(__name__)
_UNKNOWN: Final = object()  # the generation of a speculator that cannot say it


WorthEarly: TypeAlias = Callable[[float, float, float], bool]  # by two rates, and seconds


class GuessedHits(NamedTuple):
    """A guess, the place of the speculator that made it, and the time, in seconds."""

    hits: Hits
    place: int
    at_s: float = 0.0


class SpeculatorCascade:
    """The query caches and the speculators of one request, called in this order.

    The real hits of a query are reused: always within the
    request, and across requests if a shared query cache is given. An error in a
    speculator means no guess. Hits that arrive after a shared cache was invalidated
    stay in the request: their search may have started before.
    """

    def __init__(
        self,
        speculators: Sequence[Speculator] = (),
        *,
        memo: QueryCache | None = None,
        signature: Hashable = None,
        signature_now: Callable[[], Hashable] | None = None,
        may_guess: Callable[[], bool] | None = None,
        rate_limit: RateLimit | None = None,
        clock: Callable[[], float] = time.perf_counter,
        rates: SpeculatorRates | None = None,
    ) -> None:
        """Create a cascade; the first guess is used.

        Args:
            speculators: in the order of the calls, until their guesses are judged.
            memo: a query cache shared with other requests.
            signature: the retriever's; the key of the entries in `memo`.
            signature_now: returns the retriever's current signature: hits found after a change
                are not added to shared caches.
            may_guess: returns whether guesses may be used now; `None`: always.
            rate_limit: of providers; while it is active no guess is used.
            clock: returns the seconds by which inline guesses are timed.
            rates: of the engine's speculators: the one whose guesses save the most is called first.
        """
        self.clock = clock
        self._complained = False
        self._speculators = tuple(speculators)
        self._inline = [self._is(one, "inline") for one in self._speculators]
        self._after = [self._read(one, "guess_after", None, None) for one in self._speculators]
        self._rates = SpeculatorRates() if rates is None else rates
        self._memo = memo
        # Hits of searches from before an invalidation are not added to these.
        self._generations = [
            self._read(one, "generation", None, _UNKNOWN) for one in self._speculators
        ]
        self._memo_generation = None if memo is None else memo.generation
        self._signature = signature
        self._signature_now = signature_now
        self._may_guess = may_guess
        self._rate_limit = rate_limit
        self._found: dict[Hashable, Hits] = {}
        self._encoded: dict[str, Query] = {}  # by text
        self._unlearned: list[tuple[Query, Hits]] = []  # by the speculators, wide

    def known(self, query: Query) -> Hits | None:
        """Return the real hits of a query that was searched before."""
        hits = self._found.get(query.key)
        if hits is None and self._memo is not None:
            hits = self._memo.known(self._signature, query)
        return hits

    def known_by_text(self, query: Query) -> Hits | None:
        """Return the real hits of a query that is not encoded yet."""
        return None if self._memo is None else self._memo.known_by_text(self._signature, query)

    def encoded(self, text: str) -> Query | None:
        """Return the query that a text was encoded to in this request."""
        return self._encoded.get(text)

    def note_encoded(self, text: str, query: Query) -> None:
        """Record the encoded query of a text, even if its step was dropped."""
        self._encoded[text] = query

    @property
    def speculates(self) -> bool:
        """Whether there is any speculator."""
        return bool(self._speculators)

    @property
    def follows(self) -> bool:
        """Whether a speculator reads the hits of the step before."""
        return any(one is not None for one in self._after)

    @property
    def held(self) -> bool:
        """Whether a rate limit or `may_guess` forbids guesses now; an error in it counts as no."""
        if self.rate_limited:
            return True
        try:
            return self._may_guess is not None and not self._may_guess()
        except Exception:  # noqa: BLE001 the plain loop does not call it
            self._complain(self._may_guess)
            return True

    @property
    def why_silent(self) -> str | None:
        """Why no guess may be used; `None` if one may."""
        if not self.speculates:
            return "no speculators were given"
        if self.rate_limited:
            return "a provider has asked to be called less often"
        return "may_guess returned False" if self.held else None

    @property
    def rate_limited(self) -> bool:
        """Whether a provider has asked to be called less often."""
        return self._rate_limit is not None and self._rate_limit.active

    def turns(self) -> tuple[Sequence[int], Sequence[int]]:
        """Return the places of those to ask about an encoded query: inline ones, and slow ones.

        Those come first whose guesses save the most; a slow one must not be called inside the loop,
        nor one that follows it.
        """
        return self._split(self._rates.order(len(self._speculators)))

    def turns_early(self, worth: WorthEarly | None) -> tuple[Sequence[int], Sequence[int]]:
        """Return those to ask before a query is encoded: they read its text.

        Where one that reads the encoding can guess again and replace a wrong early guess, all are
        asked that are worth it; elsewhere those that precede all others.

        Args:
            worth: decides by the acceptance rates of guesses by the text and by the encoding, and
                by how many seconds the former precede; `None`: no guess is replaced.
        """
        asked = self._rates.order(len(self._speculators))
        again = self._turns_again(asked)
        if worth is None or not again:
            return self._split(list(takewhile(self._reads_text, asked)))
        early = [place for place in asked if self._reads_text(place)]
        return self._split([one for one in early if worth(*self._rates.ahead(one, again[0]))])

    def _turns_again(self, asked: Sequence[int]) -> Sequence[int]:
        """Return those to ask again once a query is encoded, after a guess by its text."""
        return [place for place in asked if self._inline[place] and not self._reads_text(place)]

    def _split(self, asked: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
        inline = list(takewhile(self._inline.__getitem__, asked))
        return inline, asked[len(inline) :]

    def guess_again(self, query: Query, previous: Hits | None) -> GuessedHits | None:
        """Return the first guess by the encoding of a query about whose text a guess was made."""
        asked = self._rates.order(len(self._speculators))
        return self.guess(self._turns_again(asked), query, previous)

    def guess(
        self, places: Sequence[int], query: Query, previous: Hits | None = None
    ) -> GuessedHits | None:
        """Return the first guess of the speculators at some places.

        Args:
            places: of the speculators, in the order of the calls.
            query: the query.
            previous: the hits of the step before, verified or guessed; `None` at the first one.
        """
        for place in places:
            speculator, after = self._speculators[place], self._after[place]
            try:
                if after is None or previous is None:
                    hits = speculator.guess(query)
                else:
                    hits = after(query, previous)
                hits = None if hits is None else _checked(hits)
            except Exception:  # noqa: BLE001 any error means no guess
                self._complain(speculator)
                continue
            if hits is not None:
                return GuessedHits(hits, place)
        return None

    def record_outcome(self, guess: GuessedHits, accepted: bool, lead_s: float) -> None:
        """Record whether a guess was right, and how many seconds before the search's result."""
        self._rates.record_outcome(guess.place, accepted, lead_s)

    def record_difference(
        self, first: GuessedHits, second: GuessedHits, right: tuple[bool, bool]
    ) -> None:
        """Record which of two guesses for a query that differ were right."""
        self._rates.record_difference(first.place, second.place, right)

    def chances(self, first: GuessedHits, second: GuessedHits) -> tuple[float, float]:
        """Return the probabilities that either of two guesses that differ is right."""
        return self._rates.chances(first.place, second.place)

    def _reads_text(self, place: int) -> bool:
        return self._is(self._speculators[place], "by_text")

    def learn(self, query: Query, found: SearchResult) -> None:
        """Record the result of a search, even if its step was dropped.

        The speculators learn it with `catch_up`.
        """
        self._found[query.key] = found.hits
        if not self._is_as_it_was():
            return
        if self._memo is not None:
            self._memo.learn(self._signature, query, found.hits, self._memo_generation)
        if self._speculators:
            self._unlearned.append((query, found.wide))

    @property
    def is_behind(self) -> bool:
        """Whether there are results that the speculators have not learned."""
        return bool(self._unlearned)

    def catch_up(self) -> None:
        """Hand the results since the last call to the speculators, in their order."""
        unlearned, self._unlearned = self._unlearned, []
        for query, wide in unlearned:
            for speculator, generation in zip(self._speculators, self._generations, strict=True):
                if generation is not _UNKNOWN:
                    self._teach(speculator, query, wide, generation)

    def _teach(self, speculator: Speculator, query: Query, wide: Hits, generation: Any) -> None:
        try:
            learn: Any = speculator.learn
            if generation is None:
                learn(query, wide)
            else:
                learn(query, wide, generation)
        except Exception:  # noqa: BLE001 a failure to learn never changes the answer
            self._complain(speculator)

    def _is_as_it_was(self) -> bool:
        """Whether the retriever's signature is that of the start of the request."""
        if self._signature_now is None:
            return True
        try:
            return self._signature_now() == self._signature
        except Exception:  # noqa: BLE001 the plain loop reads no signature
            self._complain("a retriever's signature")
            return False

    def _read(self, speculator: Speculator, name: str, missing: Any, failed: Any) -> Any:
        """Return an optional attribute of a speculator; `failed` if reading it raises."""
        try:
            return getattr(speculator, name, missing)
        except Exception:  # noqa: BLE001 the plain loop does not read it
            self._complain(speculator)
            return failed

    def _is(self, speculator: Speculator, name: str) -> bool:
        """Return whether an optional attribute of a speculator is true; an error in it: no."""
        try:
            return bool(getattr(speculator, name, False))
        except Exception:  # noqa: BLE001 the plain loop does not read it
            self._complain(speculator)
            return False

    def _complain(self, part: object) -> None:
        """Log an error of a part that only speculation uses, once for each request."""
        if not self._complained:
            _log.warning("%r failed; no guess is made with it", part, exc_info=True)
        self._complained = True


def _checked(hits: Hits) -> Hits:
    """Check that a guess is a sequence of hits; an error here means no guess."""
    hits = fixed(hits)
    if isinstance(hits, tuple) and not all(isinstance(hit, Hit) for hit in hits):
        raise TypeError(f"a guess must be a sequence of hits, got {hits!r}")
    return hits


def usable(speculators: Iterable[Speculator]) -> tuple[Speculator, ...]:
    """Return speculators as a tuple, after a check that each has the required methods.

    Raises:
        ConfigError: they are no sequence, or one of them has no `guess` or no `learn`.
    """
    try:
        given = tuple(speculators)
    except TypeError:
        raise ConfigError(
            f"speculators must be a sequence of speculators, got {speculators!r}"
        ) from None
    for one in given:
        methods = [getattr(one, name, None) for name in ("guess", "learn")]
        if isinstance(one, type) or not all(map(callable, methods)):
            raise ConfigError(
                f"a speculator is an object with guess(query) and learn(query, hits), got {one!r}"
            )
    return given
