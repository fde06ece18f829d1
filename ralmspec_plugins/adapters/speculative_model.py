"""A local model with a drafter that continues prompts: what both hosts' models are made of."""

import asyncio
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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

# Which drafter: by a name, an instance, several of them, or none.


DrafterName: TypeAlias = Literal["suffix", "passages"]
GivenDrafter: TypeAlias = "DrafterName | Drafter | Sequence[DrafterName | Drafter] | None"
_NAMED: Final[Mapping[str, type[Any]]] = {"suffix": SuffixDrafter, "passages": PassageDrafter}


def decoding_of(drafter: GivenDrafter, decoding: Decoding | None) -> Decoding | None:
    """Say how tokens are speculated on; `None` for one token a pass.

    Raises:
        ConfigError: an unknown name, what is no drafter, or both arguments.
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


class _Counts:
    """Adds up what calls take. Thread-safe."""

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

    def __init__(self, lm: HuggingFaceLM, counts: _Counts) -> None:
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
    """Stands where an engine has its retriever."""

    signature = "nothing to search"

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        raise AssertionError("a continuation asks for nothing")


_MOST_WRITERS: Final = 16  # ways of choosing tokens that are kept at a time


class SpeculativeModel:
    """Continues prompts on a local model, several tokens a pass: the text of one token a pass.

    All that a call needs is its own; any number of calls, in threads and on event loops, take
    turns on the model pass by pass.
    """

    def __init__(self, lm: HuggingFaceLM, loaded: LoadingOptions) -> None:
        """Continue prompts with a model.

        Args:
            lm: the model.
            loaded: how it was made.
        """
        self.lm = lm
        self.loaded = loaded
        self._counts = _Counts()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="ralmspec-model")
        self._writers: dict[Greedy | Sampling, _Writer] = {}
        self._lock = threading.Lock()
        self._known: dict[str, Any] | None = None

    def __repr__(self) -> str:
        """Be shown by the model's name."""
        return f"SpeculativeModel({self.name!r})"

    @property
    def name(self) -> str:
        """The name that the model was loaded by, or its kind for one that was made in memory."""
        config: Any = self.lm.model.config
        return str(config.name_or_path or config.model_type)

    @property
    def stats(self) -> DecodingStats:
        """What all calls took so far."""
        return self._counts.stats

    def known_by(self) -> dict[str, Any]:
        """Name all that a text depends on besides prompt and options, for hosts' caches.

        How tokens are drafted is not in it, since that changes no text.
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
            return self._known

    def tokens(self, text: str) -> list[int]:
        """Tokenise a text."""
        return list(self.lm.begin(Request(prompt=text)).prompt_tokens)

    def answers(self, prompts: Sequence[str], options: WritingOptions) -> list[Answer]:
        """Continue prompts, one after the other.

        Raises:
            InputError: there is nothing to continue.
            ContextOverflowError: prompt and text would exceed the model's context.
            DeadlineExceeded: the deadline passed.
        """
        engine = self._writer(options.sampling).sync
        return [engine.run(options.request(prompt)) for prompt in prompts]

    async def aanswers(self, prompts: Sequence[str], options: WritingOptions) -> list[Answer]:
        """Do the same without holding up the event loop."""
        engine = (await self._awriter(options.sampling)).asynchronous
        return [await engine.run(options.request(prompt)) for prompt in prompts]

    def stream(self, prompt: str, options: WritingOptions) -> AnswerStream:
        """Continue a prompt piece by piece; only text that stays is given out."""
        engine = self._writer(options.sampling).sync
        return engine.stream(options.request(prompt))

    async def astream(self, prompt: str, options: WritingOptions) -> AsyncAnswerStream:
        """Do the same without holding up the event loop."""
        engine = (await self._awriter(options.sampling)).asynchronous
        return engine.stream(options.request(prompt))

    def driven_by_tokens(
        self, options: WritingOptions, template: PassageTemplate, passage_tokens: int
    ) -> HuggingFaceLM:
        """Give the model for a speculative retrieval that drives it directly, drafter included."""
        lm = self._writer(options.sampling).lm
        return lm.variant(template=template, passage_tokens=passage_tokens)

    def _writer(self, sampling: Greedy | Sampling) -> "_Writer":
        """Give what writes with a way of choosing tokens; a new one is measured first."""
        if (known := self._writers.get(sampling)) is not None:
            return known
        with self._lock:
            if sampling not in self._writers:
                made = _Writer(self.lm.variant(sampling=sampling), self._counts, self._threads)
                if len(self._writers) >= _MOST_WRITERS:
                    del self._writers[next(iter(self._writers))]
                self._writers[sampling] = made
            return self._writers[sampling]

    async def _awriter(self, sampling: Greedy | Sampling) -> "_Writer":
        known = self._writers.get(sampling)
        if known is None:  # what is measured first may take a second
            known = await asyncio.to_thread(self._writer, sampling)
        return known


class _Writer:
    """The model with one way of choosing tokens, and the engines that drive it."""

    def __init__(self, lm: HuggingFaceLM, counts: _Counts, threads: ThreadPoolExecutor) -> None:
        self.lm = lm
        parts: Any = (_Continuation(lm, counts), _NothingToSearch(), Settings(speculate=False))
        self.sync = Engine(*parts, threads=threads)
        self.asynchronous = AsyncEngine(*parts, threads=threads)


def speculative_model(
    model: Any,
    loading: LoadingOptions,
    sampling: Greedy | Sampling,
) -> SpeculativeModel:
    """Make a model of a folder, a name, or what was loaded already; no remote code is run.

    Args:
        model: a saved model's folder or name, a causal model (with `tokenizer`), a
            `HuggingFaceLM` (whose decoding it keeps), or one that was made here before.
        loading: the tokenizer, and how tokens are drafted.
        sampling: how tokens are chosen at first: what that needs is measured now.

    Raises:
        ModelError: what is there is no causal model.
        ConfigError: the arguments do not fit each other.
    """
    if isinstance(model, SpeculativeModel):
        if model.loaded == loading:
            return model
        tokenizer = loading.tokenizer or model.lm.tokenizer
        return _driven(model.lm.model, tokenizer, loading, sampling)
    if isinstance(model, HuggingFaceLM):
        if (loading.tokenizer, loading.drafter, loading.decoding) != (None, "suffix", None):
            raise ConfigError(
                "a HuggingFaceLM has its tokenizer and its drafter: give none beside it"
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
        raise ConfigError(
            "a model that is loaded already needs its tokenizer beside it: tokenizer=..."
        )
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
    """Show the prompt as it is."""
    return "", request.prompt


# Messages as one text, by a chat template.


def has_chat_template(model: SpeculativeModel, template: str | None) -> bool:
    """Say whether messages can be shown to a model."""
    return bool(template or model.lm.tokenizer.chat_template)


def check_chat_template(model: SpeculativeModel, template: str | None, remedy: str) -> None:
    """Refuse a model that messages cannot be shown to.

    Raises:
        ModelError: its tokenizer has no chat template, and none was given.
    """
    if not has_chat_template(model, template):
        raise ModelError(
            f"The tokenizer of {model.name!r} has no chat template, so it is not known how "
            f"messages are shown to the model. {remedy}"
        )


def chat_prompt(
    model: SpeculativeModel, template: str | None, messages: Sequence[Mapping[str, str]]
) -> str:
    """Show messages as one text, by the chat template; a last one of the assistant is continued.

    Args:
        model: whose tokenizer has a template.
        template: one that takes its place.
        messages: each with "role" and "content".

    Raises:
        InputError: the template refuses the messages.
    """
    continues = bool(messages) and messages[-1]["role"] == "assistant"
    shown = [dict(one) for one in (messages[:-1] if continues else messages)]
    try:
        text = model.lm.tokenizer.apply_chat_template(
            shown, chat_template=template, add_generation_prompt=True, tokenize=False
        )
    except Exception as problem:  # a template raises what it likes
        roles = [one["role"] for one in shown]
        raise InputError(
            f"the chat template of {model.name!r} does not take messages of {roles}: {problem}"
        ) from problem
    return str(text) + (messages[-1]["content"] if continues else "")
