"""A LlamaIndex model as the core's `LanguageModel`: each segment is one call of the model."""

from collections.abc import (
    Hashable,
    Mapping,
    Sequence,
)
from contextlib import AbstractContextManager, aclosing, closing, nullcontext
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse
from llama_index.core.llms import LLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore

from llama_index_ralmspec import capabilities
from llama_index_ralmspec.capabilities import Abilities, told
from llama_index_ralmspec.host_calls import RequestCall, in_own_loop, request_call
from llama_index_ralmspec.postprocessing import Postprocessing, valued
from llama_index_ralmspec.prompts import Prompting, continued
from ralmspec_plugins.adapters.events import aclosable, closable
from ralmspec_plugins.adapters.logprobs import ScoredToken, aligned, entries_of
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
from ralmspec_plugins.types import Hits, same_to_read

# One call of a host's model, by any of its eight methods, and the conversion of its output.


Reply: TypeAlias = ChatResponse | CompletionResponse

_ASKED = ("prompt_tokens", "input_tokens", "prompt_eval_count")
_WRITTEN = ("completion_tokens", "output_tokens", "eval_count")


@dataclass(frozen=True, slots=True)
class HostCall:
    """A call of a host's model: its input and its arguments.

    Args:
        llm: the model, with the settings of this call.
        given: a formatted text to complete, or the messages of a chat.
        arguments: the arguments that bound the output and stop it.
        record: the record of this call, for the draft that it writes.
    """

    llm: LLM
    given: str | Sequence[ChatMessage]
    arguments: Mapping[str, Any]
    record: Any = None

    def invoke(self) -> Written:
        """Return the result of `complete` or `chat`."""
        reply: Reply
        if isinstance(self.given, str):
            reply = self.llm.complete(self.given, formatted=True, **self.arguments)
        else:
            reply = self.llm.chat(self.given, **self.arguments)
        return self._written(text_of(reply), [reply])

    async def ainvoke(self) -> Written:
        """Return the result of `acomplete` or `achat`."""
        reply: Reply
        if isinstance(self.given, str):
            reply = await self.llm.acomplete(self.given, formatted=True, **self.arguments)
        else:
            reply = await self.llm.achat(self.given, **self.arguments)
        return self._written(text_of(reply), [reply])

    def stream(self, progress: Progress, show: Show) -> Written:
        """Return the result of a stream, and show the text so far after each piece.

        The stream is read to its end even if enough has arrived, since the host sends its end
        event only then.

        Raises:
            Cancelled: `progress` was cancelled; the stream is closed.
        """
        replies: Any
        if isinstance(self.given, str):
            replies = self.llm.stream_complete(self.given, formatted=True, **self.arguments)
        else:
            replies = self.llm.stream_chat(self.given, **self.arguments)
        came: list[Reply] = []
        text = ""
        with closing(closable(replies)) as pieces:
            for reply in pieces:
                progress.check()
                came.append(reply)
                text += reply.delta or ""
                show(Written(text, recording=self.record))
        return self._written(text, came)

    async def astream(self, progress: Progress, show: Show) -> Written:
        """Return the result of an asynchronous stream, and show the text so far.

        Raises:
            Cancelled: `progress` was cancelled; the stream is closed.
        """
        replies: Any
        if isinstance(self.given, str):
            replies = await self.llm.astream_complete(self.given, formatted=True, **self.arguments)
        else:
            replies = await self.llm.astream_chat(self.given, **self.arguments)
        came: list[Reply] = []
        text = ""
        async with aclosing(aclosable(replies)) as pieces:
            async for reply in pieces:
                progress.check()
                came.append(reply)
                text += reply.delta or ""
                show(Written(text, recording=self.record))
        return self._written(text, came)

    def _written(self, text: str, came: Sequence[Reply]) -> Written:
        """Return the text, with the reason of its end and the usage in the last replies."""
        said = (self._ended(reply) for reply in reversed(came))
        ended = next((one for one in said if one is not None), None)
        counts = (usage_of(reply) for reply in reversed(came))
        usage = next((one for one in counts if one != Usage()), Usage())
        entries = [entry for reply in came for entry in logprobs_of(reply)]
        logprobs = aligned(entries, text) if entries else None
        return Written(text, ended, usage, came[-1] if came else None, self.record, logprobs)

    def _ended(self, reply: Reply) -> bool | None:
        ended = came_to_an_end(said_of(reply))
        tokens = reply.raw.get("model_output") if isinstance(reply.raw, Mapping) else None
        if ended is not None or tokens is None:
            return ended
        return _last_is_an_end(self.llm, tokens)


