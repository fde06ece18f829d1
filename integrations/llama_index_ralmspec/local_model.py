"""Drives the Hugging Face model inside a host's wrapper by tokens and key-value cache."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from llama_index.core.llms import LLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore

from llama_index_ralmspec.capabilities import hugging_face
from llama_index_ralmspec.documents import node_of, passage_of
from llama_index_ralmspec.host_calls import CallRecord, RequestCall, request_call
from llama_index_ralmspec.postprocessing import Postprocessing, valued
from llama_index_ralmspec.prompts import Prompting
from llama_index_ralmspec.speculative_model import SpeculativeLLM
from ralmspec_plugins.adapters.local_model import UNCUT, sampling, split_template
from ralmspec_plugins.adapters.writing_options import direct_options
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.lm.prompts import PassageTemplate
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.lm.state import Draft
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Hits, Passage, Request
from ralmspec_plugins.workloads.base import Reports

if TYPE_CHECKING:
    from ralmspec_plugins.lm.decoder import DecodingSettings
    from ralmspec_plugins.lm.huggingface import HuggingFaceLM

# Node postprocessors for a model that is driven directly.


@dataclass(frozen=True, slots=True)
class ProcessedDraft:
    """A draft of the model, its request, and the record of its nodes."""

    inner: Draft
    request: Request
    recording: CallRecord | None = field(default=None, compare=False, repr=False)


_Grown: TypeAlias = Callable[[Draft], ProcessedDraft]
_Write: TypeAlias = Callable[[Draft, Sequence[Passage], int, Progress], Draft]


class ProcessedLM:
    """Continues a text with postprocessed nodes."""

    reads_hits = True

    def __init__(self, lm: "HuggingFaceLM", processing: Postprocessing) -> None:
        """Wrap a model with these postprocessors."""
        self.lm = lm
        self.processing = processing

    @property
    def reads_scores(self) -> bool:
        """Whether a postprocessor may read scores."""
        return self.processing.reads_scores

    def begin(self, request: Request) -> ProcessedDraft:
        """Return the draft of the tokenized prompt."""
        return ProcessedDraft(self.lm.begin(request), request)

    def write(
        self, draft: ProcessedDraft, hits: Hits, tokens: int, progress: Progress
    ) -> ProcessedDraft:
        """Continue a draft by at most this many tokens.

        Raises:
            ContextOverflowError: nodes, prompt and text exceed the context.
            Cancelled: `progress` was cancelled while writing.
            Exception: the error of a postprocessor.
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
            Exception: the error of a postprocessor.
        """
        shown, grown = self._shown(draft, hits)
        return grown(self.lm.write_sentence(draft.inner, shown, tokens, Reports(progress, grown)))

    async def awrite(
        self, draft: ProcessedDraft, hits: Hits, tokens: int, progress: Progress
    ) -> ProcessedDraft:
        """Continue a draft; postprocessors are awaited, and the model runs in a thread."""
        return await self._awritten(self.lm.write, draft, hits, tokens, progress)

    async def awrite_sentence(
        self, draft: ProcessedDraft, hits: Hits, tokens: int, progress: Progress
    ) -> ProcessedDraft:
        """Continue a draft to the end of its next sentence, as `awrite`."""
        return await self._awritten(self.lm.write_sentence, draft, hits, tokens, progress)

    def finished(self, draft: ProcessedDraft) -> bool:
        """Return whether the draft has ended."""
        return self.lm.finished(draft.inner)

    def tail(self, draft: ProcessedDraft, tokens: int) -> str:
        """Return the last tokens of prompt and text, as text."""
        return self.lm.tail(draft.inner, tokens)

    def text(self, draft: ProcessedDraft) -> str:
        """Return the text without the prompt."""
        return self.lm.text(draft.inner)

    def settled(self, draft: ProcessedDraft) -> str:
        """Return the part of `text` that no later token can change."""
        return self.lm.settled(draft.inner)

    def text_key(self, draft: ProcessedDraft) -> Hashable:
        """Return a key of prompt and tokens, and of whether the text has ended."""
        return self.lm.text_key(draft.inner)

    def write_key(self, draft: ProcessedDraft, hits: Hits, tokens: int) -> Hashable:
        """Return the draft and the nodes, with their scores if a postprocessor reads them."""
        return draft, valued(hits, scores=self.reads_scores), tokens

    def same_passages(self, one: Hits, other: Hits) -> bool:
        """Return whether the model reads the same nodes in both."""
        return self.processing.same(one, other)

    def release(self, draft: ProcessedDraft) -> None:
        """Release the caches of this draft's request."""
        self.lm.release(draft.inner)

    def _shown(self, draft: ProcessedDraft, hits: Hits) -> tuple[list[Passage], _Grown]:
        """Return the processed nodes, and the function that wraps the model's drafts."""
        call = request_call(draft.request)
        nodes = call.run(lambda: call.nodes(hits, self.processing))
        return _passages(nodes), _grown(draft, call)

    async def _awritten(
        self, write: _Write, draft: ProcessedDraft, hits: Hits, tokens: int, progress: Progress
    ) -> ProcessedDraft:
        call = request_call(draft.request)
        nodes = await call.arun(lambda: call.anodes(hits, self.processing))
        shown, grown = _passages(nodes), _grown(draft, call)
        reports = Reports(progress, grown)
        return await call.in_thread(
            lambda: grown(write(draft.inner, shown, tokens, reports)), progress
        )


