"""Multi-hop: a model writes until it asks; passages are put in, and it writes on."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeAlias, TypeVar, get_args

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


@dataclass(frozen=True, slots=True)
class HopState(Generic[DraftT]):
    """What was written, what the model reads, and what it asks."""

    request: Request
    draft: DraftT = field(compare=False, repr=False)  # of the last turn
    written: str = ""  # by the model, without the passages
    transcript: str = ""  # the same, with the passages that were put in
    front: tuple[Hit, ...] = ()  # passages of all hops, where they stand in front
    query: str | None = None  # what the last turn asks; `None` before the first
    turns: int = 0
    hops: int = 0
    ended: bool = False


class MultiHop(DraftWorkload[HopState[DraftT], DraftT], Generic[DraftT]):
    """Write until the model asks, put in what is found, and write on, for `max_hops` at most.

    How a model asks, and where passages stand, is the format's: Search-R1's tags
    (`SearchTags`), IRCoT's thoughts (`Thoughts`), Self-Ask's questions (`FollowUps`), or a
    `HopFormat` of your own. Each turn is written from the prompt and the text so far, by at
    most the request's `max_tokens`, with a seed of its own; the request's stop strings end the
    answer in any turn. Behind the last hop the model writes one more turn, whatever it asks.

    Run speculatively, this is SpecHop's pipeline (arXiv 2605.21965): the next turns are
    written with guessed passages while the searches are out, `Continuous(window=k)` turns deep,
    and committed in order. Here a guess counts as right only where the model reads the same
    text, so that the answer is the plain loop's; `agree` gives that up.
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
        """Write turns with `lm`.

        Args:
            lm: the model.
            hops: how it asks: a name ("search_r1", "ircot", "self_ask") or a format.
            max_hops: searches in an answer, empty ones included.
            answer_only: whether the answer's text is the final answer alone, where the format
                finds one; it then comes at the end.
            agree: says whether guessed passages (its first argument) may stand in the place of
                those found, such as `passages_say_the_same`. Answers may then differ from the
                plain loop's, and `Stats.lossy` says so.

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
        """Begin with no text; with the question as the first query where the format says so."""
        query = request.prompt if self.hops.asks_first else None
        return HopState(request, self.lm.begin(request), query=query)

    def query(self, state: HopState[DraftT]) -> str | NoRetrieval | None:
        """Ask what the last turn asks; write the first turn without passages."""
        if state.ended or (state.query is not None and state.hops >= self.max_hops):
            return None
        return state.query or NO_RETRIEVAL

    def query_key(self, state: HopState[DraftT]) -> Hashable | None:
        """Return the state, of which the draft is no part: no later turn continues it."""
        return state

    def begun(self, state: HopState[DraftT], hits: Hits) -> HopState[DraftT]:
        """Put in the passages, and begin a turn behind them."""
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
        """Return the passages of all hops, where they stand in front."""
        return read_by(self.lm, begun.front)

    def draft(self, state: HopState[DraftT]) -> DraftT:
        """Return the draft of the last turn."""
        return state.draft

    def tokens_of(self, state: HopState[DraftT]) -> int:
        """Return the request's own length: of each turn."""
        return state.request.max_tokens

    def shown(self, begun: HopState[DraftT], draft: DraftT) -> HopState[DraftT]:
        """Return the state with what is settled of an unfinished turn."""
        return replace(begun, written=begun.written + self._settled_turn(draft))

    def _settled_turn(self, draft: DraftT) -> str:
        if not self.hops.by_sentence:
            return self.lm.settled(draft)
        text = self.hops.read(self.lm.text(draft), "", finished=False).text
        return self.lm.settled(draft)[: len(text)]

    def after(self, state: HopState[DraftT], draft: DraftT) -> HopState[DraftT]:
        """Read what a turn asks."""
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
        """Return what the model wrote, or the final answer in it."""
        if not self.answer_only:
            return state.written
        answer = self.hops.answer(state.written)
        return state.written if answer is None else answer

    def settled(self, state: HopState[DraftT]) -> str:
        """Return all that was written: later turns stand behind it."""
        return "" if self.answer_only else state.written

    def extend_key(self, state: HopState[DraftT], hits: Hits) -> Hashable | None:
        """Return a key of the state but the draft, and the hits."""
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
        return hops
    make = _STYLES.get(hops.replace("-", "_"))
    if make is None:
        raise ConfigError(
            f"unknown hops {hops!r}; known are {', '.join(_STYLES)}, or a HopFormat of your own"
        )
    return make()
