"""Multi-hop: a model writes up to a query; passages are inserted, and it continues."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar, get_args

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.protocols import LanguageModel
from ralmspec_plugins.types import (
    NO_RETRIEVAL,
    Hit,
    Hits,
    NoRetrieval,
    Passage,
    Request,
    passages_of,
    read_by,
)
from ralmspec_plugins.workloads.base import DraftWorkload
from ralmspec_plugins.workloads.hops import FollowUps, HopFormat, SearchTags, Thoughts

DraftT = TypeVar("DraftT")
HopStyle: TypeAlias = Literal["search_r1", "ircot", "self_ask"]
_STYLES: dict[str, Callable[[], HopFormat]] = {
    "search_r1": SearchTags,
    "ircot": Thoughts,
    "self_ask": FollowUps,
}
assert tuple(_STYLES) == get_args(HopStyle)
_PARTS: Final = ("stop", "by_sentence", "asks_first", "in_front", "read", "block", "answer")


@dataclass(frozen=True, slots=True)
class HopState(Generic[DraftT]):
    """The text so far, what the model reads, and its query."""

    request: Request
    draft: DraftT = field(compare=False, repr=False)  # of the last turn
    written: str = ""  # by the model, without the passages
    transcript: str = ""  # the same, with the inserted passages
    front: tuple[Hit, ...] = ()  # passages of all hops, if they precede the prompt
    query: str | None = None  # of the last turn; `None` before the first
    turns: int = 0
    hops: int = 0
    ended: bool = False


class MultiHop(DraftWorkload[HopState[DraftT], DraftT], Generic[DraftT]):
    """Write up to a query, insert the passages found, and continue, for at most `max_hops`.

    The format defines how a model queries, and where passages are inserted: Search-R1's tags
    (`SearchTags`), IRCoT's thoughts (`Thoughts`), Self-Ask's questions (`FollowUps`), or a
    `HopFormat` of your own. Each turn is written from the prompt and the text so far, by at
    most the request's `max_tokens`, with a seed of its own; the request's stop strings end the
    answer in any turn. After the last hop the model writes one more turn, whose query is ignored.

    Run speculatively, this is SpecHop's pipeline (arXiv 2605.21965): the next turns, at most
    `Continuous(window=k)`, are written with guessed passages while the searches run, and
    committed in order. Here a guess is right only if the model reads the same text, so that
    the answer equals the plain loop's; with `agree` this no longer holds.
    """

    def __init__(
        self,
        lm: LanguageModel[DraftT],
        *,
        hops: HopStyle | HopFormat = "search_r1",
        max_hops: int = 5,  # as in FlashRAG's reasoning pipelines
        answer_only: bool = False,
        agree: Callable[[Sequence[Passage], Sequence[Passage]], bool] | None = None,
    ) -> None:
        """Create a workload of `lm`.

        Args:
            lm: the model.
            hops: the format of queries: a name ("search_r1", "ircot", "self_ask") or a format.
            max_hops: the maximum number of searches in an answer, empty ones included.
            answer_only: whether the answer's text is only the final answer, if the format
                finds one; it is then streamed only at the end.
            agree: returns whether guessed passages (its first argument) may replace those
                found, such as `passages_say_the_same`. Answers may then differ from the
                plain loop's, and `Stats.lossy` is true.

        Raises:
            ConfigError: there is no such format, or `max_hops` is below 1.
        """
        if max_hops < 1:
            raise ConfigError(f"max_hops must be at least 1, got {max_hops}")
        self.hops = _format(hops)
        if self.hops.by_sentence and not hasattr(lm, "write_sentence"):
            raise ConfigError(
                f"{self.hops!r} needs a model that writes sentences, and {type(lm).__name__} has "
                "no write_sentence()"
            )
        super().__init__(lm, "write_sentence" if self.hops.by_sentence else "write")
        self.max_hops = max_hops
        self.answer_only = answer_only
        self.lossy = agree is not None
        self._agrees = agree
        self.agree = self._reads_the_same

    def start(self, request: Request) -> HopState[DraftT]:
        """Return the state without text, with the question as a query if the format requires."""
        query = request.prompt if self.hops.asks_first else None
        return HopState(request, self.lm.begin(request), query=query)

    def query(self, state: HopState[DraftT]) -> str | NoRetrieval | None:
        """Return the query of the last turn; the first turn is written without passages."""
        if state.ended or (state.query is not None and state.hops >= self.max_hops):
            return None
        return state.query or NO_RETRIEVAL

    def query_key(self, state: HopState[DraftT]) -> Hashable | None:
        """Return the state, which is compared without its draft: no later turn continues it."""
        return state

    def begun(self, state: HopState[DraftT], hits: Hits) -> HopState[DraftT]:
        """Return the state with the passages inserted, and the draft of the turn after them."""
        if state.query is not None:
            state = self._with_passages(state, hits)
        request = replace(
            state.request,
            seed=state.request.seed + state.turns,
            stop=(*self.hops.stop, *state.request.stop),
        )
        resume: Any = getattr(self.lm, "resume", None)
        if resume is not None:
            return replace(state, draft=resume(state.draft, request, state.transcript))
        prompt = state.request.prompt + state.transcript
        return replace(state, draft=self.lm.begin(replace(request, prompt=prompt)))

    def _with_passages(self, state: HopState[DraftT], hits: Hits) -> HopState[DraftT]:
        front = state.front
        if self.hops.in_front:
            known = {hit.passage.id for hit in front}
            front += tuple(hit for hit in hits if hit.passage.id not in known)
        transcript = state.transcript
        if block := self.hops.block(passages_of(hits)):
            transcript = transcript.rstrip() + block
        return replace(state, transcript=transcript, front=front, hops=state.hops + 1)

    def in_front(self, begun: HopState[DraftT], hits: Hits) -> Any:
        """Return the passages of all hops, if they precede the prompt."""
        return read_by(self.lm, begun.front)

    def draft(self, state: HopState[DraftT]) -> DraftT:
        """Return the draft of the last turn."""
        return state.draft

    def tokens_of(self, state: HopState[DraftT]) -> int:
        """Return the request's maximum number of tokens, which applies to each turn."""
        return state.request.max_tokens

    def shown(self, begun: HopState[DraftT], draft: DraftT) -> HopState[DraftT]:
        """Return the state with the settled part of an unfinished turn."""
        return replace(begun, written=begun.written + self._settled_turn(draft))

    def _settled_turn(self, draft: DraftT) -> str:
        if not self.hops.by_sentence:
            return self.lm.settled(draft)
        text = self.hops.read(self.lm.text(draft), "", finished=False).text
        return self.lm.settled(draft)[: len(text)]

    def after(self, state: HopState[DraftT], draft: DraftT) -> HopState[DraftT]:
        """Return the state after a turn, with its query."""
        stop_of: Any = getattr(self.lm, "stop_of", None)
        stopped_by = None if stop_of is None else stop_of(draft)
        finished = self.lm.finished(draft)
        turn = self.hops.read(self.lm.text(draft), stopped_by, finished=finished)
        self.lm.release(draft)  # no later turn continues it
        return replace(
            state,
            draft=draft,
            written=state.written + turn.text,
            transcript=state.transcript + turn.text,
            query=turn.query,
            turns=state.turns + 1,
            ended=turn.query is None,
        )

    def text(self, state: HopState[DraftT]) -> str:
        """Return the text that the model wrote, or the final answer in it."""
        if not self.answer_only:
            return state.written
        answer = self.hops.answer(state.written)
        return state.written if answer is None else answer

    def settled(self, state: HopState[DraftT]) -> str:
        """Return the whole text: later turns are appended. With `answer_only` return ""."""
        return "" if self.answer_only else state.written

    def extend_key(self, state: HopState[DraftT], hits: Hits) -> Hashable | None:
        """Return the state, which is compared without its draft, and the hits."""
        return state, hits

    def _reads_the_same(self, state: HopState[DraftT], guess: Hits, hits: Hits) -> bool:
        """Return whether the next turn is written from the same text with both."""
        if guess == hits:
            return True
        if self._agrees is not None and self._agrees(passages_of(guess), passages_of(hits)):
            return True
        return self._with_passages(state, guess) == self._with_passages(state, hits)


def _format(hops: HopStyle | HopFormat) -> HopFormat:
    if not isinstance(hops, str):
        missing = [name for name in _PARTS if not hasattr(hops, name)]
        if missing:
            raise ConfigError(
                f"{hops!r:.80} is not a HopFormat; it lacks {', '.join(missing)} (see HopFormat)"
            )
        return hops
    make = _STYLES.get(hops.replace("-", "_"))
    if make is None:
        raise ConfigError(
            f"unknown hops {hops!r}; known are {', '.join(_STYLES)}, or a HopFormat of your own"
        )
    return make()
