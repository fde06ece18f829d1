"""A Hugging Face causal model for KNN-LM: one token per pass, with its hidden state."""

import itertools
import threading
from collections.abc import Sequence

from ralmspec_plugins.errors import (
    Cancelled,
    ConfigError,
    ContextOverflowError,
    InputError,
    MissingExtraError,
)

try:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
except ImportError as missing:
    raise MissingExtraError("hf", "transformers with torch") from missing

from ralmspec_plugins.knn.datastore import KeyKind
from ralmspec_plugins.knn.hidden_states import KeyHook
from ralmspec_plugins.knn.interpolation import Floats
from ralmspec_plugins.knn.state import KNNDraft, Reading
from ralmspec_plugins.lm import text as lm_text
from ralmspec_plugins.lm.huggingface import context_length, eos_tokens
from ralmspec_plugins.lm.kv_cache import CacheStore, Last, ModelRunner, PrefillSchedule, Prefix
from ralmspec_plugins.lm.prompts import PassageTemplate, check_text, decode, encode, framed_tokens
from ralmspec_plugins.lm.sampling import Greedy, Sampling
from ralmspec_plugins.lm.state import Draft, DraftOrigin
from ralmspec_plugins.lm.token_sampler import TokenSampler
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Request

_GIB = 2**30
_ROWS = 64  # rows of a window's logits that are processed at a time, in float64


