"""A small OpenAI-compatible server on loopback that serves the demo model, greedily."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.lm.state import Draft
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Request

_TO_THE_END = 64  # tokens, where a request sets no bound


@dataclass
class Served:
    """Where the server listens, and what came in."""

    url: str
    lm: HuggingFaceLM
    requests: list[dict[str, Any]] = field(default_factory=list)
    hung_up: int = 0  # streams that their reader closed

    @property
    def count(self) -> int:
        return len(self.requests)


def chat_prompt(messages: list[dict[str, Any]], *, continued: bool) -> str:
    """Show a conversation as one text: a line for each turn, the continued one left open."""
    lines = [str(message["content"]).rstrip("\n") + "\n" for message in messages]
    if continued:
        lines[-1] = str(messages[-1]["content"])
    return "".join(lines)


def written_by(lm: HuggingFaceLM, asked: dict[str, Any]) -> Draft:
    """Write what the server answers to one of its requests, with log-probabilities."""
    prompt = _prompt(asked, chat=asked["path"].endswith("/chat/completions"))
    return _write(lm, {**asked, "logprobs": True}, prompt, Progress())


@contextmanager
def serving(lm: HuggingFaceLM) -> Iterator[Served]:
    """Serve this model until the block ends."""
    served = Served("", lm)
    handler = type("Handler", (_Handler,), {"lm": lm, "served": served})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    served.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    lm: HuggingFaceLM
    served: Served
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.served.requests.append({"path": self.path, **asked})
        chat = self.path.endswith("/chat/completions")
        try:
            prompt = _prompt(asked, chat=chat)
            if asked.get("stream"):
                self._stream(asked, prompt, chat=chat)
            else:
                draft = _write(self.lm, asked, prompt, Progress())
                logprobs = _logprobs(draft, 0, chat=chat) if asked.get("logprobs") else None
                self._send(200, _whole(draft, chat=chat, text=draft.text, logprobs=logprobs))
        except _RefusedError as refused:
            self._send(400, {"error": {"message": str(refused), "type": "invalid_request_error"}})

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, asked: dict[str, Any], prompt: str, *, chat: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        sent = told = 0

        def send(draft: Draft) -> None:
            nonlocal sent, told
            piece = draft.settled[sent:]
            sent += len(piece)
            if piece:
                logprobs = _logprobs(draft, told, chat=chat) if asked.get("logprobs") else None
                told = len(draft.tokens)
                self._event(_piece(piece, None, chat=chat, logprobs=logprobs))

        try:
            draft = _write(self.lm, asked, prompt, Progress(send))
            rest, ending = draft.text[sent:], _reason(draft)
            logprobs = _logprobs(draft, told, chat=chat) if asked.get("logprobs") else None
            self._event(_piece(rest, ending, chat=chat, logprobs=logprobs))
            if (asked.get("stream_options") or {}).get("include_usage"):
                self._event({**_piece("", None, chat=chat), "choices": [], "usage": _usage(draft)})
            self.wfile.write(b"data: [DONE]\n\n")
        except (BrokenPipeError, ConnectionResetError):
            self.served.hung_up += 1
        self.close_connection = True

    def _event(self, event: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()


class _RefusedError(Exception):
    pass


def _prompt(asked: dict[str, Any], *, chat: bool) -> str:
    if not chat:
        prompt = asked["prompt"]
        return str(prompt if isinstance(prompt, str) else prompt[0])
    continued = bool(asked.get("continue_final_message"))
    if continued and asked.get("add_generation_prompt", True):
        raise _RefusedError("cannot continue a message and begin another one")
    if continued and asked["messages"][-1]["role"] != "assistant":
        raise _RefusedError("the final message is not the assistant's")
    return chat_prompt(asked["messages"], continued=continued)


def _write(lm: HuggingFaceLM, asked: dict[str, Any], prompt: str, progress: Progress) -> Draft:
    tokens = asked.get("max_completion_tokens") or asked.get("max_tokens") or _TO_THE_END
    stop = asked.get("stop") or ()
    request = Request(
        prompt=prompt,
        max_tokens=tokens,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
    )
    lm = lm.scored() if asked.get("logprobs") else lm
    draft = lm.begin(request)
    try:
        return lm.write(draft, [], tokens, progress)
    finally:
        lm.release(draft)


def _reason(draft: Draft) -> str:
    return "length" if draft.ending == "length" else "stop"


def _usage(draft: Draft) -> dict[str, int]:
    asked, written = len(draft.prompt_tokens), len(draft.tokens)
    return {
        "prompt_tokens": asked,
        "completion_tokens": written,
        "total_tokens": asked + written,
    }


def _logprobs(draft: Draft, since: int, *, chat: bool) -> dict[str, Any]:
    """Say what tokens had which log-probability, in the form of either method."""
    found = draft.logprobs[since:]
    if not chat:
        return {
            "tokens": [one.text for one in found],
            "token_logprobs": [one.logprob for one in found],
            "top_logprobs": [{one.text: one.logprob} for one in found],
            "text_offset": [0 for _ in found],
        }
    shown = [
        {"token": one.text, "bytes": list(one.text.encode()), "logprob": one.logprob}
        for one in found
    ]
    return {"content": [{**one, "top_logprobs": [one]} for one in shown]}


def _whole(draft: Draft, *, chat: bool, text: str, logprobs: Any = None) -> dict[str, Any]:
    shown: dict[str, Any] = {"text": text}
    if chat:
        shown = {"message": {"role": "assistant", "content": text}}
    choice = {"index": 0, "finish_reason": _reason(draft), "logprobs": logprobs, **shown}
    kind = "chat.completion" if chat else "text_completion"
    return _envelope(kind, choice) | {"usage": _usage(draft)}


def _piece(text: str, reason: str | None, *, chat: bool, logprobs: Any = None) -> dict[str, Any]:
    shown: dict[str, Any] = {"text": text}
    if chat:
        shown = {"delta": {"role": "assistant", "content": text}}
    choice = {"index": 0, "finish_reason": reason, "logprobs": logprobs, **shown}
    return _envelope("chat.completion.chunk" if chat else "text_completion", choice)


def _envelope(kind: str, choice: dict[str, Any]) -> dict[str, Any]:
    return {"id": "demo", "object": kind, "created": 0, "model": "demo", "choices": [choice]}
