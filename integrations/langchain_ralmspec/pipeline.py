"""The parts of a `SpeculativeRAG`, made from its fields and checked for compatibility."""

from collections.abc import (
    AsyncGenerator,
    Callable,
    Collection,
    Generator,
    Hashable,
    Iterator,
    Mapping,
)
from contextlib import aclosing
from contextvars import Context
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, NamedTuple

from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel, BaseLanguageModel
from langchain_core.messages import AnyMessage, BaseMessage
from langchain_core.output_parsers import BaseOutputParser
from langchain_core.prompts import BasePromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.utils import AddableDict

from langchain_ralmspec.callbacks import CallbackSink
from langchain_ralmspec.capabilities import (
    cached,
    inside_pipeline,
    is_remote,
    keeps_nothing,
    unwrapped,
)
from langchain_ralmspec.configs import HostContext, heard_by, silenced, taps
from langchain_ralmspec.host_retriever import HostRetriever
from langchain_ralmspec.inspection import models_in, setup_of
from langchain_ralmspec.llm import HostLM
from langchain_ralmspec.local_model import DirectRuns, direct_lm, settings_of
from langchain_ralmspec.options import CALL_SETTINGS, check_has_effect, request_with
from langchain_ralmspec.prompts import (
    DEFAULT_DOCUMENT_PROMPT,
    DEFAULT_PROMPT,
    ChainInput,
    Prompting,
)
from langchain_ralmspec.response import ChainShape, Pieces, question_of, text_asked, variables_of
from ralmspec_plugins import (
    Answer,
    Continuous,
    FixedStride,
    OptimalStride,
    QueryCache,
    Request,
    SharedPassageCache,
)
from ralmspec_plugins.adapters.engines import (
    Engines,
    Runtime,
    Speculation,
    WorkloadMaker,
    WorkloadName,
    check_reads_logprobs,
    is_one_shot,
    most_tokens,
    workload_of,
    writes_whole,
)
from ralmspec_plugins.adapters.events import AsyncPieces, drive_events
from ralmspec_plugins.adapters.fingerprint import object_id
from ralmspec_plugins.adapters.retriever_state import BatchMode, HostStats
from ralmspec_plugins.adapters.side_effects import SideEffects
from ralmspec_plugins.adapters.text_model import Bound, Continuation
from ralmspec_plugins.adapters.text_state import draft_of
from ralmspec_plugins.adapters.writing_options import check_decoding
from ralmspec_plugins.effects import Confirmed, Event, Settled
from ralmspec_plugins.protocols import LanguageModel

# The fields that engines depend on, besides the retriever.
_OF_ENGINES: Final = (
    *("llm", "chain", "prompt", "document_prompt", "document_separator", "document_variable_name"),
    *("format_docs", "workload", "direct", "decoding", "bound", "continuation"),
    "logprobs",
    "sentence_stop",
    *("speculate", "guess_through", "schedule", "prefetch", "pool", "memo", "replica"),
    *("max_wasted_tokens", "max_wasted_encodings", "max_wasted_share", "max_concurrent_calls"),
    *("batching", "side_by_side", "pure"),
)
# The fields that a directly driven model depends on.
_OF_DIRECT: Final = (
    *("llm", "chain", "prompt", "document_prompt", "document_separator", "document_variable_name"),
    *("format_docs", "decoding"),
)
_PLAIN: Final = (str, int, float, bool, type(None))


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSettings:
    """The fields of a `SpeculativeRAG` from which its parts are made, under the same names."""

    retriever: Runnable[Any, Any]
    llm: Runnable[Any, Any]
    query: Runnable[Any, Any] | None
    chain: ChainShape | None
    prompt: BasePromptTemplate[Any] | None
    document_prompt: BasePromptTemplate[Any] | None
    document_separator: str
    document_variable_name: str
    question_key: str
    report: bool
    format_docs: Callable[[list[Document]], str] | None
    output_parser: BaseOutputParser[Any] | None
    workload: WorkloadName | WorkloadMaker | None
    direct: bool
    decoding: Any
    bound: Bound | None
    continuation: Continuation | None
    logprobs: Mapping[str, Any] | None
    sentence_stop: str | None
    max_tokens: int | None
    stop: tuple[str, ...]
    seed: int
    deadline_s: float | None
    speculate: bool
    guess_through: bool
    schedule: Continuous | OptimalStride | FixedStride | None
    prefetch: int | None
    pool: SharedPassageCache | None
    memo: QueryCache | None
    replica: BaseRetriever | None
    max_wasted_tokens: int | None
    max_wasted_encodings: int | None
    max_wasted_share: float | None
    max_concurrent_calls: int | None
    batching: BatchMode
    side_by_side: int
    pure: bool | None
    runtime: Runtime


