"""One request: what happens in the engine, told to the host's handlers and given out in pieces."""

from collections.abc import AsyncGenerator, Generator, Iterator, Mapping
from contextlib import aclosing
from typing import Any, Final

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.utils import AddableDict

from langchain_ralmspec.assembly import Assembly
from langchain_ralmspec.call_configs import HostContext
from langchain_ralmspec.reply import Pieces, question_of, variables_of
from langchain_ralmspec.telling import Telling
from ralmspec_plugins import Request
from ralmspec_plugins.adapters.events import afollowed, followed
from ralmspec_plugins.effects import Confirmed, Event, Settled
from ralmspec_plugins.errors import ConfigError

_SETTINGS: Final = ("stop", "max_tokens", "seed", "deadline_s")


class RequestRun:
    """Answers one question."""

    def __init__(
        self,
        assembly: Assembly,
        value: str | Mapping[str, Any],
        config: RunnableConfig,
        settings: Mapping[str, Any],
        *,
        asynchronous: bool = False,
    ) -> None:
        """Look at the question, and begin nothing yet.

        Args:
            assembly: the runnable's parts.
            value: the question.
            config: LangChain's, with the callbacks of this request's own run.
            settings: of the request, for this call alone.
            asynchronous: whether it is answered on an event loop.

        Raises:
            InputError: there is no question.
            ConfigError: an unknown setting, or one without a meaning.
        """
        question, given = question_of(value, assembly.question_key)
        variables = variables_of(question, given, assembly.question_key)
        context = HostContext(config, variables, asynchronous)
        self._request = _request(assembly, question, context, settings)
        self._engines = assembly.engines(config)
        self._telling = Telling(
            context,
            assembly.voice(config),
            assembly.llm,
            assembly.retriever,
            assembly.direct_runs(self._request),
        )
        self._assembly, self._config = assembly, config
        self._pieces = Pieces(given, text_is_answer=assembly.text_is_answer)

    def pieces(self, *, reports: bool) -> Generator[AddableDict, None, None]:
        """Give the reply in pieces; `reports`: follow the model while it writes."""
        yield self._pieces.begin()
        events = self._engines.sync.events(self._request, reports=reports)
        yield from followed(events, self._telling, self._shown)
        made, answer = None, events.answer
        if not self._assembly.text_is_answer:
            made = self._assembly.made_of(answer, self._config)
        yield from self._pieces.end(answer, made)

    async def apieces(self, *, reports: bool) -> AsyncGenerator[AddableDict, None]:
        """Do the same on an event loop."""
        yield self._pieces.begin()
        events = self._engines.asynchronous.events(self._request, reports=reports)
        async with aclosing(afollowed(events, self._telling, self._shown)) as pieces:
            async for piece in pieces:
                yield piece
        made, answer = None, events.answer
        if not self._assembly.text_is_answer:
            made = await self._assembly.amade_of(answer, self._config)
        for piece in self._pieces.end(answer, made):
            yield piece

    def _shown(self, event: Event) -> Iterator[AddableDict]:
        if isinstance(event, Confirmed):
            yield from self._pieces.retrieved(event.retrieved)
        elif isinstance(event, Settled):
            yield from self._pieces.settled(event.text)


def _request(
    assembly: Assembly, question: str, context: HostContext, settings: Mapping[str, Any]
) -> Request:
    unknown = [name for name in settings if name not in _SETTINGS]
    if unknown:
        raise ConfigError(
            f"unknown settings {unknown} of a call; known are {', '.join(_SETTINGS)}. "
            "What the model is to be called with is bound to the model: llm.bind(...)"
        )
    chosen = {**assembly.request_settings, **settings}
    stop = chosen.pop("stop") or ()
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    return Request(prompt=question, context=context, stop=stop, **chosen)
