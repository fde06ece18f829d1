"""A LangChain model as the core's `LanguageModel`: each segment is one call of the model."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, aclosing, closing, contextmanager
from copy import copy
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Final, NamedTuple

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    BaseMessageChunk,
    message_chunk_to_message,
)
from langchain_core.outputs import LLMResult
from langchain_core.prompt_values import PromptValue, StringPromptValue
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config, merge_configs

from langchain_ralmspec import capabilities
from langchain_ralmspec.capabilities import Abilities, Unwrapped
from langchain_ralmspec.configs import HostContext
from langchain_ralmspec.prompts import Prompting, continued
from langchain_ralmspec.recording import CallCapture
from ralmspec_plugins.adapters.events import aclosable, closable
from ralmspec_plugins.adapters.logprobs import aligned, entries_of
from ralmspec_plugins.adapters.side_effects import SideEffects
from ralmspec_plugins.adapters.text_model import (
    Bound,
    Continuation,
    Show,
    Step,
    TextLM,
    came_to_an_end,
    check_logprobs,
    first_step,
    merged,
    stops,
)
from ralmspec_plugins.adapters.text_state import TextDraft, Usage, Written
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Passage

# One call of a host's model, by any of its four methods, and the conversion of its output.


@dataclass(frozen=True, slots=True)
class HostCall:
    """A call of a host's model: its input and its settings.

    Args:
        llm: the model as the user gave it, wrappers included.
        inner: the model inside the wrappers, if it returns a bare text, which does not contain
            why it ended.
        value: the input.
        arguments: the arguments that bound the output and stop it.
        capture: records the events of this call, for the draft that it writes.
        config: the host's config with the capture; `None`: the config of the current context.
    """

    llm: Runnable[Any, Any]
    inner: Unwrapped | None
    value: Any
    arguments: Mapping[str, Any]
    capture: CallCapture
    config: RunnableConfig | None = None

    def invoke(self) -> Written:
        """Return the result of `invoke`."""
        output = self.llm.invoke(self.value, self._config(), **self.arguments)
        result = self._result
        if (again := self._cached(result)) is not None:
            result = again.model.generate_prompt([_prompt(self.value)], **again.arguments)
        return self._written(output, result)

    async def ainvoke(self) -> Written:
        """Return the result of `ainvoke`."""
        output = await self.llm.ainvoke(self.value, self._config(), **self.arguments)
        result = self._result
        if (again := self._cached(result)) is not None:
            prompts = [_prompt(self.value)]
            result = await again.model.agenerate_prompt(prompts, **again.arguments)
        return self._written(output, result)

    def stream(self, progress: Progress, show: Show) -> Written:
        """Return the result of `stream`, and show the text so far after each piece.

        The stream is read to its end even if enough has arrived, since the host sends its end
        event only then.

        Raises:
            Cancelled: `progress` was cancelled; the stream is closed.
        """
        came = _Came(self.capture)
        chunks = closable(self.llm.stream(self.value, self._config(), **self.arguments))
        with closing(chunks):
            for chunk in chunks:
                progress.check()
                show(came.with_one_more(chunk))
        return self._written(came.output, self._result)

    async def astream(self, progress: Progress, show: Show) -> Written:
        """Return the result of `astream`, and show the text so far after each piece.

        Raises:
            Cancelled: `progress` was cancelled; the stream is closed.
        """
        came = _Came(self.capture)
        chunks = aclosable(self.llm.astream(self.value, self._config(), **self.arguments))
        async with aclosing(chunks):
            async for chunk in chunks:
                progress.check()
                show(came.with_one_more(chunk))
        return self._written(came.output, self._result)

    def _config(self) -> RunnableConfig | None:
        if self.config is not None or self.inner is None:
            return self.config
        return merge_configs(ensure_config(), RunnableConfig(callbacks=[self.capture]))

    @property
    def _result(self) -> LLMResult | None:
        """The result in the model's end event, if the output is a bare text."""
        run = None if self.inner is None else self.capture.run
        return None if run is None else run.response

    def _cached(self, result: LLMResult | None) -> Unwrapped | None:
        """Return how to read the host's cache again, if it answered: its hits have no events.

        The reason of a text's end must not depend on whether it was in the cache.
        """
        if self.inner is None or result is not None or not capabilities.cached(self.inner.model):
            return None
        arguments = {**self.inner.arguments, **self.arguments, "callbacks": None}
        return Unwrapped(self.inner.model, arguments, dynamic=False)

    def _written(self, output: Any, result: LLMResult | None) -> Written:
        told = _told(result)
        usage = Usage()
        if isinstance(output, BaseMessageChunk) and not self.capture.streamed:
            output = message_chunk_to_message(output)  # as `invoke` returns it
        if isinstance(output, BaseMessage):
            told = output.response_metadata
        if isinstance(output, AIMessage) and output.usage_metadata is not None:
            counted: Mapping[str, Any] = output.usage_metadata  # incomplete for a hit of the cache
            usage = Usage(*(counted.get(name, 0) for name in _COUNTED))
        text, said = text_of(output), told.get("logprobs")
        logprobs = None if said is None else aligned(entries_of(said), text)
        return Written(text, came_to_an_end(told), usage, output, self.capture, logprobs)


