"""A host's model as a `LanguageModel` of the core: each segment is one call of the host."""

import copy
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar

from ralmspec_plugins.adapters import text_state
from ralmspec_plugins.adapters.text_state import MadeCall, Streamed, TextDraft, Written
from ralmspec_plugins.errors import ConfigError, InputError, ModelError
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Request, TokenLogprob

# Steps, arguments and finish reasons of calls of any host's model.


Step: TypeAlias = Literal["tokens", "sentence", "stop", "whole"]
Bound: TypeAlias = str | Callable[[int], Mapping[str, Any]]
Continuation: TypeAlias = Literal["assistant"] | Mapping[str, Any]
Bounded: TypeAlias = Callable[[int], Mapping[str, Any]]

_CUT_OFF = frozenset(  # finish reasons of a text that was cut at the maximum number of tokens
    {"length", "max_tokens", "max_new_tokens", "max_output_tokens", "model_length", "max_length"}
)
_UNSAID = frozenset({"finish_reason_unspecified", "unspecified", "unknown", "null", ""})


def stated(bound: Bound) -> Bounded:
    """Return the function from a maximum number of tokens to a call's arguments.

    >>> stated("max_tokens")(4)
    {'max_tokens': 4}
    """
    if isinstance(bound, str):
        name = bound
        return lambda tokens: {name: tokens}
    return bound