class Asked(NamedTuple):
    """The parts of an input."""

    question: str
    given: dict[str, Any]  # the part in the reply
    variables: dict[str, Any]  # the prompt's variables, besides the documents


class Assembly:
    """The parts made from the fields of a runnable; all checks of the fields are made here."""

    def __init__(self, settings: PipelineSettings) -> None:
        """Create the parts.

        Raises:
            ConfigError: they are not compatible; the message says what to do.
        """
        self._settings = settings
        checked = (*CALL_SETTINGS, "bound", "continuation", "logprobs", "sentence_stop")
        self.check_has_effect([name for name in checked if getattr(settings, name)])
        check_reads_logprobs(settings.workload, settings.logprobs)
        self.llm = silenced(settings.llm)
        self.retriever = silenced(settings.retriever)
        whole = settings.chain is not None and settings.chain.whole
        self._prompting = (ChainInput if whole else Prompting)(
            prompt=settings.prompt or DEFAULT_PROMPT,
            document_prompt=settings.document_prompt or DEFAULT_DOCUMENT_PROMPT,
            separator=settings.document_separator,
            format_docs=settings.format_docs,
            document_variable=settings.document_variable_name,
        )
        watched = settings.speculate and not settings.direct and not settings.guess_through
        self._effects = None
        if watched:
            name = ("side effects", _identity(settings.llm))
            make = partial(side_effects_of, self.llm.runnable)
            self._effects = settings.runtime.shared(name, make)
        by_default: WorkloadName = "interval" if settings.direct else "sentences"
        self._workload = workload_of(settings.workload or by_default, self._lm())
        of_host = (settings.retriever, settings.batching, settings.side_by_side, settings.pure)
        self._host = settings.runtime.host(tuple(map(_identity, of_host)), self._made_host)
        self._replica = None
        if settings.replica is not None:
            self._replica = Context().run(HostRetriever, settings.replica)  # as for the retriever
        request_with("", None, self.request_settings)
        self._key = tuple(_identity(getattr(settings, name)) for name in _OF_ENGINES)
        self._speculation = _speculation(settings, self._effects)
        schedule = settings.schedule or Continuous()
        self._speculation.settings(self._host, schedule, self._replica)  # raises errors early

    def _made_host(self) -> HostRetriever:
        """Return the host's retriever, created in an empty context, so without its handlers."""
        settings = self._settings
        return Context().run(
            HostRetriever,
            self.retriever.runnable,
            batch=settings.batching,
            side_by_side=settings.side_by_side,
            pure=settings.pure,
        )

    def check_has_effect(self, given: Collection[str]) -> None:
        """Check that settings, of the runnable or of one call, have an effect.

        Raises:
            ConfigError: one has none; the message says which, and what to do.
        """
        settings = self._settings
        check_has_effect(
            given,
            direct=settings.direct,
            one_shot=is_one_shot(settings.workload),
            named=settings.workload is None or isinstance(settings.workload, str),
        )

    def check_call(self, settings: Mapping[str, Any]) -> None:
        """Check the settings of one call.

        Raises:
            TypeError: a setting of another type.
            ConfigError: an unknown setting, or one without a meaning.
        """
        self.check_has_effect(settings)
        request_with("", None, {**self.request_settings, **settings})

    def asked(self, value: Any, config: RunnableConfig, settings: Mapping[str, Any]) -> Asked:
        """Return the parts of an input: question, reply's keys, and prompt's variables.

        Args:
            value: the input.
            config: LangChain's.
            settings: of this call alone; checked before any code of the user runs.

        Raises:
            TypeError: a setting of another type.
            ConfigError: an unknown setting, or one without a meaning.
            InputError: there is no question.
            Exception: the error of the runnable that makes the query.
        """
        self.check_call(settings)
        query = self._settings.query
        return self._asked(value, None if query is None else query.invoke(value, config))

    async def aasked(
        self, value: Any, config: RunnableConfig, settings: Mapping[str, Any]
    ) -> Asked:
        """Return the parts of an input on an event loop."""
        self.check_call(settings)
        query = self._settings.query
        return self._asked(value, None if query is None else await query.ainvoke(value, config))

    def _asked(self, value: Any, made: Any) -> Asked:
        chain, key = self._settings.chain, self._settings.question_key
        if chain is not None:
            question = text_asked(chain.question(value) if made is None else made)
            return Asked(question, chain.given(value, key), chain.variables(value, key))
        if made is None:
            made, given = question_of(value, key)
        else:
            given = dict(value) if isinstance(value, Mapping) else {key: value}
        question = text_asked(made)
        return Asked(question, given, variables_of(question, given, key))

    @property
    def request_settings(self) -> dict[str, Any]:
        """The settings of a request unless its call overrides them."""
        settings = self._settings
        return {
            "stop": settings.stop,
            "max_tokens": most_tokens(self._workload)
            if settings.max_tokens is None
            else settings.max_tokens,
            "seed": settings.seed,
            "deadline_s": settings.deadline_s,
        }

    @property
    def stats(self) -> HostStats:
        """The calls of the retriever's store so far."""
        return self._host.stats

    def sink(self, context: HostContext, request: Request) -> CallbackSink:
        """Return the sink that reports to the handlers of a request and of its parts."""
        direct = None
        if self._settings.direct:  # no call of the host's model writes the segments
            model = unwrapped(self.llm.runnable).model
            direct = DirectRuns(request, self._prompting, model, self._workload.text)
        return CallbackSink(context, self.llm, self.retriever, self._prompting, direct)

    def followed(self, config: RunnableConfig) -> bool:
        """Return whether the host's `invoke` would stream the model to a handler.

        Results in the LLM cache are not streamed. A model in retries or fallbacks is invoked by
        these, since their `stream` behaves differently from their `invoke`.
        """
        handlers = heard_by(config)
        model = unwrapped(self.llm.runnable, config).model
        if not isinstance(model, BaseLanguageModel) or cached(model):
            return False
        if getattr(model, "streaming", False) is True:
            return bool(handlers or self.llm.listeners)
        return isinstance(model, BaseChatModel) and any(map(taps, handlers))

    @property
    def text_is_answer(self) -> bool:
        """Whether the answer is the text itself, so that it can be streamed."""
        if self._settings.output_parser is not None:
            return False
        if self._settings.chain is not None and self._settings.chain.whole:
            return self._settings.llm.OutputType is str
        return not is_one_shot(self._settings.workload) or _gives_text(self._settings.llm)

    def reply(self, asked: Asked) -> Pieces:
        """Return the pieces of the reply to a question."""
        text_is_answer, report = self.text_is_answer, self._settings.report
        return Pieces(asked.given, text_is_answer=text_is_answer, report=report)

    def made_of(self, answer: Answer, config: RunnableConfig) -> Any:
        """Return the answer of a request, if that is not its text.

        Raises:
            Exception: the output parser's own.
        """
        parser = self._settings.output_parser
        output = self._output(answer)
        return output if parser is None else parser.invoke(output, config)

    async def amade_of(self, answer: Answer, config: RunnableConfig) -> Any:
        """Return the answer of a request on an event loop, if that is not its text.

        Raises:
            Exception: the output parser's own.
        """
        parser = self._settings.output_parser
        output = self._output(answer)
        return output if parser is None else await parser.ainvoke(output, config)

    def _output(self, answer: Answer) -> Any:
        """Return the input of a parser: the result of the only call, or the text of several."""
        message = getattr(draft_of(answer.state), "message", None)
        if message is None or not is_one_shot(self._settings.workload):
            return answer.text
        if self._settings.chain is not None and self._settings.chain.whole:
            return answer.text if isinstance(message, str) else message
        plain = self._settings.output_parser is None and isinstance(message, str | BaseMessage)
        return answer.text if plain else message

    def engines(self, config: RunnableConfig) -> Engines:
        """Return the engines for a call with this config."""
        host, runtime = self._host_for(config), self._settings.runtime
        speculation, key = self._speculation, self._key
        if self._effects is not None and self._effects.found is not None:
            speculation, key = replace(speculation, guesses=False), (*key, "no guesses")
        if config.get("max_concurrency") is not None:  # requests at a time, each with one call
            host, speculation, key = (
                host.one_by_one(),
                speculation.one_by_one(),
                (*key, "one by one"),
            )
        return speculation.engines(runtime, key, host, self._workload, self._replica)

    def _host_for(self, config: RunnableConfig) -> HostRetriever:
        """Return the retriever for a call, with its config except the handlers.

        It may be kept for later calls of equal signature, so it holds neither this call's
        handlers nor those of its context.
        """
        return self._called(setup_of(config))

    def _called(self, config: RunnableConfig) -> HostRetriever:
        return Context().run(self._host.for_call, config)

    def _lm(self) -> LanguageModel[Any]:
        settings = self._settings
        check_decoding(settings.decoding, direct=settings.direct)
        if settings.direct:
            make = partial(direct_lm, settings.llm, self._prompting, decoding=settings.decoding)
            if settings.decoding is None:
                return make()
            key = ("direct", *(_identity(getattr(settings, name)) for name in _OF_DIRECT))
            return settings.runtime.shared(key, make)  # copies share the measurements
        return HostLM(
            self.llm.runnable,
            self._prompting,
            whole=writes_whole(settings.workload),
            sentence_stop=settings.sentence_stop,
            bound=settings.bound,
            continuation=settings.continuation,
            logprobs=settings.logprobs,
            effects=self._effects,
        )


