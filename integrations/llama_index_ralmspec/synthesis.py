"""The host's response synthesizer as the core's `LanguageModel`: one call per answer."""

from collections.abc import AsyncGenerator, Generator, Hashable, Sequence
from contextlib import AbstractContextManager, aclosing, closing, nullcontext
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Final

from llama_index.core.base.response.schema import (
    AsyncStreamingResponse,
    PydanticResponse,
    StreamingResponse,
)
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import NodeWithScore

from llama_index_ralmspec import capabilities
from llama_index_ralmspec.host_calls import RequestCall, in_own_loop, request_call
from llama_index_ralmspec.postprocessing import Postprocessing, valued
from ralmspec_plugins.adapters.events import aclosable, closable
from ralmspec_plugins.adapters.fingerprint import is_known as is_known_class
from ralmspec_plugins.adapters.text_model import Show, Step, TextLM
from ralmspec_plugins.adapters.text_state import TextDraft, Written
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.protocols import Progress, speculative
from ralmspec_plugins.types import Hits, same_to_read

# The host's own synthesizers: they read only the content of a node, not its score, and only the
# text of the query, and they keep no state between two calls.
_KNOWN: Final = frozenset(
    f"llama_index.core.response_synthesizers.{name}"
    for name in (
        *("accumulate.Accumulate", "compact_and_accumulate.CompactAndAccumulate"),
        *("compact_and_refine.CompactAndRefine", "context_only.ContextOnly"),
        *("generation.Generation", "no_text.NoText", "refine.Refine"),
        *("simple_summarize.SimpleSummarize", "tree_summarize.TreeSummarize"),
    )
)


def is_known(synthesizer: BaseSynthesizer) -> bool:
    """Return whether a synthesizer is the host's own, unchanged, without code in its prompts."""
    prompts = [one for one in vars(synthesizer).values() if isinstance(one, BasePromptTemplate)]
    with_code = [one for one in prompts if one.function_mappings]
    return is_known_class(synthesizer, _KNOWN) and not with_code


def model_blocks_loop(synthesizer: BaseSynthesizer) -> bool:
    """Return whether the asynchronous methods of a synthesizer's model block the event loop."""
    llm = capabilities.inner(getattr(synthesizer, "_llm", None))
    if llm is None:
        return False
    return not capabilities.awaits(llm, "achat" if llm.metadata.is_chat_model else "acomplete")


class SynthesizerLM(TextLM[Hits]):
    """Writes the whole answer from nodes, as the host's `RetrieverQueryEngine` does.

    The nodes are postprocessed and passed to the synthesizer. Its response is the draft's
    `message`, whole or streaming; a speculative stream is read here, and each piece is
    reported. For workloads that retrieve once.
    """

    reads_hits = True

    def __init__(
        self,
        synthesizer: BaseSynthesizer,
        postprocessors: Sequence[BaseNodePostprocessor] = (),
        *,
        side_by_side: bool | None = None,
    ) -> None:
        """Wrap a synthesizer and its node postprocessors.

        Args:
            synthesizer: the host's synthesizer.
            postprocessors: the node postprocessors, in order.
            side_by_side: whether several calls may run at a time. By default true if the
                model's class is known to call a server.
        """
        writer = _SynthesisWriter(synthesizer, Postprocessing(postprocessors))
        if side_by_side is None:
            side_by_side = capabilities.is_remote(writer.llm) and not writer.processing.unknown
        super().__init__(writer, whole=True, side_by_side=side_by_side)
        self._own = writer

    @property
    def reads_scores(self) -> bool:
        """Whether any called part may read the nodes' scores."""
        return self._own.reads_scores