_COUNTED: Final = ("input_tokens", "output_tokens", "total_tokens")


def _told(result: LLMResult | None) -> Mapping[str, Any]:
    """Return the information in a call's end event, such as why its text ended."""
    if result is None or not result.generations or not result.generations[0]:
        return {}
    return result.generations[0][0].generation_info or {}


def text_of(output: Any) -> str:
    """Return the text of a model's output: of content blocks, only the text blocks."""
    if isinstance(output, BaseMessage):
        return str(output.text)
    return output if isinstance(output, str) else str(output)


class _Came:
    """The chunks of a stream so far."""

    def __init__(self, capture: CallCapture) -> None:
        self._chunks: list[Any] = []
        self._text = ""
        self._capture = capture

    def with_one_more(self, chunk: Any) -> Written:
        self._chunks.append(chunk)
        if isinstance(chunk, str | BaseMessage):  # other output has a text only at the end
            self._text += text_of(chunk)
        return Written(self._text, recording=self._capture)

    @property
    def output(self) -> Any:
        """The sum of the chunks, as the host computes it; "" if there are none."""
        if self._chunks and isinstance(self._chunks[0], str):
            return "".join(self._chunks)
        if len(self._chunks) > 1 and all(type(one) is AIMessageChunk for one in self._chunks):
            first: Any = self._chunks[0]
            return first + self._chunks[1:]  # all at once, as the host does: pairwise is quadratic
        return reduce(add, self._chunks) if self._chunks else ""


def _prompt(value: PromptValue | str) -> PromptValue:
    return StringPromptValue(text=value) if isinstance(value, str) else value


# The plan of one call of a host's model: its input, and the bound on its output.


@dataclass(frozen=True, slots=True)
class Plan:
    """One call: the draft that it continues, its arguments, and its handlers."""

    llm: Runnable[Any, Any]
    inner: Unwrapped
    known: Abilities
    prompting: Prompting
    draft: TextDraft
    step: Step
    arguments: Mapping[str, Any]
    capture: CallCapture
    context: HostContext | None = None
    config: RunnableConfig | None = None
    effects: SideEffects | None = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Run code with the call's own capture as the only handler, and observe side effects."""
        with ExitStack() as stack:
            if self.context is not None and self.config is not None:
                stack.enter_context(self.context.calling(self.config, self.capture))
            if self.effects is not None:
                stack.enter_context(self.effects.watched())
            yield

    def write(self, given: Sequence[Passage], progress: Progress, show: Show) -> Written:
        """Call the model; as a stream if it can stream and its reports are used."""
        self.capture.given = given
        value = self.prompting.value(self.draft.origin, self.prompting.context(given))
        call = self._call(value)
        if self.known.streams and progress.wanted:
            return call.stream(progress, show)
        return call.invoke()

    async def awrite(self, given: Sequence[Passage], progress: Progress, show: Show) -> Written:
        """Call the model by the host's asynchronous methods."""
        self.capture.given = given
        value = await self.prompting.avalue(self.draft.origin, self.prompting.context(given))
        call = self._call(value)
        if self.known.streams and progress.wanted:
            return await call.astream(progress, show)
        return await call.ainvoke()

    def _call(self, value: PromptValue) -> HostCall:
        """Return the call that continues the draft after this prompt."""
        told = (self.arguments, self.capture, self.config)
        text = self.draft.text
        if self.step == "whole":
            return HostCall(self.llm, None, value, *told)
        if not self.known.chat:
            shown = value.to_string() + text if text else value
            return HostCall(self.llm, self.inner, shown, *told)
        messages, continues = continued(value, text, self.known.mark)
        arguments = self.arguments
        if continues and self.known.continuation:
            base = {**self.inner.arguments, **arguments}
            arguments = {**arguments, **merged(base, self.known.continuation)}
        return HostCall(self.llm, None, messages, arguments, self.capture, self.config)


def arguments_for(
    draft: TextDraft,
    step: Step,
    bound: int,
    sentence_stop: str | None,
    inner: Unwrapped,
    known: Abilities,
    *,
    scored: bool = False,
) -> dict[str, Any]:
    """Return the arguments that bound a model's output, stop it, and request log-probabilities."""
    arguments: dict[str, Any] = {}
    stop = stops(draft, step, sentence_stop)
    if stop and known.takes_stop:
        arguments["stop"] = stop
    if step in ("tokens", "sentence") and known.bound is not None:
        arguments.update(merged(inner.arguments, known.bound(bound)))
    if scored:
        asking = check_logprobs(known.name, known.logprobs)
        arguments.update(merged({**inner.arguments, **arguments}, asking))
    return arguments


