"""A local Hugging Face causal model as a `LanguageModel`: tokens and key-value cache."""

import copy
import itertools
import math
import os
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ralmspec_plugins.errors import (
    Cancelled,
    ConfigError,
    ContextOverflowError,
    InputError,
    MissingExtraError,
    ModelError,
)

try:
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoTokenizer,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )
except ImportError as missing:
    raise MissingExtraError("hf", "transformers with torch") from missing

from ralmspec_plugins.lm import text as lm_text
from ralmspec_plugins.lm.decoder import (
    Decoder,
    DecodingSettings,
    HostedModel,
    PlainDecoder,
    SegmentDecoder,
    SegmentText,
)
from ralmspec_plugins.lm.kv_cache import CacheStore, ModelRunner, PrefillSchedule, Prefix, Run
from ralmspec_plugins.lm.prompts import PassageTemplate, check_text, decode, encode, framed_tokens
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.lm.state import Draft, DraftOrigin
from ralmspec_plugins.lm.text import sentence_end
from ralmspec_plugins.lm.token_sampler import TokenSampler, logprob_of
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.retrieval.device_memory import within_memory
from ralmspec_plugins.retrieval.devices import usable_device
from ralmspec_plugins.retrieval.optional import loading, local_files_only
from ralmspec_plugins.types import Passage, Request, TokenLogprob

# Loads a local or hub model, with clear errors.


