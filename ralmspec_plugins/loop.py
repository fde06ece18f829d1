"""The speculative loop: the paper's algorithm as one generator without I/O.

It yields what has to be started now and is sent one completion at a time, in
whatever order they finish. What it computes is what `plain()` computes.
"""

from collections.abc import Generator
from typing import Any, TypeAlias

from ralmspec_plugins.effects import (
    Cancel,
    Completed,
    Completion,
    Extend,
    Finish,
    FormQuery,
    Guess,
    Need,
    PartialOutput,
    Release,
    Search,
    SearchResult,
    Start,
    Work,
)
from ralmspec_plugins.errors import Cancelled
from ralmspec_plugins.plain import formed
from ralmspec_plugins.protocols import Retriever, Workload
from ralmspec_plugins.scheduling.policy import Policy
from ralmspec_plugins.speculators.cascade import SpeculatorCascade
from ralmspec_plugins.steps import Failure, SpeculationWindow, Step
from ralmspec_plugins.types import Request

MOST_RETRIES = 3  # failures while running ahead, after which a request is finished plainly

Flow: TypeAlias = Generator[list[Need], Completion, None]


def speculate(
    workload: Workload[Any],
    request: Request,
    retriever: Retriever,
    guesses: SpeculatorCascade,
    policy: Policy | None,
) -> Flow:
    """Answer a request as `plain()` does, with guesses ahead of the searches.

    Args:
        workload: When to ask, what to ask, what the hits do.
        request: What is to be answered.
        retriever: Encodes queries where that is done inside the loop; searches are needs.
        guesses: What is known already, and what guesses the rest.
        policy: How far to run ahead; `None` runs nothing ahead and remembers nothing.

    Yields:
        The needs and notices to carry out now; it is sent one completion at a time. The
        last list ends with `Finish`; nothing has to be waited for after it.
    """
    loop = _Loop(workload, retriever, guesses, policy)
    loop.chain.start(Start(request))
    loop.take((yield loop.outgoing()))
    while not loop.finished():
        loop.take((yield loop.outgoing()))
    yield loop.outgoing()


