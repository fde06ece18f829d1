"""Tells the host's handlers what has been committed, as the host's own calls would have.

In the host's order: a step's search, then its model call. A call whose passages are
confirmed is told live from then on, so that its tokens are not held up.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from langchain_core.callbacks import BaseCallbackHandler, CallbackManager
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, Generation, LLMResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import merge_configs
from langchain_core.runnables.configurable import DynamicRunnable

from langchain_ralmspec.configs import HostContext, Silenced
from langchain_ralmspec.documents import document_of
from langchain_ralmspec.prompts import Prompting, continued
from langchain_ralmspec.recording import Event, Live, Recording, atell, tell
from ralmspec_plugins import effects
from ralmspec_plugins.adapters.documents import HostPassage
from ralmspec_plugins.adapters.text_state import draft_of
from ralmspec_plugins.effects import Commit
from ralmspec_plugins.types import Hit, Query, Request, Retrieved, passages_of

# How a retriever announces its runs to handlers.


@dataclass(frozen=True, slots=True)
class Voice:
    """How a retriever's run is announced: by name, tags and metadata, as `invoke` would."""

    name: str
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Any] | None = None
    own_tags: tuple[str, ...] = ()  # of this run alone, not of those inside
    own_metadata: Mapping[str, Any] | None = None


def voice_of(retriever: Runnable[Any, Any], config: RunnableConfig) -> Voice:
    """Find out how a retriever would announce itself in a call with this config."""
    bound = RunnableConfig()
    while True:
        if isinstance(retriever, RunnableBindingBase):
            bound = merge_configs(retriever.config, bound)
            retriever = retriever.bound
        elif isinstance(retriever, DynamicRunnable):
            retriever, _ = retriever.prepare(config)
        else:
            break
    params: dict[str, Any] = getattr(retriever, "_get_ls_params", dict)()
    return Voice(
        name=bound.get("run_name") or retriever.get_name(),
        tags=tuple(bound.get("tags") or ()),
        metadata={**(bound.get("metadata") or {}), **params},
        own_tags=tuple(getattr(retriever, "tags", None) or ()),
        own_metadata=getattr(retriever, "metadata", None),
    )


# The runs of a model that is driven directly, as handlers would hear of its wrapper's calls.


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
        context = self._prompting.context(passages_of(event.hits))
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


