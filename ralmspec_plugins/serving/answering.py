"""One answer on its way to a client: generated apart from the connection, cancelled with it."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ralmspec_plugins.errors import Cancelled, Closed, DeadlineExceeded
from ralmspec_plugins.serving.errors import api_error
from ralmspec_plugins.serving.limits import Admission, Limits
from ralmspec_plugins.serving.metrics import Metrics, Outcome
from ralmspec_plugins.serving.openai_api import (
    END_OF_STREAM,
    ApiError,
    ChatRequest,
    Completion,
    event_bytes,
    json_bytes,
)
from ralmspec_plugins.serving.pipelines import Done, Part, Pipeline, Question, Text

_STREAM_HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_Handed: TypeAlias = Part | Exception


@dataclass(frozen=True, slots=True)
class Service:
    """What all answers of a server share."""

    limits: Limits
    admission: Admission
    metrics: Metrics


class ApiErrorResponse(JSONResponse):
    """An error in OpenAI's envelope."""

    def __init__(self, error: ApiError) -> None:
        """Create the response."""
        super().__init__(error.envelope, error.status, dict(error.headers))

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return json_bytes(content)


class Generation:
    """Generates one answer in a task of its own, into a buffer that the sender empties.

    So a client that reads slowly keeps its own text waiting, and neither the model nor
    a slot: an answer is never longer than its limit of tokens.
    """

    def __init__(
        self, service: Service, pipeline: Pipeline, question: Question, account: str
    ) -> None:
        """Create a generation that is not started, counted for an account."""
        self._service = service
        self._pipeline = pipeline
        self._question = question
        self._account = account
        self._handed: asyncio.Queue[_Handed] = asyncio.Queue()

    async def run(self) -> None:
        """Wait for a turn and generate; errors are handed to the reader."""
        limits = self._service.limits
        try:
            async with self._service.admission.slot(self._account):
                async with asyncio.timeout(limits.deadline_s) as deadline:
                    await self._generate()
        except asyncio.CancelledError:
            self._handed.put_nowait(Cancelled("the request was cancelled"))
            raise
        except TimeoutError as error:
            late = DeadlineExceeded(f"no answer within {limits.deadline_s:g} seconds")
            self._handed.put_nowait(late if deadline.expired() else error)
        except Exception as error:  # noqa: BLE001 raised to the reader
            self._handed.put_nowait(error)
        except BaseException as error:  # noqa: BLE001 of a part: it ends this request alone
            self._handed.put_nowait(RuntimeError(f"a part of the request raised {error!r}"))

    async def _generate(self) -> None:
        complete = False
        async with aclosing(self._pipeline.ask(self._question)) as parts:
            async for part in parts:
                self._handed.put_nowait(part)
                complete = isinstance(part, Done)
        if not complete:
            raise RuntimeError(f"{self._pipeline!r} ended without a Done")

    async def parts(self) -> AsyncGenerator[Part, None]:
        """Yield the parts as they come.

        Raises:
            Exception: the error of the generation.
        """
        while True:
            part = await self._handed.get()
            if isinstance(part, Exception):
                raise part
            yield part
            if isinstance(part, Done):
                return