def merged(base: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments overridden by others; mappings in both are merged.

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
    """Return whether a model ended by itself or at a limit, if its output states that."""
    for name in ("finish_reason", "stop_reason", "done_reason"):
        reason = (information or {}).get(name)
        if reason is not None:
            said = str(getattr(reason, "name", reason)).lower()
            return None if said in _UNSAID else said not in _CUT_OFF
    return None


def check_step(
    name: str, step: Step, *, bounded: bool, takes_stop: bool, continues: bool, instead: str
) -> None:
    """Check that a model supports a kind of step.

    Args:
        name: of its class.
        step: the length of a call.
        bounded: whether it supports a maximum number of tokens.
        takes_stop: whether it supports stop strings.
        continues: whether it can continue an assistant message.
        instead: the arguments that make models continue, for the error message.

    Raises:
        ConfigError: it is not supported; the message states what to do.
    """
    if step == "whole":
        return
    if step != "stop" and not bounded:
        raise ConfigError(
            f"The argument of {name} for the maximum number of tokens is unknown. Set "
            "bound='max_tokens' (the argument's name, or a function from n to arguments); or "
            "generate sentences with a stop string (sentence_stop='.'); or use "
            "workload='one_shot', which needs no limit."
        )
    if step == "stop" and not takes_stop:
        raise ConfigError(
            f"{name} does not support stop strings, so sentence_stop cannot be used with "
            "it; omit it: this model supports a maximum number of tokens."
        )
    if not continues:
        raise ConfigError(
            f"It is unknown whether {name} can continue an assistant message, which "
            "is required here. If it can, set continuation='assistant', or the "
            f"arguments that it needs {instead}"
        )


def check_logprobs(name: str, arguments: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return the arguments that ask a model for log-probabilities.

    Raises:
        ConfigError: it is not known what they are; the message says what to do.
    """
    if arguments is None:
        raise ConfigError(
            f"It is not known how {name} is asked for the log-probabilities of its tokens, which "
            "this workload needs. If its server gives them in OpenAI's form, say how with "
            "logprobs={'logprobs': True}, the arguments of a call that ask for them; a local "
            "Hugging Face model has them with direct=True."
        )
    return arguments


def stops(draft: TextDraft, step: Step, sentence_stop: str | None) -> list[str]:
    """Return the stop strings of a call.

    Stop strings are passed on if the model supports them: the text draft cuts them
    in any case, but the model then stops earlier. A model that
    stops after a sentence gets no other stop string, so that the reason of
    the stop is known.
    """
    if step == "stop":
        assert sentence_stop is not None
        return [sentence_stop]
    return list(draft.origin.stop)


def taken(
    draft: TextDraft, written: Written, step: Step, bound: int, sentence_stop: str | None
) -> TextDraft:
    """Return the draft with the text of a call appended, by the kind of its step."""
    if step == "whole":
        return text_state.whole(draft, written)
    if step == "stop":
        return text_state.grown_to_stop(draft, written, sentence_stop or "", bound)
    if step == "sentence":
        return text_state.grown_by_sentence(draft, written, bound)
    return text_state.grown(draft, written, bound)


GivenT = TypeVar("GivenT")  # passages, or hits for a model that reads them
GivenInT = TypeVar("GivenInT", contravariant=True)
Show: TypeAlias = Callable[[Written], None]
Awaited: TypeAlias = Callable[[TextDraft, GivenT, int, Progress], Awaitable[TextDraft]]


class ModelCall(Protocol[GivenInT]):
    """One call of a host's model, planned for one segment of a draft."""

    def alone(self) -> AbstractContextManager[None]:
        """Return a context in which the host's events are only recorded.

        An error inside is stored with its recording, in case it is raised.
        """
        ...

    def write(self, given: GivenInT, progress: Progress, show: Show) -> Written:
        """Make the call and return its result.

        If `progress.wanted` and the model streams, `show` is called with
        the partial result at each piece, after `progress.check()`.
        """
        ...

    async def awrite(self, given: GivenInT, progress: Progress, show: Show) -> Written:
        """Make the call asynchronously and return its result."""
        ...


class Writer(Protocol[GivenInT]):
    """A host's model, and the conversion of passages and text to its input.

    `awaits`: its calls are awaited without blocking an event loop.
    """

    @property
    def awaits(self) -> bool:
        """Whether its calls are awaited without blocking an event loop."""
        ...

    def call(
        self, draft: TextDraft, step: Step, bound: int, sentence_stop: str | None
    ) -> ModelCall[GivenInT]:
        """Return one call.

        Args:
            draft: the draft to continue.
            step: the kind of step: tokens, a sentence, up to the stop string, or a whole answer.
            bound: the maximum number of tokens.
            sentence_stop: the stop string that ends a sentence.
        """
        ...

    def scored(self) -> "Writer[GivenInT]":
        """Return a writer whose calls ask for log-probabilities.

        Raises:
            ConfigError: it is not known how its model is asked for them.
        """
        ...

    def write_key(self, draft: TextDraft, given: GivenInT, tokens: int) -> Hashable:
        """Return a key of all that a call depends on."""
        ...

    def same(self, one: GivenInT, other: GivenInT) -> bool:
        """Return whether the model's input is the same for both."""
        ...


class TextLM(Generic[GivenT]):
    """Continues a text by calls of a host's model.

    The asynchronous methods `awrite` and `awrite_sentence` exist
    only if the model itself is asynchronous. Other models run
    in the engine's threads: there a cancelled call blocks the next one until it
    has ended, and no other request.
    """

    fixed_prompt = True  # the host's, whatever a request asks
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
        """Create a language model.

        Args:
            writer: the host's model.
            whole: the whole answer in one call of the host, without a limit.
            sentence_stop: for models with stop strings but without a maximum number of
                tokens: the mark that ends a sentence, such as ".".
            side_by_side: whether several calls may run in parallel.

        Raises:
            ConfigError: the steps are contradictory.
        """
        first_step(whole=whole, sentence_stop=sentence_stop)
        self.whole = whole
        self.sentence_stop = sentence_stop
        self.side_by_side = side_by_side
        self._scored = False
        self._write_by(writer)

    def _write_by(self, writer: Writer[GivenT]) -> None:
        self._writer = writer
        if writer.awaits:
            self.awrite = self._awrite
            self.awrite_sentence = self._awrite_sentence

    def scored(self, thresholds: Sequence[float] = ()) -> "TextLM[GivenT]":
        """Return this model with log-probabilities in its drafts, which its calls then ask for.

        Args:
            thresholds: not looked at: a server's probabilities are taken as they come.

        Raises:
            ConfigError: it is not known how the model is asked for them, or a stop string
                ends its sentences, which it then does not show.
        """
        if self.sentence_stop is not None:
            raise ConfigError(
                "with sentence_stop a model does not show the mark that ends its sentence, and no "
                "log-probability of it; leave sentence_stop out, or use another workload"
            )
        twin = copy.copy(self)
        twin._scored = True  # noqa: SLF001 its own class
        twin._write_by(self._writer.scored())  # noqa: SLF001 its own class
        return twin

    def logprobs(self, draft: TextDraft) -> tuple[TokenLogprob, ...]:
        """Return the tokens of a draft that a scored model wrote, with their log-probabilities.

        Raises:
            InputError: some of the draft was written without.
        """
        if draft.logprobs is None:
            raise InputError(
                "some of this draft was written without log-probabilities; write all of it with "
                "a model that scored() gave"
            )
        return draft.logprobs

    def begin(self, request: Request) -> TextDraft:
        """Return a draft without text."""
        return TextDraft(request)

    def write(self, draft: TextDraft, given: GivenT, tokens: int, progress: Progress) -> TextDraft:
        """Continue a draft by one call with this maximum number of tokens.

        Raises:
            Cancelled: `progress` was cancelled, before the call or while it streamed.
            Exception: the error of the host.
        """
        return self._run(draft, given, tokens, self._step("tokens"), progress)

    def write_sentence(
        self, draft: TextDraft, given: GivenT, tokens: int, progress: Progress
    ) -> TextDraft:
        """Continue a draft by the first sentence of one call's text.

        Raises:
            Cancelled: `progress` was cancelled, before the call or while it streamed.
            Exception: the error of the host.
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
        """Return the generated text, cut before a stop string."""
        return draft.text[draft.given :]

    def settled(self, draft: TextDraft) -> str:
        """Return the part of `text` that no later call can change."""
        return draft.settled[draft.given :]

    def resume(self, draft: TextDraft, request: Request, text: str) -> TextDraft:
        """Start after an existing text, in the request of `draft`.

        The model continues it as it continues the text that it wrote.
        """
        return text_state.resumed(draft, request, text)

    def stop_of(self, draft: TextDraft) -> str | None:
        """Return the stop string that ended a draft, "" if none did, `None` if it is unknown."""
        return draft.stopped_by

    def text_key(self, draft: TextDraft) -> Hashable:
        """Return a key of question and text, and of whether that is all."""
        return draft.origin.prompt, draft.text, draft.finished

    def write_key(self, draft: TextDraft, given: GivenT, tokens: int) -> Hashable:
        """Return a key of all that a call depends on."""
        return self._writer.write_key(draft, given, tokens)

    def same_passages(self, one: GivenT, other: GivenT) -> bool:
        """Return whether the model's input is the same for both."""
        return self._writer.same(one, other)

    def release(self, draft: TextDraft) -> None:
        """Do nothing: no memory is kept."""

    def _step(self, step: Step) -> Step:
        """Return the kind of step of a call.

        Raises:
            ConfigError: it is not that of `sentence_stop`.
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
        progress.charge(bound)
        draft.made.append(made := MadeCall())
        with call.alone():
            written = call.write(given, progress, self._showing(draft, step, progress))
            self._check(written)
        made.usage = written.usage
        if written.usage.total_tokens:
            progress.charge(written.usage.total_tokens - bound)
        return replace(taken(draft, written, step, bound, self.sentence_stop), call=made)

    async def _arun(
        self, draft: TextDraft, given: GivenT, tokens: int, step: Step, progress: Progress
    ) -> TextDraft:
        if draft.finished:
            return draft
        bound = draft.allowed(tokens)
        call = self._writer.call(draft, step, bound, self.sentence_stop)
        progress.check()
        progress.charge(bound)
        draft.made.append(made := MadeCall())
        with call.alone():
            written = await call.awrite(given, progress, self._showing(draft, step, progress))
            self._check(written)
        made.usage = written.usage
        if written.usage.total_tokens:
            progress.charge(written.usage.total_tokens - bound)
        return replace(taken(draft, written, step, bound, self.sentence_stop), call=made)

    def _showing(self, draft: TextDraft, step: Step, progress: Progress) -> Show:
        """Return the function that reports a draft with the partial text of a call."""
        stop = self.sentence_stop if step == "stop" else None
        streamed = Streamed(draft, sentence=step == "sentence", sentence_stop=stop)

        def show(written: Written) -> None:
            if progress.wanted:
                progress.report(streamed.shown(written))

        return show

    def _check(self, written: Written) -> None:
        """Check that a call returned the requested log-probabilities.

        Raises:
            ModelError: there are none, or they do not spell the text.
        """
        if self._scored and written.text and written.logprobs is None:
            raise ModelError(
                f"The log-probabilities of the tokens were requested, and the model gave none that "
                f"spell its text ({written.text[:40]!r}). This workload needs them: use a server "
                "that gives them, or a local model with direct=True."
            )


def first_step(*, whole: bool, sentence_stop: str | None) -> Step:
    """Return the kind of step, for the required capabilities of the model.

    Raises:
        ConfigError: the settings are contradictory.
    """
    if sentence_stop == "":
        raise ConfigError("sentence_stop must be a text such as '.', got an empty one")
    if whole and sentence_stop is not None:
        raise ConfigError("whole and sentence_stop cannot be used together")
    if whole:
        return "whole"
    return "tokens" if sentence_stop is None else "stop"
