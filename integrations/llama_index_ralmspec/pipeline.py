"""The parts of a `SpeculativeQueryEngine`, made from the host's and checked for compatibility."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Hashable, Iterator, Sequence
from contextlib import aclosing, closing
from contextvars import Context
from functools import partial
from typing import Any, Final

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.response.schema import (
    RESPONSE_TYPE,
    AsyncStreamingResponse,
    StreamingResponse,
)
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import QueryBundle

from llama_index_ralmspec.callbacks import Telling
from llama_index_ralmspec.capabilities import inner, is_remote, keeps_nothing
from llama_index_ralmspec.host_calls import CallRecord, HostContext, copied, current_request
from llama_index_ralmspec.host_retriever import HostRetriever
from llama_index_ralmspec.inspection import blocks_loop
from llama_index_ralmspec.llm import HostLM
from llama_index_ralmspec.options import Options
from llama_index_ralmspec.postprocessing import Postprocessing
from llama_index_ralmspec.prompts import Prompting
from llama_index_ralmspec.response import LoopBoundStream, Responses, record_of
from llama_index_ralmspec.synthesis import SynthesizerLM, is_known, model_blocks_loop
from ralmspec_plugins.adapters.engines import (
    Engines,
    Runtime,
    most_tokens,
    workload_of,
    writes_whole,
)
from ralmspec_plugins.adapters.events import AsyncPieces, drive_events
from ralmspec_plugins.adapters.fingerprint import attributes, object_id
from ralmspec_plugins.adapters.retriever_state import HostStats
from ralmspec_plugins.adapters.side_effects import SideEffects
from ralmspec_plugins.effects import Commit, Event
from ralmspec_plugins.engine.streams import AsyncEventStream, EventStream
from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.scheduling.schedules import Continuous
from ralmspec_plugins.types import Request
from ralmspec_plugins.workloads import MultiHop

_log = logging.getLogger(__name__)
_TEMPLATES: Final = ("text_qa_template", "summary_template")
_MOST_MODELS: Final = 4  # the maximum depth of nested models


def check_postprocessors(
    workload: MultiHop[Any], postprocessors: Sequence[BaseNodePostprocessor]
) -> None:
    """Check that there are no postprocessors for nodes that are inserted into the text.

    Raises:
        ConfigError: there are some, which would not run.
    """
    if postprocessors and not workload.hops.in_front:
        names = ", ".join(type(one).__name__ for one in postprocessors)
        raise ConfigError(
            f"{names} would not run: workload='multi_hop' with {workload.hops!r} inserts the "
            "retriever's nodes into the text. Put a reranker into the retriever."
        )


class Assembly:
    """The parts made from a retriever, a synthesizer, postprocessors and options."""

    def __init__(
        self,
        retriever: BaseRetriever,
        synthesizer: BaseSynthesizer,
        postprocessors: Sequence[BaseNodePostprocessor],
        options: Options,
        runtime: Runtime,
    ) -> None:
        """Create the parts.

        Raises:
            ConfigError: they are not compatible; the message says what to do.
        """
        self.retriever, self.synthesizer = retriever, synthesizer
        self.options, self._runtime = options, runtime
        self._postprocessors = tuple(postprocessors)
        self.key = key_of(retriever, synthesizer, postprocessors)
        self.effects = _side_effects_of(synthesizer, options)
        self._blocks_loop = blocks_loop(retriever) or model_blocks_loop(synthesizer)
        self._workload = workload_of(options.workload, self._lm())
        if isinstance(self._workload, MultiHop):
            check_postprocessors(self._workload, self._postprocessors)
        self._host = self._hosts(retriever)
        self._replica = None if options.replica is None else self._hosts(options.replica)
        share = self._runtime.waste_share(options.max_wasted_share)
        speculation = options.speculation(guesses=self.guesses, waste_share=share)
        speculation.settings(self._host, options.schedule or Continuous(), self._replica)
        if options.speculate and options.guess_through is None and not self.guesses:
            _log.warning(
                "no answer is written with guesses: %s may keep state between two calls. Set "
                "guess_through=True if there is none, or False to disable this warning",
                ", ".join(self._unknown()),
            )

    def _hosts(self, retriever: BaseRetriever) -> HostRetriever:
        """Return the host's retriever, created in an empty context, so without its spans."""
        options = self.options
        return Context().run(
            partial(
                HostRetriever,
                retriever,
                batch=options.batching,
                side_by_side=options.side_by_side,
                pure=options.pure,
            )
        )

    def _lm(self) -> Any:  # these models read hits instead of the protocol's passages
        options = self.options
        if options.one_shot:
            return SynthesizerLM(self.synthesizer, self._postprocessors)
        llm = self.synthesizer._llm  # noqa: SLF001 the host has no other name for it
        prompting = self._prompting()
        if options.direct:
            from llama_index_ralmspec.local_model import direct_lm

            parts, decoding = (llm, prompting, self._postprocessors), options.decoding
            if decoding is None:
                return direct_lm(*parts)
            key = ("direct", object_id(decoding), self.key)  # copies share the measurements
            return self._runtime.shared(key, partial(direct_lm, *parts, decoding=decoding))
        return HostLM(
            llm,
            prompting,
            postprocessors=self._postprocessors,
            whole=writes_whole(options.workload),
            sentence_stop=options.sentence_stop,
            bound=options.bound,
            continuation=options.continuation,
            logprobs=options.logprobs,
        )

    def _prompting(self) -> Prompting:
        template = template_of(self.synthesizer)
        return Prompting() if template is None else Prompting(text_qa_template=template)

    @property
    def stats(self) -> HostStats:
        """The calls of the retriever's store so far."""
        return self._host.stats

    def note_call(self, found: int) -> None:
        """Count a call of the retriever by the host's own methods."""
        self._host.note_call(found)

    def request(self, context: HostContext) -> Request:
        """Return the request for a query."""
        options = self.options
        longest = options.max_tokens
        return Request(
            prompt=context.bundle.query_str,
            max_tokens=most_tokens(self._workload) if longest is None else longest,
            seed=options.seed,
            stop=options.stops,
            deadline_s=options.deadline_s,
            context=context,
        )

    @property
    def guesses(self) -> bool:
        """Whether the host's parts may be called with guesses, in any order and number."""
        options, effects = self.options, self.effects
        if not options.speculate or (effects is not None and effects.found is not None):
            return False
        return not self._unknown() if options.guess_through is None else options.guess_through

    def _unknown(self) -> list[str]:
        """Return the class names of parts that may use more than the nodes they receive."""
        unknown = Postprocessing(self._postprocessors).unknown
        if self.options.one_shot and not is_known(self.synthesizer):
            unknown.append(self.synthesizer)
        return [type(one).__name__ for one in unknown]

    def engines(self, bundle: QueryBundle, *, asynchronous: bool = False) -> Engines | None:
        """Return the engines for a query; `None` if the host's own engine answers it.

        It does if there is one retrieval and nothing to guess, and no limit on calls: then the
        host's parts run in the caller's thread and context, as without this package. Parts that
        would block the caller's event loop still run in the engine's threads.
        """
        options, guesses = self.options, self.guesses
        host = self._host.for_call(bundle)
        may_guess = None if self.effects is None else self.effects.may_guess
        llm = inner(getattr(self.synthesizer, "_llm", None))
        queue = self._runtime.model_queue(object_id(llm), options.max_concurrent_calls)
        speculation = options.speculation(
            guesses=guesses,
            may_guess=may_guess,
            model_queue=queue,
            waste_share=self._runtime.waste_share(options.max_wasted_share),
        )
        if (
            options.one_shot
            and options.deadline_s is None
            and options.max_concurrent_calls is None
            and not (asynchronous and self._blocks_loop)
            and not speculation.can_guess(host.look(), self._replica)
        ):
            return None
        return speculation.engines(
            self._runtime,
            (object_id(options), self.key, guesses),
            host,
            self._workload,
            self._replica,
        )