def _speculation(settings: PipelineSettings, effects: SideEffects | None) -> Speculation:
    return Speculation(
        speculate=settings.speculate,
        schedule=settings.schedule,
        prefetch=settings.prefetch,
        pool=settings.pool,
        memo=settings.memo,
        side_by_side=settings.side_by_side,
        calls_cost=not settings.direct,
        may_guess=None if effects is None else effects.may_guess,
        max_wasted_tokens=settings.max_wasted_tokens,
        max_wasted_encodings=settings.max_wasted_encodings,
        max_wasted_share=settings.runtime.waste_share(settings.max_wasted_share),
        model_queue=settings.runtime.model_queue(
            _identity(settings.llm), settings.max_concurrent_calls
        ),
    )


def side_effects_of(llm: Runnable[Any, Any]) -> SideEffects | None:
    """Return the observer of side effects of a model's calls; `None` if it cannot have any.

    A known server keeps no state in this process, and its client's counters do not affect an
    answer; this package's own models keep nothing. A pipeline of transformers that does not sample
    still draws random numbers (in its data loader), but does not use them.
    """
    model = unwrapped(llm).model
    models = models_in(llm)
    if models and all(
        is_remote(one) or keeps_nothing(one) or _never_samples(one) for one in models
    ):
        return None
    return SideEffects(*models, *(() if any(model is one for one in models) else (model,)))