def _passages(nodes: Sequence[NodeWithScore]) -> list[Passage]:
    return [passage_of(one.node) for one in nodes]


def _grown(draft: ProcessedDraft, call: RequestCall) -> _Grown:
    return partial(ProcessedDraft, request=draft.request, recording=call.record)


def direct_lm(
    llm: LLM,
    prompting: Prompting | None = None,
    postprocessors: Sequence[BaseNodePostprocessor] = (),
    *,
    cache_bytes: int | None = None,
    decoding: "DecodingSettings | None" = None,
) -> "HuggingFaceLM | ProcessedLM":
    """Return a token-level model over that of a `HuggingFaceLLM` or `SpeculativeLLM`.

    A `SpeculativeLLM` has its own drafter; for the other `decoding` enables speculative decoding.

    The prompt is the host's, with its system prompt, its wrappers and its chat template,
    split at the place of the nodes; tokens are chosen by the wrapper's own settings. The
    reference is the plain loop over this model. A loop over the host's wrapper tokenizes the
    text again at each step, possibly into other tokens, and draws other random numbers if it
    samples.

    Raises:
        ConfigError: it is neither, or it has unsupported settings; the message names them.
    """
    template = _template(Prompting() if prompting is None else prompting, llm)
    if isinstance(llm, SpeculativeLLM):
        made = _own_lm(llm, template, decoding)
    else:
        made = _wrapped_lm(llm, template, cache_bytes, decoding)
    return ProcessedLM(made, Postprocessing(postprocessors)) if postprocessors else made


def _own_lm(
    llm: SpeculativeLLM, template: PassageTemplate, decoding: "DecodingSettings | None"
) -> "HuggingFaceLM":
    if llm.output_parser is not None:
        raise ConfigError(f"direct=True does not support {_PARSER} of the SpeculativeLLM")
    options = direct_options(llm, {}, decoding, "the SpeculativeQueryEngine")
    return llm.loaded().driven_by_tokens(options, template, UNCUT)


def _wrapped_lm(
    llm: LLM,
    template: PassageTemplate,
    cache_bytes: int | None,
    decoding: "DecodingSettings | None",
) -> "HuggingFaceLM":
    if not hugging_face(llm):
        raise ConfigError(
            f"direct=True needs a HuggingFaceLLM or a SpeculativeLLM, got {type(llm).__name__}; "
            "without direct=True the host's own calls are used"
        )
    from ralmspec_plugins.lm.huggingface import HuggingFaceLM

    wrapper: Any = llm
    options: dict[str, Any] = {} if cache_bytes is None else {"cache_bytes": cache_bytes}
    return HuggingFaceLM(
        wrapper._model,  # noqa: SLF001 there is no public way
        wrapper._tokenizer,  # noqa: SLF001 as above
        sampling=sampling_of(wrapper),
        template=template,
        passage_tokens=UNCUT,
        decoding=decoding,
        **options,
    )


_PARSER: Final = "output_parser (a text that is written step by step cannot be parsed)"


def sampling_of(llm: Any) -> Greedy | Sampling:
    """Return how a `HuggingFaceLLM` chooses tokens.

    Raises:
        ConfigError: it has unsupported settings.
    """
    eos = llm._model.generation_config.eos_token_id  # noqa: SLF001 there is no public way
    ends = {*eos} if isinstance(eos, list | tuple) else {eos}
    unfit = []
    if not set(llm.stopping_ids) <= ends:
        unfit.append("stopping_ids (set them as eos_token_id of the model's generation_config)")
    if llm.output_parser is not None:
        unfit.append(_PARSER)
    return sampling(_settings(llm), eos, "the HuggingFaceLLM", unfit=unfit)


def _settings(llm: Any) -> Mapping[str, Any]:
    """Return the settings that `generate` combines: the model's own, and those of the call."""
    given = dict(llm.generate_kwargs)
    settings: dict[str, Any] = {}
    for config in (llm._model.generation_config, given.pop("generation_config", None)):  # noqa: SLF001
        if config is not None:
            settings.update(config.to_diff_dict())
    return {**settings, **given}


def _template(prompting: Prompting, llm: LLM) -> PassageTemplate:
    def context(passages: Sequence[Passage]) -> str:
        return prompting.context([NodeWithScore(node=node_of(passage)) for passage in passages])

    return split_template(
        lambda request, shown: prompting.shown(llm, request.prompt, shown),
        context,
        separator=prompting.separator,
        together=prompting.format_nodes is not None,
        variable="context_str",
    )