class AnswerResponse(Response):
    """Answers a question, as one reply or as a stream; stops all work when the client leaves."""

    def __init__(
        self,
        service: Service,
        pipeline: Pipeline,
        question: Question,
        asked: ChatRequest,
        *,
        account: str,
        request_id: str,
    ) -> None:
        """Create a response; nothing is started before it is sent."""
        self.status_code = 200
        self.background = None
        self._service = service
        self._asked = asked
        self._request_id = request_id
        self._generation = Generation(service, pipeline, question, account)
        self._completion = Completion(asked)
        self._began_s = time.perf_counter()
        self._outcome: Outcome = "cancelled"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Generate and send, until the answer is sent or the client has left."""
        sending = self._stream if self._asked.stream else self._reply
        sender = _Sender(send, self._service.limits)
        try:
            async with _together(self._generation.run()):
                await _while_connected(receive, sending(sender))
        except asyncio.CancelledError:
            if not self._service.admission.stopping:
                raise
            # The server has waited for this answer as long as it may: the client gets an error.
            told = api_error(Closed("server"), self._request_id, self._service.limits)
            await sender.error(told)
        finally:
            took_s = time.perf_counter() - self._began_s
            self._service.metrics.ended(self._asked.model, self._outcome, took_s)

    async def _reply(self, sender: "_Sender") -> None:
        """Send the whole answer, or its error."""
        text = ""
        try:
            async for part in self._parts():
                if isinstance(part, Text):
                    text += part.text
                    continue
                body = json_bytes(self._completion.whole(text, part))
                await sender.send(Response(body, media_type="application/json"))
        except _GoneError:
            raise
        except Exception as error:  # noqa: BLE001 the client receives it
            await sender.error(self._error(error))

    async def _stream(self, sender: "_Sender") -> None:
        """Send the answer in chunks. An error before the first is one of the whole response."""
        completion = self._completion
        try:
            async for part in self._parts():
                if not sender.started:
                    await sender.start("text/event-stream", _STREAM_HEADERS)
                    await sender.body(event_bytes(completion.first()))
                if isinstance(part, Text):
                    await sender.body(event_bytes(completion.piece(part.text)))
                    continue
                for chunk in completion.last(part):
                    await sender.body(event_bytes(chunk))
                await sender.body(END_OF_STREAM, last=True)
        except _GoneError:
            raise
        except Exception as error:  # noqa: BLE001 the client receives it
            await sender.error(self._error(error))

    async def _parts(self) -> AsyncIterator[Part]:
        """Yield the parts of the answer, and count them."""
        metrics, model, first = self._service.metrics, self._asked.model, True
        async for part in self._generation.parts():
            if first:
                metrics.first_text(model, time.perf_counter() - self._began_s)
                first = False
            if isinstance(part, Done):
                metrics.answered(model, part)
                self._outcome = "answered"
            yield part

    def _error(self, error: Exception) -> ApiError:
        told = api_error(error, self._request_id, self._service.limits)
        self._outcome = (
            "overloaded" if told.status == 429 else "refused" if told.status < 500 else "failed"
        )
        return told


class _GoneError(Exception):
    """The client takes nothing more."""


class _Sender:
    """Sends one response, each piece within the limit of time."""

    def __init__(self, send: Send, limits: Limits) -> None:
        self._send = send
        self._limits = limits
        self._streams = self._ended = False
        self.started = False

    async def start(self, media_type: str, headers: dict[str, str]) -> None:
        """Send the status and the headers of a stream."""
        response = Response(headers=headers, media_type=media_type)
        raw = [pair for pair in response.raw_headers if pair[0] != b"content-length"]
        self._streams = True
        await self._within({"type": "http.response.start", "status": 200, "headers": raw})

    async def body(self, body: bytes, *, last: bool = False) -> None:
        """Send a piece of a stream."""
        await self._within({"type": "http.response.body", "body": body, "more_body": not last})

    async def send(self, response: Response) -> None:
        """Send a whole response."""
        headers, status = response.raw_headers, response.status_code
        await self._within({"type": "http.response.start", "status": status, "headers": headers})
        body = bytes(response.body)
        await self._within({"type": "http.response.body", "body": body, "more_body": False})

    async def error(self, error: ApiError) -> None:
        """Send an error: as the response, as a stream's last event, or not at all behind those."""
        if not self.started:
            await self.send(ApiErrorResponse(error))
        elif self._streams and not self._ended:
            await self.body(event_bytes(error.envelope), last=True)

    async def _within(self, message: dict[str, Any]) -> None:
        self.started = True
        self._ended = not message.get("more_body", True)
        try:
            async with asyncio.timeout(self._limits.send_timeout_s):
                await self._send(message)
        except (TimeoutError, OSError) as error:
            raise _GoneError from error


@asynccontextmanager
async def _together(work: Any) -> AsyncIterator[None]:
    """Run work during a context; at the context's end it is cancelled, and waited for."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        await _cancelled(task)


async def _while_connected(receive: Receive, work: Any) -> None:
    """Run work until it ends or the client leaves."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    except _GoneError:
        return
    finally:
        await _cancelled(leaving)
        await _cancelled(working)


async def _cancelled(task: "asyncio.Task[Any]") -> None:
    """Cancel a task, and wait until it has ended; what it raises then is ignored."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
