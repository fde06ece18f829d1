"""The runs of a model that is driven directly, as handlers would hear of its wrapper's calls."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any
from uuid import uuid4

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, Generation, LLMResult

from langchain_ralmspec.prompting import Prompting, continued
from langchain_ralmspec.recording import Event
from ralmspec_plugins.effects import Commit
from ralmspec_plugins.types import Request, passages_of


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
            prompting: how documents and inputs become a prompt.
            llm: the model's wrapper.
            text: gives the text of a state.
        """
        self._request = request
        self._prompting = prompting
        self._llm = llm
        self._text = text
        self._shown = ""

    def told(self, event: Commit, about: Mapping[str, Any]) -> Iterator[Event]:
        """Give the events of one segment's run.

        Args:
            event: the segment's step.
            about: the run's parent, tags and metadata.
        """
        context = self._prompting.context(passages_of(event.retrieved.hits))
        value = self._prompting.value(self._request, context)
        text = self._text(event.state)
        piece = text[len(self._shown) :]
        run = {"run_id": uuid4(), "parent_run_id": about["parent_run_id"], "tags": about["tags"]}
        start = {**run, "metadata": about["metadata"], "name": self._llm.get_name()}
        before, self._shown = self._shown, text
        if isinstance(self._llm, BaseChatModel):
            given, _ = continued(value, before, {})
            messages = given if isinstance(given, list) else given.to_messages()
            yield Event("on_chat_model_start", ({}, [messages]), start)
            generation: Generation = ChatGeneration(message=AIMessage(content=piece))
        else:
            yield Event("on_llm_start", ({}, [value.to_string() + before]), start)
            generation = Generation(text=piece)
        yield Event("on_llm_end", (LLMResult(generations=[[generation]]),), run)
