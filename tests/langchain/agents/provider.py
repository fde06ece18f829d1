"""An OpenAI-compatible server on loopback over a brain; it refuses malformed histories."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.brain import Brain, MalformedError, Reply


@dataclass
class Provider:
    """Where it listens, and what came in."""

    brain: Brain
    url: str = ""
    word_s: float = 0.0
    requests: list[dict[str, Any]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    hung_up: int = 0  # streams whose reader went away
    streaming: int = 0  # streams that are being written


@contextmanager
def providing(brain: Brain, word_s: float = 0.0) -> Iterator[Provider]:
    """Serve a brain until the block ends."""
    provider = Provider(brain, word_s=word_s)
    handler = type("Handler", (_Handler,), {"provider": provider})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    provider.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    provider: Provider
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.provider.requests.append(asked)
        names = [tool["function"]["name"] for tool in asked.get("tools", ())]
        try:
            reply = self.provider.brain.reply(_bare(asked["messages"]), names)
        except MalformedError as error:
            self.provider.refused.append(str(error))
            self._whole(400, {"error": {"message": str(error), "type": "invalid_request_error"}})
            return
        if reply.fails_after is not None:
            self._whole(500, {"error": {"message": "out of order", "type": "server_error"}})
        elif asked.get("stream"):
            self._stream(asked, reply)
        else:
            message = {"role": "assistant", "content": "".join(reply.words)}
            if reply.calls:
                message["tool_calls"] = [_call(call) for call in reply.calls]  # type: ignore[assignment]
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self._whole(
                200, {**_about("chat.completion"), "choices": [choice], "usage": _usage(reply)}
            )

    def _whole(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, asked: dict[str, Any], reply: Reply) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        self.provider.streaming += 1
        try:
            for word in reply.words:
                time.sleep(self.provider.word_s)
                self._event({"role": "assistant", "content": word})
            for index, call in enumerate(reply.calls):
                self._event({"tool_calls": [{"index": index, **_call(call)}]})
            self._event({}, "tool_calls" if reply.calls else "stop")
            if (asked.get("stream_options") or {}).get("include_usage"):
                last = {**_about("chat.completion.chunk"), "choices": [], "usage": _usage(reply)}
                self._line(json.dumps(last))
            self._line("[DONE]")
        except (BrokenPipeError, ConnectionResetError):
            self.provider.hung_up += 1
        finally:
            self.provider.streaming -= 1

    def _event(self, delta: dict[str, Any], reason: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        self._line(json.dumps({**_about("chat.completion.chunk"), "choices": [choice]}))

    def _line(self, text: str) -> None:
        self.wfile.write(f"data: {text}\n\n".encode())
        self.wfile.flush()


def _bare(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in one.items() if value is not None} for one in messages]


def _call(call: dict[str, Any]) -> dict[str, Any]:
    function = {"name": call["name"], "arguments": json.dumps(call["args"])}
    return {"id": call["id"], "type": "function", "function": function}


def _usage(reply: Reply) -> dict[str, int]:
    given, made = reply.tokens
    return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}


def _about(kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-strict", "object": kind, "created": 0, "model": "strict"}
