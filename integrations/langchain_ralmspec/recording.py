"""What one call of a host's model tells handlers, kept until the call is part of the answer."""

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import message_chunk_to_message
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, LLMResult


@dataclass(slots=True, eq=False)
class ModelRun:
    """A run of a model: what its handlers are given at its start, for each token, at its end."""

    method: str  # of the callback manager that starts it
    serialized: Any
    given: Any  # a prompt, or a list of messages
    run_id: UUID
    tags: list[str]
    metadata: dict[str, Any]
    options: Mapping[str, Any]  # name, invocation parameters and whatever else the host says
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

    `run` is the model's run that made the call's output: the last one that ended, or else
    the last one that started. A call that runs no model (the LLM cache answers) has none.
    """

    run_inline = True
    raise_error = True  # a fault of ours must not be swallowed

    def __init__(self, *, streamed: bool = True) -> None:
        """Begin with nothing.

        Args:
            streamed: whether the host would stream, too. A model that is only streamed so
                that handlers hear its tokens gives them the same end as one that is invoked.
        """
        self.streamed = streamed
        self.run: ModelRun | None = None
        self.raised: BaseException | None = None  # by the call
        self.before: Any = None  # the draft that the call continues
        self.given: Any = None  # the passages that it is shown
        self._runs: dict[UUID, ModelRun] = {}

    def on_chat_model_start(self, serialized: Any, messages: Any, **about: Any) -> None:
        """Note a start."""
        self._start("on_chat_model_start", serialized, messages[0], **about)

    def on_llm_start(self, serialized: Any, prompts: Any, **about: Any) -> None:
        """Note a start."""
        self._start("on_llm_start", serialized, prompts[0], **about)

    def _start(
        self,
        method: str,
        serialized: Any,
        given: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,  # the run that is told has the request's
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
        """Note a token."""
        self._runs[run_id].tokens.append((token, chunk))

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_about: Any) -> None:
        """Note an end."""
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
        """Note an error."""
        self.run = self._runs[run_id]
        self.run.error, self.run.error_options = error, options


def _invoked(generation: Any) -> Any:
    if not isinstance(generation, ChatGenerationChunk):
        return generation
    message = message_chunk_to_message(generation.message)
    return ChatGeneration(message=message, generation_info=generation.generation_info)


class StreamingCapture(CallCapture):
    """The same where the caller's handlers have models stream, also those that are invoked.

    The host knows such handlers by these two methods.
    """

    def tap_output_aiter(self, run_id: UUID, output: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Change nothing."""
        return output

    def tap_output_iter(self, run_id: UUID, output: Iterator[Any]) -> Iterator[Any]:
        """Change nothing."""
        return output
