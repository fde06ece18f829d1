"""Any host's model as the core's `LanguageModel`: each segment is one call of the host's own."""

from collections.abc import Awaitable, Callable, Hashable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar

from ralmspec_plugins.adapters import text_state
from ralmspec_plugins.adapters.text_state import MadeCall, Streamed, TextDraft, Written
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Request

# What calls of any host's model have in common: their steps, their arguments, how they ended.


Step: TypeAlias = Literal["tokens", "sentence", "stop", "whole"]
Bound: TypeAlias = str | Callable[[int], Mapping[str, Any]]
Continuation: TypeAlias = Literal["assistant"] | Mapping[str, Any]
Bounded: TypeAlias = Callable[[int], Mapping[str, Any]]

_CUT_OFF = frozenset(  # finish reasons of a text that a bound cut off
    {"length", "max_tokens", "max_new_tokens", "max_output_tokens", "model_length", "max_length"}
)
_UNSAID = frozenset({"finish_reason_unspecified", "unspecified", "unknown", "null", ""})


def stated(bound: Bound) -> Bounded:
    """Turn what a user says of a model's bound into the arguments for at most n tokens.

    >>> stated("max_tokens")(4)
    {'max_tokens': 4}
    """
    if isinstance(bound, str):
        name = bound
        return lambda tokens: {name: tokens}
    return bound