class KNNModel:
    """A causal model that returns a hidden state with each next-token distribution.

    The compute schedule is that of `lm.kv_cache`: the prompt in one pass, each later
    token in a separate one. So the distribution of a state depends only on its tokens, and
    is bit-equal whatever was generated, dropped or evicted before. A rollback to a state
    costs no pass: the cache is cropped to what the next token's pass needs. One
    instance serves any number of requests in any number of threads.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        key_kind: KeyKind = "ffn_input",
        bos: bool = False,
        cache_bytes: int = 2 * _GIB,  # as for `HuggingFaceLM`
    ) -> None:
        """Wrap a loaded model, and set its evaluation mode.

        Args:
            model: a causal model, on any device and in any precision.
            tokenizer: the model's tokenizer.
            key_kind: the kind of hidden state, that of the datastore.
            bos: whether texts begin with the tokenizer's BOS token, as those of the datastore.
            cache_bytes: the maximum memory for caches that are not in use.

        Raises:
            ConfigError: `bos` with a tokenizer without such a token.
            ModelError: the hidden state cannot be located in this model.
        """
        if bos and tokenizer.bos_token_id is None:
            raise ConfigError("bos is set, but the tokenizer has no BOS token; omit it")
        self.model = model.train(False)
        self.tokenizer = tokenizer
        self._begins = (int(tokenizer.bos_token_id),) if bos else ()
        self.tap = KeyHook(model, key_kind)
        self.context = context_length(model)
        self._passes = ModelRunner(model, cache_bytes, self.tap)
        self._eos = eos_tokens(model)
        self._owners = itertools.count()
        self._tokenizer_lock = threading.Lock()  # encoding may change the tokenizer's settings

    @property
    def caches(self) -> CacheStore:
        """The key-value caches kept between tokens."""
        return self._passes.store

    def encode(self, text: str) -> tuple[int, ...]:
        """Tokenise a text as those of the datastore: special tokens in it are plain text.

        Raises:
            InputError: it has an incomplete character (a lone surrogate).
        """
        check_text(text)
        with self._tokenizer_lock:
            return self._begins + encode(self.tokenizer, text, literal=True)

    def begin(self, request: Request) -> KNNDraft:
        """Read the prompt in one pass.

        Raises:
            InputError: the prompt is empty, or has an incomplete character.
            ContextOverflowError: prompt and text together would exceed the context.
        """
        with self._tokenizer_lock:
            _, tokens = framed_tokens(_AS_IT_IS, self.tokenizer, request)
        prompt = self._begins + tokens if tokens else ()
        self._check_length(prompt, request.max_tokens)
        origin = DraftOrigin(
            owner=next(self._owners),
            head_tokens=(),
            prompt_tokens=prompt,
            max_tokens=request.max_tokens,
            seed=request.seed,
            stop=request.stop,
        )
        draft = Draft(origin, lm_text.begin(prompt))
        lineage = _lineage(draft)
        run = self._passes.open(lineage, ())
        self._passes.close(lineage, run)
        return _shown(draft, run.last)

    def feed(self, state: KNNDraft, token: int, progress: Progress) -> KNNDraft:
        """Append a token, and run its pass unless it ends the text.

        Raises:
            Cancelled: `progress` was cancelled.
        """
        draft = state.draft.grown(token, self._eos, self._decode)
        progress.charge(1)
        if draft.finished:
            return KNNDraft(draft)
        progress.check()
        lineage = _lineage(draft)
        run = self._passes.open(lineage, draft.tokens)
        try:
            for missing_token in draft.tokens[len(run.tokens) :]:
                progress.check()
                self._passes.feed(run, missing_token)
        except Cancelled:
            self._passes.close(lineage, run)
            raise
        self._passes.close(lineage, run)
        return _shown(draft, run.last)

    def read(self, tokens: Sequence[int], following: Sequence[int]) -> Reading:
        """Run a window in one pass; return the log-probabilities of the following tokens.

        Args:
            tokens: the window, at most the model's context.
            following: the actual next token of each of the last positions.
        """
        last = self._passes.read(tokens, len(following))
        assert last.hidden is not None
        with torch.inference_mode():
            goals = torch.tensor(following, device=last.logits.device)[:, None]
            parts = [
                rows.gather(1, goal)[:, 0] - rows.logsumexp(dim=1)
                for rows, goal in zip(
                    (part.double() for part in torch.split(last.logits, _ROWS)),
                    torch.split(goals, _ROWS),
                    strict=True,
                )
            ]
            return Reading(last.hidden.cpu().numpy(), torch.cat(parts).cpu().numpy())

    def release(self, state: KNNDraft) -> None:
        """Free the caches of this state's request."""
        self._passes.store.release(state.draft.origin.owner)

    def _decode(self, tokens: Sequence[int]) -> str:
        return decode(self.tokenizer, tokens)

    def _check_length(self, prompt: Sequence[int], text: int) -> None:
        if not prompt:
            raise InputError("There is nothing to continue: the prompt is empty.")
        if self.context is not None and len(prompt) + text > self.context:
            raise ContextOverflowError(
                f"{len(prompt)} prompt tokens + {text} text tokens = {len(prompt) + text}, but "
                f"the model's context is {self.context}. Give a shorter prompt or fewer max_tokens."
            )


class LogProbSampler:
    """Chooses tokens from a mixture's log-probabilities, as `generate` would from logits."""

    def __init__(self, settings: Greedy | Sampling) -> None:
        """Create a sampler with these settings."""
        self._chooser = TokenSampler(settings)
        self.needs_history = self._chooser.needs_history

    def choose(self, log_probs: Floats, history: Sequence[int], seed: int, position: int) -> int:
        """Choose the token at a position of the text."""
        return self._chooser.choose(torch.from_numpy(log_probs)[None], history, seed, position)


_AS_IT_IS = PassageTemplate()


def _lineage(draft: Draft) -> PrefillSchedule:
    return PrefillSchedule(draft.origin.owner, Prefix(()), draft.prompt_tokens, ())


def _shown(draft: Draft, last: Last) -> KNNDraft:
    """Return the state after the last token, from the output of its pass."""
    assert last.hidden is not None
    with torch.inference_mode():
        log_probs = torch.log_softmax(last.logits[0], dim=-1)
    return KNNDraft(draft, last.hidden[0].cpu().numpy(), log_probs.cpu().numpy())
