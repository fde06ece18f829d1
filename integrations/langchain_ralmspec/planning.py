"""How one call of a host's model is planned: what it is given, how far it is to write."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable, RunnableConfig

from langchain_ralmspec.call_configs import HostContext, unheard
from langchain_ralmspec.host_call import HostCall
from langchain_ralmspec.models import Abilities, Unwrapped
from langchain_ralmspec.prompting import Prompting, continued
from langchain_ralmspec.recording import Recording
from ralmspec_plugins.adapters.text_model import Show, Step, merged, stops
from ralmspec_plugins.adapters.text_state import TextDraft, Written
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Passage


@dataclass(frozen=True, slots=True)
class Plan:
    """One call: the draft that it continues, what it is told, and who hears of it."""

    llm: Runnable[Any, Any]
    inner: Unwrapped
    known: Abilities
    prompting: Prompting
    draft: TextDraft
    step: Step
    arguments: Mapping[str, Any]
    context: HostContext | None = None
    config: RunnableConfig | None = None
    recording: Recording | None = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have what runs inside tell only the handlers of the call's own config.

        What it raises is noted, for the case that it counts: then its events do too.
        """
        if self.context is None or self.config is None or self.recording is None:
            yield
            return
        try:
            with unheard(self.config):
                yield
        except Exception as error:
            self.context.failures.note(error, self.recording)
            raise

    def write(self, given: Sequence[Passage], progress: Progress, show: Show) -> Written:
        """Call the model, as a stream where somebody listens and it can be listened to."""
        value = self.prompting.value(self.draft.origin, self.prompting.context(given))
        call = self._call(value)
        if self.known.streams and progress.wanted:
            return call.stream(progress, show)
        return call.invoke()

    async def awrite(self, given: Sequence[Passage], progress: Progress, show: Show) -> Written:
        """Do the same by the host's asynchronous methods."""
        value = await self.prompting.avalue(self.draft.origin, self.prompting.context(given))
        call = self._call(value)
        if self.known.streams and progress.wanted:
            return await call.astream(progress, show)
        return await call.ainvoke()

    def _call(self, value: PromptValue) -> HostCall:
        """Make the call that continues the draft behind this prompt."""
        told = (self.arguments, self.config, self.recording)
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
        return HostCall(self.llm, None, messages, arguments, self.config, self.recording)


def arguments_for(
    draft: TextDraft,
    step: Step,
    bound: int,
    sentence_stop: str | None,
    inner: Unwrapped,
    known: Abilities,
) -> dict[str, Any]:
    """Give the arguments that tell a model how far to write, and where to stop."""
    arguments: dict[str, Any] = {}
    stop = stops(draft, step, sentence_stop)
    if stop and known.takes_stop:
        arguments["stop"] = stop
    if step in ("tokens", "sentence") and known.bound is not None:
        arguments.update(merged(inner.arguments, known.bound(bound)))
    return arguments