class Telling:
    """What one request tells its handlers."""

    def __init__(
        self,
        context: HostContext,
        voice: Voice,
        llm: Silenced,
        retriever: Silenced,
        direct: DirectRuns | None = None,
    ) -> None:
        """Tell nothing yet.

        Args:
            context: whose handlers, and under which run.
            voice: how the retriever announces itself.
            llm: the model's own handlers are told of its calls too, ...
            retriever: ... as the retriever's are of its searches.
            direct: what tells of segments that no call of the host's model has written.
        """
        config = context.config
        self._voice = voice
        # In the caller's context: so handlers that stand there, a usage counter's, are told too.
        self._manager = CallbackManager.configure(
            config.get("callbacks"),
            inheritable_tags=config.get("tags"),
            inheritable_metadata=config.get("metadata"),
        )
        self._context = context
        self._llm = llm
        self._retriever = retriever
        self._direct = direct
        self._live: dict[int, tuple[Recording, Live]] = {}

    # Events of the core, to calls of handlers

    def tell(self, event: effects.Event) -> None:
        """Tell what an event means for the host.

        Raises:
            Exception: what a handler has raised that was asked to, here or in a call.
        """
        self._check()
        handlers = self._heard_by(event)
        for one in self._meant(event) if handlers else ():
            tell(handlers, one)
        if (recording := _recording(event)) is not None:
            live = self._live_of(recording)
            recording.release(live.emit)
            if isinstance(event, effects.Commit):
                live.committed()

    async def atell(self, event: effects.Event) -> None:
        """Do the same on an event loop.

        Raises:
            Exception: what a handler has raised that was asked to, here or in a call.
        """
        self._check()
        handlers = self._heard_by(event)
        for one in self._meant(event) if handlers else ():
            await atell(handlers, one)
        if (recording := _recording(event)) is not None:
            live = self._live_of(recording)
            await recording.arelease(live.aemit)
            if isinstance(event, effects.Commit):
                await live.acommitted()

    def failed(self, error: BaseException) -> None:
        """Tell of the call that failed, and end every run that is open."""
        if (recording := self._context.failures.recording_of(error)) is not None:
            recording.release(self._live_of(recording).emit)
        for live in self._lives():
            live.shut(error)

    async def afailed(self, error: BaseException) -> None:
        """Do the same on an event loop."""
        if (recording := self._context.failures.recording_of(error)) is not None:
            await recording.arelease(self._live_of(recording).aemit)
        for live in self._lives():
            await live.ashut(error)

    def _check(self) -> None:
        for live in self._lives():
            live.check()

    def _lives(self) -> list[Live]:
        return [live for _, live in self._live.values()]

    def _live_of(self, recording: Recording) -> Live:
        if id(recording) not in self._live:
            former = next(reversed(self._lives()), None)
            self._live[id(recording)] = recording, Live(self._hearing(self._llm), former)
        return self._live[id(recording)][1]

    def _heard_by(self, event: effects.Event) -> list[BaseCallbackHandler]:
        if isinstance(event, effects.Confirmed | effects.Failed):
            return self._hearing(self._retriever)
        if isinstance(event, effects.Commit):
            return self._hearing(self._llm) if self._direct is not None else []
        return self._manager.handlers

    def _hearing(self, part: Silenced) -> list[BaseCallbackHandler]:
        """List who hears one call of a part: listeners are made anew for each, as by the host."""
        config = self._context.config
        return CallbackManager.configure(config.get("callbacks"), part.handlers(config)).handlers

    def _meant(self, event: effects.Event) -> Iterator[Event]:
        if isinstance(event, effects.Confirmed):
            yield from self._retrieved(event.retrieved)
        elif isinstance(event, effects.Failed) and event.query is not None:
            yield from self._not_retrieved(event.query, event.error)
        elif isinstance(event, effects.Commit) and self._direct is not None:
            manager = self._manager
            tags, metadata = manager.inheritable_tags, manager.inheritable_metadata
            about = {"parent_run_id": manager.parent_run_id, "tags": tags, "metadata": metadata}
            yield from self._direct.told(event, about)
        elif isinstance(event, effects.Guessed):
            ids = [hit.passage.id for hit in event.hits]
            yield self._custom("ralmspec.guess", {"documents": ids})
        elif isinstance(event, effects.Judged):
            yield self._custom("ralmspec.verify", {"right": event.right})
        elif isinstance(event, effects.RolledBack):
            yield self._custom("ralmspec.rollback", {"segments": event.segments})

    def _custom(self, name: str, data: dict[str, Any]) -> Event:
        manager = self._manager
        about = {
            "run_id": manager.parent_run_id,
            "tags": manager.tags,
            "metadata": manager.metadata,
        }
        return Event("on_custom_event", (name, data), about)

    def _retrieved(self, retrieved: Retrieved) -> Iterator[Event]:
        recorded = _recorded_inside(retrieved.hits)
        if recorded:
            yield from self._adopted(recorded)
            return
        start, about = self._search_begins(retrieved.query)
        yield start
        documents = [
            document_of(hit.passage)
            for hit in retrieved.hits
            if isinstance(hit.passage, HostPassage)
        ]
        yield Event("on_retriever_end", (documents,), about)

    def _not_retrieved(self, query: Query, error: Exception) -> Iterator[Event]:
        start, about = self._search_begins(query)
        yield start
        yield Event("on_retriever_error", (error,), about)

    def _search_begins(self, query: Query) -> tuple[Event, dict[str, Any]]:
        manager, voice = self._manager, self._voice
        tags = list(dict.fromkeys([*manager.inheritable_tags, *voice.tags, *voice.own_tags]))
        metadata = {
            **manager.inheritable_metadata,
            **(voice.metadata or {}),
            **(voice.own_metadata or {}),
        }
        about = {"run_id": uuid4(), "parent_run_id": manager.parent_run_id, "tags": tags}
        start = Event(
            "on_retriever_start",
            (None, query.text),
            {**about, "metadata": metadata, "name": voice.name},
        )
        return start, about

    def _adopted(self, events: Sequence[Event]) -> Iterator[Event]:
        """Give recorded events as those of this request: under its run, with its tags.

        What is shared between requests is called under nobody's run.
        """
        manager = self._manager
        nobodys = events[0].kwargs["parent_run_id"]
        ids: dict[UUID, UUID | None] = {nobodys: manager.parent_run_id}
        for event in events:
            kwargs = dict(event.kwargs)
            kwargs["run_id"] = ids.setdefault(kwargs["run_id"], uuid4())
            if "parent_run_id" in kwargs:
                kwargs["parent_run_id"] = ids[kwargs["parent_run_id"]]
            if "tags" in kwargs:
                own = kwargs["tags"] or ()
                kwargs["tags"] = list(dict.fromkeys([*manager.inheritable_tags, *own]))
            if "metadata" in kwargs:
                kwargs["metadata"] = {**manager.inheritable_metadata, **(kwargs["metadata"] or {})}
            yield Event(event.name, event.args, kwargs)


def _recording(event: effects.Event) -> Recording | None:
    """Find the recording of the call that wrote a state which is, or will be, committed."""
    if not isinstance(event, effects.Commit | effects.Settled):
        return None
    found = getattr(draft_of(event.state), "recording", None)
    return found if isinstance(found, Recording) else None


def _recorded_inside(hits: Sequence[Hit]) -> list[Event]:
    """Give the events of the call that found these hits, if it had runs inside."""
    recording = next((getattr(hit.features, "recording", None) for hit in hits), None)
    return list(recording.events) if isinstance(recording, Recording) else []
