"""A local model with a drafter that continues prompts, shared by both hosts' models."""

import asyncio
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final, Literal, TypeAlias, get_args

from ralmspec_plugins.adapters.fingerprint import qualified_name
from ralmspec_plugins.adapters.writing_options import (
    DecodingStats,
    LoadingOptions,
    WritingOptions,
)
from ralmspec_plugins.config import Settings
from ralmspec_plugins.decoding import Decoding, PassageDrafter, SuffixDrafter
from ralmspec_plugins.decoding.drafters import Drafter
from ralmspec_plugins.engine.aio import AsyncEngine
from ralmspec_plugins.engine.base import THREADS
from ralmspec_plugins.engine.streams import AnswerStream, AsyncAnswerStream
from ralmspec_plugins.engine.threads import Engine
from ralmspec_plugins.errors import ConfigError, InputError, ModelError
from ralmspec_plugins.lm.huggingface import HuggingFaceLM, load
from ralmspec_plugins.lm.prompts import PassageTemplate
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.lm.state import Draft
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import NO_RETRIEVAL, Answer, Hits, Query, Request
from ralmspec_plugins.workloads.one_shot import OneShot, OneShotState

# A drafter by name, an instance, several of them, or none.


DrafterName: TypeAlias = Literal["suffix", "passages"]
GivenDrafter: TypeAlias = "DrafterName | Drafter | Sequence[DrafterName | Drafter] | None"
_NAMED: Final[Mapping[str, type[Any]]] = {"suffix": SuffixDrafter, "passages": PassageDrafter}


def decoding_of(drafter: GivenDrafter, decoding: Decoding | None) -> Decoding | None:
    """Return the settings of token-level speculation; `None` for one token per pass.

    Raises:
        ConfigError: the name is unknown, it is not a drafter, or both arguments are given.
    """
    if decoding is not None:
        if not isinstance(decoding, Decoding):
            raise ConfigError(f"decoding must be a Decoding or None, got {decoding!r:.80}")
        if drafter != "suffix":
            raise ConfigError(
                "drafter and decoding were both given; put the drafter into the Decoding"
            )
        return decoding
    if drafter is None:
        return None
    several = drafter if isinstance(drafter, list | tuple) else [drafter]
    return Decoding(drafter=[_drafter(one) for one in several])


def _drafter(given: Any) -> Drafter:
    if isinstance(given, str) and given in _NAMED:
        made: Drafter = _NAMED[given]()
        return made
    if not hasattr(given, "propose") or not hasattr(given, "update"):
        raise ConfigError(
            f"drafter must be one of {get_args(DrafterName)}, a Drafter, several of them, or None "
            f"for plain decoding, got {given!r:.80}"
        )
    drafter: Drafter = given
    return drafter


# The model itself.


class _CallCounts:
    """Sums the statistics of calls. Thread-safe."""

    def __init__(self) -> None:
        self.stats = DecodingStats()
        self._lock = threading.Lock()

    def add(self, progress: Progress) -> None:
        with self._lock:
            before = self.stats
            self.stats = DecodingStats(
                before.calls + 1,
                before.model_passes + progress.model_passes,
                before.tokens_written + progress.tokens,
                before.drafts_accepted + progress.drafts_accepted,
                before.decisions_retaken + progress.decisions_retaken,
            )


class _Continuation(OneShot[Draft]):
    """Continues a prompt: no passages, one segment."""

    def __init__(self, lm: HuggingFaceLM, counts: _CallCounts) -> None:
        super().__init__(lm, query=lambda _: NO_RETRIEVAL)
        self._counts = counts

    def extend(
        self, state: OneShotState[Draft], hits: Hits, progress: Progress
    ) -> OneShotState[Draft]:
        try:
            return super().extend(state, hits, progress)
        finally:
            self._counts.add(progress)


class _NothingToSearch:
    """A retriever for an engine without searches."""

    signature = "nothing to search"

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        raise AssertionError("a continuation needs no search")


_MOST_WRITERS: Final = 16  # cached models by sampling settings


