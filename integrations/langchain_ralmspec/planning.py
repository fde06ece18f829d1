"""How one call of a host's model is bounded, and how its output is taken into the draft."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable, RunnableConfig

from langchain_ralmspec.call_configs import HostContext, unheard
from langchain_ralmspec.host_call import HostCall, Show
from langchain_ralmspec.models import Abilities, Unwrapped
from langchain_ralmspec.prompting import continued
from langchain_ralmspec.recording import Recording
from ralmspec_plugins.hosts.text_calls import Step, merged, stops, taken
from ralmspec_plugins.hosts.text_draft import Streamed, TextDraft, Written
from ralmspec_plugins.protocols import Progress


@dataclass(frozen=True, slots=True)
class Plan:
    """One call: the step that it is to write, what it is told, and who hears of it."""

    step: Step
    bound: int
    sentence_stop: str
    inner: Unwrapped
    known: Abilities
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
            self.context.failed(error, self.recording)
            raise

    def call(self, llm: Runnable[Any, Any], draft: TextDraft, value: PromptValue) -> HostCall:
        """Make the call that continues a draft behind this prompt."""
        told = (self.arguments, self.config, self.recording)
        if self.step == "whole":
            return HostCall(llm, None, value, *told)
        if not self.known.chat:
            shown = value.to_string() + draft.text if draft.text else value
            return HostCall(llm, self.inner, shown, *told)
        messages, continues = continued(value, draft.text, self.known.mark)
        arguments = self.arguments
        if continues and self.known.continuation:
            base = {**self.inner.arguments, **arguments}
            arguments = {**arguments, **merged(base, self.known.continuation)}
        return HostCall(llm, None, messages, arguments, self.config, self.recording)

    def streams(self, progress: Progress) -> bool:
        """Whether somebody listens, and the model can be listened to."""
        return self.known.streams and progress.wanted

    def showing(self, draft: TextDraft, progress: Progress) -> Show:
        """Give what reports a draft with what has come so far."""
        streamed = Streamed(draft, sentence=self.step == "sentence")
        return lambda written: progress.report(streamed.shown(written))

    def take(self, draft: TextDraft, written: Written) -> TextDraft:
        """Append what came."""
        return taken(draft, written, self.step, self.bound, self.sentence_stop)


def planned(
    draft: TextDraft,
    tokens: int,
    step: Step,
    sentence_stop: str | None,
    inner: Unwrapped,
    known: Abilities,
) -> tuple[int, dict[str, Any]]:
    """Say to how many tokens a call is bounded, and give the arguments that tell the model."""
    bound = draft.allowed(tokens)
    arguments: dict[str, Any] = {}
    stop = stops(draft, step, sentence_stop)
    if stop and known.takes_stop:
        arguments["stop"] = stop
    if step in ("tokens", "sentence") and known.bound is not None:
        arguments.update(merged(inner.arguments, known.bound(bound)))
    return bound, arguments
