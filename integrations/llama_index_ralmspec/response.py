"""Makes a host's response of what happens in the engine, streamed or whole."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from llama_index.core.base.response.schema import (
    RESPONSE_TYPE,
    AsyncStreamingResponse,
    PydanticResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.schema import NodeWithScore

from llama_index_ralmspec.callbacks import recording_of
from llama_index_ralmspec.documents import nodes_of
from llama_index_ralmspec.host_calls import HostContext
from ralmspec_plugins.adapters.events import REPORT, report_of, stats_in
from ralmspec_plugins.adapters.text_state import draft_of
from ralmspec_plugins.effects import Commit, Confirmed, Event, Settled
from ralmspec_plugins.types import Answer, Hits, Stats

_STREAMS: Final = (StreamingResponse, AsyncStreamingResponse)
_WITH_METADATA: Final = (Response, PydanticResponse, *_STREAMS)
_UNMADE: Final = object()  # a synthesizer may give anything, `None` too
BEGUN = ""  # the first piece, when there is a response to give back


class Responses:
    """Makes the response of one request.

    Of one retrieval and one call it is the response of the host's own synthesizer. Of
    many it has the text, and the nodes of all steps in order of use, each once.
    """

    def __init__(self, context: HostContext, *, one_shot: bool, report: bool) -> None:
        """Begin with no text.

        Args:
            context: the request's.
            one_shot: whether the host's synthesizer writes it.
            report: whether the metadata get a `Report`.
        """
        self._context = context
        self._one_shot = one_shot
        self._report = report
        self._response: Any = _UNMADE
        self._nodes: list[NodeWithScore] = []
        self._metadata: dict[str, Any] = {}
        self._hits: Hits = ()  # of the latest confirmed step
        self._shown = 0

    @property
    def response(self) -> RESPONSE_TYPE:
        """The response, from the first piece on; what streams has no text in it."""
        assert self._response is not _UNMADE, "nothing has been given yet"
        made: RESPONSE_TYPE = self._response
        return made

    def shown(self, event: Event) -> Iterator[str]:
        """Take in what happens; give the new text if the response streams."""
        if isinstance(event, Confirmed | Commit):
            self._hits = event.hits
        if isinstance(event, Commit):
            self._used(event)
        if not self._context.streaming or not isinstance(event, Settled | Commit):
            return
        if self._response is _UNMADE and not self._begin(event.state):
            return
        if isinstance(event, Settled) and len(event.text) > self._shown:
            piece = event.text[self._shown :]
            if not self._shown:
                yield BEGUN
            self._shown = len(event.text)
            yield piece

    def ended(self, answer: Answer) -> Iterator[str]:
        """Complete the response with the whole answer."""
        if self._response is _UNMADE:
            draft = draft_of(answer.state)
            if self._one_shot:
                self._response = self._own(draft.message)
            else:
                self._response = Response(answer.text, self._nodes, self._metadata)
        if self._report:
            self._metadata[REPORT] = report_of(answer)
        if not self._shown:
            yield BEGUN

    def _begin(self, state: Any) -> bool:
        """Make the response that streams, if it does."""
        if self._one_shot:
            message = draft_of(state).message
            if not isinstance(message, _STREAMS):
                return False
            self._response = self._own(message)
            return True
        kind: Any = AsyncStreamingResponse if self._context.asynchronous else StreamingResponse
        self._used_by(state)
        self._response = kind(None, self._nodes, self._metadata)
        return True

    def _own(self, message: Any) -> Any:
        """Take the host's own response; its metadata get the report beside the host's.

        What is no response of the host's is given back as it is: what becomes of it is the
        host's affair.
        """
        if isinstance(message, _STREAMS):
            message = replace(message, response_txt=None)  # read here, and not by the caller
        if not self._report or not isinstance(message, _WITH_METADATA):
            return message
        self._metadata.update(message.metadata or {})
        # Of a class of its author's own, it keeps that. The host's `PydanticResponse` looks up
        # what it does not have in its fields, for ever while it has none: no copy() is made of it.
        made = object.__new__(type(message))
        vars(made).update(vars(message), metadata=self._metadata)
        return made

    def _used(self, event: Commit) -> None:
        if not self._one_shot:
            self._used_by(event.state)

    def _used_by(self, state: Any) -> None:
        """Add the nodes that a step has used, and their metadata as the host gives it.

        A model driven directly without postprocessors records nothing: it is given what the
        step's search found.
        """
        recording = recording_of(state)
        for node in nodes_of(self._hits) if recording is None else recording.used:
            if node.node.node_id not in self._metadata:
                self._nodes.append(node)
                self._metadata[node.node.node_id] = node.node.metadata


def stats_of(response: RESPONSE_TYPE) -> Stats:
    """Make the statistics of a response an object again, for its computed numbers and pictures.

    Raises:
        InputError: the response has no report; one that streams has it when it was read.
    """
    return stats_in(response.metadata, "a response of SpeculativeQueryEngine")