class SpeculativeModel:
    """Continues prompts with a local model, several tokens per pass, with equal text.

    Calls share no state; any number of calls, in threads and on event loops, alternate
    on the model by pass.
    """

    def __init__(self, lm: HuggingFaceLM, loaded: LoadingOptions) -> None:
        """Wrap a model.

        Args:
            lm: the model.
            loaded: its loading options.
        """
        self.lm = lm
        self.loaded = loaded
        self._counts = _CallCounts()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="ralmspec-model")
        self._writers: dict[Greedy | Sampling, _PromptWriter] = {}
        self._lock = threading.Lock()
        self._known: dict[str, Any] | None = None

    def __repr__(self) -> str:
        """Return the class and the model's name."""
        return f"SpeculativeModel({self.name!r})"

    @property
    def name(self) -> str:
        """The name from which the model was loaded, or else its class."""
        config: Any = self.lm.model.config
        return str(config.name_or_path or config.model_type)

    @property
    def stats(self) -> DecodingStats:
        """The statistics of all calls so far."""
        return self._counts.stats

    def known_by(self) -> dict[str, Any]:
        """Return all that a text depends on besides prompt and options, for hosts' caches.

        The drafter is excluded, since it changes no text; a knowledge transfer is included.
        """
        from ralmspec_plugins.lm.fingerprint import model_fingerprint, tokenizer_fingerprint

        with self._lock:
            if self._known is None:
                network = self.lm.model
                self._known = {
                    "model_name": self.name,
                    "model": model_fingerprint(network),
                    "tokenizer": tokenizer_fingerprint(self.lm.tokenizer),
                    "precision": str(network.dtype).removeprefix("torch."),
                }
                transfer: Any = getattr(self.lm.decoder, "transfer", None)
                if transfer is not None and transfer.eta:
                    self._known["transfer"] = transfer.known_by()
            return self._known

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        return list(self.lm.begin(Request(prompt=text)).prompt_tokens)

    def answers(self, prompts: Sequence[str], options: WritingOptions) -> list[Answer]:
        """Return the continuations of prompts, in order.

        Raises:
            InputError: a prompt is empty.
            ContextOverflowError: prompt and text would exceed the model's context.
            DeadlineExceeded: the deadline passed.
        """
        engine = self._writer(options.sampling).sync
        return [engine.run(options.request(prompt)) for prompt in prompts]

    async def aanswers(self, prompts: Sequence[str], options: WritingOptions) -> list[Answer]:
        """Return the continuations of prompts without blocking the event loop."""
        engine = (await self._awriter(options.sampling)).asynchronous
        return [await engine.run(options.request(prompt)) for prompt in prompts]

    def stream(self, prompt: str, options: WritingOptions) -> AnswerStream:
        """Return a continuation as a stream; only settled text is emitted."""
        engine = self._writer(options.sampling).sync
        return engine.stream(options.request(prompt))

    async def astream(self, prompt: str, options: WritingOptions) -> AsyncAnswerStream:
        """Return a continuation as a stream, without blocking the event loop."""
        engine = (await self._awriter(options.sampling)).asynchronous
        return engine.stream(options.request(prompt))

    def driven_by_tokens(
        self, options: WritingOptions, template: PassageTemplate, passage_tokens: int
    ) -> HuggingFaceLM:
        """Return the model, with its drafter, for speculative retrieval with `direct=True`."""
        lm = self._writer(options.sampling).lm
        return lm.variant(template=template, passage_tokens=passage_tokens)

    def _writer(self, sampling: Greedy | Sampling) -> "_PromptWriter":
        """Return the model with these sampling settings; new ones are measured first."""
        if (known := self._writers.get(sampling)) is not None:
            return known
        with self._lock:
            if sampling not in self._writers:
                made = _PromptWriter(
                    self.lm.variant(sampling=sampling), self._counts, self._threads
                )
                if len(self._writers) >= _MOST_WRITERS:
                    del self._writers[next(iter(self._writers))]
                self._writers[sampling] = made
            return self._writers[sampling]

    async def _awriter(self, sampling: Greedy | Sampling) -> "_PromptWriter":
        known = self._writers.get(sampling)
        if known is None:  # the measurement may take a second
            known = await asyncio.to_thread(self._writer, sampling)
        return known


class _PromptWriter:
    """The model with one sampling setting, and its engines."""

    def __init__(self, lm: HuggingFaceLM, counts: _CallCounts, threads: ThreadPoolExecutor) -> None:
        self.lm = lm
        parts: Any = (_Continuation(lm, counts), _NothingToSearch(), Settings(speculate=False))
        self.sync = Engine(*parts, threads=threads)
        self.asynchronous = AsyncEngine(*parts, threads=threads)