def _never_samples(model: Any) -> bool:
    """Return whether a model is a pipeline of transformers that does not sample."""
    wrapper = inside_pipeline(model)
    if wrapper is None:
        return False
    settings = settings_of(wrapper.pipeline, wrapper.pipeline_kwargs or {})
    return not settings.get("do_sample")


def _gives_text(llm: Runnable[Any, Any]) -> bool:
    """Return whether a runnable declares that it returns a text or a message."""
    try:
        return bool(llm.OutputType in (str, AnyMessage))
    except TypeError:  # it declares nothing
        return False


def _identity(value: Any) -> Hashable:
    """Return the key of a value: plain values by equality, objects by identity."""
    return value if isinstance(value, _PLAIN) else object_id(value)


# One request: the engine's events, reported to the host's handlers and converted to pieces.


class RequestRun:
    """Answers one question."""

    def __init__(
        self,
        assembly: Assembly,
        asked: Asked,
        config: RunnableConfig,
        settings: Mapping[str, Any],
        *,
        streamed: bool,
    ) -> None:
        """Create a run; nothing is started yet.

        Args:
            assembly: the runnable's parts.
            asked: the question.
            config: LangChain's, with the callbacks of this request's own run.
            settings: settings of the request, for this call only, checked.
            streamed: whether the reply is requested in pieces.
        """
        context = HostContext(config, asked.variables, streamed)
        chosen = {**assembly.request_settings, **settings}
        self._request = request_with(asked.question, context, chosen)
        self._engines = assembly.engines(config)
        self._telling = assembly.sink(context, self._request)
        self._assembly, self._config = assembly, config
        self._pieces = assembly.reply(asked)
        self._reports = streamed or assembly.followed(config)  # of the model during generation

    def pieces(self) -> Generator[AddableDict, None, None]:
        """Yield the reply in pieces."""
        yield self._pieces.begin()
        events = self._engines.sync.events(self._request, reports=self._reports)
        yield from drive_events(events, self._telling, self._shown)
        made, answer = None, events.answer
        self._telling.ended(answer)
        if not self._assembly.text_is_answer:
            made = self._assembly.made_of(answer, self._config)
        yield from self._pieces.end(answer, made)

    async def apieces(self) -> AsyncGenerator[AddableDict, None]:
        """Yield the reply in pieces on an event loop."""
        yield self._pieces.begin()
        events = self._engines.asynchronous.events(self._request, reports=self._reports)
        async with aclosing(AsyncPieces(events, self._telling, self._shown)) as pieces:
            async for piece in pieces:
                yield piece
        made, answer = None, events.answer
        await self._telling.aended(answer)
        if not self._assembly.text_is_answer:
            made = await self._assembly.amade_of(answer, self._config)
        for piece in self._pieces.end(answer, made):
            yield piece

    def _shown(self, event: Event) -> Iterator[AddableDict]:
        if isinstance(event, Confirmed):
            yield from self._pieces.retrieved(event.retrieved)
        elif isinstance(event, Settled):
            yield from self._pieces.settled(event.text)
