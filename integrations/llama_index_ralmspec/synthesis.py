"""The host's response synthesizer as the core's `LanguageModel`: the whole answer at once."""

from collections.abc import Awaitable, Callable, Generator, Hashable, Iterable, Sequence
from contextlib import aclosing, closing
from copy import copy
from typing import Any, Final

from llama_index.core.base.response.schema import (
    AsyncStreamingResponse,
    PydanticResponse,
    StreamingResponse,
)
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.response_synthesizers import BaseSynthesizer

from llama_index_ralmspec import models
from llama_index_ralmspec.postprocessing import Postprocessing
from llama_index_ralmspec.quiet_call import QuietCall, in_a_loop_of_its_own, quiet_call
from ralmspec_plugins.hosts import text_draft
from ralmspec_plugins.hosts.classes import overridden, qualified_name
from ralmspec_plugins.hosts.text_draft import Streamed, TextDraft, Written
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.records import Hits, Request, passages_of

Write = Callable[[TextDraft, Hits, int, Progress], Awaitable[TextDraft]]

# The host's own synthesizers: of a node they see the content, and never the score.
_SCORELESS: Final = frozenset(
    f"llama_index.core.response_synthesizers.{name}"
    for name in (
        *("accumulate.Accumulate", "compact_and_accumulate.CompactAndAccumulate"),
        *("compact_and_refine.CompactAndRefine", "context_only.ContextOnly"),
        *("generation.Generation", "no_text.NoText", "refine.Refine"),
        *("simple_summarize.SimpleSummarize", "tree_summarize.TreeSummarize"),
    )
)


