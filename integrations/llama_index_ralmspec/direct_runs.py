"""Tells of a model that is driven directly, as handlers would hear of its wrapper's calls."""

from collections.abc import Callable
from types import MethodType
from typing import Any

from llama_index.core.base.llms.types import CompletionResponse
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index_instrumentation import get_dispatcher

from llama_index_ralmspec.passages import nodes_of
from llama_index_ralmspec.prompting import Prompting
from ralmspec_plugins.effects import Commit
from ralmspec_plugins.types import Request


class DirectRuns:
    """Tells of each committed segment as of one call: its prompt, and what was written.

    No call of the wrapper is made, so none is recorded; and still a trace should show
    what the model saw.
    """

    def __init__(
        self, request: Request, prompting: Prompting, llm: Any, text: Callable[[Any], str]
    ) -> None:
        """Begin with no text.

        Args:
            request: what is answered.
            prompting: how nodes and question become a prompt.
            llm: the model's wrapper.
            text: gives the text of a state.
        """
        self._request = request
        self._prompting = prompting
        self._llm = llm
        self._text = text
        self._shown = ""

    def tell(self, event: Commit) -> None:
        """Tell one segment's call, by the host's own code around `complete`."""
        draft = getattr(event.state, "draft", event.state)
        recording = getattr(draft, "recording", None)  # of postprocessors, where there are any
        nodes = nodes_of(event.retrieved.hits) if recording is None else recording.used
        prompt = self._prompting.shown(
            self._llm, self._request.prompt, self._prompting.context(nodes)
        )
        text = self._text(event.state)
        written, before = text[len(self._shown) :], self._shown
        self._shown = text
        _told(self._llm, written)(prompt + before, formatted=True)


def _told(llm: Any, written: str) -> Callable[..., Any]:
    """Give the model's `complete` with nothing in it but what is written already."""

    def complete(
        self: Any,  # noqa: ARG001 as it is called
        prompt: str,  # noqa: ARG001
        formatted: bool = False,  # noqa: ARG001
    ) -> CompletionResponse:
        return CompletionResponse(text=written)

    told: Callable[..., Any] = llm_completion_callback()(complete)
    return get_dispatcher(type(llm).__module__).span(MethodType(told, llm))
