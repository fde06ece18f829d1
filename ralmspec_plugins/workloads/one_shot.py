"""One-shot RAG: ask once with the prompt, then write the whole answer."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from ralmspec_plugins.protocols import LanguageModel, Progress
from ralmspec_plugins.types import Hits, Query, Request, read_by
from ralmspec_plugins.workloads.base import Reports

DraftT = TypeVar("DraftT")


@dataclass(frozen=True, slots=True)
class OneShotState(Generic[DraftT]):
    """A request, its draft, and whether the one segment was begun."""

    request: Request
    draft: DraftT
    asked: bool = False


class OneShot(Generic[DraftT]):
    """Ask once, with the prompt itself or what `query` makes of the request.

    The answer is one segment of `max_tokens`. It is reported token by token,
    so that once its passages are verified it streams while it is written.
    """

    inline_query = True

    def __init__(
        self,
        lm: LanguageModel[DraftT],
        *,
        query: Callable[[Request], str | Query] | None = None,
    ) -> None:
        """Ask with `query(request)`, a pure and quick function, or else with the prompt."""
        self.lm = lm
        self._query = query if query is not None else _prompt
        self.side_by_side: bool = getattr(lm, "side_by_side", False)
        self.reads_scores: bool = getattr(lm, "reads_scores", False)
        if hasattr(lm, "awrite"):
            self.aextend = self._aextend
        if hasattr(lm, "same_passages"):
            self.agree = self._agree

    def start(self, request: Request) -> OneShotState[DraftT]:
        """Tokenise the prompt."""
        return OneShotState(request, self.lm.begin(request))

    def query(self, state: OneShotState[DraftT]) -> str | Query | None:
        """Ask at the start, and never again."""
        return None if state.asked else self._query(state.request)

    def extend(
        self, state: OneShotState[DraftT], hits: Hits, progress: Progress
    ) -> OneShotState[DraftT]:
        """Write the whole answer with these passages in front."""
        request, reports = state.request, Reports(progress, partial(_written, state.request))
        draft = self.lm.write(state.draft, read_by(self.lm, hits), request.max_tokens, reports)
        return _written(request, draft)

    async def _aextend(
        self, state: OneShotState[DraftT], hits: Hits, progress: Progress
    ) -> OneShotState[DraftT]:
        """Do the same without holding up the event loop."""
        lm: Any = self.lm
        request, reports = state.request, Reports(progress, partial(_written, state.request))
        draft = await lm.awrite(state.draft, read_by(self.lm, hits), request.max_tokens, reports)
        return _written(request, draft)

    def _agree(self, state: OneShotState[DraftT], guess: Hits, hits: Hits) -> bool:
        """Say whether the model sees the same in both."""
        lm: Any = self.lm
        return bool(lm.same_passages(read_by(self.lm, guess), read_by(self.lm, hits)))

    def text(self, state: OneShotState[DraftT]) -> str:
        """Give what was written, without the prompt."""
        return self.lm.text(state.draft)

    def settled(self, state: OneShotState[DraftT]) -> str:
        """Give the part of the text that no later token can change."""
        return self.lm.settled(state.draft)

    def query_key(self, state: OneShotState[DraftT]) -> Hashable | None:
        """Hold the request, and whether it was asked already."""
        return state.request, state.asked

    def extend_key(self, state: OneShotState[DraftT], hits: Hits) -> Hashable | None:
        """Hold what the model's answer depends on, to the last bit."""
        request = state.request
        return request, self.lm.write_key(state.draft, read_by(self.lm, hits), request.max_tokens)

    def release(self, state: OneShotState[DraftT]) -> None:
        """Free the model's caches for this request."""
        self.lm.release(state.draft)


def _written(request: Request, draft: Any) -> OneShotState[Any]:
    return OneShotState(request, draft, asked=True)


def _prompt(request: Request) -> str:
    return request.prompt
