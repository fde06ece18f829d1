"""Drives the loop by hand: any completion order, late cancellations, failures of haste."""

import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from ralmspec_plugins.config import Settings
from ralmspec_plugins.effects import (
    Cancel,
    Commit,
    Completed,
    Completion,
    Confirmed,
    Encode,
    Extend,
    Failed,
    FormQuery,
    Need,
    Notice,
    PartialOutput,
    Search,
    Settled,
    Work,
)
from ralmspec_plugins.engine.context import RequestContext
from ralmspec_plugins.engine.session import Session
from ralmspec_plugins.errors import Cancelled
from ralmspec_plugins.parts import Parts
from ralmspec_plugins.plain import plain
from ralmspec_plugins.protocols import Progress, Retriever
from ralmspec_plugins.types import Answer, Hits, Query, Retrieved
from tests.worlds import World, WorldError, WorldState


class HasteError(Exception):
    """A failure that happens only because something else runs at the same time."""


@dataclass
class Outcome:
    """What a run came to: an answer or an error, and what was seen on the way."""

    text: str | None = None
    state: WorldState | None = None
    retrieved: tuple[tuple[str, Any], ...] = ()
    error: str | None = None
    failed_query: str | None = None  # where a search raised the error

    @classmethod
    def of(cls, answer: Answer) -> "Outcome":
        return cls(answer.text, answer.state, records(answer.retrieved))

    @classmethod
    def failed(
        cls, error: Exception, retrieved: Sequence[Retrieved] = (), query: Query | None = None
    ) -> "Outcome":
        """Hold the error, and what was searched until then, where that could be seen."""
        failed_query = None if query is None else query.text
        return cls(None, None, records(tuple(retrieved)), repr(error), failed_query)

    def without_events(self) -> "Outcome":
        """Leave out what only events tell."""
        return self if self.error is None else Outcome(error=self.error)


@dataclass
class Seen:
    """What happened on the way, for the counts and for the stream."""

    streamed: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    changed_text: bool = False  # a wrong guess whose segment differs from the right one
    changed_query: bool = False  # one behind which something else is asked
    query_errors: list[str] = field(default_factory=list)  # of errors, those of forming a query
    unretrieved: int = 0  # committed steps without retrieval
    cancelled_queries: int = 0  # that were being formed when their step was dropped
    cancelled_encodings: int = 0
    carried: int = 0  # segments that were handed a look-ahead
    before_encoding: int = 0  # segments that were begun before their query was encoded
    committed: list[Retrieved] = field(default_factory=list)
    confirmed: list[Retrieved] = field(default_factory=list)
    failed: Failed | None = None
    answer: Answer | None = None


def records(retrieved: tuple[Retrieved, ...]) -> tuple[tuple[str, Any], ...]:
    """Give the record with all that a hit holds: passages and scores."""
    return tuple((step.query.text, step.hits) for step in retrieved)


def plainly(world: World) -> Outcome:
    """Answer with the plain loop."""
    watched = _Watched(world.retriever)
    try:
        return Outcome.of(plain(world.workload, watched, world.request))
    except WorldError as error:
        return Outcome.failed(error, watched.found, watched.failed)


class _Watched:
    """A retriever that notes what it found, and for which query it failed."""

    def __init__(self, retriever: Retriever) -> None:
        self._retriever = retriever
        self.found: list[Retrieved] = []
        self.failed: Query | None = None

    @property
    def signature(self) -> Hashable:
        return self._retriever.signature

    def encode(self, text: str) -> Query:
        return self._retriever.encode(text)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        [self.failed] = queries
        found = self._retriever.search(queries)
        self.found.append(Retrieved(queries[0], tuple(found[0])))
        self.failed = None
        return found


def drive(
    world: World, settings: Settings, seed: int, *, haste: float = 0.0
) -> tuple[Outcome, Seen]:
    """Answer with the loop, completing what is out in an order that the seed decides.

    Args:
        world: What to answer, over what.
        settings: How to speculate.
        seed: Decides the order, which cancellations come too late, and the haste.
        haste: Share of work beside other work that fails for that reason alone.
    """
    stop_encode_s = 0.0 if seed % 4 else inf  # awaited, or in threads
    session = Session(world.workload, world.retriever, settings, stop_encode_s=stop_encode_s)
    run = _Run(
        RequestContext(session, world.request, reports=True), world, random.Random(seed), haste
    )
    try:
        return Outcome.of(run.answer()), run.seen
    except WorldError as error:
        failed = run.seen.failed
        assert failed is not None
        assert failed.error is error  # noqa: PT017 it was raised by what is tested
        return Outcome.failed(error, run.seen.confirmed, failed.query), run.seen
    finally:
        run.context.close()