def _side_effects_of(synthesizer: BaseSynthesizer, options: Options) -> SideEffects | None:
    """Return the observer of the model's side effects; `None` if it is known to have none."""
    llm = inner(getattr(synthesizer, "_llm", None))
    if llm is None or options.guess_through or options.direct:
        return None
    if is_remote(llm) or keeps_nothing(llm):
        return None
    return SideEffects(*_models_in(llm))


def _models_in(llm: BaseLLM, depth: int = 0) -> list[BaseLLM]:
    """Return a model, and those that it holds and calls."""
    inside = [one for one in attributes(llm).values() if isinstance(one, BaseLLM)]
    if depth >= _MOST_MODELS:
        return [llm]
    return [llm, *(found for one in inside for found in _models_in(one, depth + 1))]


def key_of(
    retriever: BaseRetriever,
    synthesizer: BaseSynthesizer,
    postprocessors: Sequence[BaseNodePostprocessor],
) -> Hashable:
    """Return a key of the host's parts: engines are created again if one was replaced."""
    llm = getattr(synthesizer, "_llm", None)
    templates = [one for one in vars(synthesizer).values() if isinstance(one, BasePromptTemplate)]
    parts = (retriever, synthesizer, llm, *templates, *postprocessors)
    return tuple(map(object_id, parts))