class _Loop:
    """Drives the chain of one request."""

    def __init__(
        self,
        workload: Workload[Any],
        retriever: Retriever,
        guesses: SpeculatorCascade,
        policy: Policy | None,
    ) -> None:
        self.chain = SpeculationWindow(workload, policy)
        self.workload = workload
        self.retriever = retriever
        self.guesses = guesses
        self.policy = policy
        self.inline_ask = workload.inline_query and getattr(retriever, "inline_encode", False)
        self.draining = False  # waiting for all that is in flight, to run a step alone
        self.alone: Step | None = None  # the step that is run alone
        self.error: Exception | None = None  # what the plain loop comes to

    def outgoing(self) -> list[Need]:
        chain = self.chain
        assert chain.out or chain.in_flight, "the loop waits for nothing"
        out, chain.out = chain.out, []
        return out

    def finished(self) -> bool:
        """Confirm, plan and search until nothing more follows; say whether the request is over."""
        chain, moved = self.chain, True
        while moved and not chain.complete and self.error is None:
            chain.confirm()
            moved = not self._rescue() and (self._plan() | self._search())
        if self.error is not None:
            chain.out += [chain.failed(self.error), Finish(error=self.error)]
        elif chain.complete:
            chain.out.append(Finish(chain.answer()))
        return self.error is not None or chain.complete

    # Completions

    def take(self, completion: Completion) -> None:
        """Take in one completion."""
        if isinstance(completion, PartialOutput):
            self.chain.reported(completion)
        elif isinstance(completion.need, Search):
            self._take_search(completion, completion.need)
        else:
            self._take_work(completion)

    def _take_search(self, done: Completed, search: Search) -> None:
        query = search.queries[done.index]
        alone = len(search.queries) == 1 and self._alone(search)
        last = self.chain.in_flight.complete(search, done.index)
        if last:
            self.chain.account.done(done)
        if isinstance(done.error, Cancelled) and self.draining:
            return  # it was told to stop
        if done.error is None and self.policy is not None:
            self.guesses.learn(query, done.value)
            if last:
                self.policy.searched(self.chain.account.search(done))
        for step in self.chain.steps:
            if step.query is None or step.query.key != query.key or step.truth is not None:
                continue
            if done.error is None:
                found: SearchResult = done.value
                step.truth = found.hits
            else:
                step.search_failure = Failure(done.error, alone and step is self.chain.steps[0])

    def _take_work(self, done: Completed) -> None:
        """Take in what asking, guessing or writing came to."""
        chain, step = self.chain, self.chain.writing(done.need)
        alone = self._alone(done.need) and bool(chain.steps) and step is chain.steps[0]
        chain.in_flight.complete(done.need, 0)
        span = chain.account.done(done)
        if chain.writer is not None and chain.writer[0] is done.need:
            chain.writer = None
        if isinstance(done.need, Start):
            chain.root, self.error = done.value, done.error
            return
        if step is None:
            chain.stopped(done, span)
            return
        if not isinstance(done.need, Extend):
            step.cost_s += done.took_s
        if isinstance(done.need, Guess):
            step.guess = None if done.error is not None else done.value
        elif done.error is not None:
            step.failure = Failure(done.error, alone)
        elif isinstance(done.need, FormQuery):
            step.asked, step.query = True, done.value
        else:
            step.written, step.after, step.partial, step.span = True, done.value, None, span
            if self.policy is not None:
                self.policy.wrote(step.cost_s + done.took_s, chain.account.beside_s)

    # Failures

    def _alone(self, need: Work) -> bool:
        """Say whether this ran as in the plain loop: nothing beside it, nothing kept."""
        return self.chain.in_flight.alone(need) and not self.chain.ran_ahead

    def _rescue(self) -> bool:
        """End on a confirmed failure, or run it once more alone; say whether planning must wait.

        Something else that was running may have caused it: a rate limit, memory, a time-out.
        """
        if self.draining:
            return not self._drained()
        if (failure := self.chain.confirmed_failure()) is None:
            return False
        if failure.alone:
            self.error = failure.error
            return True
        self.chain.drop(1)
        self.chain.reset(self.chain.steps[0])
        self.chain.out.extend(Cancel(need) for need in self.chain.in_flight)
        self.draining = True
        return not self._drained()

    def _drained(self) -> bool:
        chain = self.chain
        if chain.in_flight:
            return False
        self.draining = False
        self.alone = chain.steps[0]
        chain.account.retries += 1
        chain.dropped.forget()
        chain.ran_ahead = False
        chain.out.append(Release(chain.root))
        return True

    @property
    def _plainly(self) -> bool:
        """Whether nothing may run ahead now."""
        if self.policy is None or self.chain.account.retries >= MOST_RETRIES:
            return True
        return self.alone is not None and self.alone in self.chain.steps

    # Asking, guessing, writing

    def _plan(self) -> bool:
        """Take the end of the chain as far as it goes; say whether it moved."""
        chain, moved = self.chain, False
        while chain.writer is None:
            if not chain.steps or chain.steps[-1].written:
                if chain.steps and self._plainly:
                    break
                chain.steps.append(Step(chain.steps[-1].after if chain.steps else chain.root))
            step = chain.steps[-1]
            if step.failure is not None or step.ends or not self._further(step):
                break
            moved = True
        return moved

    def _further(self, step: Step) -> bool:
        """Take the last step one stage on; say whether it moved."""
        if not step.asked:
            self._ask(step)
        elif step.used is not None:
            self._extend(step)
        else:
            return self._choose(step)
        return True

    def _ask(self, step: Step) -> None:
        if (known := self.chain.dropped.query(step.before)) is not None:
            step.asked, step.query = True, known[0]
            return
        if not self.inline_ask:
            self.chain.write(FormQuery(step.before), step)
            return
        try:
            step.query = formed(self.workload, self.retriever, step.before)
            step.asked = True
        except Exception as error:  # noqa: BLE001 counts only if the step is confirmed
            chain = self.chain
            quiet = not chain.in_flight and not chain.ran_ahead
            step.failure = Failure(error, quiet and step is chain.steps[0])

    def _choose(self, step: Step) -> bool:
        """Find the hits to write with: the truth if it is known, else a guess."""
        assert step.query is not None
        if self.policy is None or self._plainly:
            return False
        if step.truth is None:
            step.truth = self.guesses.known(step.query)
            if step.truth is not None:
                step.remembered = True
                step.used, step.verified = self.chain.visible(step.truth), True
                return True
        if not step.guessed and self.policy.worth_guessing():
            step.guessed = True
            began_s = self.guesses.clock()
            step.guess = self.guesses.guess_inline(step.query)
            self.policy.guessed(self.guesses.clock() - began_s)
            if step.guess is None and self.guesses.slow:
                self.chain.write(Guess(step.query), step)
                return True
        if step.guess is None or not self.policy.may_write(self.chain.view(stalled=False)):
            return False
        self.chain.run_ahead(step, step.guess)
        return True

    def _extend(self, step: Step) -> None:
        assert step.used is not None
        known = self.chain.dropped.segment(step.before, step.used)
        if known is None:
            self.chain.write(Extend(step.before, step.used, ahead=not step.verified), step)
            return
        step.after, step.span = known
        step.written = step.reused = True
        self.chain.account.take_back(step.span)

    # Searching

    def _search(self) -> bool:
        """Send out pending queries as the policy says; say whether any went."""
        pending, policy = self.chain.pending(), self.policy
        if not pending:
            return False
        if policy is None or self._plainly:
            sizes = [] if self.chain.in_flight else [1]
        else:
            stalled = self.chain.writer is None
            sizes = policy.batches(self.chain.view(stalled=stalled, pending=len(pending)))
        for size in sizes:
            batch = tuple(dict.fromkeys(pending[:size]))
            pending = [query for query in pending[size:] if query not in batch]
            if batch:
                self.chain.start(Search(batch, wide=policy is not None and policy.worth_guessing()))
        return bool(sizes)
