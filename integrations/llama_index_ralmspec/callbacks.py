"""Tells LlamaIndex' handlers of a request: what is committed, in the host's order, and guesses.

A retrieval is told by the host's own code: a twin of the retriever goes through its
public `retrieve`, and finds at once what the search has found. A call of the model
is told from the recording that was made of it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from types import MethodType
from typing import Any, TypeAlias

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import CompletionResponse
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index_instrumentation import get_dispatcher

from llama_index_ralmspec.documents import nodes_of
from llama_index_ralmspec.host_calls import HostContext, copied
from llama_index_ralmspec.prompts import Prompting
from llama_index_ralmspec.recording import Recording, broken_of
from llama_index_ralmspec.replay import Find, Replay, twin, unawaited
from ralmspec_plugins import effects
from ralmspec_plugins.adapters.retriever_state import HitPayload, QueryPayload
from ralmspec_plugins.adapters.text_state import draft_of
from ralmspec_plugins.effects import Commit
from ralmspec_plugins.types import Hit, Query, Request, Retrieved

# Events of our own, for LlamaIndex' dispatcher: what is guessed, verified and rolled back.


class GuessEvent(BaseEvent):
    """A step is written ahead of its search, with these nodes.

    Attributes:
        query_str: what the retriever is asked.
        node_ids: the nodes that are expected, best first.
    """

    query_str: str
    node_ids: list[str]

    @classmethod
    def class_name(cls) -> str:
        """Name the class."""
        return "RalmSpecGuessEvent"


class VerificationEvent(BaseEvent):
    """The search for a query that was guessed has answered.

    Attributes:
        query_str: what the retriever was asked.
        right: whether the guess was as good as the answer.
    """

    query_str: str
    right: bool

    @classmethod
    def class_name(cls) -> str:
        """Name the class."""
        return "RalmSpecVerificationEvent"


class RollbackEvent(BaseEvent):
    """What was written behind a wrong guess is dropped.

    Attributes:
        segments: calls of the model, finished or not, that came to nothing.
    """

    segments: int

    @classmethod
    def class_name(cls) -> str:
        """Name the class."""
        return "RalmSpecRollbackEvent"


OwnEvent: TypeAlias = GuessEvent | VerificationEvent | RollbackEvent


# Tells of a model that is driven directly, as handlers would hear of its wrapper's calls.


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
        nodes = nodes_of(event.hits) if recording is None else recording.used
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


_dispatcher = get_dispatcher(__name__)


class Telling:
    """Tells one request's events, in its own context, one after the other."""

    def __init__(
        self, context: HostContext, retriever: BaseRetriever, direct: DirectRuns | None = None
    ) -> None:
        """Begin with nothing told.

        Args:
            context: the request's.
            retriever: the host's, whose runs are told.
            direct: tells of segments that no call of the host has written.
        """
        self._direct = direct
        self._context = context
        self._awaits = context.asynchronous
        self._retriever = retriever
        self._retrieved: Retrieved | None = None  # of the step that is being told
        self._first = True  # the request's own query is still to come
        self._replay: Replay | None = None  # of the call that is being told
        self._open = False  # whether that call may still break off
        self._read = False  # whether the response has been given back
        self._unanswered: Query | None = None  # whose search the request's error comes from

    def tell(self, event: effects.Event) -> None:
        """Tell one event of the engine."""
        unawaited(self.atell(event))

    async def atell(self, event: effects.Event) -> None:
        """Tell one event; of an asynchronous request, as the host's asynchronous methods do."""
        if isinstance(event, effects.Confirmed):
            await self._tell_retrieval(event.retrieved)
        elif isinstance(event, effects.Guessed | effects.Judged | effects.RolledBack):
            if _heard():
                _dispatcher.event(_own(event))
        elif isinstance(event, effects.Commit):
            self._retrieved = event.retrieved
            await self._hand_on(recording_of(event.state), whole=True)
            self._open = False
            if self._direct is not None:
                self._direct.tell(event)
        elif isinstance(event, effects.Settled):
            await self._hand_on(recording_of(event.state))
        elif isinstance(event, effects.Failed):
            self._unanswered = event.query

    def ended(self) -> None:
        """Tell what the last call that was told of has told since; the rest is never told."""
        unawaited(self.aended())

    async def aended(self) -> None:
        """Do the same on an event loop."""
        await self._end_call()
        self._context.ended()

    def given_back(self) -> None:
        """Have what a stream tells told from now on: the host's would be read from here."""
        self._read = True

    async def _hand_on(self, recording: Recording | None, *, whole: bool = False) -> None:
        """Tell a call of the model that is committed, its nodes with their real scores.

        One that broke off and is made once more goes on where the first one was told to.
        """
        if recording is None:
            return
        if self._replay is None or self._replay.recording is not recording:
            before = self._replay if self._open else None
            if before is None:
                await self._end_call()
            self._replay = Replay(recording, asynchronous=self._awaits, after=before)
            self._open = True
            if self._retrieved is not None:
                score(recording, self._retrieved.hits)
        await self._replay.hand_on(None if self._read else recording.begun, whole=whole)
        if whole and (self._read or recording.begun is None):
            await self._replay.end()

    async def _end_call(self) -> None:
        if self._replay is not None:
            await self._replay.end()

    async def _tell_retrieval(self, retrieved: Retrieved) -> None:
        self._retrieved = retrieved
        recording = recorded_inside(retrieved.hits)
        if recording is not None:
            await self._tell_again(recording)
            return
        bundle = self._bundle(retrieved.query)
        left = partial(self._context.searched, bundle)
        told = twin(self._retriever, _found(retrieved.query, retrieved.hits, left))
        await self._retrieve(told, bundle)

    async def _tell_again(self, recording: Recording) -> None:
        await Replay(recording, asynchronous=self._awaits, again=True).hand_on()

    async def _retrieve(self, told: Any, bundle: QueryBundle) -> None:
        if self._awaits:
            await told.aretrieve(bundle)
        else:
            told.retrieve(bundle)

    def _bundle(self, query: Query) -> QueryBundle:
        """Give the query as the host's retriever gets it: the caller's own, the first time."""
        own, self._first = self._first, False
        if own and query.text == self._context.bundle.query_str:
            return copied(self._context.bundle)
        return QueryBundle(query.text)

    def failed(self, error: BaseException) -> None:
        """Tell of the call that the request's error comes from; nothing of a request given up."""
        unawaited(self.afailed(error))

    async def afailed(self, error: BaseException) -> None:
        """Do the same, a search as the host's asynchronous methods tell of it."""
        try:
            if not await self._tell_failed_call(error) and isinstance(error, Exception):
                await self._tell_failed_search(error)
        finally:
            self._context.ended()

    async def _tell_failed_call(self, error: BaseException) -> bool:
        recording = self._context.failures.recording_of(error)
        if recording is not None:
            await self._hand_on(recording, whole=True)
            return True
        await self._end_call()  # a stream that was given up has an end, too
        broken = broken_of(error) if self._unanswered is not None else None
        if broken is None or broken.embedded is not None or not broken.recording.tells_more:
            return False
        await self._tell_again(broken.recording)
        return True

    async def _tell_failed_search(self, error: Exception) -> None:
        """Have a search fail once more, for those who hear of it."""
        query, broken = self._unanswered, broken_of(error)
        if query is None and broken is not None and broken.embedded is not None:
            query = Query(broken.embedded)
        if query is None:
            return
        _unflag(error)
        try:
            await self._retrieve(twin(self._retriever, _raising(error)), self._bundle(query))
        except Exception as raised:
            if raised is not error:
                raise


