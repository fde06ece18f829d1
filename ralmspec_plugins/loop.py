"""The speculative loop: the paper's algorithm as one generator without I/O.

It yields the work to start and is sent one completion at a time, in the order in which they finish.
Its result equals that of `plain()`.
"""

from collections.abc import Generator
from typing import TypeAlias

from ralmspec_plugins.effects import (
    Cancel,
    Completed,
    Completion,
    Encode,
    Finish,
    Need,
    PartialOutput,
    Release,
    Search,
    Start,
    Waited,
)
from ralmspec_plugins.errors import Cancelled
from ralmspec_plugins.parts import Parts
from ralmspec_plugins.scheduling.policy import Policy
from ralmspec_plugins.speculators.cascade import SpeculatorCascade
from ralmspec_plugins.types import Request
from ralmspec_plugins.waste import NO_LIMITS, WasteLimits
from ralmspec_plugins.window import SpeculationWindow

Flow: TypeAlias = Generator[list[Need], Completion | Waited, None]


def speculate(
    parts: Parts,
    request: Request,
    cascade: SpeculatorCascade,
    policy: Policy | None,
    limits: WasteLimits = NO_LIMITS,
) -> Flow:
    """Answer a request as `plain()` does, with guesses ahead of the searches.

    Args:
        parts: The workload and the retriever; only inline queries and encodings are called here.
        request: The request to answer.
        cascade: The known results and the speculators.
        policy: Decides when to speculate; `None` disables speculation and caching.
        limits: Bounds on what wrong guesses may cost.

    Yields:
        Lists of work and notices to carry out. The last list ends with `Finish`, after which no
        completion is expected.
    """
    window = SpeculationWindow(parts, cascade, policy, limits)
    loop = _Loop(window)
    window.start(Start(request))
    while window.in_flight:  # there is no state to plan from, however long it takes
        loop.take((yield loop.outgoing()))
    while not loop.finished():
        loop.take((yield loop.outgoing()))
    yield loop.outgoing()


class _Loop:
    """Drives the window of one request: takes completions, and returns work."""

    def __init__(self, window: SpeculationWindow) -> None:
        self.window = window
        self.draining = False  # waiting until nothing is in flight, to run a step in isolation
        self.waited = False  # since the last completion
        self.error: Exception | None = None  # the error that the plain loop raises

    def outgoing(self) -> list[Need]:
        """Return the work and notices since the last call."""
        window = self.window
        assert window.out or window.in_flight, "the loop waits for nothing"
        out, window.out = window.out, []
        return out

    def finished(self) -> bool:
        """Confirm, plan and search until nothing changes; return whether the request is over."""
        window, moved = self.window, True
        while moved and not window.complete and self.error is None:
            window.confirm()
            moved = not self._retry_failure() and (window.plan() | window.encode() | self._search())
        if self.error is None and window.complete:
            try:
                window.out.append(Finish(window.answer()))
            except Exception as error:  # noqa: BLE001 the plain loop raises it too
                self.error = error
        if self.error is not None:
            window.out += [window.failed(self.error), Finish(error=self.error)]
        return self.error is not None or window.complete

    # Completions

    def take(self, completion: Completion | Waited) -> None:
        """Process one completion, or that there was none for a while."""
        window = self.window
        self.waited = isinstance(completion, Waited)
        if isinstance(completion, Waited):
            return
        if isinstance(completion, PartialOutput):
            window.record_partial(completion)
        elif isinstance(completion.need, Search):
            self._take_search(completion, completion.need)
        elif isinstance(completion.need, Encode):
            stopped = self.draining and isinstance(completion.error, Cancelled)
            isolated = window.ran_isolated(completion.need)
            window.record_encoding(completion, isolated=isolated, stopped=stopped)
        else:
            window.record_work(completion, isolated=window.ran_isolated(completion.need))
            if isinstance(completion.need, Start):
                self.error = completion.error

    def _take_search(self, done: Completed, search: Search) -> None:
        window, query = self.window, search.queries[done.index]
        isolated = len(search.queries) == 1 and window.ran_isolated(search)
        last = window.in_flight.complete(search, done.index)
        if last:
            window.metrics.done(done)
        if isinstance(done.error, Cancelled) and self.draining:
            return  # it was cancelled so that a step can run in isolation
        if done.error is None and window.policy is not None:
            window.cascade.learn(query, done.value)
            if last:
                window.policy.searched(window.metrics.search(done))
        window.record_search(done, query, isolated=isolated)

    # Failures

    def _retry_failure(self) -> bool:
        """End on a confirmed failure, or retry it in isolation; return whether to wait.

        Other work in parallel may have caused it: a rate limit, memory, a timeout.
        """
        if self.draining:
            return not self._start_retry()
        failure = self.window.confirmed_failure()
        if failure is None:
            return False
        if failure.isolated:
            self.error = failure.error
            return True
        self.window.drop(1)
        self.window.reset(self.window.steps[0])
        self.window.out.extend(Cancel(need) for need in self.window.in_flight)
        self.draining = True
        return not self._start_retry()

    def _start_retry(self) -> bool:
        window = self.window
        if window.in_flight:
            return False
        self.draining = False
        window.retried_step = window.steps[0]
        window.metrics.retries += 1
        window.rollback.forget()
        window.speculated = False
        window.out.append(Release(window.root))
        return True

    # Searching

    def _search(self) -> bool:
        """Start searches for pending queries by the policy; return whether any was started."""
        window, policy = self.window, self.window.policy
        pending = window.pending()
        if not pending:
            return False
        if policy is None or window.sequential:
            sizes = [] if window.in_flight else [1]
        else:
            stalled = self.waited or (window.writer is None and not window.encoding)
            sizes = policy.batches(window.view(stalled=stalled, pending=len(pending)))
        for size in sizes:
            batch = tuple(dict.fromkeys(pending[:size]))
            pending = [query for query in pending[size:] if query not in batch]
            if batch:
                wide = policy is not None and policy.worth_prefetching()
                window.start(Search(batch, wide, window.any_follow_guess(batch)))
        return bool(sizes)
