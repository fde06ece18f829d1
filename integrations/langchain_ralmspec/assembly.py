"""The parts of a `SpeculativeRAG`, made of its fields and held against each other."""

from collections.abc import Hashable
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final

from langchain_core.messages import AnyMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig

from langchain_ralmspec.call_configs import heard_by, shared_call, wants_stream
from langchain_ralmspec.direct import direct_lm
from langchain_ralmspec.direct_runs import DirectRuns
from langchain_ralmspec.host_retriever import HostRetriever
from langchain_ralmspec.lm import HostLM
from langchain_ralmspec.looking import users_config
from langchain_ralmspec.models import unwrapped
from langchain_ralmspec.prompting import DEFAULT_DOCUMENT_PROMPT, DEFAULT_PROMPT, Prompting
from langchain_ralmspec.silence import silenced
from langchain_ralmspec.voice import Voice, voice_of
from ralmspec_plugins import Answer, Continuous, Request
from ralmspec_plugins.adapters.engines import (
    Engines,
    Speculation,
    WorkloadName,
    is_one_shot,
    most_tokens,
    workload_of,
)
from ralmspec_plugins.adapters.fingerprint import token_of
from ralmspec_plugins.adapters.retriever_state import HostStats
from ralmspec_plugins.adapters.text_state import draft_of
from ralmspec_plugins.protocols import LanguageModel

if TYPE_CHECKING:
    from langchain_ralmspec.runnable import SpeculativeRAG

# What engines depend on, besides the retriever.
_OF_ENGINES: Final = (
    *("llm", "prompt", "document_prompt", "document_separator", "document_variable_name"),
    *("format_docs", "workload", "direct", "bound", "continuation", "sentence_stop"),
    *("speculate", "schedule", "prefetch", "pool", "memo", "replica"),
    *("batching", "side_by_side", "pure"),
)
_PLAIN: Final = (str, int, float, bool, type(None))