class SynthesizerLM:
    """Writes the whole answer as the host's `RetrieverQueryEngine` does, from nodes on.

    The nodes are postprocessed, and the synthesizer is given what is left of them.
    Its response is the draft's `message`, whole or streaming; a stream is read here,
    and each piece is reported. For workloads that ask once.

    `write` has a twin that is awaited, `awrite`, only where the model is asynchronous
    itself: one that is not would hold up the event loop.
    """

    reads_hits = True
    awrite: Write

    def __init__(
        self,
        synthesizer: BaseSynthesizer,
        postprocessors: Sequence[BaseNodePostprocessor] = (),
        *,
        side_by_side: bool | None = None,
    ) -> None:
        """Wrap a synthesizer, and the postprocessors that come before it.

        Args:
            synthesizer: the host's.
            postprocessors: in their order.
            side_by_side: whether several calls may run at a time. By default if the
                model's class is known to call a server.
        """
        self.synthesizer = synthesizer
        self.processing = Postprocessing(postprocessors)
        self._sees_scores = overridden(synthesizer) or (
            qualified_name(type(synthesizer)) not in _SCORELESS
        )
        llm = getattr(synthesizer, "_llm", None)
        self.side_by_side = (
            models.is_remote(llm) and self.processing.local
            if side_by_side is None
            else side_by_side
        )
        if llm is not None and _awaits(llm):
            self.awrite = self._awrite

    @property
    def reads_scores(self) -> bool:
        """Whether anything that is called may look at the nodes' scores."""
        return self._sees_scores or self.processing.reads_scores

    def begin(self, request: Request) -> TextDraft:
        """Begin with no text."""
        return TextDraft(request)

    def write(self, draft: TextDraft, hits: Hits, tokens: int, progress: Progress) -> TextDraft:
        """Write the whole answer; how far is the model's own affair.

        Raises:
            Cancelled: `progress` was cancelled, before a call or while it streamed.
            Exception: what the host raises.
        """
        call = quiet_call(draft.origin)
        if call.asynchronous:
            return in_a_loop_of_its_own(self._awrite(draft, hits, tokens, progress))
        progress.check()
        with call.alone():
            nodes = call.nodes(hits, self.processing)
            progress.check()
            response = self._told(call).synthesize(query=call.bundle, nodes=nodes)
            reading = _Reading(draft, response, call, progress)
            if isinstance(response, StreamingResponse):
                with closing(_each(response.response_gen)) as pieces:
                    for piece in pieces:
                        reading.take(piece)
        return reading.end()

    async def _awrite(
        self, draft: TextDraft, hits: Hits, tokens: int, progress: Progress
    ) -> TextDraft:
        call = quiet_call(draft.origin)
        progress.check()
        with call.alone():
            nodes = await call.anodes(hits, self.processing)
            progress.check()
            response = await self._told(call).asynthesize(query=call.bundle, nodes=nodes)
            reading = _Reading(draft, response, call, progress)
            if isinstance(response, AsyncStreamingResponse):
                async with aclosing(response.response_gen):
                    async for piece in response.response_gen:
                        reading.take(piece)
        return reading.end()

    def _told(self, call: QuietCall) -> BaseSynthesizer:
        """Give the synthesizer as it was when the request began: streaming, or not.

        Chat engines switch it on for one query, and off again while that is answered.
        """
        if call.context is None or call.context.streaming == self.synthesizer._streaming:  # noqa: SLF001
            return self.synthesizer
        own = copy(self.synthesizer)
        own._streaming = call.context.streaming  # noqa: SLF001 the host has no other name for it
        return own

    def finished(self, draft: TextDraft) -> bool:
        """Say whether the draft has ended."""
        return draft.finished

    def tail(self, draft: TextDraft, tokens: int) -> str:
        """Give the last words of question and text."""
        return text_draft.tail(draft, tokens)

    def text(self, draft: TextDraft) -> str:
        """Give the text of the response."""
        return draft.text

    def settled(self, draft: TextDraft) -> str:
        """Give the part of `text` that no later piece can change."""
        return draft.settled

    def text_key(self, draft: TextDraft) -> Hashable:
        """Hold question and text, and whether that is all."""
        return draft.origin.prompt, draft.text, draft.finished

    def write_key(self, draft: TextDraft, hits: Hits, tokens: int) -> Hashable:
        """Hold the draft and the nodes: they are the sources of the response, too."""
        scores = tuple(hit.score for hit in hits) if self.reads_scores else None
        return draft, tuple(passages_of(hits)), scores

    def same_passages(self, one: Hits, other: Hits) -> bool:
        """Say whether the synthesizer is given the same of both."""
        if self._sees_scores and one != other:
            return False
        return self.processing.same(one, other)

    def release(self, draft: TextDraft) -> None:
        """Nothing is kept."""


class _Reading:
    """Reads what a response says: at once, or piece by piece."""

    def __init__(
        self, draft: TextDraft, response: Any, call: QuietCall, progress: Progress
    ) -> None:
        call.recording.begun = len(call.recording)
        self._draft = draft
        self._response = response
        self._call = call
        self._progress = progress
        self._streamed = Streamed(draft)
        self._text = ""

    def take(self, piece: str) -> None:
        """Take one piece of a stream, and show what came so far.

        Raises:
            Cancelled: nobody needs it any more.
        """
        self._progress.check()
        self._text += piece
        if self._progress.wanted:
            self._progress.report(self._streamed.shown(self._written()))

    def end(self) -> TextDraft:
        """Give the draft with the whole text."""
        response = self._response
        if isinstance(response, StreamingResponse | AsyncStreamingResponse):
            response.response_txt = self._text
        elif isinstance(response, PydanticResponse):
            self._text = str(response)
        else:
            self._text = str(getattr(response, "response", response) or "")
        return text_draft.whole(self._draft, self._written())

    def _written(self) -> Written:
        return Written(self._text, message=self._response, recording=self._call.recording)


def _awaits(llm: Any) -> bool:
    inner = models.inner(llm)
    return models.awaits(inner, "achat" if inner.metadata.is_chat_model else "acomplete")


def _each(pieces: Iterable[str]) -> Generator[str, None, None]:
    yield from pieces