def merged(base: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """Lay arguments over others; those that are mappings in both are merged.

    >>> merged({"extra_body": {"top_k": 1}, "seed": 1}, {"extra_body": {"echo": True}})
    {'extra_body': {'top_k': 1, 'echo': True}}
    """
    both = {name: value for name, value in ours.items() if name in base}
    return {
        **ours,
        **{
            name: {**base[name], **value}
            for name, value in both.items()
            if isinstance(value, Mapping) and isinstance(base[name], Mapping)
        },
    }


def came_to_an_end(information: Mapping[str, Any] | None) -> bool | None:
    """Return whether a model ended by itself or at a bound, if what goes with its output says so."""
    for name in ("finish_reason", "stop_reason", "done_reason"):
        reason = (information or {}).get(name)
        if reason is not None:
            said = str(getattr(reason, "name", reason)).lower()
            return None if said in _UNSAID else said not in _CUT_OFF
    return None


def check_step(
    name: str, step: Step, *, bounded: bool, takes_stop: bool, continues: bool, instead: str
) -> None:
    """Refuse a model that cannot write in such steps.

    Args:
        name: of its class.
        step: how far a call is to write.
        bounded: whether it can be told to write at most n tokens.
        takes_stop: whether it can be told where to stop.
        continues: whether it writes on where the text so far ends.
        instead: which arguments make whose models continue, and what else can be done.

    Raises:
        ConfigError: it cannot; the message says what to do.
    """
    if step == "whole":
        return
    if step != "stop" and not bounded:
        raise ConfigError(
            f"It is not known how {name} is told to write at most n tokens. Say so with "
            "bound='max_tokens' (the argument's name, or a function from n to arguments); or "
            "write sentences through a stop string (sentence_stop='.'); or use "
            "workload='one_shot', which needs no bound."
        )
    if step == "stop" and not takes_stop:
        raise ConfigError(
            f"{name} does not stop at stop strings, so sentence_stop cannot be used with "
            "it; leave it out: this model can be told how far to write."
        )
    if not continues:
        raise ConfigError(
            f"It is not known that {name} can continue an assistant message, without which "
            "it cannot write on. If it can, say so with continuation='assistant', or with the "
            f"arguments that it needs {instead}"
        )


def stops(draft: TextDraft, step: Step, sentence_stop: str | None) -> list[str]:
    """Return the stop strings that a call is told of.

    A stop string is passed on where the model takes one: it is cut off by the text
    draft in any case, but a model that knows of it writes no further. A model that
    is to stop behind a sentence is told of nothing else, or it could not be said why
    it stopped.
    """
    if step == "stop":
        assert sentence_stop is not None
        return [sentence_stop]
    return list(draft.origin.stop)


def taken(
    draft: TextDraft, written: Written, step: Step, bound: int, sentence_stop: str | None
) -> TextDraft:
    """Append what a call gave, as its step says."""
    if step == "whole":
        return text_state.whole(draft, written)
    if step == "stop":
        return text_state.grown_to_stop(draft, written, sentence_stop or "", bound)
    if step == "sentence":
        return text_state.grown_by_sentence(draft, written, bound)
    return text_state.grown(draft, written, bound)


GivenT = TypeVar("GivenT")  # what is written with: passages, or hits for one that reads them
GivenInT = TypeVar("GivenInT", contravariant=True)
Show: TypeAlias = Callable[[Written], None]
Awaited: TypeAlias = Callable[[TextDraft, GivenT, int, Progress], Awaitable[TextDraft]]


class ModelCall(Protocol[GivenInT]):
    """One call of a host's model, planned for one segment of a draft."""

    def alone(self) -> AbstractContextManager[None]:
        """Have nobody hear of what runs inside but whatever records it.

        What it raises is noted, for the case that it counts: then its events do too.
        """
        ...

    def write(self, given: GivenInT, progress: Progress, show: Show) -> Written:
        """Make the call and wait for it.

        Where `progress.wanted` and the model can be listened to, `show` is called with
        what came so far, again with each piece, and `progress.check()` before it.
        """
        ...

    async def awrite(self, given: GivenInT, progress: Progress, show: Show) -> Written:
        """Make the call and await it."""
        ...


class Writer(Protocol[GivenInT]):
    """A host's model, and how passages and text become what it is given.

    `awaits`: its calls are awaited without holding up an event loop.
    """

    @property
    def awaits(self) -> bool:
        """Whether its calls are awaited without holding up an event loop."""
        ...

    def call(
        self, draft: TextDraft, step: Step, bound: int, sentence_stop: str | None
    ) -> ModelCall[GivenInT]:
        """Plan one call.

        Args:
            draft: what it continues.
            step: how far it is to write: by tokens, by a sentence, up to the stop, at once.
            bound: the most tokens.
            sentence_stop: the stop string that ends a sentence.
        """
        ...

    def write_key(self, draft: TextDraft, given: GivenInT, tokens: int) -> Hashable:
        """Return a key of all that a call depends on."""
        ...

    def same(self, one: GivenInT, other: GivenInT) -> bool:
        """Return whether the model is shown the same of both."""
        ...


class TextLM(Generic[GivenT]):
    """Continues a text by calls of a host's model.

    `write` and `write_sentence` have twins that are awaited, `awrite` and
    `awrite_sentence`, only where the model itself is asynchronous. One that is not is
    better off in the engine's threads: there a cancelled call keeps its place until it
    has really ended, and it holds up nobody else.
    """

    awrite: Awaited[GivenT]
    awrite_sentence: Awaited[GivenT]

    def __init__(
        self,
        writer: Writer[GivenT],
        *,
        whole: bool = False,
        sentence_stop: str | None = None,
        side_by_side: bool = False,
    ) -> None:
        """Write by this model.

        Args:
            writer: the host's model.
            whole: the whole answer in one call, the host's own, with no bound.
            sentence_stop: for models that cannot be told how far to write, but where to
                stop: the mark that ends a sentence, such as ".".
            side_by_side: whether several calls may run at a time.

        Raises:
            ConfigError: the steps make no sense.
        """
        first_step(whole=whole, sentence_stop=sentence_stop)
        self._writer = writer
        self.whole = whole
        self.sentence_stop = sentence_stop
        self.side_by_side = side_by_side
        if writer.awaits:
            self.awrite = self._awrite
            self.awrite_sentence = self._awrite_sentence

    def begin(self, request: Request) -> TextDraft:
        """Begin with no text."""
        return TextDraft(request)

    def write(self, draft: TextDraft, given: GivenT, tokens: int, progress: Progress) -> TextDraft:
        """Continue a draft by one call that is bounded to this many tokens.

        Raises:
            Cancelled: `progress` was cancelled, before the call or while it streamed.
            Exception: what the host raises.
        """
        return self._run(draft, given, tokens, self._step("tokens"), progress)

    def write_sentence(
        self, draft: TextDraft, given: GivenT, tokens: int, progress: Progress
    ) -> TextDraft:
        """Continue a draft by the first sentence of what one bounded call gives.

        Raises:
            Cancelled: `progress` was cancelled, before the call or while it streamed.
            Exception: what the host raises.
        """
        return self._run(draft, given, tokens, self._step("sentence"), progress)

    async def _awrite(
        self, draft: TextDraft, given: GivenT, tokens: int, progress: Progress
    ) -> TextDraft:
        return await self._arun(draft, given, tokens, self._step("tokens"), progress)

    async def _awrite_sentence(
        self, draft: TextDraft, given: GivenT, tokens: int, progress: Progress
    ) -> TextDraft:
        return await self._arun(draft, given, tokens, self._step("sentence"), progress)

    def finished(self, draft: TextDraft) -> bool:
        """Return whether the draft has ended."""
        return draft.finished

    def tail(self, draft: TextDraft, tokens: int) -> str:
        """Return the last words of question and text; the question alone while there is no text."""
        return text_state.tail(draft, tokens)

    def text(self, draft: TextDraft) -> str:
        """Return what was written, cut before a stop string."""
        return draft.text

    def settled(self, draft: TextDraft) -> str:
        """Return the part of `text` that no later call can change."""
        return draft.settled

    def text_key(self, draft: TextDraft) -> Hashable:
        """Hold question and text, and whether that is all."""
        return draft.origin.prompt, draft.text, draft.finished

    def write_key(self, draft: TextDraft, given: GivenT, tokens: int) -> Hashable:
        """Return a key of all that a call depends on."""
        return self._writer.write_key(draft, given, tokens)

    def same_passages(self, one: GivenT, other: GivenT) -> bool:
        """Return whether the model is shown the same of both."""
        return self._writer.same(one, other)

    def release(self, draft: TextDraft) -> None:
        """Nothing is kept."""

    def _step(self, step: Step) -> Step:
        """Return what a call writes.

        Raises:
            ConfigError: the steps are not those of `sentence_stop`.
        """
        if self.whole:
            return "whole"
        if self.sentence_stop is None:
            return step
        if step == "tokens":
            raise ConfigError(
                "with sentence_stop a step is a sentence: use workload='sentences', "
                "not one that counts tokens"
            )
        return "stop"

    def _run(
        self, draft: TextDraft, given: GivenT, tokens: int, step: Step, progress: Progress
    ) -> TextDraft:
        if draft.finished:
            return draft
        bound = draft.allowed(tokens)
        call = self._writer.call(draft, step, bound, self.sentence_stop)
        progress.check()
        draft.made.append(made := MadeCall())
        with call.alone():
            written = call.write(given, progress, _showing(draft, step, progress))
        made.usage = written.usage
        return replace(taken(draft, written, step, bound, self.sentence_stop), call=made)

    async def _arun(
        self, draft: TextDraft, given: GivenT, tokens: int, step: Step, progress: Progress
    ) -> TextDraft:
        if draft.finished:
            return draft
        bound = draft.allowed(tokens)
        call = self._writer.call(draft, step, bound, self.sentence_stop)
        progress.check()
        draft.made.append(made := MadeCall())
        with call.alone():
            written = await call.awrite(given, progress, _showing(draft, step, progress))
        made.usage = written.usage
        return replace(taken(draft, written, step, bound, self.sentence_stop), call=made)


def first_step(*, whole: bool, sentence_stop: str | None) -> Step:
    """Return in which steps a model is to write, for what it must be able to do.

    Raises:
        ConfigError: they make no sense.
    """
    if sentence_stop == "":
        raise ConfigError("sentence_stop must be a text such as '.', got an empty one")
    if whole and sentence_stop is not None:
        raise ConfigError("whole and sentence_stop cannot be used together")
    if whole:
        return "whole"
    return "tokens" if sentence_stop is None else "stop"


def _showing(draft: TextDraft, step: Step, progress: Progress) -> Show:
    """Return what reports a draft with what has come so far, to those who want to know."""
    streamed = Streamed(draft, sentence=step == "sentence")

    def show(written: Written) -> None:
        if progress.wanted:
            progress.report(streamed.shown(written))

    return show