def template_of(synthesizer: BaseSynthesizer) -> BasePromptTemplate | None:
    """Return the prompt with which a synthesizer formats nodes and question for the model."""
    prompts = synthesizer.get_prompts()
    return next((prompts[name] for name in _TEMPLATES if name in prompts), None)


# One query: the engine's events, reported to the host's handlers and converted to a response.


class RequestRun:
    """Answers one query."""

    def __init__(
        self,
        assembly: Assembly,
        engines: Engines,
        bundle: QueryBundle,
        *,
        asynchronous: bool = False,
    ) -> None:
        """Create a run; nothing is started yet.

        Args:
            assembly: the query engine's parts.
            engines: the engines that answer it.
            bundle: the query.
            asynchronous: whether it is answered on an event loop.
        """
        # Read once: chat engines enable it for one query, and disable it once it streams.
        streaming = bool(getattr(assembly.synthesizer, "_streaming", False))
        options = assembly.options
        context = HostContext(
            bundle if options.one_shot else copied(bundle),
            asynchronous,
            streaming,
            alone=options.one_shot and not assembly.guesses,
            retriever=assembly.retriever,
            threads=engines.threads,
            effects=assembly.effects,
        )
        self._engines = engines
        self._synthesizer = assembly.synthesizer
        self._context = context
        self._streaming = streaming
        self._request = assembly.request(context)
        self._telling = Telling(context.spans, records_of)
        self._responses = Responses(context, one_shot=options.one_shot, report=options.report)

    def response(self) -> RESPONSE_TYPE:
        """Return the response; one that streams is returned when its nodes are known.

        Raises:
            Exception: the error of the host's own loop.
        """
        events = self._engines.sync.events(self._request, reports=self._streaming)
        try:
            return self._response_of(events)
        except RuntimeError as error:
            if isinstance(error.__cause__, StopIteration):
                _ = events.answer  # raises the request's own error, outside of an iterator
            raise

    def _response_of(self, events: EventStream) -> RESPONSE_TYPE:
        pieces = self._pieces(events)
        next(pieces)  # now there is a response, and closing it ends the request
        made = self._responses.response
        if isinstance(made, StreamingResponse) and made is not self._responses.unread:
            return self._responses.streaming(pieces)
        for _ in pieces:
            pass
        return made

    def _pieces(self, events: EventStream) -> Generator[str, None, None]:
        current = _Current(events, self._context)
        with closing(drive_events(current, self._telling, self._responses.shown)) as pieces:
            yield from pieces
        yield from self._responses.ended(events.answer)

    async def aresponse(self) -> RESPONSE_TYPE:
        """Return the response on an event loop.

        Raises:
            Exception: the error of the host's own loop.
        """
        engine = self._engines.asynchronous
        pieces = self._apieces(engine.events(self._request, reports=self._streaming))
        await anext(pieces)
        made = self._responses.response
        if isinstance(made, AsyncStreamingResponse) and made is not self._responses.unread:
            anew = partial(self._responses.anew, self._synthesizer)
            return self._responses.streaming(LoopBoundStream(pieces, anew))
        async for _ in pieces:
            pass
        return made

    async def _apieces(self, events: AsyncEventStream) -> AsyncGenerator[str, None]:
        current = _AsyncCurrent(events, self._context)
        async with aclosing(AsyncPieces(current, self._telling, self._responses.shown)) as pieces:
            async for piece in pieces:
                yield piece
        for piece in self._responses.ended(events.answer):
            yield piece


def records_of(event: Commit) -> list[CallRecord]:
    """Return the records of a committed step's calls: embedding, search and model."""
    payloads = [hit.features for hit in event.hits]
    if event.retrieved is not None:
        payloads.append(event.retrieved.query.encoding)
    found = [getattr(one, "recording", None) for one in payloads]
    found.append(record_of(event.state))
    return [one for one in found if isinstance(one, CallRecord)]


class _Current:
    """A request's events; the request is current while the next event is computed."""

    def __init__(self, events: EventStream, context: HostContext) -> None:
        self._events = events
        self._context = context

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        token = current_request.set(self._context)
        try:
            return next(self._events)
        finally:
            current_request.reset(token)

    def close(self) -> None:
        self._events.close()


class _AsyncCurrent:
    """A request's events on an event loop; the request is current during the next one."""

    def __init__(self, events: AsyncEventStream, context: HostContext) -> None:
        self._events = events
        self._context = context

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        token = current_request.set(self._context)
        try:
            return await anext(self._events)
        finally:
            current_request.reset(token)

    async def aclose(self) -> None:
        await self._events.aclose()