def speculative_model(
    model: Any,
    loading: LoadingOptions,
    sampling: Greedy | Sampling,
) -> SpeculativeModel:
    """Return a model from a folder, a name, or a loaded model; remote code is never run.

    Args:
        model: a saved model's folder or name, a causal model (with `tokenizer`), a
            `HuggingFaceLM` (whose decoding it keeps), or a `SpeculativeModel`.
        loading: the tokenizer and the drafter.
        sampling: the first sampling settings, for which the model is measured here.

    Raises:
        ModelError: it is not a causal model.
        ConfigError: the arguments are incompatible.
    """
    if isinstance(model, SpeculativeModel):
        if loading.tokenizer is None:
            loading = replace(loading, tokenizer=model.loaded.tokenizer)
        if model.loaded == loading:
            return model
        tokenizer = loading.tokenizer or model.lm.tokenizer
        return _driven(model.lm.model, tokenizer, loading, sampling)
    if isinstance(model, HuggingFaceLM):
        if (loading.tokenizer, loading.drafter, loading.decoding) != (None, "suffix", None):
            raise ConfigError(
                "a HuggingFaceLM has its tokenizer and its drafter: give no other ones"
            )
        template = PassageTemplate(frame=_bare)
        return SpeculativeModel(model.variant(template=template), loading)
    if isinstance(model, str | os.PathLike):
        loaded, tokenizer = load(model, loading.dtype, loading.device)
        return _driven(loaded, loading.tokenizer or tokenizer, loading, sampling)
    if not hasattr(model, "get_input_embeddings"):
        raise ConfigError(
            "model must be the folder or name of a saved model, a transformers model, or a "
            f"HuggingFaceLM, got {qualified_name(type(model))}"
        )
    if loading.tokenizer is None:
        raise ConfigError("a loaded model needs its tokenizer, too: tokenizer=...")
    return _driven(model, loading.tokenizer, loading, sampling)


def _driven(
    network: Any,
    tokenizer: Any,
    loading: LoadingOptions,
    sampling: Greedy | Sampling,
) -> SpeculativeModel:
    lm = HuggingFaceLM(
        network,
        tokenizer,
        sampling=sampling,
        template=PassageTemplate(frame=_bare),
        cache_bytes=loading.cache_bytes,
        decoding=decoding_of(loading.drafter, loading.decoding),
    )
    return SpeculativeModel(lm, loading)


def _bare(request: Request) -> tuple[str, str]:
    """Return the unchanged prompt."""
    return "", request.prompt


# Messages as one text, by a chat template.


def has_chat_template(model: SpeculativeModel, template: str | None) -> bool:
    """Return whether there is a chat template for messages."""
    return bool(template or model.lm.tokenizer.chat_template)


def check_chat_template(model: SpeculativeModel, template: str | None, remedy: str) -> None:
    """Check that there is a chat template for messages.

    Raises:
        ModelError: its tokenizer has no chat template, and none was given.
    """
    if not has_chat_template(model, template):
        raise ModelError(
            f"The tokenizer of {model.name!r} has no chat template, so messages "
            f"cannot be converted to a prompt. {remedy}"
        )


def chat_prompt(
    model: SpeculativeModel, template: str | None, messages: Sequence[Mapping[str, str]]
) -> str:
    """Return messages as one text, by the chat template; a final assistant message is continued.

    Args:
        model: the model, whose tokenizer has a template.
        template: replaces the tokenizer's.
        messages: each with "role" and "content".

    Raises:
        InputError: the template rejects the messages.
    """
    continues = bool(messages) and messages[-1]["role"] == "assistant"
    shown = [dict(one) for one in (messages[:-1] if continues else messages)]
    try:
        text = model.lm.tokenizer.apply_chat_template(
            shown, chat_template=template, add_generation_prompt=True, tokenize=False
        )
    except Exception as problem:  # a template may raise any error
        roles = [one["role"] for one in shown]
        raise InputError(
            f"the chat template of {model.name!r} does not take messages of {roles}: {problem}"
        ) from problem
    return str(text) + (messages[-1]["content"] if continues else "")