def load(
    path: str | os.PathLike[str], dtype: str | torch.dtype, device: str | torch.device | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal model and its tokenizer from a directory or the hub; no remote code is run.

    Raises:
        ConfigError: there is no such device.
        ModelError: there is no such directory, it holds no model, or not a causal one.
        DeviceMemoryError: the device has too little memory for it.
    """
    if device is not None:
        usable_device(torch, device)
    name = os.fspath(path)
    _check_directory(name)
    safe = {"trust_remote_code": False, "local_files_only": local_files_only(name)}
    with loading(f"{name!r} cannot be loaded as a causal model"):
        config = AutoConfig.from_pretrained(name, **safe)
        tokenizer = AutoTokenizer.from_pretrained(name, **safe)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name, config=config, dtype=dtype, output_loading_info=True, **safe
        )
    model, report = loaded
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ModelError(
            f"{name!r} has no weights for {len(missing)} parts of a causal model "
            f"({missing[0]}, ...): it was saved from another kind of model. "
            "Give a causal language model."
        )
    if config.is_encoder_decoder:
        raise ModelError(f"{name!r} is an encoder-decoder model; a causal one is needed.")
    if device is not None:
        model = within_memory(
            lambda: model.to(device),
            f"{device} has no memory left for the weights of {name!r}; load it in 16 bit "
            "(dtype='bfloat16'), or on another device",
        )
    return model, tokenizer


def load_tokenizer(path: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a saved model, or of one from the hub, without its weights.

    Raises:
        ModelError: there is no such directory, or no tokenizer in it.
    """
    name = os.fspath(path)
    _check_directory(name)
    safe = {"trust_remote_code": False, "local_files_only": local_files_only(name)}
    with loading(f"{name!r} has no tokenizer that can be loaded"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, **safe)
    return tokenizer


def _check_directory(name: str) -> None:
    path = Path(name).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelError(
            f"{name!r} holds no model: there is no config.json in it. "
            "Give the directory that save_pretrained() wrote."
        )


# Properties of a model's configuration: end tokens, vocabulary, context.


def eos_tokens(model: PreTrainedModel) -> frozenset[int]:
    """Return the tokens that end a text.

    As in `generate`, the model's setting decides, not the tokenizer's.
    """
    eos: Any = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if eos is None:
        return frozenset()
    return frozenset(eos if isinstance(eos, list | tuple) else [eos])


def context_length(model: PreTrainedModel) -> int | None:
    """Return the model's maximum number of tokens, if it has such a limit."""
    config = model.config.get_text_config(decoder=True)
    length: int | None = getattr(config, "max_position_embeddings", None)
    return length


def vocabulary_size(model: PreTrainedModel) -> int:
    """Return the number of tokens in the model's distribution."""
    return int(model.config.get_text_config(decoder=True).vocab_size)


_GIB = 2**30
_ROUNDING = 1e-9  # of a log-probability in float64, and of comparisons


class HuggingFaceLM:
    """Continues a text with passages before it, with one model, bit for bit reproducibly.

    The next tokens of a draft depend only on the draft, not on earlier or dropped
    passes (see module `kv_cache`). One instance
    serves any number of requests in any number of threads, which alternate
    by token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        sampling: Greedy | Sampling | None = None,
        template: PassageTemplate | None = None,
        cache_bytes: int = 2 * _GIB,  # about 8 caches of 512 tokens of a 7B model in 16 bit
        passage_tokens: int = 256,  # as in the paper: passages are cut to 256 tokens
        decoding: DecodingSettings | None = None,
    ) -> None:
        """Wrap a loaded model, and set its evaluation mode.

        Args:
            model: A causal model, on any device and in any precision.
            tokenizer: The model's tokenizer.
            sampling: How tokens are chosen; greedily by default.
            template: The text around passages and prompt.
            cache_bytes: The maximum memory for caches that are not in use.
            passage_tokens: The maximum number of tokens of each passage.
            decoding: Token-level speculation (`ralmspec_plugins.decoding.Decoding`); without it
                one token per pass. The model is measured here as it requires.

        Raises:
            ConfigError: a number is out of range.
        """
        self.model = model.train(False)
        self.tokenizer = tokenizer
        self._set(template if template is not None else PassageTemplate(), passage_tokens)
        self._chooser = TokenSampler(sampling if sampling is not None else Greedy())
        self._passes = ModelRunner(model, cache_bytes)
        self._eos = eos_tokens(model)
        self._context = context_length(model)
        self._owners = itertools.count()
        self._thresholds: tuple[float, ...] | None = None  # logarithms; None: drafts have no scores
        self._tokenizer_lock = threading.Lock()  # encoding may change the tokenizer's settings
        self.decoder: Decoder = (
            PlainDecoder(self._passes)
            if decoding is None
            else decoding.decoder(
                HostedModel(
                    runner=self._passes,
                    sampling=self._chooser.settings,
                    vocabulary=vocabulary_size(model),
                    context=self._context,
                    encode=lambda passage: self._passage_ids(passage.title, passage.text),
                    tokenizer=tokenizer,
                )
            )
        )
        self._passes = self.decoder.runner

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        sampling: Greedy | Sampling | None = None,
        template: PassageTemplate | None = None,
        cache_bytes: int = 2 * _GIB,
        passage_tokens: int = 256,
        decoding: DecodingSettings | None = None,
    ) -> "HuggingFaceLM":
        """Load a saved model, or one from the hub; remote code is never run.

        Raises:
            ConfigError: there is no such device, or a number is out of range.
            ModelError: it is not a causal model.
            DeviceMemoryError: the device has too little memory for it.
        """
        model, tokenizer = load(path, dtype, device)
        return cls(
            model,
            tokenizer,
            sampling=sampling,
            template=template,
            cache_bytes=cache_bytes,
            passage_tokens=passage_tokens,
            decoding=decoding,
        )

    def variant(
        self,
        *,
        sampling: Greedy | Sampling | None = None,
        template: PassageTemplate | None = None,
        passage_tokens: int | None = None,
    ) -> "HuggingFaceLM":
        """Return the same model with other settings; those that are not given stay.

        Both take turns on the model, share its caches, and draft with the same drafters.
        What speculation needs to know of another `sampling` is measured here.
        """
        made = copy.copy(self)
        made._set(template or self.template, passage_tokens or self.passage_tokens)  # noqa: SLF001 one of this class
        if sampling is not None and sampling != self.sampling:
            made._chooser = TokenSampler(sampling)  # noqa: SLF001 as above
            made.decoder = self.decoder.for_sampling(sampling)
        return made

    @property
    def sampling(self) -> Greedy | Sampling:
        """How tokens are chosen."""
        return self._chooser.settings

    @property
    def context(self) -> int | None:
        """The most tokens that the model can look at, if there is a limit."""
        return self._context

    @property
    def caches(self) -> CacheStore:
        """The key-value caches kept between segments."""
        return self._passes.store

    def scored(self, thresholds: Sequence[float] = ()) -> "HuggingFaceLM":
        """Return this model, on the same caches, with log-probabilities in its drafts.

        With `decoding`, a log-probability differs from that of one token a pass by at most twice
        the measured bound, and its comparison with a threshold does not differ.

        Args:
            thresholds: probabilities that those of tokens are compared with.
        """
        twin = copy.copy(self)
        twin._thresholds = tuple(math.log(one) for one in thresholds)  # noqa: SLF001 of this class
        return twin

    def logprobs(self, draft: Draft) -> tuple[TokenLogprob, ...]:
        """Return the tokens of a draft that a scored model wrote, with their log-probabilities.

        Raises:
            InputError: some of the draft was written without.
        """
        return draft.logprobs

    def begin(self, request: Request) -> Draft:
        """Tokenise the prompt.

        Raises:
            InputError: the prompt has an incomplete character (a lone surrogate).
        """
        with self._tokenizer_lock:
            head, prompt = framed_tokens(self.template, self.tokenizer, request)
        origin = DraftOrigin(
            owner=next(self._owners),
            head_tokens=head,
            prompt_tokens=prompt,
            max_tokens=request.max_tokens,
            seed=request.seed,
            stop=request.stop,
        )
        return Draft(origin, lm_text.begin(prompt))

    def write(
        self, draft: Draft, passages: Sequence[Passage], tokens: int, progress: Progress
    ) -> Draft:
        """Continue a draft by at most this many tokens, with these passages before it.

        Each token is reported as soon as it is chosen.

        Raises:
            ContextOverflowError: passages, prompt and text exceed the model's context.
            InputError: there is no token to continue: no prompt, no passage, no BOS token.
            Cancelled: `progress` was cancelled during generation.
            DeviceMemoryError: the model's device has too little memory; the draft can be
                continued again.
        """
        return self._write(draft, passages, tokens, progress, _never)

    def write_sentence(
        self, draft: Draft, passages: Sequence[Passage], tokens: int, progress: Progress
    ) -> Draft:
        """Continue a draft up to the token that shows its next sentence to be complete.

        That token is the first one after the sentence, and stays in the draft.

        Raises:
            ContextOverflowError: passages, prompt and text exceed the model's context.
            InputError: there is no token to continue: no prompt, no passage, no BOS token.
            Cancelled: `progress` was cancelled during generation.
        """
        start = len(draft.transcript.text)

        def complete(grown: Draft) -> bool:
            return sentence_end(grown.transcript.text, start) is not None

        return self._write(draft, passages, tokens, progress, complete)

    def write_one_sentence(
        self, draft: Draft, passages: Sequence[Passage], tokens: int, progress: Progress
    ) -> Draft:
        """Continue a draft by its next sentence, without the token behind it.

        A token that holds the end of the sentence and more stays whole.

        Raises:
            ContextOverflowError: passages, prompt and text exceed the context.
            InputError: there is nothing to continue: no prompt, no passage, no BOS token.
            Cancelled: `progress` was cancelled while writing.
        """
        start, sentence = len(draft.transcript.text), draft

        def complete(grown: Draft) -> bool:
            nonlocal sentence
            end = sentence_end(grown.transcript.text, start)
            if end is None or len(sentence.transcript.text) < end:
                sentence = grown
            return end is not None

        self._write(draft, passages, tokens, progress, complete)
        return sentence

    def resume(self, draft: Draft, request: Request, text: str) -> Draft:
        """Begin behind a text that stands already, in the request of `draft`.

        The text is tokenised by itself, and no special token is read in it.

        Raises:
            InputError: prompt or text holds half a character, which no tokenizer takes.
        """
        check_text(text)
        begun = self.begin(request)
        with self._tokenizer_lock:
            tokens = begun.prompt_tokens + encode(self.tokenizer, text, literal=True)
        origin = replace(begun.origin, owner=draft.origin.owner, prompt_tokens=tokens)
        return Draft(origin, lm_text.begin(tokens))

    def stop_of(self, draft: Draft) -> str:
        """Return the stop string that ended a draft, or "" if none has."""
        return draft.stopped_by

    def finished(self, draft: Draft) -> bool:
        """Return whether the draft has ended: by an end token, a stop string, or its length."""
        return draft.finished

    def tail(self, draft: Draft, tokens: int) -> str:
        """Return the last tokens of prompt and text, as text without broken characters."""
        text = self._decode((draft.prompt_tokens + draft.tokens)[-tokens:])
        return text.strip(lm_text.INCOMPLETE)

    def text(self, draft: Draft) -> str:
        """Return the generated text, without the prompt, cut before a stop string."""
        return draft.text

    def settled(self, draft: Draft) -> str:
        """Return the part of `text` that no later token can change."""
        return draft.settled

    def text_key(self, draft: Draft) -> Hashable:
        """Return a key of prompt and tokens, and of whether they end."""
        return draft.prompt_tokens, draft.tokens, draft.finished

    def write_key(self, draft: Draft, passages: Sequence[Passage], tokens: int) -> Hashable:
        """Return a key of all that `write` depends on, to the last bit (token, with `decoding`).

        With other passages than the draft's, its cache is not relevant. The division of
        drafts into passes is not part of it: it changes no token.
        """
        count = draft.allowed(tokens)
        try:
            placed = draft.placed(self.template.arranged(passages))
        except Exception:  # noqa: BLE001 raised again by `write`
            return object()
        return placed.origin, placed.tokens, placed.passages, placed.prefilled_at, count

    def release(self, draft: Draft) -> None:
        """Free the caches of this draft's request, except the shared ones of passages."""
        self._passes.store.release(draft.origin.owner)
        self.decoder.release(draft.origin.owner)

    def _set(self, template: PassageTemplate, passage_tokens: int) -> None:
        """Return how passages become tokens."""
        if passage_tokens < 1:
            raise ConfigError(f"passage_tokens must be at least 1, got {passage_tokens}")
        self.template = template
        self.passage_tokens = passage_tokens
        self._passage_ids = lru_cache(maxsize=4096)(self._encode_passage)

    def _write(
        self,
        draft: Draft,
        passages: Sequence[Passage],
        tokens: int,
        progress: Progress,
        complete: Callable[[Draft], bool],
    ) -> Draft:
        if draft.finished:
            return draft
        draft = draft.placed(self.template.arranged(passages))
        lineage = self._lineage(draft)
        goal = len(draft.tokens) + draft.allowed(tokens)
        self._check_context(lineage, goal)
        progress.check()
        run = self._passes.open(lineage, draft.tokens)
        segment = self._segment(draft, lineage, run)
        before = len(draft.tokens)
        try:
            while not draft.finished and len(draft.tokens) < goal:
                logits = segment.logits(draft.tokens, goal, progress)
                progress.check()
                if not segment.is_certain(draft.tokens, logits):
                    logits = segment.retake(draft.tokens, progress)
                token = self._next_token(draft, lineage, logits)
                logprob = self._logprob(token, logits, segment, draft, progress)
                draft = draft.grown(token, self._eos, self._decode, logprob)
                progress.report(draft)
                if complete(draft):
                    break
        except Cancelled:
            self._keep(lineage, run, segment, progress, len(draft.tokens) - before)
            raise
        self._keep(lineage, run, segment, progress, len(draft.tokens) - before)
        return draft

    def _logprob(
        self,
        token: int,
        logits: torch.Tensor,
        segment: SegmentDecoder,
        draft: Draft,
        progress: Progress,
    ) -> float | None:
        """Return a token's log-probability, which stands on the schedule's side of thresholds."""
        if self._thresholds is None:
            return None
        logprob, error = logprob_of(logits, token), segment.logprob_error()
        if error and any(abs(logprob - one) <= error + _ROUNDING for one in self._thresholds):
            logprob = logprob_of(segment.retake(draft.tokens, progress), token)
        return logprob

    def _segment(self, draft: Draft, lineage: PrefillSchedule, run: Run) -> SegmentDecoder:
        passages = draft.passages or ()
        text = SegmentText(
            request=draft.origin.owner,
            seed=draft.origin.seed,
            passages=tuple(self._passage_ids(one.title, one.text) for one in passages),
            front=lineage.prefix.tokens + lineage.prompt,
        )
        return self.decoder.segment(run, text)

    def _keep(
        self,
        lineage: PrefillSchedule,
        run: Run,
        segment: SegmentDecoder,
        progress: Progress,
        tokens: int,
    ) -> None:
        """Store a run whose last pass was completed, and add to the statistics."""
        segment.close()
        self._passes.close(lineage, run)
        progress.count(
            model_passes=run.passes,
            tokens=tokens,
            drafts_accepted=segment.drafts_accepted,
            decisions_retaken=segment.decisions_retaken,
        )

    def _lineage(self, draft: Draft) -> PrefillSchedule:
        passages = draft.passages or ()
        parts = [self._passage_ids(passage.title, passage.text) for passage in passages]
        prefix = draft.origin.head_tokens + tuple(itertools.chain.from_iterable(parts))
        prefilled = draft.tokens[: draft.prefilled_at]
        return PrefillSchedule(draft.origin.owner, Prefix(prefix), draft.prompt_tokens, prefilled)

    def _check_context(self, lineage: PrefillSchedule, goal: int) -> None:
        prefix, prompt = len(lineage.prefix.tokens), len(lineage.prompt)
        if not prefix + prompt:
            raise InputError("There is nothing to continue: the prompt is empty.")
        if self._context is not None and prefix + prompt + goal > self._context:
            raise ContextOverflowError(
                f"{prefix} passage tokens + {prompt} prompt tokens + {goal} text tokens = "
                f"{prefix + prompt + goal}, but the model's context is {self._context}. "
                "Use fewer or shorter passages (k, passage_tokens), shorter files of a long "
                "context, or a smaller max_tokens."
            )

    def _next_token(self, draft: Draft, lineage: PrefillSchedule, logits: torch.Tensor) -> int:
        history: Sequence[int] = ()
        if self._chooser.needs_history:
            history = lineage.prefix.tokens + lineage.prompt + draft.tokens
        return self._chooser.choose(logits, history, draft.origin.seed, len(draft.tokens))

    def _decode(self, tokens: Sequence[int]) -> str:
        return decode(self.tokenizer, tokens)

    def _encode_passage(self, title: str, text: str) -> tuple[int, ...]:
        shown = self.template.show(Passage("", text, title))
        with self._tokenizer_lock:
            return encode(self.tokenizer, shown, literal=True)[: self.passage_tokens]


def _never(draft: Draft) -> bool:  # noqa: ARG001 as `complete` is called
    return False
