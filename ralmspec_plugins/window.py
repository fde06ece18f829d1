"""The window of uncommitted steps: verification, rollback, and planning."""

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
from ralmspec_plugins.encoding_lanes import EncodingLanes, EncodingWanted
from ralmspec_plugins.errors import Cancelled
from ralmspec_plugins.guesses import StepGuesses
from ralmspec_plugins.metrics import MetricsRecorder
from ralmspec_plugins.parts import Parts, as_given
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.scheduling.policy import Policy, SchedulerState
from ralmspec_plugins.settled import SettledText
from ralmspec_plugins.speculators.cascade import SpeculatorCascade
from ralmspec_plugins.steps import Failure, FormedQuery, RollbackCache, Step
from ralmspec_plugins.types import (
    Answer,
    Formed,
    Hits,
    NoRetrieval,
    Query,
    Retrieved,
    Span,
)
from ralmspec_plugins.waste import WasteBudget, WasteLimits

MOST_RETRIES = 3  # failures of speculative work, after which a request is run sequentially


class SpeculationWindow:
    """The last committed state of a request, and the steps after it.

    A reorder buffer: steps are written in order, verified in any order, and committed
    in order. At most one step is formed, guessed for or written at a time (`writer`), since
    each needs the one before it. A cancelled writer blocks the next one until
    it has stopped; until then it belongs to no step (`writer[1]` is `None`).
    """

    def __init__(
        self,
        parts: Parts,
        cascade: SpeculatorCascade,
        policy: Policy | None,
        limits: WasteLimits,
    ) -> None:
        """Create an empty window; without a policy nothing runs speculatively."""
        self.parts = parts
        self.workload = parts.workload
        self.cascade = cascade
        self.policy = policy
        self.metrics = MetricsRecorder()
        self.budget = WasteBudget(limits, self.metrics)
        self.in_flight = InFlight()
        self.lanes = EncodingLanes(self.in_flight, parts, policy)
        self.rollback = RollbackCache(self.workload)
        self.root: Any = None  # the last committed state
        self.steps: list[Step] = []
        self.retrieved: list[Retrieved] = []
        self.writer: tuple[Work, Step | None] | None = None
        self.retried_step: Step | None = None  # the step that is run in isolation
        self.speculated = False  # since memory was last freed
        self.stopping_s = 0.0  # the time at which a writer was last cancelled
        self.settled = SettledText(self.workload)
        self.out: list[Need] = []  # work and notices for the engine
        self.guesses = StepGuesses(parts, cascade, policy, self.metrics)

    @property
    def complete(self) -> bool:
        """Whether everything is committed and the answer is complete."""
        return bool(self.steps) and self.steps[0].ends

    def answer(self) -> Answer:
        """Return the final text, its record and its statistics."""
        for need in self.in_flight:
            self.metrics.unfinished(need)
        self.budget.committed(self.steps[0])  # the step that found the answer to be complete
        text = self.parts.text(self.root)
        lossy = self.guesses.used and getattr(self.workload, "lossy", False)
        limited_by = self.budget.limited_by
        unguessed = self.guesses.unguessed(limited_by)
        stats = self.metrics.stats(unguessed, limited_by=limited_by, lossy=lossy)
        return Answer(text, tuple(self.retrieved), self.root, stats)

    def start(self, need: Work) -> None:
        """Request that the engine start a piece of work."""
        self.in_flight.start(need)
        self.speculated |= isinstance(need, Extend) and need.ahead
        self.metrics.began(need)
        self.budget.began(need)
        self.out.append(need)

    def write(self, need: Work, step: Step) -> None:
        """Request the writer's next work for a step: a query, a guess or a segment."""
        self.writer = (need, step)
        self.start(need)

    def pending(self) -> list[Query]:
        """Return the queries to search, in the order of the steps."""
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

    def follows_guess(self, step: Step) -> bool:
        """Return whether a step before this one depends on unverified hits."""
        return any(not one.verified for one in takewhile(lambda one: one is not step, self.steps))

    def any_follow_guess(self, queries: Sequence[Query]) -> bool:
        """Return whether a step with one of these queries follows unverified hits."""
        keys = {query.key for query in queries}
        return any(
            isinstance(step.query, Query) and step.query.key in keys and self.follows_guess(step)
            for step in self.steps
        )

    @property
    def encoding(self) -> bool:
        """Whether a step waits for the encoding of its query, and any query is being encoded."""
        if self.parts.inline_encode or not self.in_flight.encoding:
            return False
        return any(step.unencoded is not None for step in self.steps)

    def ran_isolated(self, need: Work) -> bool:
        """Return whether work ran as in the plain loop: nothing in parallel, no memory in use."""
        return self.in_flight.exclusive(need) and not self.speculated

    def view(
        self, *, stalled: bool, pending: int | None = None, early: bool = False
    ) -> SchedulerState:
        """Return the state for a policy; `pending` is passed if it was counted already."""
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
            early=early,
        )

    def confirmed_failure(self) -> Failure | None:
        """Return the failure of the first step, if the plain loop would raise it."""
        if not self.steps or self.settled.contradiction is not None:
            return self.settled.contradiction
        head = self.steps[0]
        if head.truth is None:
            before_writing = head.encode_failure or head.search_failure
            if before_writing is not None:
                return before_writing
        return head.failure if head.verified or not head.asked else None

    def _use_guess(self, step: Step, guess: Hits) -> None:
        """Start the segment of a step with guessed hits."""
        assert isinstance(step.query, Query)
        step.used = self.parts.visible(guess)
        self.guesses.used = True
        self.out.append(Guessed(step.query, guess))

    def failed(self, error: Exception) -> Failed:
        """Return the event of a failed request, with the query of a failed search."""
        head = self.steps[0] if self.steps else None
        search = None if head is None else head.search_failure
        if head is None or search is None or search.error is not error:
            return Failed(error)
        assert isinstance(head.query, Query)
        return Failed(error, head.query)

    def confirm(self) -> None:
        """Compare the steps with the searches' results; commit what is verified."""
        for position, step in enumerate(self.steps):
            if step.truth is not None and not step.verified and not self._verify(position, step):
                break
        self._promote()
        self._commit()

    def _promote(self) -> None:
        """Mark the writer's work as confirmed if it no longer depends on a guess."""
        need, step = self.writer or (None, None)
        if step is None or not isinstance(need, FormQuery | Extend) or not need.speculative:
            return
        if not step.ahead and not self.follows_guess(step):
            need.progress.confirmed = True

    def _verify(self, position: int, step: Step) -> bool:
        """Compare one step with its real hits; return whether the steps after it remain valid."""
        assert step.truth is not None
        truth = self.parts.visible(step.truth)
        if step.guess is not None:
            assert isinstance(step.query, Query)
            self.out.append(Judged(step.query, self.guesses.judge(step)))
        step.verified = True
        if step.used is None:
            step.used = truth
            if self.writer is not None and self.writer[1] is step:
                self._stop_writer()  # a guess that is no longer needed
            return True
        if self.parts.agree(step.before, step.used, truth):
            return True
        self.roll_back(position)
        step.rewrite(truth)
        return False

    def _commit(self) -> None:
        """Commit the verified steps at the head; settle the partial text of the next one."""
        while self.steps and self.steps[0].verified and self.steps[0].written:
            self._confirmed(self.steps[0])
            if self.settled.contradicts(self.steps[0], self.steps[0].after, whole=True):
                return
            step = self.steps.pop(0)
            self.root = step.after
            self.budget.committed(step)
            self.metrics.segments += 1
            self.metrics.without_retrieval += step.entry is None
            self.metrics.remembered += step.remembered
            if isinstance(step.query, Query):
                self.metrics.used_texts.add(step.query.text)
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
        """Settle the partial text of the first step, whose hits are verified."""
        if not self.settled.contradicts(head, partial, whole=False):
            head.shown |= self._settle(partial)

    def _confirmed(self, step: Step) -> None:
        """Add the hits of the first step to the record, once."""
        if step.confirmed:
            return
        step.confirmed = True
        if isinstance(step.query, NoRetrieval):
            return
        assert step.query is not None
        assert step.truth is not None
        step.entry = Retrieved(as_given(step.query), step.truth)
        self.retrieved.append(step.entry)
        self.out.append(Confirmed(step.entry))

    def _settle(self, state: Any) -> bool:
        """Settle the new part of a text; return whether there is one."""
        if not self.settled.grow(state):
            return False
        self.metrics.text()
        self.out.append(Settled(self.settled.text, state))
        return True

    def roll_back(self, position: int) -> None:
        """Discard the segment at this position, and drop all steps after it."""
        segments = sum(step.used is not None for step in self.steps[position:])
        self.out.append(RolledBack(segments))
        self.drop(position + 1)
        self._give_up(self.steps[position])

    def drop(self, position: int) -> None:
        """Drop the steps from this position on; their results are cached."""
        for step in self.steps[position:]:
            self._give_up(step)
            self.metrics.drop(step.asked_span)
        del self.steps[position:]

    def reset(self, step: Step) -> None:
        """Reset a step, except for hits that are verified."""
        if step.shown and step.failure is not None:
            step.interruption = step.failure.error
        self._give_up(step)
        step.failure = step.encode_failure = step.search_failure = None
        step.rewrite(step.used if step.verified else None)

    def _give_up(self, step: Step) -> None:
        """Discard a step's segment, finished or not."""
        self.rollback.put(step)
        self.metrics.drop(step.span)
        if self.writer is not None and self.writer[1] is step:
            self._stop_writer()

    def _stop_writer(self) -> None:
        """Cancel the writer; the next one can start when it has stopped."""
        assert self.writer is not None
        need = self.writer[0]
        if isinstance(need, FormQuery | Extend):
            need.progress.cancel()
        self.out.append(Cancel(need))
        self.stopping_s = self.metrics.now_s
        self.writer = None if isinstance(need, Guess) else (need, None)

    # Completions

    def writing(self, need: Work) -> Step | None:
        """Return the step of this work, unless it was dropped."""
        return self.writer[1] if self.writer is not None and self.writer[0] is need else None

    def record_partial(self, report: PartialOutput) -> None:
        """Record the partial state of an unfinished segment or query."""
        self.metrics.now_s = max(self.metrics.now_s, report.at_s)
        step = self.writing(report.need)
        if step is not None:
            step.partial = report.state

    def record_search(self, done: Completed, query: Query, *, isolated: bool) -> None:
        """Set the hits, or the search's error, of every step that waits for a query."""
        for step in self.steps:
            asked = step.query
            if not isinstance(asked, Query) or not step.encoded or step.truth is not None:
                continue
            if asked is not query and asked.key != query.key:
                continue
            if done.error is None:
                step.truth = done.value.hits
            else:
                step.search_failure = Failure(done.error, isolated and step is self.steps[0])

    def record_encoding(self, done: Completed, *, isolated: bool, stopped: bool) -> None:
        """Set the encoded query, or the error, of every step that waits for it."""
        assert isinstance(done.need, Encode)
        text = done.need.query.text
        stopped |= self.lanes.ended(done) and isinstance(done.error, Cancelled)
        self.in_flight.complete(done.need, 0)
        self.metrics.done(done)
        if done.error is None:
            self.cascade.note_encoded(text, done.value)
        elif stopped:
            return  # a step that waits for it requests it again
        for step in self.steps:
            query = step.unencoded
            if query is None or query.text != text:
                continue
            if done.error is not None:
                step.encode_failure = Failure(done.error, isolated and step is self.steps[0])
                continue
            step.query, step.encoded = done.value, True
            if step.used is None:
                step.cost_s += done.took_s
            if not self.guesses.encoded(step):
                self._record_written(step)

    def record_work(self, done: Completed, *, isolated: bool) -> None:
        """Record the first state, a query, a guess or a segment."""
        step = self.writing(done.need)
        isolated = isolated and bool(self.steps) and step is self.steps[0]
        self.in_flight.complete(done.need, 0)
        span = self.metrics.done(done)
        self.budget.ended(done.need, span)
        if self.writer is not None and self.writer[0] is done.need:
            self.writer = None
        if isinstance(done.need, Start):
            self.root = done.value
        elif step is None:
            self._stopped(done, span)
        else:
            self._advance(step, done, span, isolated)

    def _advance(self, step: Step, done: Completed, span: Span, isolated: bool) -> None:
        """Move a step to its next stage."""
        if not isinstance(done.need, Extend):
            step.cost_s += done.took_s
        if isinstance(done.need, FormQuery):
            step.asked_s += done.took_s
        if isinstance(done.need, Guess):
            self.guesses.made(step, None if done.error is not None else done.value, done.ended_s)
        elif done.error is not None:
            step.failure = Failure(done.error, isolated)
        elif isinstance(done.need, FormQuery):
            self._take(step, done.value, isolated=isolated)
            step.asked_span = span
        else:
            step.written, step.after, step.partial, step.span = True, done.value, None, span
            if self.policy is not None:
                # Where a model writes the query, some steps write a segment too, and some do not.
                uneven = step.asked_s >= 0.5 * done.took_s > 0.0
                beside_s = None if uneven else self.metrics.beside_s
                # The guess by the text may be replaced, and the steps that follow be dropped.
                before_s = step.cost_s if step.unencoded is None else None
                self.policy.wrote(done.took_s, beside_s, before_s)

    def _stopped(self, done: Completed, span: Span) -> None:
        """Record that a writer whose step was dropped has stopped."""
        self.metrics.drop(span)
        if isinstance(done.need, FormQuery) and done.error is None:
            formed = self._formed_query(done.value)._replace(span=span)
            self.rollback.put_query(done.need.state, formed)
        if not isinstance(done.need, Extend):
            return
        if self.policy is not None:
            self.policy.stopped(max(0.0, done.ended_s - self.stopping_s))
        if done.error is None:
            self.rollback.put_segment(done.need.state, done.need.hits, done.value, span)

    @property
    def sequential(self) -> bool:
        """Whether speculation is disabled now."""
        if self.policy is None or self.metrics.retries >= MOST_RETRIES:
            return True
        return self.retried_step is not None and self.retried_step in self.steps

    @property
    def held(self) -> bool:
        """Whether no work may depend on a guess now."""
        return self.cascade.held or self.budget.is_spent(self.steps)

    # Planning: the next query, its hits, its segment

    def plan(self) -> bool:
        """Move the last step through its stages; return whether anything changed."""
        moved = self._replace_guesses()
        while self.writer is None:
            if not self.steps or self.steps[-1].written:
                if self.steps and (self.sequential or self.held):
                    break
                self.steps.append(Step(self.steps[-1].after if self.steps else self.root))
            step = self.steps[-1]
            if step.failure is not None or step.ends or not self._next_stage(step):
                break
            moved = True
        return moved

    def _next_stage(self, step: Step) -> bool:
        """Move the last step to its next stage; return whether anything changed."""
        if (step.ahead or self.follows_guess(step)) and self.held:
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
            self.metrics.take_back(known.span)
            if step.unencoded is not None:  # unless its encoding has arrived since
                encoded = self.cascade.encoded(step.unencoded.text)
                step.query, step.encoded = encoded or step.query, encoded is not None
            return
        if not self.parts.inline_query:
            self.write(FormQuery(step.before, speculative=self.follows_guess(step)), step)
            return
        isolated = not self.in_flight and not self.speculated and step is self.steps[0]
        try:
            formed = self.parts.form(step.before, Progress())
        except Exception as error:  # noqa: BLE001 counts only if the step is confirmed
            step.failure = Failure(error, isolated)
        else:
            self._take(step, formed, isolated=isolated)

    def _take(self, step: Step, formed: Formed, *, isolated: bool) -> None:
        """Set a step's query, and encode it if that is an inline call."""
        if isinstance(formed.query, str) and self.parts.inline_encode:
            step.take(FormedQuery(Query(formed.query), False, formed.carried))
            self._encode_inline(step, formed.query, isolated=isolated)
        else:
            step.take(self._formed_query(formed))

    def _formed_query(self, formed: Formed) -> FormedQuery:
        query = formed.query
        if not isinstance(query, str):
            return FormedQuery(query, isinstance(query, Query), formed.carried)
        encoded = self.cascade.encoded(query)
        if encoded is not None:
            return FormedQuery(encoded, True, formed.carried)
        return FormedQuery(self.parts.unencoded(query), False, formed.carried)

    # Encoding

    def _encode_inline(self, step: Step, text: str, *, isolated: bool) -> None:
        try:
            step.query = self.parts.encode(text)
        except Exception as error:  # noqa: BLE001 counts only if the step is confirmed
            step.encode_failure = Failure(error, isolated)
        else:
            step.encoded = True

    def encode(self) -> bool:
        """Start encodings in the order of the steps, in free lanes; return whether any started."""
        if self.parts.inline_encode:
            return self._encode_rest()
        waiting: dict[str, EncodingWanted] = {}
        for step in self.steps:
            if (query := step.unencoded) is not None:
                waiting.setdefault(query.text, EncodingWanted(query, self.follows_guess(step)))
        self.out += [Cancel(need) for need in self.lanes.to_cancel(waiting)]
        started = self.lanes.to_start(waiting)
        for query in started:
            self.start(Encode(query, self.any_follow_guess([query])))
        return bool(started)

    def _encode_rest(self) -> bool:
        """Encode the query of a retried step inline."""
        query = self.steps[0].unencoded if self.steps else None
        if query is None:
            return False
        isolated = not self.in_flight and not self.speculated
        self._encode_inline(self.steps[0], query.text, isolated=isolated)
        return True

    def _choose(self, step: Step) -> bool:
        """Choose the hits for the segment: the real ones if they are known, else a guess."""
        query, cascade = step.query, self.cascade
        assert isinstance(query, Query)
        if self.policy is None or self.sequential or step.encode_failure is not None:
            return False
        if step.truth is None:
            step.truth = cascade.known(query) if step.encoded else cascade.known_by_text(query)
            if step.truth is not None:
                step.remembered = True
                step.used, step.verified = self.parts.visible(step.truth), True
                return True
        if self.held:
            return False
        if (slow := self.guesses.ask(step, lambda: self._previous_hits(step))) is not None:
            self.write(slow, step)
            return True
        if step.guess is None:
            return False
        self.guesses.had = True
        if not self.policy.may_write(self.view(stalled=False, early=not step.encoded)):
            return False
        self._use_guess(step, step.guess.hits)
        return True

    def _replace_guesses(self) -> bool:
        """Drop what was written on guesses to which better ones have come; return if any was."""
        if not self.guesses.encoded_since or self.policy is None or self.sequential or self.held:
            return False
        while (step := self.guesses.next_encoded(self.steps)) is not None:
            previous, writing = self._previous_hits(step), self.writer is not None
            if not self.guesses.is_second_better(step, previous, writing=writing) or (
                step.used is not None and not self.policy.may_write(self.view(stalled=False))
            ):
                self._record_written(step)
                continue
            if step.used is not None:
                self.roll_back(self.steps.index(step))
                step.rewrite(None)
                self.metrics.replaced += 1
            step.cost_s += self.guesses.replace(step)
            return True
        return False

    def _record_written(self, step: Step) -> None:
        """Record the time of a step that was written before its query was encoded."""
        if self.policy is not None and step.written and step.span is not None:
            self.policy.wrote(step.span.ended_s - step.span.started_s, None, step.cost_s)

    def _previous_hits(self, step: Step) -> Hits | None:
        """Return the hits that the last step with a query before this one was given."""
        for one in reversed(self.steps[: self.steps.index(step)]):
            if isinstance(one.query, Query):
                return one.used
        return self.parts.visible(self.retrieved[-1].hits) if self.retrieved else None

    def _extend(self, step: Step) -> None:
        assert step.used is not None
        known = self.rollback.segment(step.before, step.used)
        if known is None:
            ahead = not step.verified
            speculative = ahead or self.follows_guess(step)
            need = Extend(step.before, step.used, ahead, speculative, carried=step.carried)
            self.write(need, step)
            return
        step.after, step.span = known
        step.written = step.reused = True
        self.metrics.take_back(step.span)
