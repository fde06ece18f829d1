"""OpenAI's chat completions on the wire: requests, replies, chunks and errors."""

import json
import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ralmspec_plugins.errors import InputError
from ralmspec_plugins.serving.pipelines import Done, Question, Source, TokenUsage

EXTENSION: Final = "x_ralmspec"  # what is ours in requests and replies
END_OF_STREAM: Final = b"data: [DONE]\n\n"
_MOST_STOPS: Final = 4  # as in OpenAI's API
_MOST_PARTS: Final = 1000  # messages, and parts of one: checking them blocks the event loop
_MOST_FIELDS: Final = 64


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _given(cls, fields: Any) -> Any:
        """Leave out what is null, and check the number: naming each would block the event loop."""
        if not isinstance(fields, dict):
            return fields
        if len(fields) > _MOST_FIELDS:
            raise ValueError(f"there are {len(fields)} fields, and this server knows fewer")
        return {name: value for name, value in fields.items() if value is not None}


_FEW: Final[Any] = Field(min_length=1, max_length=_MOST_PARTS, fail_fast=True)


class TextPart(_Strict):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class Message(_Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], _FEW]

    @property
    def text(self) -> str:
        """The content as one text."""
        parts = self.content
        return parts if isinstance(parts, str) else "".join(part.text for part in parts)


class StreamOptions(_Strict):
    """What a stream has besides its text."""

    include_usage: bool = False


class Extension(_Strict):
    """What a client may ask for besides OpenAI's fields."""

    sources: bool = False


class ChatRequest(_Strict):
    """A chat completion request, with the fields that this server applies and no others."""

    model: str
    messages: Annotated[list[Message], _FEW]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: str | list[str] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = 1  # a Literal would take true and 1.0, too
    x_ralmspec: Extension | None = Extension()

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings.

        Raises:
            InputError: there are too many, or one is empty.
        """
        given = () if self.stop is None else self.stop
        stops = (given,) if isinstance(given, str) else tuple(given)
        if len(stops) > _MOST_STOPS or not all(stops):
            raise InputError(f"stop must be at most {_MOST_STOPS} texts, none empty")
        return stops

    def limit(self, most: int) -> int | None:
        """Return the client's limit of the answer's tokens, `None` if it sets none.

        Raises:
            InputError: it sets two different ones, or one above `most`.
        """
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise InputError("max_tokens and max_completion_tokens differ; give one of them")
        limit = limits.pop() if limits else None
        if limit is not None and limit > most:
            raise InputError(f"max_tokens may be at most {most} here, got {limit}")
        return limit


QuestionOf: TypeAlias = Callable[[Sequence[Message]], str]


def only_question(messages: Sequence[Message]) -> str:
    """Return the text of the only message, which must be a user's.

    Raises:
        InputError: there are others, which this pipeline would not read.
    """
    if len(messages) != 1 or messages[0].role != "user":
        raise InputError(
            "this model answers one question and reads no other messages: send one message, "
            "of the role user"
        )
    return messages[0].text


def dialogue(messages: Sequence[Message]) -> str:
    r"""Return all messages as one text, each with its role in front.

    The first retrieval then searches for the whole of it.

    >>> dialogue([Message(role="user", content="Hi"), Message(role="user", content="Why?")])
    'user: Hi\nuser: Why?'
    """
    return "\n".join(f"{message.role}: {message.text}" for message in messages)


# Errors.


@dataclass(eq=False)
class ApiError(Exception):
    """An error as clients see it."""

    status: int
    message: str
    type: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def envelope(self) -> dict[str, Any]:
        """OpenAI's error object."""
        names = ("message", "type", "param", "code")
        return {"error": {name: getattr(self, name) for name in names}}


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """Return an object as JSON in ASCII, so that any text of a model can be sent."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def event_bytes(value: Mapping[str, Any]) -> bytes:
    """Return an object as a server-sent event."""
    return b"data: " + json_bytes(value) + b"\n\n"


# Replies.


class Completion:
    """The replies to one request: a whole one, or chunks."""

    def __init__(self, asked: ChatRequest) -> None:
        """Set the id and the time of the completion."""
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self._asked = asked
        self._created = int(time.time())
        options = asked.stream_options
        self._counts = options is not None and options.include_usage

    def whole(self, text: str, done: Done) -> dict[str, Any]:
        """Return the reply to a request without `stream`."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"message": message, "finish_reason": done.finish_reason}
        return {
            **self._reply("chat.completion", [{"index": 0, **choice, "logprobs": None}]),
            "usage": _usage(done.usage),
            EXTENSION: self._extension(done),
        }

    def first(self) -> dict[str, Any]:
        """Return the first chunk, which has the role."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> dict[str, Any]:
        """Return a chunk with text."""
        return self._chunk({"content": text})

    def last(self, done: Done) -> list[dict[str, Any]]:
        """Return the chunk with the finish reason, and that with the usage if it is asked for."""
        chunks = [{**self._chunk({}, done.finish_reason), EXTENSION: self._extension(done)}]
        if self._counts:
            chunks.append({**self._reply(_CHUNK, []), "usage": _usage(done.usage)})
        return chunks

    def _chunk(self, delta: Mapping[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        chunk = self._reply(_CHUNK, [choice])
        return {**chunk, "usage": None} if self._counts else chunk

    def _reply(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        named = {"id": self.id, "object": kind, "created": self._created}
        return {**named, "model": self._asked.model, "choices": choices}

    def _extension(self, done: Done) -> dict[str, Any]:
        usage = done.usage
        found: dict[str, Any] = {"dropped_tokens": None if usage is None else usage.dropped_tokens}
        wanted = self._asked.x_ralmspec
        if wanted is not None and wanted.sources:
            found["sources"] = [_source(source) for source in done.sources]
        return found


_CHUNK: Final = "chat.completion.chunk"


def _usage(usage: TokenUsage | None) -> dict[str, int] | None:
    if usage is None:
        return None
    read, written = usage.prompt_tokens, usage.completion_tokens
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
    }


def _source(source: Source) -> dict[str, Any]:
    return {
        "id": source.id,
        "title": source.title,
        "text": source.text,
        "score": None if source.score is None else plain(float(source.score)),
        "metadata": plain(source.metadata),
    }


def plain(value: Any) -> Any:
    """Return a value as JSON can have it: what it has no form for becomes its text.

    >>> plain({"page": 3, ("a",): float("nan"), "tags": {"x"}})
    {'page': 3, "('a',)": 'nan', 'tags': ['x']}
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(one) for one in value]
    return str(value)


def question_in(
    asked: ChatRequest, tenant: str, *, question_of: QuestionOf, max_tokens: int
) -> Question:
    """Return the question of a request.

    Raises:
        InputError: a field has a value that cannot be applied.
    """
    if asked.stream_options is not None and not asked.stream:
        raise InputError("stream_options are for a stream: set stream to true, or leave them out")
    text = question_of(asked.messages)
    if not text.strip():
        raise InputError("the question is empty")
    for name, told in (("the question", text), *(("stop", stop) for stop in asked.stops)):
        if not _is_unicode(told):
            raise InputError(f"{name} has half a character (a lone surrogate)")
    return Question(
        text=text,
        tenant=tenant,
        max_tokens=asked.limit(max_tokens),
        stop=asked.stops,
        seed=asked.seed,
        streamed=bool(asked.stream),
    )


def _is_unicode(text: str) -> bool:
    r"""Return whether a text has whole characters only; JSON can have half of one.

    >>> _is_unicode("é"), _is_unicode("\ud83d")
    (True, False)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
