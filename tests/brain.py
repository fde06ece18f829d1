"""A model's behaviour as a pure function of its request, and a strict reader of histories."""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

ANSWER = "Answer"  # the name of the structured response's schema


class MalformedError(Exception):
    """A provider refuses such a history."""


class ModelDownError(Exception):
    """What the model raises in some worlds."""


@dataclass(frozen=True)
class Reply:
    """What the model says: pieces of text, tool calls, and where it fails."""

    words: tuple[str, ...]
    calls: tuple[dict[str, Any], ...]
    tokens: tuple[int, int]
    fails_after: int | None = None


@dataclass(frozen=True)
class Brain:
    """Decides on the text of the history alone."""

    seed: int = 0
    hops: int = 2
    parallel: int = 1
    tools: tuple[str, ...] = ("search",)
    ids: Literal["unique", "repeated", "same", "empty"] = "unique"
    failing: float = 0.0

    def reply(self, messages: Sequence[dict[str, Any]], tools: Sequence[str]) -> Reply:
        check(messages, distinct=self.ids in ("unique", "repeated"))
        text = json.dumps([self.seed, messages, list(tools)], sort_keys=True)
        draw = random.Random(hashlib.sha256(text.encode()).hexdigest())
        words = tuple(f"{draw.choice(_WORDS)} " for _ in range(draw.randint(1, 4)))
        tokens = (len(text), 1 + len(words))
        if draw.random() < self.failing:
            return Reply(words, (), tokens, fails_after=draw.randint(0, len(words)))
        hop = _hop(messages)
        if hop < self.hops:
            count = draw.randint(1, self.parallel)
            return Reply(words, tuple(self._call(draw, hop, n) for n in range(count)), tokens)
        if ANSWER in tools:
            call = {"name": ANSWER, "args": {"text": words[0]}, "id": f"answer-{hop}"}
            return Reply(words, (call,), tokens)
        return Reply(words, (), tokens)

    def _call(self, draw: random.Random, hop: int, number: int) -> dict[str, Any]:
        name = draw.choice(self.tools)
        ids = {
            "unique": f"call-{self.seed}-{hop}-{number}",
            "repeated": f"call-{number}",
            "same": "call",
            "empty": "",
        }
        return {"name": name, "args": {"q": draw.choice(_WORDS)}, "id": ids[self.ids]}


_WORDS = ("fox", "owl", "elm", "oak", "rye", "fig")


def _hop(messages: Sequence[dict[str, Any]]) -> int:
    """Count the model's replies with tool calls since the user spoke."""
    hop = 0
    for message in messages:
        if message["role"] == "user":
            hop = 0
        elif message.get("tool_calls"):
            hop += 1
    return hop


def check(messages: Sequence[dict[str, Any]], *, distinct: bool = True) -> None:
    """Refuse a history in which tool calls and their results do not match, as providers do."""
    waiting: Counter[str] = Counter()
    for message in messages:
        if message["role"] == "tool":
            if waiting[message["tool_call_id"]] < 1:
                raise MalformedError(f"a result without a call: {message['tool_call_id']!r}")
            waiting[message["tool_call_id"]] -= 1
            continue
        if +waiting:
            raise MalformedError(f"calls without results: {dict(+waiting)}")
        ids = [call["id"] for call in message.get("tool_calls") or ()]
        waiting = Counter(ids)
        if distinct and (len(waiting) < len(ids) or not all(ids)):
            raise MalformedError(f"ids that are empty or repeated: {ids}")
    if +waiting:
        raise MalformedError(f"calls without results: {dict(+waiting)}")
