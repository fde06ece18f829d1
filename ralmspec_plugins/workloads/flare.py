"""FLARE: generate the next sentence, and retrieve if the model is not confident in it."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Generic, Literal, TypeAlias, TypeVar, get_args

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.lm.text import sentence_end
from ralmspec_plugins.protocols import Progress, scored_model
from ralmspec_plugins.types import (
    NO_RETRIEVAL,
    Formed,
    Hits,
    NoRetrieval,
    Request,
    TokenLogprob,
    read_by,
)
from ralmspec_plugins.workloads.base import DraftWorkload, SilentProgress
from ralmspec_plugins.workloads.sentences import SentenceModel

DraftT = TypeVar("DraftT")
QueryBy: TypeAlias = Literal["masking", "question"]

QUESTION_PROMPT = (
    "{text}\n\nWrite one question about the text above whose answer is: {span}\nQuestion:"
)
_PLACES = ("{text}", "{span}")


@dataclass(frozen=True, slots=True)
class _Span:
    """A span of the text, to ask the model for a question about."""

    span: str
    text: str  # with the look-ahead


@dataclass(frozen=True, slots=True)
class FlareState(Generic[DraftT]):
    """The question, the draft, and the passages that it is continued with."""

    request: Request
    draft: DraftT
    hits: Hits | None = None  # of the last search; `None` before the first
    settled: str | None = None  # of an unfinished sentence


@dataclass(frozen=True, slots=True)
class LookAhead(Generic[DraftT]):
    """The next sentence, written with the passages of the last search."""

    draft: DraftT
    sure: bool  # nothing is searched for it


class Flare(DraftWorkload[FlareState[DraftT], DraftT], Generic[DraftT]):
    """Write the next sentence; if the model is not confident, retrieve and write it again.

    Jiang et al. 2023 (arXiv 2305.06983), section 3.2, following its official code:

    1. The question is searched first.
    2. The next sentence is written with the last passages, by at most `look_ahead` tokens.
    3. If each of its tokens has a probability above `theta`, it stays (section 3.2.1).
    4. Otherwise a query is formed, and the passages found replace the last ones. The query is the
       sentence in which each token of a probability of `beta` or less is replaced by a space, or
       a question that the model generates (section 3.2.2). An empty query is not searched.
    5. The sentence is written again, with the current passages.

    Two savings do not change the text, since a model continues the same prompt in the same way: a
    sentence for which nothing is searched is not written again, nor is one whose search found
    the passages of the last one. So a guess that the passages stay costs nothing.

    The number of passages (2 in the official code) is the retriever's `k`.
    """

    inline_query = False

    def __init__(
        self,
        lm: SentenceModel[DraftT],
        *,
        theta: float = 0.8,  # `look_ahead_filter_prob` of the official code
        beta: float = 0.4,  # `look_ahead_mask_prob`
        look_ahead: int = 64,  # `look_ahead_steps`; the longest sentence, too
        query_by: QueryBy = "masking",
        question_prompt: str = QUESTION_PROMPT,
        question_tokens: int = 32,
        keep_unchanged: bool = True,
    ) -> None:
        """Create a workload of `lm`, which must return the log-probabilities of its tokens.

        Args:
            lm: the model.
            theta: a sentence stays if all its tokens have a higher probability. With 1 every
                sentence is searched, with 0 none.
            beta: tokens of at most this probability are masked in a query, or asked about.
            look_ahead: the maximum number of tokens of a sentence.
            query_by: "masking", or "question": the model generates a question about the span of
                tokens of at most `beta` that includes the least probable one.
            question_prompt: the prompt of that question, with the placeholders {text} and {span}.
            question_tokens: the maximum number of tokens of a question; it ends with its line.
            keep_unchanged: whether the two savings are made. `False` writes each sentence
                twice, for a model whose output differs each time.

        Raises:
            ConfigError: a setting is out of range, or the model returns no log-probabilities.
        """
        for name, value in (("theta", theta), ("beta", beta)):
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"{name} must be between 0 and 1, got {value}")
        for name, count in (("look_ahead", look_ahead), ("question_tokens", question_tokens)):
            if count < 1:
                raise ConfigError(f"{name} must be at least 1, got {count}")
        if query_by not in get_args(QueryBy):
            known = " or ".join(map(repr, get_args(QueryBy)))
            raise ConfigError(f"query_by must be {known}, got {query_by!r}")
        if not all(place in question_prompt for place in _PLACES):
            raise ConfigError(
                f"question_prompt must have the placeholders {{text}} and {{span}}, got "
                f"{question_prompt!r}"
            )
        if query_by == "question" and getattr(lm, "fixed_prompt", False):
            raise ConfigError(
                f"query_by='question' needs a prompt of its own, but {type(lm).__name__} puts "
                "every text into the prompt of its host: use query_by='masking'"
            )
        scored: Any = scored_model(lm, [one for one in {theta, beta} if one > 0.0])
        alone = hasattr(scored, "write_one_sentence")
        super().__init__(scored, "write_one_sentence" if alone else "write_sentence")
        self.theta = theta
        self.beta = beta
        self.look_ahead = look_ahead
        self.query_by = query_by
        self.question_prompt = question_prompt
        self.question_tokens = question_tokens
        self.keep_unchanged = keep_unchanged
        self._sure_above = math.log(theta) if theta else -math.inf
        self._kept_above = math.log(beta) if beta else -math.inf
        if hasattr(self, "aextend"):
            self.aquery = self._aquery
            self.aextend = self._awrite_again

    def start(self, request: Request) -> FlareState[DraftT]:
        """Return the state of the tokenized prompt."""
        return FlareState(request, self.lm.begin(request))

    # The query: the look-ahead, and what to search for it

    def query(self, state: FlareState[DraftT], progress: Progress | None = None) -> Formed:
        """Write the look-ahead, and return its query: none where the model is confident."""
        progress = progress or Progress()
        if state.hits is None:
            return Formed(state.request.prompt)
        if self.lm.finished(state.draft):
            return Formed(None)
        write: Any = getattr(self.lm, self._method)
        draft = write(*self._ahead(state, progress))
        query = self._asked(state, draft)
        if isinstance(query, _Span):
            query = self._question_in(self._ask(*self._about(state, query, progress)))
        return self._formed(query, draft)

    async def _aquery(self, state: FlareState[DraftT], progress: Progress) -> Formed:
        """Return the same without blocking the event loop."""
        if state.hits is None:
            return Formed(state.request.prompt)
        if self.lm.finished(state.draft):
            return Formed(None)
        write: Any = getattr(self.lm, f"a{self._method}")
        draft = await write(*self._ahead(state, progress))
        query = self._asked(state, draft)
        if isinstance(query, _Span):
            query = self._question_in(await self._aask(*self._about(state, query, progress)))
        return self._formed(query, draft)

    def _ahead(self, state: FlareState[DraftT], progress: Progress) -> tuple[Any, ...]:
        assert state.hits is not None
        passages = read_by(self.lm, state.hits)
        return state.draft, passages, self.look_ahead, SilentProgress(progress)

    def _asked(self, state: FlareState[DraftT], draft: DraftT) -> "str | _Span":
        """Return the query for a look-ahead, "" if none is needed, or a span to ask about."""
        tokens = self._tokens(state, draft)
        if all(token.logprob > self._sure_above for token in tokens):
            return ""
        if self.query_by == "question" and (span := self._least_sure(tokens)) is not None:
            return _Span(span, self.lm.text(draft))
        return self._masked(tokens)

    def _tokens(self, state: FlareState[DraftT], draft: DraftT) -> Sequence[TokenLogprob]:
        """Return the look-ahead's own tokens, without the one that only ends the text."""
        lm: Any = self.lm
        before = len(lm.logprobs(state.draft))
        return [token for token in lm.logprobs(draft)[before:] if token.text]

    def _masked(self, tokens: Sequence[TokenLogprob]) -> str:
        """Return the text of the tokens, with a space in place of each improbable one."""
        kept = [token.text if token.logprob > self._kept_above else " " for token in tokens]
        return "".join(kept).strip()

    def _least_sure(self, tokens: Sequence[TokenLogprob]) -> str | None:
        """Return the text of the run of improbable tokens that includes the least probable one."""
        runs = groupby(tokens, key=lambda token: token.logprob > self._kept_above)
        spans = [list(run) for kept, run in runs if not kept]
        spans = [run for run in spans if "".join(token.text for token in run).strip()]
        if not spans:
            return None
        span = min(spans, key=lambda run: min(token.logprob for token in run))
        return "".join(token.text for token in span).strip()

    def _about(
        self, state: FlareState[DraftT], span: "_Span", progress: Progress
    ) -> tuple[DraftT, tuple[Any, ...]]:
        """Return the draft of a question about a span, and the arguments to write it with."""
        text = f"{state.request.prompt} {span.text.strip()}"
        prompt = self.question_prompt.replace("{span}", span.span).replace("{text}", text)
        request = replace(
            state.request, prompt=prompt, max_tokens=self.question_tokens, stop=("\n",)
        )
        draft = self.lm.begin(request)
        return draft, (draft, (), self.question_tokens, SilentProgress(progress))

    def _ask(self, draft: DraftT, given: tuple[Any, ...]) -> DraftT:
        try:
            return self.lm.write(*given)
        finally:
            self.lm.release(draft)

    async def _aask(self, draft: DraftT, given: tuple[Any, ...]) -> DraftT:
        lm: Any = self.lm
        try:
            asked: DraftT = await lm.awrite(*given)
            return asked
        finally:
            self.lm.release(draft)

    def _question_in(self, draft: DraftT) -> str:
        return self.lm.text(draft).strip()

    @staticmethod
    def _formed(query: str, draft: DraftT) -> Formed:
        asked: str | NoRetrieval = query or NO_RETRIEVAL
        return Formed(asked, LookAhead(draft, sure=not query))

    def query_key(self, state: FlareState[DraftT]) -> Hashable | None:
        """Return a key of all that the look-ahead depends on exactly."""
        if state.hits is None:
            return state.request.prompt
        passages = read_by(self.lm, state.hits)
        return state.request.prompt, self.lm.write_key(state.draft, passages, self.look_ahead)

    # The sentence

    def extend(
        self,
        state: FlareState[DraftT],
        hits: Hits,
        progress: Progress,
        carried: LookAhead[DraftT] | None = None,
    ) -> FlareState[DraftT]:
        """Set the passages after the first search; afterwards write the sentence with them."""
        done, state = self._without_writing(state, hits, carried)
        return state if done else super().extend(state, hits, progress)

    async def _awrite_again(
        self,
        state: FlareState[DraftT],
        hits: Hits,
        progress: Progress,
        carried: LookAhead[DraftT] | None = None,
    ) -> FlareState[DraftT]:
        """Return the same without blocking the event loop."""
        done, state = self._without_writing(state, hits, carried)
        return state if done else await self._aextend(state, hits, progress)

    def _without_writing(
        self, state: FlareState[DraftT], hits: Hits, ahead: LookAhead[DraftT] | None
    ) -> tuple[bool, FlareState[DraftT]]:
        """Return whether the sentence needs no writing, and the state with it or before it."""
        if ahead is None:
            return True, replace(state, hits=hits)
        assert state.hits is not None
        new = state.hits if ahead.sure else hits
        if self.keep_unchanged and (ahead.sure or self._same(state.hits, new)):
            return True, self.after(replace(state, hits=new), ahead.draft)
        return False, replace(state, hits=new)

    def _same(self, last: Hits, new: Hits) -> bool:
        same: Any = getattr(self.lm, "same_passages", None)
        one, other = read_by(self.lm, last), read_by(self.lm, new)
        return bool(one == other if same is None else same(one, other))

    def in_front(self, begun: FlareState[DraftT], hits: Hits) -> Any:
        """Return the passages of the last search."""
        assert begun.hits is not None
        return read_by(self.lm, begun.hits)

    def draft(self, state: FlareState[DraftT]) -> DraftT:
        """Return the draft."""
        return state.draft

    def after(self, state: FlareState[DraftT], draft: DraftT) -> FlareState[DraftT]:
        """Return the state with the sentence."""
        return replace(state, draft=draft, settled=None)

    def shown(self, begun: FlareState[DraftT], draft: DraftT) -> FlareState[DraftT]:
        """Return the state with the settled part of an unfinished sentence."""
        end = sentence_end(self.lm.text(draft), len(self.lm.text(begun.draft)))
        return replace(begun, draft=draft, settled=self.lm.settled(draft)[:end])

    def tokens_of(self, state: FlareState[DraftT]) -> int:
        """Return the length of the longest sentence."""
        return self.look_ahead

    def settled(self, state: FlareState[DraftT]) -> str:
        """Return all complete sentences: these are not written again."""
        return self.lm.settled(state.draft) if state.settled is None else state.settled

    def extend_key(self, state: FlareState[DraftT], hits: Hits) -> Hashable | None:
        """Return a key of all that the look-ahead and the sentence depend on exactly."""
        written = self.lm.write_key(state.draft, read_by(self.lm, hits), self.look_ahead)
        return self.query_key(state), written
