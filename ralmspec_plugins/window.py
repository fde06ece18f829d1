"""The window of steps that are not committed: what is verified, rolled back, and done next."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from ralmspec_plugins.effects import (
    Cancel,
    Commit,
    Completed,
    Confirmed,
    Encode,
    Extend,
    Failed,
    FormQuery,
    Guess,
    Guessed,
    InFlight,
    Judged,
    Need,
    PartialOutput,
    RolledBack,
    Settled,
    Start,
    Work,
)
from ralmspec_plugins.errors import Cancelled
from ralmspec_plugins.metrics import MetricsRecorder
from ralmspec_plugins.parts import Parts
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.scheduling.policy import Policy, SchedulerState
from ralmspec_plugins.speculators.cascade import SpeculatorCascade
from ralmspec_plugins.steps import Asked, Failure, RollbackCache, Step
from ralmspec_plugins.types import (
    Answer,
    Formed,
    Hits,
    NoRetrieval,
    Query,
    Retrieved,
    Span,
    unscored,
)

MOST_RETRIES = 3  # failures while running ahead, after which a request is finished plainly


class SpeculationWindow:
    """The last committed state of a request, and the steps after it.

    A reorder buffer: steps are written in order, verified in any order, and committed
    in order. At most one step is formed, guessed for or written at a time (`writer`), since
    each needs the one before it. A writer that was cancelled keeps the place until
    it has really stopped; until then it belongs to no step (`writer[1]` is `None`).
    """

    def __init__(
        self,
        parts: Parts,
        cascade: SpeculatorCascade,
        policy: Policy | None,
    ) -> None:
        """Start before the first state; without a policy nothing runs ahead."""
        self.parts = parts
        self.workload = parts.workload
        self.cascade = cascade
        self.policy = policy
        self.metrics = MetricsRecorder()
        self.in_flight = InFlight()
        self.rollback = RollbackCache(self.workload)
        self.root: Any = None  # the last committed state
        self.steps: list[Step] = []
        self.retrieved: list[Retrieved] = []
        self.writer: tuple[Work, Step | None] | None = None
        self.alone: Step | None = None  # the step that is run alone
        self.ran_ahead = False  # since memory was last freed
        self.stopping_s = 0.0  # when a writer was last cancelled
        self.settled = ""
        self.contradiction: Failure | None = None  # a text that was settled did not come again
        self.out: list[Need] = []  # what the engine is to do next
        self._cancelled: set[Encode] = set()
        self._asked_for_guess = self._had_guess = self._began_ahead = False  # for statistics

    @property
    def complete(self) -> bool:
        """Whether everything is committed, and the answer found to be complete."""
        return bool(self.steps) and self.steps[0].ends

    def answer(self) -> Answer:
        """Give the final text, its record and its statistics."""
        for need in self.in_flight:
            self.metrics.unfinished(need)
        text = self.workload.text(self.root)
        lossy = self._began_ahead and getattr(self.workload, "lossy", False)
        stats = self.metrics.stats(self._unguessed(), lossy=lossy)
        return Answer(text, tuple(self.retrieved), self.root, stats)

    def _unguessed(self) -> str | None:
        """Return why no segment was begun on a guess; `None` if one was, or nothing searched."""
        if self._began_ahead or not self.metrics.batches or self.policy is None:
            return None
        if not self.cascade.speculates:
            return "no speculators were given"
        if self.cascade.held:
            return "may_guess has said no"
        if self._had_guess:
            return "writing on guesses would not have paid"
        return "no speculator had a guess" if self._asked_for_guess else "guessing would not pay"

    def start(self, need: Work) -> None:
        """Have a piece of work started."""
        self.in_flight.start(need)
        self.ran_ahead |= isinstance(need, Extend) and need.ahead
        self.metrics.began(need)
        self.out.append(need)

    def write(self, need: Work, step: Step) -> None:
        """Have a step asked, guessed or written."""
        self.writer = (need, step)
        self.start(need)

    def pending(self) -> list[Query]:
        """Give the queries that have to go out, in the order of the steps."""
        searching = self.in_flight.searching
        return [
            step.query
            for step in self.steps
            if isinstance(step.query, Query)
            and step.encoded
            and step.truth is None
            and step.search_failure is None
            and step.query.key not in searching
        ]

    def behind_guess(self, step: Step) -> bool:
        """Return whether a step before this one is written on hits that are not verified."""
        return any(not one.verified for one in takewhile(lambda one: one is not step, self.steps))

    def asked_behind_guess(self, queries: Sequence[Query]) -> bool:
        """Return whether a step that asks one of these stands behind hits that are not verified."""
        keys = {query.key for query in queries}
        return any(
            isinstance(step.query, Query) and step.query.key in keys and self.behind_guess(step)
            for step in self.steps
        )

    @property
    def encoding(self) -> bool:
        """Whether a step waits for its query's encoding."""
        if self.parts.inline_encode:
            return False
        return any(step.unencoded is not None for step in self.steps)

    def ran_alone(self, need: Work) -> bool:
        """Whether work ran as in the plain loop: nothing in parallel with it, nothing kept."""
        return self.in_flight.alone(need) and not self.ran_ahead

    def view(self, *, stalled: bool, pending: int | None = None) -> SchedulerState:
        """Tell a policy what it may know; `pending` where it has been counted already."""
        if pending is None:
            pending = len(self.pending())
            if not self.parts.inline_encode:
                pending += sum(step.unencoded is not None for step in self.steps)
        return SchedulerState(
            pending=pending,
            searching=self.in_flight.searches,
            in_flight=len(self.in_flight.searching),
            ahead=sum(step.ahead for step in self.steps),
            stalled=stalled,
        )

    def confirmed_failure(self) -> Failure | None:
        """Give the failure of the first step, if the plain loop would have come to it."""
        if not self.steps or self.contradiction is not None:
            return self.contradiction
        head = self.steps[0]
        if head.truth is None:
            before_writing = head.encode_failure or head.search_failure
            if before_writing is not None:
                return before_writing
        return head.failure if head.verified or not head.asked else None

    def visible(self, hits: Hits) -> Hits:
        """Give the hits as `extend` may see them: without scores unless it reads them."""
        return hits if self.workload.reads_scores else unscored(hits)

    def run_ahead(self, step: Step, guess: Hits) -> None:
        """Have a step written with hits that no search has confirmed yet."""
        assert isinstance(step.query, Query)
        step.used = self.visible(guess)
        self._began_ahead = True
        self.out.append(Guessed(step.query, guess))

    def failed(self, error: Exception) -> Failed:
        """Say what the request comes to, and whose search it was if it was a search's error."""
        head = self.steps[0] if self.steps else None
        search = None if head is None else head.search_failure
        if head is None or search is None or search.error is not error:
            return Failed(error)
        assert isinstance(head.query, Query)
        return Failed(error, head.query)

    def confirm(self) -> None:
        """Hold the steps against what the searches found; commit what is verified."""
        for position, step in enumerate(self.steps):
            if step.truth is not None and not step.verified and not self._verify(position, step):
                break
        self._commit()

    def _verify(self, position: int, step: Step) -> bool:
        """Hold one step against the truth; say whether what follows it stands."""
        assert step.truth is not None
        truth = self.visible(step.truth)
        if step.guess is not None:
            self._judge(step, self._agree(step, self.visible(step.guess), truth))
        step.verified = True
        if step.used is None:
            step.used = truth
            if self.writer is not None and self.writer[1] is step:
                self._stop_writer()  # a guess that nobody waits for any more
            return True
        if self._agree(step, step.used, truth):
            return True
        self.roll_back(position)
        step.rewrite(truth)
        return False

    def _agree(self, step: Step, guess: Hits, truth: Hits) -> bool:
        """Compare; what cannot be compared (an array in a passage's metadata) differs."""
        agree = getattr(self.workload, "agree", None)
        try:
            return bool(guess == truth if agree is None else agree(step.before, guess, truth))
        except Exception:  # noqa: BLE001 the plain loop compares nothing, so it must not matter
            return False

    def _judge(self, step: Step, right: bool) -> None:
        assert isinstance(step.query, Query)
        self.out.append(Judged(step.query, right))
        self.metrics.record_outcome(right)
        if self.policy is not None:
            self.policy.record_outcome(right)

    def _commit(self) -> None:
        """Commit the verified steps at the head; settle what the next one has so far."""
        while self.steps and self.steps[0].verified and self.steps[0].written:
            self._confirmed(self.steps[0])
            if self._contradicts(self.steps[0], self.steps[0].after, whole=True):
                return
            step = self.steps.pop(0)
            self.root = step.after
            self.metrics.segments += 1
            self.metrics.without_retrieval += step.entry is None
            self.metrics.remembered += step.remembered
            self.metrics.reused += step.reused
            self.out.append(Commit(step.entry, step.after))
            self._settle(step.after)
        if self.steps:
            head = self.steps[0]
            if head.verified:
                self._confirmed(head)
            if head.partial is not None and (head.verified or not head.asked):
                self._show(head, head.partial)

    def _show(self, head: Step, partial: Any) -> None:
        """Settle what the first step, whose hits are right, has so far."""
        if not self._contradicts(head, partial, whole=False):
            head.shown |= self._settle(partial)

    def _contradicts(self, step: Step, state: Any, *, whole: bool) -> bool:
        """Say whether a step that is written once more takes back what was settled before."""
        if step.broke_off is None:
            return False
        text = self.workload.settled(state)
        if text.startswith(self.settled) or (not whole and self.settled.startswith(text)):
            return False
        self.contradiction = Failure(step.broke_off, alone=True)
        return True

    def _confirmed(self, step: Step) -> None:
        """Enter what the step in front has retrieved in the record, once."""
        if step.confirmed:
            return
        step.confirmed = True
        if isinstance(step.query, NoRetrieval):
            return
        assert step.query is not None
        assert step.truth is not None
        step.entry = Retrieved(step.query, step.truth)
        self.retrieved.append(step.entry)
        self.out.append(Confirmed(step.entry))

    def _settle(self, state: Any) -> bool:
        """Settle what is new of a text, if anything is; say so."""
        text = self.workload.settled(state)
        if len(text) <= len(self.settled):
            return False
        self.settled = text
        self.metrics.text()
        self.out.append(Settled(text, state))
        return True

    def roll_back(self, position: int) -> None:
        """Give up the segment at this position, and drop all steps behind it."""
        segments = sum(step.used is not None for step in self.steps[position:])
        self.out.append(RolledBack(segments))
        self.drop(position + 1)
        self._give_up(self.steps[position])

    def drop(self, position: int) -> None:
        """Drop the steps from this position on; what they found out is remembered."""
        for step in self.steps[position:]:
            self._give_up(step)
        del self.steps[position:]

    def reset(self, step: Step) -> None:
        """Undo what a step came to, except for hits that are known to be right."""
        if step.shown and step.failure is not None:
            step.broke_off = step.failure.error
        self._give_up(step)
        step.failure = step.encode_failure = step.search_failure = None
        step.rewrite(step.used if step.verified else None)

    def _give_up(self, step: Step) -> None:
        """Give up a step's segment, written or being written."""
        self.rollback.put(step)
        self.metrics.drop(step.span)
        if self.writer is not None and self.writer[1] is step:
            self._stop_writer()

    def _stop_writer(self) -> None:
        """Stop what is being asked or written; its place is free when it has stopped."""
        assert self.writer is not None
        need = self.writer[0]
        if isinstance(need, FormQuery | Extend):
            need.progress.cancel()
        self.out.append(Cancel(need))
        self.stopping_s = self.metrics.now_s
        self.writer = None if isinstance(need, Guess) else (need, None)

    # Completions

    def writing(self, need: Work) -> Step | None:
        """Give the step that this work is for, unless that was dropped since."""
        return self.writer[1] if self.writer is not None and self.writer[0] is need else None

    def record_partial(self, report: PartialOutput) -> None:
        """Take in what an unfinished segment or query has so far."""
        self.metrics.now_s = max(self.metrics.now_s, report.at_s)
        step = self.writing(report.need)
        if step is not None:
            step.partial = report.state

    def record_search(self, done: Completed, query: Query, *, alone: bool) -> None:
        """Give every step that waits for a query its hits, or the error of its search."""
        for step in self.steps:
            asked = step.query
            if not isinstance(asked, Query) or not step.encoded or step.truth is not None:
                continue
            if asked is not query and asked.key != query.key:
                continue
            if done.error is None:
                step.truth = done.value.hits
            else:
                step.search_failure = Failure(done.error, alone and step is self.steps[0])

    def record_encoding(self, done: Completed, *, alone: bool, stopped: bool) -> None:
        """Give every step that waits for a query's encoding that query, or the error."""
        assert isinstance(done.need, Encode)
        text = done.need.query.text
        stopped |= done.need in self._cancelled and isinstance(done.error, Cancelled)
        self._cancelled.discard(done.need)
        self.in_flight.complete(done.need, 0)
        self.metrics.done(done)
        if done.error is None:
            self.cascade.note_encoded(text, done.value)
        elif stopped:
            return  # a step that waits for it now asks again
        for step in self.steps:
            query = step.unencoded
            if query is None or query.text != text:
                continue
            if done.error is not None:
                step.encode_failure = Failure(done.error, alone and step is self.steps[0])
                continue
            step.query, step.encoded = done.value, True
            if step.used is None:  # a guess that was made by the text alone is kept
                step.cost_s += done.took_s
                step.guessed = step.guessed and step.guess is not None

    def record_work(self, done: Completed, *, alone: bool) -> None:
        """Take in the first state, a query, a guess or a segment."""
        step = self.writing(done.need)
        alone = alone and bool(self.steps) and step is self.steps[0]
        self.in_flight.complete(done.need, 0)
        span = self.metrics.done(done)
        if self.writer is not None and self.writer[0] is done.need:
            self.writer = None
        if isinstance(done.need, Start):
            self.root = done.value
        elif step is None:
            self._stopped(done, span)
        else:
            self._advance(step, done, span, alone)

    def _advance(self, step: Step, done: Completed, span: Span, alone: bool) -> None:
        """Take a step to its next stage."""
        if not isinstance(done.need, Extend):
            step.cost_s += done.took_s
        if isinstance(done.need, Guess):
            step.guess = None if done.error is not None else done.value
        elif done.error is not None:
            step.failure = Failure(done.error, alone)
        elif isinstance(done.need, FormQuery):
            self._take(step, done.value, alone=alone)
        else:
            step.written, step.after, step.partial, step.span = True, done.value, None, span
            if self.policy is not None:
                self.policy.wrote(step.cost_s + done.took_s, self.metrics.beside_s)

    def _stopped(self, done: Completed, span: Span) -> None:
        """Take in that a writer whose step was dropped has stopped, whole or not."""
        self.metrics.drop(span)
        if isinstance(done.need, FormQuery) and done.error is None:
            self.rollback.put_query(done.need.state, self._asked(done.value))
        if not isinstance(done.need, Extend):
            return
        if self.policy is not None:
            self.policy.stopped(max(0.0, done.ended_s - self.stopping_s))
        if done.error is None:
            self.rollback.put_segment(done.need.state, done.need.hits, done.value, span)

    @property
    def plainly(self) -> bool:
        """Whether nothing may run ahead now."""
        if self.policy is None or self.metrics.retries >= MOST_RETRIES:
            return True
        return self.alone is not None and self.alone in self.steps

    # Planning: the next query, its hits, its segment

    def plan(self) -> bool:
        """Take the last step as far as it goes; return whether anything changed."""
        moved = False
        while self.writer is None:
            if not self.steps or self.steps[-1].written:
                if self.steps and (self.plainly or self.cascade.held):
                    break
                self.steps.append(Step(self.steps[-1].after if self.steps else self.root))
            step = self.steps[-1]
            if step.failure is not None or step.ends or not self._further(step):
                break
            moved = True
        return moved

    def _further(self, step: Step) -> bool:
        """Take the last step one stage further; return whether anything changed."""
        if self.cascade.held and (step.ahead or self.behind_guess(step)):
            return False
        if not step.asked:
            self._form_query(step)
        elif step.used is not None:
            self._extend(step)
        else:
            return self._choose(step)
        return True

    def _form_query(self, step: Step) -> None:
        if (known := self.rollback.query(step.before)) is not None:
            step.take(known)
            return
        if not self.parts.inline_query:
            self.write(FormQuery(step.before, speculative=self.behind_guess(step)), step)
            return
        alone = not self.in_flight and not self.ran_ahead and step is self.steps[0]
        try:
            formed = self.parts.form(step.before, Progress())
        except Exception as error:  # noqa: BLE001 counts only if the step is confirmed
            step.failure = Failure(error, alone)
        else:
            self._take(step, formed, alone=alone)

    def _take(self, step: Step, formed: Formed, *, alone: bool) -> None:
        """Take in a query that was formed, and encode it if that costs nothing."""
        if isinstance(formed.query, str) and self.parts.inline_encode:
            step.take(Asked(Query(formed.query), False, formed.carried))
            self._encode_inline(step, formed.query, alone=alone)
        else:
            step.take(self._asked(formed))

    def _asked(self, formed: Formed) -> Asked:
        query = formed.query
        if not isinstance(query, str):
            return Asked(query, isinstance(query, Query), formed.carried)
        encoded = self.cascade.encoded(query)
        if encoded is not None:
            return Asked(encoded, True, formed.carried)
        return Asked(self.parts.unencoded(query), False, formed.carried)

    # Encoding

    def _encode_inline(self, step: Step, text: str, *, alone: bool) -> None:
        try:
            step.query = self.parts.encode(text)
        except Exception as error:  # noqa: BLE001 counts only if the step is confirmed
            step.encode_failure = Failure(error, alone)
        else:
            step.encoded = True

    def encode(self) -> bool:
        """Start encodings while there are lanes, the first steps first; return whether any did.

        One that no step waits for any more is cancelled.
        """
        if self.parts.inline_encode:
            return self._encode_rest()
        waiting = [query for step in self.steps if (query := step.unencoded) is not None]
        texts = {query.text for query in waiting}
        for text, need in self.in_flight.encoding.items():
            if text not in texts and need not in self._cancelled:
                self._cancelled.add(need)
                self.out.append(Cancel(need))
        started = False
        for query in waiting:
            if len(self.in_flight.encoding) >= self.parts.encode_lanes:
                break
            if query.text not in self.in_flight.encoding:
                self.start(Encode(query, self.asked_behind_guess([query])))
                started = True
        return started

    def _encode_rest(self) -> bool:
        """Encode what a step that is run once more could not encode before."""
        query = self.steps[0].unencoded if self.steps else None
        if query is None:
            return False
        alone = not self.in_flight and not self.ran_ahead
        self._encode_inline(self.steps[0], query.text, alone=alone)
        return True

    def _choose(self, step: Step) -> bool:
        """Find the hits to write with: the truth if it is known, else a guess."""
        query, cascade = step.query, self.cascade
        assert isinstance(query, Query)
        if self.policy is None or self.plainly or step.encode_failure is not None:
            return False
        if step.truth is None:
            step.truth = cascade.known(query) if step.encoded else cascade.known_by_text(query)
            if step.truth is not None:
                step.remembered = True
                step.used, step.verified = self.visible(step.truth), True
                return True
        if cascade.held:
            return False
        if not step.guessed and self.policy.worth_guessing():
            step.guessed = self._asked_for_guess = True
            began_s = cascade.clock()
            step.guess = cascade.guess_inline(query, encoded=step.encoded)
            self.policy.guessed(cascade.clock() - began_s)
            if step.guess is None and cascade.slow(encoded=step.encoded):
                self.write(Guess(query, step.encoded), step)
                return True
        if step.guess is None:
            return False
        self._had_guess = True
        if not self.policy.may_write(self.view(stalled=False)):
            return False
        self.run_ahead(step, step.guess)
        return True

    def _extend(self, step: Step) -> None:
        assert step.used is not None
        known = self.rollback.segment(step.before, step.used)
        if known is None:
            ahead = not step.verified
            speculative = ahead or self.behind_guess(step)
            need = Extend(step.before, step.used, ahead, speculative, carried=step.carried)
            self.write(need, step)
            return
        step.after, step.span = known
        step.written = step.reused = True
        self.metrics.take_back(step.span)
