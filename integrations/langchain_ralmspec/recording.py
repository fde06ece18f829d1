"""The callback events of one call of a host's model, recorded until the call is committed."""

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import message_chunk_to_message
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, LLMResult


@dataclass(slots=True, eq=False)
class ModelRun:
    """A run of a model: the arguments of its handlers at its start, per token, and at its end."""

    method: str  # the callback manager's method that starts it
    serialized: Any
    given: Any  # a prompt, or a list of messages
    run_id: UUID
    tags: list[str]
    metadata: dict[str, Any]
    options: Mapping[str, Any]  # name, invocation parameters and other arguments of the host
    tokens: list[tuple[Any, Any]] = field(default_factory=list)  # with their chunks
    response: LLMResult | None = None
    error: BaseException | None = None
    error_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.response is not None or self.error is not None


class CallCapture(BaseCallbackHandler):
    """The only handler of a call that may be dropped.

    `run` is the model's run that produced the call's output: the last one that ended, or
    otherwise the last one that started. It is `None` if no model ran (the LLM cache answered).
    """

    run_inline = True
    raise_error = True  # an error of this handler must not be hidden

    def __init__(self, *, streamed: bool = True) -> None:
        """Create a capture without events.

        Args:
            streamed: whether the host itself would stream. Otherwise a model that is streamed
                to receive its tokens ends with the event of one that is invoked.
        """
        self.streamed = streamed
        self.run: ModelRun | None = None
        self.raised: BaseException | None = None  # the error of the call
        self.before: Any = None  # the draft that the call continues
        self.given: Any = None  # the passages in its prompt
        self._runs: dict[UUID, ModelRun] = {}

    def on_chat_model_start(self, serialized: Any, messages: Any, **about: Any) -> None:
        """Record the start of a run."""
        self._start("on_chat_model_start", serialized, messages[0], **about)

    def on_llm_start(self, serialized: Any, prompts: Any, **about: Any) -> None:
        """Record the start of a run."""
        self._start("on_llm_start", serialized, prompts[0], **about)

    def _start(
        self,
        method: str,
        serialized: Any,
        given: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,  # the reported run has that of the request
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        tags, metadata = list(tags or ()), dict(metadata or {})
        self.run = ModelRun(method, serialized, given, run_id, tags, metadata, options)
        self._runs[run_id] = self.run

    def on_llm_new_token(
        self, token: Any, *, chunk: Any = None, run_id: UUID, **_about: Any
    ) -> None:
        """Record a token."""
        self._runs[run_id].tokens.append((token, chunk))

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_about: Any) -> None:
        """Record the end of a run."""
        self.run = self._runs[run_id]
        if not self.streamed:
            made = [[_invoked(one) for one in some] for some in response.generations]
            response = response.model_copy(update={"generations": made})
        self.run.response = response

    def on_llm_error(
        self,
        error: BaseException,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        **options: Any,
    ) -> None:
        """Record the error of a run."""
        self.run = self._runs[run_id]
        self.run.error, self.run.error_options = error, options


def _invoked(generation: Any) -> Any:
    if not isinstance(generation, ChatGenerationChunk):
        return generation
    message = message_chunk_to_message(generation.message)
    return ChatGeneration(message=message, generation_info=generation.generation_info)


class StreamingCapture(CallCapture):
    """A capture for callers whose handlers make the host stream models that are invoked.

    The host recognises such handlers by these two methods.
    """

    def tap_output_aiter(self, run_id: UUID, output: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Return the output unchanged."""
        return output

    def tap_output_iter(self, run_id: UUID, output: Iterator[Any]) -> Iterator[Any]:
        """Return the output unchanged."""
        return output
