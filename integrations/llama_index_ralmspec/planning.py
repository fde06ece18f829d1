"""How one call of a host's model is planned: what it is given, how far it is to write."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms import LLM
from llama_index.core.schema import NodeWithScore

from llama_index_ralmspec.bounds import told
from llama_index_ralmspec.host_call import HostCall
from llama_index_ralmspec.models import Abilities
from llama_index_ralmspec.postprocessing import Postprocessing
from llama_index_ralmspec.prompting import Prompting, continued
from llama_index_ralmspec.quiet_call import QuietCall, in_a_loop_of_its_own
from ralmspec_plugins.adapters.text_model import Show, Step
from ralmspec_plugins.adapters.text_state import Written
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Hits


@dataclass(frozen=True, slots=True)
class Plan:
    """One call: the text that it continues, how far, and who hears of it."""

    llm: LLM
    known: Abilities
    prompting: Prompting
    processing: Postprocessing
    text: str
    step: Step
    bound: int
    stop: Sequence[str]
    quiet: QuietCall

    def alone(self) -> AbstractContextManager[None]:
        """Have nobody hear of what runs inside but the recording."""
        return self.quiet.alone()

    def write(self, given: Hits, progress: Progress, show: Show) -> Written:
        """Call the model, as a stream where somebody listens and it can be listened to."""
        if self.quiet.asynchronous:
            return in_a_loop_of_its_own(self.awrite(given, progress, show))
        call = self._call(self.quiet.nodes(given, self.processing), awaited=False)
        if self.known.streams and progress.wanted:
            return self._read(call.stream(progress, show))
        return self._read(call.invoke())

    async def awrite(self, given: Hits, progress: Progress, show: Show) -> Written:
        """Do the same by the host's asynchronous methods."""
        call = self._call(await self.quiet.anodes(given, self.processing), awaited=True)
        if self.known.native_async:
            return await self._awritten(call, progress, show)
        return await self.quiet.beside(
            lambda: in_a_loop_of_its_own(self._awritten(call, progress, show)), progress
        )

    async def _awritten(self, call: HostCall, progress: Progress, show: Show) -> Written:
        if self.known.streams and progress.wanted:
            return self._read(await call.astream(progress, show))
        return self._read(await call.ainvoke())

    def _call(self, nodes: list[NodeWithScore], *, awaited: bool) -> HostCall:
        """Make the call that continues the text behind these nodes."""
        shown, continues = self._shown(nodes)
        llm, arguments = told(
            self.llm,
            self.known.way,
            tokens=self.bound if self.step in ("tokens", "sentence") else None,
            stop=self.stop,
            further=self.known.continuation if continues else None,
            asynchronous=awaited,
        )
        return HostCall(llm, shown, arguments, self.quiet.recording)

    def _shown(self, nodes: list[NodeWithScore]) -> tuple[str | list[ChatMessage], bool]:
        """Give what is to be written on, and whether that is a message of the model's own."""
        question, context = self.quiet.bundle.query_str, self.prompting.context(nodes)
        if not self.known.chat or self.known.by_prompt:
            return self.prompting.shown(self.llm, question, context) + self.text, False
        return continued(self.prompting.messages(self.llm, question, context), self.text)

    def _read(self, written: Written) -> Written:
        """Have the model's own parser read a text that is whole."""
        if not self.known.parses:
            return written
        text = self.llm._parse_output(written.text)  # noqa: SLF001 what `predict` does
        return replace(written, text=text)