def text_of(reply: Reply) -> str:
    """Return the text of a model's reply: of content blocks, only the text blocks."""
    if isinstance(reply, ChatResponse):
        return reply.message.content or ""
    return reply.text


def said_of(reply: Reply) -> dict[str, Any]:
    """Return the reasons of a reply's end, from all fields in which servers report them."""
    raw = reply.raw
    places = [reply.additional_kwargs, raw, _get(raw, "delta")]
    for name in ("choices", "candidates"):
        found = _get(raw, name)
        if isinstance(found, Sequence) and found:
            places.append(found[0])
    if isinstance(reply, ChatResponse):
        places.append(reply.message.additional_kwargs)
    names = ("finish_reason", "stop_reason", "done_reason")
    said = ((name, _get(place, name)) for place in places for name in names)
    return {name: value for name, value in said if value is not None}


def logprobs_of(reply: Reply) -> list[ScoredToken]:
    """Return the log-probabilities in a server's own reply; the host's own are different."""
    choices = _get(reply.raw, "choices")
    said = _get(choices[0], "logprobs") if choices else None
    return [] if said is None else entries_of(said)


def usage_of(reply: Reply) -> Usage:
    """Return the token counts of a reply, or zeros if it has none."""
    for place in (reply.additional_kwargs, _get(reply.raw, "usage"), reply.raw):
        asked, written = _count(place, _ASKED), _count(place, _WRITTEN)
        if asked or written:
            return Usage(asked, written, _count(place, ("total_tokens",)) or asked + written)
    return Usage()


def _count(place: Any, names: Sequence[str]) -> int:
    found = next((value for name in names if (value := _get(place, name)) is not None), 0)
    return found if isinstance(found, int) else 0


def _get(place: Any, name: str) -> Any:
    """Return a value of a mapping or an attribute of an object: hosts use both."""
    return place.get(name) if isinstance(place, Mapping) else getattr(place, name, None)


def _last_is_an_end(llm: Any, tokens: Any) -> bool:
    """Return whether the last token of a local Hugging Face model is an end token."""
    own = llm._model.generation_config.eos_token_id  # noqa: SLF001 there is no public way
    ends = llm.generate_kwargs.get("eos_token_id", own)
    listed = ends if isinstance(ends, list) else [ends]
    return int(tokens[0][-1]) in (*listed, *llm.stopping_ids)


# The plan of one call of a host's model: its input, and the bound on its output.


@dataclass(frozen=True, slots=True)
class Plan:
    """One call: the text that it continues, its bound, and its record."""

    llm: LLM
    known: Abilities
    prompting: Prompting
    processing: Postprocessing
    text: str
    step: Step
    bound: int
    stop: Sequence[str]
    call: RequestCall
    scored: bool = False

    def alone(self) -> AbstractContextManager[None]:
        """Return an empty context: the host's handlers are notified immediately."""
        return nullcontext()

    def write(self, given: Hits, progress: Progress, show: Show) -> Written:
        """Call the model; as a stream if it can stream and its reports are used."""
        if self.call.asynchronous:
            return in_own_loop(self.awrite(given, progress, show))
        return self.call.run(lambda: self._written(given, progress, show))

    def _written(self, given: Hits, progress: Progress, show: Show) -> Written:
        call = self._call(self.call.nodes(given, self.processing), awaited=False)
        if self.known.streams and progress.wanted:
            return self._read(call.stream(progress, show))
        return self._read(call.invoke())

    async def awrite(self, given: Hits, progress: Progress, show: Show) -> Written:
        """Call the model by the host's asynchronous methods."""
        return await self.call.arun(lambda: self._awritten(given, progress, show))

    async def _awritten(self, given: Hits, progress: Progress, show: Show) -> Written:
        nodes = await self.call.anodes(given, self.processing)
        call = self._call(nodes, awaited=True)
        if self.known.native_async:
            return await self._acalled(call, progress, show)
        return await self.call.in_thread(
            lambda: in_own_loop(self._acalled(call, progress, show)), progress
        )

    async def _acalled(self, call: HostCall, progress: Progress, show: Show) -> Written:
        if self.known.streams and progress.wanted:
            return self._read(await call.astream(progress, show))
        return self._read(await call.ainvoke())

    def _call(self, nodes: list[NodeWithScore], *, awaited: bool) -> HostCall:
        """Return the call that continues the text after these nodes."""
        shown, continues = self._shown(nodes)
        llm, arguments = told(
            self.llm,
            self.known.way,
            tokens=self.bound if self.step in ("tokens", "sentence") else None,
            stop=self.stop,
            further=self._further(continues=continues),
            scored=self.scored,
            asynchronous=awaited,
        )
        return HostCall(llm, shown, arguments, self.call.record)

    def _further(self, *, continues: bool) -> Mapping[str, Any]:
        """Return the arguments to continue a message, and to request log-probabilities."""
        further = (self.known.continuation if continues else None) or {}
        asking = self.known.logprobs if self.scored else None
        return {**further, **merged(further, asking or {})}

    def _shown(self, nodes: list[NodeWithScore]) -> tuple[str | list[ChatMessage], bool]:
        """Return the input to continue, and whether it ends with a message of the assistant."""
        question, context = self.call.bundle.query_str, self.prompting.context(nodes)
        if not self.known.chat or self.known.by_prompt:
            return self.prompting.shown(self.llm, question, context) + self.text, False
        return continued(self.prompting.messages(self.llm, question, context), self.text)

    def _read(self, written: Written) -> Written:
        """Return a whole text after the model's own output parser, if it has one."""
        if not self.known.parses:
            return written
        text = self.llm._parse_output(written.text)  # noqa: SLF001 what `predict` does
        return replace(written, text=text)