class Assembly:
    """What the fields of a runnable come to; everything that can be refused is refused here."""

    def __init__(self, rag: "SpeculativeRAG") -> None:
        """Put the parts together.

        Raises:
            ConfigError: they do not fit each other; the message says what to do.
        """
        self._rag = rag
        self.llm = silenced(rag.llm)
        self.retriever = silenced(rag.retriever)
        self._prompting = Prompting(
            prompt=rag.prompt or DEFAULT_PROMPT,
            document_prompt=rag.document_prompt or DEFAULT_DOCUMENT_PROMPT,
            separator=rag.document_separator,
            format_docs=rag.format_docs,
            document_variable=rag.document_variable_name,
        )
        by_default: WorkloadName = "interval" if rag.direct else "sentences"
        self._workload = workload_of(rag.workload or by_default, self._lm())
        of_host = (rag.retriever, rag.batching, rag.side_by_side, rag.pure)
        self._host = rag.runtime.host(tuple(map(_identity, of_host)), self._made_host)
        self._replica = None
        if rag.replica is not None:
            self._replica = Context().run(HostRetriever, rag.replica)  # as the other
        self._key = tuple(_identity(getattr(rag, name)) for name in _OF_ENGINES)
        self._speculation = _speculation(rag)
        schedule = rag.schedule or Continuous()
        self._speculation.settings(self._host, schedule, self._replica)  # refuse early

    def _made_host(self) -> HostRetriever:
        """Make the host's retriever, in nobody's context: none of its handlers stay with it."""
        rag = self._rag
        return Context().run(
            HostRetriever,
            self.retriever.runnable,
            batch=rag.batching,
            side_by_side=rag.side_by_side,
            pure=rag.pure,
        )

    @property
    def question_key(self) -> str:
        """Where the question stands in a dict, and in the prompt."""
        return self._rag.question_key

    @property
    def request_settings(self) -> dict[str, Any]:
        """What a request has unless its call says otherwise."""
        rag = self._rag
        return {
            "stop": rag.stop,
            "max_tokens": most_tokens(self._workload) if rag.max_tokens is None else rag.max_tokens,
            "seed": rag.seed,
            "deadline_s": rag.deadline_s,
        }

    @property
    def stats(self) -> HostStats:
        """What has reached the retriever's store so far."""
        return self._host.stats

    def direct_runs(self, request: Request) -> DirectRuns | None:
        """Give what tells of a directly driven model's segments, which no call has written."""
        if not self._rag.direct:
            return None
        model = unwrapped(self.llm.runnable).model
        return DirectRuns(request, self._prompting, model, self._workload.text)

    def voice(self, config: RunnableConfig) -> Voice:
        """Say how the retriever announces itself in a call with this config."""
        return voice_of(self.retriever.runnable, config)

    def followed(self, config: RunnableConfig) -> bool:
        """Whether somebody hears of a model's tokens while it writes, also when it is invoked."""
        if wants_stream(config):
            return True
        if not (heard_by(config) or self.llm.listeners):
            return False
        model = unwrapped(self.llm.runnable, config).model
        return getattr(model, "streaming", False) is True

    @property
    def text_is_answer(self) -> bool:
        """Whether the answer is the text itself, so that it can be given out as it comes."""
        if self._rag.output_parser is not None:
            return False
        return not is_one_shot(self._rag.workload) or _gives_text(self._rag.llm)

    def made_of(self, answer: Answer, config: RunnableConfig) -> Any:
        """Make what a request answers, where that is not its text.

        Raises:
            Exception: the output parser's own.
        """
        parser = self._rag.output_parser
        output = self._output(answer)
        return output if parser is None else parser.invoke(output, config)

    async def amade_of(self, answer: Answer, config: RunnableConfig) -> Any:
        """Do the same on an event loop.

        Raises:
            Exception: the output parser's own.
        """
        parser = self._rag.output_parser
        output = self._output(answer)
        return output if parser is None else await parser.ainvoke(output, config)

    def _output(self, answer: Answer) -> Any:
        """Give what a parser gets: of one call what it gave, of many their text."""
        message = getattr(draft_of(answer.state), "message", None)
        if message is None or not is_one_shot(self._rag.workload):
            return answer.text
        plain = self._rag.output_parser is None and isinstance(message, str | BaseMessage)
        return answer.text if plain else message

    def engines(self, config: RunnableConfig) -> Engines:
        """Give the engines for a call with this config."""
        host, runtime = self._host_for(config), self._rag.runtime
        return self._speculation.engines(runtime, self._key, host, self._workload, self._replica)

    def _host_for(self, config: RunnableConfig) -> HostRetriever:
        """Give the retriever for a call: of its config, only what sets the retriever up.

        It is kept for later calls, so nothing else of this one may stay with it: neither
        handlers that the context would add, nor what LangGraph makes for each run. A black
        box may also read tags and metadata; they are part of what keeps calls apart then.
        """
        chosen = users_config(config)
        host = self._called(chosen)
        if not host.looked_into:
            return host
        return self._called(RunnableConfig(configurable=chosen["configurable"]))

    def _called(self, config: RunnableConfig) -> HostRetriever:
        return Context().run(self._host.for_call, config, calls=lambda: shared_call(config))

    def _lm(self) -> LanguageModel[Any]:
        rag = self._rag
        if rag.direct:
            return direct_lm(rag.llm, self._prompting)
        return HostLM(
            self.llm.runnable,
            self._prompting,
            whole=is_one_shot(rag.workload),
            sentence_stop=rag.sentence_stop,
            bound=rag.bound,
            continuation=rag.continuation,
        )


def _speculation(rag: "SpeculativeRAG") -> Speculation:
    return Speculation(
        speculate=rag.speculate,
        schedule=rag.schedule,
        prefetch=rag.prefetch,
        pool=rag.pool,
        memo=rag.memo,
        side_by_side=rag.side_by_side,
        calls_cost=not rag.direct,
    )


def _gives_text(llm: Runnable[Any, Any]) -> bool:
    """Whether a runnable says of itself that it gives a text or a message."""
    try:
        return bool(llm.OutputType in (str, AnyMessage))
    except TypeError:  # it says nothing
        return False


def _identity(value: Any) -> Hashable:
    """Tell plain values by their value, and objects by which they are."""
    return value if isinstance(value, _PLAIN) else token_of(value)
