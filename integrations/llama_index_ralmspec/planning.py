"""How one call of a host's model is planned: its step, its bound, and what it is given."""

from dataclasses import dataclass, replace

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms import LLM
from llama_index.core.schema import NodeWithScore

from llama_index_ralmspec.bounds import told
from llama_index_ralmspec.host_call import HostCall, Show
from llama_index_ralmspec.models import Abilities
from llama_index_ralmspec.prompting import Prompting, continued
from llama_index_ralmspec.quiet_call import QuietCall
from ralmspec_plugins.hosts.text_calls import Step, stops, taken
from ralmspec_plugins.hosts.text_draft import Streamed, TextDraft, Written
from ralmspec_plugins.protocols import Progress


@dataclass(frozen=True, slots=True)
class Plan:
    """One call: the step that it is to write, and how far."""

    step: Step
    bound: int
    sentence_stop: str | None
    llm: LLM
    known: Abilities
    prompting: Prompting

    def host_call(
        self,
        draft: TextDraft,
        nodes: list[NodeWithScore],
        quiet: QuietCall,
        *,
        awaited: bool = False,
    ) -> HostCall:
        """Make the call that continues a draft behind these nodes."""
        given, continues = self._given(draft, nodes, quiet)
        llm, arguments = told(
            self.llm,
            self.known.way,
            tokens=self.bound if self.step in ("tokens", "sentence") else None,
            stop=stops(draft, self.step, self.sentence_stop),
            further=self.known.continuation if continues else None,
            asynchronous=awaited,
        )
        return HostCall(llm, given, arguments, quiet.recording)

    def _given(
        self, draft: TextDraft, nodes: list[NodeWithScore], quiet: QuietCall
    ) -> tuple[str | list[ChatMessage], bool]:
        """Give what is to be written on, and whether that is a message of the model's own."""
        question, context = quiet.bundle.query_str, self.prompting.context(nodes)
        if not self.known.chat or self.known.by_prompt:
            return self.prompting.shown(self.llm, question, context) + draft.text, False
        messages = self.prompting.messages(self.llm, question, context)
        return continued(messages, draft.text)

    def streams(self, progress: Progress) -> bool:
        """Whether somebody listens, and the model can be listened to."""
        return self.known.streams and progress.wanted

    def showing(self, draft: TextDraft, progress: Progress) -> Show:
        """Give what reports a draft with what has come so far."""
        streamed = Streamed(draft, sentence=self.step == "sentence")
        return lambda written: progress.report(streamed.shown(written))

    def take(self, draft: TextDraft, written: Written) -> TextDraft:
        """Append what came, read by the model's own parser where that is all."""
        if self.step == "whole" and self.known.parses:
            text = self.llm._parse_output(written.text)  # noqa: SLF001 what `predict` does
            written = replace(written, text=text)
        return taken(draft, written, self.step, self.bound, self.sentence_stop)
