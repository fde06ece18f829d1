"""Drafts of a model that reads a retrieved part of a long context, as in RAPID (2502.20330)."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Final

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ralmspec_plugins.decoding.acceptance import AcceptanceTrend, RunningRatio
from ralmspec_plugins.decoding.budget import Effort
from ralmspec_plugins.decoding.draft_reader import DraftReader
from ralmspec_plugins.decoding.drafters.followers import Followers
from ralmspec_plugins.decoding.drafters.protocol import Accepted, DraftContext, DraftTarget
from ralmspec_plugins.decoding.long_context import Chunk, ChunkSettings, LongContext, PromptParts
from ralmspec_plugins.decoding.prompt_reading import PromptReading, Tokens
from ralmspec_plugins.decoding.token_tree import EMPTY, Evidence, TokenTree
from ralmspec_plugins.errors import ConfigError, ContextOverflowError, InputError
from ralmspec_plugins.lm.fingerprint import model_fingerprint, tokenizer_fingerprint
from ralmspec_plugins.lm.kv_cache import common_length
from ralmspec_plugins.lm.prompts import decode, encode
from ralmspec_plugins.retrieval.encoders import Encoder, HashingEncoder, encoder_name

_CONTEXTS: Final = 4  # long contexts whose index is kept
_SURE: Final = 8  # the match length in the evidence of a model's tokens
_ROOM: Final = 1024  # positions kept free for the text, or a quarter of all if that is less
_UNKNOWN: Final = 0.1  # assumed cost of a drafter's pass until measured, in target passes

Template = Callable[[Sequence[str], str], str]


class RagDrafter:
    """Drafts with a model that reads chunks of the target's long context, not all of it.

    The target's pass takes the longer, the longer its context is. The drafter's prompt has only
    the chunks that are similar to the question, in their order, so its passes are cheaper even
    if it has the target's own weights (self-speculation, the default). It drafts a chain of at
    most `depth` tokens, and stops where the next pass would cost more than it is expected to
    save.

    The long context is the passages; without passages, it is the prompt except for the last
    `question_tokens` tokens. Where acceptance falls far below what it was in the same text, and
    what that costs is more than a prefill, chunks are retrieved again with the end of the text.

    If no chunk is similar enough, the encoder fails, or the model has too few positions, nothing
    is drafted, and the reason is logged once.
    """

    source: Final = "rapid"  # in the evidence of its drafts

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        encoder: Encoder | None = None,
        chunk_tokens: int = 512,
        threshold: float = 0.3,
        least_tokens: int = 4096,
        shorten: float = 24.0,
        question_tokens: int = 128,
        separator: str = "\n\n",
        template: Template | None = None,
        depth: int = 10,
        requests: int = 8,
    ) -> None:
        """Create a drafter; a given model is switched to evaluation mode.

        Args:
            model: a causal model with full attention and the target's vocabulary; unset, the
                target itself.
            tokenizer: its tokenizer, compared with the target's; unset, only the sizes of the
                vocabularies are compared.
            encoder: encodes chunks and questions; `HashingEncoder()` by default, which finds
                shared words only.
            chunk_tokens: the tokens of a chunk.
            threshold: the least cosine similarity of a chunk.
            least_tokens: this many tokens are retrieved, if chunks are similar,
            shorten: or the context's length divided by this, if that is more.
            question_tokens: without passages, the tokens at the prompt's end that are the
                question.
            separator: the text between two chunks, and after the last one.
            template: returns the drafter's prompt from the texts of the chunks and the question;
                by default it has the target's tokens around the context, unchanged.
            depth: the maximum number of tokens of a draft.
            requests: the maximum number of requests whose caches are kept.

        Raises:
            ConfigError: a number is out of range, or the encoder is not callable.
            ModelError: the model's cache cannot be cropped (sliding windows, recurrent states).
        """
        for name, value in (
            ("depth", depth),
            ("requests", requests),
            ("question_tokens", question_tokens),
        ):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if encoder is not None and not callable(encoder):
            raise ConfigError(
                "encoder must be a function of a text that returns its vector, got "
                f"{type(encoder).__name__}"
            )
        self.chunks = ChunkSettings(
            chunk_tokens=chunk_tokens,
            threshold=threshold,
            least_tokens=least_tokens,
            shorten=shorten,
        )
        self.encoder: Encoder = encoder if encoder is not None else HashingEncoder()
        self.question_tokens = question_tokens
        self.separator = separator
        self.template = template
        self.depth = depth
        self.steady = False  # whether its distributions define a text: see `hold_steady`
        self._followers = Followers(1)
        self._most = requests
        self._given = model, tokenizer
        self._reader: DraftReader | None = None if model is None else DraftReader(model)
        self._tokenizer: PreTrainedTokenizerBase | None = tokenizer
        self._shares = model is None  # whether it reads with the target's weights
        self._requests: OrderedDict[Hashable, _Request] = OrderedDict()  # oldest use first
        self._contexts: OrderedDict[Tokens, _Indexed] = OrderedDict()
        self._chunk_s: float | None = None  # to encode a chunk
        self._trust = RunningRatio()  # of accepted drafts to the probabilities that they had
        self._lock = threading.RLock()

    @property
    def reader(self) -> DraftReader:
        """The model, once it is bound."""
        if self._reader is None:
            raise ConfigError(
                "a RagDrafter without a model of its own drafts for a HuggingFaceLM that has it "
                "in its decoding: give it there, or give it a model"
            )
        return self._reader

    def bind(self, target: DraftTarget) -> None:
        """Take over the target's weights if there is no other model; check that tokens agree.

        Raises:
            ConfigError: the vocabulary or the tokenizer is another one, or another target's
                weights were taken over before.
        """
        model, tokenizer = self._given
        if model is None:
            if self._reader is not None and self._reader.model is not target.model:
                raise ConfigError(
                    "this RagDrafter shares the weights of another model; create one for each"
                )
            self._reader = self._reader or DraftReader(target.model)
        self._shares = self.reader.model is target.model
        same = tokenizer is None or (
            tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(target.tokenizer)
        )
        if not same or self.reader.vocabulary != target.vocabulary:
            raise ConfigError(
                "a RagDrafter's model must have the target's tokenizer and vocabulary; here "
                + (
                    "the tokenizers differ"
                    if not same
                    else f"it has {self.reader.vocabulary} tokens, the target {target.vocabulary}"
                )
            )
        self._tokenizer = tokenizer if tokenizer is not None else target.tokenizer

    def hold_steady(self) -> None:
        """Make the distributions a function of prompt and text: they are part of a target.

        Tokens are then read one by one, and chunks are retrieved once for each prompt.
        """
        with self._lock:
            if not self.steady:
                self.steady = True
                self._requests.clear()

    def effort(self, context: DraftContext) -> Effort | None:
        """Return what it is expected to take to begin with a text, and for each draft.

        Raises:
            RalmSpecError: the text cannot be drafted for.
        """
        with self._lock:
            request = self._request(context)
            if request.reading is not None:
                return None
            parts = request.parts
            read = len(parts.head) + len(parts.question)
            read += min(len(parts.context), self._room(parts))
            encoding, known = 0.0, self._contexts.get(parts.context)
            if known is None or known.value is None:
                chunks = len(parts.context) / self.chunks.chunk_tokens
                encoding = (self._chunk_s or 0.0) * chunks
            return Effort(encoding + self.reader.prefill_s(read), self._step_s(context, read))

    def begin(self, context: DraftContext) -> None:
        """Retrieve the chunks for a question, and read them.

        Raises:
            InputError: there is no context, or no chunk is similar.
            ContextOverflowError: there is no room for a chunk.
            ModelError: the encoder raised.
        """
        self._begun(context)

    def propose(self, context: DraftContext, budget: int) -> TokenTree:
        """Return a chain of at most `budget` drafted tokens."""
        if budget < 1 or not context.text:
            return EMPTY
        request = self._begun(context)
        if not self.reader.has_room(len(request.prompt), len(context.text) + self.depth):
            return EMPTY
        self._turn(context, request)
        with self._lock:
            return self._chain(context, request, min(self.depth, budget))

    def update(self, accepted: Accepted) -> None:
        """Record how many drafts were accepted."""
        with self._lock:
            request = self._requests.get(accepted.context.request)
            if request is None or not request.drafted:
                return
            path = tuple(accepted.tree.tokens[node] for node in accepted.nodes)
            right = common_length(path, request.drafted)
            verified = len(accepted.tree.followed(request.drafted))
            judged = min(verified, right + 1)
            for chance in request.chances[:judged]:
                self._trust.add(0.0, chance)
            self._trust.add(float(right), 0.0)
            request.acceptance.add(right, judged - right)
            request.drafted, request.chances = (), ()

    def release(self, request: Hashable) -> None:
        """Release a request's caches."""
        with self._lock:
            self._requests.pop(request, None)

    def logits(self, context: DraftContext) -> Tensor:
        """Return the model's logits after a text: [1, vocabulary], float32.

        Raises:
            RalmSpecError: as for `begin`.
            ContextOverflowError: the model has too few positions.
        """
        request = self._begun(context)
        if not self.reader.has_room(len(request.prompt), len(context.text)):
            raise ContextOverflowError(
                f"the drafter's prompt of {len(request.prompt)} tokens and the text of "
                f"{len(context.text)} exceed its {self.reader.positions} positions: use less "
                "least_tokens, or a smaller max_tokens"
            )
        assert request.reading is not None
        with self._lock:
            return request.reading.after(context.text, singly=self.steady)

    def chunks_in_use(self, context: DraftContext) -> list[Chunk]:
        """Return the chunks that the drafter reads for a text, in order."""
        return list(self._begun(context).chunks)

    def known_by(self) -> dict[str, Any]:
        """Return all that the distributions depend on besides prompt and text."""
        settings = self.chunks
        return {
            "model": model_fingerprint(self.reader.model),
            "encoder": encoder_name(self.encoder),
            "chunks": (
                *(settings.chunk_tokens, settings.threshold),
                *(settings.least_tokens, settings.shorten),
            ),
            "question_tokens": self.question_tokens,
            "separator": self.separator,
            "template": None if self.template is None else repr(self.template),
        }

    # Requests: their chunks, and what is read in front of their text.

    def _request(self, context: DraftContext) -> "_Request":
        """Return what is known of a request; raise again if it could not be begun with."""
        request = self._requests.get(context.request)
        if request is None or not request.is_for(context):
            assert self._tokenizer is not None
            begins = context.front[:1] == (self._tokenizer.bos_token_id,)
            parts = PromptParts.of(context, self.question_tokens, int(begins))
            request = _Request(context, parts)
            self._requests[context.request] = request
            if len(self._requests) > self._most:
                self._requests.popitem(last=False)
        self._requests.move_to_end(context.request)
        if request.problem is not None:
            raise request.problem
        return request

    def _begun(self, context: DraftContext) -> "_Request":
        """Return what is known of a request, after reading its chunks.

        The lock is not held while the encoder runs: other requests are drafted for meanwhile.
        """
        with self._lock:
            request = self._request(context)
        if request.reading is None:
            self._begin(request)
        return request

    def _begin(self, request: "_Request") -> None:
        try:
            parts = request.parts
            query = self._text(parts.question)
            chunks = self._context(parts.context).retrieve(query, self._room(parts))
            prompt = self._prompt(parts, chunks)
            with self._lock:
                if request.reading is None:  # else another thread has begun meanwhile
                    self._read(request, chunks, prompt)
        except Exception as problem:
            request.problem = problem  # it is not tried again at each token
            raise

    def _read(self, request: "_Request", chunks: list[Chunk], prompt: Tokens) -> None:
        if not self.reader.has_room(len(prompt), 1):
            raise ContextOverflowError(
                f"the drafter's prompt has {len(prompt)} tokens, and its model "
                f"{self.reader.positions} positions: use less least_tokens, or a shorter template"
            )
        request.chunks, request.prompt = chunks, prompt
        request.reading = self.reader.read(prompt)

    def _context(self, tokens: Tokens) -> LongContext:
        """Return a context with its index, which requests with the same context share."""
        with self._lock:
            known = self._contexts.setdefault(tokens, _Indexed())
            self._contexts.move_to_end(tokens)
            if len(self._contexts) > _CONTEXTS:
                self._contexts.popitem(last=False)
        with known.lock:
            if known.value is None:
                began_s = perf_counter()
                known.value = LongContext(tokens, self._text, self.encoder, self.chunks)
                self._chunk_s = (perf_counter() - began_s) / len(known.value.chunks)
            return known.value

    def _room(self, parts: PromptParts) -> int:
        """Return how many tokens of the context the drafter may read."""
        room = self.chunks.tokens_for(len(parts.context))
        positions = self.reader.positions
        if positions is None:
            return room
        around = len(parts.head) + len(parts.question) + min(_ROOM, positions // 4)
        return min(room, positions - around)

    def _prompt(self, parts: PromptParts, chunks: Sequence[Chunk]) -> Tokens:
        """Return the drafter's own tokens in front of the text."""
        assert self._tokenizer is not None
        if self.template is not None:
            shown: object = self.template(
                [self._text(one.tokens) for one in chunks], self._text(parts.question)
            )
            if not isinstance(shown, str):
                raise InputError(
                    f"the template of a RagDrafter must return a text, got {type(shown).__name__}"
                )
            begins = self._tokenizer.bos_token_id
            bos = () if begins is None else (int(begins),)
            return bos + encode(self._tokenizer, shown, literal=True)
        between = encode(self._tokenizer, self.separator, literal=True) if self.separator else ()
        read = tuple(token for chunk in chunks for token in chunk.tokens + between)
        return parts.head + read + parts.question

    def _text(self, tokens: Sequence[int]) -> str:
        assert self._tokenizer is not None
        return decode(self._tokenizer, tokens)

    # Drafts, and chunks that are retrieved again.

    def _chain(self, context: DraftContext, request: "_Request", most: int) -> TokenTree:
        """Draft the likeliest token after the last one, as long as that pays off."""
        step = self._step(context, request)
        path: list[int] = []
        values: list[float] = []
        chances: list[float] = []
        while True:
            token, chance = self._next(context, request, path)
            chances.append(chance)
            chance = min(1.0, chance * self._trust.value)
            path.append(token)
            values.append(chance * (values[-1] if values else 1.0))
            if len(path) >= most or not _is_worth_a_step(values, step):
                break
        request.drafted, request.chances = tuple(path), tuple(chances)
        evidence = tuple(Evidence(self.source, _SURE, min(1.0, one)) for one in chances)
        return TokenTree(tuple(path), tuple(range(-1, len(path) - 1)), tuple(values), evidence)

    def follower(
        self, context: DraftContext, path: Sequence[int], logits: Tensor
    ) -> tuple[int, float]:
        """Return the drafted token after a path of drafts, and its probability."""
        return self._followers.of(context, path, logits[0])[0]

    def _next(
        self, context: DraftContext, request: "_Request", path: Sequence[int]
    ) -> tuple[int, float]:
        """Read what is missing of a path of drafts; return the token after it."""
        reading, text = request.reading, (*context.text, *path)
        assert reading is not None
        is_step = reading.unread(text) == 1
        began_s = self.reader.clock()
        logits = reading.after(text, singly=self.steady)
        found = self.follower(context, path, logits)
        if is_step:
            self.reader.note_step(len(request.prompt), self.reader.clock() - began_s)
        return found

    def _step(self, context: DraftContext, request: "_Request") -> float:
        """Return the cost of a pass of the drafter, in passes of the target."""
        if not context.pass_s:
            return _UNKNOWN
        return self._step_s(context, len(request.prompt)) / context.pass_s

    def _step_s(self, context: DraftContext, length: int) -> float:
        """Return the seconds of a pass behind so many tokens: measured, or else estimated."""
        known = self.reader.step_s(length)
        if known is not None:
            return known
        short_s = self.reader.short_s
        if not self._shares or context.pass_s is None or not context.front:
            return short_s
        growth = max(0.0, context.pass_s - short_s) / len(context.front)
        return short_s + growth * length

    def _turn(self, context: DraftContext, request: "_Request") -> None:
        """Retrieve with the end of the text if acceptance fell, and a prefill is worth it."""
        with self._lock:
            if self.steady or not request.acceptance.has_fallen:
                return
            request.acceptance.begin_again()
            lost = request.acceptance.lost(self.depth) * context.left * (context.pass_s or 0.0)
            if context.pass_s is not None and lost <= self.reader.prefill_s(len(request.prompt)):
                return
        query = self._text((*request.parts.question, *context.text)[-self.question_tokens :])
        long = self._context(request.parts.context)
        chunks = long.retrieve_again(query, request.chunks, self._room(request.parts))
        if chunks != request.chunks:
            prompt = self._prompt(request.parts, chunks)
            with self._lock:
                self._read(request, chunks, prompt)


def _is_worth_a_step(values: Sequence[float], step: float) -> bool:
    """Return whether one more draft raises the tokens per second, given the drafts' values.

    >>> _is_worth_a_step([0.75], 0.3), _is_worth_a_step([0.75, 0.56], 0.3)
    (True, False)
    """
    count = len(values)
    gain: float = values[-1] ** ((count + 1) / count)
    return gain * (1.0 + step * count) > step * (1.0 + sum(values))


class _Indexed:
    """A long context, once its chunks are encoded; the lock is held meanwhile."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.value: LongContext | None = None


@dataclass(slots=True, eq=False)
class _Request:
    """The prompt of a request, and what the drafter reads in its place."""

    context: DraftContext  # as it was first seen
    parts: PromptParts
    chunks: list[Chunk] = field(default_factory=list)
    prompt: Tokens = ()
    reading: PromptReading | None = None
    problem: Exception | None = None
    drafted: Tokens = ()  # the last draft, until its outcome is known
    chances: tuple[float, ...] = ()
    acceptance: AcceptanceTrend = field(default_factory=AcceptanceTrend)

    def is_for(self, context: DraftContext) -> bool:
        """Return whether a text stands behind this prompt."""
        own = self.context
        if own.front is context.front and own.passages is context.passages:
            return True
        if own.front != context.front or own.passages != context.passages:
            return False
        self.context = context  # compared at once from now on
        return True