def _own(event: effects.Guessed | effects.Judged | effects.RolledBack) -> OwnEvent:
    """Make an event of ours."""
    if isinstance(event, effects.Guessed):
        ids = [hit.passage.id for hit in event.hits]
        return GuessEvent(query_str=event.query.text, node_ids=ids)
    if isinstance(event, effects.Judged):
        return VerificationEvent(query_str=event.query.text, right=event.right)
    return RollbackEvent(segments=event.segments)


def _heard() -> bool:
    """Whether anybody would hear of an event of ours: making one costs more than a guess."""
    teller: Any = _dispatcher
    while teller is not None and not teller.event_handlers:
        teller = teller.parent if teller.propagate else None
    return teller is not None


def recording_of(state: Any) -> Recording | None:
    """Find the recording of the call that wrote a state."""
    found = getattr(draft_of(state), "recording", None)
    return found if isinstance(found, Recording) else None


def recorded_inside(hits: Sequence[Hit]) -> Recording | None:
    """Give the recording of the call that found these hits, if it was kept."""
    origins = (hit.features for hit in hits)
    found = next((one.recording for one in origins if isinstance(one, HitPayload)), None)
    return found if isinstance(found, Recording) else None


def score(recording: Recording, hits: Sequence[Hit]) -> None:
    """Give the nodes of a committed call the scores of the search that confirmed it.

    They may have been a guess's when the call was made. The same objects stand in the
    response, and in what is told of it.
    """
    for node, hit in zip(recording.nodes, hits, strict=False):
        if node.node.node_id == hit.passage.id:
            node.score = hit.score


def _found(query: Query, hits: Sequence[Hit], left: Callable[[], None]) -> Find:
    """Make a search that has been made: its embedding is told, and its nodes are given.

    `left` puts on the query what the search did.
    """

    async def find(asynchronous: bool) -> list[NodeWithScore]:
        asked = query.encoding
        if isinstance(asked, QueryPayload) and isinstance(asked.recording, Recording):
            await Replay(asked.recording, asynchronous=asynchronous).hand_on()
        left()
        return nodes_of(hits)

    return find


def _raising(error: Exception) -> Find:
    """Make a search that fails; if it was for want of a vector, that is told too."""

    async def find(asynchronous: bool) -> list[NodeWithScore]:
        broken = broken_of(error)
        if broken is not None and broken.embedded is not None:
            await Replay(broken.recording, asynchronous=asynchronous, again=True).hand_on()
        raise error

    return find


def _unflag(error: Exception) -> None:
    """Take off the mark that callback managers leave on an error that they have told."""
    if hasattr(error, "event_added"):
        del error.event_added