class HostLM(TextLM[Sequence[Passage]]):
    """Continues a text by calls of a LangChain model, with documents in its prompt.

    The reference is the loop that a user would write manually with the same objects: prompt and
    text so far are the input, and at most n tokens of output are appended. A string model
    continues its text, a chat model its own last message.
    """

    def __init__(
        self,
        llm: Runnable[Any, Any],
        prompting: Prompting | None = None,
        *,
        whole: bool = False,
        sentence_stop: str | None = None,
        bound: Bound | None = None,
        continuation: Continuation | None = None,
        side_by_side: bool | None = None,
        logprobs: Mapping[str, Any] | None = None,
        effects: SideEffects | None = None,
    ) -> None:
        """Wrap a model, or a model in `.bind(...)`, `.with_config(...)` and similar wrappers.

        Args:
            llm: the model. With `whole`, any runnable that takes a prompt.
            prompting: formats documents and inputs as a prompt.
            whole: whether one call, without a bound, writes the whole answer.
            sentence_stop: for models whose output cannot be bounded, but which accept stop
                strings: the end of a sentence, such as ".".
            bound: how a call is bounded to n tokens: the name of an argument, or a function
                from n to the arguments of the call. By default determined by the class.
            continuation: how a chat model continues a trailing assistant message: "assistant",
                or the arguments that enable it. By default determined by the class.
            side_by_side: whether several calls may run at a time. By default determined by the
                class.
            logprobs: the arguments of a call that request log-probabilities, in OpenAI's form,
                for workloads that read them. By default determined by the class.
            effects: observes side effects of its calls.

        Raises:
            ConfigError: the model cannot write in steps, or not in the requested way.
        """
        step = first_step(whole=whole, sentence_stop=sentence_stop)
        prompting = Prompting() if prompting is None else prompting
        stated = _Stated(bound, continuation, side_by_side, logprobs)
        writer = _Writer(llm, prompting, stated, effects)
        capabilities.check(writer.known, step)
        super().__init__(
            writer,
            whole=whole,
            sentence_stop=sentence_stop,
            side_by_side=writer.known.side_by_side,
        )


class _Stated(NamedTuple):
    """The abilities of a model as set by the user, which override those of its class."""

    bound: Bound | None
    continuation: Continuation | None
    side_by_side: bool | None
    logprobs: Mapping[str, Any] | None


class _Writer:
    """A model, possibly with wrappers, and its prompt."""

    def __init__(
        self,
        llm: Runnable[Any, Any],
        prompting: Prompting,
        stated: _Stated,
        effects: SideEffects | None,
    ) -> None:
        self._llm = llm
        self._prompting = prompting
        self._stated = stated
        self._effects = effects
        self._scored = False
        self._inner, self.known = self._look(None)

    @property
    def awaits(self) -> bool:
        return self.known.native_async

    def call(self, draft: TextDraft, step: Step, bound: int, sentence_stop: str | None) -> Plan:
        """Plan one call.

        Raises:
            ConfigError: its config selects a model that cannot write in such steps.
        """
        context: HostContext | None = draft.origin.context
        config, capture = (None, CallCapture()) if context is None else context.call()
        capture.before = draft
        inner, known = self._inner, self.known
        if inner.dynamic:
            inner, known = self._look(config)
            capabilities.check(known, step)
        arguments = arguments_for(
            draft, step, bound, sentence_stop, inner, known, scored=self._scored
        )
        parts = (self._llm, inner, known, self._prompting)
        return Plan(*parts, draft, step, arguments, capture, context, config, self._effects)

    def scored(self) -> "_Writer":
        """Return a writer whose calls request log-probabilities.

        Raises:
            ConfigError: it is not known how they are requested from the model.
        """
        check_logprobs(self.known.name, self.known.logprobs)
        twin = copy(self)
        twin._scored = True  # noqa: SLF001 its own class
        return twin

    def write_key(self, draft: TextDraft, given: Sequence[Passage], tokens: int) -> Hashable:
        """Return the draft, and the passages as the model reads them."""
        try:
            return draft, self._prompting.context(given), tokens
        except Exception:  # noqa: BLE001 the call itself raises it
            return object()

    def same(self, one: Sequence[Passage], other: Sequence[Passage]) -> bool:
        return self._prompting.same_passages(one, other)

    def _look(self, config: RunnableConfig | None) -> tuple[capabilities.Unwrapped, Abilities]:
        inner = capabilities.unwrapped(self._llm, config)
        return inner, capabilities.abilities(inner, **self._stated._asdict())