class _Run:
    def __init__(
        self, context: RequestContext, world: World, dice: random.Random, haste: float
    ) -> None:
        self.context = context
        self.world = world
        self.dice = dice
        self.haste = haste
        self.out: list[Completed | PartialOutput] = []
        self.seen = Seen()
        self.now_s = 0.0
        self.pace = 1.0

    def answer(self) -> Answer:
        needs = next(self.context.flow)
        while True:
            for need in needs:
                self.see_to(need)
            if self.context.finish is not None:
                self.seen.answer = self.context.finish.answer
                return self.context.answer(self.now_s)
            assert self.out, "the loop waits for nothing"
            needs = self.context.flow.send(self.pick())

    def see_to(self, need: Need) -> None:
        if isinstance(need, Settled):
            before = getattr(self.world, "unretrieved", 0) or getattr(self.world, "carries", 0)
            assert before or len(self.seen.confirmed) > 0, "text before its passages"
            self.seen.streamed.append(need.text)
        elif isinstance(need, Cancel):
            self._look_at_cancelled(need.need)
            if self.dice.random() < 0.5:
                self.out = [self._stopped(one, need.need) for one in self.out]
        elif isinstance(need, Work):
            self._start(need)
        else:
            assert isinstance(need, Notice), "nothing that is known is told"
            self._look_at(need)
            self.context.note(need)

    def _look_at_cancelled(self, need: Work) -> None:
        if isinstance(need, FormQuery | Extend):
            assert need.progress.cancelled, "its writer is not told"
        self.seen.cancelled_queries += isinstance(need, FormQuery)
        self.seen.cancelled_encodings += isinstance(need, Encode)

    def _look_at(self, need: Notice) -> None:
        seen = self.seen
        if isinstance(need, Confirmed):
            assert len(seen.confirmed) == len(seen.committed), "confirmed before the last commit"
            seen.confirmed.append(need.retrieved)
        elif isinstance(need, Commit):
            if need.retrieved is None:
                seen.unretrieved += 1
                assert need.hits == ()
                return
            seen.committed.append(need.retrieved)
            assert seen.confirmed[-1] is need.retrieved
        elif isinstance(need, Failed):
            seen.failed = need

    def _start(self, need: Work) -> None:
        """Work it out now; it is handed in when the dice say so."""
        if isinstance(need, FormQuery | Extend):
            assert not any(isinstance(one.need, FormQuery | Extend) for one in self.out), (
                "the model has one thing to do at a time"
            )
        out = [one.need for one in self.out]
        if isinstance(need, Encode):
            assert sum(isinstance(one, Encode) for one in out) < self.world.encode_lanes
        elif isinstance(need, Extend):
            self.seen.carried += need.carried is not None
            self.seen.before_encoding += need.ahead and any(
                isinstance(one, Encode) and one.query.text == self._asked(need) for one in out
            )
        busy = any(isinstance(one, Completed) for one in self.out)
        self.pace = 10.0 if isinstance(need, Search) else 1.0
        self.context.carry_out(need, self.clock, self.out.append)
        if busy and self.dice.random() < self.haste:
            self.out = [self._hasty(one, need) for one in self.out]
        if isinstance(need, Extend):
            self._look(need)

    def _asked(self, need: Extend) -> Any:
        """Form the query that a segment is written for once more."""
        try:
            return self.context.session.parts.form(need.state, Progress()).query
        except WorldError:
            return None

    def clock(self) -> float:
        """Let some time pass at each look, a search taking longer than a segment as a rule."""
        self.now_s += self.dice.choice([0.0, 1.0, 1.0, 30.0]) * self.pace
        return self.now_s

    def _look(self, need: Extend) -> None:
        """See whether this segment was written on a wrong guess that changed its text."""
        parts, query = self.context.session.parts, self._asked(need)
        if not isinstance(query, str | Query):
            return
        try:
            retriever = self.world.retriever
            asked = query if isinstance(query, Query) else retriever.encode(query)
            truth = retriever.search([asked])[0]
            if not self.world.reads_scores:
                truth = tuple(hit.unscored() for hit in truth)
            if truth == need.hits:
                return
            right = parts.extend(need.state, truth, Progress(), need.carried)
            wrong = parts.extend(need.state, need.hits, Progress(), need.carried)
        except WorldError:
            return
        text = parts.workload.text
        self.seen.changed_text |= text(right) != text(wrong)
        if hasattr(self.world, "kind") and not self.seen.changed_query:
            self.seen.changed_query = _asked_behind(parts, right) != _asked_behind(parts, wrong)

    @staticmethod
    def _stopped(one: Completion, need: Work) -> Completion:
        if isinstance(one, Completed) and one.need is need:
            return Completed(need, None, Cancelled("stopped"), one.index)
        return one

    @staticmethod
    def _hasty(one: Completion, need: Work) -> Completion:
        if isinstance(one, Completed) and one.need is need:
            return Completed(need, None, HasteError("too much at once"), one.index)
        return one

    def pick(self) -> Completion:
        """Complete one of the things that are out; an extend's reports come in their order."""
        first: dict[Any, int] = {}
        for place, one in enumerate(self.out):
            key = (id(one.need), one.index) if isinstance(one.need, Search) else id(one.need)
            first.setdefault(key, place)
        completion = self.out.pop(self.dice.choice(list(first.values())))
        if isinstance(completion, Completed) and isinstance(completion.error, WorldError):
            self.seen.errors.append(repr(completion.error))
            if isinstance(completion.need, FormQuery):
                self.seen.query_errors.append(repr(completion.error))
        return completion


def _asked_behind(parts: Parts, state: Any) -> Any:
    """Form the query of a state once more, without what it carries."""
    try:
        return parts.form(state, Progress()).query
    except WorldError as error:
        return repr(error)
