"""One-shot RAG: retrieve once with the prompt, then write the whole answer."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ralmspec_plugins.protocols import LanguageModel
from ralmspec_plugins.types import Hits, NoRetrieval, Query, Request, read_by
from ralmspec_plugins.workloads.base import DraftWorkload

DraftT = TypeVar("DraftT")


@dataclass(frozen=True, slots=True)
class OneShotState(Generic[DraftT]):
    """A request, its draft, and whether the only segment was written."""

    request: Request
    draft: DraftT
    asked: bool = False


class OneShot(DraftWorkload[OneShotState[DraftT], DraftT], Generic[DraftT]):
    """Retrieve once, with the prompt itself or the result of `query(request)`.

    The answer is one segment of `max_tokens`. It is reported token by token, so that
    it is streamed as soon as its passages are verified.
    """

    def __init__(
        self,
        lm: LanguageModel[DraftT],
        *,
        query: Callable[[Request], str | Query | NoRetrieval] | None = None,
    ) -> None:
        """Create a workload that retrieves with `query(request)`, by default with the prompt.

        The function must be pure and quick. If it returns `NO_RETRIEVAL`, the answer is written
        without passages.
        """
        super().__init__(lm)
        self._query = query if query is not None else _prompt

    @property
    def retrieves_once(self) -> bool:
        """Whether a request has one query at most, as it has unless a subclass forms others."""
        return type(self).query is OneShot.query

    def start(self, request: Request) -> OneShotState[DraftT]:
        """Return the state of the tokenized prompt."""
        return OneShotState(request, self.lm.begin(request))

    def query(self, state: OneShotState[DraftT]) -> str | Query | NoRetrieval | None:
        """Return the query at the start, and `None` afterwards."""
        return None if state.asked else self._query(state.request)

    def query_key(self, state: OneShotState[DraftT]) -> Hashable | None:
        """Return the request, and whether the answer was written."""
        return state.request, state.asked

    def extend_key(self, state: OneShotState[DraftT], hits: Hits) -> Hashable | None:
        """Return a key of all that the model's answer depends on exactly."""
        request = state.request
        return request, self.lm.write_key(state.draft, read_by(self.lm, hits), request.max_tokens)

    def draft(self, state: OneShotState[DraftT]) -> DraftT:
        """Return the draft."""
        return state.draft

    def after(self, state: OneShotState[DraftT], draft: DraftT) -> OneShotState[DraftT]:
        """Return the state with the answer."""
        return OneShotState(state.request, draft, asked=True)

    def tokens_of(self, state: OneShotState[DraftT]) -> int:
        """Return the request's maximum number of tokens."""
        return state.request.max_tokens


def _prompt(request: Request) -> str:
    return request.prompt
