"""Node postprocessors in front of a model that is driven directly."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from llama_index.core.schema import NodeWithScore

from llama_index_ralmspec.passages import passage_of
from llama_index_ralmspec.postprocessing import Postprocessing, valued
from llama_index_ralmspec.quiet_call import QuietCall, quiet_call
from llama_index_ralmspec.recording import Recording
from ralmspec_plugins.lm.state import Draft
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Hits, Passage, Request
from ralmspec_plugins.workloads.base import Reports

if TYPE_CHECKING:
    from ralmspec_plugins.lm.huggingface import HuggingFaceLM


@dataclass(frozen=True, slots=True)
class ProcessedDraft:
    """A draft of the model, whose request it is, and what was told of its nodes."""

    inner: Draft
    request: Request
    recording: Recording | None = field(default=None, compare=False, repr=False)


_Grown: TypeAlias = Callable[[Draft], ProcessedDraft]
_Write: TypeAlias = Callable[[Draft, Sequence[Passage], int, Progress], Draft]


class ProcessedLM:
    """Continues a text with what postprocessors leave of the nodes."""

    reads_hits = True

    def __init__(self, lm: "HuggingFaceLM", processing: Postprocessing) -> None:
        """Put these postprocessors in front of a model."""
        self.lm = lm
        self.processing = processing

    @property
    def reads_scores(self) -> bool:
        """Whether a postprocessor may look at scores."""
        return self.processing.reads_scores

    def begin(self, request: Request) -> ProcessedDraft:
        """Tokenise the prompt."""
        return ProcessedDraft(self.lm.begin(request), request)

    def write(
        self, draft: ProcessedDraft, hits: Hits, tokens: int, progress: Progress
    ) -> ProcessedDraft:
        """Continue a draft by at most this many tokens.

        Raises:
            ContextOverflowError: nodes, prompt and text exceed the context.
            Cancelled: `progress` was cancelled while writing.
            Exception: what a postprocessor raises.
        """
        shown, grown = self._shown(draft, hits)
        return grown(self.lm.write(draft.inner, shown, tokens, Reports(progress, grown)))

    def write_sentence(
        self, draft: ProcessedDraft, hits: Hits, tokens: int, progress: Progress
    ) -> ProcessedDraft:
        """Continue a draft to the end of its next sentence.

        Raises:
            ContextOverflowError: nodes, prompt and text exceed the context.
            Cancelled: `progress` was cancelled while writing.
            Exception: what a postprocessor raises.
        """
        shown, grown = self._shown(draft, hits)
        return grown(self.lm.write_sentence(draft.inner, shown, tokens, Reports(progress, grown)))

    async def awrite(
        self, draft: ProcessedDraft, hits: Hits, tokens: int, progress: Progress
    ) -> ProcessedDraft:
        """Do what `write` does; postprocessors are awaited, the model writes in a thread."""
        return await self._awritten(self.lm.write, draft, hits, tokens, progress)

    async def awrite_sentence(
        self, draft: ProcessedDraft, hits: Hits, tokens: int, progress: Progress
    ) -> ProcessedDraft:
        """Do the same to the end of the next sentence."""
        return await self._awritten(self.lm.write_sentence, draft, hits, tokens, progress)

    def finished(self, draft: ProcessedDraft) -> bool:
        """Say whether the draft has ended."""
        return self.lm.finished(draft.inner)

    def tail(self, draft: ProcessedDraft, tokens: int) -> str:
        """Give the last tokens of prompt and text, as text."""
        return self.lm.tail(draft.inner, tokens)

    def text(self, draft: ProcessedDraft) -> str:
        """Give what was written, without the prompt."""
        return self.lm.text(draft.inner)

    def settled(self, draft: ProcessedDraft) -> str:
        """Give the part of `text` that no later token can change."""
        return self.lm.settled(draft.inner)

    def text_key(self, draft: ProcessedDraft) -> Hashable:
        """Hold prompt and tokens, and whether they end there."""
        return self.lm.text_key(draft.inner)

    def write_key(self, draft: ProcessedDraft, hits: Hits, tokens: int) -> Hashable:
        """Hold the draft and the nodes, with their scores if a postprocessor looks at them."""
        return draft, valued(hits, scores=self.reads_scores), tokens

    def same_passages(self, one: Hits, other: Hits) -> bool:
        """Say whether the model is shown the same of both."""
        return self.processing.same(one, other)

    def release(self, draft: ProcessedDraft) -> None:
        """Free the caches of this draft's request."""
        self.lm.release(draft.inner)

    def _shown(self, draft: ProcessedDraft, hits: Hits) -> tuple[list[Passage], _Grown]:
        """Process the nodes; give what is left, and what makes a draft of the model's own."""
        quiet = quiet_call(draft.request)
        with quiet.alone():
            nodes = quiet.nodes(hits, self.processing)
        return _passages(nodes), _grown(draft, quiet)

    async def _awritten(
        self, write: _Write, draft: ProcessedDraft, hits: Hits, tokens: int, progress: Progress
    ) -> ProcessedDraft:
        quiet = quiet_call(draft.request)
        with quiet.alone():
            nodes = await quiet.anodes(hits, self.processing)
        shown, grown = _passages(nodes), _grown(draft, quiet)
        reports = Reports(progress, grown)
        return await quiet.beside(
            lambda: grown(write(draft.inner, shown, tokens, reports)), progress
        )


def _passages(nodes: Sequence[NodeWithScore]) -> list[Passage]:
    return [passage_of(one.node) for one in nodes]


def _grown(draft: ProcessedDraft, quiet: QuietCall) -> _Grown:
    return partial(ProcessedDraft, request=draft.request, recording=quiet.recording)
