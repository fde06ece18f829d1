"""One-shot RAG: ask once with the prompt, then write the whole answer."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ralmspec_plugins.protocols import LanguageModel
from ralmspec_plugins.types import Hits, NoRetrieval, Query, Request, read_by
from ralmspec_plugins.workloads.base import DraftWorkload

DraftT = TypeVar("DraftT")


@dataclass(frozen=True, slots=True)
class OneShotState(Generic[DraftT]):
    """A request, its draft, and whether the one segment was begun."""

    request: Request
    draft: DraftT
    asked: bool = False


class OneShot(DraftWorkload[OneShotState[DraftT], DraftT], Generic[DraftT]):
    """Ask once, with the prompt itself or what `query` makes of the request.

    The answer is one segment of `max_tokens`. It is reported token by token,
    so that once its passages are verified it streams while it is written.
    """

    def __init__(
        self,
        lm: LanguageModel[DraftT],
        *,
        query: Callable[[Request], str | Query | NoRetrieval] | None = None,
    ) -> None:
        """Ask with `query(request)`, a pure and quick function, or else with the prompt.

        Where it gives `NO_RETRIEVAL` the answer is written without passages.
        """
        super().__init__(lm)
        self._query = query if query is not None else _prompt

    def start(self, request: Request) -> OneShotState[DraftT]:
        """Tokenise the prompt."""
        return OneShotState(request, self.lm.begin(request))

    def query(self, state: OneShotState[DraftT]) -> str | Query | NoRetrieval | None:
        """Ask at the start, and never again."""
        return None if state.asked else self._query(state.request)

    def query_key(self, state: OneShotState[DraftT]) -> Hashable | None:
        """Hold the request, and whether it was asked already."""
        return state.request, state.asked

    def extend_key(self, state: OneShotState[DraftT], hits: Hits) -> Hashable | None:
        """Hold what the model's answer depends on, to the last bit."""
        request = state.request
        return request, self.lm.write_key(state.draft, read_by(self.lm, hits), request.max_tokens)

    def draft(self, state: OneShotState[DraftT]) -> DraftT:
        """Give the draft."""
        return state.draft

    def after(self, state: OneShotState[DraftT], draft: DraftT) -> OneShotState[DraftT]:
        """Note that it was asked."""
        return OneShotState(state.request, draft, asked=True)

    def tokens_of(self, state: OneShotState[DraftT]) -> int:
        """Give the request's own length."""
        return state.request.max_tokens


def _prompt(request: Request) -> str:
    return request.prompt