class _SynthesisWriter:
    """A synthesizer and its node postprocessors."""

    def __init__(self, synthesizer: BaseSynthesizer, processing: Postprocessing) -> None:
        self._synthesizer = synthesizer
        self.processing = processing
        self.llm = capabilities.inner(getattr(synthesizer, "_llm", None))
        self._model_awaits = self.llm is not None and not model_blocks_loop(synthesizer)
        self._sees_scores = not is_known(synthesizer)

    @property
    def awaits(self) -> bool:
        return self._model_awaits or bool(self.processing.postprocessors)

    @property
    def reads_scores(self) -> bool:
        return self._sees_scores or self.processing.reads_scores

    def call(
        self,
        draft: TextDraft,
        step: Step,
        bound: int,
        sentence_stop: str | None,
    ) -> "_Synthesis":
        """Return the plan of one call."""
        call = request_call(draft.origin)
        return _Synthesis(self._synthesizer, self.processing, call, self._model_awaits)

    def scored(self) -> "_SynthesisWriter":
        """Raise an error: a synthesizer's response has no log-probabilities.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"{type(self._synthesizer).__name__} returns no log-probabilities of its tokens, but "
            "this workload needs them, so it needs the model itself"
        )

    def write_key(
        self,
        draft: TextDraft,
        given: Hits,
        tokens: int,
    ) -> Hashable:
        """Return the draft and the nodes, which are also the sources of the response."""
        return draft, valued(given, scores=self.reads_scores)

    def same(self, one: Hits, other: Hits) -> bool:
        if self._sees_scores and not same_to_read(one, other):
            return False
        return self.processing.same(one, other)


@dataclass(frozen=True, slots=True)
class _Synthesis:
    """One call of postprocessors and synthesizer."""

    synthesizer: BaseSynthesizer
    processing: Postprocessing
    call: RequestCall
    awaits: bool  # whether the model's asynchronous methods wait

    def alone(self) -> AbstractContextManager[None]:
        """Return an empty context: the host's handlers are notified immediately."""
        return nullcontext()

    def write(self, given: Hits, progress: Progress, show: Show) -> Written:
        """Return the synthesizer's response; a speculative stream is read to its end."""
        if self.call.asynchronous:
            return in_own_loop(self.awrite(given, progress, show))
        return self.call.run(lambda: self._written(given, progress, show))

    def _written(self, given: Hits, progress: Progress, show: Show) -> Written:
        nodes = self.call.nodes(given, self.processing)
        progress.check()
        response = self._configured().synthesize(query=self.call.bundle, nodes=nodes)
        reading = _Reading(response, self.call, progress, show)
        if isinstance(response, StreamingResponse) and not reading.unread:
            with closing(closable(response.response_gen)) as pieces:
                for piece in pieces:
                    reading.take(piece)
        return reading.end()

    async def awrite(self, given: Hits, progress: Progress, show: Show) -> Written:
        """Return the synthesizer's response by the host's asynchronous methods."""
        return await self.call.arun(lambda: self._awritten(given, progress, show))

    async def _awritten(self, given: Hits, progress: Progress, show: Show) -> Written:
        nodes = await self.call.anodes(given, self.processing)
        progress.check()
        if self.awaits:
            return await self._asynthesized(nodes, progress, show)
        return await self.call.in_thread(
            lambda: in_own_loop(self._asynthesized(nodes, progress, show)), progress
        )

    async def _asynthesized(
        self, nodes: list[NodeWithScore], progress: Progress, show: Show
    ) -> Written:
        response = await self._configured().asynthesize(query=self.call.bundle, nodes=nodes)
        reading = _Reading(response, self.call, progress, show)
        if isinstance(response, AsyncStreamingResponse) and not reading.unread:
            async with aclosing(response.response_gen):
                async for piece in response.response_gen:
                    reading.take(piece)
        return reading.end()

    def _configured(self) -> BaseSynthesizer:
        """Return the synthesizer with the streaming setting of the request's beginning.

        Chat engines enable it for one query, and disable it while that is answered.
        """
        context = self.call.context
        streaming = bool(getattr(self.synthesizer, "_streaming", False))
        if context is None or context.streaming == streaming:
            return self.synthesizer
        own = copy(self.synthesizer)
        own._streaming = context.streaming  # noqa: SLF001 the host has no other name for it
        return own


def _left(response: Any, call: RequestCall) -> Any:
    """Return a response whose stream the caller reads, observed like any call of the model."""
    if isinstance(response, StreamingResponse):
        return replace(response, response_gen=_watched(response.response_gen, call))
    return replace(response, response_gen=_awatched(response.response_gen, call))


def _watched(pieces: Any, call: RequestCall) -> Generator[str, None, None]:
    with call.watched(), closing(closable(pieces)) as read:
        yield from read


async def _awatched(pieces: Any, call: RequestCall) -> AsyncGenerator[str, None]:
    with call.watched():
        async with aclosing(aclosable(pieces)) as read:
            async for piece in read:
                yield piece


class _Reading:
    """Reads the text of a response, whole or in pieces.

    A stream that is not speculative is read by the caller, as in the host: the model is called
    when the caller reads, and its errors are raised there.
    """

    def __init__(self, response: Any, call: RequestCall, progress: Progress, show: Show) -> None:
        streams = isinstance(response, StreamingResponse | AsyncStreamingResponse)
        begun = call.context is not None and call.context.begun
        self._record = call.record
        self._record.response = response
        self._record.unread = self.unread = streams and not begun and not speculative.get()
        if self.unread and call.context is not None and call.context.effects is not None:
            self._record.response = response = _left(response, call)
        self._response = response
        self._progress = progress
        self._show = show
        self._text = ""

    def take(self, piece: str) -> None:
        """Append one piece of a stream, and show the text so far.

        Raises:
            Cancelled: it is no longer needed.
        """
        self._progress.check()
        self._text += piece
        self._show(self._written())

    def end(self) -> Written:
        """Return the whole text."""
        response = self._response
        if self.unread:
            return self._written()
        if isinstance(response, StreamingResponse | AsyncStreamingResponse):
            response.response_txt = self._text
        elif isinstance(response, PydanticResponse):
            self._text = str(response)
        else:
            self._text = str(getattr(response, "response", response) or "")
        return self._written()

    def _written(self) -> Written:
        return Written(self._text, message=self._response, recording=self._record)
