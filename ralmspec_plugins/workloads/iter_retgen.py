"""Iter-RetGen: retrieve with question and last answer, and write the whole answer again."""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeAlias, TypeVar, get_args

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.protocols import LanguageModel, Progress
from ralmspec_plugins.types import Hits, Request, read_by
from ralmspec_plugins.workloads.base import DraftWorkload

DraftT = TypeVar("DraftT")
QueryOrder: TypeAlias = Literal["answer_first", "question_first"]


@dataclass(frozen=True, slots=True)
class IterRetGenState(Generic[DraftT]):
    """A request, its last answer, and the passages with which this was written."""

    request: Request
    blank: DraftT  # the draft with which each answer begins
    draft: DraftT  # of the last answer
    iterations: int = 0  # answers written
    hits: Hits | None = None


class IterRetGen(DraftWorkload[IterRetGenState[DraftT], DraftT], Generic[DraftT]):
    """Write the whole answer `iterations` times, each with passages found by the previous one.

    Shao et al. 2023 (arXiv 2305.15294), section 3: iteration t retrieves with the
    concatenation of the answer y(t-1) and the question q, and writes y(t) from q and the new
    passages alone. The first iteration retrieves with the question. The number of
    passages (5 in the paper) is the retriever's `k`.

    Text settles in the last iteration only. If an iteration finds the passages of the previous
    one, its prompt is the same, so the answer is kept and not written again.
    """

    def __init__(
        self,
        lm: LanguageModel[DraftT],
        *,
        iterations: int = 3,  # T; the paper's results level off after the second
        query_order: QueryOrder = "answer_first",  # as in the paper
        keep_unchanged: bool = True,
    ) -> None:
        """Create a workload of `lm`.

        Args:
            lm: the model.
            iterations: how often the answer is written.
            query_order: whether the last answer precedes the question in a query, as in the
                paper, or follows it, as in FlashRAG.
            keep_unchanged: whether an answer is kept if the passages stay the same. `False`
                writes it again, for a model whose output differs each time.

        Raises:
            ConfigError: a setting is out of range.
        """
        if iterations < 1:
            raise ConfigError(f"iterations must be at least 1, got {iterations}")
        if query_order not in get_args(QueryOrder):
            known = " or ".join(map(repr, get_args(QueryOrder)))
            raise ConfigError(f"query_order must be {known}, got {query_order!r}")
        super().__init__(lm)
        self.iterations = iterations
        self.query_order = query_order
        self.keep_unchanged = keep_unchanged
        if hasattr(self, "aextend"):
            self.aextend = self._arewrite

    def start(self, request: Request) -> IterRetGenState[DraftT]:
        """Return the state of the tokenized prompt."""
        blank = self.lm.begin(request)
        return IterRetGenState(request, blank, blank)

    def query(self, state: IterRetGenState[DraftT]) -> str | None:
        """Return the question, later with the last answer; `None` after the last iteration."""
        if state.iterations >= self.iterations:
            return None
        question = state.request.prompt
        answer = self.lm.text(state.draft).strip()
        if not state.iterations or not answer:
            return question
        both = (answer, question) if self.query_order == "answer_first" else (question, answer)
        return " ".join(both)

    def query_key(self, state: IterRetGenState[DraftT]) -> Hashable | None:
        """Return the question, the last answer, and the number of answers."""
        return state.request.prompt, state.iterations, self.lm.text_key(state.draft)

    def extend(
        self, state: IterRetGenState[DraftT], hits: Hits, progress: Progress
    ) -> IterRetGenState[DraftT]:
        """Write the answer with these passages; keep the last one if it had the same passages."""
        if self._unchanged(state, hits):
            return replace(state, iterations=state.iterations + 1)
        return super().extend(state, hits, progress)

    async def _arewrite(
        self, state: IterRetGenState[DraftT], hits: Hits, progress: Progress
    ) -> IterRetGenState[DraftT]:
        """Return the same without blocking the event loop."""
        if self._unchanged(state, hits):
            return replace(state, iterations=state.iterations + 1)
        return await self._aextend(state, hits, progress)

    def _unchanged(self, state: IterRetGenState[DraftT], hits: Hits) -> bool:
        if not self.keep_unchanged or state.hits is None:
            return False
        last, new = read_by(self.lm, state.hits), read_by(self.lm, hits)
        same: Any = getattr(self.lm, "same_passages", None)
        return bool(last == new if same is None else same(last, new))

    def begun(self, state: IterRetGenState[DraftT], hits: Hits) -> IterRetGenState[DraftT]:
        """Return the state with an empty text and these passages."""
        return replace(state, draft=state.blank, hits=hits)

    def draft(self, state: IterRetGenState[DraftT]) -> DraftT:
        """Return the draft of the last answer."""
        return state.draft

    def after(self, state: IterRetGenState[DraftT], draft: DraftT) -> IterRetGenState[DraftT]:
        """Return the state with one more answer."""
        return replace(state, draft=draft, iterations=state.iterations + 1)

    def tokens_of(self, state: IterRetGenState[DraftT]) -> int:
        """Return the request's maximum number of tokens."""
        return state.request.max_tokens

    def settled(self, state: IterRetGenState[DraftT]) -> str:
        """Return the settled text of the last iteration, and "" before it."""
        return self.lm.settled(state.draft) if state.iterations >= self.iterations else ""

    def extend_key(self, state: IterRetGenState[DraftT], hits: Hits) -> Hashable | None:
        """Return a key of the number of answers, and of all that the next answer depends on.

        The last answer is not part of the key: it affects only the query.
        """
        written = self.lm.write_key(state.blank, read_by(self.lm, hits), self.tokens_of(state))
        return state.request.prompt, state.iterations, written