class HostLM(TextLM[Hits]):
    """Continues a text by calls of a LlamaIndex model, with nodes in its prompt.

    The reference is the loop that a user would write manually with the same objects: prompt and
    text so far are the input, and at most n tokens of output are appended. A model
    that completes texts continues its prompt, with `complete(..., formatted=True)`; so
    does a chat model that formats its messages as one text (`messages_to_prompt`); any
    other chat model continues its own last message.
    """

    reads_hits = True

    def __init__(
        self,
        llm: LLM,
        prompting: Prompting | None = None,
        *,
        postprocessors: Sequence[BaseNodePostprocessor] = (),
        whole: bool = False,
        sentence_stop: str | None = None,
        bound: Bound | None = None,
        continuation: Continuation | None = None,
        side_by_side: bool | None = None,
        logprobs: Mapping[str, Any] | None = None,
    ) -> None:
        """Wrap a model.

        Args:
            llm: the model.
            prompting: formats nodes and question as a prompt.
            postprocessors: process the nodes before they are formatted; they receive the
                request's own question.
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

        Raises:
            ConfigError: the model cannot write in steps, or not in the requested way.
        """
        step = first_step(whole=whole, sentence_stop=sentence_stop)
        known = capabilities.abilities(
            llm,
            bound=bound,
            continuation=continuation,
            side_by_side=side_by_side,
            logprobs=logprobs,
        )
        capabilities.check(known, step)
        prompting = Prompting() if prompting is None else prompting
        writer = _ModelWriter(llm, known, prompting, Postprocessing(postprocessors))
        super().__init__(
            writer,
            whole=whole,
            sentence_stop=sentence_stop,
            side_by_side=known.side_by_side
            and (side_by_side is not None or not writer.processing.unknown),
        )
        self._own = writer

    @property
    def reads_scores(self) -> bool:
        """Whether any called part may read the nodes' scores."""
        return self._own.reads_scores


class _ModelWriter:
    """A model, its prompt, and its node postprocessors."""

    def __init__(
        self, llm: LLM, known: Abilities, prompting: Prompting, processing: Postprocessing
    ) -> None:
        self._llm = llm
        self._known = known
        self._prompting = prompting
        self._scored = False
        self.processing = processing

    @property
    def awaits(self) -> bool:
        return self._known.native_async or bool(self.processing.postprocessors)

    @property
    def reads_scores(self) -> bool:
        return self._prompting.format_nodes is not None or self.processing.reads_scores

    def call(self, draft: TextDraft, step: Step, bound: int, sentence_stop: str | None) -> Plan:
        """Return the plan of one call."""
        parts = (self._llm, self._known, self._prompting, self.processing)
        stop = stops(draft, step, sentence_stop)
        call = request_call(draft.origin)
        return Plan(*parts, draft.text, step, bound, stop, call, self._scored)

    def scored(self) -> "_ModelWriter":
        """Return a writer whose calls request log-probabilities.

        Raises:
            ConfigError: it is not known how they are requested from the model.
        """
        check_logprobs(self._known.name, self._known.logprobs)
        twin = copy(self)
        twin._scored = True  # noqa: SLF001 its own class
        return twin

    def write_key(self, draft: TextDraft, given: Hits, tokens: int) -> Hashable:
        """Return the draft and the nodes, with their scores if any part reads them."""
        return draft, valued(given, scores=self.reads_scores), tokens

    def same(self, one: Hits, other: Hits) -> bool:
        if self._prompting.format_nodes is not None and not same_to_read(one, other):
            return False
        return self.processing.same(one, other)
