"""The guesses of a request's steps: asked for, compared with each other, and judged."""

from collections.abc import Callable
from typing import Final

from ralmspec_plugins.effects import Guess
from ralmspec_plugins.metrics import MetricsRecorder
from ralmspec_plugins.parts import Parts
from ralmspec_plugins.scheduling.policy import Policy
from ralmspec_plugins.speculators.cascade import GuessedHits, SpeculatorCascade
from ralmspec_plugins.steps import Step
from ralmspec_plugins.types import Hits, Query

NOT_WORTH_GUESSING: Final = "guessing would not have paid off"


class StepGuesses:
    """Calls the speculators of one request for its steps, and records which guesses are right.

    While a query is being encoded, speculators guess by its text. Once it is encoded, those that
    read encodings may guess again: if they differ, the second guess replaces the first one where
    that is expected to save time, once a step (docs/decisions/0015).
    """

    def __init__(
        self,
        parts: Parts,
        cascade: SpeculatorCascade,
        policy: Policy | None,
        metrics: MetricsRecorder,
    ) -> None:
        """Ask for no guess yet; without a policy none is ever asked for."""
        self._parts = parts
        self._cascade = cascade
        self._policy = policy
        self._metrics = metrics
        self._replacement = None if policy is None else policy.replacement
        replacement = self._replacement
        self._worth_early = None if replacement is None else replacement.worth_guessing_early
        self.encoded_since: list[Step] = []  # with a guess by the text; not compared yet
        self._requested = False
        self._had_room = True
        self.had = False  # whether there was a guess
        self.used = False  # whether a segment was started on one

    def unguessed(self, limited_by: str | None) -> str | None:
        """Return why no segment was started on a guess; `None` if one was or none was needed.

        Args:
            limited_by: the bound on waste that was reached.
        """
        if self.used or not self._metrics.batches or self._policy is None:
            return None
        if (reason := self._cascade.why_silent) is not None:
            return reason
        if limited_by is not None:
            return f"{limited_by} was reached"
        if self.had or not self._had_room:
            return "speculative segments would not have paid off"
        return "no speculator had a guess" if self._requested else NOT_WORTH_GUESSING

    def ask(self, step: Step, previous: Callable[[], Hits | None]) -> Guess | None:
        """Call the speculators for the newest step, once; return the work of slow ones.

        Args:
            step: the step, with its query.
            previous: returns the hits of the step before, verified or guessed.
        """
        query, cascade, policy = step.query, self._cascade, self._policy
        assert isinstance(query, Query)
        assert policy is not None
        if step.guessed:
            return None
        self._requested = policy.worth_guessing(early=not step.encoded)  # the latest says why not
        # Without room the speculators are called when there may be.
        self._had_room = not self._requested or policy.has_room()
        if not self._requested or not self._had_room:
            return None
        step.guessed = True
        cascade.catch_up()
        began_s = cascade.clock()
        before = previous() if cascade.follows else None
        inline, slow = cascade.turns() if step.encoded else cascade.turns_early(self._worth_early)
        guess = cascade.guess(inline, query, before)
        policy.guessed(cascade.clock() - began_s)
        if guess is not None:
            self.made(step, guess, self._metrics.now_s)
        elif step.guess is None and slow:
            return Guess(query, slow, before)
        return None

    def made(self, step: Step, guess: GuessedHits | None, at_s: float) -> None:
        """Set a step's guess, and its time."""
        step.guess = None if guess is None else guess._replace(at_s=at_s)

    def encoded(self, step: Step) -> bool:
        """Record that the query of a step was encoded; return whether to ask for a second guess."""
        if step.guess is None:
            step.guessed = step.guessed and step.used is not None
        elif self._replacement is not None:
            self.encoded_since.append(step)
            return True
        return False

    def next_encoded(self, steps: list[Step]) -> Step | None:
        """Return the next of these steps for which to ask for a second guess; `None`: no other."""
        while self.encoded_since:
            step = self.encoded_since.pop(0)
            if step in steps:
                return step
        return None

    def is_second_better(self, step: Step, previous: Hits | None, *, writing: bool) -> bool:
        """Call the speculators that read encodings; return whether to replace the step's guess.

        Args:
            step: the step, with a guess by the text of its query, which is encoded now.
            previous: the hits of the step before, verified or guessed.
            writing: whether a segment would have to be stopped.
        """
        first, query, cascade, policy = step.guess, step.query, self._cascade, self._policy
        assert isinstance(query, Query)
        assert policy is not None
        if first is None or step.truth is not None or not policy.worth_guessing():
            return False
        cascade.catch_up()
        began_s = cascade.clock()
        second = cascade.guess_again(query, previous)
        policy.guessed(cascade.clock() - began_s)
        if second is None:
            return False
        second = second._replace(at_s=self._metrics.now_s)
        step.compared = first, second
        if self._reads_as(step, first, second.hits):
            return False
        begun = step.used is not None
        since_s = second.at_s - first.at_s if begun else 0.0
        chances = cascade.chances(first, second)
        assert self._replacement is not None
        return self._replacement.worth_replacing(*chances, since_s, stops=writing and begun)

    def replace(self, step: Step) -> float:
        """Use a step's second guess; return how many seconds after the first it came."""
        assert step.compared is not None
        first, step.guess = step.compared
        return step.guess.at_s - first.at_s

    def judge(self, step: Step) -> bool:
        """Compare the guesses of a step with its real hits; return whether the one in use is right.

        Args:
            step: the step, with a guess and its real hits.
        """
        assert step.guess is not None
        assert step.truth is not None
        right = self._reads_as(step, step.guess, step.truth)
        self._metrics.record_outcome(right)
        if step.compared is None:
            self._record(step.guess, right)
        else:
            first, second = step.compared
            outcomes = [self._reads_as(step, guess, step.truth) for guess in step.compared]
            for guess, outcome in zip(step.compared, outcomes, strict=True):
                self._record(guess, outcome)
            if not self._reads_as(step, first, second.hits):
                self._cascade.record_difference(first, second, (outcomes[0], outcomes[1]))
        if self._policy is not None:
            self._policy.record_outcome(right)
        return right

    def _record(self, guess: GuessedHits, right: bool) -> None:
        lead_s = max(0.0, self._metrics.now_s - guess.at_s)
        self._cascade.record_outcome(guess, right, lead_s)

    def _reads_as(self, step: Step, guess: GuessedHits, hits: Hits) -> bool:
        visible = self._parts.visible
        return self._parts.agree(step.before, visible(guess.hits), visible(hits))
